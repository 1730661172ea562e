-- What the report asks at the moment of reading, because it is cheap: the schedule and the bucket itself.

-- The values of one field of a cron expression: *, lists, ranges and steps.
create function image_sync.cron_field(p_field text, p_low integer, p_high integer)
returns integer[]
language sql
immutable
set search_path = ''
return (
  select array_agg(distinct v.value)
  from regexp_split_to_table(p_field, ',') as part
  cross join lateral regexp_matches(part, '^(?:(\*)|(\d{1,2})(?:-(\d{1,2}))?)(?:/(\d{1,2}))?$') as m
  cross join lateral generate_series(
    coalesce(m[2]::integer, p_low),
    case when m[1] = '*' or (m[3] is null and m[4] is not null) then p_high else coalesce(m[3], m[2])::integer end,
    greatest(coalesce(m[4]::integer, 1), 1)
  ) as v (value)
  where v.value between p_low and p_high
);

comment on function image_sync.cron_field(text, integer, integer) is 'The values that a field of a cron expression stands for; null where it is none of *, a, a-b, */n, a-b/n or a list of those.';

-- When a cron expression is due next, in GMT as pg_cron has it.
create function image_sync.next_time(p_schedule text, p_after timestamptz)
returns timestamptz
language sql
immutable
set search_path = ''
return (
  with fields as (
    select regexp_split_to_array(trim(p_schedule), '\s+') as f
  ), sets as (
    select
      image_sync.cron_field(f[1], 0, 59) as minutes,
      image_sync.cron_field(f[2], 0, 23) as hours,
      image_sync.cron_field(f[3], 1, 31) as month_days,
      image_sync.cron_field(f[4], 1, 12) as months,
      image_sync.cron_field(replace(f[5], '7', '0'), 0, 6) as week_days,
      f[3] = '*' or f[5] = '*' as any_day
    from fields
    where cardinality(f) = 5
  ), days as (
    -- Two days are enough: today's times may be over, those of the next day that matches are not.
    select d.day
    from sets
    cross join generate_series(0, 366) as n (days)
    cross join lateral (select date_trunc('day', p_after at time zone 'UTC') + make_interval(days => n.days) as day) as d
    where extract(month from d.day)::integer = any (sets.months)
      -- Where both kinds of day are restricted, either will do: cron's old rule.
      and case
        when sets.any_day then extract(day from d.day)::integer = any (sets.month_days) and extract(dow from d.day)::integer = any (sets.week_days)
        else extract(day from d.day)::integer = any (sets.month_days) or extract(dow from d.day)::integer = any (sets.week_days)
      end
    order by n.days
    limit 2
  )
  select min(t.time)
  from days d
  cross join sets
  cross join lateral unnest(sets.hours) as h (hour)
  cross join lateral unnest(sets.minutes) as m (minute)
  cross join lateral (select (d.day + make_interval(hours => h.hour, mins => m.minute)) at time zone 'UTC' as time) as t
  where t.time > p_after
);

comment on function image_sync.next_time(text, timestamptz) is 'The next time that a five-field cron expression is due after a moment, within a year; null for other kinds of schedule.';

-- What service_role cannot see: whether jobs and secrets exist, and how the last call of the function went. Takes nothing, returns
-- facts.
create function image_sync.schedule_facts()
returns jsonb
language plpgsql
stable
security definer
set search_path = ''
as $$
declare
  v_facts jsonb := '{}'::jsonb;
begin
  if to_regclass('cron.job') is not null then
    select jsonb_build_object(
      'missing_jobs', (
        select coalesce(jsonb_agg(wanted.name order by wanted.name), '[]')
        from unnest(array['image-sync-housekeeping', 'image-sync-nightly', 'image-sync-watchdog']) as wanted (name)
        where not exists (
          select
          from cron.job j
          where j.jobname = wanted.name
            and j.active
        )
      ),
      'next_run_at', (
        select min(image_sync.next_time(j.schedule, now()))
        from cron.job j
        where j.jobname = 'image-sync-nightly'
          and j.active
      ),
      'schedule', (
        select j.schedule
        from cron.job j
        where j.jobname = 'image-sync-nightly'
          and j.active
        order by j.jobid
        limit 1
      )
    )
    into v_facts;
  end if;
  if to_regclass('vault.secrets') is not null then
    v_facts := v_facts || jsonb_build_object(
      'missing_secrets', (
        select coalesce(jsonb_agg(wanted.name order by wanted.name), '[]')
        from unnest(array['image_sync_key', 'project_url']) as wanted (name)
        where not exists (
          select
          from vault.secrets s
          where s.name = wanted.name
        )
      )
    );
  end if;
  if to_regclass('net._http_response') is not null then
    v_facts := v_facts || jsonb_build_object(
      'last_call', (
        select jsonb_build_object('run_id', r.id, 'status', h.status_code, 'error', left(coalesce(h.error_msg, case when h.timed_out then 'timed out' end), 200))
        from image_sync.runs r
        join net._http_response h on h.id = r.kick_id
        order by r.kicked_at desc
        limit 1
      )
    );
  end if;
  return v_facts;
