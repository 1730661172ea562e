-- step 2.0.0
-- A name with what is to stand in its record.
create type image_sync.item as (name text, url text, expires_at timestamptz, object_id uuid);

comment on type image_sync.item is 'A record to be written: its file name and, where a kind of write has use for them, its URL, when that dies, and the object, where no record is expected at the name.';

-- What became of items.
create type image_sync.write as (written text[], inserted text[], held text[], refused jsonb);

comment on type image_sync.write is 'What became of records that were to be written: the names of those that really were, of these those that are new, of those that somebody else holds, and [{"name", "sqlstate", "is_taken", "words"}] for each that the table refuses. A name that is in none of them was left out, by a trigger or by the statement itself.';

-- set
-- The one way in which rows of public.part_images are written, whatever the kind.

-- Whether an error is the row's: a constraint, a trigger or a type of the table's owner says no to it. What the server lacks (disk,
-- memory, time), a connection that ends, a right that is missing for all rows alike, is none: it must not be counted against a file.
-- Classes of SQLSTATE: Postgres' manual, appendix A.
create or replace function image_sync.is_refusal(p_sqlstate text)
returns boolean language sql immutable set search_path = '' as $$
  select left(p_sqlstate, 2) not in ('08', '25', '40', '53', '57', '58', 'XX') and p_sqlstate <> '42501'
$$;

comment on function image_sync.is_refusal(text) is 'Whether an error of this SQLSTATE is a refusal of the row that was written, rather than trouble of the server or a missing right.';

-- Whether an error says that somebody else holds what a statement needs.
create or replace function image_sync.is_held(p_sqlstate text)
returns boolean language sql immutable set search_path = '' as $$
  select p_sqlstate in ('55P03', '40P01')
$$;

comment on function image_sync.is_held(text) is 'Whether an error of this SQLSTATE is a lock that was not to be had: lock_not_available or deadlock_detected.';

-- What a table may say at the end of a transaction (a deferred constraint, a constraint trigger) would end a whole call with all of
-- its rows, and nobody could tell which row it was about. So it is asked after each statement that writes, where what it refuses
-- costs itself alone; and it is deferred until then, as its owner may count on.
create or replace function image_sync.check_deferred()
returns void language plpgsql set search_path = '' as $$
begin
  set constraints all immediate;
  set constraints all deferred;
end;
$$;

comment on function image_sync.check_deferred() is 'Lets constraints and triggers that are deferred to the end of the transaction say now what they would say then.';

-- Where somebody holds the whole table (create index, lock table), none of its rows is held by itself: nothing is left out, named or
-- given up for it. Called after a lock was not to be had.
create or replace function image_sync.need_table()
returns void language plpgsql set search_path = '' as $$
begin
  lock table public.part_images in row exclusive mode;
end;
$$;

comment on function image_sync.need_table() is 'Raises lock_not_available where somebody else holds public.part_images as a whole, so that the attempt is made again later.';

-- A record without a URL has null there, or the empty text where its owner forbids null: both are none.
create or replace function image_sync.no_url()
returns text language sql stable set search_path = '' as $$
  select case when a.attnotnull then '' end
  from pg_catalog.pg_attribute a
  where a.attrelid = 'public.part_images'::regclass and a.attname = 'signed_url'
$$;

comment on function image_sync.no_url() is 'What signed_url holds where there is no URL: null, or the empty text where null is forbidden.';

-- A row that is tried by itself waits 20 ms for a lock, and hardly at all once a second has gone into waiting: a thousand rows that
-- somebody holds must not add up to the statement timeout.
create or replace function image_sync.row_patience(p_since timestamptz)
returns text language sql volatile set search_path = '' as $$
  select case when clock_timestamp() < p_since + interval '1 second' then '20ms' else '1ms' end
$$;

comment on function image_sync.row_patience(timestamptz) is 'lock_timeout for a single row of many, tried one by one since p_since.';

-- A problem of one item, as runs show it.
create or replace function image_sync.item_problem(p_name text, p_code text, p_words text default null)
returns jsonb language sql immutable set search_path = '' as $$
  select jsonb_build_object(
    'name', p_name,
    'code', p_code,
    'detail', coalesce(image_sync.redact(p_words), case p_code
      when 'row_locked' then 'Somebody else holds it locked: the next run settles it'
    end)
  )
$$;

comment on function image_sync.item_problem(text, text, text) is 'A named item that failed: name, code, and what was said of it, redacted.';

-- A chunk names 20 of its items at most: the counts say how many there are.
create or replace function image_sync.first_items(p_items jsonb)
returns jsonb language sql immutable set search_path = '' as $$
  select jsonb_path_query_array(p_items, '$[0 to 19]')
