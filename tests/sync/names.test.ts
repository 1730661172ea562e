import fc from "fast-check";
import { afterAll, beforeAll, expect, test } from "vitest";
import {
  createBucket,
  imbalances,
  jpeg,
  type Lab,
  openLab,
  readLedgers,
  readRecords,
  removeObjects,
  runToEnd,
} from "./support/lab.ts";

let lab: Lab;
beforeAll(async () => {
  lab = await openLab();
});
afterAll(() => lab?.close());

const longest = `${"n".repeat(1020)}.jpg`; // 1,024 bytes
const tenDeep = `${Array.from({ length: 10 }, (_, level) => `folder ${level}`).join("/")}/deep.jpg`;

/** Names that the Storage API accepts. */
const uploadable = [
  "000001.jpg",
  "000001.JPG",
  "000001.Jpg",
  "000001_JPG.jpg",
  "000001.jpg.jpg",
  "000001.jpg (1).jpg",
  "with space.jpg",
  " leading and trailing .jpg",
  "it's 'quoted'.jpg",
  "what?.jpg",
  "what?token=1&x=2.jpg",
  "fish & chips.jpg",
  "a+b.jpg",
  "a b.jpg",
  "a=b;c:d,e@f$g!h*i(j).jpg",
  "dots...jpg",
  "folder/a.jpg",
  "folder/a/a.jpg",
  "folder/a.jpg/a.jpg",
  "Folder/a.jpg",
  tenDeep,
];

/** Names that only rows of older versions have; rows are enough to list and sign them. */
const others = [
  longest,
  `${"ü".repeat(510)}.jpg`,
  "émile.jpg",
  "e\u0301mile.jpg",
  "日本語.jpg",
  "😀.jpg",
  "\uffee.jpg",
  'double "quote".jpg',
  "back\\slash.jpg",
  "100%.jpg",
  "100%25.jpg",
  "a#b.jpg",
  "[a]{b}|c^d~e`f<g>.jpg",
  "tab\tin the name.jpg",
  "line\nbreak.jpg",
  "double//slash.jpg",
  "trailing/.jpg",
  "null.jpg",
  "{a,b}.jpg",
];

const placeholders = [
  ".emptyFolderPlaceholder",
  "folder/.emptyFolderPlaceholder",
  `${"x/".repeat(10)}.emptyFolderPlaceholder`,
];

/** Uploads over plain HTTP: supabase-js leaves `?` in the path as it is, and would make another file. */
async function uploadByUrl(bucket: string, name: string, content: Uint8Array<ArrayBuffer>): Promise<void> {
  const { url, secretKey } = lab.target;
  const path = name.split("/").map(encodeURIComponent).join("/");
  const response = await fetch(`${url}/storage/v1/object/${bucket}/${path}`, {
    method: "POST",
    headers: { apikey: secretKey, authorization: `Bearer ${secretKey}`, "content-type": "image/jpeg" },
    body: content,
  });
  expect([name, response.status, await response.json()]).toMatchObject([name, 200, {
    Key: `${bucket}/${name}`,
  }]);
}

/** What is left out by name under default settings. */
const isHidden = (name: string) => /(^|\/)\./.test(name);

