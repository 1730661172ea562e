import { fillBucket, resetTable } from "./bucket.ts";
import { startBenchStack } from "./stack.ts";
import { timed } from "./measure.ts";
const N = 50000;
const stack = await startBenchStack();
const { sql } = stack;
await fillBucket(stack, N);
const names = (c: number) => Array.from({ length: 1000 }, (_, i) => `${String(c * 1000 + i + 1).padStart(7, "0")}.jpg`);
const tok = "x".repeat(330);
const urls = (c: number) => names(c).map((n, i) => `http://127.0.0.1:54321/storage/v1/object/sign/part-images/${n}?token=${tok}${c}${i}`);
const exp = Array.from({ length: 1000 }, () => 1900000000);
async function each(name: string, act: (c: number) => Promise<unknown>) {
  const s = await timed(async () => { for (let c = 0; c < N / 1000; c++) await act(c); });
  console.log(name.padEnd(50), (s * 1000 / (N / 1000)).toFixed(1), "ms/1000");
}
const one = await sql.reserve();
for (let round = 0; round < 2; round++) {
  await resetTable(stack, 0);
  await each("parse json args only", (c) => one`select cardinality(p_names) from json_to_record(${JSON.stringify({ p_names: names(c), p_urls: urls(c), p_expires: exp })}::text::json) as a(p_names text[], p_urls text[], p_expires bigint[])`);
  await each("insert_missing", (c) => one`select inserted is null from image_sync.insert_missing('part-images', ${names(c)}::text[])`);
  await one`vacuum analyze public.part_images`;
  await each("update from unnest (3 arrays)", (c) => one`update public.part_images p set signed_url = s.url, signed_url_expires_at = to_timestamp(s.expires) from unnest(${names(c)}::text[], ${urls(c)}::text[], ${exp}::bigint[]) as s(name, url, expires) where p.bucket_id = 'part-images' and p.file_name collate "C" = s.name`);
  await resetTable(stack, 0);
  await each("insert with urls", (c) => one`insert into public.part_images (bucket_id, file_name, part_number, signed_url, signed_url_expires_at) select 'part-images', s.name, image_sync.part_number_of(s.name), s.url, to_timestamp(s.expires) from unnest(${names(c)}::text[], ${urls(c)}::text[], ${exp}::bigint[]) as s(name, url, expires) on conflict do nothing`);
  await sql`drop index public.part_images_part_number_idx`;
  await resetTable(stack, 0);
  await each("no part_number index: insert_missing", (c) => one`select inserted is null from image_sync.insert_missing('part-images', ${names(c)}::text[])`);
  await one`vacuum analyze public.part_images`;
  await each("no part_number index: update from unnest", (c) => one`update public.part_images p set signed_url = s.url, signed_url_expires_at = to_timestamp(s.expires) from unnest(${names(c)}::text[], ${urls(c)}::text[], ${exp}::bigint[]) as s(name, url, expires) where p.bucket_id = 'part-images' and p.file_name collate "C" = s.name`);
  await sql`create index part_images_part_number_idx on public.part_images (part_number collate "C")`;
  await resetTable(stack, 0);
  await each("C part_number index: insert_missing", (c) => one`select inserted is null from image_sync.insert_missing('part-images', ${names(c)}::text[])`);
  await each("C part_number index: update from unnest", (c) => one`update public.part_images p set signed_url = s.url, signed_url_expires_at = to_timestamp(s.expires) from unnest(${names(c)}::text[], ${urls(c)}::text[], ${exp}::bigint[]) as s(name, url, expires) where p.bucket_id = 'part-images' and p.file_name collate "C" = s.name`);
  await resetTable(stack, 0);
  await each("C: insert with urls", (c) => one`insert into public.part_images (bucket_id, file_name, part_number, signed_url, signed_url_expires_at) select 'part-images', s.name, image_sync.part_number_of(s.name), s.url, to_timestamp(s.expires) from unnest(${names(c)}::text[], ${urls(c)}::text[], ${exp}::bigint[]) as s(name, url, expires) on conflict do nothing`);
  await sql`drop index public.part_images_part_number_idx; `.simple();
  await sql`create index part_images_part_number_idx on public.part_images (part_number)`;
}
one.release();
await stack.stop();
Deno.exit(0);
