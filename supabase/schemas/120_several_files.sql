-- set
-- Part numbers that several images stand for, as whoever looks them up in a spreadsheet sees them: in other case, with a space at the
-- end, as a copy that an upload or a file manager has made, or in another folder. The key by which they are compared stands in the
-- view image_sync.records, and part_images_twins_idx has all of them in order: once a run has passed its bucket, the index is
-- walked from end to end, a page at a time. So twins are found wherever they lie, by the first sync already, and a chunk costs nothing.

-- What the walk has found so far. The caller holds the run's row lock. Returns whether it is at its end; 250 ms keep a call short.
create or replace function image_sync.count_twins(p_run image_sync.runs)
returns boolean language plpgsql set search_path = '' as $$
declare
  v_page constant integer := 2000;
  v_until constant timestamptz := clock_timestamp() + interval '250 milliseconds';
  v_cursor text := coalesce(p_run.twins_cursor, p_run.bucket_id || '/');
  v_keys text[] := p_run.twin_keys;
  v_twins bigint := p_run.twins;
  v_is_full boolean;
  v_found record;
begin
  if p_run.twins_cursor is null and p_run.twins is not null then
    return true;
  end if;
  v_twins := coalesce(v_twins, 0);
  loop
    select
      sum(k.files) = v_page as is_full,
      max(k.key collate "C") as last_key,
      array_agg(k.key) filter (where k.files > 1) as twins
    into v_found
    from (
      select page.key, count(*) as files
      from (
        select r.look_up_key collate "C" as key
        from image_sync.records r
        where r.look_up_key collate "C" > v_cursor
          -- What follows the slash is a zero.
          and r.look_up_key collate "C" < p_run.bucket_id || '0'
        order by r.look_up_key collate "C" limit v_page
      ) as page
      group by page.key
    ) as k;
    v_is_full := coalesce(v_found.is_full, false);
    -- The last key of a full page may stand again behind it, if it is not known for a twin already: the next page begins with it.
    v_cursor := coalesce(case
      when v_is_full and v_found.last_key <> all (coalesce(v_found.twins, '{}')) then (
        select r.look_up_key
        from image_sync.records r
        where r.look_up_key collate "C" > v_cursor and r.look_up_key collate "C" < v_found.last_key
        order by r.look_up_key collate "C" desc limit 1
      )
      else v_found.last_key
    end, v_cursor);
    if v_found.twins is not null then
      v_found.twins := array(
        select t.key
        from unnest(v_found.twins) as t (key)
        where (
          select count(*)
          from image_sync.files_of_key(p_run.bucket_id, t.key)
        ) > 1
        order by t.key collate "C"
      );
      v_twins := v_twins + cardinality(v_found.twins);
      v_keys := (v_keys || v_found.twins)[1:20];
    end if;
    exit when not v_is_full or clock_timestamp() > v_until;
  end loop;
  update image_sync.runs r
  set
    twins = v_twins,
    twin_keys = v_keys,
    twins_cursor = case when v_is_full then v_cursor end,
    moved_at = clock_timestamp()
  where r.id = p_run.id;
  return not v_is_full;
end;
$$;

comment on function image_sync.count_twins(image_sync.runs) is
  'Walks the look-up keys of the run''s bucket on from where it was, for 250 ms at most, and keeps in the run how many stand more than once, and the first 20. Returns whether it is at the end.';

-- The files whose records have a look-up key, 20 at most: a record without its file is an orphan and no twin.
create or replace function image_sync.files_of_key(p_bucket_id text, p_key text)
returns table (name text, part_number text) language plpgsql stable set search_path = '' as $$
declare
  -- A caller with a key in byte order hands on that order to all texts of the call, and no index has the bucket in it: at a million
  -- objects that was 80 ms a file instead of 0.02.
  v_bucket_id constant text collate "default" := p_bucket_id;
begin
  return query
  select r.file_name, r.part_number
  from (
    select q.file_name, q.part_number, q.bucket_id
    from image_sync.records q
    where q.look_up_key collate "C" = p_key
    offset 0
  ) as r
  -- A range and an order that only the index of names gives: one look for each.
  cross join lateral (
    select o.name
    from image_sync.objects o
    where o.bucket_id = v_bucket_id and o.name collate "C" >= r.file_name and o.name collate "C" <= r.file_name
    order by o.name collate "C" limit 1
  ) as file
  where r.bucket_id = v_bucket_id
  limit 20;
end;
$$;

comment on function image_sync.files_of_key(text, text) is 'Up to 20 files of the bucket whose records have this look-up key, with their part numbers.';

-- Objects named like a file but for its extension, as far as a look is bounded: between "stem." and "stem/", an order that only the
-- index gives.
create or replace function image_sync.files_beside(p_bucket_id text, p_stem text)
returns table (name text, extension text) language plpgsql stable set search_path = '' as $$
begin
  return query
  select n.name, n.extension
  from (
    select o.name, o.extension
    from image_sync.objects o
    where o.bucket_id = p_bucket_id and o.name collate "C" >= p_stem || '.' and o.name collate "C" < p_stem || '/'
    order by o.name collate "C" limit 100
  ) as n
  where left(n.name, -(length(n.extension) + 1)) = p_stem
    and n.extension = any ('{jpg,jpeg,png,gif,webp,avif,bmp,tif,tiff,heic}');
