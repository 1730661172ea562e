-- step 1.0.0
-- A chunk with the names in it that need a URL. Null columns: there is none.
create type image_sync.chunk_to_sign as (chunk image_sync.chunks, names text[]);

comment on type image_sync.chunk_to_sign is 'A leased chunk with the names in it that need a URL; or, with no names, one that needs none.';

-- What comparing a range of keys gave.
create type image_sync.comparison as (chunk image_sync.chunks, names text[], moves image_sync.move[], has_unlinked boolean);

comment on type image_sync.comparison is 'A chunk as it would be stored, the names of recorded files that need a URL, the moves that bring records to files of the range, and whether records have still to learn which object they are of.';

-- step 1.1.0
-- What listing a range of keys found.
create type image_sync.listing as (
  chunk image_sync.chunks,
  to_sign text[],
  orphans text[],
  missing text[],
  missing_ids uuid[],
  has_unlinked boolean,
  changed_names text[],
  changed_ids uuid[],
  changed_kinds text[],
  pictures text[],
  moves image_sync.move[]
);

comment on type image_sync.listing is 'A chunk with what was counted in its range, and by name what a run has to look into: recorded files that need a URL, records without a file, images without a record, whether records have still to learn which object they are of, files whose record is of another object, pictures that are left out by their extension; and the moves that bring records to the range.';

drop function if exists image_sync.compare(image_sync.runs, image_sync.settings, text, text, integer, image_sync.chunks) cascade;

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

-- A chunk of which nothing is known yet but where it begins. A column of image_sync.chunks that must have a value has it from here too:
-- what is stored as a whole row does not take the column's default.
create or replace function image_sync.new_chunk(p_run uuid, p_from_key text)
returns image_sync.chunks
language plpgsql
immutable
set search_path = ''
as $$
declare
  v_chunk image_sync.chunks;
begin
  v_chunk.run_id := p_run;
  v_chunk.from_key := p_from_key;
  v_chunk.attempts := 0;
  v_chunk.interrupted := 0;
  v_chunk.is_stretch := false;
  v_chunk.past_leases := '{}';
  v_chunk.to_insert := '{}';
  v_chunk.to_insert_ids := '{}';
  v_chunk.inserted_names := '{}';
  v_chunk.moved_names := '{}';
  v_chunk.departing := '{}';
  v_chunk.ledger := '{}';
  v_chunk.facts := '{}';
  v_chunk.problems := '[]';
  return v_chunk;
end;
$$;

comment on function image_sync.new_chunk(uuid, text) is 'A chunk that begins behind a key, with nothing in it yet.';

-- Lists at most p_size objects and at most p_size records of the keys (p_from_key, p_to_key] (null: to the end of the bucket) and
-- counts what they are, in one statement. Both sides are read by keyset from an index in byte order (idx_objects_bucket_id_name and
-- part_images_bucket_id_file_name_key), so that a chunk costs the same at the end of a million objects as at the beginning.
-- Of a thousand files that are as they should be each is looked at once: they are counted by what they have in common, and only the
-- others are named. In ms, of a thousand: 4.2; with a filtered count for each number 5.8.
create or replace function image_sync.list_chunk(
  p_run image_sync.runs,
  p_settings image_sync.settings,
  p_chunk image_sync.chunks,
  p_to_key text,
  p_size integer
)
returns image_sync.listing
language plpgsql
set search_path = ''
as $$
declare
  v_listing image_sync.listing;
  v_chunk image_sync.chunks := p_chunk;
  v_renews_all constant boolean := coalesce(p_run.options ->> 'renew' = 'all', false);
  v_renew_at constant timestamptz := now() + p_settings.renew_before;
  v_url_base constant text := image_sync.url_base(p_settings);
  v_last_key constant text := coalesce(p_to_key, image_sync.last_key());
  v_others text[];
  v_excluded text[];
  v_empty text[];
  v_by_extension jsonb;
  v_expiry jsonb;
  v_soonest_expiry timestamptz;
