-- step 1.1.0
-- A view of the project's own would be replaced without a word.
do $$
begin
  if to_regclass('public.part_register') is not null then
    raise exception E'Cannot install image-sync: public.part_register exists already\nRename it: alter table public.part_register rename to part_register_other;'
      using errcode = 'duplicate_table',
        hint = 'Nothing has been changed: run the migration again afterwards.';
  end if;
end;
$$;

-- set
-- The register: what a spreadsheet reads. What it shows is decided in image_sync.register_query() alone.

-- One row for each part of a bucket, with a URL that works: of this project, whole, not expired, of a file that is there and is not
-- empty. What a part is, is what the report counts as one: image_sync.records.look_up_key. Where several files stand for one part,
-- the one with the shortest part number is shown (the name itself rather than its copies), then the one with the shortest file name
-- (not in a folder), then the last in byte order (000001.jpg rather than 000001.JPG). The rule knows no dates: the same picture stays.
-- A view on views would look at tables with the rights of whoever reads it, and a function that a view calls is called with the
-- rights of its reader: a reader has none. So the query names tables and calls nothing of ours. The view of the readers is made of it,
-- and the pages of the function.
--   p_records  the rows of public.part_images that are looked at
create or replace function image_sync.register_query(p_records text default 'public.part_images')
returns text language sql immutable set search_path = '' as $$
select format($query$
  select distinct on (p.bucket_id, k.look_up_key)
    p.bucket_id,
    k.look_up_key,
    p.part_number::text as part_number,
    p.file_name::text as file_name,
    p.signed_url::text as signed_url,
    p.signed_url_expires_at
  from %s p
  cross join lateral (
    -- The expression of part_images_twins_idx, collation and all, so that a page is read from there.
    select
      (p.bucket_id || '/' || lower(
        case
          when p.part_number ~ '[_)\s]' then coalesce(nullif(regexp_replace(p.part_number, '^((copy of|kopie von|copie de|copia d[ei]) )+|( *\((\d+|([^()]+ )?(copy|kopie|copie|copia))\)|( -)? (copy|kopie|copie|copia)( \d+| \(\d+\))?|_jpe?g|_png)?\s*$', '', 'gi'), ''), p.part_number)
          else p.part_number
        end
      )) collate "C" as look_up_key
  ) as k
  -- Row by row, one look by key for each: whatever the statistics say, no other way can be taken, and none reads a bucket twice.
  cross join lateral (
    -- image_sync.url_base() of its bucket.
    select
      coalesce(
        coalesce(s.public_url, (select j.url from image_sync.project j)) || '/storage/v1/object/sign/'
        || case
          when s.bucket_id ~ '^[A-Za-z0-9_.-]+$' then s.bucket_id
          else (
            select string_agg(
              case
                when c.character ~ '[A-Za-z0-9_.!~*''()-]' then c.character
                else upper(regexp_replace(encode(convert_to(c.character, 'UTF8'), 'hex'), '(..)', '%%\1', 'g'))
              end, '' order by c.place)
            from regexp_split_to_table(s.bucket_id, '') with ordinality as c (character, place)
          )
        end
        || '/', '') as url_base
    from image_sync.settings s
    where s.bucket_id = p.bucket_id
    limit 1
  ) as base
  cross join lateral (
    -- The file of image_sync.objects; the columns that Storage may lack are found as they are there. A range and an order that only the
    -- index of names gives.
    select s.metadata -> 'size' as bytes
    from (select false as is_delete_marker, null::timestamptz as archived_at) as absent
    cross join lateral (
      select o.bucket_id, o.name, o.metadata, is_delete_marker as is_deleted, archived_at is not null as is_archived
      from storage.objects o
    ) as s
    where s.bucket_id = p.bucket_id
      and s.name collate "C" >= p.file_name
      and s.name collate "C" <= p.file_name
      and s.is_deleted is not true
      and not s.is_archived
    order by s.name collate "C" limit 1
  ) as file
  where p.part_number <> '' and p.signed_url_expires_at > now() and file.bytes is distinct from '0'
    -- As image_sync.is_url_of, but that of a name which a URL escapes the address alone is looked at.
    and starts_with(p.signed_url, base.url_base || case when base.url_base = '' or p.file_name ~ '[^A-Za-z0-9_./-]' then '' else p.file_name || '?' end)
    -- Whole, as in image_sync.records.
    and (
      length(split_part(split_part(p.signed_url, '?token=eyJ', 2), '.', 3)) in (43, 64, 86, 342, 512, 683)
      or strpos(p.signed_url, '?token=') > 0 and not starts_with('eyJ', left(split_part(p.signed_url, '?token=', 2), 3))
    )
  order by p.bucket_id, k.look_up_key, length(p.part_number), length(p.file_name), p.file_name collate "C" desc
$query$, p_records)
$$;

