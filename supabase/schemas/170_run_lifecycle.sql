-- set
-- How a run begins, moves and ends.

-- A problem that a caller can do something about: an expected condition, so a return value (docs: RFC 9457 in the API).
create or replace function image_sync.problem(p_status integer, p_code text, p_title text, p_detail text, p_numbers jsonb default '{}')
returns jsonb language sql immutable set search_path = '' as $$
  select jsonb_build_object('problem', p_numbers || jsonb_build_object('status', p_status, 'code', p_code, 'title', p_title, 'detail', p_detail))
$$;

comment on function image_sync.problem(integer, text, text, text, jsonb) is 'A refusal as the API answers it: HTTP status, stable code, title, detail with the way out, and the numbers behind it.';

create or replace function image_sync.unknown_run(p_run uuid)
returns jsonb language sql immutable set search_path = '' as $$
  select image_sync.problem(404, 'unknown_run', 'There is no such run', format('Cannot find run %s: it never was, or housekeeping pruned it.', p_run))
$$;

comment on function image_sync.unknown_run(uuid) is 'The refusal of a request about a run that does not exist.';

-- Opens a run, or finds the one that is open in this mode. p_run is made by the caller: repeating the call opens nothing twice.
create or replace function image_sync.open_run(
  p_run uuid,
  p_bucket_id text,
  p_mode text,
  p_trigger text,
  p_options jsonb,
  p_plan uuid,
  p_total bigint
)
returns image_sync.runs language plpgsql set search_path = '' as $$
declare
  v_run image_sync.runs;
begin
  insert into image_sync.runs (id, bucket_id, mode, trigger, options, plan_id, total_estimate, bucket_created_at)
  values (
    p_run, p_bucket_id, p_mode, p_trigger,
    p_options || case when p_mode = 'sync' and image_sync.renews_all(p_bucket_id) then '{"renew": "all"}'::jsonb else '{}' end,
    p_plan, p_total,
    (
      select b.created_at
      from storage.buckets b
      where b.id = p_bucket_id
    )
  )
  on conflict do nothing
  returning *
  into v_run;
  if v_run.id is null then
    -- This very call made before, else the run that is open in this mode.
    select r.*
    into v_run
    from image_sync.runs r
    where r.id = p_run
      or (r.bucket_id = p_bucket_id and r.mode = p_mode and r.finished_at is null)
    order by (r.id = p_run) desc limit 1;
  end if;
  return v_run;
end;
$$;

comment on function image_sync.open_run(uuid, text, text, text, jsonb, uuid, bigint) is
  'Opens a run with this id, or returns the one that has it, or the one that is open for the bucket and mode; a partial unique index decides.';

-- Whether the name of an object is one that Storage signs: of the characters that it accepts, and without the segments . and ..
-- that every URL parser removes. Objects of an older Storage may have other names.
create or replace function image_sync.is_signable(p_name text)
returns boolean language sql immutable set search_path = '' as $$
  select p_name ~ '^[A-Za-z0-9_/!.*''() &$@=;:+,?-]+$' and p_name !~ '(^|/)\.{1,2}(/|$)'
$$;

comment on function image_sync.is_signable(text) is 'Whether Storage signs an object of this name.';

-- How a run that came to its end turned out, by its chunks: outcome and stop_reason.
create or replace function image_sync.judge_run(p_run image_sync.runs, p_summary jsonb, out outcome text, out stop_reason text)
language plpgsql stable set search_path = '' as $$
declare
  v_totals record;
  v_chunks record;
begin
  select t.*
  into v_totals
  from jsonb_to_record(p_summary -> 'totals') as t (signed bigint, failed bigint, held bigint, unmoved bigint, restored bigint, skipped bigint);
  select
    coalesce(bool_or(c.ledger ? 'too_slow'), false) as too_slow,
    coalesce(bool_or(c.state = 'dead'), false) as dead,
    coalesce(bool_or(c.problems @> '[{"code": "record_refused"}]'), false) as refused,
    -- Storage is at fault where nothing could be signed, unless nothing was left to sign but names that can never be.
    coalesce(bool_or(c.ledger ? 'failed' and (
      c.state = 'dead'
      or c.problems @> '[{"code": "signing_failed"}]'
    )), false) as unsigned
  into v_chunks
  from image_sync.chunks c
  where c.run_id = p_run.id and (c.state = 'dead' or c.ledger ?| '{failed,too_slow}' or c.problems <> '[]');

  stop_reason := case
    when v_totals.signed = 0 and v_chunks.unsigned then 'signing_impossible'
    when p_run.mode = 'restore' and v_totals.skipped > 0 and v_totals.restored = 0 then 'nothing_restored'
    when v_chunks.dead then 'dead_chunks'
    when v_chunks.too_slow then 'database_timeout'
    when v_totals.failed + v_totals.unmoved > 0 then 'items_failed'
    when v_totals.held > 0 then 'row_locked'
    when v_chunks.refused then 'records_refused'
    when p_run.mode = 'restore' and v_totals.skipped > 0 then 'records_skipped'
    when not (p_summary ->> 'balanced')::boolean then 'unbalanced'
  end;
  outcome := case
    when stop_reason is null then 'succeeded'
    when stop_reason in ('signing_impossible', 'nothing_restored') then 'failed'
    else 'partial'
  end;
