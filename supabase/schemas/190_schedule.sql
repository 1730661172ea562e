-- set
-- The night: who calls the function, what happens when a call is lost, and what is thrown away afterwards.
-- A cron job that "succeeded" only queued a request, and pg_net neither retries nor guarantees delivery: the run's own row is
-- the truth, and the watchdog calls again for a run that does not move.

-- Queues one call of the function for an open run. Security definer, because service_role does not see pg_net on every project: it
-- takes an id that only selects among open runs and returns what was wrong.
-- The call carries no key. Every database role may read pg_net's queue, so what is sent is a token that is good for waking this
-- one run, once, while it is open; the run's row keeps its hash.
create or replace function image_sync.kick(p_run uuid)
returns jsonb language plpgsql security definer set search_path = '' set lock_timeout = '1s' as $$
declare
  v_url constant text := (select p.url from image_sync.project p);
  -- 256 bits out of three times 122 random ones.
  v_token constant bytea := sha256(convert_to(concat(gen_random_uuid(), gen_random_uuid(), gen_random_uuid()), 'UTF8'));
  v_kick_id bigint;
  v_problem jsonb;
begin
  if v_url is null then
    v_problem := jsonb_build_object(
      'code', 'function_unknown',
      'title', 'The function has not said where it lives',
      'detail', 'Cannot call the function: it announces its address with its first request. Deploy it and call it once: npx image-sync status'
    );
  else
    begin
      v_kick_id := net.http_post(
        url := v_url || '/functions/v1/image-sync',
        body := jsonb_build_object('run', p_run, 'token', encode(v_token, 'hex')),
        -- pg_net takes this one content type, to the letter.
        headers := '{"Content-Type": "application/json"}'::jsonb,
        timeout_milliseconds := 5000
      );
    exception
      when undefined_function or undefined_table or invalid_schema_name or insufficient_privilege or raise_exception then
        v_problem := jsonb_build_object(
          'code', 'call_not_queued',
          'title', 'The call of the function could not be queued',
          'detail', format('net.http_post failed: %s Enable the extension pg_net.', image_sync.redact(sqlerrm) || '.')
        );
    end;
  end if;
  update image_sync.runs r
  set
    kicked_at = case when v_problem is null then clock_timestamp() else r.kicked_at end,
    kick_id = coalesce(v_kick_id, r.kick_id),
    -- A call that comes after the next one is as good. A token that was used leaves a null: its call has arrived.
    wake_hashes = case when v_problem is null then array[sha256(v_token)] || r.wake_hashes[1:1] else r.wake_hashes end,
    error = case when v_problem is not null or image_sync.is_kick_problem(r.error) then v_problem else r.error end
  where r.id = p_run and r.finished_at is null;
  return v_problem;
end;
$$;

comment on function image_sync.kick(uuid) is 'Queues a call of the function (net.http_post, to the address that it announced) that goes on with an open run; the call carries a token that is good for that alone. Returns null, or why it could not.';

-- Who brings the token of a queued call may wake its run. Used up with that; one look-up by the run's id, whatever the token.
create or replace function public.image_sync_wake(p_run uuid, p_token text)
returns jsonb language plpgsql set search_path = '' set lock_timeout = '2s' as $$
declare
  v_hash constant bytea := case when p_token ~ '^[0-9a-f]{64}$' then sha256(decode(p_token, 'hex')) end;
begin
  update image_sync.runs r
  set wake_hashes = array_replace(r.wake_hashes, v_hash, null)
  where r.id = p_run and r.finished_at is null and v_hash = any (r.wake_hashes);
  if not found then
    return image_sync.problem(401, 'unauthorized', 'No valid token', 'The token is none of a call that was queued for this run and not used yet.');
  end if;
  return jsonb_build_object('run', image_sync.run_document(p_run));
end;
$$;

comment on function public.image_sync_wake(uuid, text) is 'The open run that a queued call''s token (64 hexadecimal digits) is for; the token is used up. Problem: unauthorized (401) for any other token, and for every token of a run that is finished.';

