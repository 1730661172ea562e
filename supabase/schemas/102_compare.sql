-- step 2.0.0
-- What a look at names gave.
create type image_sync.look as (to_do text[], to_do_ids uuid[], to_link text[], to_move text[], found integer, ledger jsonb, facts jsonb);

comment on type image_sync.look is 'What a run found among names: to_do, those that need a URL (in a verify: whose URL is to be opened), with the objects of those that have no record; to_link, whose record does not know its object; to_move, where a record and its file have to meet first; found, how many need something; and what was counted (image_sync.chunks.ledger, facts).';

-- set
-- The one classification. What state is this name in? Every run, list and report asks here.

create or replace function image_sync.behind(p_key text)
returns text language sql immutable set search_path = '' as $$
  select p_key || chr(1)
$$;

comment on function image_sync.behind(text) is 'The first key behind this one in byte order: no text holds a character below chr(1).';

-- Each name of a bucket from p_from to p_to, both included, in one state. Inlined where it is called: the caller says by its settings
-- that both sides are merged in the order of their indexes (idx_objects_bucket_id_name, part_images_bucket_id_file_name_key). What
-- costs, patterns and looks by id, is asked of few.
--   kind    what the object is to this bucket: image, other (by its extension), empty, excluded; null: there is none
--   state   working, expiring, expired, unsigned, missing, empty, other, excluded; without an object orphaned, moved (its file has
--           another name in this bucket, and the next sync takes the record along) or moved_away (its file is elsewhere)
--   arrives, leaves  a record follows its file to this name, or the one at this name follows its own elsewhere
create or replace function image_sync.compare_range(
  p_bucket_id text, p_from text, p_to text, p_renew_at timestamptz, p_url_base text, p_extensions text[], p_exclude text[]
)
returns table (
  name text, state text, kind text, object_id uuid, extension text, bytes bigint, file_name text, record_of uuid, part_number text,
  signed_url text, is_signed boolean, usable_until timestamptz, arrives boolean, leaves boolean
)
language sql
stable
as $$
  select
    c.name,
    case
      when c.kind = 'image' and c.usable_until >= p_renew_at then 'working'
      when c.kind is null then coalesce((
        select case when w.is_followed and w.bucket_id = p_bucket_id then 'moved' else 'moved_away' end
        from image_sync.place_of(p_bucket_id, c.file_name, c.record_of) as w
      ), 'orphaned')
      when c.kind in ('excluded', 'empty') or c.kind = 'other' and c.file_name is null then c.kind
      when c.file_name is null then 'missing'
      when not c.is_signed then 'unsigned'
      when c.usable_until is null then 'expired'
      when c.usable_until < p_renew_at then 'expiring'
      else 'working'
    end,
    c.kind, c.object_id, c.extension, c.bytes, c.file_name, c.record_of, c.part_number, c.signed_url, c.is_signed, c.usable_until,
    case
      when c.record_of = c.object_id or c.kind is distinct from 'image' then false
      -- Not exists: that may be asked of the whole table at once.
      else coalesce((
        select true
        from public.part_images m
        where m.object_id = c.object_id and image_sync.is_leaving(m.bucket_id, m.file_name, m.object_id)
        limit 1
      ), false)
    end,
    case when c.record_of <> c.object_id then image_sync.is_leaving(p_bucket_id, c.file_name, c.record_of) else false end
  from (
    select
      coalesce(o.name, r.file_name) as name,
      -- A record that exists is kept whatever its file is called.
      case
        when o.name is null then null
        when r.file_name is null and o.name like any (p_exclude) then 'excluded'
        when o.extension <> all (p_extensions) then 'other'
        when o.bytes = 0 then 'empty'
        else 'image'
      end as kind,
      o.id as object_id, o.extension, o.bytes, r.file_name, r.object_id as record_of, r.part_number, r.signed_url,
      r.is_own as is_signed,
      case when r.is_own then r.usable_until end as usable_until
    from (
      select x.id, x.name, x.extension, x.bytes
      from image_sync.objects x
      where x.bucket_id = p_bucket_id and x.name collate "C" >= p_from and x.name collate "C" <= p_to
    ) as o
    full join (
      -- A URL of another address, or of another file, is none.
      select x.file_name, x.object_id, x.part_number, x.signed_url, x.usable_until, x.signed and image_sync.is_url_of(x.signed_url, p_url_base, x.file_name) as is_own
      from image_sync.records x
      where x.bucket_id = p_bucket_id and x.file_name collate "C" >= p_from and x.file_name collate "C" <= p_to
    ) as r
      on r.file_name collate "C" = o.name collate "C"
    -- Pulled up, a kind would be computed again wherever it is read.
    offset 0
  ) as c
