-- set
-- The lease on a chunk: who may close it, and what becomes of it when its worker does not. docs/leases.md has the whole of it.

-- The next chunk that is free: given back, waited out, or of a worker whose lease ran out, which counts as a failed attempt. The caller
-- holds the run's row lock, which makes claiming one at a time; skip locked passes over a chunk that its late worker is closing now.
create or replace function image_sync.claim_chunk(p_run image_sync.runs)
returns image_sync.chunks language plpgsql set search_path = '' as $$
declare
  v_chunk image_sync.chunks;
begin
  select c.*
  into v_chunk
  from image_sync.chunks c
  where c.run_id is not distinct from p_run.id
    and c.state in ('pending', 'leased')
    and (
      c.state = 'pending' and coalesce(c.not_before <= clock_timestamp(), true)
      or c.state = 'leased' and c.lease_expires_at <= clock_timestamp()
    )
  order by c.number limit 1
  for update skip locked;
  if v_chunk.state = 'leased' then
    v_chunk.attempts := v_chunk.attempts + 1;
    v_chunk.error := jsonb_build_object('code', 'lease_expired', 'title', 'A worker did not finish its chunk in time', 'detail', format('Worker %s leased chunk %s and was not heard of again.', v_chunk.worker_id, v_chunk.number));
  end if;
  return v_chunk;
end;
$$;

comment on function image_sync.claim_chunk(image_sync.runs) is
  'The first chunk that waits or whose lease expired, its row locked and its attempts counted (not stored); null columns where there is none.';

-- Leases a chunk. A chunk that has failed too often is given up: there is nothing to sign any more, and whoever closes it writes the
-- records that are missing without URLs.
create or replace function image_sync.lease_chunk(p_chunk image_sync.chunks, p_settings image_sync.settings, p_worker uuid, p_lease uuid)
returns image_sync.chunks language plpgsql set search_path = '' as $$
declare
  v_chunk image_sync.chunks;
begin
  update image_sync.chunks c
  set
    state = 'leased',
    attempts = p_chunk.attempts,
    error = p_chunk.error,
    lease_token = p_lease,
    lease_expires_at = clock_timestamp() + p_settings.lease_duration,
    not_before = null,
    worker_id = p_worker
  where c.run_id = p_chunk.run_id and c.number = p_chunk.number
  returning *
  into v_chunk;
  return v_chunk;
end;
$$;

comment on function image_sync.lease_chunk(image_sync.chunks, image_sync.settings, uuid, uuid) is 'Stores the lease of a chunk and returns it.';

-- The chunk that a worker closes, its row locked: by number and token, so that a late call never meets a chunk that it does not mean.
-- Whoever else is at the row is this call's double, over in a moment. Null columns where it is not to be had.
create or replace function image_sync.lock_chunk(p_run uuid, p_number integer)
returns image_sync.chunks language plpgsql set search_path = '' set lock_timeout = '400ms' as $$
declare
  v_chunk image_sync.chunks;
begin
  select c.*
  into v_chunk
  from image_sync.chunks c
  where c.run_id = p_run and c.number = p_number
  for update;
  return v_chunk;
exception
  when lock_not_available then
    return null;
end;
$$;

comment on function image_sync.lock_chunk(uuid, integer) is 'Locks the row of a chunk and returns it; null columns after 400 ms without the lock.';

-- Closes a leased chunk with what its worker has of it, or counts its failed attempt (p_error).
-- Returns closed; more where something is left and the same call is to be made again; already_closed where it was made before, its
-- answer lost; stale where the token is not, or no longer, the chunk's: then nothing changes.
create or replace function image_sync.close_lease(
  p_run image_sync.runs, p_settings image_sync.settings, p_number integer, p_token uuid,
  p_names text[], p_urls text[], p_expires bigint[], p_failures jsonb, p_error jsonb, p_storage_calls integer, p_retries integer
)
returns text language plpgsql set search_path = '' as $$
declare
  v_chunk image_sync.chunks := image_sync.lock_chunk(p_run.id, p_number);
  v_counts constant jsonb := jsonb_build_object('storage_calls', p_storage_calls, 'retries', p_retries);
