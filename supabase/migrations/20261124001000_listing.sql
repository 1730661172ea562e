-- One chunk of a sync or analyze: list ▸ diff, and which files need a URL. A record that is missing is inserted together with its
-- URL when the chunk is closed: written once instead of twice.

create function image_sync.next_number(p_run uuid)
returns integer
language plpgsql
stable
set search_path = ''
as $$
begin
  return 1 + coalesce(
    (
      select c.number
      from image_sync.chunks c
      where c.run_id = p_run
      order by c.number desc
      limit 1
    ), 0);
end;
$$;

comment on function image_sync.next_number(uuid) is 'The number of a run''s next chunk. The caller holds the run''s row lock.';

create function image_sync.chunk_size(p_run image_sync.runs, p_settings image_sync.settings)
returns integer
language sql
immutable
set search_path = ''
return least(p_run.chunk_size, p_settings.chunk_size);

comment on function image_sync.chunk_size(image_sync.runs, image_sync.settings) is
  'How many names the run''s next chunk may have: the setting, or what the database could do of it in time.';

-- A chunk with the names in it that need a URL. Null columns: there is none.
create type image_sync.chunk_to_sign as (chunk image_sync.chunks, names text[]);

comment on type image_sync.chunk_to_sign is 'A leased chunk with the names in it that need a URL; or, with no names, one that needs none.';

-- Compares at most p_size objects and at most p_size records of the keys (p_from_key, p_to_key] (null: to the end of the bucket) in
-- one statement. Both sides are read by keyset from an index in byte order (idx_objects_bucket_id_name and
-- part_images_bucket_id_file_name_key), so that a chunk costs the same at the end of a million objects as at the beginning.
-- p_listed is the chunk as it was listed before, if it was: what it inserted then stays counted as inserted.
create function image_sync.compare(
  p_run image_sync.runs,
  p_settings image_sync.settings,
  p_from_key text,
  p_to_key text,
  p_size integer,
  p_listed image_sync.chunks default null
)
returns image_sync.chunk_to_sign
language plpgsql
set search_path = ''
as $$
declare
  v_chunk image_sync.chunks := p_listed;
  v_names text[];
  v_writes constant boolean := p_run.mode = 'sync';
  v_renews_all constant boolean := coalesce(p_run.options ->> 'renew' = 'all', false);
  v_renew_at constant timestamptz := now() + p_settings.renew_before;
  v_url_base constant text := image_sync.url_base(p_settings);
  v_last_key constant text := coalesce(p_to_key, image_sync.last_key());
  v_orphans text[];
  v_missing text[];
  v_excluded text[];
  v_by_extension jsonb;
  v_collided text[];
  v_files text[];
  v_several_files record;
