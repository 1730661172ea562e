-- The night: who calls the function, what happens when a call is lost, and what is thrown away afterwards.
-- A cron job that "succeeded" only queued a request, and pg_net neither retries nor guarantees delivery: the run's own row is
-- the truth, and the watchdog calls again for a run that does not move.

-- Queues one call of the function for an open run. Security definer, because service_role sees neither Vault nor, on every
-- project, pg_net: it takes an id that only selects among open runs and returns what was wrong, never a secret.
create function image_sync.kick(p_run uuid)
returns jsonb
language plpgsql
security definer
set search_path = ''
as $$
declare
  v_url text;
  v_key text;
  v_kick_id bigint;
  v_problem jsonb;
begin
  if to_regclass('vault.decrypted_secrets') is not null then
    select
      max(s.decrypted_secret) filter (where s.name = 'project_url'),
      max(s.decrypted_secret) filter (where s.name = 'image_sync_key')
    into v_url, v_key
    from vault.decrypted_secrets s
    where s.name in ('project_url', 'image_sync_key');
  end if;

  if coalesce(v_url, '') = '' or coalesce(v_key, '') = '' then
    v_problem := jsonb_build_object(
      'code', 'missing_secret',
      'title', 'A Vault secret is missing',
      'detail', format(
        'Cannot call the function: Vault has no secret named %s. Create it with: select vault.create_secret(''...'', %L);',
        case when coalesce(v_url, '') = '' then 'project_url' else 'image_sync_key' end,
        case when coalesce(v_url, '') = '' then 'project_url' else 'image_sync_key' end
      )
    );
  else
    begin
      v_kick_id := net.http_post(
        url := rtrim(v_url, '/') || '/functions/v1/image-sync',
        body := jsonb_build_object('run', p_run),
        -- pg_net takes this one content type, to the letter.
        headers := jsonb_build_object('Content-Type', 'application/json', 'apikey', v_key),
        timeout_milliseconds := 5000
      );
    exception
      when undefined_function or undefined_table or invalid_schema_name or insufficient_privilege or raise_exception then
        v_problem := jsonb_build_object(
          'code', 'call_not_queued',
          'title', 'The call of the function could not be queued',
          'detail', format('net.http_post failed: %s. Enable the extension pg_net and check the Vault secret project_url.', sqlerrm)
        );
    end;
  end if;

  update image_sync.runs r
  set
    kicked_at = case when v_problem is null then clock_timestamp() else r.kicked_at end,
    kick_id = coalesce(v_kick_id, r.kick_id),
    error = v_problem
  where r.id = p_run
    and r.finished_at is null;
  return v_problem;
end;
$$;

comment on function image_sync.kick(uuid) is
  'Queues a call of the function (net.http_post) that goes on with an open run; URL and key come from the Vault secrets project_url and image_sync_key. Returns null, or why it could not.';

-- The nightly job. A run that has not moved for six hours is closed first: one bad night never costs the next.
create function image_sync.run_nightly()
returns void
language plpgsql
set search_path = ''
as $$
declare
  v_stalled record;
  v_settings record;
  v_run image_sync.runs;
  v_problem jsonb;
begin
  for v_stalled in
    select r.id, r.moved_at
    from image_sync.runs r
    where r.finished_at is null
      and r.moved_at < now() - interval '6 hours'
    for update
  loop
    perform image_sync.finish_run(v_stalled.id, 'failed', 'stalled', jsonb_build_object(
      'code', 'stalled',
      'title', 'The run stood still',
      'detail', format('Nothing moved since %s. The function may not be deployed, or cannot reach the database.', v_stalled.moved_at)
    ), null);
  end loop;

  for v_settings in
    select s.bucket_id
    from image_sync.settings s
    where s.nightly
    order by s.bucket_id
  loop
    v_run := image_sync.open_run(
      gen_random_uuid(), v_settings.bucket_id, 'sync', 'schedule', '{}', null, image_sync.estimate_total(v_settings.bucket_id)
    );
    v_problem := image_sync.kick(v_run.id);
    if v_problem is not null then
      perform image_sync.finish_run(v_run.id, 'failed', v_problem ->> 'code', v_problem, null);
    end if;
  end loop;
end;
$$;

comment on function image_sync.run_nightly() is
  'Closes stalled runs, opens a sync for every bucket with nightly settings (or finds the open one) and queues the call of the function. A run that cannot be called is closed as failed with the reason.';

-- The watchdog, every minute: while nothing is open it looks into an empty partial index and does no more.
-- It waits for no row, so that it can stand in nobody's way: a run that somebody works on at this moment needs no call.
create function image_sync.watchdog()
returns void
language sql
set search_path = ''
begin atomic
  with still as materialized (
    select r.id
    from image_sync.runs r
    where r.finished_at is null
      and greatest(r.moved_at, r.kicked_at) < now() - interval '30 seconds'
      -- A worker is at it as long as a lease is alive.
      and not exists (
        select
        from image_sync.chunks c
        where c.run_id = r.id
          and c.state = 'leased'
          and c.lease_expires_at > now()
      )
      -- Nothing to call for while all that is left waits for its next attempt.
      and (
        not r.exhausted
        or not exists (
          select
          from image_sync.chunks c
          where c.run_id = r.id
            and c.state = 'pending'
            and c.not_before > now()
        )
      )
    for update skip locked
  )
  select image_sync.kick(still.id)
  from still;
end;

comment on function image_sync.watchdog() is 'Queues a call of the function for every open run that has not moved for 30 s, holds no live lease and has something to do.';

-- History that nobody reads again. The last run of each mode stays, and so does a plan that another run refers to.
create function image_sync.prune_history()
returns void
language plpgsql
set search_path = ''
as $$
begin
  delete from image_sync.chunks c
  using image_sync.runs r
  left join image_sync.settings s on s.bucket_id = r.bucket_id
  where r.id = c.run_id
    and r.finished_at < now() - coalesce(s.keep_chunks, interval '14 days');

  delete from image_sync.runs r
  where r.finished_at < now() - coalesce(
      (
        select s.keep_runs
        from image_sync.settings s
        where s.bucket_id = r.bucket_id
      ), interval '90 days')
    and exists (
      select
      from image_sync.runs newer
      where newer.bucket_id = r.bucket_id
        and newer.mode = r.mode
        and newer.started_at > r.started_at
    )
    and not exists (
      select
      from image_sync.runs follower
      where follower.plan_id = r.id
    );

  -- pg_cron keeps a row per job run for ever; ours write 1,440 a day.
  delete from cron.job_run_details d
  using cron.job j
  where j.jobid = d.jobid
    and j.jobname in ('image-sync-nightly', 'image-sync-watchdog', 'image-sync-housekeeping')
    and d.end_time < now() - interval '7 days';
end;
$$;

comment on function image_sync.prune_history() is 'Deletes chunks and runs past their keep_ settings and week-old entries of our own jobs in cron.job_run_details.';

-- The jobs run as their owner, who owns these functions; nobody else has business with them.
revoke all on function
  image_sync.kick(uuid),
  image_sync.run_nightly(),
  image_sync.watchdog(),
  image_sync.prune_history()
from public;
grant execute on function image_sync.kick(uuid) to service_role;

-- pg_cron's clock is GMT. A job of the same name is replaced.
select cron.schedule('image-sync-nightly', '0 2 * * *', 'select image_sync.run_nightly()');
select cron.schedule('image-sync-watchdog', '* * * * *', 'select image_sync.watchdog()');
select cron.schedule('image-sync-housekeeping', '30 3 * * *', 'select image_sync.prune_history()');
