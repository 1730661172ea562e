-- step 1.1.0
-- What became of the URLs of a chunk.
create type image_sync.signing as (chunk image_sync.chunks, held text[], problems jsonb);

comment on type image_sync.signing is 'A chunk with what was stored of its URLs, the names whose records somebody held, and what went wrong by name.';

-- set
-- The lease on a chunk: who may close it, and what becomes of it when its worker does not. docs/leases.md has the whole of it.

-- The names in a leased chunk that need a URL now. A worker that takes a chunk over asks again instead of trusting what a dead
-- one was told: objects may be gone and URLs may have been made since. What has no record yet comes from the chunk's own list, so
-- that a file that was uploaded after the listing is left to the next run and the ledger balances.
create or replace function image_sync.names_to_sign(p_run image_sync.runs, p_settings image_sync.settings, p_chunk image_sync.chunks)
returns text[]
language plpgsql
stable
set search_path = ''
as $$
declare
  v_renews_all constant boolean := coalesce(p_run.options ->> 'renew' = 'all', false);
  v_url_base constant text := image_sync.url_base(p_settings);
begin
  return (
    with objects as (
      select o.name
      from image_sync.objects o
      where o.bucket_id = p_run.bucket_id
        and o.name collate "C" > p_chunk.from_key
        and o.name collate "C" <= coalesce(p_chunk.to_key, image_sync.last_key())
    ), records as (
      select r.file_name, case when image_sync.is_url_of(r.signed_url, v_url_base, r.file_name) then r.usable_until end as usable_until
      from image_sync.records r
      where r.bucket_id = p_run.bucket_id
        and r.file_name collate "C" > p_chunk.from_key
        and r.file_name collate "C" <= coalesce(p_chunk.to_key, image_sync.last_key())
    )
    select coalesce(array_agg(objects.name), '{}')
    from objects
    left join records on records.file_name = objects.name
    where case
      when records.file_name is null then objects.name = any (p_chunk.to_insert)
      else v_renews_all or coalesce(records.usable_until < now() + p_settings.renew_before, true)
    end
  );
end;
$$;

comment on function image_sync.names_to_sign(image_sync.runs, image_sync.settings, image_sync.chunks) is
  'Files of the chunk that need a URL: those whose record is to be inserted, and those whose record has none, one of another address, an expired one, one that expires within renew_before, or any after renew = all.';

-- Ends an attempt that failed: the chunk waits for the next one, longer each time, or is dead. Its images get their records all the
-- same, without a URL.
create or replace function image_sync.end_attempt(
  p_bucket_id text,
  p_settings image_sync.settings,
  p_chunk image_sync.chunks,
  p_error jsonb,
  p_storage_calls integer default 0,
  p_retries integer default 0
)
returns image_sync.chunks
language plpgsql
set search_path = ''
as $$
declare
  -- Attempts that the database ended say nothing of the chunk.
  v_is_last constant boolean := p_chunk.attempts - p_chunk.interrupted + 1 >= p_settings.max_attempts;
  v_insertion image_sync.insertion;
  v_chunk image_sync.chunks;
begin
  v_insertion := image_sync.insert_missing(p_bucket_id, p_chunk);
  v_chunk := v_insertion.chunk;

  update image_sync.chunks c
  set
    state = case when v_is_last then 'dead' else 'pending' end,
    attempts = c.attempts + 1,
    -- What somebody held is missing for good where no attempt is left.
    to_insert = case when v_is_last then '{}' else v_chunk.to_insert end,
    to_insert_ids = case when v_is_last then '{}' else v_chunk.to_insert_ids end,
    inserted_names = case when v_is_last then '{}' else v_chunk.inserted_names || v_insertion.inserted end,
    moved_names = case when v_is_last then '{}' else v_chunk.moved_names end,
    -- A chunk that failed costs its records their URLs, not their place in the ledger.
    ledger = image_sync.add_counts(v_chunk.ledger, jsonb_build_object(
      'failed', case when v_is_last then image_sync.count_of(c.ledger, 'to_sign') end,
      'broken', case when v_is_last then image_sync.count_of(c.ledger, 'to_open') end,
      'storage_calls', p_storage_calls,
      'retries', p_retries
    )),
    facts = v_chunk.facts,
    problems = v_chunk.problems,
    not_before = clock_timestamp() + p_settings.retry_delay * power(2, least(c.attempts - c.interrupted, 10)),
    lease_expires_at = null,
    error = p_error,
    closed_at = case when v_is_last then clock_timestamp() end
  where c.run_id = p_chunk.run_id
    and c.number = p_chunk.number
  returning c.*
  into v_chunk;
  return v_chunk;
