-- step 1.0.0
-- A chunk after its missing records were inserted.
create type image_sync.insertion as (chunk image_sync.chunks, inserted text[], signed integer, held text[]);

comment on type image_sync.insertion is 'A chunk as it is after its missing records were inserted (not stored yet), their names, how many of them have a URL, and the names that somebody else held.';

-- set
-- Records that the table lacks.

-- Whether the table may refuse a record that has a file name of its own: by a constraint, a unique index, a trigger or a column of
-- its owner's. Ours has nothing of the kind.
create or replace function image_sync.may_refuse_records()
returns boolean
language plpgsql
stable
set search_path = ''
as $$
begin
  return
    exists (
      select
      from pg_catalog.pg_constraint c
      where c.conrelid = 'public.part_images'::regclass
        and c.contype not in ('p', 'u', 'n')
    )
    or exists (
      select
      from pg_catalog.pg_trigger t
      where t.tgrelid = 'public.part_images'::regclass
        and not t.tgisinternal
        -- On insert. Source: pg_trigger.h, TRIGGER_TYPE_INSERT.
        and t.tgtype & 4 = 4
        and t.tgenabled <> 'D'
    )
    or exists (
      select
      from pg_catalog.pg_index i
      where i.indrelid = 'public.part_images'::regclass
        and i.indisunique
        and i.indexrelid is distinct from to_regclass('public.part_images_bucket_id_file_name_key')
        -- A key of which every row has its own.
        and not exists (
          select
          from pg_catalog.pg_attribute a
          where a.attrelid = i.indrelid
            and a.attnum = i.indkey[0]
            and a.attname = 'id'
            and i.indnkeyatts = 1
        )
    )
    or exists (
      select
      from pg_catalog.pg_attribute a
      where a.attrelid = 'public.part_images'::regclass
        and a.attnum > 0
        and not a.attisdropped
        and a.attnotnull
        and not a.atthasdef
        and a.attidentity = ''
        and a.attname not in ('bucket_id', 'file_name', 'part_number')
    );
end;
$$;

comment on function image_sync.may_refuse_records() is
  'True where a constraint, unique index, trigger or column of the table''s owner may refuse a record. Then records are inserted when they are listed, so that what is refused is not signed every night.';

-- Whether an error is the row's: a constraint, a trigger or a type of the table's owner says no to it. What the server lacks (disk,
-- memory, time), a connection that ends, a right that is missing for all rows alike, is none: it must not be counted against a file.
-- Classes of SQLSTATE: Postgres' manual, appendix A.
create or replace function image_sync.is_refusal(p_sqlstate text)
returns boolean
language sql
immutable
set search_path = ''
as $$
  select left(p_sqlstate, 2) not in ('08', '25', '40', '53', '57', '58', 'XX') and p_sqlstate <> '42501'
$$;

comment on function image_sync.is_refusal(text) is 'Whether an error of this SQLSTATE is a refusal of the row that was written, rather than trouble of the server or a missing right.';

-- Whether an error says that somebody else holds what a statement needs.
create or replace function image_sync.is_held(p_sqlstate text)
returns boolean
language sql
immutable
set search_path = ''
as $$
  select p_sqlstate in ('55P03', '40P01')
$$;

comment on function image_sync.is_held(text) is 'Whether an error of this SQLSTATE is a lock that was not to be had: lock_not_available or deadlock_detected.';

-- What a table may say at the end of a transaction (a deferred constraint, a constraint trigger) would end a whole call with all of
-- its rows, and nobody could tell which row it was about. So it is asked after each statement that writes, where what it refuses
-- costs itself alone; and it is deferred until then, as its owner may count on.
create or replace function image_sync.check_deferred()
returns void
language plpgsql
set search_path = ''
as $$
begin
  set constraints all immediate;
  set constraints all deferred;
end;
$$;

comment on function image_sync.check_deferred() is 'Lets constraints and triggers that are deferred to the end of the transaction say now what they would say then.';

-- Where somebody holds the whole table (create index, lock table), none of its rows is held by itself: nothing is left out, named or
-- given up for it. Called after a lock was not to be had.
create or replace function image_sync.need_table()
returns void
language plpgsql
set search_path = ''
as $$
begin
  lock table public.part_images in row exclusive mode;
end;
$$;

comment on function image_sync.need_table() is 'Raises lock_not_available where somebody else holds public.part_images as a whole, so that the attempt is made again later.';

