-- set
-- What the report asks at the moment of reading, because it is cheap: the schedule and the bucket itself.

-- The values of one field of a cron expression: *, lists, ranges and steps of numbers, or of names, the first of which is p_low.
create or replace function image_sync.cron_field(p_field text, p_low integer, p_high integer, p_names text[] default '{}')
returns integer[] language plpgsql immutable set search_path = '' as $$
begin
  return (
    select array_agg(distinct v.value)
    from regexp_split_to_table(p_field, ',') as part
    cross join lateral regexp_matches(part, '^(?:(\*)|(\d{1,2}|[a-z]{3})(?:-(\d{1,2}|[a-z]{3}))?)(?:/(\d{1,2}))?$') as m
    cross join lateral (
      select
        case when m[1] = '*' then p_low when m[2] ~ '^\d' then m[2]::integer else array_position(p_names, m[2]) + p_low - 1 end as first,
        case when m[3] ~ '^\d' then m[3]::integer else array_position(p_names, m[3]) + p_low - 1 end as last
    ) as ends
    cross join lateral generate_series(
      ends.first,
      case when m[3] is not null then ends.last when m[1] = '*' or m[4] is not null then p_high else ends.first end,
      greatest(coalesce(m[4]::integer, 1), 1)
    ) as v (value)
    where v.value between p_low and p_high
  );
end;
$$;

comment on function image_sync.cron_field(text, integer, integer, text[]) is 'The values that a field of a cron expression (lower case) stands for; null where it is none of *, a, a-b, */n, a-b/n or a list of those.';

-- When a schedule of pg_cron is due next, in GMT as pg_cron has it: five fields with lists, ranges, steps, names of months and days and
-- $ for the last day of a month; @daily and its like; or a number of seconds. Source: pg_cron's documentation.
create or replace function image_sync.next_time(p_schedule text, p_after timestamptz)
returns timestamptz language plpgsql immutable set search_path = '' as $$
begin
  return (
    with spelled as (
      select coalesce(
        '{"@yearly": "0 0 1 1 *", "@annually": "0 0 1 1 *", "@monthly": "0 0 1 * *", "@weekly": "0 0 * * 0", "@daily": "0 0 * * *", "@midnight": "0 0 * * *", "@hourly": "0 * * * *"}'::jsonb ->> given.schedule,
        given.schedule
      ) as schedule
      from lower(btrim(p_schedule, E' \t\r\n')) as given (schedule)
    ), fields as (
      select regexp_split_to_array(spelled.schedule, '\s+') as f
      from spelled
    ), sets as (
      select
        image_sync.cron_field(f[1], 0, 59) as minutes,
        image_sync.cron_field(f[2], 0, 23) as hours,
        image_sync.cron_field(nullif(array_to_string(array_remove(string_to_array(f[3], ','), '$'), ','), ''), 1, 31) as month_days,
        '$' = any (string_to_array(f[3], ',')) as last_day,
        image_sync.cron_field(f[4], 1, 12, '{jan,feb,mar,apr,may,jun,jul,aug,sep,oct,nov,dec}') as months,
        -- Both 0 and 7 are Sunday.
        image_sync.cron_field(f[5], 0, 7, '{sun,mon,tue,wed,thu,fri,sat}') as week_days,
        f[3] like '*%' or f[5] like '*%' as any_day,
        -- Every month has such a day, or every week: two months tell. Else February 29th may be eight years away.
        case when f[4] = '*' and (f[3] = '*' or f[5] = '*') then 62 else 2922 end as days_ahead
      from fields
      where cardinality(f) = 5
    ), days as (
      -- Two days are enough: today's times may be over, those of the next day that matches are not.
      select d.day
      from sets
      cross join generate_series(0, sets.days_ahead) as n (days)
      cross join lateral (select date_trunc('day', p_after at time zone 'UTC') + make_interval(days => n.days) as day) as d
      cross join lateral (
        select
          coalesce(extract(day from d.day)::integer = any (sets.month_days), false)
            or (sets.last_day and extract(month from d.day + interval '1 day') <> extract(month from d.day)) as fits_month,
          extract(dow from d.day)::integer = any (sets.week_days) or extract(isodow from d.day)::integer = any (sets.week_days) as fits_week
      ) as fits
      where extract(month from d.day)::integer = any (sets.months)
        -- Where both kinds of day are restricted, either will do: cron's old rule.
        and case when sets.any_day then fits.fits_month and fits.fits_week else fits.fits_month or fits.fits_week end
      order by n.days limit 2
    )
    select coalesce(
      (
        select p_after + make_interval(secs => (regexp_match(spelled.schedule, '^(\d+) seconds?$'))[1]::integer)
        from spelled
      ),
      (
        select min(t.time)
        from days d
        cross join sets
        cross join lateral unnest(sets.hours) as h (hour)
        cross join lateral unnest(sets.minutes) as m (minute)
        cross join lateral (select (d.day + make_interval(hours => h.hour, mins => m.minute)) at time zone 'UTC' as time) as t
        where t.time > p_after
      )
    )
  );