begin
  with next_objects as materialized (
    select o.name, o.extension, o.bytes, o.extension = any (p_settings.extensions) as is_image
    from image_sync.objects o
    where o.bucket_id = p_run.bucket_id
      and o.name collate "C" > p_from_key
      and o.name collate "C" <= v_last_key
    order by o.name collate "C"
    limit p_size
  ), next_records as materialized (
    -- A URL of another address is none: no reader of this project's is meant to open it.
    select
      r.file_name,
      r.signed and starts_with(r.signed_url, v_url_base) as signed,
      r.expired and starts_with(r.signed_url, v_url_base) as expired,
      case when starts_with(r.signed_url, v_url_base) then r.usable_until end as usable_until
    from image_sync.records r
    where r.bucket_id = p_run.bucket_id
      and r.file_name collate "C" > p_from_key
      and r.file_name collate "C" <= v_last_key
    order by r.file_name collate "C"
    limit p_size
  ), range as materialized (
    -- Whichever side fills the chunk first ends its range, so that a range of records without objects is bounded too. The end of
    -- what was asked for is the end all the same where nothing lies behind it.
    select nullif(least(
      v_last_key collate "C",
      (
        select max(n.name collate "C")
        from next_objects n
        having count(*) = p_size
      ),
      (
        select max(n.file_name collate "C")
        from next_records n
        having count(*) = p_size
      )
    ), image_sync.last_key()) as to_key
  ), objects as materialized (
    select n.*
    from next_objects n
    cross join range
    where range.to_key is null or n.name collate "C" <= range.to_key
  ), records as materialized (
    select n.*
    from next_records n
    cross join range
    where range.to_key is null or n.file_name collate "C" <= range.to_key
  )
  select
    (select range.to_key from range),
    count(o.name),
    coalesce(sum(o.bytes), 0),
    count(*) filter (where o.is_image),
    count(*) filter (where not o.is_image),
    count(*) filter (where o.is_image and r.file_name is not null),
    count(*) filter (where o.is_image and r.usable_until is not null),
    count(*) filter (where o.name is null),
    count(*) filter (where o.name is null and not r.signed),
    count(*) filter (where o.name is null and r.expired),
    count(r.file_name),
    count(*) filter (where r.signed),
    count(*) filter (where r.expired),
    min(r.usable_until),
    coalesce(array_agg(r.file_name) filter (where o.name is not null and r.file_name is not null and (v_renews_all or coalesce(r.usable_until < v_renew_at, true))), '{}'),
    array_agg(r.file_name order by r.file_name collate "C") filter (where o.name is null),
    array_agg(o.name) filter (where o.is_image and r.file_name is null),
    (array_agg(o.name order by o.name collate "C") filter (where not o.is_image))[1:20],
    -- In key order already, as the index gave them.
    (
      select array_agg(objects.name)
      from objects
      where objects.extension = any (p_settings.extensions || '{jpg,jpeg,png,gif,webp,avif,bmp,tif,tiff,heic}'::text[])
    ),
    (
      select jsonb_object_agg(e.extension, e.files)
      from (
        select left(objects.extension, 16) as extension, count(*) as files
        from objects
        group by left(objects.extension, 16)
      ) as e
    )
  into
    v_chunk.to_key, v_chunk.listed, v_chunk.bytes, v_chunk.images, v_chunk.not_images, v_chunk.recorded, v_chunk.images_signed, v_chunk.orphaned, v_chunk.orphans_unsigned, v_chunk.orphans_expired,
    v_chunk.records, v_chunk.records_signed, v_chunk.records_expired, v_chunk.soonest_expiry,
    v_names, v_orphans, v_missing, v_excluded, v_files, v_by_extension
  from objects o
  full join records r on r.file_name = o.name;

  v_chunk.from_key := p_from_key;
  v_chunk.inserted := 0;
  v_chunk.collided := 0;
  v_chunk.vanished := 0;
  v_chunk.missing := coalesce(cardinality(v_missing), 0);
  v_chunk.to_insert := case when v_writes then coalesce(v_missing, '{}') else '{}' end;
  v_chunk.inserted_names := coalesce(v_chunk.inserted_names, '{}');
  v_chunk.problems := '[]';
  if v_chunk.inserted_names <> '{}' then
    select count(*)
    into v_chunk.inserted
    from unnest(v_chunk.inserted_names) as i (name)
    where i.name collate "C" > p_from_key
      and i.name collate "C" <= coalesce(v_chunk.to_key, image_sync.last_key())
      and exists (
        select
        from public.part_images p
        where p.bucket_id = p_run.bucket_id
          and p.file_name collate "C" = i.name
      )
      and exists (
        select
        from image_sync.objects o
        where o.bucket_id = p_run.bucket_id
          and o.name collate "C" = i.name
      );
    v_chunk.recorded := v_chunk.recorded - v_chunk.inserted;
  end if;
  if v_missing is not null and not v_writes and image_sync.part_number_is_unique() then
    select count(*), (array_agg(m.name order by m.name collate "C"))[1:20]
    into v_chunk.collided, v_collided
    from unnest(v_missing, image_sync.part_numbers_of(v_missing)) as m (name, part_number)
    where exists (
      select
      from public.part_images p
      where p.part_number = m.part_number
    );
    v_chunk.missing := v_chunk.missing - v_chunk.collided;
  end if;

  select f.part_numbers, f.samples
  into v_several_files
  from image_sync.find_several_files(p_run.bucket_id, v_files) as f;
  v_chunk.several_files := v_several_files.part_numbers;
  v_chunk.facts := jsonb_strip_nulls(jsonb_build_object(
    'by_extension', v_by_extension,
    'orphaned', case when p_run.mode = 'cleanup' then v_orphans else v_orphans[1:20] end,
    'missing', case when not v_writes and v_chunk.missing > 0 then v_missing[1:20] end,
    'collided', v_collided,
    'excluded', v_excluded,
    'several_files', v_several_files.samples
  ));
  return (v_chunk, v_names)::image_sync.chunk_to_sign;
end;
$$;

comment on function image_sync.compare(image_sync.runs, image_sync.settings, text, text, integer, image_sync.chunks) is
  'Lists and compares a range of keys. Returns the chunk as it would be stored, missing records in to_insert, and the names of those recorded that need a URL. Writes nothing.';

-- Makes a chunk of what was compared: leased with p_lease where records need a URL, done where none does. Where the table may refuse
-- records they are inserted now, so that what is refused is not signed every night.
create function image_sync.settle_listing(
  p_run image_sync.runs,
  p_settings image_sync.settings,
  p_compared image_sync.chunk_to_sign,
  p_lease uuid
)
returns image_sync.chunk_to_sign
language plpgsql
set search_path = ''
as $$
declare
  v_chunk image_sync.chunks := p_compared.chunk;
  v_names text[] := p_compared.names;
  v_insertion image_sync.insertion;