end;
$$;

comment on function image_sync.end_attempt(text, image_sync.settings, image_sync.chunks, jsonb, integer, integer) is
  'Counts a failed attempt at a leased chunk, which is pending again after retry_delay, doubled each time, or dead after max_attempts; inserts the records that it was to insert. Returns the chunk.';

-- The chunk that a token holds or held last, its row locked. Null columns where there is none or where somebody else holds the row
-- for more than 400 ms: another call with the same token would be over by then.
create or replace function image_sync.lock_chunk(p_run uuid, p_token uuid)
returns image_sync.chunks
language plpgsql
set search_path = ''
set lock_timeout = '400ms'
as $$
declare
  v_chunk image_sync.chunks;
begin
  select c.*
  into v_chunk
  from image_sync.chunks c
  where c.run_id is not distinct from p_run
    and c.lease_token = p_token
  for update;
  return v_chunk;
exception
  when lock_not_available then
    return null;
end;
$$;

comment on function image_sync.lock_chunk(uuid, uuid) is 'Locks the row of the chunk that holds the token and returns it; null columns where there is none, or after 400 ms without the lock.';

-- Inserts the records that a chunk lacks and stores the URLs of those that are there.
create or replace function image_sync.store_signed(
  p_run image_sync.runs,
  p_chunk image_sync.chunks,
  p_names text[],
  p_urls text[],
  p_expires bigint[]
)
returns image_sync.signing
language plpgsql
set search_path = ''
as $$
declare
  v_insertion constant image_sync.insertion := image_sync.insert_missing(p_run.bucket_id, p_chunk, p_names, p_urls, p_expires);
  v_chunk image_sync.chunks := v_insertion.chunk;
  v_held text[] := v_insertion.held;
  v_problems jsonb := '[]'::jsonb;
  v_update record;
  v_updated integer := 0;
begin
  if v_insertion.signed < cardinality(p_names) then
    select u.*
    into v_update
    from (
      select array_agg(s.name) as names, array_agg(s.url) as urls, array_agg(s.expires) as expires
      from unnest(p_names, p_urls, p_expires) as s (name, url, expires)
      where v_insertion.signed = 0
        or s.name <> all (v_insertion.inserted)
    ) as rest
    cross join lateral image_sync.store_urls(p_run.bucket_id, p_chunk.from_key, coalesce(p_chunk.to_key, image_sync.last_key()), rest.names, rest.urls, rest.expires) as u;
    v_updated := v_update.stored;
    v_held := v_held || v_update.held;
    v_problems := v_update.problems;
  end if;
  v_chunk.ledger := image_sync.add_counts(v_chunk.ledger, jsonb_build_object('updated', v_updated, 'signed', v_insertion.signed + v_updated));
  return (v_chunk, v_held, v_problems)::image_sync.signing;
end;
$$;

comment on function image_sync.store_signed(image_sync.runs, image_sync.chunks, text[], text[], bigint[]) is
  'Inserts the missing records of a chunk and stores its URLs: the chunk with how many, the names that somebody holds, and the problems of those that the table refused.';

-- Records of a chunk whose object was deleted since it was listed: orphaned from now on, as are others of its range. A file that was
-- never recorded leaves nobody behind, nor does one that was moved: its record follows it.
create or replace function image_sync.count_orphaned(p_run image_sync.runs, p_settings image_sync.settings, p_chunk image_sync.chunks, p_names text[])
returns image_sync.chunks
language plpgsql
stable
set search_path = ''
as $$
declare
  v_chunk image_sync.chunks := p_chunk;
  v_url_base constant text := image_sync.url_base(p_settings);
  v_found record;
begin
  select
    array_agg(r.file_name) as names,
    count(*) filter (where not (r.signed and image_sync.is_url_of(r.signed_url, v_url_base, r.file_name))) as unsigned,
    count(*) filter (where r.expired and image_sync.is_url_of(r.signed_url, v_url_base, r.file_name)) as expired
  into v_found
  from image_sync.records r
  where r.bucket_id = p_run.bucket_id
    and r.file_name collate "C" = any (p_names)
    and r.file_name collate "C" > v_chunk.from_key
    and r.file_name collate "C" <= coalesce(v_chunk.to_key, image_sync.last_key())
    and not exists (
      select
      from image_sync.place_of(r.bucket_id, r.file_name, r.object_id)
    );
  if v_found.names is not null then
    v_chunk.ledger := image_sync.add_counts(v_chunk.ledger, jsonb_build_object(
      'orphaned', cardinality(v_found.names),
      'orphans_unsigned', v_found.unsigned,
      'orphans_expired', v_found.expired
    ));
    v_chunk.facts := v_chunk.facts || jsonb_build_object('orphaned', image_sync.first_names(
      v_found.names || array(
        select jsonb_array_elements_text(v_chunk.facts -> 'orphaned')
      )
    ));
  end if;
  return v_chunk;
