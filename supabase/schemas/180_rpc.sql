-- set
-- What the function calls, by name, through the Data API. All are security invoker and executable by service_role alone, and all
-- can be repeated after a lost answer: supabase-js never retries a POST, so the worker does.

-- Opens a run in a mode, or finds the one that is open.
-- Returns {"run": document, "created": boolean} or {"problem": {...}}: unknown_bucket (404), conflicting_run (409), and for
-- cleanup and restore the guards.
create or replace function public.image_sync_start(p_run uuid, p_bucket text, p_mode text, p_options jsonb default '{}')
returns jsonb language plpgsql set search_path = '' set lock_timeout = '2s' as $$
declare
  v_run image_sync.runs;
  v_problem jsonb;
  v_plan uuid;
  v_total bigint;
begin
  if p_mode = 'cleanup' and coalesce((p_options ->> 'bucket_is_gone')::boolean, false) and not exists (
    select
    from storage.buckets b
    where b.id = p_bucket
  ) then
    -- Records of a bucket that is gone, and maybe of one that never had settings: their cleanup goes by the defaults.
    insert into image_sync.settings (bucket_id, nightly)
    select p_bucket, false
    where p_bucket !~ '[\u0001-\u001f\u007f-\u009f\u2028\u2029]'
      and exists (
        select
        from public.part_images p
        where p.bucket_id = p_bucket
        order by p.file_name collate "C"
        offset 0
      )
    on conflict do nothing;
  end if;
  if not exists (select from image_sync.settings s where s.bucket_id = p_bucket) then
    return image_sync.problem(
      404, 'unknown_bucket', 'The bucket has no settings',
      format('Cannot %s bucket %s: image_sync.settings has no row for it. Add one with: insert into image_sync.settings (bucket_id) values (%L);', p_mode, p_bucket, p_bucket)
    );
  end if;

  -- Starting is one at a time per bucket, so that what excludes each other cannot begin together.
  perform pg_advisory_xact_lock(hashtextextended('image_sync.start ' || p_bucket, 0));
  select r.*
  into v_run
  from image_sync.runs r
  where r.id = p_run
    or (r.bucket_id = p_bucket and r.mode = p_mode and r.finished_at is null)
  order by (r.id = p_run) desc limit 1;

  -- The same list confirmed twice is one run; another list has to wait.
  if v_run.id is null or (v_run.id <> p_run and v_run.plan_id is distinct from coalesce(p_options ->> 'confirm', p_options ->> 'restore')::uuid) then
    if p_mode in ('cleanup', 'restore') then
      select g.problem, g.plan, g.total
      into v_problem, v_plan, v_total
      from image_sync.check_guards(p_bucket, p_mode, p_options) as g;
      if v_problem is not null then
        return v_problem;
      end if;
    end if;
    v_run := image_sync.open_run(p_run, p_bucket, p_mode, 'request', p_options, v_plan, coalesce(v_total, image_sync.estimate_total(p_bucket)));
  end if;
  -- What a cleanup or a restore changed lies behind an analyze that is open already: it begins anew.
  if p_mode = 'analyze' and p_options ? 'after' and v_run.options -> 'after' is distinct from p_options -> 'after' then
    update image_sync.runs r
    set options = r.options || p_options, cursor = '', exhausted = false, stride = null, twins = null, twins_cursor = null, twin_keys = '{}'
    where r.id = v_run.id and r.finished_at is null;
    if found then
      delete from image_sync.chunks c
      where c.run_id = v_run.id;
    end if;
  end if;
  return jsonb_build_object('run', image_sync.run_document(v_run.id), 'created', v_run.id = p_run);
end;
$$;

comment on function public.image_sync_start(uuid, text, text, jsonb) is
  'Opens a run with the id that the caller made, or returns the run that is open in this mode (created: false). Problems: unknown_bucket, conflicting_run, and the guards of cleanup and restore.';

-- What a worker does next, by the rules of image_sync_advance. The caller holds the run's row lock.
create or replace function image_sync.next_work(p_run image_sync.runs, p_settings image_sync.settings, p_worker uuid, p_lease uuid)
returns jsonb language plpgsql set search_path = '' as $$
declare
  v_chunk image_sync.chunks;
  -- Until a verify may open more URLs.
  v_wait_ms constant integer := case when p_run.mode = 'verify' and p_run.paced_until > clock_timestamp() then ceil(1000 * extract(epoch from p_run.paced_until - clock_timestamp())) end;