end;
$$;

comment on function image_sync.next_time(text, timestamptz) is 'The next time that a schedule of pg_cron is due after a moment; null for what is none.';

-- A report that met one lock would meet it again for each thing and each bucket: it has waited enough.
create or replace function image_sync.wait_no_more()
returns void language plpgsql stable set search_path = '' as $$
begin
  perform set_config('lock_timeout', '1ms', true);
end;
$$;

comment on function image_sync.wait_no_more() is 'Makes the rest of the calling statement wait for no lock, up to the function that sets its own lock_timeout.';

-- The jobs that the schedule consists of, by what they do and whose they are: the name is the operator's.
create or replace function image_sync.scheduled_jobs()
returns table (name text, line text, jobid bigint, schedule text) language plpgsql stable security definer set search_path = '' as $$
begin
  return query
  select w.name, format('select cron.schedule(%L, %L, %L);', w.name, w.schedule, w.command), j.jobid, j.schedule
  from (values
    ('image-sync-nightly', '0 2 * * *', 'select image_sync.run_nightly()', 'run_nightly'),
    ('image-sync-watchdog', '* * * * *', 'select image_sync.watchdog()', 'watchdog'),
    ('image-sync-housekeeping', '30 3 * * *', 'select image_sync.prune_history()', 'prune_history')
  ) as w (name, schedule, command, calls)
  left join cron.job j
    on j.active
    and j.database = current_database()
    and j.username = (
      select pg_get_userbyid(n.nspowner)
      from pg_catalog.pg_namespace n
      where n.nspname = 'image_sync'
    )
    -- What is left of the command without its comments and texts calls it, however that is written.
    and regexp_replace(
      -- One after the other: side by side the longest match would win, from the first comment to the last.
      regexp_replace(regexp_replace(regexp_replace(j.command, '/\*.*?\*/', ' ', 'g'), '--[^\n]*', ' ', 'g'), '''[^'']*''', ' ', 'g'),
      '["\s]+', ' ', 'g'
    ) ~* format('\m(select|perform|call|from|execute)\M[^;]*\mimage_sync ?\. ?%s ?\( ?\)', w.calls);
end;
$$;

comment on function image_sync.scheduled_jobs() is
  'The jobs that the schedule needs, the line that makes each, and what there is in cron.job that does it: null where nothing does.';

-- What service_role cannot see: whether jobs exist, how they went, and how the calls of the function went. Takes
-- nothing, returns facts.
create or replace function image_sync.schedule_facts()
returns jsonb language plpgsql stable security definer set search_path = '' as $$
declare
  v_facts jsonb := '{}'::jsonb;
