-- set
-- Files and records as a person looks through them: a page at a time, by name, in one state. Every page costs the same wherever it
-- begins and however rare what is looked for: it reads a bounded number of names, and where nothing was found it says where to go on.

-- The files and records of the keys from p_from to p_to, both included, that are in a state.
--   items     at most p_limit of them
--   last_key  how far was read; null: to the end
create or replace function image_sync.list_range(
  p_settings image_sync.settings, p_state text, p_from text, p_to text, p_size integer, p_limit integer, p_urls boolean,
  out items jsonb, out last_key text
)
language plpgsql stable set search_path = '' as $$
declare
  v_url_base constant text := image_sync.url_base(p_settings);
  v_renew_at constant timestamptz := now() + p_settings.renew_before;
  v_end constant text := image_sync.range_end(p_settings.bucket_id, p_from, p_size);
  v_is_end constant boolean := coalesce(v_end collate "C" >= p_to, true);
begin
  select
    coalesce(jsonb_agg(jsonb_strip_nulls(jsonb_build_object(
      'file_name', f.name,
      'part_number', f.part_number,
      'state', case when f.state = 'moved_away' then 'moved' else f.state end,
      'bytes', f.bytes,
      'usable_until', f.usable_until,
      'url', case when p_urls and f.usable_until is not null then f.signed_url end
    )) order by f.name collate "C"), '[]'),
    case when count(*) = p_limit then max(f.name collate "C") when not v_is_end then v_end end
  into items, last_key
  from (
    select c.*
    from image_sync.compare_range(p_settings.bucket_id, p_from, case when v_is_end then p_to else v_end end, v_renew_at, v_url_base, p_settings.extensions, p_settings.exclude) as c
    where p_state in ('all', c.state)
    order by c.name collate "C" limit p_limit
  ) as f;
end;
$$;

comment on function image_sync.list_range(image_sync.settings, text, text, text, integer, integer, boolean) is
  'At most p_limit files and records of a range of keys that are in a state, of p_size read from either side: items as image_sync_records returns them, and how far was read (null: to the end).';

-- The same of certain names.
create or replace function image_sync.list_names(p_settings image_sync.settings, p_state text, p_names text[], p_urls boolean)
returns jsonb language plpgsql stable set search_path = '' as $$
begin
  return (
    select coalesce(jsonb_agg(item.value order by n.place), '[]')
    from unnest(p_names) with ordinality as n (name, place)
    cross join lateral image_sync.list_range(p_settings, p_state, n.name, n.name, 1, 1, p_urls) as listed
    cross join lateral jsonb_array_elements(listed.items) as item
  );
end;
$$;

comment on function image_sync.list_names(image_sync.settings, text, text[], boolean) is 'What image_sync_records says of these names, in their order; without those that are in another state.';

-- Where to look for what is in a state: the chunks of the newest run that passed the bucket say in which ranges it was. Null where
-- the bucket is so small that all of it is looked at, or where no chunk is left.
create or replace function image_sync.guide_of(p_bucket_id text)
returns image_sync.runs language plpgsql stable set search_path = '' as $$
declare
  v_run image_sync.runs;