begin
  -- This very call made before, its answer lost.
  select c.*
  into v_chunk
  from image_sync.chunks c
  where c.run_id is not distinct from p_run.id and c.lease_token = p_lease;
  if v_chunk.run_id is null then
    if v_wait_ms is not null then
      return jsonb_build_object('next', 'wait', 'wait_ms', v_wait_ms);
    end if;
    v_chunk := image_sync.claim_chunk(p_run);
    if v_chunk.run_id is not null then
      v_chunk := image_sync.lease_chunk(v_chunk, p_settings, p_worker, p_lease);
    elsif not p_run.exhausted then
      v_chunk := image_sync.walk(p_run, p_settings, p_worker, p_lease);
    end if;
    if v_chunk.run_id is null then
      return image_sync.last_work(p_run, p_settings);
    end if;
  elsif v_chunk.state <> 'leased' then
    return jsonb_build_object('next', 'again');
  end if;
  return image_sync.work_document(p_run, p_settings, v_chunk);
end;
$$;

comment on function image_sync.next_work(image_sync.runs, image_sync.settings, uuid, uuid) is
  'What image_sync_advance answers of the next chunk: sign, open, again, busy, wait, probe or stop. The caller holds the run''s row lock.';

-- How many lanes more are of use behind a chunk. All lanes of all runs are ten, and one for each worker: the Data API has ten sessions
-- (PostgREST's db-pool, by default), which the project's own requests want too, and beyond that lanes only wait for each other.
-- Buckets that begin together are counted by their runs: what they have leased nobody sees yet. A run that stands still takes none.
create or replace function image_sync.more_lanes(p_run uuid, p_chunk image_sync.chunks)
returns integer language plpgsql stable set search_path = '' as $$
begin
  return (
    select case when r.exhausted then 0 else greatest(least(
      greatest(ceil(1.0 * r.total_estimate / greatest(image_sync.count_of(p_chunk.ledger, 'listed'), 1)) - p_chunk.number, 1),
      10 - (
        select count(*)
        from image_sync.chunks c
        where c.state in ('pending', 'leased') and c.lease_expires_at > clock_timestamp()
      ),
      10 - (
        select count(*)
        from image_sync.runs o
        where o.finished_at is null and o.moved_at > clock_timestamp() - interval '1 minute'
      )
    ), 0) end
    from image_sync.runs r
    where r.id = p_run
  );
end;
$$;

comment on function image_sync.more_lanes(uuid, image_sync.chunks) is
  'How many lanes more a worker may start behind its chunk: about as many as chunks are left, and no more than ten of all runs together.';

-- A leased chunk as its worker gets it. One that was given up has nothing left to sign or to open, and is closed.
create or replace function image_sync.work_document(p_run image_sync.runs, p_settings image_sync.settings, p_chunk image_sync.chunks)
returns jsonb language plpgsql set search_path = '' as $$
declare
  v_names constant text[] := case when p_chunk.attempts < p_settings.max_attempts then p_chunk.to_do else '{}' end;
  v_chunk constant jsonb := jsonb_build_object(
    'number', p_chunk.number,
    'lease_ms', floor(1000 * extract(epoch from p_chunk.lease_expires_at - clock_timestamp())),
    'public_url', p_settings.public_url
  );
begin
  return case
    when p_run.mode = 'verify' then jsonb_build_object('next', 'open', 'chunk', v_chunk || jsonb_build_object(
      'targets', image_sync.lease_targets(p_run, p_settings, v_names),
      'rate', p_settings.verify_rate
    ))
    else jsonb_build_object('next', 'sign', 'chunk', v_chunk || jsonb_build_object(
      'names', v_names,
      'expires_in', extract(epoch from p_settings.signed_url_ttl)::integer,
      'more_lanes', image_sync.more_lanes(p_run.id, p_chunk)
    ))
  end;
end;
$$;

comment on function image_sync.work_document(image_sync.runs, image_sync.settings, image_sync.chunks) is 'The answer sign or open of image_sync_advance for a leased chunk.';

-- What is left where no chunk is to be had: to walk on, to wait for others, to count and to probe, or nothing.
create or replace function image_sync.last_work(p_run image_sync.runs, p_settings image_sync.settings)
returns jsonb language plpgsql set search_path = '' as $$
declare
  v_wait_ms integer;
  v_targets jsonb;
begin
  if not exists (select from image_sync.runs r where r.id = p_run.id and r.exhausted) then
    return jsonb_build_object('next', 'again');
  end if;

  -- What is due and was not to be had is held: by its late worker, which is about to close it, or by somebody who stays.
  select ceil(1000 * extract(epoch from min(case
    when coalesce(c.lease_expires_at, c.not_before) > clock_timestamp() then coalesce(c.lease_expires_at, c.not_before)
    else clock_timestamp() + interval '1 second'
  end) - clock_timestamp()))
  into v_wait_ms
  from image_sync.chunks c
  where c.run_id = p_run.id and c.state in ('pending', 'leased');
  if v_wait_ms is not null then
    return jsonb_build_object('next', 'wait', 'wait_ms', greatest(v_wait_ms, 50));
  end if;

  if p_run.mode = 'sync' and image_sync.settle_moves(p_run, p_settings) then
    return jsonb_build_object('next', 'again');
  end if;
  if p_run.mode in ('sync', 'analyze', 'verify') and not image_sync.count_twins(p_run) then
    return jsonb_build_object('next', 'again');
  end if;
  v_targets := image_sync.pick_probe_targets(p_run, p_settings);
  if jsonb_array_length(v_targets) > 0 then
    return jsonb_build_object('next', 'probe', 'targets', v_targets, 'public_url', p_settings.public_url);
  end if;
  return jsonb_build_object('next', case when image_sync.finish_run(p_run.id, null, null, null, null) then 'stop' else 'busy' end);
end;
$$;

comment on function image_sync.last_work(image_sync.runs, image_sync.settings) is
  'What image_sync_advance answers where no chunk can be leased: again, busy, wait, probe, or stop once it has finished the run. The caller holds the run''s row lock.';

-- The one call of a worker at work: closes the chunk just finished, if any, and leases the next. Two requests per chunk that
-- needs signing (this one and the signing), none per chunk that does not: one call walks over many of those.
--   p_lease    the token of the next chunk, made by the worker: repeating the call returns the same chunk; null: close only
--   p_closing  the token of the chunk just finished, p_number its number; p_names, p_paths, p_tokens and p_expires (seconds since 1970) are parallel,
--              p_failures is [{"name", "error"}], p_error says why the whole chunk failed
--              ("is_final": no other attempt would fare better)
--   p_around   what all URLs share, said once: a URL is p_around[1], its path (null: the name itself), p_around[2], its token
-- Returns {"closed": closed | more | already_closed | stale | null, "next": ..., ...} with next one of
--   more    what is closed is not all written yet: make the same call again
--   sign    {"chunk": {"number", "names", "expires_in" (s), "lease_ms", "public_url", "more_lanes"}}
--   again   the bounds of this call were reached, nothing is left to sign up to here: call again
--   busy    other workers are at the run's row, or close what the end of the run has to count: call again in a moment
--   wait    {"wait_ms"}: others hold what is left, or it waits for its next attempt
--   open    {"chunk": {"number", "targets": [{"name", "url"}], "lease_ms", "rate" (URLs a second), "public_url"}}: in a verify
--   probe   {"targets": [{"name", "url"}], "public_url"}: all is done; fetch these URLs and call image_sync_finish
--   stop    the run is finished
create or replace function public.image_sync_advance(
  p_run uuid,
  p_worker uuid,
  p_lease uuid default null,
  p_closing uuid default null,
  p_names text[] default '{}',
  p_around text[] default '{"",""}',
  p_paths text[] default '{}',
  p_tokens text[] default '{}',
  p_expires bigint[] default '{}',
  p_failures jsonb default '[]',
  p_error jsonb default null,
  p_storage_calls integer default 0,
  p_retries integer default 0,
  p_number integer default null
)
returns jsonb
language plpgsql
set search_path = ''
-- A range of keys is read by its index and in its order, whatever the statistics say. A plan that was made while a table was nearly
-- empty stays in its session's cache while a first night fills the table: it would read all of the table for every chunk. And as
-- the arguments decide nothing, a session plans each statement once instead of six times.
set enable_seqscan = 'off'
set enable_bitmapscan = 'off'
set enable_sort = 'off'
set enable_hashjoin = 'off'
set plan_cache_mode = 'force_generic_plan'
-- Whatever somebody else holds: no call waits for it long.
set lock_timeout = '400ms'
as $$
declare
  v_since constant timestamptz := clock_timestamp();
  v_run image_sync.runs;
  v_settings image_sync.settings;
  v_urls text[];
  v_closed text;
  v_error jsonb;
  -- Taken before the run is looked at: one that is open then stays so until this chunk is closed.
  v_may_close constant boolean := p_closing is null or pg_try_advisory_xact_lock_shared(image_sync.closing_key(p_run));
begin
  select r.*
  into v_run
  from image_sync.runs r
  where r.id = p_run;
  if v_run.id is null then
    raise exception 'Cannot advance run %: there is no such run', p_run
      using errcode = 'no_data_found', hint = 'Start one with image_sync_start.';
  end if;
  -- A worker that was under way when the migrations came does not know what it is answered: its run waits for the next function.
  if not image_sync.function_fits() then
    return jsonb_build_object('closed', null, 'next', 'stop');
  end if;
  select s.*
  into v_settings
  from image_sync.settings s
  where s.bucket_id = v_run.bucket_id;

  -- Closing touches this worker's chunk alone and comes before the run's lock: the expensive part runs side by side.
  if not v_may_close then
    return jsonb_build_object('closed', 'more', 'next', 'more');
  elsif p_closing is not null and v_settings.bucket_id is not null then
    v_urls := array(
      select p_around[1] || coalesce(s.path, s.name) || p_around[2] || s.token
      from unnest(p_names, p_paths, p_tokens) as s (name, path, token)
    );
    v_closed := image_sync.close_lease(
      v_run, v_settings, p_number, p_closing, p_names, v_urls, p_expires, p_failures,
      case when p_error is not null then image_sync.clean_fault(p_error) || jsonb_build_object('is_final', p_error -> 'is_final') end, p_storage_calls, p_retries
    );
    if v_closed = 'more' then
      return jsonb_build_object('closed', v_closed, 'next', 'more');
    end if;
  end if;

  -- A close that took long has the statement's time to itself: what would be listed now could undo it.
  if p_lease is null or clock_timestamp() > v_since + interval '1 second' then
    perform image_sync.note_progress(p_run, v_settings, clock_timestamp() - v_since) where v_closed = 'closed';
    return jsonb_build_object('closed', v_closed, 'next', 'again');
  end if;

  v_run := image_sync.lock_run(p_run);
  if v_run.id is null then
    return jsonb_build_object('closed', v_closed, 'next', 'busy');
  end if;
  if v_run.finished_at is not null then
    return jsonb_build_object('closed', v_closed, 'next', 'stop');
  end if;
  -- Making the next chunk notes it too.
  if v_closed = 'closed' and (v_run.exhausted or v_run.chunk_size is not null) then
    perform image_sync.note_progress(p_run, v_settings, clock_timestamp() - v_since);
    select r.*
    into v_run
    from image_sync.runs r
    where r.id = p_run;
  end if;

  v_error := case
    when v_settings.bucket_id is null then jsonb_build_object(
      'code', 'settings_missing', 'title', 'The bucket''s settings were removed', 'detail', format('image_sync.settings has no row for bucket %s any more.', v_run.bucket_id)
    )
    else coalesce(image_sync.bucket_problem(v_run), image_sync.too_many_failures(v_run, v_settings))
  end;
  if v_error is not null then
    return jsonb_build_object(
      'closed', v_closed,
      'next', case when image_sync.finish_run(p_run, 'failed', v_error ->> 'code', v_error, null) then 'stop' else 'busy' end
    );
  end if;

  return jsonb_build_object('closed', v_closed) || image_sync.next_work(v_run, v_settings, p_worker, p_lease);
end;
$$;

comment on function public.image_sync_advance(uuid, uuid, uuid, uuid, text[], text[], text[], text[], bigint[], jsonb, jsonb, integer, integer, integer) is
  'Closes the chunk that a worker finished and leases its next one, in one transaction; answers more, sign, open, again, busy, wait, probe or stop. Can be repeated with the same tokens. A late close with a token that is no longer the chunk''s changes nothing and answers closed: stale.';

-- A run moves when a chunk is made or closed, not when somebody looks at it. Closing does not wait for the run's row: whoever holds
-- it is moving the run.
create or replace function image_sync.note_progress(p_run uuid, p_settings image_sync.settings, p_took interval)
returns void language sql set search_path = '' as $$
  with free as materialized (
    select r.id
    from image_sync.runs r
    where r.id = p_run and r.finished_at is null
    for no key update skip locked
  )
  update image_sync.runs r
  set
    moved_at = clock_timestamp(),
    -- Where the database was too slow once, it is asked for more again.
    chunk_size = nullif(least(r.chunk_size * case when p_took < interval '1 second' then 4 else 1 end, p_settings.chunk_size), p_settings.chunk_size)
  from free
  where r.id = free.id
$$;

comment on function image_sync.note_progress(uuid, image_sync.settings, interval) is 'Notes that a chunk was closed in this time: the run has moved, and its writes may grow again.';

-- Counts an attempt that the database ended. What went wrong in a transaction that rolled back is written down in this one.
--   p_lease    the call that wanted a chunk under this token failed; or
--   p_closing  the call that wanted to close the chunk of this token failed
--   p_error    {"code", "title", "detail"}; after database_timeout less is tried at once, any other code lets it wait
-- Returns {"ended": whether the token was that of a chunk, or the run's next one, that was waiting for it, "more": whether the same close
-- is to be made again at once}.
create or replace function public.image_sync_end_attempt(
  p_run uuid,
  p_worker uuid,
  p_lease uuid default null,
  p_closing uuid default null,
  p_error jsonb default '{}',
  p_storage_calls integer default 0,
  p_retries integer default 0
)
returns jsonb language plpgsql set search_path = '' set lock_timeout = '2s' as $$
declare
  v_run image_sync.runs;
  v_settings image_sync.settings;
  v_chunk image_sync.chunks;
  v_error jsonb;
  v_ended text;
  v_size integer;
begin
  select r.*
  into v_run
  from image_sync.runs r
  where r.id = p_run
  for update;
  select s.*
  into v_settings
  from image_sync.settings s
  where s.bucket_id = v_run.bucket_id;
  if v_run.id is null or v_run.finished_at is not null or v_settings.bucket_id is null then
    return jsonb_build_object('ended', false, 'more', false);
  end if;

  v_error := image_sync.clean_fault(p_error);
  select c.*
  into v_chunk
  from image_sync.chunks c
  where c.run_id is not distinct from p_run and c.lease_token = coalesce(p_closing, p_lease) and c.state = 'leased'
  for update skip locked;
  if v_chunk.run_id is not null then
    v_ended := image_sync.interrupt_chunk(v_run, v_settings, v_chunk, v_error);
    -- A close that is made again brings them along.
    update image_sync.chunks c
    set ledger = image_sync.add_counts(c.ledger, jsonb_build_object('storage_calls', p_storage_calls, 'retries', p_retries))
    where c.run_id = p_run and c.number = v_chunk.number and v_ended = 'waits';
  elsif p_lease is not null and v_error ->> 'code' = 'database_timeout' and (v_run.plan_id is null or not v_run.exhausted) then
    v_ended := 'next';
    if v_run.plan_id is not null then
      v_size := image_sync.interrupt_plan(v_run, v_settings, p_worker, v_error);
      v_error := v_error || jsonb_build_object('cursor', v_run.cursor);
    elsif v_run.exhausted and v_run.chunk_size = 1 then
      perform image_sync.settle_moves(v_run, v_settings, v_error);
    end if;
    update image_sync.runs r
    set
      stride = case when v_run.exhausted then r.stride else greatest(coalesce(r.stride, v_settings.chunk_size) / 10, 1) end,
      chunk_size = case
        when v_size >= v_settings.chunk_size then null
        when v_size is not null then least(v_size, r.chunk_size)
        when v_run.exhausted then greatest(coalesce(r.chunk_size, v_settings.chunk_size) / 10, 1)
        else r.chunk_size
      end
    where r.id = p_run;
  end if;

  update image_sync.runs r
  set error = v_error
  where r.id = p_run;
  return jsonb_build_object('ended', v_ended is not null, 'more', coalesce(v_ended = 'more', false));
end;
$$;

comment on function public.image_sync_end_attempt(uuid, uuid, uuid, uuid, jsonb, integer, integer) is
  'Counts an attempt that the database ended by a lock or its statement timeout, in a transaction of its own, and keeps the error in the run: after a timeout less is tried at once, otherwise the chunk waits. Returns {"ended", "more"}: ended false where the token holds nothing any more.';

-- Finishes a run whose chunks are all closed with what probing gave, or fails it with p_error.
-- p_probe is {"checked", "ok", "failures": [{"name", "code", "status", "content_type", "error"}]}.
create or replace function public.image_sync_finish(p_run uuid, p_probe jsonb default null, p_error jsonb default null)
returns jsonb language plpgsql set search_path = '' set lock_timeout = '2s' as $$
declare
  v_run image_sync.runs;
begin
  perform image_sync.await_closes(p_run);
  select r.*
  into v_run
  from image_sync.runs r
  where r.id = p_run
  for update;
  if v_run.finished_at is null and p_error is not null then
    perform image_sync.finish_run(p_run, 'failed', p_error ->> 'code', image_sync.clean_fault(p_error), null);
  elsif v_run.finished_at is null and v_run.exhausted and not exists (
    select
    from image_sync.chunks c
    where c.run_id = p_run and c.state in ('pending', 'leased')
  ) then
    perform image_sync.finish_run(p_run, null, null, null, image_sync.tell_lost(v_run.bucket_id, p_probe));
  end if;
  return jsonb_build_object('run', image_sync.run_document(p_run));
end;
$$;

comment on function public.image_sync_finish(uuid, jsonb, jsonb) is
  'Closes a run whose chunks are all closed, with the result of the live probe; with p_error closes it as failed. Changes nothing in a run that is finished or has chunks left.';

-- A worker ends before the run does: releases the leases it holds and queues the next call of the function, in one transaction.
create or replace function public.image_sync_hand_off(p_run uuid, p_worker uuid, p_leases uuid[])
returns jsonb language plpgsql set search_path = '' set lock_timeout = '2s' as $$
declare
  v_run image_sync.runs;
  v_problem jsonb;
begin
  select r.*
  into v_run
  from image_sync.runs r
  where r.id = p_run
  for update;
  if v_run.id is null then
    return jsonb_build_object('kicked', false);
  end if;
  perform image_sync.release_chunks(p_run, p_leases);
  if v_run.finished_at is not null or v_run.handed_off_by = p_worker then
    return jsonb_build_object('kicked', false);
  end if;
  update image_sync.runs r
  set handed_off_by = p_worker
  where r.id = p_run;
  v_problem := image_sync.kick(p_run);
  return jsonb_build_object('kicked', v_problem is null);
end;
$$;

comment on function public.image_sync_hand_off(uuid, uuid, uuid[]) is
  'Releases the worker''s leases and queues a call of the function that goes on with the run; repeated by the same worker it queues nothing again. kicked: false where nothing was queued; why stands in the run''s error.';

-- Cancels an open run. What its workers still close afterwards is stale.
create or replace function public.image_sync_cancel(p_run uuid)
returns jsonb language plpgsql set search_path = '' set lock_timeout = '2s' as $$
declare
  v_run image_sync.runs;
begin
  perform image_sync.await_closes(p_run);
  select r.*
  into v_run
  from image_sync.runs r
  where r.id = p_run
  for update;
  if v_run.id is null then
    return image_sync.unknown_run(p_run);
  end if;
  if v_run.finished_at is null then
    perform image_sync.finish_run(p_run, 'cancelled', 'cancelled', null, null);
  elsif v_run.outcome <> 'cancelled' then
    return image_sync.problem(409, 'run_finished', 'The run is finished', format('Cannot cancel run %s: it ended as %s at %s.', p_run, v_run.outcome, v_run.finished_at));
  end if;
  return jsonb_build_object('run', image_sync.run_document(p_run));
end;
$$;

comment on function public.image_sync_cancel(uuid) is 'Cancels an open run. Problems: unknown_run (404), run_finished (409).';

-- One run, open or finished.
create or replace function public.image_sync_run(p_run uuid)
returns jsonb language sql stable set search_path = '' set lock_timeout = '1s' as $$
  select coalesce(
    (
      select jsonb_build_object('run', d.document)
      from (select image_sync.run_document(p_run) as document) as d
      where d.document is not null
    ),
    image_sync.unknown_run(p_run)
  )
$$;

comment on function public.image_sync_run(uuid) is 'One run with its progress or final report. Problem: unknown_run (404).';