begin
  with next_objects as materialized (
    select o.name, o.id, o.extension, o.bytes
    from image_sync.objects o
    where o.bucket_id = p_run.bucket_id
      and o.name collate "C" > p_chunk.from_key
      and o.name collate "C" <= v_last_key
    order by o.name collate "C"
    limit p_size
  ), next_records as materialized (
    -- A URL of another address is none: no reader of this project's is meant to open it.
    select r.file_name, r.object_id, coalesce(r.signed and image_sync.is_url_of(r.signed_url, v_url_base, r.file_name), false) as signed, r.usable_until
    from image_sync.records r
    where r.bucket_id = p_run.bucket_id
      and r.file_name collate "C" > p_chunk.from_key
      and r.file_name collate "C" <= v_last_key
    order by r.file_name collate "C"
    limit p_size
  ), range as materialized (
    -- Whichever side fills the chunk first ends its range, so that a range of records without objects is bounded too. The end of
    -- what was asked for is the end all the same where nothing lies behind it.
    select nullif(least(
      v_last_key collate "C",
      (
        select n.name collate "C"
        from next_objects n
        offset p_size - 1
      ),
      (
        select n.file_name collate "C"
        from next_records n
        offset p_size - 1
      )
    ), image_sync.last_key()) as to_key
  ), compared as materialized (
    select
      o.name,
      o.id,
      o.bytes,
      o.extension,
      r.file_name,
      r.object_id,
      r.signed,
      case when r.signed then r.usable_until end as usable_until,
      -- A record that exists is kept whatever its file is called; so patterns are matched with new names alone, which are few.
      case
        when o.name is null then null
        when r.file_name is null and o.name like any (p_settings.exclude) then 'excluded'
        when o.extension <> all (p_settings.extensions) then 'other'
        when o.bytes = 0 then 'empty'
        else 'image'
      end as kind
    from (
      select n.*
      from next_objects n
      cross join range
      where range.to_key is null or n.name collate "C" <= range.to_key
    ) as o
    full join (
      select n.*
      from next_records n
      cross join range
      where range.to_key is null or n.file_name collate "C" <= range.to_key
    ) as r
      on r.file_name = o.name
  ), counted as materialized (
    select
      c.kind,
      left(c.extension, 16) as extension,
      c.file_name is not null as is_record,
      c.signed,
      -- Null where the URL does not work.
      (c.usable_until at time zone 'UTC')::date as dies_on,
      count(*) as files,
      sum(c.bytes) as bytes,
      min(c.usable_until) as soonest_expiry
    from compared c
    group by 1, 2, 3, 4, 5
  ), named as (
    select
      array_agg(c.file_name) filter (where c.name is not null and c.file_name is not null and (v_renews_all or coalesce(c.usable_until < v_renew_at, true))) as to_sign,
      array_agg(c.file_name) filter (where c.name is null) as orphans,
      array_agg(c.name) filter (where c.kind = 'image' and c.file_name is null) as missing,
      array_agg(c.id) filter (where c.kind = 'image' and c.file_name is null) as missing_ids,
      -- Records whose object is another one than they know: made by hand, of an older version, uploaded anew, or moved onto their name.
      bool_or(c.id is distinct from c.object_id) filter (where c.name is not null and c.file_name is not null) as has_unlinked,
      array_agg(c.name) filter (where c.id <> c.object_id) as changed_names,
      array_agg(c.id) filter (where c.id <> c.object_id) as changed_ids,
      array_agg(c.kind) filter (where c.id <> c.object_id) as changed_kinds,
      array_agg(c.name) filter (where c.kind = 'other') as others,
      array_agg(c.name) filter (where c.kind = 'excluded') as excluded,
      array_agg(c.name) filter (where c.kind = 'empty') as empty_files,
      array_agg(c.name) filter (where c.kind = 'other' and c.extension = any ('{jpg,jpeg,png,gif,webp,avif,bmp,tif,tiff,heic}'::text[])) as pictures
    from compared c
    where v_renews_all or (c.kind = 'image' and c.id = c.object_id and c.usable_until >= v_renew_at) is not true
  ), summed as (
    select
      -- What nothing was found of is null, and left out.
      jsonb_strip_nulls(jsonb_build_object(
        'listed', sum(c.files) filter (where c.kind is not null),
        'bytes', nullif(sum(c.bytes), 0),
        'images', sum(c.files) filter (where c.kind = 'image'),
        'not_images', sum(c.files) filter (where c.kind <> 'image'),
        'excluded', sum(c.files) filter (where c.kind = 'excluded'),
        'empty_files', sum(c.files) filter (where c.kind = 'empty'),
        'recorded', sum(c.files) filter (where c.kind = 'image' and c.is_record),
        'images_signed', sum(c.files) filter (where c.kind = 'image' and c.dies_on is not null),
        'orphaned', sum(c.files) filter (where c.kind is null),
        'orphans_unsigned', sum(c.files) filter (where c.kind is null and not c.signed),
        'orphans_expired', sum(c.files) filter (where c.kind is null and c.signed and c.dies_on is null),
        'records', sum(c.files) filter (where c.is_record),
        'records_signed', sum(c.files) filter (where c.signed),
        -- As image_sync.records.expired, without asking again whether the URL is whole.
        'records_expired', sum(c.files) filter (where c.signed and c.dies_on is null)
      )) as ledger,
      min(c.soonest_expiry) as soonest_expiry
    from counted c
  )
  select
    (
      select range.to_key
      from range
    ),
    s.ledger, s.soonest_expiry,
    n.to_sign, n.orphans, n.missing, n.missing_ids, coalesce(n.has_unlinked, false), n.changed_names, n.changed_ids, n.changed_kinds, n.pictures, n.others, n.excluded, n.empty_files,
    (
      select jsonb_object_agg(e.extension, e.files)
      from (
        select c.extension, sum(c.files) as files
        from counted c
        where c.kind is not null
        group by 1
      ) as e
    ),
    (
      select jsonb_object_agg(d.dies_on, d.urls)
      from (
        select c.dies_on, sum(c.files) as urls
        from counted c
        where c.dies_on is not null
        group by 1
      ) as d
    )
  into
    v_chunk.to_key,
    v_chunk.ledger, v_soonest_expiry,
    v_listing.to_sign, v_listing.orphans, v_listing.missing, v_listing.missing_ids, v_listing.has_unlinked, v_listing.changed_names, v_listing.changed_ids, v_listing.changed_kinds, v_listing.pictures, v_others, v_excluded, v_empty,
    v_by_extension,
    v_expiry
  from summed s
  cross join named n;

  v_chunk.facts := jsonb_strip_nulls(jsonb_build_object(
    'by_extension', v_by_extension,
    'expiry', v_expiry,
    'soonest_expiry', v_soonest_expiry,
    'other_extensions', image_sync.first_names(v_others),
    'excluded', image_sync.first_names(v_excluded),
    'empty_files', image_sync.first_names(v_empty)
  ));
  v_listing.chunk := v_chunk;
  return v_listing;