begin
  if v_chunk.run_id is null and p_run.finished_at is null and exists (select from image_sync.chunks c where c.run_id = p_run.id and c.number = p_number) then
    return 'more';
  elsif p_run.finished_at is not null and v_chunk.state = 'leased' or v_chunk.lease_token is distinct from p_token or v_chunk.state = 'pending' or v_chunk.state is null then
    return 'stale';
  elsif v_chunk.state <> 'leased' then
    return 'already_closed';
  end if;
  if p_error is not null and coalesce(p_error ->> 'is_final', 'false') <> 'true' then
    -- It waits for its next attempt, longer each time; after the last one it is given up at once.
    update image_sync.chunks c
    set
      state = 'pending',
      attempts = c.attempts + 1,
      ledger = image_sync.add_counts(c.ledger, v_counts),
      not_before = clock_timestamp() + case when c.attempts + 1 < p_settings.max_attempts then p_settings.retry_delay * power(2, least(c.attempts, 10)) else interval '0' end,
      lease_expires_at = null,
      error = p_error - 'is_final'
    where c.run_id = p_run.id and c.number = p_number;
    return 'closed';
  elsif p_run.mode = 'verify' then
    v_chunk.ledger := image_sync.add_counts(v_chunk.ledger, v_counts);
    return image_sync.close_verified(p_run, v_chunk, p_names, p_failures, v_chunk.attempts >= p_settings.max_attempts);
  elsif p_error is not null then
    v_chunk.error := p_error - 'is_final';
    v_chunk.attempts := greatest(v_chunk.attempts, p_settings.max_attempts);
  end if;
  return image_sync.close_chunk(p_run, p_settings, v_chunk, p_names, p_urls, p_expires, p_failures, v_counts);
end;
$$;

comment on function image_sync.close_lease(image_sync.runs, image_sync.settings, integer, uuid, text[], text[], bigint[], jsonb, jsonb, integer, integer) is
  'Closes the chunk of this number if the token holds it: closed, more, already_closed or stale.';

-- Writes what a chunk has to write and accounts for each of its names: all of it, or, where the database was too slow for that once, as
-- many rows as it does in time; the rest is left in the chunk.
--   p_counts  what signing took, counted once: with the last of its rows
create or replace function image_sync.close_chunk(
  p_run image_sync.runs, p_settings image_sync.settings, p_chunk image_sync.chunks, p_names text[], p_urls text[], p_expires bigint[], p_failures jsonb, p_counts jsonb
)
returns text
language plpgsql
set search_path = ''
-- Arrays of a thousand are joined by their hashes.
set enable_hashjoin = 'on'
as $$
declare
  v_since constant timestamptz := clock_timestamp();
  v_size constant integer := coalesce(p_chunk.write_size, p_run.chunk_size, p_settings.chunk_size);
  v_is_given_up constant boolean := p_chunk.attempts >= p_settings.max_attempts;
  v_tried constant text[] := p_chunk.to_do[:v_size];
  v_linked constant text[] := p_chunk.to_link[:v_size - cardinality(v_tried)];
  v_to_do constant text[] := p_chunk.to_do[v_size + 1:];
  v_to_link constant text[] := p_chunk.to_link[cardinality(v_linked) + 1:];
  v_is_over constant boolean := v_to_do = '{}' and v_to_link = '{}';
  v_items image_sync.item[];
  v_write image_sync.write := ('{}', '{}', '{}', '[]')::image_sync.write;
  v_chunk image_sync.chunks := p_chunk;