end;
$$;

comment on function image_sync.schedule_facts() is
  'Which of our cron jobs and Vault secrets are missing (by name), when the nightly job is due next, and what the last queued call of the function was answered.';

-- The bucket at this moment. A permission that was lost is something to report, not the end of the report.
create function image_sync.bucket_facts(p_bucket_id text)
returns jsonb
language plpgsql
stable
set search_path = ''
as $$
begin
  return (
    select jsonb_build_object(
      'bucket_exists', b.id is not null,
      'bucket_public', b.public,
      'has_objects', exists (
        select
        from image_sync.objects o
        where o.bucket_id = p_bucket_id
      )
    )
    from (select) as always
    left join storage.buckets b on b.id = p_bucket_id
  );
exception
  when insufficient_privilege then
    return jsonb_build_object('listing_refused', true);
end;
$$;

comment on function image_sync.bucket_facts(text) is
  'Whether the bucket exists, is public and holds a file; or that storage.objects or storage.buckets may not be read.';

-- The table at this moment. An adopted one may lack the grant for service_role, and somebody may hold it.
create function image_sync.table_facts(p_bucket_id text)
returns jsonb
language plpgsql
stable
set search_path = ''
set lock_timeout = '1s'
as $$
begin
  return jsonb_build_object(
    'has_records', exists (
      select
      from public.part_images p
      where p.bucket_id = p_bucket_id
    ),
    'table_refused', not (
      select bool_and(has_table_privilege('public.part_images', needed.privilege))
      from unnest('{select,insert,update,delete}'::text[]) as needed (privilege)
    ),
    -- A right to the one column that matters is enough to read the URLs.
    'table_public', (
      select (has_table_privilege('anon', c.oid, 'select') or has_column_privilege('anon', c.oid, 'signed_url', 'select'))
        and (not c.relrowsecurity or exists (
          select
          from pg_catalog.pg_policies y
          where y.schemaname = 'public'
            and y.tablename = 'part_images'
            and y.cmd in ('SELECT', 'ALL')
            and y.roles && array['anon', 'public']::name[]
        ))
      from pg_catalog.pg_class c
      where c.oid = 'public.part_images'::regclass
    )
  );
exception
  when insufficient_privilege then
    return jsonb_build_object('table_refused', true);
  when lock_not_available then
    return jsonb_build_object('table_locked', true);
end;
$$;

comment on function image_sync.table_facts(text) is
  'Whether part_images holds records of the bucket, may be used by who asks, and is open to anon; or that it may not be read, or that somebody holds it locked.';

-- An open run that has not moved for two minutes: by then a worker that died was replaced.
create function image_sync.standing_run(p_bucket_id text)
returns jsonb
language plpgsql
stable
set search_path = ''
as $$
begin
  return (
    select jsonb_build_object('id', r.id, 'mode', r.mode, 'since', r.moved_at, 'reason', image_sync.standstill_reason(r))
    from image_sync.runs r
    where r.bucket_id = p_bucket_id
      and r.finished_at is null
      and r.moved_at < now() - interval '2 minutes'
    order by r.moved_at
    limit 1
  );
end;
$$;

comment on function image_sync.standing_run(text) is 'The open run of the bucket that stands still, since when and why; null where none does.';

revoke all on function
  image_sync.cron_field(text, integer, integer),
  image_sync.next_time(text, timestamptz),
  image_sync.schedule_facts(),
  image_sync.bucket_facts(text),
  image_sync.table_facts(text),
  image_sync.standing_run(text)
from public;
grant execute on function
  image_sync.cron_field(text, integer, integer),
  image_sync.next_time(text, timestamptz),
  image_sync.schedule_facts(),
  image_sync.bucket_facts(text),
  image_sync.table_facts(text),
  image_sync.standing_run(text)
to service_role;
