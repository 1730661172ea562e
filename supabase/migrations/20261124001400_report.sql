-- The status report. What grows with the bucket is measured by the runs, in their chunks; reading the report adds up nothing
-- but a handful of rows, whatever the size of the bucket.

-- What a finished sync or analyze measured, merged from its chunks: stored in runs.report.
create function image_sync.measure(p_run image_sync.runs, p_probe jsonb)
returns jsonb
language sql
stable
set search_path = ''
return (
  with counted as (
    select
      coalesce(sum(c.listed), 0) as objects,
      coalesce(sum(c.images), 0) as images,
      coalesce(sum(c.not_images), 0) as not_images,
      coalesce(sum(c.bytes), 0) as bytes,
      coalesce(sum(c.recorded + c.inserted), 0) as recorded,
      coalesce(sum(c.images_signed), 0) as images_signed,
      coalesce(sum(c.records), 0) as records,
      coalesce(sum(c.records_signed - c.records_expired), 0) as signed,
      coalesce(sum(c.records - c.records_signed), 0) as unsigned,
      coalesce(sum(c.records_expired), 0) as expired,
      coalesce(sum(c.records - c.records_signed - c.orphans_unsigned), 0) as unsigned_with_object,
      coalesce(sum(c.records_expired - c.orphans_expired), 0) as expired_with_object,
      coalesce(sum(c.orphaned + c.withdrawn), 0) as orphaned,
      coalesce(sum(c.missing), 0) as missing,
      coalesce(sum(c.collided), 0) as collided,
      coalesce(sum(c.failed), 0) as failed,
      coalesce(sum(c.several_files), 0) as several_files,
      min(c.soonest_expiry) as soonest_expiry
    from image_sync.chunks c
    where c.run_id = p_run.id
  ), extensions as (
    select
      coalesce(nullif(e.extension, ''), '(none)') as extension,
      sum(e.files::bigint) as files,
      row_number() over (order by sum(e.files::bigint) desc, e.extension) as place
    from image_sync.chunks c
    cross join lateral jsonb_each_text(c.facts -> 'by_extension') as e (extension, files)
    where c.run_id = p_run.id
    group by e.extension
  )
  select jsonb_build_object(
    'measured_at', clock_timestamp(),
    'bucket', jsonb_build_object(
      'objects', counted.objects,
      'images', counted.images,
      'bytes', counted.bytes,
      'by_extension', coalesce(
        (
          select jsonb_object_agg(shown.extension, shown.files)
          from (
            select case when x.place <= 20 then x.extension else 'other' end as extension, sum(x.files) as files
            from extensions x
            group by 1
          ) as shown
        ), '{}')
    ),
    'records', jsonb_build_object(
      'total', counted.records,
      'signed', counted.signed,
      'unsigned', counted.unsigned,
      'expired', counted.expired,
      'soonest_expiry', counted.soonest_expiry
    ),
    'difference', jsonb_build_object(
      'missing', jsonb_build_object('count', counted.missing, 'samples', image_sync.samples(p_run.id, 'missing')),
      'orphaned', jsonb_build_object('count', counted.orphaned, 'samples', image_sync.samples(p_run.id, 'orphaned')),
      'collided', jsonb_build_object('count', counted.collided, 'samples', image_sync.samples(p_run.id, 'collided'))
    ),
    -- Rounded down: 1 means all of them.
    'coverage', jsonb_build_object(
      'recorded', case when counted.images > 0 then trunc(counted.recorded::numeric / counted.images, 6) else 1 end,
      'signed', case when counted.images > 0 then trunc(counted.images_signed::numeric / counted.images, 6) else 1 end
    ),
    'probe', coalesce(p_probe, '{"checked": 0, "ok": 0, "failures": []}'),
    'excluded', jsonb_build_object('count', counted.not_images, 'samples', image_sync.samples(p_run.id, 'excluded')),
    'several_files', jsonb_build_object('count', counted.several_files, 'samples', image_sync.samples(p_run.id, 'several_files')),
    'unsigned_with_object', counted.unsigned_with_object,
    'expired_with_object', counted.expired_with_object,
    'failed', jsonb_build_object('count', counted.failed, 'samples', (
      select coalesce(jsonb_agg(f.problem ->> 'name'), '[]')
      from (
        select problem
        from image_sync.chunks c
        cross join lateral jsonb_array_elements(c.problems) as problem
        where c.run_id = p_run.id
          and problem ->> 'code' = 'signing_failed'
        order by c.number
        limit 20
      ) as f
    )),
    'unnamed', (
      select count(*)
      from public.part_images p
      where p.bucket_id = p_run.bucket_id
        and p.file_name is null
    )
  )
  from counted
);