comment on function image_sync.register_query(text) is 'The query of the register of every bucket, of all records or of some: the one place that says what it shows. The view public.part_register and the pages of the register are made of it.';

-- Made when this file is applied, and again when storage.objects has gained a column that tells what is no file any more. With the
-- rights of its owner, so that a reader needs a right to this view and to nothing behind it; and nothing that a reader says of its rows
-- is asked before they are chosen.
create or replace function image_sync.make_register()
returns void language plpgsql set search_path = '' as $$
begin
  execute format(
    'create or replace view public.part_register with (security_barrier = on) as
    select r.part_number, r.file_name, r.signed_url, r.signed_url_expires_at
    from (%s) as r
    where r.bucket_id = coalesce(
      (select q.bucket_id from image_sync.readers q where q.kind = ''odbc'' and q.name = current_user),
      (select s.bucket_id from image_sync.settings s order by s.register desc, s.bucket_id = ''part-images'' desc, s.bucket_id collate "C" limit 1)
    )',
    image_sync.register_query()
  );
end;
$$;

comment on function image_sync.make_register() is 'Makes the view public.part_register, or makes it anew. Only its owner can.';

select image_sync.make_register();

comment on view public.part_register is 'For the spreadsheet: one row for each part of one bucket, with a URL that works. The bucket is that of the reader, for a role that image-sync reader add made; for anybody else the one whose settings say register. Which file is shown of several: image_sync.register_query().';
comment on column public.part_register.part_number is 'The part.';
comment on column public.part_register.file_name is 'The file that is shown of it.';
comment on column public.part_register.signed_url is 'A URL that shows the image without a key until signed_url_expires_at.';
comment on column public.part_register.signed_url_expires_at is 'When signed_url stops working.';

revoke all on public.part_register from public, anon, authenticated, service_role;
grant select on public.part_register to service_role;

-- A page of the register: shown, what the next records show, and those, whether they show anything or not. They bound it, and they are
-- read in the order of their index before anything else is looked at: so a page costs the same at the end of a million parts,
-- and where nobody has counted them yet.
--   $1  the bucket, $2 the key behind which it begins, $3 the key before which it ends, both with their bucket, $4 how many records
-- last is the key up to which was looked, without its bucket; null: to the end.
create or replace function image_sync.register_page_query()
returns text language sql stable set search_path = '' as $$
select format($query$
  with records as materialized (
    select r.bucket_id, r.look_up_key, r.part_number, r.file_name, r.signed_url, r.usable_until as signed_url_expires_at
    from image_sync.records r
    where r.bucket_id = $1 and r.look_up_key collate "C" > $2 and r.look_up_key collate "C" < $3
    order by r.look_up_key collate "C" limit $4
  ), looked as (
    select substr(max(r.look_up_key collate "C"), length($1) + 2) as last from records r having count(*) = $4
  ), shown as (%s)
$query$, image_sync.register_query('records'))
$$;

comment on function image_sync.register_page_query() is 'The beginning of a query of a page of the register: records, as many as $4 of the bucket $1 between the keys $2 and $3, looked, up to which key these are, and shown, what they show.';

-- What a page of the register holds, without the page: to tell whether anything has changed, and where the next page begins.
--   p_after  the key before it, without its bucket
-- Returns {"bucket_id", "rows": p_limit at most, "tag": another one for other rows, "last": the key up to which was looked, null: to the
-- end}. Of records that show nothing a page passes over 20,000 at most: it may be short, or empty, although more follow.
create or replace function public.image_sync_register_tag(p_bucket text default null, p_after text default '', p_limit integer default 20000)
returns jsonb language plpgsql stable set search_path = '' set lock_timeout = '1s'
set enable_seqscan = 'off' set enable_bitmapscan = 'off' set enable_sort = 'off' as $$
declare
  v_bucket constant text := (
    select s.bucket_id
    from image_sync.settings s
    where s.bucket_id = p_bucket or p_bucket is null
    order by s.register desc, s.bucket_id = 'part-images' desc, s.bucket_id collate "C" limit 1
  );
  v_limit constant integer := least(greatest(coalesce(p_limit, 20000), 1), 20000);
  v_page jsonb;