begin
  select r.*
  into v_run
  from image_sync.runs r
  where r.bucket_id = p_bucket_id
    and r.mode in ('sync', 'analyze', 'verify')
    and r.outcome in ('succeeded', 'partial')
    and exists (select from image_sync.chunks c where c.run_id = r.id)
  order by r.finished_at desc limit 1;
  if (v_run.summary #>> '{totals,listed}')::bigint + (v_run.summary #>> '{totals,orphaned}')::bigint <= 5000 then
    return null;
  end if;
  return v_run;
end;
$$;

comment on function image_sync.guide_of(text) is 'The newest run whose chunks say in which ranges of a large bucket something is to be found; null where all of it can be looked at.';

-- Ranges behind a key that hold something in a state, as a run's chunks noted it.
create or replace function image_sync.ranges_of(p_run image_sync.runs, p_settings image_sync.settings, p_state text, p_after text, p_limit integer)
returns table (from_key text, low text, to_key text) language plpgsql stable set search_path = '' as $$
begin
  return query
  select c.from_key, n.low, n.high
  from image_sync.chunks c
  -- Of few, all are named.
  cross join lateral (
    select case p_state
      when 'missing' then c.facts -> 'missing'
      when 'orphaned' then c.facts -> 'orphaned'
      when 'excluded' then c.facts -> 'excluded'
      when 'empty' then c.facts -> 'empty_files'
      when 'other' then c.facts -> 'other_extensions'
    end as names
  ) as s
  cross join lateral (
    select m.name, m.name
    from jsonb_array_elements_text(s.names) as m (name)
    where jsonb_array_length(s.names) < 20 and m.name collate "C" > p_after
    union all
    select '', coalesce(c.to_key, image_sync.last_key())
    where coalesce(jsonb_array_length(s.names) >= 20, true)
  ) as n (low, high)
  where c.run_id = p_run.id
    and c.from_key is not null
    and coalesce(c.to_key collate "C" > p_after, true)
    and case p_state
      when 'missing' then c.ledger ?| '{missing,collided,vanished,unmoved}'
      when 'unsigned' then image_sync.count_of(c.ledger, 'records') > image_sync.count_of(c.ledger, 'records_signed')
      when 'expired' then c.ledger ? 'records_expired' or (c.facts ->> 'soonest_expiry')::timestamptz <= now()
      when 'expiring' then (c.facts ->> 'soonest_expiry')::timestamptz < now() + p_settings.renew_before
      when 'orphaned' then c.ledger ? 'orphaned'
      when 'excluded' then c.ledger ? 'excluded'
      when 'empty' then c.ledger ? 'empty_files'
      when 'other' then image_sync.count_of(c.ledger, 'not_images') > image_sync.count_of(c.ledger, 'excluded') + image_sync.count_of(c.ledger, 'empty_files')
      when 'several' then c.ledger ? 'several_files'
      else true
    end
  order by c.from_key collate "C", n.low collate "C" limit p_limit;
end;
$$;

comment on function image_sync.ranges_of(image_sync.runs, image_sync.settings, text, text, integer) is 'The ranges behind a key in which the run found something in this state, from low on.';

-- A page of what is in a state. For 25 ms at most: what was read by then is the page, and the next one goes on behind it.
create or replace function image_sync.list_state(
  p_settings image_sync.settings, p_state text, p_search text, p_after text, p_limit integer, p_urls boolean,
  out items jsonb, out next text, out as_of timestamptz
)
language plpgsql stable set search_path = '' as $$
declare
  v_until constant timestamptz := clock_timestamp() + interval '25 milliseconds';
  v_guide constant image_sync.runs := case when p_state <> 'all' and p_search = '' then image_sync.guide_of(p_settings.bucket_id) end;
  v_size constant integer := case when p_state = 'all' then p_limit else 1000 end;
  v_from text;
  v_cursor text := p_after;
  v_range record;
  v_listed record;
begin
  items := '[]';
  as_of := v_guide.finished_at;
  for v_range in
    select r.from_key, r.low, r.to_key
    from image_sync.ranges_of(v_guide, p_settings, p_state, p_after, 20) r
    where v_guide.id is not null
    union all
    select p_after, p_search, p_search || image_sync.last_key()
    where v_guide.id is null
  loop
    v_cursor := greatest(v_cursor collate "C", v_range.from_key);
    loop
      -- As a variable: an argument in byte order would hand on that order to the bucket's id, and no index has that.
      v_from := greatest(image_sync.behind(v_cursor) collate "C", v_range.low);
      v_listed := image_sync.list_range(
        p_settings, p_state, v_from, v_range.to_key,
        v_size, p_limit - jsonb_array_length(items), p_urls
      );
      items := items || v_listed.items;
      v_cursor := coalesce(v_listed.last_key, v_range.to_key);
      next := v_cursor;
      if jsonb_array_length(items) = p_limit or clock_timestamp() > v_until then
        next := case when v_listed.last_key is null and (v_guide.id is null or v_range.to_key = image_sync.last_key()) then null else v_cursor end;
        return;
      end if;
      exit when v_listed.last_key is null;
    end loop;
  end loop;
  -- Ranges that were not looked at lie behind the last of twenty.
  if v_guide.id is null or not exists (
    select
    from image_sync.ranges_of(v_guide, p_settings, p_state, v_cursor, 1) r
    where greatest(r.from_key collate "C", r.low) >= v_cursor
  ) then
    next := null;
  end if;
end;
$$;

comment on function image_sync.list_state(image_sync.settings, text, text, text, integer, boolean) is
  'A page of image_sync_records: the items, where the next page begins (null: nowhere), and when the run that said where to look was finished.';

-- Files of a look-up key, with the pictures beside them that are left out by their extension; null where that is one file. A bounded
-- number of each.
create or replace function image_sync.files_of_twins(p_bucket_id text, p_key text)
returns text[] language plpgsql stable set search_path = '' as $$
begin
  return (
    with files as (
      select u.name
      from image_sync.files_of_key(p_bucket_id, p_key) u
    )
    select case when count(*) > 1 then (array_agg(f.name order by f.name collate "C"))[1:20] end
    from (
      select files.name
      from files
      union
      select b.name
      from files
      cross join lateral image_sync.files_beside(p_bucket_id, image_sync.stem_of(files.name)) as b
    ) as f
  );
end;
$$;

comment on function image_sync.files_of_twins(text, text) is 'Up to 20 files that whoever looks up this key may mean: those of its records and the pictures beside them; null where there is one.';

-- Files whose part number others have as well, by part number: p_after is a look-up key.
create or replace function image_sync.list_twins(
  p_settings image_sync.settings, p_guide image_sync.runs, p_until timestamptz, p_after text, p_limit integer, p_urls boolean,
  out items jsonb, out next text
)
language plpgsql stable set search_path = '' as $$
declare
  v_page constant integer := 2000;
  v_cursor text := p_after;
  v_keys text[];
  v_found record;
  v_key text;
begin
  items := '[]';
  if p_guide.twins = 0 then
    return;
  end if;
  if v_cursor = '' then
    -- Just before the first that the run found.
    v_cursor := coalesce(left(p_guide.twin_keys[1], -1), p_settings.bucket_id || '/');
  end if;
  loop
    select
      count(*) = v_page as is_full,
      max(k.key collate "C") as last_key,
      max(k.before collate "C") filter (where k.before <> k.key) as key_before,
      array_agg(distinct k.key collate "C") filter (where k.before = k.key) as twins
    into v_found
    from (
      select page.key, lag(page.key) over (order by page.key collate "C") as before
      from (
        select r.look_up_key as key
        from image_sync.records r
        where r.look_up_key collate "C" > v_cursor and r.look_up_key collate "C" < p_settings.bucket_id || '0'
        order by r.look_up_key collate "C" limit v_page
      ) as page
    ) as k;
    v_keys := array(
      select t.key
      from unnest(v_found.twins) as t (key)
      order by t.key collate "C"
    );
    foreach v_key in array v_keys loop
      v_cursor := v_key;
      items := items || image_sync.list_names(p_settings, 'all', image_sync.files_of_twins(p_settings.bucket_id, v_key), p_urls);
      if jsonb_array_length(items) >= p_limit or clock_timestamp() > p_until then
        next := v_cursor;
        return;
      end if;
    end loop;
    exit when not v_found.is_full;
    v_cursor := case when v_found.last_key <> all (v_keys) then v_found.key_before else v_found.last_key end;
    if clock_timestamp() > p_until then
      next := v_cursor;
      return;
    end if;
  end loop;
end;
$$;

comment on function image_sync.list_twins(image_sync.settings, image_sync.runs, timestamptz, text, integer, boolean) is
  'A page of the files whose part number other records have as well, as a look-up in a spreadsheet compares it, and of the pictures beside them; next is a look-up key.';

-- The image of which a picture that is left out by its extension is another file, with all such pictures beside it; null where there
-- is none, where list_twins has them, and for all of the pictures but the first, which stands for them.
create or replace function image_sync.files_with(p_settings image_sync.settings, p_picture text)
returns text[] language plpgsql stable set search_path = '' as $$
declare
  v_beside record;
begin
  select
    array_agg(b.name order by b.name collate "C") as names,
    min(b.name collate "C") filter (where b.extension <> all (p_settings.extensions)) as picture,
    min(b.name collate "C") filter (where b.extension = any (p_settings.extensions)) as image
  into v_beside
  from image_sync.files_beside(p_settings.bucket_id, image_sync.stem_of(p_picture)) b;
  if v_beside.image is null or v_beside.picture <> p_picture or exists (
    select
    from image_sync.records r
    where r.bucket_id = p_settings.bucket_id
      and r.file_name collate "C" = v_beside.image
      and (
        select count(*)
        from image_sync.files_of_key(p_settings.bucket_id, r.look_up_key)
      ) > 1
  ) then
    return null;
  end if;
  return v_beside.names[1:20];
end;
$$;

comment on function image_sync.files_with(image_sync.settings, text) is
  'An image and the pictures of its name that are left out by their extension, by the first of those; null where there is no such image, or records tell of it.';

-- Images beside which there is a picture that is left out by its extension: no record knows it. By name; p_after is the name of a
-- file. Of a large bucket the chunks say where there are such.
create or replace function image_sync.list_beside(
  p_settings image_sync.settings, p_guide image_sync.runs, p_until timestamptz, p_after text, p_limit integer, p_urls boolean,
  out items jsonb, out next text
)
language plpgsql stable set search_path = '' as $$
declare
  v_page constant integer := 1000;
  v_ranges constant integer := 20;
  v_seen integer := 0;
  v_cursor text := p_after;
  v_range record;
  v_read record;
  v_picture text;
begin
  items := '[]';
  for v_range in
    select r.from_key, r.to_key
    from image_sync.ranges_of(p_guide, p_settings, 'several', p_after, v_ranges) r
    where p_guide.id is not null
    union all
    select p_after, null
    where p_guide.id is null
  loop
    v_seen := v_seen + 1;
    v_cursor := greatest(v_cursor collate "C", v_range.from_key);
    loop
      select
        count(*) = v_page as is_full,
        max(n.name collate "C") as last_key,
        array_agg(n.name order by n.name collate "C") filter (
          where n.extension = any ('{jpg,jpeg,png,gif,webp,avif,bmp,tif,tiff,heic}')
            and n.extension <> all (p_settings.extensions)
            and not n.name like any (p_settings.exclude)
        ) as pictures
      into v_read
      from (
        select o.name, o.extension
        from image_sync.objects o
        where o.bucket_id = p_settings.bucket_id
          and o.name collate "C" > v_cursor
          and o.name collate "C" <= coalesce(v_range.to_key, image_sync.last_key())
        order by o.name collate "C" limit v_page
      ) as n;
      foreach v_picture in array coalesce(v_read.pictures, '{}') loop
        v_cursor := v_picture;
        items := items || image_sync.list_names(p_settings, 'all', image_sync.files_with(p_settings, v_picture), p_urls);
        if jsonb_array_length(items) >= p_limit or clock_timestamp() > p_until then
          next := v_cursor;
          return;
        end if;
      end loop;
      exit when not v_read.is_full;
      v_cursor := v_read.last_key;
      if clock_timestamp() > p_until then
        next := v_cursor;
        return;
      end if;
    end loop;
    v_cursor := coalesce(v_range.to_key, v_cursor);
  end loop;
  -- There may be more behind the last of twenty.
  next := case when v_seen = v_ranges then v_cursor end;
end;
$$;

comment on function image_sync.list_beside(image_sync.settings, image_sync.runs, timestamptz, text, integer, boolean) is
  'A page of the images beside which a picture of the same name is left out by its extension, each with those; next is the name of a file.';

-- Files of which a look-up finds one of several: first those that records tell of, then those that only names do. For 25 ms at most.
-- p_after is a look-up key, or, where it begins with a slash, behind that the name of a file: no look-up key begins so.
create or replace function image_sync.list_several(
  p_settings image_sync.settings, p_after text, p_limit integer, p_urls boolean,
  out items jsonb, out next text, out as_of timestamptz
)
language plpgsql stable set search_path = '' as $$
declare
  v_until constant timestamptz := clock_timestamp() + interval '25 milliseconds';
  v_guide constant image_sync.runs := image_sync.guide_of(p_settings.bucket_id);
  v_page record;
begin
  items := '[]';
  as_of := v_guide.finished_at;
  if not starts_with(p_after, '/') then
    v_page := image_sync.list_twins(p_settings, v_guide, v_until, p_after, p_limit, p_urls);
    items := v_page.items;
    next := v_page.next;
    if next is not null then
      return;
    end if;
  end if;
  v_page := image_sync.list_beside(
    p_settings, v_guide, v_until, case when starts_with(p_after, '/') then substr(p_after, 2) else '' end,
    greatest(p_limit - jsonb_array_length(items), 1), p_urls
  );
  items := items || v_page.items;
  next := '/' || v_page.next;
end;
$$;

comment on function image_sync.list_several(image_sync.settings, text, integer, boolean) is
  'A page of the files whose part number other files have as well: by their records, as a look-up in a spreadsheet compares it, and then by their names beside pictures that are left out.';

-- Files that the newest verify saw no image of.
create or replace function image_sync.list_broken(
  p_settings image_sync.settings, p_after text, p_limit integer, p_urls boolean,
  out items jsonb, out next text, out as_of timestamptz
)
language plpgsql stable set search_path = '' as $$
declare
  v_run image_sync.runs;
begin
  select r.*
  into v_run
  from image_sync.runs r
  where r.bucket_id = p_settings.bucket_id and r.mode = 'verify' and r.finished_at is not null
  order by r.started_at desc limit 1;
  as_of := v_run.finished_at;
  with ranges as (
    select c.problems
    from image_sync.chunks c
    where c.run_id = v_run.id and c.ledger ? 'broken' and coalesce(c.to_key collate "C" > p_after, true)
    order by c.from_key collate "C" limit p_limit + 1
  ), named as (
    select p.problem ->> 'name' as name, p.problem ->> 'code' as code, p.problem ->> 'detail' as detail
    from ranges
    cross join lateral jsonb_array_elements(ranges.problems) as p (problem)
    where p.problem ->> 'code' = any ('{file_lost,file_gone,not_an_image,wrong_content_type,url_rejected,unreachable}')
      and (p.problem ->> 'name') collate "C" > p_after
    order by (p.problem ->> 'name') collate "C" limit p_limit
  )
  select
    coalesce(jsonb_agg(item.value || jsonb_strip_nulls(jsonb_build_object('code', n.code, 'detail', n.detail)) order by n.name collate "C"), '[]'),
    case when count(*) = p_limit then max(n.name collate "C") end
  into items, next
  from named n
  cross join lateral jsonb_array_elements(image_sync.list_names(p_settings, 'all', array[n.name], p_urls)) as item;
end;
$$;

comment on function image_sync.list_broken(image_sync.settings, text, integer, boolean) is
  'A page of the files whose URL showed the newest verify no image, each with code and detail.';

-- Files and records of a bucket by name.
--   p_state   all, or one of missing, unsigned, expired, expiring, orphaned, excluded, other, empty, working; several: part numbers
--             that several files have; broken: what the newest verify saw no image of
--   p_search  only names that begin so, and records whose part number does, in any case
--   p_after   the next of the page before
--   p_urls    with the URLs that work: secrets, for a page that shows the pictures
-- Returns {"records": [{"file_name", "part_number", "state", "bytes", "usable_until", "url", "code", "detail"}], "next", "as_of",
-- "url_base"}. A page may be short, or empty, although there is a next one: it says how far was looked.
create or replace function public.image_sync_records(
  p_bucket text,
  p_state text default 'all',
  p_search text default '',
  p_after text default '',
  p_limit integer default 50,
  p_urls boolean default false
)
returns jsonb
language plpgsql
stable
set search_path = ''
set lock_timeout = '1s'
-- As image_sync_advance reads a range, and for the same reason.
set enable_seqscan = 'off'
set enable_bitmapscan = 'off'
set enable_sort = 'off'
set enable_hashjoin = 'off'
as $$
declare
  v_limit constant integer := least(greatest(coalesce(p_limit, 50), 1), 100);
  v_settings image_sync.settings;
  v_page record;
  v_items jsonb;
  v_names text[];
begin
  select s.*
  into v_settings
  from image_sync.settings s
  where s.bucket_id = p_bucket;
  if v_settings.bucket_id is null then
    return image_sync.problem(
      404, 'unknown_bucket', 'The bucket has no settings',
      format('Cannot list the records of bucket %s: image_sync.settings has no row for it.', p_bucket)
    );
  end if;
  if p_state = 'several' then
    v_page := image_sync.list_several(v_settings, p_after, v_limit, p_urls);
  elsif p_state = 'broken' then
    v_page := image_sync.list_broken(v_settings, p_after, v_limit, p_urls);
  else
    v_page := image_sync.list_state(v_settings, p_state, p_search, p_after, v_limit, p_urls);
  end if;
  v_items := v_page.items;
  if p_search <> '' and p_after = '' and p_state not in ('several', 'broken') then
    -- Part numbers that begin so under names that do not: in a folder, or changed by hand. They stand at the end of the first page.
    v_names := array(
      select k.file_name
      from (
        select r.file_name
        from image_sync.records r
        where r.look_up_key collate "C" >= p_bucket || '/' || lower(p_search)
          and r.look_up_key collate "C" < p_bucket || '/' || lower(p_search) || U&'\+10FFFF'
        order by r.look_up_key collate "C" limit 1000
      ) as k
      where not starts_with(k.file_name, p_search)
      limit v_limit
    );
    v_items := v_items || image_sync.list_names(v_settings, p_state, v_names, p_urls);
  end if;
  return jsonb_build_object(
    'records', v_items,
    'next', v_page.next,
    'as_of', v_page.as_of,
    'url_base', case when p_urls then image_sync.url_base(v_settings) end
  );
end;
$$;

comment on function public.image_sync_records(text, text, text, text, integer, boolean) is
  'A page of a bucket''s files and records by state and search, in byte order, 1 to 100 of them; URLs only where they are asked for. Problem: unknown_bucket (404).';