$$;

comment on function image_sync.first_items(jsonb) is 'The first 20 elements of an array.';

-- What went wrong for a chunk or a run, as it is stored: whoever says so, and whatever they quote.
create or replace function image_sync.clean_fault(p_error jsonb)
returns jsonb language sql immutable set search_path = '' as $$
  select case
    when p_error is not null then jsonb_build_object(
      'code', coalesce(left(p_error ->> 'code', 100), 'unknown'),
      'title', coalesce(image_sync.redact(p_error ->> 'title'), 'Something went wrong'),
      'detail', coalesce(image_sync.redact(p_error ->> 'detail'), '')
    )
  end
$$;

comment on function image_sync.clean_fault(jsonb) is 'An error with code, title and detail alone, its words redacted; null for null.';

-- Whose records somebody else holds: asked without waiting. The others are locked from then on.
create or replace function image_sync.held_names(p_bucket_id text, p_names text[])
returns text[] language sql set search_path = '' as $$
  with free as materialized (
    select p.file_name
    from unnest(p_names) as n (name)
    cross join lateral (
      select q.file_name
      from public.part_images q
      where q.bucket_id = p_bucket_id and q.file_name collate "C" >= n.name and q.file_name collate "C" <= n.name
      order by q.file_name collate "C" limit 1
      for update skip locked
    ) as p
  )
  select coalesce(array_agg(p.file_name), '{}')
  from unnest(p_names) as n (name)
  cross join lateral (
    select q.file_name
    from public.part_images q
    where q.bucket_id = p_bucket_id and q.file_name collate "C" >= n.name and q.file_name collate "C" <= n.name
    order by q.file_name collate "C" limit 1
  ) as p
  where p.file_name not in (
    select f.file_name
    from free f
  );
$$;

comment on function image_sync.held_names(text, text[]) is 'Those of these records of the bucket that somebody else holds; locks the others.';

-- The ladder that every write goes up: together; where somebody holds rows, without those; where one is refused, by halves, down to the
-- row that it is about. A thousand rows with a bad one cost about twice a thousand good ones.
-- Each kind is one statement over any number of items that returns the names which were really written: a trigger may return null.
create or replace function image_sync.write_rows(p_kind text, p_run image_sync.runs, p_items image_sync.item[], p_since timestamptz default null)
returns image_sync.write
language plpgsql
set search_path = ''
-- A row is looked up by its key, whatever the statistics say of a table that is only being filled.
set enable_seqscan = 'off'
set enable_bitmapscan = 'off'
set enable_hashjoin = 'off'
set enable_mergejoin = 'off'
-- Given back when the function ends: halves set it for themselves.
set lock_timeout = '400ms'
as $$
declare
  v_size constant integer := cardinality(p_items);
  v_middle constant integer := v_size / 2;
  v_write image_sync.write := ('{}', '{}', '{}', '[]')::image_sync.write;
  v_half image_sync.write;
  v_held text[] := '{}'::text[];
  v_schema text;
  v_table text;
begin
  if v_size = 0 then
    return v_write;
  end if;
  perform set_config('lock_timeout', image_sync.row_patience(p_since), true)
  where p_since is not null;
  begin
    if p_kind = 'store' then
      v_write := image_sync.write_store(p_run, p_items);
    else
      v_write.written := case p_kind
        when 'archive' then image_sync.write_archive(p_run, p_items)
        when 'restore' then image_sync.write_restore(p_run, p_items)
      end;
    end if;
    perform image_sync.check_deferred();
    return v_write;
  exception
    when others then
      get stacked diagnostics v_schema = schema_name, v_table = table_name;
      -- A right that is missing may be one that a trigger of the table's owner lacks for this row.
      if not image_sync.is_held(sqlstate) and not image_sync.is_refusal(sqlstate) and sqlstate <> '42501' then
        raise;
      elsif p_kind = 'store' and exists (select from unnest(p_items) as i where i.object_id is not null) then
        -- Somebody else inserted one meanwhile, or one is refused: now each is looked up.
        return image_sync.write_rows(p_kind, p_run, array(select (i.name, i.url, i.expires_at, null)::image_sync.item from unnest(p_items) as i), p_since);
      elsif image_sync.is_held(sqlstate) and p_since is null then
        perform image_sync.need_table();
        v_held := image_sync.held_names(p_run.bucket_id, array(
          select i.name
          from unnest(p_items) as i
        ));
      elsif image_sync.is_held(sqlstate) and v_size = 1 then
        return ('{}', '{}', array[p_items[1].name], '[]')::image_sync.write;
      elsif v_size = 1 then
        return ('{}', '{}', '{}', jsonb_build_array(jsonb_build_object(
          'name', p_items[1].name, 'sqlstate', sqlstate, 'is_taken', sqlstate in ('23505', '23P01') and v_schema = 'public' and v_table = 'part_images', 'words', sqlerrm
        )))::image_sync.write;
      end if;
  end;

  v_write := ('{}', '{}', v_held, '[]')::image_sync.write;
  for v_half in
    select w.*
    from (values
      (case when v_held <> '{}' then array(select i from unnest(p_items) as i where i.name <> all (v_held)) else p_items[:v_middle] end),
      (case when v_held <> '{}' then '{}' else p_items[v_middle + 1:] end)
    ) as part (items)
    cross join lateral image_sync.write_rows(p_kind, p_run, part.items, coalesce(p_since, clock_timestamp())) as w
  loop
    v_write := (v_write.written || v_half.written, v_write.inserted || v_half.inserted, v_write.held || v_half.held, v_write.refused || v_half.refused)::image_sync.write;
  end loop;
  return v_write;
