import type { BenchStack } from "./stack.ts";

/** Bytes that are a JPEG to whoever looks at the first of them. */
const JPEG = new Uint8Array([
  0xff,
  0xd8,
  0xff,
  0xe0,
  0,
  16,
  0x4a,
  0x46,
  0x49,
  0x46,
  0,
  1,
  1,
  0,
  0,
  1,
  0,
  1,
  0,
  0,
]);

const METADATA = {
  eTag: '"d41d8cd98f00b204e9800998ecf8427e"',
  size: 560_000,
  mimetype: "image/jpeg",
  cacheControl: "max-age=3600",
  lastModified: "2026-11-24T02:00:00.000Z",
  contentLength: 560_000,
  httpStatusCode: 200,
};

const versions = new WeakMap<BenchStack, string>();

/** The version under which Storage keeps one uploaded image: rows that name it all show that one. */
async function imageVersion(stack: BenchStack): Promise<string> {
  const known = versions.get(stack);
  if (known !== undefined) return known;
  await makeBucket(stack, "bench-image");
  const response = await fetch(`${stack.url}/storage/v1/object/bench-image/image.jpg`, {
    method: "POST",
    headers: { "apikey": stack.key, "content-type": "image/jpeg", "x-upsert": "true" },
    body: JPEG,
  });
  if (!response.ok) throw new Error(`Cannot upload an image: ${await response.text()}`);
  const [row] = await stack.sql<{ version: string }[]>`
    select version from storage.objects where bucket_id = 'bench-image' and name = 'image.jpg'`;
  if (row === undefined) throw new Error("Cannot find the image that was uploaded");
  versions.set(stack, row.version);
  return row.version;
}

async function makeBucket({ sql }: BenchStack, bucket: string): Promise<void> {
  await sql`insert into storage.buckets (id, name, public) values (${bucket}, ${bucket}, false) on conflict do nothing`;
}

/** What to fill a bucket with. */
export type Filling = {
  readonly objects: number;
  /** Default: `part-images`. */
  readonly bucket?: string;
  /** What stands before and behind each number. Default: nothing, and `.jpg`. */
  readonly around?: readonly [string, string];
};

/** Fills a bucket with rows of storage.objects that are all of one uploaded image: `0000001.jpg` and on. */
export async function fillBucket(stack: BenchStack, filling: Filling | number): Promise<void> {
  const { objects, bucket = "part-images", around: [before, behind] = ["", ".jpg"] } =
    typeof filling === "number" ? { objects: filling } : filling;
  const version = await imageVersion(stack);
  // Ten million has a digit more.
  const digits = Math.max(7, String(objects).length);
  await makeBucket(stack, bucket);
  await stack.sql.begin(async (transaction) => {
    await transaction`set local storage.allow_delete_query = 'true'`;
    await transaction`delete from storage.objects where bucket_id = ${bucket}`;
    await transaction`
      insert into storage.objects (bucket_id, name, metadata, version)
      select ${bucket}, ${before} || lpad(i::text, ${digits}::integer, '0') || ${behind}, ${
      transaction.json(METADATA)
    }, ${version}
      from generate_series(1, ${objects}::integer) as i`;
  });
  await stack.sql`vacuum analyze storage.objects`;
}

/** Removes a bucket with all that was made of it, but for the bucket of every measurement. */
export async function removeBucket({ sql }: BenchStack, bucket: string): Promise<void> {
  await sql.begin(async (transaction) => {
    await transaction`set local storage.allow_delete_query = 'true'`;
    await transaction`delete from storage.objects where bucket_id = ${bucket}`;
  });
  await sql`delete from image_sync.settings where bucket_id = ${bucket}`;
  await sql`delete from public.part_images where bucket_id = ${bucket}`;
}

/** Leaves the table as it was before the first sync: so many old rows without a URL, and no history. */
export async function resetTable({ sql }: BenchStack, records: number): Promise<void> {
  await sql`truncate public.part_images`;
  await sql`truncate image_sync.runs, image_sync.chunks, image_sync.archive`;
  await sql`
    insert into public.part_images (part_number, file_name)
    select lpad(i::text, 7, '0'), lpad(i::text, 7, '0') || '.jpg'
    from generate_series(1, ${records}::integer) as i`;
  await sql`vacuum analyze public.part_images`;
  await sql`checkpoint`;
}