end;
$$;

comment on function image_sync.list_chunk(image_sync.runs, image_sync.settings, image_sync.chunks, text, integer) is
  'Lists a range of keys, p_size names at most, that begins where p_chunk does: the chunk with what was counted, and by name what is not as it should be. Writes nothing.';

create or replace function image_sync.first_names(p_names text[])
returns text[]
language plpgsql
immutable
set search_path = ''
as $$
begin
  return case when p_names is not null then array(
    select n.name
    from unnest(p_names) as n (name)
    order by n.name collate "C"
    limit 20
  ) end;
end;
$$;

comment on function image_sync.first_names(text[]) is 'The first 20 names in byte order; null for null.';

-- The moves that bring records to files of a range, and what is missing in it then.
create or replace function image_sync.follow_files(p_run image_sync.runs, p_listing image_sync.listing)
returns image_sync.listing
language plpgsql
set search_path = ''
as $$
declare
  v_listing image_sync.listing := p_listing;
  v_chunk image_sync.chunks := p_listing.chunk;
  v_movement record;
  v_waiting text[];
  v_left integer;
begin
  v_listing.moves := image_sync.find_followers(
    p_run.bucket_id,
    p_listing.changed_names,
    p_listing.missing_ids || p_listing.changed_ids,
    case when image_sync.part_number_is_unique() then image_sync.part_numbers_of(p_listing.missing) else '{}' end
  );
  if v_listing.moves is null then
    -- More wait for each other than can be moved at once: whoever is away stays as it is until the chain is shorter.
    v_listing.moves := '{}';
    v_waiting := array(
      select w.file_name
      from image_sync.places_of(p_run.bucket_id, array(
        select c.name
        from unnest(p_listing.changed_names, p_listing.changed_kinds) as c (name, kind)
        where c.kind = 'image'
      )) as w
      where w.is_followed
    );
    v_left := cardinality(v_waiting);
    -- And no second record is made for a file whose own waits.
    select
      coalesce(array_agg(m.name) filter (where not m.is_known), '{}'),
      coalesce(array_agg(m.id) filter (where not m.is_known), '{}'),
      v_waiting || coalesce(array_agg(m.name) filter (where m.is_known), '{}')
    into v_listing.missing, v_listing.missing_ids, v_waiting
    from (
      select n.name, n.id, exists (
        select
        from public.part_images p
        where p.object_id = n.id
      ) as is_known
      from unnest(p_listing.missing, p_listing.missing_ids) as n (name, id)
    ) as m;
    v_chunk.ledger := image_sync.add_counts(v_chunk.ledger, jsonb_build_object('recorded', -v_left, 'unmoved', cardinality(v_waiting)));
    v_chunk.problems := (
      select coalesce(jsonb_agg(image_sync.item_problem(w.name, 'not_moved', format('Its record is that of another file still: more than %s names wait for each other. The next syncs go on', image_sync.max_moves()))), '[]')
      from unnest(v_waiting[1:20]) as w (name)
    );
  elsif v_listing.moves <> '{}' then
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
        from unnest(p_listing.missing, p_listing.missing_ids) as m (name, id)
        union all
        select c.name, c.id, c.kind, false
        from unnest(p_listing.changed_names, p_listing.changed_ids, p_listing.changed_kinds) as c (name, id, kind)
      ) as n
      left join unnest(v_listing.moves) as f
        on f.to_bucket = p_run.bucket_id
        and f.to_name = n.name
      left join unnest(v_listing.moves) as l
        on l.from_bucket = p_run.bucket_id
        and l.from_name = n.name
    ) as i;
    v_listing.missing := v_movement.missing;
    v_listing.missing_ids := v_movement.missing_ids;
    v_chunk.ledger := image_sync.add_counts(v_chunk.ledger, jsonb_build_object('recorded', -v_movement.left_images, 'moved', v_movement.moved));
    v_chunk.facts := v_chunk.facts || jsonb_strip_nulls(jsonb_build_object('moved', v_movement.samples));
  end if;
  v_listing.chunk := v_chunk;
  return v_listing;
