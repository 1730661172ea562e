-- The lease on a chunk: who may close it, and what becomes of it when its worker does not. docs/leases.md has the whole of it.

-- The names in a leased chunk that need a URL now. A worker that takes a chunk over asks again instead of trusting what a dead
-- one was told: objects may be gone and URLs may have been made since. What has no record yet comes from the chunk's own list, so
-- that a file that was uploaded after the listing is left to the next run and the ledger balances.
create function image_sync.names_to_sign(p_run image_sync.runs, p_settings image_sync.settings, p_chunk image_sync.chunks)
returns text[]
language sql
stable
set search_path = ''
return (
  with objects as (
    select o.name
    from image_sync.objects o
    where o.bucket_id = p_run.bucket_id
      and o.name collate "C" > p_chunk.from_key
      and o.name collate "C" <= coalesce(p_chunk.to_key, image_sync.last_key())
  ), records as (
    select r.file_name, r.usable_until
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
    else coalesce(
      records.usable_until < case when p_run.options ->> 'renew' = 'all' then 'infinity' else now() + p_settings.renew_before end,
      true
    )
  end
);

comment on function image_sync.names_to_sign(image_sync.runs, image_sync.settings, image_sync.chunks) is
  'Files of the chunk that need a URL: those whose record is to be inserted, and those whose record has none, an expired one, one that expires within renew_before, or any after renew = all.';

-- Ends an attempt that failed: the chunk waits for the next one, longer each time, or is dead. Its images get their records all the
-- same, without a URL.
create function image_sync.end_attempt(
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
  v_insertion image_sync.insertion;
  v_chunk image_sync.chunks;
begin
  v_insertion := image_sync.insert_missing(p_bucket_id, p_chunk);
  v_chunk := v_insertion.chunk;

  update image_sync.chunks c
  set
    state = case when c.attempts + 1 >= p_settings.max_attempts then 'dead' else 'pending' end,
    attempts = c.attempts + 1,
    inserted = v_chunk.inserted,
    recorded = v_chunk.recorded,
    collided = v_chunk.collided,
    vanished = v_chunk.vanished,
    missing = v_chunk.missing,
    to_insert = v_chunk.to_insert,
    records = v_chunk.records,
    facts = v_chunk.facts,
    problems = v_chunk.problems,
    -- A chunk that failed costs its records their URLs, not their place in the ledger.
    failed = case when c.attempts + 1 >= p_settings.max_attempts then c.to_sign else 0 end,
    not_before = clock_timestamp() + p_settings.retry_delay * power(2, least(c.attempts, 10)),
    lease_expires_at = null,
    storage_calls = c.storage_calls + p_storage_calls,
    retries = c.retries + p_retries,
    error = p_error,
    closed_at = case when c.attempts + 1 >= p_settings.max_attempts then clock_timestamp() end
  where c.run_id = p_chunk.run_id
    and c.number = p_chunk.number
  returning c.*
  into v_chunk;
  return v_chunk;
end;
$$;

comment on function image_sync.end_attempt(text, image_sync.settings, image_sync.chunks, jsonb, integer, integer) is
  'Counts a failed attempt at a leased chunk, which is pending again after retry_delay, doubled each time, or dead after max_attempts; inserts the records that it was to insert. Returns the chunk.';

-- Closes the chunk that p_token holds with what signing gave: inserts the records that are missing and stores the URLs. p_names,
-- p_urls and p_expires (seconds since 1970) are parallel.
-- Returns closed; already_closed where this very call was made before (its answer got lost); stale where the token is not, or no
-- longer, the chunk's: then nothing changes.
create function image_sync.close_chunk(
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
  v_last_key text;
  v_insertion image_sync.insertion;
  v_updated integer := 0;
  v_stored integer;
  v_withdrawn integer;
  v_to_sign integer;
  v_problems jsonb;
begin
  select c.*
  into v_chunk
  from image_sync.chunks c
  where c.run_id = p_run.id
    and c.lease_token = p_token
  for update;

  if v_chunk.state is distinct from 'leased' then
    return case
      when v_chunk.state is null or v_chunk.error ->> 'code' = 'lease_expired' then 'stale'
      else 'already_closed'
    end;
  end if;

  -- One update of the chunk and no more: a second one of a row that this transaction wrote would check its foreign key again
  -- and share-lock the run's row, which two workers that go on to lock it for themselves turn into a deadlock.
  if p_error is not null then
    perform image_sync.end_attempt(p_run.bucket_id, p_settings, v_chunk, p_error, p_storage_calls, p_retries);
    return 'closed';
  end if;

  v_last_key := coalesce(v_chunk.to_key, image_sync.last_key());
  v_insertion := image_sync.insert_missing(p_run.bucket_id, v_chunk, p_names, p_urls, p_expires);
  v_chunk := v_insertion.chunk;

  if v_insertion.signed < cardinality(p_names) then
    update public.part_images p
    set signed_url = s.url, signed_url_expires_at = to_timestamp(s.expires)
    from unnest(p_names, p_urls, p_expires) as s (name, url, expires)
    where p.bucket_id = p_run.bucket_id
      and p.file_name collate "C" = s.name
      -- The token's range and nothing else, whatever the caller sends. Said of the record: so the index bounds what is read, also
      -- where the planner knows nothing yet of a table that is only being filled.
      and p.file_name collate "C" > v_chunk.from_key
      and p.file_name collate "C" <= v_last_key
      and (v_insertion.signed = 0 or not exists (
        select
        from unnest(v_insertion.inserted) as i (name)
        where i.name = s.name
      ));
    get diagnostics v_updated = row_count;
  end if;
  v_stored := v_insertion.signed + v_updated;

  -- An object that went away since it was listed is no failure: its record is orphaned from now on.
  select
    count(*) filter (where not f.is_object),
    coalesce(jsonb_agg(jsonb_build_object('name', f.name, 'code', 'signing_failed', 'detail', f.error)) filter (where f.is_object), '[]')
  into v_withdrawn, v_problems
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
  v_withdrawn := v_withdrawn + cardinality(p_names) - v_stored;

  -- A call that was repeated gave its worker the names of that moment, which need not be those that were counted first. What
  -- counts is what the worker was given and what is owed still: a name that got lost on the way unbalances the ledger.
  v_to_sign := v_stored + v_withdrawn + jsonb_array_length(v_problems);
  if v_to_sign <> v_chunk.to_sign then
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

  with measured as (
    select
      count(*) as records,
      count(*) filter (where r.signed) as records_signed,
      count(*) filter (where r.expired) as records_expired,
      count(r.usable_until) as usable,
      min(r.usable_until) as soonest_expiry
    from image_sync.records r
    where r.bucket_id = p_run.bucket_id
      and r.file_name collate "C" > v_chunk.from_key
      and r.file_name collate "C" <= v_last_key
  )
  update image_sync.chunks c
  set
    state = 'done',
    inserted = v_chunk.inserted,
    recorded = v_chunk.recorded,
    collided = v_chunk.collided,
    vanished = v_chunk.vanished,
    missing = v_chunk.missing,
    to_insert = v_chunk.to_insert,
    facts = v_chunk.facts,
    to_sign = v_to_sign,
    signed = v_stored,
    updated = v_updated,
    withdrawn = v_withdrawn,
    failed = jsonb_array_length(v_problems),
    storage_calls = c.storage_calls + p_storage_calls,
    retries = c.retries + p_retries,
    problems = v_chunk.problems || v_problems,
    records = measured.records,
    records_signed = measured.records_signed,
    records_expired = measured.records_expired,
    soonest_expiry = measured.soonest_expiry,
    images_signed = measured.usable - case
      -- Only where the range holds records of no image are those with a URL told apart.
      when measured.records > v_chunk.recorded + v_chunk.inserted then (
        select count(*)
        from image_sync.records r
        left join image_sync.objects o
          on o.bucket_id = r.bucket_id
          and o.name collate "C" = r.file_name
          and o.extension = any (p_settings.extensions)
        where r.bucket_id = p_run.bucket_id
          and r.file_name collate "C" > v_chunk.from_key
          and r.file_name collate "C" <= v_last_key
          and r.usable_until is not null
          and o.name is null
      )
      else 0
    end,
    lease_expires_at = null,
    error = null,
    closed_at = clock_timestamp()
  from measured
  where c.run_id = v_chunk.run_id
    and c.number = v_chunk.number;
  return 'closed';
end;
$$;

comment on function image_sync.close_chunk(image_sync.runs, image_sync.settings, uuid, text[], text[], bigint[], jsonb, jsonb, integer, integer) is
  'Inserts the missing records of a leased chunk, stores its URLs and closes it, or counts its failed attempt (p_error). Returns closed, already_closed or stale; a stale call changes nothing.';

-- Leases a chunk that waits or whose lease ran out. The caller holds the run's row lock, which makes claiming one at a time;
-- skip locked passes over a chunk that its late worker is closing at this moment.
create function image_sync.claim_chunk(
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
    where c.run_id = p_run.id
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

    v_names := image_sync.names_to_sign(p_run, p_settings, v_chunk);
    update image_sync.chunks c
    set
      state = 'leased',
      past_leases = array_remove(c.past_leases || c.lease_token, null),
      lease_token = p_lease,
      lease_expires_at = clock_timestamp() + p_settings.lease_duration,
      not_before = null,
      worker_id = p_worker,
      to_sign = cardinality(v_names)
    where c.run_id = v_chunk.run_id
      and c.number = v_chunk.number
    returning c.*
    into v_chunk;
    return (v_chunk, v_names)::image_sync.chunk_to_sign;
  end loop;
end;
$$;

comment on function image_sync.claim_chunk(image_sync.runs, image_sync.settings, uuid, uuid) is
  'Leases the first chunk that waits or whose lease expired, with the names in it that need a URL now; null where there is none. A lease that expired counts as a failed attempt.';

-- Gives back what a worker holds and will not do any more: no attempt is counted.
create function image_sync.release_chunks(p_run uuid, p_leases uuid[])
returns integer
language sql
set search_path = ''
begin atomic
  with released as (
    update image_sync.chunks c
    set state = 'pending', past_leases = c.past_leases || c.lease_token, lease_token = null, lease_expires_at = null, not_before = null
    where c.run_id = p_run
      and c.state = 'leased'
      and (p_leases is null or c.lease_token = any (p_leases))
    returning 1
  )
  select count(*)::integer
  from released;
end;

comment on function image_sync.release_chunks(uuid, uuid[]) is 'Makes the chunks that hold these leases (null: all leases of the run) pending again and returns how many there were.';

revoke all on function
  image_sync.names_to_sign(image_sync.runs, image_sync.settings, image_sync.chunks),
  image_sync.end_attempt(text, image_sync.settings, image_sync.chunks, jsonb, integer, integer),
  image_sync.close_chunk(image_sync.runs, image_sync.settings, uuid, text[], text[], bigint[], jsonb, jsonb, integer, integer),
  image_sync.claim_chunk(image_sync.runs, image_sync.settings, uuid, uuid),
  image_sync.release_chunks(uuid, uuid[])
from public;
grant execute on function
  image_sync.names_to_sign(image_sync.runs, image_sync.settings, image_sync.chunks),
  image_sync.end_attempt(text, image_sync.settings, image_sync.chunks, jsonb, integer, integer),
  image_sync.close_chunk(image_sync.runs, image_sync.settings, uuid, text[], text[], bigint[], jsonb, jsonb, integer, integer),
  image_sync.claim_chunk(image_sync.runs, image_sync.settings, uuid, uuid),
  image_sync.release_chunks(uuid, uuid[])
to service_role;
