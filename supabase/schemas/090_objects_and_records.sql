-- step 1.1.0
-- Made anew below: it stays as it is where nothing was added to storage.objects.
drop view if exists image_sync.objects cascade;

-- set
-- What the two sides look like to a run: objects and records, each defined once.

-- Delete markers and archived versions are no objects of the bucket. Older storage schemas lack those columns: an unqualified
-- name in the lateral query means the column where there is one, and the constant beside it where there is none. A view keeps what
-- it meant when it was made, so it is made anew once the platform has added a column that it does not look at.
-- Of a thousand rows, in ms: the extension by split_part 0.6, by a regular expression 2.9; the size by jsonb_typeof 0.5, by a
-- regular expression 1.9; so no pattern is matched here.
create or replace function image_sync.refresh_objects_view()
returns boolean
language plpgsql
set search_path = ''
-- Whoever holds the view keeps it for today: everybody who came after us would wait with us.
set lock_timeout = '1s'
as $$
begin
  if to_regclass('image_sync.objects') is not null and not exists (
    select
    from pg_catalog.pg_attribute a
    where a.attrelid = 'storage.objects'::regclass
      and a.attname in ('is_delete_marker', 'archived_at')
      and not a.attisdropped
      and not exists (
        select
        from pg_catalog.pg_rewrite w
        join pg_catalog.pg_depend d
          on d.classid = 'pg_catalog.pg_rewrite'::regclass
          and d.objid = w.oid
        where w.ev_class = to_regclass('image_sync.objects')
          and d.refclassid = 'pg_catalog.pg_class'::regclass
          and d.refobjid = a.attrelid
          and d.refobjsubid = a.attnum
      )
  ) then
    return false;
  end if;
  execute $view$
      create or replace view image_sync.objects with (security_invoker = on) as
      select
        o.bucket_id,
        o.name,
        case
          when o.ending <> o.name and strpos(o.ending, '/') = 0 then lower(o.ending collate "C") collate "default"
          else ''
        end as extension,
        case jsonb_typeof(o.metadata -> 'size')
          when 'number' then least((o.metadata -> 'size')::numeric, 1e15)::bigint
        end as bytes,
        o.id
      from (select false as is_delete_marker, null::timestamptz as archived_at) as absent
      cross join lateral (
        select
          s.id,
          s.bucket_id,
          s.name,
          s.metadata,
          split_part(s.name, '.', -1) as ending,
          is_delete_marker as is_deleted,
          archived_at is not null as is_archived
        from storage.objects s
      ) as o
      where o.is_deleted is not true
        and not o.is_archived
        and o.name <> '.emptyFolderPlaceholder'
        and o.name not like '%/.emptyFolderPlaceholder'
  $view$;
  -- The register looks at the same columns; while a first installation is under way there is none yet.
  if to_regproc('image_sync.make_register') is not null then
    perform image_sync.make_register();
  end if;
  return true;
exception
  when lock_not_available then
    return false;
end;
$$;

comment on function image_sync.refresh_objects_view() is
  'Makes the view image_sync.objects, anew where storage.objects has gained a column that tells delete markers or archived versions. True where it did; takes no lock where there is nothing to do.';

select image_sync.refresh_objects_view();

comment on view image_sync.objects is 'The files of every bucket: storage.objects without delete markers, archived versions and the dashboard''s folder placeholders. Walk it by (bucket_id, name collate "C"): idx_objects_bucket_id_name serves that.';
comment on column image_sync.objects.bucket_id is 'The bucket.';
comment on column image_sync.objects.name is 'The object''s key in the bucket, folders included.';
comment on column image_sync.objects.extension is 'What follows the last dot of the file name, in lower case; empty where there is none.';
comment on column image_sync.objects.id is 'What stays of an object when it is renamed or moved, also to another bucket.';
comment on column image_sync.objects.bytes is 'Size in bytes as the upload recorded it; null where that is unknown.';