end;
$$;

comment on function image_sync.judge_run(image_sync.runs, jsonb) is
  'Outcome and stop reason of a run that came to its end. stop_reason: signing_impossible, nothing_restored (failed); dead_chunks, database_timeout, items_failed, row_locked, records_refused, records_skipped, unbalanced (partial); null (succeeded).';

-- Chunks are closed side by side, without the run's row lock: each close holds this key shared, and whoever ends the run holds it
-- alone. So what a close has stored is counted, and none is stored after the count.
create or replace function image_sync.closing_key(p_run uuid)
returns bigint language sql immutable set search_path = '' as $$
  select hashtextextended('image_sync.closing ' || p_run, 0)
$$;

comment on function image_sync.closing_key(uuid) is 'The advisory lock of a run: shared by those who close its chunks, alone for whoever ends it.';

-- Comes before the run's row lock, which those who are closing want next. A close takes as long as its statement may: the wait for it is
-- what is left of ours.
create or replace function image_sync.await_closes(p_run uuid)
returns void language plpgsql set search_path = '' set lock_timeout = '5s' as $$
begin
  perform pg_advisory_xact_lock(image_sync.closing_key(p_run));
end;
$$;

comment on function image_sync.await_closes(uuid) is
  'Waits until no chunk of the run is being closed, and keeps others from it until the transaction ends; raises lock_not_available after 5 s.';

-- Closes a run for good, unless a chunk of it is being closed: false then, and nothing changes. The caller holds the run's row lock.
-- Without p_outcome the chunks decide.
create or replace function image_sync.finish_run(p_run uuid, p_outcome text, p_stop_reason text, p_error jsonb, p_probe jsonb)
returns boolean language plpgsql set search_path = '' as $$
declare
  v_run image_sync.runs;
  v_summary jsonb;
  v_verdict record;
