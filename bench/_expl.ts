import { fillBucket, resetTable } from "./bucket.ts";
import { startBenchStack } from "./stack.ts";
const N = 50000;
const stack = await startBenchStack();
const { sql } = stack;
await fillBucket(stack, N);
const names = (c: number) => Array.from({ length: 1000 }, (_, i) => `${String(c * 1000 + i + 1).padStart(7, "0")}.jpg`);
const tok = "x".repeat(330);
const urls = (c: number) => names(c).map((n, i) => `http://127.0.0.1:54321/storage/v1/object/sign/part-images/${n}?token=${tok}${c}${i}`);
const exp = Array.from({ length: 1000 }, () => 1900000000);
await resetTable(stack, 0);
const one = await sql.reserve();
const show = async (name: string, q: Promise<readonly Record<string, string>[]>) => console.log(name + "\n" + (await q).map((r) => "  " + Object.values(r)[0]).join("\n"));
for (let c = 0; c < 40; c++) await one`select inserted is null from image_sync.insert_missing('part-images', ${names(c)}::text[])`;
for (let c = 0; c < 38; c++) await one`update public.part_images p set signed_url = s.url, signed_url_expires_at = to_timestamp(s.expires) from unnest(${names(c)}::text[], ${urls(c)}::text[], ${exp}::bigint[]) as s(name, url, expires) where p.bucket_id = 'part-images' and p.file_name collate "C" = s.name`;
await show("insert", one`explain (analyze, buffers, wal) insert into public.part_images (bucket_id, file_name, part_number)
      select 'part-images', m.name, image_sync.part_number_of(m.name)
      from unnest(${names(41)}::text[]) as m (name)
      order by m.name collate "C"
      on conflict do nothing`);
await show("insert, no order", one`explain (analyze, buffers, wal) insert into public.part_images (bucket_id, file_name, part_number)
      select 'part-images', m.name, 'x'||m.name
      from unnest(${names(42)}::text[]) as m (name)
      on conflict do nothing`);
await show("insert, no conflict clause", one`explain (analyze, buffers, wal) insert into public.part_images (bucket_id, file_name, part_number)
      select 'part-images', m.name, 'x'||m.name
      from unnest(${names(43)}::text[]) as m (name)`);
await show("update", one`explain (analyze, buffers, wal) update public.part_images p set signed_url = s.url, signed_url_expires_at = to_timestamp(s.expires) from unnest(${names(39)}::text[], ${urls(39)}::text[], ${exp}::bigint[]) as s(name, url, expires) where p.bucket_id = 'part-images' and p.file_name collate "C" = s.name`);
await show("upsert", one`explain (analyze, buffers, wal) insert into public.part_images (bucket_id, file_name, part_number, signed_url, signed_url_expires_at) select 'part-images', s.name, image_sync.part_number_of(s.name), s.url, to_timestamp(s.expires) from unnest(${names(45)}::text[], ${urls(45)}::text[], ${exp}::bigint[]) as s(name, url, expires) on conflict do nothing`);
await show("parse", one`explain (analyze) select cardinality(p_names) from json_to_record(${JSON.stringify({ p_names: names(3), p_urls: urls(3), p_expires: exp })}::text::json) as a(p_names text[], p_urls text[], p_expires bigint[])`);
await show("parse via recordset", one`explain (analyze) select count(url) from json_to_recordset(${JSON.stringify(names(3).map((n, i) => ({ name: n, url: urls(3)[i], expires: exp[i] })))}::text::json) as a(name text, url text, expires bigint)`);
await show("parse via elements of text array", one`explain (analyze) select count(url) from json_array_elements_text(${JSON.stringify(urls(3))}::text::json) as a(url)`);
one.release();
await stack.stop();
Deno.exit(0);