end;
$$;

comment on function image_sync.count_orphaned(image_sync.runs, image_sync.settings, image_sync.chunks, text[]) is
  'A chunk of a sync (not stored) with those of these names that have a record, and a file neither there nor elsewhere, as orphaned records.';

-- Where every name went that a chunk had to sign: stored, held, withdrawn or failed.
create or replace function image_sync.account_for_names(
  p_run image_sync.runs,
  p_settings image_sync.settings,
  p_signing image_sync.signing,
  p_names text[],
  p_failures jsonb
)
returns image_sync.signing
language plpgsql
set search_path = ''
as $$
declare
  v_chunk image_sync.chunks := p_signing.chunk;
  v_last_key constant text := coalesce(v_chunk.to_key, image_sync.last_key());
  v_held constant text[] := array(
    select h.name
    from unnest(p_signing.held) as h (name)
    where h.name = any (p_names)
  );
  v_signed constant bigint := image_sync.count_of(v_chunk.ledger, 'signed');
  v_gone text[];
  v_withdrawn bigint;
  v_failures jsonb;
  v_to_sign bigint;
begin
  -- A URL of a name that no URL can open is none.
  if p_failures <> '[]' then
    perform image_sync.withdraw_urls(p_run.bucket_id, v_chunk.from_key, v_last_key, array(
      select e.name
      from jsonb_to_recordset(p_failures) as e (name text)
      where not image_sync.is_signable(e.name)
    ));
  end if;

  -- An object that went away since it was listed is no failure.
  select
    array_agg(f.name) filter (where not f.is_object),
    p_signing.problems || coalesce(jsonb_agg(image_sync.item_problem(f.name, case when image_sync.is_signable(f.name) then 'signing_failed' else 'unsignable_name' end, f.error)) filter (where f.is_object), '[]')
  into v_gone, v_failures
  from (
    select
      e.name,
      e.error,
      exists (
        select
        from image_sync.objects o
        where o.bucket_id = p_run.bucket_id
          and o.name collate "C" = e.name
          and o.name collate "C" > v_chunk.from_key
          and o.name collate "C" <= v_last_key
      ) as is_object
    from jsonb_to_recordset(p_failures) as e (name text, error text)
  ) as f;
  v_withdrawn := coalesce(cardinality(v_gone), 0) + cardinality(p_names) - v_signed - cardinality(v_held) - jsonb_array_length(p_signing.problems);
  if v_gone is not null then
    v_chunk := image_sync.count_orphaned(p_run, p_settings, v_chunk, v_gone);
  end if;

  -- A call that was repeated gave its worker the names of that moment, which need not be those that were counted first. What
  -- counts is what the worker was given and what is owed still: a name that got lost on the way unbalances the ledger.
  v_to_sign := v_signed + cardinality(v_held) + v_withdrawn + jsonb_array_length(v_failures);
  if v_to_sign <> image_sync.count_of(v_chunk.ledger, 'to_sign') then
    select v_to_sign + count(*)
    into v_to_sign
    from unnest(image_sync.names_to_sign(p_run, p_settings, v_chunk)) as owed (name)
    where owed.name <> all (p_names)
      and not exists (
        select
        from jsonb_to_recordset(p_failures) as e (name text)
        where e.name = owed.name
      );
  end if;

  v_chunk.ledger := image_sync.add_counts(v_chunk.ledger, jsonb_build_object(
    'to_sign', v_to_sign - image_sync.count_of(v_chunk.ledger, 'to_sign'),
    'withdrawn', v_withdrawn,
    'held', cardinality(v_held),
    'failed', jsonb_array_length(v_failures)
  ));
  v_chunk.problems := v_chunk.problems || v_failures || (
    select coalesce(jsonb_agg(image_sync.item_problem(h.name, 'row_locked')), '[]')
    from unnest(v_held[1:20]) as h (name)
  );
  return (v_chunk, v_held, v_failures)::image_sync.signing;
end;
$$;