begin
  if not pg_try_advisory_xact_lock(image_sync.closing_key(p_run)) then
    return false;
  end if;
  perform image_sync.release_chunks(p_run, null);
  v_summary := image_sync.summarize(p_run);
  select r.*
  into v_run
  from image_sync.runs r
  where r.id = p_run;
  v_verdict := image_sync.judge_run(v_run, v_summary);

  update image_sync.runs r
  set
    finished_at = clock_timestamp(),
    moved_at = clock_timestamp(),
    outcome = coalesce(p_outcome, v_verdict.outcome),
    stop_reason = coalesce(p_stop_reason, v_verdict.stop_reason),
    error = coalesce(p_error, case
      -- Why a call could not be queued matters only where the run did not get through all the same.
      when p_outcome is null and image_sync.is_kick_problem(r.error) then null
      else r.error
    end, case
      when (v_summary #>> '{totals,held}')::bigint > 0 then jsonb_build_object(
        'code', 'row_locked',
        'title', 'Somebody else holds records',
        'detail', format('%s records were locked by other sessions and left as they are. The next sync settles them; if it does not, look for a session that stays idle in a transaction (pg_stat_activity).', v_summary #>> '{totals,held}')
      )
    end),
    summary = v_summary
  where r.id = p_run and r.finished_at is null
  returning *
  into v_run;

  -- A verify that could not reach the URLs has seen nothing of them: what the one before saw stands.
  if v_run.exhausted and v_run.mode in ('sync', 'analyze', 'verify') and (v_run.mode, v_run.stop_reason) is distinct from ('verify', 'unreachable') then
    update image_sync.runs r
    set report = image_sync.measure(v_run, p_probe) || case when v_run.mode = 'verify' then jsonb_build_object('verified', image_sync.measure_verified(v_run)) else '{}' end
    where r.id = v_run.id;
    perform image_sync.note_since(v_run);
  end if;
  return true;
end;
$$;

comment on function image_sync.finish_run(uuid, text, text, jsonb, jsonb) is
  'Closes an open run: releases its leases, keeps its totals and, for a sync or analyze that reached the end, what it measured. Outcome and stop reason follow from the chunks where none is given. False, and nothing changes, where a chunk of it is being closed.';

create or replace function image_sync.is_kick_problem(p_error jsonb)
returns boolean language sql immutable set search_path = '' as $$
  select coalesce(p_error ->> 'code' in ('function_unknown', 'call_not_queued'), false)
$$;

comment on function image_sync.is_kick_problem(jsonb) is 'Whether an error of a run says that the function could not be called.';

-- Why an open run does not move, as far as it is known.
create or replace function image_sync.standstill_reason(p_run image_sync.runs)
returns text language plpgsql stable set search_path = '' as $$
begin
  return coalesce(
    (
      select format('%s: %s', coalesce(p_run.error, open_chunk.error) ->> 'title', coalesce(p_run.error, open_chunk.error) ->> 'detail')
      from (select) as always
      left join lateral (
        select c.error
        from image_sync.chunks c
        where c.run_id = p_run.id and c.state in ('pending', 'leased') and c.error is not null
        order by c.number limit 1
      ) as open_chunk on true
      where coalesce(p_run.error, open_chunk.error) is not null
    ),
    'The function may not be deployed, or cannot reach the database.'
  );
end;
$$;

comment on function image_sync.standstill_reason(image_sync.runs) is 'In words: the last error of a run that does not move, or of its first open chunk.';

-- Takes the run's row lock, which makes walking and claiming one worker at a time, and gives up soon: a worker that has to wait
-- is told so instead of holding a connection.
create or replace function image_sync.lock_run(p_run uuid)
returns image_sync.runs language plpgsql set search_path = '' set lock_timeout = '400ms' as $$
declare
  v_run image_sync.runs;
begin
  select r.*
  into v_run
  from image_sync.runs r
  where r.id = p_run
  for update;
  return v_run;
exception
  when lock_not_available then
    return null;
end;
$$;

comment on function image_sync.lock_run(uuid) is 'Locks the run''s row and returns it; null after 400 ms without the lock.';

-- The bucket as Storage has it. A listing by a key without rights, or of a bucket that does not exist, is empty and proves
-- nothing; only storage.buckets says whether there is a bucket.
create or replace function image_sync.bucket_problem(p_run image_sync.runs)
returns jsonb language plpgsql stable set search_path = '' as $$
begin
  return (
    select case
      when b.id is null and coalesce(coalesce(plan.options, p_run.options) ->> 'bucket_is_gone' = 'true', false) then null
      when b.id is null then jsonb_build_object(
        'code', 'bucket_missing',
        'title', 'The bucket does not exist',
        'detail', format('Cannot list bucket %s: storage.buckets has no such id. Create it; or, if it is gone for good, archive its records: {"mode": "cleanup", "bucket_is_gone": true}.', p_run.bucket_id)
      )
      when b.created_at is distinct from p_run.bucket_created_at then jsonb_build_object(
        'code', 'bucket_recreated',
        'title', 'The bucket was deleted and made again',
        'detail', format('Bucket %s is not the one that run %s began with. Start a new run.', p_run.bucket_id, p_run.id)
      )
    end
    from (select) as always
    left join storage.buckets b on b.id = p_run.bucket_id
    left join image_sync.runs plan on plan.id = p_run.plan_id
    -- Putting records back needs no bucket.
    where p_run.mode <> 'restore'
  );
end;
$$;

comment on function image_sync.bucket_problem(image_sync.runs) is 'Why the run''s bucket cannot be walked: it is missing, or another one than at the beginning; null where it can.';

-- The next chunk of a run that applies a plan took too long: half as many records next time, at one record it is left alone and
-- named, once it has taken too long twice: between the call that the database ended and this one another worker may have got past it.
-- Returns how many records the next chunks may have. The caller holds the run's row lock.
create or replace function image_sync.interrupt_plan(p_run image_sync.runs, p_settings image_sync.settings, p_worker uuid, p_error jsonb)
returns integer language plpgsql set search_path = '' as $$
declare
  v_size constant integer := image_sync.chunk_size(p_run, p_settings);
  v_skipped image_sync.chunks;
begin
  if v_size > 1 or p_run.error ->> 'cursor' is distinct from p_run.cursor then
    return (v_size + 1) / 2;
  end if;
  v_skipped := image_sync.settle_chunk(p_run, p_settings, p_worker, p_error);
  update image_sync.runs r
  set cursor = coalesce(v_skipped.to_key, r.cursor), exhausted = v_skipped.to_key is null, moved_at = clock_timestamp()
  where r.id = p_run.id;
  return p_settings.chunk_size;
end;
$$;

comment on function image_sync.interrupt_plan(image_sync.runs, image_sync.settings, uuid, jsonb) is
  'Halves the chunks of a cleanup or restore whose last one took too long, or leaves the one record alone that does. Returns how many records the next chunks may have.';

-- Storage that refuses every call would otherwise be asked max_attempts times for every chunk of a large bucket.
create or replace function image_sync.too_many_failures(p_run image_sync.runs, p_settings image_sync.settings)
returns jsonb language plpgsql stable set search_path = '' as $$
begin
  return (
    select jsonb_build_object(
      'code', coalesce(max(last_failed.error ->> 'code'), 'too_many_failures'),
      'title', 'Too many chunks failed in a row',
      'detail', format('The last %s chunks that needed signing all failed. The last error: %s', count(*), image_sync.redact(max(last_failed.error ->> 'detail')))
    )
    from (
      select c.error, c.state
      from image_sync.chunks c
      where c.run_id = p_run.id and c.ledger ? 'to_sign' and (c.state in ('done', 'dead') or c.attempts > 0)
      order by c.closed_at desc nulls first limit 3 * p_settings.max_attempts
    ) as last_failed
    having count(*) >= 3 * p_settings.max_attempts
      and bool_and(last_failed.state <> 'done' and last_failed.error ->> 'code' <> 'lease_expired')
  );
end;
$$;

comment on function image_sync.too_many_failures(image_sync.runs, image_sync.settings) is
  'Why a run should stop before its end: its last 3 x max_attempts chunks to sign all failed at signing; null where it should go on.';

-- Random URLs for the live probe: records at different places of a few random chunks, so that the cost does not grow with the table.
create or replace function image_sync.pick_probe_targets(p_run image_sync.runs, p_settings image_sync.settings)
returns jsonb language plpgsql set search_path = '' as $$
declare
  v_url_base constant text := image_sync.url_base(p_settings);
begin
  return (
    with candidates as (
      -- Records with an object and a URL that works, among all of the range.
      select
        c.from_key,
        c.to_key,
        image_sync.count_of(c.ledger, 'records') as records,
        image_sync.count_of(c.ledger, 'records_signed') - image_sync.count_of(c.ledger, 'records_expired')
          - image_sync.count_of(c.ledger, 'orphaned') + image_sync.count_of(c.ledger, 'orphans_unsigned') + image_sync.count_of(c.ledger, 'orphans_expired') as usable
      from image_sync.chunks c
      where p_run.mode = 'sync' and c.run_id = p_run.id
    ), parts as (
      -- Those of a chunk, cut into as many parts as may be probed: one of each part, and no record is drawn twice.
      select c.from_key, c.to_key, c.usable = c.records as is_whole, c.usable * (part - 1) / parts as first_place, c.usable * part / parts as next_place
      from candidates c
      cross join least(c.usable, p_settings.probe_size) as parts
      cross join generate_series(1, parts) as part
      order by random() limit p_settings.probe_size
    ), spots as materialized (
      -- Not computed beside "order by random()" above: the planner would take the sort's value for it, always next to 0.
      select p.*, p.first_place + floor(random() * (p.next_place - p.first_place)) as place
      from parts p
    ), picked as (
      -- Distinct all the same: what was changed since its chunk was closed may lead two places to one file.
      select distinct p.file_name, p.signed_url
      from spots s
      cross join lateral (
        select w.file_name, w.signed_url
        from (
          select r.file_name, r.signed_url
          from public.part_images r
          where r.bucket_id = p_run.bucket_id
            and r.file_name collate "C" > s.from_key
            and r.file_name collate "C" <= coalesce(s.to_key, image_sync.last_key())
            and r.signed_url_expires_at > now()
          order by r.file_name collate "C"
          -- Where all can be probed, none that is passed over need be asked: passing them over alone costs less.
          offset case when s.is_whole then s.place else 0 end
        ) as w
        where image_sync.is_url_of(w.signed_url, v_url_base, w.file_name)
          and exists (
            select
            from image_sync.objects o
            where o.bucket_id = p_run.bucket_id
              and o.name collate "C" >= w.file_name
              and o.name collate "C" <= w.file_name
            order by o.name collate "C"
            offset 0
          )
        order by w.file_name collate "C"
        offset case when s.is_whole then 0 else s.place end
        limit 1
      ) as p
    )
    select coalesce(jsonb_agg(jsonb_build_object('name', chosen.file_name, 'url', chosen.signed_url)), '[]')
    from picked as chosen
  );
end;
$$;

comment on function image_sync.pick_probe_targets(image_sync.runs, image_sync.settings) is 'As many records of a sync that have an object as probe_size says, or as there are, chosen at random, as [{"name", "url"}]: for the worker''s eyes alone.';
