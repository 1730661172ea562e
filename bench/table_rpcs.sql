-- The embedded stack serves no tables: one RPC a request stands for each request that the other approaches make to
-- /rest/v1/part_images. Each is the one statement that PostgREST would send.
create function public.bench_select(p_offset integer, p_limit integer) returns jsonb language sql set search_path = '' as
$$ select coalesce(jsonb_agg(to_jsonb(r)), '[]') from (select id, file_name, signed_url from public.part_images order by id offset p_offset limit p_limit) r $$;

create function public.bench_insert(p_rows jsonb) returns void language sql set search_path = '' as
$$ insert into public.part_images (part_number, file_name) select part_number, file_name from jsonb_to_recordset(p_rows) as r (part_number text, file_name text) on conflict do nothing $$;

create function public.bench_update(p_file_name text, p_signed_url text) returns void language sql set search_path = '' as
$$ update public.part_images set signed_url = p_signed_url where bucket_id = 'part-images' and file_name collate "C" = p_file_name $$;

create function public.bench_upsert(p_rows jsonb) returns void language sql set search_path = '' as
$$ insert into public.part_images (part_number, file_name, signed_url) select part_number, file_name, signed_url from jsonb_to_recordset(p_rows) as r (part_number text, file_name text, signed_url text)
   on conflict (bucket_id, file_name collate "C") do update set signed_url = excluded.signed_url $$;

grant execute on function public.bench_select(integer, integer), public.bench_insert(jsonb), public.bench_update(text, text), public.bench_upsert(jsonb) to service_role;
notify pgrst, 'reload schema';