comment on function image_sync.measure(image_sync.runs, jsonb) is
  'What a finished sync or analyze found: the sections bucket, records, difference, coverage and probe of the report, and the counts that findings need. No URL, no key.';

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

-- Everything that the report tells the operator to look at: the one place that defines it. A finding stands where its count is
-- above 0, unless another that stands is its cause: one fault, one finding. p_facts is what image_sync.report_facts() gathers.
create function image_sync.findings(p_facts jsonb)
returns table (code text, level text, title text, count bigint, samples jsonb, remediation text)
language sql
stable
set search_path = ''
begin atomic
  with f as (
    select
      p_facts ->> 'bucket_id' as bucket_id,
      p_facts -> 'live' as live,
      p_facts -> 'schedule' as schedule,
      p_facts -> 'measured' as measured,
      p_facts -> 'last_sync' as last_sync,
      p_facts -> 'last_listing' as last_listing
  ), found as (
    select v.code, v.level, v.title, v.count, coalesce(v.samples, '[]') as samples, v.remediation
    from f
    cross join lateral (values
      (
        'bucket_missing', 'error', 'The bucket does not exist',
        (not (f.live ->> 'bucket_exists')::boolean)::integer::bigint, null::jsonb,
        format('Create the private bucket %s under Storage, or correct bucket_id in image_sync.settings.', f.bucket_id)
      ),
      (
        'bucket_empty', case when (f.live ->> 'has_records')::boolean then 'error' else 'warning' end, 'No files found in bucket',
        ((f.live ->> 'bucket_exists')::boolean and not (f.live ->> 'has_objects')::boolean)::integer, null,
        format('Check that %s is the right bucket and that its files were uploaded there. Nothing is removed from the table for an empty bucket.', f.bucket_id)
      ),
      (
        'bucket_public', 'warning', 'The bucket is public',
        coalesce((f.live ->> 'bucket_public')::boolean, false)::integer, null,
        format('Anyone can fetch every file without a signed URL. Make bucket %s private under Storage, Edit bucket.', f.bucket_id)
      ),
      (
        'listing_failed', 'error', 'Error listing files',
        (coalesce((f.live ->> 'listing_refused')::boolean, false) or coalesce(f.last_listing #>> '{error,code}' = 'listing_failed', false))::integer, null,
        'storage.objects could not be read. Check that the function uses a secret key, and that service_role may read it: grant usage on schema storage to service_role; grant select on storage.objects, storage.buckets to service_role; Then start a sync.'
      ),
      (
        'listing_incomplete', 'error', 'The last run stopped before the end of the bucket',
        (f.last_listing ->> 'state' in ('failed', 'cancelled') and not (f.last_listing ->> 'reached_end')::boolean and coalesce(f.last_listing #>> '{error,code}', '') not in ('bucket_missing', 'listing_failed', 'missing_secret'))::integer, null,
        'Files beyond that point were not looked at. A run lists page by page to the very end and has no limit of 100 files: see the run''s error, mend its cause and start a sync.'
      ),
      (
        'signing_failed', 'error', 'Error signing URLs',
        (f.last_sync ->> 'stop_reason' in ('signing_failed', 'signing_impossible', 'dead_chunks'))::integer, null,
        'The Storage API refused to sign. See the run''s error and problems; check that the bucket is the one in the settings, that the function has a secret key, and the status of Storage. Then start a sync.'
      ),
      (
        'unsignable_names', 'warning', 'Some files could not be signed',
        (f.measured #>> '{failed,count}')::bigint, f.measured #> '{failed,samples}',
        'See the problems of the last sync for the reason of each. A name that Storage does not accept (non-ASCII characters, # % or tabs, a path segment . or ..) has to be renamed.'
      ),
      (
        'missing', 'warning', 'Images without a record',
        (f.measured #>> '{difference,missing,count}')::bigint, f.measured #> '{difference,missing,samples}',
        'Start a sync; the nightly run does it too.'
      ),
      (
        'orphaned', 'warning', 'Records without a file',
        (f.measured #>> '{difference,orphaned,count}')::bigint, f.measured #> '{difference,orphaned,samples}',
        'If the files are gone for good, start a cleanup: it lists the records first and removes them only when that list is confirmed. If they should be there, restore the files.'
      ),
      (
        'collided', 'warning', 'Images whose record the table refuses',
        (f.measured #>> '{difference,collided,count}')::bigint, f.measured #> '{difference,collided,samples}',
        'Another record has the same part number, or a constraint or trigger of the table says no. Rename the file, or change the other record.'
      ),
      (
        'unsigned', 'warning', 'Records without a URL',
        -- Those that the last run could not sign stand under unsignable_names.
        (f.measured ->> 'unsigned_with_object')::bigint - (f.measured #>> '{failed,count}')::bigint, null,
        'Start a sync. If they stay, see the problems of that run.'
      ),
      (
        'expired', 'error', 'Records whose URL has expired',
        case
          -- Nothing was measured since the first of them died: at least one has.
          when (f.measured #>> '{records,soonest_expiry}')::timestamptz <= now() then greatest((f.measured ->> 'expired_with_object')::bigint, 1)
          else (f.measured ->> 'expired_with_object')::bigint
        end, null,
        'Start a sync: it signs them again. Then see why the nights before did not.'
      ),
      (
        'excluded_extensions', 'info', 'Files left out because of their extension',
        (f.measured #>> '{excluded,count}')::bigint, f.measured #> '{excluded,samples}',
        format(
          'To include them: update image_sync.settings set extensions = extensions || %L::text[] where bucket_id = %L;',
          (
            select coalesce(array_agg(e.extension order by e.extension), '{}')
            from jsonb_object_keys(coalesce(f.measured #> '{bucket,by_extension}', '{}')) as e (extension)
            where e.extension not in ('(none)', 'other')
              and not f.live -> 'extensions' ? e.extension
          ),
          f.bucket_id
        )
      ),
      (
        'several_files', 'warning', 'Several files for one part number',
        (f.measured #>> '{several_files,count}')::bigint, f.measured #> '{several_files,samples}',
        'Each file has its own record; a look-up by part number finds one of them. Keep one file for each part number and delete or rename the others; nothing is overwritten.'
      ),
      (
        'unnamed_records', 'warning', 'Records without a file name',
        (f.measured ->> 'unnamed')::bigint, null,
        format('They cannot be matched with any file. See: select * from public.part_images where bucket_id = %L and file_name is null;', f.bucket_id)
      ),
      (
        'probe_failed', case when (f.measured #>> '{probe,ok}')::integer = 0 then 'error' else 'warning' end, 'Signed URLs that do not show an image',
        (f.measured #>> '{probe,checked}')::bigint - (f.measured #>> '{probe,ok}')::bigint,
        (
          select jsonb_agg(p.failure ->> 'name')
          from jsonb_array_elements(f.measured #> '{probe,failures}') as p (failure)
        ),
        'Some of a few random URLs did not answer with an image. If all fail, the URL-signing key was rotated: start a sync with {"renew": "all"}. If single ones fail, their file is damaged: upload it again.'
      ),
      (
        'last_run_failed', 'error', 'The last sync failed',
        (
          f.last_sync ->> 'state' = 'failed'
          -- secret_missing says it already.
          and not coalesce(f.last_sync #>> '{error,code}' = 'missing_secret' and jsonb_array_length(f.schedule -> 'missing_secrets') > 0, false)
        )::integer, null,
        format('%s Then start a sync.', coalesce((f.last_sync #>> '{error,title}') || ': ' || (f.last_sync #>> '{error,detail}'), 'See the run''s problems.'))
      ),
      (
        'last_run_partial', 'warning', 'The last sync could not do all of its work',
        (f.last_sync ->> 'state' = 'partial')::integer, null,
        'See the run''s problems. The next sync tries again.'
      ),
      (
        'no_recent_sync', 'error', 'No successful sync within 26 hours',
        (coalesce((f.live ->> 'last_success_at')::timestamptz, '-infinity') < now() - interval '26 hours')::integer, null,
        'Start a sync by hand. If the nightly one does not come, look at the findings about its job, its secrets and its last call.'
      ),
      (
        'job_missing', 'error', 'A scheduled job is absent or switched off',
        jsonb_array_length(coalesce(f.schedule -> 'missing_jobs', '["image-sync-housekeeping", "image-sync-nightly", "image-sync-watchdog"]')), coalesce(f.schedule -> 'missing_jobs', '["image-sync-housekeeping", "image-sync-nightly", "image-sync-watchdog"]'),
        'Schedule it again with the cron.schedule line of that name in docs/operations.md, or switch it on: select cron.alter_job(jobid, active := true) from cron.job where jobname = ''...'';'
      ),
      (
        'secret_missing', 'error', 'A Vault secret is absent',
        jsonb_array_length(coalesce(f.schedule -> 'missing_secrets', '["image_sync_key", "project_url"]')), coalesce(f.schedule -> 'missing_secrets', '["image_sync_key", "project_url"]'),
        'The schedule cannot call the function without it: select vault.create_secret(''...'', ''project_url''); and select vault.create_secret(''sb_secret_...'', ''image_sync_key'');'
      ),
      (
        'last_call_failed', 'warning', 'The last call that the schedule queued got an error',
        (coalesce((f.schedule #>> '{last_call,status}')::integer not between 200 and 299, f.schedule #>> '{last_call,error}' is not null))::integer,
        jsonb_build_array(coalesce('HTTP ' || (f.schedule #>> '{last_call,status}'), f.schedule #>> '{last_call,error}')),
        '401: the Vault secret image_sync_key is not one of the project''s secret keys. 404: the function is not deployed, or project_url is wrong. No answer: project_url cannot be reached.'
      ),
      (
        'table_public', 'warning', 'Anyone with the publishable key can read the signed URLs',
        coalesce((f.live ->> 'table_public')::boolean, false)::integer, null,
        'The role anon may select from public.part_images. Unless that is wanted: revoke select on public.part_images from anon; or enable row level security on it.'
      )
    ) as v (code, level, title, count, samples, remediation)
    where v.count > 0
  )
  select found.code, found.level, found.title, found.count, found.samples, found.remediation
  from found
  where not exists (
    select
    from (values
      ('last_run_failed', 'bucket_missing'),
      ('last_run_failed', 'listing_failed'),
      ('last_run_failed', 'signing_failed'),
      ('last_run_partial', 'signing_failed'),
      ('last_run_partial', 'unsignable_names'),
      ('unsignable_names', 'signing_failed'),
      ('unsigned', 'signing_failed'),
      ('listing_incomplete', 'signing_failed'),
      ('listing_incomplete', 'last_run_failed')
    ) as explained (code, cause)
    join found as cause on cause.code = explained.cause
    where explained.code = found.code
  )
  order by array_position(array['error', 'warning', 'info'], found.level), found.code;
end;

comment on function image_sync.findings(jsonb) is
  'The findings of a report: code, level (error, warning, info), title, count, samples, remediation. The one definition of all of them.';

-- The last finished run in any of these modes, as a document.
create function image_sync.last_run(p_bucket_id text, p_modes text[])
returns jsonb
language sql
stable
set search_path = ''
return (
  select image_sync.run_document(r.id) || jsonb_build_object('reached_end', r.exhausted)
  from image_sync.runs r
  where r.bucket_id = p_bucket_id
    and r.mode = any (p_modes)
    and r.finished_at is not null
  order by r.finished_at desc
  limit 1
);

comment on function image_sync.last_run(text, text[]) is 'The last finished run of a bucket in one of the modes; null where there is none.';

-- What is true right now and cheap to ask.
create function image_sync.report_facts(p_settings image_sync.settings)
returns jsonb
language sql
stable
set search_path = ''
return (
  select jsonb_build_object(
    'bucket_id', p_settings.bucket_id,
    'live', jsonb_build_object(
      'has_records', exists (
        select
        from public.part_images p
        where p.bucket_id = p_settings.bucket_id
      ),
      'extensions', to_jsonb(p_settings.extensions),
      'table_public', (
        select has_table_privilege('anon', c.oid, 'select') and (not c.relrowsecurity or exists (
          select
          from pg_catalog.pg_policies y
          where y.schemaname = 'public'
            and y.tablename = 'part_images'
            and y.cmd in ('SELECT', 'ALL')
            and y.roles && array['anon', 'public']::name[]
        ))
        from pg_catalog.pg_class c
        where c.oid = 'public.part_images'::regclass
      ),
      'last_success_at', (
        select max(r.finished_at)
        from image_sync.runs r
        where r.bucket_id = p_settings.bucket_id
          and r.mode = 'sync'
          -- A file that cannot be signed is a finding of its own and must not hide, night after night, that the rest went well.
          and (r.outcome = 'succeeded' or r.stop_reason = 'items_failed')
      )
    ) || image_sync.bucket_facts(p_settings.bucket_id),
    'schedule', image_sync.schedule_facts(),
    -- The newest measurement, with the probe of the newest sync: an analyze fetches nothing.
    'measured', (
      select r.report || jsonb_build_object('probe', (
        select s.report -> 'probe'
        from image_sync.runs s
        where s.bucket_id = p_settings.bucket_id
          and s.mode = 'sync'
          and s.report is not null
        order by s.finished_at desc
        limit 1
      ))
      from image_sync.runs r
      where r.bucket_id = p_settings.bucket_id
        and r.report is not null
      order by r.finished_at desc
      limit 1
    ),
    'last_sync', image_sync.last_run(p_settings.bucket_id, array['sync']),
    'last_listing', image_sync.last_run(p_settings.bucket_id, array['sync', 'analyze'])
  )
);

comment on function image_sync.report_facts(image_sync.settings) is 'What the report and its findings are made of: the last measurement, the last runs, the schedule, and what is cheap to ask now.';

-- The status report.
create function public.image_sync_report(p_bucket text)
returns jsonb
language plpgsql
stable
set search_path = ''
as $$
declare
  v_settings image_sync.settings;
  v_facts jsonb;
  v_measured jsonb;
  v_findings jsonb;
begin
  select s.*
  into v_settings
  from image_sync.settings s
  where s.bucket_id = p_bucket;
  if v_settings.bucket_id is null then
    return image_sync.problem(
      404, 'unknown_bucket', 'The bucket has no settings',
      format('Cannot report on bucket %s: image_sync.settings has no row for it.', p_bucket)
    );
  end if;

  v_facts := image_sync.report_facts(v_settings);
  v_measured := coalesce(v_facts -> 'measured', '{}');
  select coalesce(jsonb_agg(to_jsonb(f)), '[]')
  into v_findings
  from image_sync.findings(v_facts) as f;

  return jsonb_build_object('report', jsonb_build_object(
    'generated_at', now(),
    'measured_at', v_measured -> 'measured_at',
    'healthy', not jsonb_path_exists(v_findings, '$[*] ? (@.level == "error")'),
    'bucket', jsonb_build_object('id', p_bucket) || coalesce(v_measured -> 'bucket', '{"objects": null, "images": null, "bytes": null, "by_extension": {}}'),
    'records', coalesce(v_measured -> 'records', '{"total": null, "signed": null, "unsigned": null, "expired": null, "soonest_expiry": null}'),
    'difference', coalesce(v_measured -> 'difference', '{"missing": {"count": null, "samples": []}, "orphaned": {"count": null, "samples": []}, "collided": {"count": null, "samples": []}}'),
    'coverage', coalesce(v_measured -> 'coverage', '{"recorded": null, "signed": null}'),
    'probe', coalesce(nullif(v_measured -> 'probe', 'null'), '{"checked": 0, "ok": 0, "failures": []}'),
    'open_run', (
      select image_sync.run_document(r.id)
      from image_sync.runs r
      where r.bucket_id = p_bucket
        and r.finished_at is null
      order by r.started_at desc
      limit 1
    ),
    'next_run_at', case when v_settings.nightly then v_facts #> '{schedule,next_run_at}' end,
    'last_runs', jsonb_build_object(
      'sync', v_facts -> 'last_sync',
      'analyze', image_sync.last_run(p_bucket, array['analyze']),
      'cleanup', image_sync.last_run(p_bucket, array['cleanup']),
      'restore', image_sync.last_run(p_bucket, array['restore'])
    ),
    'findings', v_findings
  ));
end;
$$;

comment on function public.image_sync_report(text) is
  'The status report of a bucket: what the last run measured, the last run of each mode, the open run, the next one, and the findings. Problem: unknown_bucket (404). Never contains a signed URL or a key.';

revoke all on function
  image_sync.measure(image_sync.runs, jsonb),
  image_sync.cron_field(text, integer, integer),
  image_sync.next_time(text, timestamptz),
  image_sync.schedule_facts(),
  image_sync.bucket_facts(text),
  image_sync.findings(jsonb),
  image_sync.report_facts(image_sync.settings),
  image_sync.last_run(text, text[])
from public;
revoke all on function public.image_sync_report(text) from public, anon, authenticated;
grant execute on function
  image_sync.measure(image_sync.runs, jsonb),
  image_sync.cron_field(text, integer, integer),
  image_sync.next_time(text, timestamptz),
  image_sync.schedule_facts(),
  image_sync.bucket_facts(text),
  image_sync.findings(jsonb),
  image_sync.report_facts(image_sync.settings),
  image_sync.last_run(text, text[]),
  public.image_sync_report(text)
to service_role;