$$;

comment on function image_sync.compare_range(text, text, text, timestamptz, text, text[], text[]) is
  'The names of a bucket from one key to another, both included, each in one state. p_renew_at: URLs that die before are expiring. Inlined.';

-- The same of single names, each by itself.
create or replace function image_sync.compare_names(
  p_bucket_id text, p_names text[], p_renew_at timestamptz, p_url_base text, p_extensions text[], p_exclude text[]
)
returns table (
  name text, state text, kind text, object_id uuid, extension text, bytes bigint, file_name text, record_of uuid, part_number text,
  signed_url text, is_signed boolean, usable_until timestamptz, arrives boolean, leaves boolean
)
language sql
stable
as $$
  select c.*
  from unnest(p_names) as n (name)
  cross join lateral image_sync.compare_range(p_bucket_id, n.name, n.name, p_renew_at, p_url_base, p_extensions, p_exclude) as c
$$;

comment on function image_sync.compare_names(text, text[], timestamptz, text, text[], text[]) is 'What image_sync.compare_range says of each of these names. Inlined.';

-- What names are once more, after they were tried.
create or replace function image_sync.see_names(p_run image_sync.runs, p_settings image_sync.settings, p_names text[])
returns table (name text, kind text, is_record boolean, arrives boolean) language plpgsql
stable set search_path = '' set enable_hashjoin = 'off' set enable_seqscan = 'off' set enable_bitmapscan = 'off' set enable_sort = 'off' as $$
begin
  return query
  select c.name, c.kind, c.file_name is not null, c.arrives
  from image_sync.compare_names(p_run.bucket_id, p_names, now(), '', p_settings.extensions, p_settings.exclude) as c;
end;
$$;

comment on function image_sync.see_names(image_sync.runs, image_sync.settings, text[]) is 'Kind of object, and whether there is a record, of each of these names that has either.';

create or replace function image_sync.first_names(p_names text[])
returns text[] language plpgsql immutable set search_path = '' as $$
begin
  return case when p_names is not null then array(
    select n.name
    from unnest(p_names) as n (name)
    order by n.name collate "C" limit 20
  ) end;
end;
$$;

comment on function image_sync.first_names(text[]) is 'The first 20 names in byte order; null for null.';

-- Counts the names of a range, or those given, and says which need something, in one pass: names are counted by what they have in
-- common, and kept of few. A name that needs a URL is counted as a record once it was tried; one that moves is not counted before.
--   p_mode  that of the run; again: names of a sync that should have moved, as they are; measure: nothing is needed
create or replace function image_sync.look(
  p_run image_sync.runs, p_settings image_sync.settings, p_mode text, p_from text, p_to text, p_names text[] default null
)
returns image_sync.look
language plpgsql
stable
set search_path = ''
set enable_hashjoin = 'off'
set enable_seqscan = 'off'
set enable_bitmapscan = 'off'
-- Grouped by a hash: a sort would compare states by the rules of a language.
set enable_sort = 'off'
-- A day is UTC's, without looking a zone up for each URL.
set timezone = 'UTC'
as $$
declare
  v_syncs constant boolean := p_mode in ('sync', 'again');
  v_is_unique constant boolean := image_sync.part_number_is_unique();
  v_renews_all constant boolean := v_syncs and coalesce(p_run.options ->> 'renew' = 'all', false);
  v_renew_at constant timestamptz := case when p_run.options ->> 'renew' = 'all' then 'infinity' else now() + p_settings.renew_before end;
  v_url_base constant text := image_sync.url_base(p_settings);
  v_names jsonb;
  v_look image_sync.look;