/** What Storage opens a URL of. */
const isSignable = (name: string) => /^[\w/!.*'() &$@=;:+,?-]+$/.test(name);

const inByteOrder = (names: readonly string[]) =>
  [...names].sort((a, b) => Buffer.compare(Buffer.from(a), Buffer.from(b)));

test("every name becomes one record, signed if a URL of it can be opened, whatever the size of the chunks", async () => {
  const listed = inByteOrder([...uploadable, ...others]);
  const names = listed.filter((name) => !isHidden(name));
  const unsignable = names.filter((name) => !isSignable(name));
  expect(unsignable).toHaveLength(15);
  for (const chunkSize of [1, 2, 3, 7, 1000]) {
    const bucket = await createBucket(lab, {
      settings: { chunk_size: chunkSize },
      objects: [...listed, ...placeholders],
    });
    const run = await runToEnd(lab, bucket);
    expect(run).toMatchObject({
      state: "partial",
      stop_reason: "items_failed",
      balanced: true,
      totals: {
        listed: listed.length,
        images: names.length,
        inserted: names.length,
        signed: names.length - unsignable.length,
        failed: unsignable.length,
      },
    });
    expect(imbalances(await readLedgers(lab, run.id))).toEqual([]);
    const records = await readRecords(lab, bucket);
    expect(run.problems.map(({ name }) => name).toSorted()).toEqual(unsignable.toSorted());
    expect(records.map(({ file_name }) => file_name)).toEqual(names);
    for (const { file_name, signed_url } of records) {
      expect([file_name, signed_url !== null]).toEqual([file_name, isSignable(file_name)]);
    }
    expect(await runToEnd(lab, bucket)).toMatchObject({
      totals: { recorded: names.length, orphaned: 0, rows_written: 0 },
    });
  }
});

test("the signed URL of every name that can be uploaded shows that very file", async () => {
  const bucket = await createBucket(lab, { settings: { probe_size: 100 } });
  const contents = new Map(uploadable.map((name, place) => [name, new Uint8Array([...jpeg, place])]));
  for (const [name, content] of contents) await uploadByUrl(bucket, name, content);
  const run = await runToEnd(lab, bucket);
  expect(run).toMatchObject({ state: "succeeded", totals: { signed: uploadable.length } });
  const shown = await Promise.all((await readRecords(lab, bucket)).map(async ({ file_name, signed_url }) => {
    const response = await fetch(signed_url ?? "");
    const content = [...new Uint8Array(await response.arrayBuffer())];
    return { file_name, status: response.status, type: response.headers.get("content-type"), content };
  }));
  expect(shown).toEqual(
    inByteOrder(uploadable).map((file_name) => ({
      file_name,
      status: 200,
      type: "image/jpeg",
      content: [...contents.get(file_name) ?? []],
    })),
  );
});

test("the part number is the file name without folders and extension", async () => {
  const partNumbers = {
    "000001.jpg": "000001",
    "a/b/000002.JPG": "000002",
    "000003.rev.b.jpg": "000003.rev.b",
    "with space.jpeg": "with space",
    "folder.d/000004.jpg": "000004",
    "000005_JPG.jpg": "000005_JPG",
  };
  const bucket = await createBucket(lab, { objects: Object.keys(partNumbers) });
  await runToEnd(lab, bucket);
  const records = await readRecords(lab, bucket);
  expect(Object.fromEntries(records.map(({ file_name, part_number }) => [file_name, part_number]))).toEqual(
    partNumbers,
  );
});

test("a URL that an earlier version made for a name that cannot be opened is taken back when it is due", async () => {
  const bucket = await createBucket(lab, { objects: ["ümlaut.jpg", "fine.jpg"] });
  await runToEnd(lab, bucket);
  await lab.sql`
    update public.part_images p
    set signed_url = image_sync.url_base(s) || 'x?token=y', signed_url_expires_at = now() + interval '1 day'
    from image_sync.settings s
    where s.bucket_id = p.bucket_id and p.bucket_id = ${bucket} and p.file_name = 'ümlaut.jpg'`;
  await runToEnd(lab, bucket);
  expect(
    (await readRecords(lab, bucket)).map(({ file_name, signed_url }) => [file_name, signed_url !== null]),
  ).toEqual([
    ["fine.jpg", true],
    ["ümlaut.jpg", false],
  ]);
  const file = await lab.database.readFile(bucket, "ümlaut.jpg");
  expect(file).toMatchObject({ in_sync: false, reasons: [{ code: "unsignable" }] });
});

test("a name that no URL can reach is named in the report and costs the others nothing", async () => {
  const bucket = await createBucket(lab, { objects: ["a.jpg", "a#/b.jpg", "c~.jpg", "d.jpg"] });
  expect(await runToEnd(lab, bucket)).toMatchObject({
    state: "partial",
    stop_reason: "items_failed",
    balanced: true,
    totals: { inserted: 4, signed: 2, failed: 2 },
    problems: [{ name: "a#/b.jpg", code: "unsignable_name" }, { name: "c~.jpg", code: "unsignable_name" }],
  });
});

test("whatever names a bucket holds, table and bucket are equal after a sync, also after half of them went away", async () => {
  // Few characters, so that names are twins of and extend one another.
  const stem = fc.string({
    unit: fc.constantFrom("a", "A", "b", "0", ".", "/", " ", "_", "é", "'", "?"),
    minLength: 1,
    maxLength: 6,
  });
  const name = fc.tuple(stem, fc.constantFrom(".jpg", ".JPG", ".png", "")).map(([text, extension]) =>
    text + extension
  );
  await fc.assert(
    fc.asyncProperty(
      fc.uniqueArray(name, { maxLength: 40 }),
      fc.integer({ min: 1, max: 9 }),
      async (names, chunkSize) => {
        const bucket = await createBucket(lab, { settings: { chunk_size: chunkSize }, objects: names });
        const images = inByteOrder(names.filter((name) => /\.jpg$/i.test(name) && !isHidden(name)));
        expect(await runToEnd(lab, bucket)).toMatchObject({
          balanced: true,
          totals: { listed: names.length, inserted: images.length },
        });
        expect((await readRecords(lab, bucket)).map(({ file_name }) => file_name)).toEqual(images);
        const gone = names.filter((_, place) => place % 2 === 0);
        await removeObjects(lab, bucket, gone);
        const orphaned = images.filter((name) => gone.includes(name)).length;
        expect(await runToEnd(lab, bucket)).toMatchObject({
          balanced: true,
          totals: { orphaned, inserted: 0, signed: expect.any(Number) },
        });
      },
    ),
    { numRuns: 15 },
  );
});