-- Whether an error says that the key of a record is taken: by a constraint of part_images itself, not by one of a table that a trigger
-- of its owner writes.
create or replace function image_sync.is_taken(p_sqlstate text, p_schema text, p_table text)
returns boolean
language sql
immutable
set search_path = ''
as $$
  select p_sqlstate in ('23505', '23P01') and p_schema = 'public' and p_table = 'part_images'
$$;

comment on function image_sync.is_taken(text, text, text) is 'Whether an error of this SQLSTATE and table is a unique or exclusion constraint of public.part_images.';

-- A record without a URL has null there, or the empty text where its owner forbids null: both are none.
create or replace function image_sync.no_url()
returns text
language sql
stable
set search_path = ''
as $$
  select case when a.attnotnull then '' end
  from pg_catalog.pg_attribute a
  where a.attrelid = 'public.part_images'::regclass
    and a.attname = 'signed_url'
$$;

comment on function image_sync.no_url() is 'What signed_url holds where there is no URL: null, or the empty text where null is forbidden.';

-- A row that is tried by itself waits 20 ms for a lock, and hardly at all once a second has gone into waiting: a thousand rows that
-- somebody holds must not add up to the statement timeout.
create or replace function image_sync.row_patience(p_since timestamptz)
returns text
language sql
volatile
set search_path = ''
as $$
  select case when clock_timestamp() < p_since + interval '1 second' then '20ms' else '1ms' end
$$;

comment on function image_sync.row_patience(timestamptz) is 'lock_timeout for a single row of many, tried one by one since p_since.';

-- A problem of one item, as runs show it.
create or replace function image_sync.item_problem(p_name text, p_code text, p_words text default null)
returns jsonb
language sql
immutable
set search_path = ''
as $$
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
returns jsonb
language sql
immutable
set search_path = ''
as $$
  select jsonb_path_query_array(p_items, '$[0 to 19]')
$$;

comment on function image_sync.first_items(jsonb) is 'The first 20 elements of an array.';

-- What went wrong for a chunk or a run, as it is stored: whoever says so, and whatever they quote.
create or replace function image_sync.clean_fault(p_error jsonb)
returns jsonb
language sql
immutable
set search_path = ''
as $$
  select case
    when p_error is not null then jsonb_build_object(
      'code', coalesce(left(p_error ->> 'code', 100), 'unknown'),
      'title', coalesce(image_sync.redact(p_error ->> 'title'), 'Something went wrong'),
      'detail', coalesce(image_sync.redact(p_error ->> 'detail'), '')
    )
  end
$$;

comment on function image_sync.clean_fault(jsonb) is 'An error with code, title and detail alone, its words redacted; null for null.';

-- Inserts missing records one by one, without URLs: what is refused or held costs itself alone.
create or replace function image_sync.insert_one_by_one(
  p_bucket_id text,
  p_names text[],
  p_ids uuid[],
  out inserted text[],
  out held text[],
  out problems jsonb
)
language plpgsql
set search_path = ''
as $$
declare
  v_since constant timestamptz := clock_timestamp();
  v_missing record;
  v_schema text;
  v_table text;
begin
  inserted := '{}';
  held := '{}';
  problems := '[]';
  for v_missing in
    select m.name, m.id, m.part_number
    from unnest(p_names, p_ids, image_sync.part_numbers_of(p_names)) as m (name, id, part_number)
    order by m.name collate "C"
  loop
    perform set_config('lock_timeout', image_sync.row_patience(v_since), true);
    begin
      insert into public.part_images (bucket_id, file_name, part_number, object_id, object_name)
      values (p_bucket_id, v_missing.name, v_missing.part_number, v_missing.id, v_missing.name);
      perform image_sync.check_deferred();
      inserted := inserted || v_missing.name;
    exception
      -- Not "on conflict do nothing": that refuses every row of a table with a deferrable key.
      when others then
        get stacked diagnostics v_schema = schema_name, v_table = table_name;
        if image_sync.is_held(sqlstate) then
          held := held || v_missing.name;
        elsif image_sync.is_taken(sqlstate, v_schema, v_table) then
          continue;
        elsif image_sync.is_refusal(sqlstate) then
          problems := problems || image_sync.item_problem(v_missing.name, 'record_refused', sqlerrm);
        else
          raise;
        end if;
    end;
  end loop;
end;
$$;

comment on function image_sync.insert_one_by_one(text, text[], uuid[]) is
  'Inserts a record for each name and object, in parallel, by itself. Returns the names inserted, those that somebody else holds, and the problems of those that the table refuses.';