begin
  with counted as materialized (
    select
      c.kind, c.state, left(c.extension, 16) as extension, c.file_name is not null as is_record, c.is_signed, c.usable_until::date as dies_on,
      case
        -- A record that has to wait for its file keeps a URL that works meanwhile.
        when c.arrives or c.leaves or c.state = 'moved' and p_mode = 'sync' then case p_mode when 'again' then case when c.kind = 'image' and c.leaves and coalesce(c.usable_until < v_renew_at, true) then 'sign' when c.arrives then 'stay' else 'wait' end when 'sync' then 'move' else case when c.arrives then 'come' else 'go' end end
        when c.kind is null or c.file_name is null and c.kind <> 'image' then null
        -- Whoever has its part number moves on first, or keeps it: then nobody signs what the table will not take.
        when v_syncs and v_is_unique and c.file_name is null and exists (select from public.part_images p where p.part_number = (image_sync.part_numbers_of(array[c.name]))[1]) then
          case when p_mode = 'sync' and not image_sync.is_part_taken((image_sync.part_numbers_of(array[c.name]))[1]) then 'move' end
        when v_syncs and (v_renews_all or coalesce(c.usable_until < v_renew_at, true)) then 'sign'
        when v_syncs and c.record_of is distinct from c.object_id then 'link'
        when p_mode = 'verify' and c.usable_until is not null then 'open'
      end as need,
      count(*) as files, sum(c.bytes) as bytes, min(c.usable_until) as soonest_expiry,
      array_agg(c.name) filter (where c.state <> 'working' or c.record_of is distinct from c.object_id or v_renews_all or p_mode = 'verify') as names,
      array_agg(case when c.file_name is null then c.object_id end) filter (where c.state <> 'working' or c.record_of is distinct from c.object_id or v_renews_all or p_mode = 'verify') as ids
    from (
      select *
      from image_sync.compare_range(p_run.bucket_id, p_from, p_to, v_renew_at, v_url_base, p_settings.extensions, p_settings.exclude)
      where p_names is null
      union all
      select *
      from image_sync.compare_names(p_run.bucket_id, p_names, v_renew_at, v_url_base, p_settings.extensions, p_settings.exclude)
      where p_names is not null
    ) as c
    group by 1, 2, 3, 4, 5, 6, 7
  ), grouped as (
    -- A record that follows its file is counted where that is.
    select g.*, coalesce(g.need not in ('sign', 'move'), true) and g.state not in ('moved', 'moved_away') as is_settled
    from counted g
  ), named as (
    select coalesce(g.need, '') as need, g.kind, g.state, g.extension, g.is_record, n.name, n.id
    from counted g
    cross join lateral unnest(g.names, g.ids) as n (name, id)
  )
  select
    (select coalesce(array_agg(n.name order by n.name collate "C") filter (where n.need in ('sign', 'open')), '{}') from named n),
    (select coalesce(array_agg(n.id order by n.name collate "C") filter (where n.need in ('sign', 'open')), '{}') from named n),
    (select coalesce(array_agg(n.name order by n.name collate "C") filter (where n.need = 'link'), '{}') from named n),
    (select coalesce(array_agg(n.name order by n.name collate "C") filter (where n.need = 'move'), '{}') from named n),
    coalesce(sum(g.files) filter (where g.need in ('sign', 'open', 'link', 'move')), 0),
    -- What nothing was found of is left out.
    jsonb_strip_nulls(jsonb_build_object(
      'listed', sum(g.files) filter (where g.kind is not null and g.need is distinct from 'move'),
      'bytes', nullif(sum(g.bytes) filter (where g.need is distinct from 'move'), 0),
      'images', sum(g.files) filter (where g.kind = 'image' and g.need is distinct from 'move'),
      'not_images', sum(g.files) filter (where g.kind <> 'image' and g.need is distinct from 'move'),
      'excluded', sum(g.files) filter (where g.kind = 'excluded'),
      'empty_files', sum(g.files) filter (where g.kind = 'empty' and g.need is distinct from 'move'),
      'recorded', sum(g.files) filter (where g.kind = 'image' and g.is_record and coalesce(g.need not in ('sign', 'move', 'stay', 'come', 'go'), true)),
      'missing', sum(g.files) filter (where g.kind = 'image' and (g.need = 'go' or not g.is_record and g.need is null)),
      'moved', sum(g.files) filter (where g.kind = 'image' and g.need = 'come'),
      'unmoved', sum(g.files) filter (where g.kind = 'image' and g.need = 'stay'),
      'unsettled', sum(g.files) filter (where g.kind = 'image' and g.need = 'sign'),
      'to_sign', sum(g.files) filter (where g.need = 'sign'),
      'to_open', sum(g.files) filter (where g.need = 'open'),
      'records', sum(g.files) filter (where g.is_record and g.is_settled),
      'records_signed', sum(g.files) filter (where g.is_signed and g.is_settled),
      'records_expired', sum(g.files) filter (where g.is_signed and g.dies_on is null and g.is_settled),
      'images_signed', sum(g.files) filter (where g.kind = 'image' and g.dies_on is not null and g.is_settled),
      'orphaned', sum(g.files) filter (where g.state = 'orphaned'),
      'orphans_unsigned', sum(g.files) filter (where g.state = 'orphaned' and not g.is_signed),
      'orphans_expired', sum(g.files) filter (where g.state = 'orphaned' and g.is_signed and g.dies_on is null)
    )),
    jsonb_strip_nulls(jsonb_build_object(
      'soonest_expiry', min(g.soonest_expiry) filter (where g.is_settled),
      'by_extension', (
        select jsonb_object_agg(e.extension, e.files)
        from (select c.extension, sum(c.files) as files from counted c where c.kind is not null and c.need is distinct from 'move' group by 1) as e
      ),
      'expiry', (
        select jsonb_object_agg(d.dies_on, d.urls)
        from (select c.dies_on, sum(c.files) as urls from grouped c where c.dies_on is not null and c.is_settled group by 1) as d
      )
    )),
    (
      select jsonb_object_agg(k.state, k.names)
      from (
        select case when n.need in ('come', 'go') then n.need when n.state = 'other' and n.extension = any ('{jpg,jpeg,png,gif,webp,avif,bmp,tif,tiff,heic}'::text[]) then 'picture' else n.state end as state, to_jsonb(array_agg(n.name order by n.name collate "C")) as names
        from named n
        where n.need in ('', 'come', 'go')
        group by 1
      ) as k
    )
  into v_look.to_do, v_look.to_do_ids, v_look.to_link, v_look.to_move, v_look.found, v_look.ledger, v_look.facts, v_names
  from grouped g;
  return image_sync.add_samples(p_run, p_settings, p_mode, v_look, coalesce(v_names, '{}'));