comment on function image_sync.account_for_names(image_sync.runs, image_sync.settings, image_sync.signing, text[], jsonb) is
  'Accounts for each name that a worker was given: the chunk with signed, held, withdrawn and failed, which add up to its to_sign unless a name got lost on the way.';

-- The records of a chunk's range as they are once its URLs are stored.
create or replace function image_sync.measure_range(p_run image_sync.runs, p_settings image_sync.settings, p_chunk image_sync.chunks)
returns image_sync.chunks
language plpgsql
set search_path = ''
as $$
declare
  v_chunk image_sync.chunks := p_chunk;
  v_url_base constant text := image_sync.url_base(p_settings);
  v_last_key constant text := coalesce(p_chunk.to_key, image_sync.last_key());
  v_measured record;
  v_others bigint := 0;
begin
  with ranged as materialized (
    select coalesce(r.signed and image_sync.is_url_of(r.signed_url, v_url_base, r.file_name), false) as signed, r.usable_until
    from image_sync.records r
    where r.bucket_id = p_run.bucket_id
      and r.file_name collate "C" > p_chunk.from_key
      and r.file_name collate "C" <= v_last_key
      -- Counted where their files are.
      and r.file_name <> all (p_chunk.departing)
  ), counted as (
    select
      r.signed,
      -- Null where the URL does not work.
      case when r.signed then (r.usable_until at time zone 'UTC')::date end as dies_on,
      count(*) as records,
      min(r.usable_until) as soonest_expiry
    from ranged r
    group by 1, 2
  )
  select
    coalesce(sum(c.records), 0) as records,
    coalesce(sum(c.records) filter (where c.signed), 0) as signed,
    coalesce(sum(c.records) filter (where c.signed and c.dies_on is null), 0) as expired,
    coalesce(sum(c.records) filter (where c.dies_on is not null), 0) as usable,
    jsonb_build_object(
      'soonest_expiry', min(c.soonest_expiry) filter (where c.dies_on is not null),
      'expiry', jsonb_object_agg(c.dies_on, c.records) filter (where c.dies_on is not null)
    ) as facts
  into v_measured
  from counted c;

  -- Only where the range holds records of no image are those with a URL told apart.
  if v_measured.records > image_sync.count_of(v_chunk.ledger, 'recorded') + image_sync.count_of(v_chunk.ledger, 'inserted') + image_sync.count_of(v_chunk.ledger, 'moved') then
    v_others := (
      select count(*)
      from image_sync.records r
      left join image_sync.objects o
        on o.bucket_id = r.bucket_id
        and o.name collate "C" = r.file_name
        and o.extension = any (p_settings.extensions)
        and o.bytes is distinct from 0
      where r.bucket_id = p_run.bucket_id
        and r.file_name collate "C" > p_chunk.from_key
        and r.file_name collate "C" <= v_last_key
        and r.usable_until is not null
        and image_sync.is_url_of(r.signed_url, v_url_base, r.file_name)
        and r.file_name <> all (p_chunk.departing)
        and o.name is null
    );
  end if;
  v_chunk.ledger := image_sync.add_counts(v_chunk.ledger - '{records,records_signed,records_expired,images_signed}'::text[], jsonb_build_object(
    'records', v_measured.records,
    'records_signed', v_measured.signed,
    'records_expired', v_measured.expired,
    'images_signed', v_measured.usable - v_others
  ));
  v_chunk.facts := v_chunk.facts - 'soonest_expiry' || jsonb_strip_nulls(v_measured.facts);
  return v_chunk;
end;
$$;

comment on function image_sync.measure_range(image_sync.runs, image_sync.settings, image_sync.chunks) is
  'A chunk with what its records are now: how many there are, with a URL, with one that does not work, and when those that work die.';

-- Closes the chunk that p_token holds with what signing gave: inserts the records that are missing and stores the URLs. p_names,
-- p_urls and p_expires (seconds since 1970) are parallel.
-- Returns closed; already_closed where this very call was made before (its answer got lost); stale where the token is not, or no
-- longer, the chunk's: then nothing changes; held where somebody else holds the chunk's row.
create or replace function image_sync.close_chunk(
  p_run image_sync.runs,
  p_settings image_sync.settings,
  p_token uuid,
  p_names text[],
  p_urls text[],
  p_expires bigint[],
  p_failures jsonb,
  p_error jsonb,
  p_storage_calls integer,
  p_retries integer
)
returns text
language plpgsql
set search_path = ''
as $$
declare
  v_chunk image_sync.chunks;
  v_is_held boolean;
  v_signing image_sync.signing;