-- One bucket's night: its sync is opened, or the open one found, and the function called. A night that could not begin is in the
-- status table like any other.
create or replace function image_sync.start_night(p_bucket_id text)
returns void language plpgsql set search_path = '' as $$
declare
  v_run image_sync.runs;
  v_problem jsonb;
  v_code text;
begin
  v_run := image_sync.open_run(gen_random_uuid(), p_bucket_id, 'sync', 'schedule', '{}', null, image_sync.estimate_total(p_bucket_id));
  if v_run.moved_at < now() - interval '6 hours' then
    raise exception 'Run % stands still since % and could not be closed', v_run.id, v_run.moved_at
      using errcode = 'lock_not_available', hint = 'Somebody holds its row: look for a session that stays idle in a transaction.';
  end if;
  v_problem := image_sync.kick(v_run.id);
  if v_problem is not null then
    -- Not where somebody is at it all the same.
    perform image_sync.finish_run(v_run.id, 'failed', v_problem ->> 'code', v_problem, null);
  end if;
exception
  when others then
    v_code := case when image_sync.is_held(sqlstate) then 'row_locked' else 'night_failed' end;
    insert into image_sync.runs (bucket_id, mode, trigger, finished_at, outcome, stop_reason, error, summary)
    values (p_bucket_id, 'sync', 'schedule', clock_timestamp(), 'failed', v_code, jsonb_build_object(
      'code', v_code,
      'title', 'The night could not begin',
      'detail', format('Cannot open and call the nightly sync of bucket %s: %s (%s)', p_bucket_id, image_sync.redact(sqlerrm), sqlstate)
    ), image_sync.summarize(null));
end;
$$;

comment on function image_sync.start_night(text) is 'Opens the nightly sync of a bucket, or finds the open one, and queues the call of the function. What keeps it from that is a failed run, with the database''s words.';

-- The nightly job. A run that has not moved for six hours is closed first: one bad night never costs the next. Each run and each
-- bucket stands alone: what goes wrong with one costs no other anything.
create or replace function image_sync.run_nightly()
returns void language plpgsql set search_path = '' set lock_timeout = '2s' as $$
declare
  v_id uuid;
  v_run image_sync.runs;
begin
  begin
    perform image_sync.refresh_objects_view();
  exception
    when others then
      raise warning 'Cannot make the view image_sync.objects anew: % (%)', image_sync.redact(sqlerrm), sqlstate;
  end;
  for v_id in select r.id from image_sync.runs r where r.finished_at is null and r.moved_at < now() - interval '6 hours' loop
    begin
      select r.* into v_run from image_sync.runs r where r.id = v_id and r.finished_at is null for update;
      if found then
        perform image_sync.finish_run(v_id, 'failed', 'stalled', jsonb_build_object(
          'code', 'stalled',
          'title', 'The run stood still',
          'detail', format('Nothing moved since %s. %s', v_run.moved_at, image_sync.standstill_reason(v_run))
        ), null);
      end if;
    exception
      when others then
        -- Its bucket's night says so, and the next night tries again.
        raise warning 'Cannot close run %: % (%)', v_id, image_sync.redact(sqlerrm), sqlstate;
    end;
  end loop;
  perform image_sync.start_night(s.bucket_id) from image_sync.settings s where s.nightly order by s.bucket_id;
end;
$$;

comment on function image_sync.run_nightly() is 'Closes stalled runs, opens a sync for every bucket with nightly settings (or finds the open one) and queues the call of the function. A bucket that this cannot be done for has a failed run that says why.';

-- Whether nobody is at an open run although it has something to do: a worker is as long as a lease is alive, and there is nothing to
-- call for while all that is left waits for its next attempt.
create or replace function image_sync.is_idle(p_run image_sync.runs)
returns boolean language sql stable set search_path = '' as $$
  select not exists (
    select from image_sync.chunks c where c.run_id = p_run.id and c.state = 'leased' and c.lease_expires_at > now()
  ) and (
    not p_run.exhausted
    or not exists (select from image_sync.chunks c where c.run_id = p_run.id and c.state = 'pending' and c.not_before > now())
    or exists (
      select
      from image_sync.chunks c
      where c.run_id = p_run.id
        and c.state in ('pending', 'leased')
        and coalesce(c.lease_expires_at, c.not_before, '-infinity') <= now()
    )
  )