end;
$$;

comment on function image_sync.follow_files(image_sync.runs, image_sync.listing) is
  'A listing with the moves that bring records to files of its range, counted as if all of them succeeded; what they bring is not missing any more.';

-- Records whose files are elsewhere are no orphans: they follow them, and are counted where the files are, or no sync takes them along,
-- and they are named.
create or replace function image_sync.leave_out_departing(p_run image_sync.runs, p_settings image_sync.settings, p_listing image_sync.listing)
returns image_sync.listing
language plpgsql
set search_path = ''
as $$
declare
  v_listing image_sync.listing := p_listing;
  v_chunk image_sync.chunks := p_listing.chunk;
  v_url_base constant text := image_sync.url_base(p_settings);
  v_leaving image_sync.move[] := image_sync.find_moves(array_fill(p_run.bucket_id, array[cardinality(p_listing.orphans)]), p_listing.orphans);
  v_away record;
begin
  select
    coalesce(array_agg(w.file_name), '{}') as names,
    -- A run of the bucket that they went to takes them along, or none does; this one does not.
    jsonb_agg(jsonb_build_object('name', w.file_name, 'bucket', w.bucket_id, 'to', w.name) order by w.file_name collate "C") filter (where w.bucket_id <> p_run.bucket_id or not w.is_followed) as files
  into v_away
  from image_sync.places_of(p_run.bucket_id, p_listing.orphans) as w
  where v_leaving is null
    or not w.is_followed
    or w.file_name in (
      select m.from_name
      from unnest(v_leaving) as m
      where m.from_bucket = p_run.bucket_id
    );
  v_chunk.departing := v_away.names;
  if v_chunk.departing <> '{}' then
    v_listing.orphans := array(
      select o.name
      from unnest(p_listing.orphans) as o (name)
      where o.name <> all (v_chunk.departing)
    );
    select image_sync.add_counts(v_chunk.ledger, jsonb_build_object(
      'orphaned', -cardinality(v_chunk.departing),
      'records', -cardinality(v_chunk.departing),
      'records_signed', -count(*) filter (where r.signed),
      'records_expired', -count(*) filter (where r.expired),
      'orphans_unsigned', -count(*) filter (where not r.signed),
      'orphans_expired', -count(*) filter (where r.expired)
    ))
    into v_chunk.ledger
    from (
      select
        r.signed and image_sync.is_url_of(r.signed_url, v_url_base, r.file_name) as signed,
        r.expired and image_sync.is_url_of(r.signed_url, v_url_base, r.file_name) as expired
      from image_sync.records r
      where r.bucket_id = p_run.bucket_id
        and r.file_name collate "C" = any (v_chunk.departing)
        and r.file_name collate "C" > v_chunk.from_key
        and r.file_name collate "C" <= coalesce(v_chunk.to_key, image_sync.last_key())
    ) as r;
  end if;
  if v_away.files is not null then
    v_chunk.facts := v_chunk.facts || jsonb_build_object('away', jsonb_build_object('count', jsonb_array_length(v_away.files), 'files', image_sync.first_items(v_away.files)));
    v_chunk.problems := v_chunk.problems || (
      select coalesce(jsonb_agg(image_sync.item_problem(f.name, 'moved_away', format('Left out: its file is %s now', image_sync.place_in_words(p_run.bucket_id, f.bucket, f."to")))), '[]')
      from jsonb_to_recordset(image_sync.first_items(v_away.files)) as f (name text, bucket text, "to" text)
      where p_run.mode = 'cleanup'
    );
  end if;
  v_listing.chunk := v_chunk;
  return v_listing;