begin
  v_items := array(
    select (n.name, case when f.name is null then s.url when not image_sync.is_signable(n.name) then '' end, to_timestamp(s.expires), n.id)::image_sync.item
    from unnest(v_tried, p_chunk.to_do_ids[:v_size]) as n (name, id)
    left join unnest(p_names, p_urls, p_expires) as s (name, url, expires)
      on s.name = n.name
    left join jsonb_to_recordset(p_failures) as f (name text)
      on f.name = n.name
    order by n.name collate "C"
  ) || array(
    select (n.name, null, null, null)::image_sync.item
    from unnest(v_linked) as n (name)
  );
  -- Given up and not heard of again: its worker died while it wrote. Nothing is written then.
  if p_chunk.attempts < p_settings.max_attempts + 3 then
    v_write := image_sync.write_rows('store', p_run, v_items);
  end if;
  v_chunk := image_sync.account_for(p_run, p_settings, v_chunk, v_items[:cardinality(v_tried)], v_write, p_failures, v_is_given_up);
  v_chunk.ledger := image_sync.add_counts(v_chunk.ledger, jsonb_build_object('linked', (select count(*) from unnest(v_linked) as n (name) where n.name = any (v_write.written))));
  if v_is_over then
    -- Whatever of it was found to be an image and had no other end has a record.
    v_chunk.ledger := image_sync.add_counts(v_chunk.ledger - 'unsettled', jsonb_build_object('recorded', v_chunk.ledger -> 'unsettled') || p_counts);
  end if;
  update image_sync.chunks c
  set
    state = case when not v_is_over then 'leased' when v_is_given_up then 'dead' else 'done' end,
    to_do = v_to_do,
    to_do_ids = case when v_is_over then '{}' else c.to_do_ids[v_size + 1:] end,
    to_link = v_to_link,
    write_size = case when v_is_over then null else v_size * case when clock_timestamp() < v_since + interval '500 milliseconds' then 4 else 1 end end,
    ledger = v_chunk.ledger,
    facts = v_chunk.facts,
    problems = v_chunk.problems,
    error = case when v_is_given_up then v_chunk.error end,
    attempts = v_chunk.attempts,
    lease_expires_at = case when not v_is_over then clock_timestamp() + p_settings.lease_duration end,
    closed_at = case when v_is_over then clock_timestamp() end
  where c.run_id = p_chunk.run_id and c.number = p_chunk.number;
  return case when v_is_over then 'closed' else 'more' end;
end;
$$;

comment on function image_sync.close_chunk(image_sync.runs, image_sync.settings, image_sync.chunks, text[], text[], bigint[], jsonb, jsonb) is
  'Writes the records of a leased chunk whose row the caller has locked. Returns closed, or more where rows are left.';

-- Where every name went that a chunk had to sign: signed, held, withdrawn (gone, or not taken by the table) or failed; and what became of
-- images that had no record. A record may have come to follow its file to one of them meanwhile: the next run takes it along.
create or replace function image_sync.account_for(
  p_run image_sync.runs, p_settings image_sync.settings, p_chunk image_sync.chunks, p_items image_sync.item[], p_write image_sync.write, p_failures jsonb, p_is_given_up boolean
)
returns image_sync.chunks
language plpgsql
set search_path = ''
-- Arrays of a thousand are joined by their hashes.
set enable_hashjoin = 'on'
as $$
declare
  v_chunk image_sync.chunks := p_chunk;
  v_expires timestamptz[];
  v_rest text[];
  v_others integer := 0;
  v_look image_sync.look;
  v_ends record;