$$;

comment on function image_sync.is_idle(image_sync.runs) is 'Whether an open run holds no live lease and has something to do.';

-- The watchdog, every minute: while nothing is open it looks into an empty partial index and does no more.
-- It waits for no row, so that it can stand in nobody's way: a run that somebody works on at this moment needs no call. A run that
-- cannot be called costs no other one its call.
create or replace function image_sync.watchdog()
returns void language plpgsql set search_path = '' set lock_timeout = '2s' as $$
declare
  v_still uuid;
begin
  for v_still in
    select r.id
    from image_sync.runs r
    where r.finished_at is null
      and greatest(r.moved_at, r.kicked_at) < now() - interval '30 seconds'
      and image_sync.is_idle(r)
    for update skip locked
  loop
    begin
      perform image_sync.kick(v_still);
    exception
      when others then
        raise warning 'Cannot call the function for run %: % (%)', v_still, image_sync.redact(sqlerrm), sqlstate;
    end;
  end loop;
end;
$$;

comment on function image_sync.watchdog() is 'Queues a call of the function for every open run that has not moved for 30 s, holds no live lease and has something to do.';

-- History that nobody reads again, each bucket by itself: what cannot be pruned costs no other anything. The last run of each mode
-- stays, and so do a plan that another run refers to and a cleanup whose records can still be restored.
create or replace function image_sync.prune_history()
returns void language plpgsql set search_path = '' as $$
declare
  v_old record;
begin
  for v_old in
    select b.bucket_id, coalesce(s.keep_chunks, '14 days') as keep_chunks, coalesce(s.keep_runs, '90 days') as keep_runs
    from (select r.bucket_id from image_sync.runs r union select m.bucket_id from image_sync.moves m) as b
    left join image_sync.settings s on s.bucket_id = b.bucket_id
  loop
    begin
      delete from image_sync.chunks c
      using image_sync.runs r
      where r.id = c.run_id and r.bucket_id = v_old.bucket_id and r.finished_at < now() - v_old.keep_chunks;
      delete from image_sync.moves m where m.bucket_id = v_old.bucket_id and m.moved_at < now() - v_old.keep_runs;
      delete from image_sync.runs r
      where r.bucket_id = v_old.bucket_id
        and r.finished_at < now() - v_old.keep_runs
        and exists (select from image_sync.runs n where n.bucket_id = r.bucket_id and n.mode = r.mode and n.started_at > r.started_at)
        and not exists (select from image_sync.runs follower where follower.plan_id = r.id)
        and not exists (select from image_sync.archive a where a.run_id = r.id and a.restored_at is null);
    exception
      when others then
        raise warning 'Cannot prune the history of bucket %: % (%)', v_old.bucket_id, image_sync.redact(sqlerrm), sqlstate;
    end;
  end loop;
  -- pg_cron keeps a row per job run for ever; ours write 1,440 a day.
  delete from cron.job_run_details d
  using image_sync.scheduled_jobs() j
  where j.jobid = d.jobid and d.end_time < now() - interval '7 days';
  perform image_sync.refresh_objects_view();
end;
$$;

comment on function image_sync.prune_history() is 'Deletes chunks, runs and moves of every bucket past its keep_ settings, or their defaults where it has none, and week-old entries of our own jobs in cron.job_run_details.';

-- step 1.0.0
-- pg_cron's clock is GMT. A job of the same name is replaced.
select cron.schedule('image-sync-nightly', '0 2 * * *', 'select image_sync.run_nightly()');
select cron.schedule('image-sync-watchdog', '* * * * *', 'select image_sync.watchdog()');
select cron.schedule('image-sync-housekeeping', '30 3 * * *', 'select image_sync.prune_history()');
