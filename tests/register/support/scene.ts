/** Buckets whose register has something of everything. */
import {
  addObjects,
  createBucket,
  jpeg,
  type Lab,
  removeObjects,
  runToEnd,
  upload,
} from "../../sync/support/lab.ts";

/** The row of a register, as every way shows it. */
export type Row = {
  readonly part_number: string;
  readonly file_name: string;
  readonly signed_url: string;
  readonly signed_url_expires_at: Date;
};

/** A token with the parts of a real one, as long as it takes to give the URL `length` characters. */
export function tokenOf(urlBase: string, length = 400): string {
  return `eyJ${"a".repeat(33)}.${"b".repeat(length - urlBase.length - "?token=eyJ".length - 33 - 2 - 43)}.${
    "c".repeat(43)
  }`;
}

/** Part numbers that a spreadsheet would run, or a careless reader would break. */
export const hostileNumbers: readonly string[] = [
  "-4711",
  "+49 89",
  "=1+1",
  "=cmd|' /C calc'!A0",
  "@sum(1)",
  " =2+2",
  "\u00a0=3",
  "＝4",
  "－5",
  "\t=5",
  '"quoted"',
  "semi;colon",
  "com,ma",
  "two\nlines",
  "back\\slash",
  "Größe-Ü",
  "零件",
  "'apostrophe",
  "''",
  "a'b",
  "1e5",
  "000001",
  // Nothing but what the names of copies end with.
  "(1)",
  "(2)",
  "_jpg",
];

/**
 * Records with URLs that should work, and objects for them, made by SQL: names that Storage would not take are among them.
 *
 * @returns the bucket
 */
export async function createRegister(lab: Lab, partNumbers: readonly string[]): Promise<string> {
  const bucket = await createBucket(lab);
  await lab.sql`
    insert into image_sync.project (url, function_version) values (${lab.target.url}, 'test')
    on conflict do nothing`;
  const [base] = await lab.sql<{ url: string }[]>`
    select image_sync.url_base(s) as url from image_sync.settings s where s.bucket_id = ${bucket}`;
  const url = base?.url ?? "";
  const files = partNumbers.map((_, place) => `${place}/${partNumbers[place]}.jpg`);
  const paths = files.map((file) => url + file.split("/").map(encodeURIComponent).join("/"));
  await addObjects(lab, bucket, files);
  await lab.sql`
    insert into public.part_images (bucket_id, file_name, part_number, signed_url, signed_url_expires_at)
    select ${bucket}, n.file, n.part, n.url, date_trunc('second', now()) + interval '5 days'
    from unnest(${files}::text[], ${[...partNumbers]}::text[], ${
    paths.map((path) => `${path}?token=${tokenOf(path)}`)
  }::text[]) as n (file, part, url)`;
  return bucket;
}

/**
 * A bucket of real images, synced, with one of each kind that a register decides about: twins, an orphan, an expired URL, a cut one,
 * one of another project, an empty file.
 *
 * @returns the bucket, and the files that its register shows, in its order
 */
export async function createMixedBucket(lab: Lab): Promise<{ bucket: string; shown: readonly string[] }> {
  const bucket = await createBucket(lab);
  const shown = ["000001.jpg", "A2.jpg", "folder/b3 (1).jpg", "c4.jpg", "d5.jpg"];
  const hidden = ["000001.JPG", "000001_JPG.jpg", "x/000001.jpg", "a2 (1).jpg", "C4.jpeg"];
  const broken = [
    "dead.jpg",
    "cut.jpg",
    "elsewhere.jpg",
    "gone.jpg",
    "unsigned.jpg",
    "empty.jpg",
    "D5 (1).jpg",
  ];
  for (const name of [...shown, ...hidden, ...broken]) await upload(lab, bucket, name, jpeg);
  await runToEnd(lab, bucket);
  const change = (name: string, what: string) =>
    lab.sql.unsafe(`update public.part_images set ${what} where bucket_id = $1 and file_name = $2`, [
      bucket,
      name,
    ]);
  await change("dead.jpg", "signed_url_expires_at = now() - interval '1 second'");
  await change("cut.jpg", "signed_url = left(signed_url, 255)");
  await change("elsewhere.jpg", "signed_url = 'https://elsewhere.example' || substr(signed_url, 10)");
  await change("unsigned.jpg", "signed_url = null, signed_url_expires_at = null");
  await lab.sql`
    update storage.objects set metadata = metadata || '{"size": 0}' where bucket_id = ${bucket} and name = 'empty.jpg'`;
  await removeObjects(lab, bucket, ["gone.jpg"]);
  return { bucket, shown };
}