begin
  if to_regclass('cron.job') is not null then
    select jsonb_build_object(
      'missing_jobs', coalesce(jsonb_agg(distinct s.name) filter (where s.jobid is null), '[]'),
      'missing_lines', string_agg(distinct s.line, ' ') filter (where s.jobid is null),
      'next_run_at', min(image_sync.next_time(s.schedule, now())) filter (where s.name = 'image-sync-nightly'),
      'schedules', coalesce(jsonb_agg(s.schedule) filter (where s.name = 'image-sync-nightly' and s.schedule is not null), '[]'),
      'failed_jobs', coalesce(jsonb_agg(jsonb_build_object('name', s.name, 'message', image_sync.redact(d.return_message), 'at', d.start_time)) filter (where d.status = 'failed'), '[]')
    )
    into v_facts
    from image_sync.scheduled_jobs() s
    -- The last time only: pg_cron keeps a row for each, and other people's beside ours. What runs now has not failed.
    left join lateral (
      select r.status, r.return_message, r.start_time
      from cron.job_run_details r
      where r.jobid = s.jobid and r.status in ('succeeded', 'failed')
      order by r.runid desc limit 1
    ) as d on true;
  end if;
  v_facts := v_facts || jsonb_build_object('function_fits', image_sync.function_fits(), 'function_url', (
    select a.url
    from image_sync.project a
  ));
  if to_regclass('net._http_response') is not null then
    v_facts := v_facts || jsonb_build_object('calls', (
      -- The newest call of each bucket's open run, else of its last one; what succeeded needs no call. pg_net's ids begin again at 1
      -- after a crash: the answer is the one that came between the call and the end of its run, not just one of the same id.
      select coalesce(jsonb_object_agg(r.bucket_id, jsonb_build_object(
        'run_id', r.id,
        'kicked_at', r.kicked_at,
        'moved_at', r.moved_at,
        'is_open', r.finished_at is null,
        'answered', h.id is not null,
        -- The function may take up a run and still answer too late for pg_net.
        'arrived', cardinality(r.wake_hashes) > 0 and r.wake_hashes[1] is null,
        'status', h.status_code,
        'error', left(coalesce(h.error_msg, case when h.timed_out then 'timed out' end), 200)
      )), '{}')
      from (
        select distinct on (q.bucket_id) q.*
        from image_sync.runs q
        where q.mode = 'sync'
        order by q.bucket_id, (q.finished_at is null) desc, q.started_at desc
      ) as r
      left join net._http_response h
        on h.id = r.kick_id
        and h.created between r.kicked_at and coalesce(r.finished_at, 'infinity')
      where r.kick_id is not null and r.outcome is distinct from 'succeeded'
    ));
  end if;
  return v_facts;
exception
  when lock_not_available then
    perform image_sync.wait_no_more();
    return '{"missing_jobs": [], "schedules": [], "failed_jobs": []}'::jsonb || v_facts;
end;
$$;

comment on function image_sync.schedule_facts() is
  'Which of our cron jobs are missing (by name), where the function lives, which jobs failed the last time, when the nightly job is due next, and by bucket what the newest call of a run that has not succeeded was answered.';

-- The bucket at this moment. A permission that was lost is something to report, not the end of the report.
create or replace function image_sync.bucket_facts(p_bucket_id text)
returns jsonb
language plpgsql
stable
set search_path = ''
-- One look by an index in its order: without statistics a sort of the whole bucket looks cheaper.
set enable_sort = 'off'
as $$
begin
  return (
    select jsonb_build_object(
      'bucket_exists', b.id is not null,
      'bucket_public', b.public,
      -- One look by the index of names: in any other order that may be all files of all buckets.
      'has_objects', exists (
        select
        from image_sync.objects o
        where o.bucket_id = p_bucket_id
        order by o.name collate "C"
        offset 0
      )
    )
    from (select) as always
    left join storage.buckets b on b.id = p_bucket_id
  );
exception
  when insufficient_privilege then
    return jsonb_build_object('listing_refused', true);
  when lock_not_available then
    perform image_sync.wait_no_more();
    return jsonb_build_object('listing_locked', true);