end;
$$;

comment on function image_sync.files_beside(text, text) is 'The pictures of a stem (a name with its folders, without its extension), of whatever extension.';

create or replace function image_sync.stem_of(p_name text)
returns text language sql immutable set search_path = '' as $$
  select left(p_name, -(length(split_part(p_name, '.', -1)) + 1))
$$;

comment on function image_sync.stem_of(text) is 'A file''s name with its folders and without its extension.';

-- The twins of a run as a person reads them: "part number: files", with pictures beside them that are left out by their extension.
create or replace function image_sync.twin_samples(p_bucket_id text, p_keys text[])
returns jsonb language plpgsql stable set search_path = '' as $$
begin
  return (
    select coalesce(jsonb_agg(twins.part_number || ': ' || twins.files order by keys.place), '[]')
    from unnest(p_keys) with ordinality as keys (key, place)
    cross join lateral (
      select
        (
          select rtrim(min(q.part_number collate "C"))
          from image_sync.files_of_key(p_bucket_id, keys.key) q
        ) as part_number,
        string_agg(f.name, ', ' order by strpos(f.name, '/') = 0, f.name collate "C") as files
      from (
        select u.name
        from image_sync.files_of_key(p_bucket_id, keys.key) u
        union
        select b.name
        from image_sync.files_of_key(p_bucket_id, keys.key) u
        cross join lateral image_sync.files_beside(p_bucket_id, image_sync.stem_of(u.name)) as b
      ) as f
      having count(*) > 1
    ) as twins
  );
end;
$$;

comment on function image_sync.twin_samples(text, text[]) is 'Of these look-up keys, those that several files have, each as "part number: files".';

-- Whether a copy of a file lies in its folder, by the names that programs give to copies: what begins so is few, and is compared.
create or replace function image_sync.has_copy_beside(p_bucket_id text, p_stem text)
returns boolean language plpgsql stable set search_path = '' as $$
declare
  v_part_number constant text := split_part(p_stem, '/', -1);
  v_folder constant text := left(p_stem, length(p_stem) - length(v_part_number));
begin
  return exists (
    select
    from (
      select p_stem || c.low as low, p_stem || c.high as high
      from (values (' (', ' )'), (' - ', ' -!'), (' C', ' D'), (' K', ' L'), (' c', ' d'), (' k', ' l'), ('_JP', '_JQ'), ('_PN', '_PO'), ('_jp', '_jq'), ('_pn', '_po')) as c (low, high)
      union all
      select v_folder || c.prefix || v_part_number || '.', v_folder || c.prefix || v_part_number || '/'
      from (values ('Copy of '), ('Kopie von '), ('Copie de '), ('Copia di '), ('Copia de ')) as c (prefix)
    ) as range
    cross join lateral (
      select o.name
      from image_sync.objects o
      where o.bucket_id = p_bucket_id and o.name collate "C" >= range.low and o.name collate "C" < range.high
      order by o.name collate "C" limit 20
    ) as copy
    where strpos(substr(copy.name, length(v_folder) + 1), '/') = 0
      and image_sync.look_up_part((image_sync.part_numbers_of(array[copy.name]))[1]) = image_sync.look_up_part(v_part_number)
  );
end;
$$;

comment on function image_sync.has_copy_beside(text, text) is
  'Whether one of the first 20 objects in each place where copies of a stem (a name with its folders, without its extension) stand by name is one: its part number has the same look-up key.';

-- What no index of records knows: pictures that are left out by their extension beside the one image of their name, and twins among
-- images that have no record yet.
--   p_pictures  pictures of the chunk that are no images to this bucket
--   p_missing   images of the chunk without a record, in a run that makes none
create or replace function image_sync.find_several_files(
  p_bucket_id text,
  p_extensions text[],
  p_pictures text[],
  p_missing text[],
  out part_numbers integer,
  out samples text[]
)
language plpgsql stable set search_path = '' as $$
begin
  with pictures as (
    select image_sync.stem_of(f.name) as stem, array_agg(f.name) as names
    from unnest(p_pictures) as f (name)
    group by 1
  ), beside as (
    -- Images that have a twin beside them are counted by their key.
    select s.stem, images.names || s.names as names
    from pictures s
    cross join lateral (
      select array_agg(b.name) as names
      from image_sync.files_beside(p_bucket_id, s.stem) b
      where b.extension = any (p_extensions)
    ) as images
    where cardinality(images.names) = 1 and not image_sync.has_copy_beside(p_bucket_id, s.stem)
  ), unrecorded as (
    select lower(m.part_number) as stem, array_agg(m.name order by m.name collate "C") as names
    from unnest(p_missing, image_sync.part_numbers_of(p_missing)) as m (name, part_number)
    group by 1
    having count(*) > 1
  ), found as (
    select b.stem, b.names
    from beside b
    union all
    select u.stem, u.names
    from unrecorded u
  )
  select
    count(*)::integer,
    (array_agg(split_part(f.stem, '/', -1) || ': ' || array_to_string(f.names[1:20], ', ') order by f.stem collate "C"))[1:20]
  into part_numbers, samples
  from found f;
end;
$$;

comment on function image_sync.find_several_files(text, text[], text[], text[]) is
  'Part numbers with several files that records say nothing of: a picture that is left out beside an image of its name, or images of one part number without a record; and up to 20 of them as "part number: files".';