-- A column that was a varchar(255) has cut URLs, which work for nobody. The token of one that is whole has three parts, the last of
-- them a signature of a known length: 32, 48 or 64 bytes (HMAC, ECDSA), 256, 384 or 512 (RSA), in base64url. Said twice because a
-- function could not be inlined: of a thousand URLs this costs 1.5 ms, a function 4,
-- a regular expression 34.
create or replace view image_sync.records with (security_invoker = on) as
select
  p.bucket_id,
  p.file_name,
  p.part_number,
  p.signed_url,
  nullif(p.signed_url, '') is not null as signed,
  nullif(p.signed_url, '') is not null and not coalesce(
    p.signed_url_expires_at > now() and (
      octet_length(split_part(split_part(p.signed_url, '?token=eyJ', 2), '.', 3)) in (43, 64, 86, 342, 512, 683)
      -- A token of another kind; what is left of eyJ is none.
      or strpos(p.signed_url, '?token=') > 0 and not starts_with('eyJ', left(split_part(p.signed_url, '?token=', 2), 3))
    ), false
  ) as expired,
  case
    when p.signed_url_expires_at > now() and (
      octet_length(split_part(split_part(p.signed_url, '?token=eyJ', 2), '.', 3)) in (43, 64, 86, 342, 512, 683)
      -- A token of another kind; what is left of eyJ is none.
      or strpos(p.signed_url, '?token=') > 0 and not starts_with('eyJ', left(split_part(p.signed_url, '?token=', 2), 3))
    ) then p.signed_url_expires_at
  end as usable_until,
  p.object_id,
  p.bucket_id || '/' || lower(
    case
      when p.part_number ~ '[_)\s]' then coalesce(nullif(regexp_replace(p.part_number, '^((copy of|kopie von|copie de|copia d[ei]) )+|( *\((\d+|([^()]+ )?(copy|kopie|copie|copia))\)|( -)? (copy|kopie|copie|copia)( \d+| \(\d+\))?|_jpe?g|_png)?\s*$', '', 'gi'), ''), p.part_number)
      else p.part_number
    end
  ) as look_up_key
from public.part_images p;

comment on view image_sync.records is 'The rows of public.part_images with the state of their URLs. Walk it by (bucket_id, file_name collate "C"): part_images_bucket_id_file_name_key serves that.';
comment on column image_sync.records.bucket_id is 'The bucket.';
comment on column image_sync.records.file_name is 'The object that the record is of.';
comment on column image_sync.records.part_number is 'The file name without folders and extension, or what the record''s owner made of it.';
comment on column image_sync.records.signed_url is 'The URL. Whether it is that of the file, of this project: image_sync.is_url_of(signed_url, image_sync.url_base(...), file_name).';
comment on column image_sync.records.signed is 'There is a URL, working or not.';
comment on column image_sync.records.expired is 'There is a URL and it has expired, or its expiry is unknown, or it was cut.';
comment on column image_sync.records.usable_until is 'Until when the URL works; null where it does not.';
comment on column image_sync.records.look_up_key is 'The part number as a look-up in a spreadsheet takes it, and as copies of one file have it in common: without regard to case, spaces at the end, " (1)", " - Copy", " copy 2", "Copy of " and the like, "_JPG"; behind the bucket and a slash. The expression of part_images_twins_idx.';
comment on column image_sync.records.object_id is 'The object that the record is of, by its id; null where that is not known yet.';

-- The part of a look-up key behind the bucket, of one part number: the expression of the view, where it is asked of few.
create or replace function image_sync.look_up_part(p_part_number text)
returns text language plpgsql immutable set search_path = '' as $$
begin
  return lower(coalesce(nullif(regexp_replace(p_part_number, '^((copy of|kopie von|copie de|copia d[ei]) )+|( *\((\d+|([^()]+ )?(copy|kopie|copie|copia))\)|( -)? (copy|kopie|copie|copia)( \d+| \(\d+\))?|_jpe?g|_png)?\s*$', '', 'gi'), ''), p_part_number));
end;
$$;

comment on function image_sync.look_up_part(text) is 'A part number as image_sync.records.look_up_key has it, without the bucket.';

-- a.b/12.x.jpg: 12.x. Of many names at once: a call for each costs more than what it does.
create or replace function image_sync.part_numbers_of(p_names text[])
returns text[] language plpgsql immutable set search_path = '' as $$
begin
  return array(
    select case when strpos(f.name, '.') = 0 then f.name else left(f.name, -1 - length(split_part(f.name, '.', -1))) end
    from (
      select split_part(n.name, '/', -1) as name
      from unnest(p_names) as n (name)
      -- The last part of the path is found out once.
      offset 0
    ) as f
  );
end;
$$;

comment on function image_sync.part_numbers_of(text[]) is 'The part numbers of files, in their order: each is the name without folders and extension.';

grant select on image_sync.objects, image_sync.records to service_role;

-- Above every key of the walk in byte order: longer than any key that a btree index can hold, of the highest character there is.
create or replace function image_sync.last_key()
returns text language sql immutable set search_path = '' as $$
  select repeat(U&'\+10FFFF', 700)
$$;

comment on function image_sync.last_key() is 'A key above all others in byte order: the upper bound of a chunk that reaches to the end of the bucket.';