end;
$$;

comment on function image_sync.bucket_facts(text) is
  'Whether the bucket exists, is public and holds a file; or that storage.objects or storage.buckets may not be read.';

-- The table at this moment. An adopted one may lack the grant for service_role, and somebody may hold it.
create or replace function image_sync.table_facts(p_bucket_id text)
returns jsonb
language plpgsql
stable
set search_path = ''
-- One look by an index in its order: without statistics a sort of the whole bucket looks cheaper.
set enable_sort = 'off'
as $$
begin
  return jsonb_build_object(
    'has_records', exists (
      select
      from public.part_images p
      where p.bucket_id = p_bucket_id
      order by p.file_name collate "C"
      offset 0
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
    perform image_sync.wait_no_more();
    return jsonb_build_object('table_locked', true);
end;
$$;

comment on function image_sync.table_facts(text) is
  'Whether part_images holds records of the bucket, may be used by who asks, and is open to anon; or that it may not be read, or that somebody holds it locked.';

-- Records that no run looks at: of buckets without settings, or that do not exist. From one bucket to the next by the index, each
-- counted up to 10,000: reading them costs the same however many records there are.
create or replace function image_sync.stray_facts(p_bucket_id text)
returns jsonb language plpgsql stable set search_path = '' as $$
begin
  return (
    with recursive labels as (
      select min(p.bucket_id) as bucket_id, 1 as place
      from public.part_images p
      union all
      select
        (
          select min(p.bucket_id)
          from public.part_images p
          where p.bucket_id > l.bucket_id
        ),
        l.place + 1
      from labels l
      where l.bucket_id is not null and l.place < 1000
    ), strays as (
      select l.bucket_id, b.id is not null as bucket_exists, counted.records
      from labels l
      left join storage.buckets b on b.id = l.bucket_id
      left join image_sync.settings s on s.bucket_id = l.bucket_id
      cross join lateral (
        select count(*) as records
        from (
          select
          from public.part_images p
          where p.bucket_id = l.bucket_id
          order by p.file_name collate "C" limit 10000
        ) as few
      ) as counted
      where l.bucket_id is not null and (b.id is null or s.bucket_id is null)
        -- Its own report says so as bucket_missing.
        and l.bucket_id <> p_bucket_id
      order by l.bucket_id limit 20
    )
    select jsonb_build_object('strays', coalesce(jsonb_agg(jsonb_build_object('bucket_id', t.bucket_id, 'bucket_exists', t.bucket_exists, 'records', t.records)), '[]'))
    from strays t
  );
exception
  when insufficient_privilege then
    return jsonb_build_object('strays', jsonb_build_array());
  when lock_not_available then
    perform image_sync.wait_no_more();
    return jsonb_build_object('strays', jsonb_build_array());
end;
$$;

comment on function image_sync.stray_facts(text) is
  'The buckets, up to 20 and other than this one, whose records no run looks at because they have no settings or do not exist: bucket_id, bucket_exists, records (at most 10,000 are counted).';

-- An open run that has not moved for two minutes: by then a worker that died was replaced.
create or replace function image_sync.standing_run(p_bucket_id text)
returns jsonb language plpgsql stable set search_path = '' as $$
begin
  return (
    select jsonb_build_object('id', r.id, 'mode', r.mode, 'plan_id', r.plan_id, 'bucket_is_gone', case when r.plan_id is null then r.options -> 'bucket_is_gone' end, 'since', r.moved_at, 'reason', image_sync.standstill_reason(r))
    from image_sync.runs r
    where r.bucket_id = p_bucket_id and r.finished_at is null and r.moved_at < now() - interval '2 minutes'
    order by r.moved_at limit 1
  );
end;
$$;

comment on function image_sync.standing_run(text) is 'The open run of the bucket that stands still, since when and why; null where none does.';