-- Inserts the records that a chunk lacks (its to_insert), with their URLs where there are any, and accounts for every one of them.
-- p_names, p_urls and p_expires (seconds since 1970) are parallel; a file that is not among them gets a record without a URL.
create or replace function image_sync.insert_missing(
  p_bucket_id text,
  p_chunk image_sync.chunks,
  p_names text[] default '{}',
  p_urls text[] default '{}',
  p_expires bigint[] default '{}'
)
returns image_sync.insertion
language plpgsql
set search_path = ''
-- Given back when the function ends: trying one by one sets it for itself.
set lock_timeout = '400ms'
as $$
declare
  v_chunk image_sync.chunks := p_chunk;
  v_inserted text[] := '{}'::text[];
  v_signed integer := 0;
  v_held text[] := '{}'::text[];
  v_rest record;
  v_problems jsonb := '[]'::jsonb;
  -- Said of both sides wherever they are looked up by name, so that a plan that reads more than one name reads this chunk at most.
  v_last_key constant text := coalesce(p_chunk.to_key, image_sync.last_key());
  v_present record;
begin
  if v_chunk.to_insert = '{}' then
    return (v_chunk, v_inserted, v_signed, v_held)::image_sync.insertion;
  end if;

  begin
    with added as (
      insert into public.part_images (bucket_id, file_name, part_number, object_id, object_name, signed_url, signed_url_expires_at)
      select p_bucket_id, m.name, m.part_number, m.id, m.name, coalesce(s.url, (select image_sync.no_url())), to_timestamp(s.expires)
      from unnest(v_chunk.to_insert, v_chunk.to_insert_ids, image_sync.part_numbers_of(v_chunk.to_insert)) as m (name, id, part_number)
      left join unnest(p_names, p_urls, p_expires) as s (name, url, expires) on s.name = m.name
      -- What was signed a moment ago was there; anything else may be gone since it was listed.
      where s.name is not null or exists (
        select
        from image_sync.objects o
        where o.bucket_id = p_bucket_id
          and o.name collate "C" = m.name
          and o.name collate "C" > v_chunk.from_key
          and o.name collate "C" <= v_last_key
      )
      order by m.name collate "C"
      returning file_name, signed_url
    )
    select coalesce(array_agg(added.file_name), '{}'), count(nullif(added.signed_url, ''))
    into v_inserted, v_signed
    from added;
    perform image_sync.check_deferred();
  exception
    -- A constraint or a trigger of the table's owner refuses a row, somebody else inserted one meanwhile, or is about to: find out
    -- which, so that the others get in. Their URLs are stored like those of any record. Saying on conflict above would make every
    -- row cost a quarter more: its indexes are read before they are written, and it is confirmed in the log.
    when others then
      if not image_sync.is_held(sqlstate) and not image_sync.is_refusal(sqlstate) then
        raise;
      elsif image_sync.is_held(sqlstate) then
        perform image_sync.need_table();
      end if;
      select coalesce(array_agg(m.name), '{}') as names, coalesce(array_agg(m.id), '{}') as ids
      into v_present
      from unnest(v_chunk.to_insert, v_chunk.to_insert_ids) as m (name, id)
      where exists (
        select
        from image_sync.objects o
        where o.bucket_id = p_bucket_id
          and o.name collate "C" = m.name
          and o.name collate "C" > v_chunk.from_key
          and o.name collate "C" <= v_last_key
      );
      select i.inserted, i.held, i.problems
      into v_inserted, v_held, v_problems
      from image_sync.insert_one_by_one(p_bucket_id, v_present.names, v_present.ids) as i;
  end;

  select
    count(*) filter (where rest.is_recorded) as recorded,
    count(*) filter (where not rest.is_recorded and not rest.is_object) as vanished,
    count(*) filter (where not rest.is_recorded and rest.is_object) as collided,
    (array_agg(rest.name order by rest.name collate "C") filter (where not rest.is_recorded and rest.is_object))[1:20] as samples
  into v_rest
  from (
    select
      m.name,
      exists (
        select
        from public.part_images p
        where p.bucket_id = p_bucket_id
          and p.file_name collate "C" = m.name
          and p.file_name collate "C" > v_chunk.from_key
          and p.file_name collate "C" <= v_last_key
      ) as is_recorded,
      exists (
        select
        from image_sync.objects o
        where o.bucket_id = p_bucket_id
          and o.name collate "C" = m.name
          and o.name collate "C" > v_chunk.from_key
          and o.name collate "C" <= v_last_key
      ) as is_object
    from unnest(v_chunk.to_insert) as m (name)
    where cardinality(v_inserted) < cardinality(v_chunk.to_insert)
      and m.name <> all (v_inserted)
      and m.name <> all (v_held)
  ) as rest;

  -- What somebody holds may be free when the chunk is closed or tried again.
  v_chunk.ledger := image_sync.add_counts(v_chunk.ledger, jsonb_build_object(
    'inserted', cardinality(v_inserted),
    'recorded', v_rest.recorded,
    'vanished', v_rest.vanished,
    'collided', v_rest.collided,
    'records', cardinality(v_inserted) + v_rest.recorded,
    'missing', cardinality(v_held) - image_sync.count_of(v_chunk.ledger, 'missing')
  ));
  v_chunk.to_insert_ids := array(
    select m.id
    from unnest(v_held) with ordinality as h (name, place)
    join unnest(v_chunk.to_insert, v_chunk.to_insert_ids) as m (name, id)
      on m.name = h.name
    order by h.place
  );
  v_chunk.to_insert := v_held;
  if v_problems <> '[]' then
    v_chunk.problems := v_chunk.problems || image_sync.first_items(v_problems);
  end if;
  if v_rest.samples is not null then
    v_chunk.facts := v_chunk.facts || jsonb_build_object('collided', v_rest.samples);
  end if;
  return (v_chunk, v_inserted, v_signed, v_held)::image_sync.insertion;