begin
  if p_run.mode = 'verify' and p_error is null then
    return image_sync.close_verified(p_run, p_token, p_names, p_failures, p_storage_calls, p_retries);
  end if;
  select c.*
  into v_chunk
  from image_sync.chunks c
  where c.run_id is not distinct from p_run.id
    and c.lease_token = p_token
  for update skip locked;
  if v_chunk.run_id is null then
    v_chunk := image_sync.lock_chunk(p_run.id, p_token);
  end if;
  v_is_held := v_chunk.run_id is null;
  if v_is_held then
    -- Somebody else holds the chunk's row. What was signed is stored all the same, once the row, as it is, says that the token is
    -- still the chunk's; whoever gets the row later finds nothing left to sign and closes it.
    select c.*
    into v_chunk
    from image_sync.chunks c
    where c.run_id is not distinct from p_run.id
      and c.lease_token = p_token;
  end if;

  if v_chunk.state is distinct from 'leased' or p_run.finished_at is not null then
    return case
      when v_chunk.state is null or v_chunk.state = 'leased' or v_chunk.error ->> 'code' = 'lease_expired' or v_chunk.interrupted > 0 and v_chunk.state <> 'done' then 'stale'
      else 'already_closed'
    end;
  end if;

  -- One update of the chunk and no more: a second one of a row that this transaction wrote would check its foreign key again
  -- and share-lock the run's row, which two workers that go on to lock it for themselves turn into a deadlock.
  if p_error is not null then
    if not v_is_held then
      perform image_sync.end_attempt(p_run.bucket_id, p_settings, v_chunk, p_error, p_storage_calls, p_retries);
    end if;
    return case when v_is_held then 'held' else 'closed' end;
  end if;

  v_signing := image_sync.store_signed(p_run, v_chunk, p_names, p_urls, p_expires);
  if v_is_held then
    return 'held';
  end if;
  v_signing := image_sync.account_for_names(p_run, p_settings, v_signing, p_names, p_failures);
  v_chunk := image_sync.measure_range(p_run, p_settings, v_signing.chunk);
  update image_sync.chunks c
  set
    state = 'done',
    to_insert = '{}',
    to_insert_ids = '{}',
    inserted_names = '{}',
    moved_names = '{}',
    ledger = image_sync.add_counts(v_chunk.ledger, jsonb_build_object('storage_calls', p_storage_calls, 'retries', p_retries)),
    facts = v_chunk.facts,
    problems = v_chunk.problems,
    lease_expires_at = null,
    error = null,
    closed_at = clock_timestamp()
  where c.run_id = v_chunk.run_id
    and c.number = v_chunk.number;
  return 'closed';
end;
$$;

comment on function image_sync.close_chunk(image_sync.runs, image_sync.settings, uuid, text[], text[], bigint[], jsonb, jsonb, integer, integer) is
  'Inserts the missing records of a leased chunk, stores its URLs and closes it, or counts its failed attempt (p_error). Returns closed, already_closed, stale (nothing changes) or held (somebody else holds the chunk''s row: the URLs are stored, the chunk stays open).';

