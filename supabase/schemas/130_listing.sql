-- step 1.0.0
-- A chunk with the names in it that need a URL. Null columns: there is none.
create type image_sync.chunk_to_sign as (chunk image_sync.chunks, names text[]);

comment on type image_sync.chunk_to_sign is 'A leased chunk with the names in it that need a URL; or, with no names, one that needs none.';

-- What comparing a range of keys gave.
create type image_sync.comparison as (chunk image_sync.chunks, names text[], moves image_sync.move[], has_unlinked boolean);

comment on type image_sync.comparison is 'A chunk as it would be stored, the names of recorded files that need a URL, the moves that bring records to files of the range, and whether records have still to learn which object they are of.';

-- set
-- One chunk of a sync or analyze: list ▸ diff, and which files need a URL. A record that is missing is inserted together with its
-- URL when the chunk is closed: written once instead of twice.

create or replace function image_sync.next_number(p_run uuid)
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

create or replace function image_sync.chunk_size(p_run image_sync.runs, p_settings image_sync.settings)
returns integer
language plpgsql
immutable
set search_path = ''
as $$
begin
  return least(
    p_run.chunk_size,
    p_settings.chunk_size,
    -- What is opened has to be opened within a lease, several times over.
    case when p_run.mode = 'verify' then greatest(least(200, p_settings.verify_rate * extract(epoch from p_settings.lease_duration) / 4), 1)::integer end
  );
end;
$$;

comment on function image_sync.chunk_size(image_sync.runs, image_sync.settings) is
  'How many names the run''s next chunk may have: the setting, or what the database could do of it in time.';

-- Compares at most p_size objects and at most p_size records of the keys (p_from_key, p_to_key] (null: to the end of the bucket) in
-- one statement. Both sides are read by keyset from an index in byte order (idx_objects_bucket_id_name and
-- part_images_bucket_id_file_name_key), so that a chunk costs the same at the end of a million objects as at the beginning.
-- p_listed is the chunk as it was listed before, if it was: what it inserted then stays counted as inserted.
create or replace function image_sync.compare(
  p_run image_sync.runs,
  p_settings image_sync.settings,
  p_from_key text,
  p_to_key text,
  p_size integer,
  p_listed image_sync.chunks default null
)
returns image_sync.comparison
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
  v_missing_ids uuid[];
  v_changed_names text[];
  v_changed_ids uuid[];
  v_changed_kinds text[];
  v_movement record;
  v_moved_before integer;
  v_moved_samples text[];
  v_moves image_sync.move[] := array[]::image_sync.move[];
  v_leaving image_sync.move[] := array[]::image_sync.move[];
  v_waiting text[];
  v_has_unlinked boolean;
  v_others text[];
  v_excluded text[];
  v_empty text[];
  v_by_extension jsonb;
  v_expiry jsonb;
  v_collided text[];
  v_pictures text[];
  v_several_samples text[];