end;
$$;

comment on function image_sync.leave_out_departing(image_sync.runs, image_sync.settings, image_sync.listing) is
  'A listing without the records whose files are elsewhere: they are the chunk''s departing.';

-- Lists and compares a range of keys, p_size names at most, that begins where p_chunk does. What p_chunk inserted and moved when it
-- was listed before stays counted as that.
create or replace function image_sync.compare(
  p_run image_sync.runs,
  p_settings image_sync.settings,
  p_chunk image_sync.chunks,
  p_to_key text,
  p_size integer
)
returns image_sync.comparison
language plpgsql
set search_path = ''
as $$
declare
  v_listing image_sync.listing := image_sync.list_chunk(p_run, p_settings, p_chunk, p_to_key, p_size);
  v_chunk image_sync.chunks := v_listing.chunk;
  v_writes constant boolean := p_run.mode = 'sync';
  v_before integer;
  v_found record;
begin
  v_chunk.departing := '{}';
  v_chunk.problems := '[]';
  v_listing.moves := '{}';
  v_listing.chunk := v_chunk;

  perform set_config('image_sync.max_moves', greatest(5000 * p_size / p_settings.chunk_size, 1)::text, true)
  where p_size < p_settings.chunk_size;
  if v_listing.missing is not null or v_listing.changed_names is not null then
    v_listing := image_sync.follow_files(p_run, v_listing);
  end if;
  if v_listing.orphans is not null then
    v_listing := image_sync.leave_out_departing(p_run, p_settings, v_listing);
  end if;

  v_chunk := v_listing.chunk;
  if v_listing.missing <> '{}' then
    v_chunk.ledger := image_sync.add_counts(v_chunk.ledger, jsonb_build_object('missing', cardinality(v_listing.missing)));
  end if;
  v_chunk.to_insert := case when v_writes then coalesce(v_listing.missing, '{}') else '{}' end;
  v_chunk.to_insert_ids := case when v_writes then coalesce(v_listing.missing_ids, '{}') else '{}' end;
  if v_chunk.inserted_names <> '{}' then
    v_before := image_sync.count_recorded(p_run.bucket_id, v_chunk, v_chunk.inserted_names);
    v_chunk.ledger := image_sync.add_counts(v_chunk.ledger, jsonb_build_object('inserted', v_before, 'recorded', -v_before));
  end if;
  if v_chunk.moved_names <> '{}' then
    v_before := image_sync.count_recorded(p_run.bucket_id, v_chunk, v_chunk.moved_names);
    v_chunk.ledger := image_sync.add_counts(v_chunk.ledger, jsonb_build_object('moved', v_before, 'recorded', -v_before));
  end if;
  if v_listing.missing <> '{}' and not v_writes then
    if image_sync.part_number_is_unique() then
      select count(*) as files, (array_agg(m.name order by m.name collate "C"))[1:20] as samples
      into v_found
      from unnest(v_listing.missing, image_sync.part_numbers_of(v_listing.missing)) as m (name, part_number)
      where exists (
        select
        from public.part_images p
        where p.part_number = m.part_number
          -- Who follows its file to another part number leaves this one.
          and not exists (
            select
            from unnest(v_listing.moves) as leaving
            where leaving.from_bucket = p.bucket_id
              and leaving.from_name = p.file_name
              and image_sync.part_numbers_of(array[leaving.from_name]) = array[m.part_number]
              and image_sync.part_numbers_of(array[leaving.to_name]) <> array[m.part_number]
          )
      );
      v_chunk.ledger := image_sync.add_counts(v_chunk.ledger, jsonb_build_object('collided', v_found.files, 'missing', -v_found.files));
      v_chunk.facts := v_chunk.facts || jsonb_strip_nulls(jsonb_build_object('collided', v_found.samples));
    end if;
    v_chunk.facts := v_chunk.facts || jsonb_strip_nulls(jsonb_build_object('missing', case when v_chunk.ledger ? 'missing' then v_listing.missing[1:20] end));
  end if;
  if v_listing.pictures is not null or (v_listing.missing is not null and not v_writes) then
    select f.part_numbers, f.samples
    into v_found
    from image_sync.find_several_files(p_run.bucket_id, p_settings.extensions, coalesce(v_listing.pictures, '{}'), case when v_writes then '{}' else coalesce(v_listing.missing, '{}') end) as f;
    v_chunk.ledger := image_sync.add_counts(v_chunk.ledger, jsonb_build_object('several_files', v_found.part_numbers));
    v_chunk.facts := v_chunk.facts || jsonb_strip_nulls(jsonb_build_object('several_files', v_found.samples));
  end if;
  if v_listing.orphans is not null then
    v_chunk.facts := v_chunk.facts || jsonb_build_object('orphaned', case when p_run.mode = 'cleanup' then array(
      select o.name
      from unnest(v_listing.orphans) as o (name)
      order by o.name collate "C"
    ) else image_sync.first_names(v_listing.orphans) end);
  end if;
  return (v_chunk, coalesce(v_listing.to_sign, '{}'), v_listing.moves, v_listing.has_unlinked)::image_sync.comparison;