end;
$$;

comment on function image_sync.insert_missing(text, image_sync.chunks, text[], text[], bigint[]) is
  'Inserts a record for each image of the chunk''s to_insert and accounts for the rest: recorded by somebody else meanwhile, vanished from the bucket, collided with what the table demands, or held by somebody else, which stays in to_insert. Returns the chunk as it is afterwards (the caller stores it), the names inserted, how many of them with a URL, and the names held.';

-- Stores URLs in records that are there, one by one: what is refused or held costs itself alone.
create or replace function image_sync.store_one_by_one(
  p_bucket_id text,
  p_from_key text,
  p_last_key text,
  p_names text[],
  p_urls text[],
  p_expires bigint[],
  out stored integer,
  out held text[],
  out problems jsonb
)
language plpgsql
set search_path = ''
as $$
declare
  v_since constant timestamptz := clock_timestamp();
  v_free text[];
  v_signed record;
  v_stored text;
begin
  stored := 0;
  problems := '[]';
  v_free := array(
    select p.file_name
    from public.part_images p
    where p.bucket_id = p_bucket_id
      and p.file_name collate "C" = any (p_names)
      and p.file_name collate "C" > p_from_key
      and p.file_name collate "C" <= p_last_key
    order by p.file_name collate "C"
    for no key update skip locked
  );
  held := array(
    select p.file_name
    from public.part_images p
    where p.bucket_id = p_bucket_id
      and p.file_name collate "C" = any (p_names)
      and p.file_name collate "C" > p_from_key
      and p.file_name collate "C" <= p_last_key
      and p.file_name <> all (v_free)
  );
  for v_signed in
    select s.name, s.url, s.expires
    from unnest(p_names, p_urls, p_expires) as s (name, url, expires)
    join unnest(v_free) as f (name) on f.name = s.name
  loop
    -- The row is ours; a trigger of the table's owner may want others.
    perform set_config('lock_timeout', image_sync.row_patience(v_since), true);
    begin
      update public.part_images p
      set signed_url = v_signed.url, signed_url_expires_at = to_timestamp(v_signed.expires), object_name = p.file_name
      where p.bucket_id = p_bucket_id
        and p.file_name collate "C" = v_signed.name
      returning p.signed_url
      into v_stored;
      if v_stored = v_signed.url then
        perform image_sync.check_deferred();
        stored := stored + 1;
      else
        problems := problems || image_sync.item_problem(v_signed.name, 'url_refused', 'a trigger of the table keeps what it had');
      end if;
    exception
      when others then
        if image_sync.is_held(sqlstate) then
          held := held || v_signed.name;
        elsif image_sync.is_refusal(sqlstate) then
          problems := problems || image_sync.item_problem(v_signed.name, 'url_refused', sqlerrm);
        else
          raise;
        end if;
    end;
  end loop;
end;
$$;

comment on function image_sync.store_one_by_one(text, text, text, text[], text[], bigint[]) is
  'Stores the URL of each record by itself. Returns how many were stored, the names that somebody else holds, and the problems of those that the table refuses.';

