import type { BenchStack } from "./stack.ts";

/** Fills the bucket with rows of storage.objects: files are not needed to sign. Names are `000001.jpg` and on. */
export async function fillBucket({ sql }: BenchStack, objects: number): Promise<void> {
  await sql`insert into storage.buckets (id, name, public) values ('part-images', 'part-images', false) on conflict do nothing`;
  await sql.begin(async (transaction) => {
    await transaction`set local storage.allow_delete_query = 'true'`;
    await transaction`delete from storage.objects where bucket_id = 'part-images'`;
    await transaction`
      insert into storage.objects (bucket_id, name, metadata)
      select 'part-images', lpad(i::text, 7, '0') || '.jpg', '{"size": 560000, "mimetype": "image/jpeg"}'
      from generate_series(1, ${objects}::integer) as i`;
  });
  await sql`vacuum analyze storage.objects`;
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
