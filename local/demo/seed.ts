import { createClient } from "@supabase/supabase-js";
import pLimit from "p-limit";
import { withDatabase } from "../postgres/database.ts";
import type { Stack } from "../stack.ts";
import { type SampleImage, sampleImages } from "./sample_images.ts";

const BUCKET = "part-images";
const UPLOADS_AT_ONCE = 8;
/** One in so many old rows has lost its file. */
const ORPHAN_EVERY = 20;

/** What to put into an empty stack. */
export type Seed = {
  /** JPEG images to upload. */
  readonly images: number;
  /** Old rows of `part_images`, with URLs that are dead. */
  readonly records: number;
  /** Called after each upload. */
  readonly onUpload: (done: number) => void;
};

/**
 * Makes the private bucket, uploads sample images through the Storage endpoint as a shop would, and leaves the table as the
 * replaced scripts left it.
 *
 * @throws {Error} when the bucket cannot be made or an upload fails.
 */
export async function seed(stack: Stack, { images, records, onUpload }: Seed): Promise<void> {
  const { storage } = createClient(stack.url, stack.secretKey, { auth: { persistSession: false } });
  const created = await storage.createBucket(BUCKET, { public: false });
  if (created.error) throw new Error(`Cannot make the bucket ${BUCKET}: ${created.error.message}`);

  let done = 0;
  const upload = async ({ name, contentType, data }: SampleImage) => {
    const { error } = await storage.from(BUCKET).upload(name, data, { contentType });
    if (error) throw new Error(`Cannot upload ${name}: ${error.message}`);
    onUpload(++done);
  };
  const limit = pLimit(UPLOADS_AT_ONCE);
  await limit.map(sampleImages(images), upload);
  await insertOldRecords(stack, records);
}

async function insertOldRecords({ dbUrl, url }: Stack, records: number): Promise<void> {
  await withDatabase(dbUrl, (sql) =>
    sql.query(
      `insert into public.part_images (part_number, file_name, signed_url)
      select n.part_number, n.part_number || '.jpg', $1 || '/storage/v1/object/sign/part-images/' || n.part_number || '.jpg?token=died-long-ago'
      from (
        select case when i % $3 = 0 then 'gone-' else '' end || lpad(i::text, 6, '0') as part_number
        from generate_series(1, $2) as i
      ) as n`,
      [url, records, ORPHAN_EVERY],
    ));
}