begin
  if v_bucket is null then
    return image_sync.unknown_bucket(coalesce(p_bucket, '(none)'), 'read the register of bucket %s');
  end if;
  execute image_sync.register_page_query() || $query$
    select jsonb_build_object(
      'bucket_id', $1,
      'rows', count(*),
      'tag', md5(concat_ws(' ', count(*), bit_xor(page.hash), sum(page.hash))),
      'last', case when count(*) = $5 then substr(max(page.look_up_key), length($1) + 2) else (select l.last from looked l) end
    )
    from (
      select
        s.look_up_key,
        hashtextextended(concat_ws(chr(31), s.part_number, s.file_name, s.signed_url, extract(epoch from s.signed_url_expires_at)), 0) as hash
      from shown s
      order by s.look_up_key limit $5
    ) as page
  $query$
  into v_page
  -- What follows the slash is a zero.
  using v_bucket, v_bucket || '/' || coalesce(p_after, ''), v_bucket || '0', greatest(v_limit, 5000), v_limit;
  return v_page;
end;
$$;

comment on function public.image_sync_register_tag(text, text, integer) is 'A tag of a page of the register, 1 to 20,000 rows behind p_after: {"bucket_id", "rows", "tag", "last"}. Without p_bucket it is that of public.part_register. Problem: unknown_bucket (404).';

-- A page of the register as lines of CSV (RFC 4180): every field in quotes, so that no other separator splits it. A text that a
-- spreadsheet would run begins with an apostrophe, unless p_raw: behind spaces and invisible characters a sign that begins a formula,
-- of full width too, or a tab or line break.
--   p_after, p_until  keys as image_sync_register_tag gives them; null: to the end
-- Returns {"csv", "last": the key up to which was looked, null: to the end}.
create or replace function public.image_sync_register(
  p_bucket text, p_after text default '', p_until text default null, p_raw boolean default false, p_limit integer default 5000
)
returns jsonb language plpgsql stable set search_path = '' set lock_timeout = '1s'
set enable_seqscan = 'off' set enable_bitmapscan = 'off' set enable_sort = 'off' as $$
declare
  v_runs constant text := case
    -- Matches nothing.
    when p_raw then '$.'
    else '^([\t\r\n]|[\u0001-\u0020\u007f-\u00a0\u00ad\u061c\u1680\u180e\u2000-\u200f\u2028-\u202f\u205f-\u206f\u3000\ufeff]*[=+@\uff1d\uff0b\uff0d\uff20-])'
  end;
  v_page jsonb;
begin
  execute image_sync.register_page_query() || $query$
    select jsonb_build_object(
      'csv', coalesce(string_agg(
        '"' || case when s.part_number ~ $5 then '''' else '' end || replace(s.part_number, '"', '""')
        || '","' || case when s.file_name ~ $5 then '''' else '' end || replace(s.file_name, '"', '""')
        || '","' || replace(s.signed_url, '"', '""')
        || '","' || to_char(s.signed_url_expires_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') || e'"\r\n',
        '' order by s.look_up_key
      ), ''),
      'last', (select l.last from looked l)
    )
    from shown s
  $query$
  into v_page
  using
    p_bucket, p_bucket || '/' || coalesce(p_after, ''), case when p_until is null then p_bucket || '0' else p_bucket || '/' || p_until || chr(1) end,
    least(greatest(coalesce(p_limit, 5000), 1), 5000), v_runs;
  return v_page;
end;
$$;

comment on function public.image_sync_register(text, text, text, boolean, integer) is 'A page of the register of a bucket as lines of CSV, what the next records show, 1 to 5,000 behind p_after and not behind p_until: {"csv", "last"}. What a spreadsheet would run begins with an apostrophe, unless p_raw.';