end;
$$;

comment on function image_sync.look(image_sync.runs, image_sync.settings, text, text, text, text[]) is
  'Counts the names from p_from to p_to, both included, or p_names, and says what they need. Writes nothing.';

-- What a report shows of the names that a look found, 20 of each kind; of a cleanup all that are orphaned.
--   p_names  {state: [names in order]}; come and go: names that a record comes to, or leaves
create or replace function image_sync.add_samples(
  p_run image_sync.runs, p_settings image_sync.settings, p_mode text, p_look image_sync.look, p_names jsonb
)
returns image_sync.look language plpgsql stable set search_path = '' as $$
declare
  v_look image_sync.look := p_look;
  v_missing text[] := image_sync.texts(p_names -> 'missing') || image_sync.texts(p_names -> 'go');
  v_pictures constant text[] := image_sync.texts(p_names -> 'picture');
  v_found record;
begin
  if p_names = '{}' or p_mode = 'measure' and not p_names ? 'orphaned' then
    return v_look;
  end if;
  if v_missing <> '{}' and image_sync.part_number_is_unique() then
    select count(*) as files, array_agg(m.name order by m.name collate "C") as names
    into v_found
    from unnest(v_missing, image_sync.part_numbers_of(v_missing)) as m (name, part_number)
    where image_sync.is_part_taken(m.part_number);
    v_look.ledger := image_sync.add_counts(v_look.ledger, jsonb_build_object('collided', v_found.files, 'missing', -v_found.files));
    v_look.facts := v_look.facts || jsonb_strip_nulls(jsonb_build_object('collided', to_jsonb(v_found.names[1:20])));
    v_missing := array(select m.name from unnest(v_missing) as m (name) where m.name <> all (coalesce(v_found.names, '{}')));
  end if;
  if v_pictures <> '{}' or v_missing <> '{}' then
    select f.part_numbers, f.samples
    into v_found
    from image_sync.find_several_files(p_run.bucket_id, p_settings.extensions, v_pictures, v_missing) as f;
    v_look.ledger := image_sync.add_counts(v_look.ledger, jsonb_build_object('several_files', v_found.part_numbers));
    v_look.facts := v_look.facts || jsonb_strip_nulls(jsonb_build_object('several_files', v_found.samples));
  end if;
  v_look.facts := v_look.facts || jsonb_strip_nulls(jsonb_build_object(
    'missing', case when v_missing <> '{}' then to_jsonb(image_sync.first_names(v_missing)) end,
    'orphaned', case when p_mode = 'cleanup' then p_names -> 'orphaned' else image_sync.first_items(p_names -> 'orphaned') end,
    'unsigned', image_sync.first_items(p_names -> 'unsigned'),
    'expired', image_sync.first_items(p_names -> 'expired'),
    'excluded', image_sync.first_items(p_names -> 'excluded'),
    'empty_files', image_sync.first_items(p_names -> 'empty'),
    'other_extensions', to_jsonb(image_sync.first_names(nullif(v_pictures || image_sync.texts(p_names -> 'other'), '{}'))),
    'moved', (
      select jsonb_agg(p.file_name || ' → ' || n.name order by n.place)
      from jsonb_array_elements_text(image_sync.first_items(p_names -> 'come')) with ordinality as n (name, place)
      cross join lateral image_sync.compare_names(p_run.bucket_id, array[n.name], now(), '', p_settings.extensions, p_settings.exclude) as c
      join public.part_images p on p.object_id = c.object_id
      cross join lateral image_sync.destination_of(p.bucket_id, p.file_name, p.object_id)
    ),
    'away', (
      select jsonb_build_object('count', jsonb_array_length(p_names -> 'moved_away'), 'files', jsonb_agg(jsonb_build_object('name', w.file_name, 'bucket', w.bucket_id, 'to', w.name) order by w.file_name collate "C"))
      from image_sync.places_of(p_run.bucket_id, image_sync.texts(image_sync.first_items(p_names -> 'moved_away'))) as w
      having count(*) > 0
    )
  ));
  return v_look;