begin
  select array_agg(i.expires_at) filter (where i.url <> '' and w.name is not null), array_agg(i.name) filter (where (i.url <> '' and w.name is not null) is not true)
  into v_expires, v_rest
  from unnest(p_items) as i
  left join unnest(p_write.written) as w (name)
    on w.name = i.name;
  -- Records of no image have URLs too, and are few.
  if v_expires is not null and image_sync.count_of(p_chunk.ledger, 'unsettled') <> cardinality(p_chunk.to_do) then
    select count(*)
    into v_others
    from image_sync.see_names(p_run, p_settings, p_write.written) as c
    where c.kind <> 'image' and c.name <> all (coalesce(v_rest, '{}'));
  end if;
  v_chunk.ledger := image_sync.add_counts(v_chunk.ledger, jsonb_build_object(
    'signed', cardinality(v_expires), 'records', cardinality(v_expires), 'records_signed', cardinality(v_expires), 'images_signed', cardinality(v_expires) - v_others,
    'inserted', cardinality(p_write.inserted), 'unsettled', -cardinality(p_write.inserted),
    'updated', cardinality(v_expires) - (select count(*) from unnest(p_write.inserted) as n (name) where n.name <> all (coalesce(v_rest, '{}')))
  ));
  v_chunk.facts := image_sync.add_expiry(v_chunk.facts, v_expires);
  if v_rest is null then
    return v_chunk;
  end if;

  with ended as (
    select
      n.name, f.error, w.words, w.is_taken, n.name = any (p_write.held) as is_held, f.name is not null as has_failed,
      c.kind is not null as is_object, coalesce(c.is_record, false) as is_record, coalesce(c.arrives, false) as is_elsewhere
    from unnest(v_rest) as n (name)
    left join image_sync.see_names(p_run, p_settings, v_rest) as c
      on c.name = n.name
    left join jsonb_to_recordset(p_failures) as f (name text, error text)
      on f.name = n.name
    left join jsonb_to_recordset(p_write.refused) as w (name text, words text, is_taken boolean)
      on w.name = n.name
  ), told as (
    select e.*,
      case when not e.is_object then 'withdrawn' when e.has_failed then 'failed' when e.is_held then 'held' when p_is_given_up or e.is_record then 'failed' else 'withdrawn' end as outcome,
      case when e.is_record then null when not e.is_object then 'vanished' when e.is_held or e.is_elsewhere or p_is_given_up and e.words is null then 'missing' else 'collided' end as fate
    from ended e
  )
  select
    (
      select jsonb_object_agg(k.key, k.names)
      from (
        select t.outcome as key, count(*) as names from told t group by 1
        union all
        select t.fate, count(*) from told t where t.fate is not null group by 1
        union all
        select 'unsettled', -count(*) from told t where t.fate is not null having count(*) > 0
      ) as k
    ) as counts,
    (
      select coalesce(jsonb_agg(image_sync.item_problem(
        t.name,
        case
          when t.outcome = 'held' then 'row_locked'
          when t.has_failed and image_sync.is_signable(t.name) then 'signing_failed'
          when t.has_failed then 'unsignable_name'
          when t.is_record then 'url_refused'
          else 'record_refused'
        end,
        case when t.has_failed and t.outcome = 'failed' then t.error when t.outcome <> 'held' then coalesce(t.words, 'a trigger of the table keeps what it had') end
      ) order by t.name collate "C"), '[]')
      from told t
      where t.outcome = 'held' or t.outcome = 'failed' and (t.has_failed or not p_is_given_up) or t.fate = 'collided' and not t.is_taken
    ) as problems,
    (select to_jsonb((array_agg(t.name order by t.name collate "C"))[1:20]) from told t where t.fate = 'collided') as collided
  into v_ends;
  v_look := image_sync.look(p_run, p_settings, 'measure', null, null, v_rest);
  v_chunk.ledger := image_sync.add_counts(image_sync.add_counts(v_chunk.ledger, v_ends.counts), image_sync.record_counts(v_look) - 'missing');
  v_chunk.facts := v_chunk.facts || jsonb_strip_nulls(jsonb_build_object(
    'expiry', image_sync.add_counts(v_chunk.facts -> 'expiry', v_look.facts -> 'expiry'),
    'soonest_expiry', least(v_chunk.facts ->> 'soonest_expiry', v_look.facts ->> 'soonest_expiry'),
    'orphaned', image_sync.first_items(coalesce(v_chunk.facts -> 'orphaned', '[]') || coalesce(v_look.facts -> 'orphaned', '[]')),
    'collided', to_jsonb(image_sync.first_names(nullif(image_sync.texts(v_chunk.facts -> 'collided') || image_sync.texts(v_ends.collided), '{}')))
  ));
  v_chunk.problems := v_chunk.problems || v_ends.problems;
  return v_chunk;
end;
$$;

comment on function image_sync.account_for(image_sync.runs, image_sync.settings, image_sync.chunks, image_sync.item[], image_sync.write, jsonb, boolean) is
  'A chunk (not stored) with what became of those of its names that were tried: what was counted, and the problems by name.';

-- What a look counted of records: their files were counted before.
create or replace function image_sync.record_counts(p_look image_sync.look)
returns jsonb language sql immutable set search_path = '' as $$
  select coalesce(jsonb_object_agg(e.key, e.value), '{}')
  from jsonb_each(p_look.ledger) as e
  where e.key = any ('{records,records_signed,records_expired,images_signed,orphaned,orphans_unsigned,orphans_expired,missing}')
$$;

comment on function image_sync.record_counts(image_sync.look) is 'The counters of a look that say something of records.';

create or replace function image_sync.add_expiry(p_facts jsonb, p_expires timestamptz[])
returns jsonb language sql stable set search_path = '' set timezone = 'UTC' as $$
  select case when p_expires is null then p_facts else p_facts || jsonb_build_object(
    'expiry', image_sync.add_counts(p_facts -> 'expiry', (select jsonb_object_agg(d.day, d.urls) from (select e.at::date as day, count(*) as urls from unnest(p_expires) as e (at) group by 1) as d)),
    'soonest_expiry', least((p_facts ->> 'soonest_expiry')::timestamptz, (select min(e.at) from unnest(p_expires) as e (at)))
  ) end