begin
  with next_objects as materialized (
    select o.name, o.id, o.extension, o.bytes, o.extension = any (p_settings.extensions) as is_image
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
      case when starts_with(r.signed_url, v_url_base) then r.usable_until end as usable_until,
      r.object_id
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
  ), compared as (
    select
      o.name,
      o.id,
      o.bytes,
      o.extension,
      r.file_name,
      r.object_id,
      r.signed,
      -- As image_sync.records.expired, without asking again whether the URL is whole.
      r.signed and r.usable_until is null as expired,
      r.usable_until,
      -- A record that exists is kept whatever its file is called; so patterns are matched with new names alone, which are few.
      case
        when o.name is null then null
        when r.file_name is null and o.name like any (p_settings.exclude) then 'excluded'
        when o.is_image and o.bytes = 0 then 'empty'
        when o.is_image then 'image'
        else 'other'
      end as kind
    from objects o
    full join records r on r.file_name = o.name
    -- Each kind is found out once, not in each of the counts below.
    offset 0
  )
  select
    (select range.to_key from range),
    count(c.name),
    coalesce(sum(c.bytes), 0),
    count(*) filter (where c.kind = 'image'),
    count(*) filter (where c.kind <> 'image'),
    count(*) filter (where c.kind = 'excluded'),
    count(*) filter (where c.kind = 'empty'),
    count(*) filter (where c.kind = 'image' and c.file_name is not null),
    count(*) filter (where c.kind = 'image' and c.usable_until is not null),
    count(*) filter (where c.name is null),
    count(*) filter (where c.name is null and not c.signed),
    count(*) filter (where c.name is null and c.expired),
    count(c.file_name),
    count(*) filter (where c.signed),
    count(*) filter (where c.expired),
    min(c.usable_until),
    coalesce(array_agg(c.file_name) filter (where c.name is not null and c.file_name is not null and (v_renews_all or coalesce(c.usable_until < v_renew_at, true))), '{}'),
    array_agg(c.file_name order by c.file_name collate "C") filter (where c.name is null),
    array_agg(c.name) filter (where c.kind = 'image' and c.file_name is null),
    array_agg(c.id) filter (where c.kind = 'image' and c.file_name is null),
    -- Records whose object is another one than they know: made by hand, of an older version, uploaded anew, or moved onto their name.
    coalesce(bool_or(c.id is distinct from c.object_id) filter (where c.name is not null and c.file_name is not null), false),
    array_agg(c.name) filter (where c.id <> c.object_id),
    array_agg(c.id) filter (where c.id <> c.object_id),
    array_agg(c.kind) filter (where c.id <> c.object_id),
    (array_agg(c.name order by c.name collate "C") filter (where c.kind = 'other'))[1:20],
    (array_agg(c.name order by c.name collate "C") filter (where c.kind = 'excluded'))[1:20],
    (array_agg(c.name order by c.name collate "C") filter (where c.kind = 'empty'))[1:20],
    array_agg(c.name) filter (where c.kind = 'other' and c.extension = any ('{jpg,jpeg,png,gif,webp,avif,bmp,tif,tiff,heic}'::text[])),
    (
      select jsonb_object_agg(e.extension, e.files)
      from (
        select left(objects.extension, 16) as extension, count(*) as files
        from objects
        group by left(objects.extension, 16)
      ) as e
    ),
    (
      select jsonb_object_agg(d.day, d.urls)
      from (
        select (r.usable_until at time zone 'UTC')::date as day, count(*) as urls
        from records r
        where r.usable_until is not null
        group by 1
      ) as d
    )
  into
    v_chunk.to_key, v_chunk.listed, v_chunk.bytes, v_chunk.images, v_chunk.not_images, v_chunk.excluded, v_chunk.empty_files, v_chunk.recorded, v_chunk.images_signed, v_chunk.orphaned, v_chunk.orphans_unsigned, v_chunk.orphans_expired,
    v_chunk.records, v_chunk.records_signed, v_chunk.records_expired, v_chunk.soonest_expiry,
    v_names, v_orphans, v_missing, v_missing_ids, v_has_unlinked, v_changed_names, v_changed_ids, v_changed_kinds, v_others, v_excluded, v_empty, v_pictures, v_by_extension, v_expiry
  from compared c;

  v_chunk.from_key := p_from_key;
  v_chunk.inserted := 0;
  v_chunk.moved := 0;
  v_chunk.unmoved := 0;
  v_chunk.moved_ahead := coalesce(v_chunk.moved_ahead, 0);
  v_chunk.linked := 0;
  v_chunk.departing := '{}';
  v_chunk.collided := 0;
  v_chunk.vanished := 0;
  v_chunk.inserted_names := coalesce(v_chunk.inserted_names, '{}');
  v_chunk.moved_names := coalesce(v_chunk.moved_names, '{}');
  v_chunk.problems := '[]';
  v_chunk.to_open := 0;

  perform set_config('image_sync.max_moves', greatest(5000 * p_size / p_settings.chunk_size, 1)::text, true)
  where p_size < p_settings.chunk_size;
  if v_missing is not null or v_changed_names is not null then
    v_moves := image_sync.find_followers(p_run.bucket_id, v_changed_names, v_missing_ids || v_changed_ids);
  end if;
  if v_moves is null then
    -- More wait for each other than can be moved at once: whoever is away stays as it is until the chain is shorter.
    v_moves := '{}';
    v_waiting := image_sync.names_away(p_run.bucket_id, array(
      select c.name
      from unnest(v_changed_names, v_changed_kinds) as c (name, kind)
      where c.kind = 'image'
    ));
    v_chunk.recorded := v_chunk.recorded - cardinality(v_waiting);
    -- And no second record is made for a file whose own waits.
    select
      coalesce(array_agg(m.name) filter (where not m.is_known), '{}'),
      coalesce(array_agg(m.id) filter (where not m.is_known), '{}'),
      v_waiting || coalesce(array_agg(m.name) filter (where m.is_known), '{}')
    into v_missing, v_missing_ids, v_waiting
    from (
      select n.name, n.id, exists (
        select
        from public.part_images p
        where p.object_id = n.id
      ) as is_known
      from unnest(v_missing, v_missing_ids) as n (name, id)
    ) as m;
    v_chunk.unmoved := cardinality(v_waiting);
    v_chunk.problems := (
      select coalesce(jsonb_agg(image_sync.item_problem(w.name, 'not_moved', format('Its record is that of another file still: more than %s names wait for each other. The next syncs go on', image_sync.max_moves()))), '[]')
      from unnest(v_waiting[1:20]) as w (name)
    );
  end if;
  if v_moves <> '{}' then
    select
      coalesce(array_agg(i.name) filter (where i.is_missing and not i.is_followed), '{}') as missing,
      coalesce(array_agg(i.id) filter (where i.is_missing and not i.is_followed), '{}') as missing_ids,
      count(*) filter (where i.is_followed) as moved,
      count(*) filter (where not i.was_missing and i.is_left and i.kind = 'image') as left_images,
      (array_agg(i.followed_by || ' → ' || i.name order by i.name collate "C") filter (where i.is_followed))[1:20] as samples
    into v_movement
    from (
      select n.name, n.id, n.kind, n.was_missing, f.from_name is not null as is_followed, f.from_name as followed_by, l.from_name is not null as is_left, n.was_missing or l.from_name is not null and n.kind = 'image' as is_missing
      from (
        select m.name, m.id, 'image' as kind, true as was_missing
        from unnest(v_missing, v_missing_ids) as m (name, id)
        union all
        select c.name, c.id, c.kind, false
        from unnest(v_changed_names, v_changed_ids, v_changed_kinds) as c (name, id, kind)
      ) as n
      left join unnest(v_moves) as f
        on f.to_bucket = p_run.bucket_id
        and f.to_name = n.name
      left join unnest(v_moves) as l
        on l.from_bucket = p_run.bucket_id
        and l.from_name = n.name
    ) as i;
    v_moved_samples := v_movement.samples;
    v_missing := v_movement.missing;
    v_missing_ids := v_movement.missing_ids;
    v_chunk.moved := v_movement.moved;
    v_chunk.recorded := v_chunk.recorded - v_movement.left_images;
  end if;
  if v_orphans is not null then
    -- Records that follow their files are no orphans, and are counted where the files are.
    v_leaving := image_sync.find_moves(array_fill(p_run.bucket_id, array[cardinality(v_orphans)]), v_orphans);
    v_chunk.departing := case
      when v_leaving is null then image_sync.names_away(p_run.bucket_id, v_orphans)
      else array(
        select m.from_name
        from unnest(v_leaving) as m
        where m.from_bucket = p_run.bucket_id
          and m.from_name = any (v_orphans)
      )
    end;
    if v_chunk.departing <> '{}' then
      v_orphans := array(
        select o.name
        from unnest(v_orphans) as o (name)
        where o.name <> all (v_chunk.departing)
        order by o.name collate "C"
      );
      v_chunk.orphaned := cardinality(v_orphans);
      v_chunk.records := v_chunk.records - cardinality(v_chunk.departing);
      select
        v_chunk.records_signed - count(*) filter (where r.signed),
        v_chunk.records_expired - count(*) filter (where r.expired),
        v_chunk.orphans_unsigned - count(*) filter (where not r.signed),
        v_chunk.orphans_expired - count(*) filter (where r.expired)
      into v_chunk.records_signed, v_chunk.records_expired, v_chunk.orphans_unsigned, v_chunk.orphans_expired
      from (
        select
          r.signed and starts_with(r.signed_url, v_url_base) as signed,
          r.expired and starts_with(r.signed_url, v_url_base) as expired
        from image_sync.records r
        where r.bucket_id = p_run.bucket_id
          and r.file_name collate "C" = any (v_chunk.departing)
          and r.file_name collate "C" > p_from_key
          and r.file_name collate "C" <= coalesce(v_chunk.to_key, image_sync.last_key())
      ) as r;
    end if;
  end if;
  v_chunk.missing := coalesce(cardinality(v_missing), 0);
  v_chunk.to_insert := case when v_writes then coalesce(v_missing, '{}') else '{}' end;
  v_chunk.to_insert_ids := case when v_writes then coalesce(v_missing_ids, '{}') else '{}' end;
  if v_chunk.inserted_names <> '{}' then
    v_chunk.inserted := image_sync.count_recorded(p_run.bucket_id, v_chunk, v_chunk.inserted_names);
    v_chunk.recorded := v_chunk.recorded - v_chunk.inserted;
  end if;
  if v_chunk.moved_names <> '{}' then
    v_moved_before := image_sync.count_recorded(p_run.bucket_id, v_chunk, v_chunk.moved_names);
    v_chunk.moved := v_chunk.moved + v_moved_before;
    v_chunk.recorded := v_chunk.recorded - v_moved_before;
  end if;
  if v_chunk.missing > 0 and not v_writes and image_sync.part_number_is_unique() then
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

  v_chunk.several_files := 0;
  if v_pictures is not null or (v_missing is not null and not v_writes) then
    select f.part_numbers, f.samples
    into v_chunk.several_files, v_several_samples
    from image_sync.find_several_files(p_run.bucket_id, p_settings.extensions, coalesce(v_pictures, '{}'), case when v_writes then '{}' else coalesce(v_missing, '{}') end) as f;
  end if;
  v_chunk.facts := jsonb_strip_nulls(jsonb_build_object(
    'by_extension', v_by_extension,
    'expiry', v_expiry,
    'orphaned', case when p_run.mode = 'cleanup' then v_orphans else v_orphans[1:20] end,
    'missing', case when not v_writes and v_chunk.missing > 0 then v_missing[1:20] end,
    'moved', v_moved_samples,
    -- A run of the bucket that they went to takes them along; this one does not.
    'away', (
      select jsonb_build_object(
        'count', count(*),
        'files', jsonb_path_query_array(jsonb_agg(jsonb_build_object('name', m.from_name, 'bucket', m.to_bucket) order by m.from_name collate "C"), '$[0 to 19]')
      )
      from unnest(v_leaving) as m
      where m.from_bucket = p_run.bucket_id
        and m.to_bucket <> p_run.bucket_id
        and m.from_name = any (v_chunk.departing)
      having count(*) > 0
    ),
    'collided', v_collided,
    'other_extensions', v_others,
    'excluded', v_excluded,
    'empty_files', v_empty,
    'several_files', v_several_samples
  ));
  return (v_chunk, v_names, v_moves, v_has_unlinked)::image_sync.comparison;