end;
$$;

comment on function image_sync.write_rows(text, image_sync.runs, image_sync.item[], timestamptz) is
  'Writes records of a kind (store, archive, restore) for a run: all of them, or as many as nobody holds and the table takes. p_since: when the first attempt failed. Raises what is no matter of a row.';

-- Inserts the records that are missing, with or without a URL, and stores the URLs of those that are there. Whatever it writes knows its
-- object from then on. A file that went away is left out, and one whose record follows it from elsewhere.
--   url  null: what stands there stays; empty: none
create or replace function image_sync.write_store(p_run image_sync.runs, p_items image_sync.item[])
returns image_sync.write language plpgsql set search_path = '' as $$
declare
  v_names constant text[] := array(select i.name from unnest(p_items) as i);
  v_urls constant text[] := array(select i.url from unnest(p_items) as i);
  v_expires constant timestamptz[] := array(select i.expires_at from unnest(p_items) as i);
  v_no_url constant text := image_sync.no_url();
  v_write image_sync.write := ('{}', '{}', '{}', '[]')::image_sync.write;
begin
  -- New files: what was signed a moment ago is there, and nobody had a record of it.
  if not exists (select from unnest(p_items) as i where i.object_id is null or coalesce(i.url, '') = '') then
    with added as (
      insert into public.part_images (bucket_id, file_name, part_number, object_id, object_name, signed_url, signed_url_expires_at)
      select p_run.bucket_id, i.name, i.part_number, i.object_id, i.name, i.url, i.expires_at
      from unnest(v_names, v_urls, v_expires, array(select i.object_id from unnest(p_items) as i), image_sync.part_numbers_of(v_names)) as i (name, url, expires_at, object_id, part_number)
      returning file_name
    )
    select array_agg(a.file_name), array_agg(a.file_name)
    into v_write.written, v_write.inserted
    from added a;
    v_write.written := coalesce(v_write.written, '{}');
    v_write.inserted := coalesce(v_write.inserted, '{}');
    return v_write;
  end if;
  -- Locked before they are looked at: so their places stay, by which they are updated. A comparison by name reads the whole bucket for
  -- each of them where the statistics do not know it yet.
  perform
  from unnest(v_names) as n (name)
  cross join lateral (
    select
    from public.part_images q
    where q.bucket_id = p_run.bucket_id and q.file_name collate "C" >= n.name and q.file_name collate "C" <= n.name
    order by q.file_name collate "C" limit 1
    for no key update
  ) as r;
  with wanted as materialized (
    select i.name, i.url, i.expires_at, i.part_number, o.id as object_id, r.file_name is not null as is_record, r.ctid as record, r.object_id as record_of, r.signed_url,
      -- It was to follow its own file, and could not yet.
      case when r.object_id <> o.id then image_sync.is_leaving(p_run.bucket_id, r.file_name, r.object_id) else false end as is_leaving
    from unnest(v_names, v_urls, v_expires, image_sync.part_numbers_of(v_names)) as i (name, url, expires_at, part_number)
    -- A range and an order that only the index of names gives: one look for each.
    cross join lateral (
      select x.id
      from image_sync.objects x
      where x.bucket_id = p_run.bucket_id and x.name collate "C" >= i.name and x.name collate "C" <= i.name
      order by x.name collate "C" limit 1
    ) as o
    left join lateral (
      select x.ctid, x.file_name, x.object_id, x.signed_url
      from public.part_images x
      where x.bucket_id = p_run.bucket_id and x.file_name collate "C" >= i.name and x.file_name collate "C" <= i.name
      order by x.file_name collate "C" limit 1
    ) as r
      on true
  ), added as (
    insert into public.part_images (bucket_id, file_name, part_number, object_id, object_name, signed_url, signed_url_expires_at)
    select p_run.bucket_id, w.name, w.part_number, w.object_id, w.name, coalesce(nullif(w.url, ''), v_no_url), w.expires_at
    from wanted w
    where not w.is_record
      and (
        select true
        from public.part_images m
        where m.object_id = w.object_id and image_sync.is_leaving(m.bucket_id, m.file_name, m.object_id)
        limit 1
      ) is null
    order by w.name collate "C"
    returning file_name
  ), updated as (
    update public.part_images p
    set
      signed_url = case when w.url is null then p.signed_url else coalesce(nullif(w.url, ''), v_no_url) end,
      signed_url_expires_at = case when w.url is null then p.signed_url_expires_at else w.expires_at end,
      object_id = case when w.is_leaving then p.object_id else w.object_id end,
      object_name = case when w.is_leaving then p.object_name else p.file_name end
    from wanted w
    where p.ctid = w.record
      and (w.url <> '' or w.url = '' and nullif(w.signed_url, '') is not null or w.record_of is distinct from w.object_id and w.is_leaving is not true)
    returning p.file_name, w.url is null or nullif(p.signed_url, '') is not distinct from nullif(w.url, '') as is_stored
  )
  select
    coalesce(array_agg(k.file_name) filter (where k.is_stored), '{}'),
    coalesce(array_agg(k.file_name) filter (where k.is_new), '{}')
  into v_write.written, v_write.inserted
  from (
    select a.file_name, true as is_stored, true as is_new
    from added a
    union all
    select u.file_name, u.is_stored, false
    from updated u
  ) as k;
  return v_write;