-- Leases a chunk that waits or whose lease ran out. The caller holds the run's row lock, which makes claiming one at a time;
-- skip locked passes over a chunk that its late worker is closing at this moment.
create or replace function image_sync.claim_chunk(
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
  v_chunk image_sync.chunks;
  v_names text[];
begin
  loop
    select c.*
    into v_chunk
    from image_sync.chunks c
    where c.run_id is not distinct from p_run.id
      and c.state in ('pending', 'leased')
      and (
        c.state = 'pending' and coalesce(c.not_before <= clock_timestamp(), true)
        or c.state = 'leased' and c.lease_expires_at <= clock_timestamp()
      )
    order by c.number
    limit 1
    for update skip locked;
    if not found then
      return null;
    end if;

    if v_chunk.state = 'leased' then
      v_chunk := image_sync.end_attempt(
        p_run.bucket_id, p_settings, v_chunk,
        jsonb_build_object('code', 'lease_expired', 'title', 'A worker did not finish its chunk in time', 'detail', format('Worker %s leased chunk %s and was not heard of again.', v_chunk.worker_id, v_chunk.number))
      );
      continue when v_chunk.state = 'dead';
    end if;

    v_names := case when v_chunk.relist_size is null then image_sync.names_to_work(p_run, p_settings, v_chunk) else '{}' end;
    update image_sync.chunks c
    set
      state = 'leased',
      past_leases = array_remove(c.past_leases || c.lease_token, null),
      lease_token = p_lease,
      lease_expires_at = clock_timestamp() + p_settings.lease_duration,
      not_before = null,
      worker_id = p_worker,
      ledger = image_sync.add_counts(c.ledger - image_sync.work_of(p_run.mode), jsonb_build_object(image_sync.work_of(p_run.mode), cardinality(v_names)))
    where c.run_id = v_chunk.run_id
      and c.number = v_chunk.number
    returning c.*
    into v_chunk;
    return (v_chunk, v_names)::image_sync.chunk_to_sign;
  end loop;
end;
$$;

comment on function image_sync.claim_chunk(image_sync.runs, image_sync.settings, uuid, uuid) is
  'Leases the first chunk that waits or whose lease expired, with the names in it that need a URL now (none yet where it has still to be listed); null where there is none. A lease that expired counts as a failed attempt.';

-- Lists a chunk that p_token leased and that was never listed, or has to be listed again in smaller parts: relist_size names of it
-- stay the chunk, what lies behind them becomes another one that waits. Takes a transaction of its own: should it take too long,
-- the lease says which chunk that was.
create or replace function image_sync.relist_chunk(
  p_run image_sync.runs,
  p_settings image_sync.settings,
  p_chunk image_sync.chunks,
  p_token uuid
)
returns image_sync.chunk_to_sign
language plpgsql
set search_path = ''
as $$
declare
  v_since constant timestamptz := clock_timestamp();
  v_listed image_sync.chunk_to_sign;
  v_chunk image_sync.chunks;
begin
  v_listed := image_sync.settle_listing(
    p_run, p_settings,
    image_sync.compare(p_run, p_settings, p_chunk, p_chunk.to_key, p_chunk.relist_size),
    p_token
  );
  v_chunk := v_listed.chunk;
  if v_chunk.to_key is distinct from p_chunk.to_key then
    perform image_sync.add_unlisted_chunk(p_run.id, v_chunk.to_key, p_chunk.to_key, p_chunk.relist_size, p_chunk.inserted_names, p_chunk.moved_names);
  end if;
  update image_sync.chunks c
  set
    to_key = v_chunk.to_key,
    state = v_chunk.state,
    relist_size = null,
    lease_expires_at = v_chunk.lease_expires_at,
    to_insert = v_chunk.to_insert,
    to_insert_ids = v_chunk.to_insert_ids,
    inserted_names = v_chunk.inserted_names,
    moved_names = v_chunk.moved_names,
    departing = v_chunk.departing,
    ledger = image_sync.add_counts(v_chunk.ledger, image_sync.kept_counts(c.ledger) || jsonb_build_object('listing_ms', image_sync.ms_since(v_since))),
    facts = v_chunk.facts,
    problems = v_chunk.problems,
    error = v_chunk.error,
    closed_at = v_chunk.closed_at
  where c.run_id = p_chunk.run_id
    and c.number = p_chunk.number;
  return (v_chunk, v_listed.names)::image_sync.chunk_to_sign;
end;
$$;

comment on function image_sync.relist_chunk(image_sync.runs, image_sync.settings, image_sync.chunks, uuid) is
  'Lists a leased chunk with relist_size: leased still where files of it need a URL (their names are returned), else done. What does not fit becomes a chunk that waits. The caller holds the run''s row lock.';

-- A range of keys that has still to be listed, for whoever comes.
create or replace function image_sync.unlisted_chunk(p_run uuid, p_from_key text, p_to_key text, p_size integer)
returns image_sync.chunks
language plpgsql
immutable
set search_path = ''
as $$
declare
  v_chunk image_sync.chunks := image_sync.new_chunk(p_run, p_from_key);
begin
  v_chunk.to_key := p_to_key;
  v_chunk.state := 'pending';
  v_chunk.relist_size := p_size;
  return v_chunk;
end;
$$;

comment on function image_sync.unlisted_chunk(uuid, text, text, integer) is 'A chunk, not stored, of a range of keys that has still to be listed, p_size names at once.';

create or replace function image_sync.add_unlisted_chunk(p_run uuid, p_from_key text, p_to_key text, p_size integer, p_inserted_names text[], p_moved_names text[])
returns void
language plpgsql
set search_path = ''
as $$
declare
  v_chunk image_sync.chunks := image_sync.unlisted_chunk(p_run, p_from_key, p_to_key, p_size);
begin
  v_chunk.number := image_sync.next_number(p_run);
  v_chunk.inserted_names := p_inserted_names;
  v_chunk.moved_names := p_moved_names;
  insert into image_sync.chunks
  select v_chunk.*;
end;
$$;

comment on function image_sync.add_unlisted_chunk(uuid, text, text, integer, text[], text[]) is
  'Stores a chunk of a range of keys that has still to be listed, p_size names at once. The caller holds the run''s row lock.';

-- What was done in a chunk stays done when it is listed again.
create or replace function image_sync.kept_counts(p_ledger jsonb)
returns jsonb
language sql
immutable
set search_path = ''
as $$
  select jsonb_build_object('storage_calls', p_ledger -> 'storage_calls', 'retries', p_ledger -> 'retries', 'linked', p_ledger -> 'linked')
$$;

comment on function image_sync.kept_counts(jsonb) is 'The counters of a ledger that do not begin anew when its chunk is listed again; null where one is zero.';

-- Takes a chunk back to where it is listed again, in parts of half its size: what is listed again is counted again.
create or replace function image_sync.halve_chunk(p_chunk image_sync.chunks, p_size integer, p_error jsonb)
returns void
language plpgsql
set search_path = ''
as $$
begin
  update image_sync.chunks c
  set
    state = 'pending',
    attempts = c.attempts + 1,
    interrupted = c.interrupted + 1,
    relist_size = p_size,
    not_before = null,
    lease_expires_at = null,
    to_insert = '{}',
    to_insert_ids = '{}',
    departing = '{}',
    ledger = jsonb_strip_nulls(image_sync.kept_counts(c.ledger)),
    facts = '{}',
    problems = '[]',
    error = p_error
  where c.run_id = p_chunk.run_id
    and c.number = p_chunk.number;
end;
$$;

comment on function image_sync.halve_chunk(image_sync.chunks, integer, jsonb) is
  'Makes a chunk that took too long wait to be listed again, p_size names at once.';

-- Gives up the one name that the database cannot do in time, and names it. What lies behind it was not the cause: it is tried in full
-- size again.
create or replace function image_sync.give_up_name(
  p_run image_sync.runs,
  p_settings image_sync.settings,
  p_chunk image_sync.chunks,
  p_error jsonb
)
returns void
language plpgsql
set search_path = ''
as $$
declare
  v_listed image_sync.comparison := image_sync.compare(p_run, p_settings, p_chunk, p_chunk.to_key, 1);
  v_chunk image_sync.chunks := v_listed.chunk;
  v_name text := coalesce(v_chunk.to_insert[1], v_listed.names[1], v_chunk.to_key);
  -- Its record was to come along, and does not.
  v_unmoved constant bigint := image_sync.count_of(v_chunk.ledger, 'moved') - image_sync.count_recorded(p_run.bucket_id, v_chunk, v_chunk.moved_names);
  v_to_sign constant integer := case when p_run.mode = 'sync' then cardinality(v_listed.names) + cardinality(v_chunk.to_insert) else 0 end;
begin
  if v_chunk.to_key is distinct from p_chunk.to_key then
    perform image_sync.add_unlisted_chunk(p_run.id, v_chunk.to_key, p_chunk.to_key, p_settings.chunk_size, p_chunk.inserted_names, p_chunk.moved_names);
  end if;
  update image_sync.chunks c
  set
    to_key = v_chunk.to_key,
    state = 'dead',
    attempts = c.attempts + 1,
    interrupted = c.interrupted + 1,
    relist_size = null,
    lease_expires_at = null,
    to_insert = '{}',
    to_insert_ids = '{}',
    inserted_names = '{}',
    moved_names = '{}',
    departing = v_chunk.departing,
    ledger = image_sync.add_counts(
      image_sync.add_counts(v_chunk.ledger, image_sync.kept_counts(c.ledger)),
      jsonb_build_object('moved', -v_unmoved, 'unmoved', v_unmoved, 'to_sign', v_to_sign, 'failed', v_to_sign)
    ),
    facts = v_chunk.facts,
    problems = jsonb_build_array(image_sync.item_problem(v_name, p_error ->> 'code', p_error ->> 'detail')),
    error = p_error,
    closed_at = clock_timestamp()
  where c.run_id = p_chunk.run_id
    and c.number = p_chunk.number;
end;
$$;

comment on function image_sync.give_up_name(image_sync.runs, image_sync.settings, image_sync.chunks, jsonb) is
  'Closes a chunk of one name as dead, without writing the record, and names it with the database''s error. The caller holds the run''s row lock.';

-- Ends an attempt at a chunk that the database ended: its transaction is gone, so nothing of it is known but the error. What took too
-- long is halved until it fits, at one name given up; what somebody held waits for them, however often. Returns the size that is left.
-- The caller holds the run's row lock.
create or replace function image_sync.interrupt_chunk(
  p_run image_sync.runs,
  p_settings image_sync.settings,
  p_chunk image_sync.chunks,
  p_error jsonb
)
returns integer
language plpgsql
set search_path = ''
as $$
declare
  v_size constant integer := coalesce(p_chunk.relist_size, greatest(image_sync.count_of(p_chunk.ledger, 'listed'), image_sync.count_of(p_chunk.ledger, 'records'), 1));
begin
  if p_error ->> 'code' <> 'database_timeout' then
    update image_sync.chunks c
    set
      state = 'pending',
      attempts = c.attempts + 1,
      interrupted = c.interrupted + 1,
      not_before = clock_timestamp() + least(p_settings.retry_delay, interval '10 seconds'),
      lease_expires_at = null,
      error = p_error
    where c.run_id = p_chunk.run_id
      and c.number = p_chunk.number;
    return null;
  end if;
  if v_size = 1 then
    perform image_sync.give_up_name(p_run, p_settings, p_chunk, p_error);
    return p_settings.chunk_size;
  end if;
  perform image_sync.halve_chunk(p_chunk, (v_size + 1) / 2, p_error);
  return (v_size + 1) / 2;
end;
$$;

comment on function image_sync.interrupt_chunk(image_sync.runs, image_sync.settings, image_sync.chunks, jsonb) is
  'Counts an attempt that the database ended: halves the chunk after a timeout, gives it up at one name, or lets it wait for a lock. Returns how many names the next chunks may have, null: as before.';

-- The walk took too long to make its next chunk: the range is stored as a chunk that has still to be listed, half at once, so that it
-- has a lease of its own when it is. Returns that half. The caller holds the run's row lock.
create or replace function image_sync.interrupt_walk(p_run image_sync.runs, p_settings image_sync.settings)
returns integer
language plpgsql
set search_path = ''
-- As image_sync_advance reads a range, and for the same reason.
set enable_seqscan = 'off'
set enable_bitmapscan = 'off'
set enable_sort = 'off'
as $$
declare
  v_size constant integer := image_sync.chunk_size(p_run, p_settings);
  v_to_key text;
begin
  select least(
    (
      select o.name collate "C"
      from image_sync.objects o
      where o.bucket_id = p_run.bucket_id
        and o.name collate "C" > p_run.cursor
      order by o.name collate "C"
      offset v_size - 1
      limit 1
    ),
    (
      select r.file_name collate "C"
      from image_sync.records r
      where r.bucket_id = p_run.bucket_id
        and r.file_name collate "C" > p_run.cursor
      order by r.file_name collate "C"
      offset v_size - 1
      limit 1
    )
  )
  into v_to_key;
  perform image_sync.add_unlisted_chunk(p_run.id, p_run.cursor, v_to_key, (v_size + 1) / 2, '{}', '{}');
  update image_sync.runs r
  set cursor = coalesce(v_to_key, r.cursor), exhausted = v_to_key is null
  where r.id = p_run.id;
  return (v_size + 1) / 2;
end;
$$;

comment on function image_sync.interrupt_walk(image_sync.runs, image_sync.settings) is
  'Stores the range that the walk could not do in time as a chunk to be listed in halves, and moves the cursor behind it. Returns how many names the next chunks may have.';

-- Gives back what a worker holds and will not do any more: no attempt is counted.
create or replace function image_sync.release_chunks(p_run uuid, p_leases uuid[])
returns integer
language sql
set search_path = ''
as $$
  with free as materialized (
    -- A row that somebody else holds is not waited for: its lease runs out.
    select c.number
    from image_sync.chunks c
    where c.run_id = p_run
      and c.state = 'leased'
      and (p_leases is null or c.lease_token = any (p_leases))
    for update skip locked
  ), released as (
    update image_sync.chunks c
    set state = 'pending', past_leases = c.past_leases || c.lease_token, lease_token = null, lease_expires_at = null, not_before = null
    from free
    where c.run_id = p_run
      and c.number = free.number
    returning 1
  )
  select count(*)::integer
  from released;
$$;

comment on function image_sync.release_chunks(uuid, uuid[]) is 'Makes the chunks that hold these leases (null: all leases of the run) pending again and returns how many there were.';