end;
$$;

comment on function image_sync.compare(image_sync.runs, image_sync.settings, text, text, integer, image_sync.chunks) is
  'Lists and compares a range of keys. Returns the chunk as it would be stored, missing records in to_insert, the names of those recorded that need a URL, and the moves that bring records to files of the range, counted as if all of them succeeded. Writes nothing.';

-- Makes a chunk of what was compared: leased with p_lease where records need a URL, done where none does. Where the table may refuse
-- records they are inserted now, so that what is refused is not signed every night.
create or replace function image_sync.settle_listing(
  p_run image_sync.runs,
  p_settings image_sync.settings,
  p_compared image_sync.comparison,
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
  v_arrived text[];
begin
  if p_run.mode = 'sync' and p_compared.moves <> '{}' then
    v_chunk := image_sync.settle_moves(p_run.bucket_id, v_chunk, p_compared.moves);
    v_arrived := array(
      select n.name
      from unnest(v_chunk.moved_names) as n (name)
      where n.name <> all (v_names)
    );
    v_names := v_names || v_arrived;
  end if;
  if p_run.mode = 'sync' and p_compared.has_unlinked then
    v_chunk.linked := image_sync.link_records(p_run.bucket_id, v_chunk, p_compared.moves);
  end if;
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
  if p_run.mode = 'verify' then
    v_names := image_sync.names_to_open(p_run, p_settings, v_chunk);
    v_chunk.to_open := cardinality(v_names);
  end if;
  if v_chunk.to_sign > 0 or v_chunk.to_open > 0 then
    v_chunk.state := 'leased';
    v_chunk.lease_token := p_lease;
    v_chunk.lease_expires_at := clock_timestamp() + p_settings.lease_duration;
  else
    v_chunk.state := 'done';
    v_chunk.inserted_names := '{}';
    v_chunk.moved_names := '{}';
    v_chunk.lease_expires_at := null;
    v_chunk.error := null;
    v_chunk.closed_at := clock_timestamp();
    v_names := '{}';
  end if;
  return (v_chunk, v_names)::image_sync.chunk_to_sign;
end;
$$;

comment on function image_sync.settle_listing(image_sync.runs, image_sync.settings, image_sync.comparison, uuid) is
  'Decides what becomes of a chunk that was compared: leased with its names to sign, or done. Moves the records that follow their files, tells records which object they are of, and inserts the missing ones where the table may refuse them. The caller stores the chunk.';

-- Makes the run's next chunk behind its cursor. The caller holds the run's row lock.
create or replace function image_sync.make_chunk(
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
  v_made := image_sync.settle_listing(
    p_run, p_settings,
    image_sync.compare(p_run, p_settings, p_run.cursor, null, image_sync.chunk_size(p_run, p_settings)),
    p_lease
  );
  v_chunk := v_made.chunk;
  v_chunk.run_id := p_run.id;
  v_chunk.number := image_sync.next_number(p_run.id);
  v_chunk.worker_id := p_worker;
  insert into image_sync.chunks (
    run_id, number, from_key, to_key, state, lease_token, lease_expires_at, worker_id,
    listed, bytes, images, not_images, excluded, empty_files, recorded, inserted, moved, unmoved, moved_ahead, collided, vanished, missing, to_insert, to_insert_ids, inserted_names, moved_names, departing, images_signed, to_sign, to_open, orphaned, several_files,
    linked, records, records_signed, records_expired, orphans_unsigned, orphans_expired, soonest_expiry, facts, problems, listing_took, closed_at
  )
  values (
    v_chunk.run_id, v_chunk.number, v_chunk.from_key, v_chunk.to_key, v_chunk.state, v_chunk.lease_token, v_chunk.lease_expires_at, v_chunk.worker_id,
    v_chunk.listed, v_chunk.bytes, v_chunk.images, v_chunk.not_images, v_chunk.excluded, v_chunk.empty_files, v_chunk.recorded, v_chunk.inserted, v_chunk.moved, v_chunk.unmoved, v_chunk.moved_ahead, v_chunk.collided, v_chunk.vanished, v_chunk.missing, v_chunk.to_insert, v_chunk.to_insert_ids, v_chunk.inserted_names, v_chunk.moved_names, v_chunk.departing, v_chunk.images_signed, v_chunk.to_sign, v_chunk.to_open, v_chunk.orphaned, v_chunk.several_files,
    v_chunk.linked, v_chunk.records, v_chunk.records_signed, v_chunk.records_expired, v_chunk.orphans_unsigned, v_chunk.orphans_expired, v_chunk.soonest_expiry, v_chunk.facts, v_chunk.problems, clock_timestamp() - v_since, v_chunk.closed_at
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
  image_sync.settle_listing(image_sync.runs, image_sync.settings, image_sync.comparison, uuid),
  image_sync.make_chunk(image_sync.runs, image_sync.settings, uuid, uuid)
from public;
grant execute on function
  image_sync.next_number(uuid),
  image_sync.chunk_size(image_sync.runs, image_sync.settings),
  image_sync.compare(image_sync.runs, image_sync.settings, text, text, integer, image_sync.chunks),
  image_sync.settle_listing(image_sync.runs, image_sync.settings, image_sync.comparison, uuid),
  image_sync.make_chunk(image_sync.runs, image_sync.settings, uuid, uuid)
to service_role;