begin
  if p_run.mode = 'sync' and v_chunk.to_insert <> '{}' then
    if image_sync.may_refuse_records() then
      v_insertion := image_sync.insert_missing(p_run.bucket_id, v_chunk);
      v_chunk := v_insertion.chunk;
      v_chunk.inserted_names := v_chunk.inserted_names || v_insertion.inserted;
      v_names := v_names || v_insertion.inserted;
    end if;
    v_names := v_names || v_chunk.to_insert;
  end if;
  v_chunk.relist_size := null;
  v_chunk.to_sign := case when p_run.mode = 'sync' then cardinality(v_names) else 0 end;
  if v_chunk.to_sign > 0 then
    v_chunk.state := 'leased';
    v_chunk.lease_token := p_lease;
    v_chunk.lease_expires_at := clock_timestamp() + p_settings.lease_duration;
  else
    v_chunk.state := 'done';
    v_chunk.inserted_names := '{}';
    v_chunk.lease_expires_at := null;
    v_chunk.error := null;
    v_chunk.closed_at := clock_timestamp();
    v_names := '{}';
  end if;
  return (v_chunk, v_names)::image_sync.chunk_to_sign;
end;
$$;

comment on function image_sync.settle_listing(image_sync.runs, image_sync.settings, image_sync.chunk_to_sign, uuid) is
  'Decides what becomes of a chunk that was compared: leased with its names to sign, or done. Inserts the missing records where the table may refuse them. The caller stores the chunk.';

-- Makes the run's next chunk behind its cursor. The caller holds the run's row lock.
create function image_sync.make_chunk(
  p_run image_sync.runs,
  p_settings image_sync.settings,
  p_worker uuid,
  p_lease uuid
)
returns image_sync.chunk_to_sign
language plpgsql
set search_path = ''
as $$
declare
  v_since constant timestamptz := clock_timestamp();
  v_made image_sync.chunk_to_sign;
  v_chunk image_sync.chunks;
begin
  v_made := image_sync.compare(p_run, p_settings, p_run.cursor, null, image_sync.chunk_size(p_run, p_settings));
  v_made := image_sync.settle_listing(p_run, p_settings, v_made, p_lease);
  v_chunk := v_made.chunk;
  v_chunk.run_id := p_run.id;
  v_chunk.number := image_sync.next_number(p_run.id);
  v_chunk.worker_id := p_worker;
  insert into image_sync.chunks (
    run_id, number, from_key, to_key, state, lease_token, lease_expires_at, worker_id,
    listed, bytes, images, not_images, recorded, inserted, collided, vanished, missing, to_insert, inserted_names, images_signed, to_sign, orphaned, several_files,
    records, records_signed, records_expired, orphans_unsigned, orphans_expired, soonest_expiry, facts, problems, listing_took, closed_at
  )
  values (
    v_chunk.run_id, v_chunk.number, v_chunk.from_key, v_chunk.to_key, v_chunk.state, v_chunk.lease_token, v_chunk.lease_expires_at, v_chunk.worker_id,
    v_chunk.listed, v_chunk.bytes, v_chunk.images, v_chunk.not_images, v_chunk.recorded, v_chunk.inserted, v_chunk.collided, v_chunk.vanished, v_chunk.missing, v_chunk.to_insert, v_chunk.inserted_names, v_chunk.images_signed, v_chunk.to_sign, v_chunk.orphaned, v_chunk.several_files,
    v_chunk.records, v_chunk.records_signed, v_chunk.records_expired, v_chunk.orphans_unsigned, v_chunk.orphans_expired, v_chunk.soonest_expiry, v_chunk.facts, v_chunk.problems, clock_timestamp() - v_since, v_chunk.closed_at
  );
  return (v_chunk, v_made.names)::image_sync.chunk_to_sign;
end;
$$;

comment on function image_sync.make_chunk(image_sync.runs, image_sync.settings, uuid, uuid) is
  'Lists and compares the run''s next range of keys and stores the chunk: leased where files need a URL (their names are returned), done where none does.';

revoke all on function
  image_sync.next_number(uuid),
  image_sync.chunk_size(image_sync.runs, image_sync.settings),
  image_sync.compare(image_sync.runs, image_sync.settings, text, text, integer, image_sync.chunks),
  image_sync.settle_listing(image_sync.runs, image_sync.settings, image_sync.chunk_to_sign, uuid),
  image_sync.make_chunk(image_sync.runs, image_sync.settings, uuid, uuid)
from public;
grant execute on function
  image_sync.next_number(uuid),
  image_sync.chunk_size(image_sync.runs, image_sync.settings),
  image_sync.compare(image_sync.runs, image_sync.settings, text, text, integer, image_sync.chunks),
  image_sync.settle_listing(image_sync.runs, image_sync.settings, image_sync.chunk_to_sign, uuid),
  image_sync.make_chunk(image_sync.runs, image_sync.settings, uuid, uuid)
to service_role;