end;
$$;

comment on function image_sync.write_store(image_sync.runs, image_sync.item[]) is
  'Inserts or updates the records of files that are in the bucket now. Returns the names whose record is as it should be, and of these those that are new.';

-- Rows that a restore gives back as they were: a row's own text form, which keeps what JSON has no word for (hstore, the lower bound of an
-- array, a key that a json has twice), in a form that reads the same under any setting of the session.
create or replace function image_sync.row_text(p_row anyelement)
returns text language sql
stable set search_path = '' set datestyle = 'ISO, YMD' set intervalstyle = 'postgres' set extra_float_digits = 1 set lc_monetary = 'C' as $$
  select p_row::text
$$;

comment on function image_sync.row_text(anyelement) is 'The text form of a row, as image_sync.row_of reads it.';

create or replace function image_sync.column_names(p_table regclass)
returns text[] language sql stable set search_path = '' as $$
  select array_agg(a.attname::text order by a.attnum)
  from pg_catalog.pg_attribute a
  where a.attrelid = p_table and a.attnum > 0 and not a.attisdropped
$$;

comment on function image_sync.column_names(regclass) is 'The columns of a table, in the order of its text form.';

-- Columns may have come, gone or changed places since the text was made: it is read by their names.
create or replace function image_sync.row_of(p_text text, p_columns text[], p_like anyelement)
returns anyelement language plpgsql
stable set search_path = '' set datestyle = 'ISO, YMD' set intervalstyle = 'postgres' set lc_monetary = 'C' as $$
declare
  v_row p_like%type;
begin
  execute format('select (read.whole).* from (select %L::%s as whole offset 0) as read', (
    select '(' || string_agg(coalesce(f.value, ''), ',' order by now.place) || ')'
    from unnest(image_sync.column_names((
      select t.typrelid
      from pg_catalog.pg_type t
      where t.oid = pg_typeof(p_like)
    ))) with ordinality as now (name, place)
    left join unnest(p_columns) with ordinality as c (name, place)
      on c.name = now.name
    left join (
      -- A field is nothing, which is null; or in quotes, with quotes and backslashes twice; or has neither quote nor comma.
      select m.field[1] as value, m.place
      from regexp_matches(substr(p_text, 2, length(p_text) - 2) || ',', '("(?:[^"]|"")*"|[^",]*),', 'g') with ordinality as m (field, place)
    ) as f
      on f.place = c.place
  ), pg_typeof(p_like))
  into v_row;
  return v_row;
end;
$$;

comment on function image_sync.row_of(text, text[], anyelement) is 'The row of p_like''s type that image_sync.row_text wrote, of a table that had these columns; null in columns that it did not have.';