$$;

comment on function image_sync.add_expiry(jsonb, timestamptz[]) is 'The facts of a chunk with more URLs that die at these times.';

-- Ends an attempt at a chunk that the database ended: its transaction is gone, so nothing of it is known but the error. What took too
-- long is written in tenths by the same worker, with the same URLs; a single row that takes too long is left out and named. What
-- somebody held waits for them, however often.
create or replace function image_sync.interrupt_chunk(p_run image_sync.runs, p_settings image_sync.settings, p_chunk image_sync.chunks, p_error jsonb)
returns text language plpgsql set search_path = '' as $$
declare
  v_left constant integer := cardinality(p_chunk.to_do) + cardinality(p_chunk.to_link);
  v_size constant integer := least(coalesce(p_chunk.write_size, p_run.chunk_size, p_settings.chunk_size), v_left);
  v_slow constant text := case when v_size <= 1 then coalesce(p_chunk.to_do[1], p_chunk.to_link[1]) end;
  v_counts jsonb;
begin
  if p_error ->> 'code' <> 'database_timeout' or p_run.mode = 'verify' then
    update image_sync.chunks c
    set state = 'pending', not_before = clock_timestamp() + least(p_settings.retry_delay, interval '10 seconds'), lease_expires_at = null, error = p_error
    where c.run_id = p_chunk.run_id and c.number = p_chunk.number;
    return 'waits';
  end if;
  if v_slow = any (p_chunk.to_do) then
    v_counts := image_sync.record_counts(image_sync.look(p_run, p_settings, 'measure', null, null, array[v_slow]));
    v_counts := v_counts || jsonb_build_object('failed', 1, 'unsettled', -image_sync.count_of(v_counts, 'missing'));
  end if;
  v_counts := case when v_slow is not null then coalesce(v_counts, '{}') || '{"too_slow": 1}' end;
  update image_sync.chunks c
  set
    write_size = case when v_slow is null then greatest(v_size / 10, 1) end,
    to_do = array_remove(c.to_do, v_slow),
    to_do_ids = case when v_slow = any (c.to_do) then c.to_do_ids[2:] else c.to_do_ids end,
    to_link = array_remove(c.to_link, v_slow),
    lease_expires_at = clock_timestamp() + p_settings.lease_duration,
    ledger = image_sync.add_counts(c.ledger, v_counts),
    problems = case when v_slow is null then c.problems else c.problems || image_sync.item_problem(v_slow, p_error ->> 'code', p_error ->> 'detail') end
  where c.run_id = p_chunk.run_id and c.number = p_chunk.number;
  -- The chunks that follow begin where this one ended up; one slow row is no reason to.
  update image_sync.runs r
  set chunk_size = case when v_slow is null then greatest(least(r.chunk_size, v_size) / 10, 1) end
  where r.id = p_run.id;
  return 'more';
end;
$$;

comment on function image_sync.interrupt_chunk(image_sync.runs, image_sync.settings, image_sync.chunks, jsonb) is
  'After a timeout lets the same close be made again with a tenth of the rows (more), or without the one row that takes too long; otherwise lets the chunk wait (waits). The caller holds the run''s row lock.';

-- Gives back what a worker holds and will not do any more: no attempt is counted.
create or replace function image_sync.release_chunks(p_run uuid, p_leases uuid[])
returns integer language sql set search_path = '' as $$
  with free as materialized (
    -- A row that somebody else holds is not waited for: its lease runs out.
    select c.number
    from image_sync.chunks c
    where c.run_id = p_run and c.state = 'leased' and (p_leases is null or c.lease_token = any (p_leases))
    for update skip locked
  ), released as (
    update image_sync.chunks c
    set state = 'pending', lease_token = null, lease_expires_at = null, not_before = null
    from free
    where c.run_id = p_run and c.number = free.number
    returning 1
  )
  select count(*)::integer
  from released;
$$;

comment on function image_sync.release_chunks(uuid, uuid[]) is 'Makes the chunks that hold these leases (null: all leases of the run) pending again and returns how many there were.';