-- Stores URLs in records that are there. p_names, p_urls and p_expires (seconds since 1970) are parallel; only names in the range
-- (p_from_key, p_last_key] count, whatever the caller sends.
create or replace function image_sync.store_urls(
  p_bucket_id text,
  p_from_key text,
  p_last_key text,
  p_names text[],
  p_urls text[],
  p_expires bigint[],
  out stored integer,
  out held text[],
  out problems jsonb
)
language plpgsql
set search_path = ''
set lock_timeout = '400ms'
as $$
declare
  v_stored text[];
begin
  held := '{}';
  problems := '[]';
  with written as (
    update public.part_images p
    set signed_url = s.url, signed_url_expires_at = to_timestamp(s.expires), object_name = p.file_name
    from unnest(p_names, p_urls, p_expires) as s (name, url, expires)
    where p.bucket_id = p_bucket_id
      and p.file_name collate "C" = s.name
      -- Said of the record: so the index bounds what is read, also where the planner knows nothing yet of a table that is only being
      -- filled.
      and p.file_name collate "C" > p_from_key
      and p.file_name collate "C" <= p_last_key
    returning p.file_name, p.signed_url = s.url as is_stored
  )
  select array_agg(w.file_name) filter (where w.is_stored)
  into v_stored
  from written w;
  stored := coalesce(cardinality(v_stored), 0);
  -- A record that is there and was not written is kept by a trigger of its owner's, which returns the old row or none.
  if stored < cardinality(p_names) then
    select coalesce(jsonb_agg(image_sync.item_problem(p.file_name, 'url_refused', 'a trigger of the table keeps what it had')), '[]')
    into problems
    from public.part_images p
    where p.bucket_id = p_bucket_id
      and p.file_name collate "C" = any (p_names)
      and p.file_name collate "C" > p_from_key
      and p.file_name collate "C" <= p_last_key
      and p.file_name <> all (coalesce(v_stored, '{}'));
  end if;
  perform image_sync.check_deferred();
exception
  when others then
    if not image_sync.is_held(sqlstate) and not image_sync.is_refusal(sqlstate) then
      raise;
    elsif image_sync.is_held(sqlstate) then
      perform image_sync.need_table();
    end if;
    select o.stored, o.held, o.problems
    into stored, held, problems
    from image_sync.store_one_by_one(p_bucket_id, p_from_key, p_last_key, p_names, p_urls, p_expires) as o;
end;
$$;

comment on function image_sync.store_urls(text, text, text, text[], text[], bigint[]) is
  'Stores URLs in the records of a range. Returns how many were stored, the names that somebody else holds (a lock of more than 400 ms), and the problems of those that the table refuses: neither costs the others anything.';

-- Takes the URLs of records away. It can wait: a row that somebody holds, or that the table does not let go without, keeps its own.
create or replace function image_sync.withdraw_urls(p_bucket_id text, p_from_key text, p_last_key text, p_names text[])
returns void
language plpgsql
set search_path = ''
set lock_timeout = '400ms'
as $$
begin
  with free as materialized (
    select p.file_name
    from public.part_images p
    where p.bucket_id = p_bucket_id
      and p.file_name collate "C" = any (p_names)
      and p.file_name collate "C" > p_from_key
      and p.file_name collate "C" <= p_last_key
      and nullif(p.signed_url, '') is not null
    for no key update skip locked
  )
  update public.part_images p
  set signed_url = image_sync.no_url(), signed_url_expires_at = null
  from free f
  where p.bucket_id = p_bucket_id
    and p.file_name collate "C" = f.file_name
    and p.file_name collate "C" > p_from_key
    and p.file_name collate "C" <= p_last_key;
  perform image_sync.check_deferred();
exception
  when others then
    if not image_sync.is_held(sqlstate) and not image_sync.is_refusal(sqlstate) then
      raise;
    end if;
end;
$$;

comment on function image_sync.withdraw_urls(text, text, text, text[]) is 'Leaves the named records of a range without a URL, but for those that somebody holds, and none where the table refuses one.';

-- Whether two records of one part number are impossible, by a unique index of the table's owner.
create or replace function image_sync.part_number_is_unique()
returns boolean
language sql
stable
set search_path = ''
as $$
  select exists (
    select
    from pg_catalog.pg_index i
    join pg_catalog.pg_attribute a
      on a.attrelid = i.indrelid
      and a.attnum = i.indkey[0]
    where i.indrelid = 'public.part_images'::regclass
      and i.indisunique
      and i.indnkeyatts = 1
      and i.indpred is null
      and a.attname = 'part_number'
  )
$$;

comment on function image_sync.part_number_is_unique() is 'True where the table''s owner made part_number unique.';