end;
$$;

comment on function image_sync.compare(image_sync.runs, image_sync.settings, image_sync.chunks, text, integer) is
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
  v_left text[];
begin
  if p_run.mode = 'sync' and p_compared.moves <> '{}' then
    v_chunk := image_sync.settle_moves(p_run.bucket_id, v_chunk, p_compared.moves);
    -- A name that its record has left is signed for the record that came, or is to come, to it.
    v_left := array(
      select m.from_name
      from unnest(p_compared.moves) as m
      where m.from_bucket = p_run.bucket_id
        and not exists (
          -- A look by the key for each: as a join it might read the bucket for every one.
          select
          from public.part_images p
          where p.bucket_id = p_run.bucket_id
            and p.file_name collate "C" >= m.from_name
            and p.file_name collate "C" <= m.from_name
          order by p.file_name collate "C"
          offset 0
        )
    );
    v_names := array(
      select n.name
      from unnest(v_names) as n (name)
      where n.name <> all (v_left)
      union
      select n.name
      from unnest(v_chunk.moved_names) as n (name)
    );
  end if;
  if p_run.mode = 'sync' and p_compared.has_unlinked then
    v_chunk.ledger := image_sync.add_counts(v_chunk.ledger, jsonb_build_object('linked', image_sync.link_records(p_run.bucket_id, v_chunk, p_compared.moves)));
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
  v_names := case p_run.mode
    when 'sync' then v_names
    when 'verify' then image_sync.names_to_open(p_run, p_settings, v_chunk)
    else '{}'
  end;
  if v_names <> '{}' then
    v_chunk.ledger := image_sync.add_counts(v_chunk.ledger, jsonb_build_object(image_sync.work_of(p_run.mode), cardinality(v_names)));
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
    image_sync.compare(p_run, p_settings, image_sync.new_chunk(p_run.id, p_run.cursor), null, image_sync.chunk_size(p_run, p_settings)),
    p_lease
  );
  v_chunk := v_made.chunk;
  v_chunk.number := image_sync.next_number(p_run.id);
  v_chunk.worker_id := p_worker;
  v_chunk.ledger := v_chunk.ledger || jsonb_build_object('listing_ms', image_sync.ms_since(v_since));
  insert into image_sync.chunks
  select v_chunk.*;
  return (v_chunk, v_made.names)::image_sync.chunk_to_sign;
end;
$$;

comment on function image_sync.make_chunk(image_sync.runs, image_sync.settings, uuid, uuid) is
  'Lists and compares the run''s next range of keys and stores the chunk: leased where files need a URL (their names are returned), done where none does.';