end;
$$;

comment on function image_sync.add_samples(image_sync.runs, image_sync.settings, text, image_sync.look, jsonb) is
  'A look with samples of the names in each state, and with what other names decide: part numbers that have to be unique and are taken, and those that several files have.';

create or replace function image_sync.texts(p_names jsonb)
returns text[] language sql immutable set search_path = '' as $$
  select coalesce(array_agg(n.name order by n.place), '{}')
  from jsonb_array_elements_text(p_names) with ordinality as n (name, place)
$$;

comment on function image_sync.texts(jsonb) is 'A JSON array of texts; empty for null.';

-- Whichever side has more names ends a range, so that one of records without objects is bounded too.
create or replace function image_sync.range_end(p_bucket_id text, p_from text, p_size integer)
returns text language plpgsql
stable set search_path = '' set enable_seqscan = 'off' set enable_bitmapscan = 'off' set enable_sort = 'off' as $$
begin
  return least(
    (
      -- Of the table itself: its index alone is read.
      select o.name collate "C"
      from storage.objects o
      where o.bucket_id = p_bucket_id and o.name collate "C" >= p_from
      order by o.name collate "C"
      offset p_size - 1
      limit 1
    ),
    (
      select r.file_name collate "C"
      from public.part_images r
      where r.bucket_id = p_bucket_id and r.file_name collate "C" >= p_from
      order by r.file_name collate "C"
      offset p_size - 1
      limit 1
    )
  );
end;
$$;

comment on function image_sync.range_end(text, text, integer) is 'The last key of a range of at most so many objects and so many records that begins with p_from; null where the bucket ends before.';
