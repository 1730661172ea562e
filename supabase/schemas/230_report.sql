-- set
-- The status report: what the last run measured, the last run of each mode, and the findings.

-- The last finished run in any of these modes, as a document.
create or replace function image_sync.last_run(p_bucket_id text, p_modes text[])
returns jsonb language plpgsql stable set search_path = '' as $$
begin
  return (
    select image_sync.run_document(r.id) || jsonb_build_object('reached_end', r.exhausted)
    from image_sync.runs r
    where r.bucket_id = p_bucket_id and r.mode = any (p_modes) and r.finished_at is not null
    order by r.finished_at desc limit 1
  );
end;
$$;

comment on function image_sync.last_run(text, text[]) is 'The last finished run of a bucket in one of the modes; null where there is none.';

-- What runs found out: nothing here asks how the bucket is at this moment.
create or replace function image_sync.measured_facts(p_bucket_id text)
returns jsonb language plpgsql stable set search_path = '' set plan_cache_mode = 'force_generic_plan' as $$
begin
  return (
    select jsonb_build_object(
      'bucket_id', p_bucket_id,
      -- The newest measurement, with the probe of the newest sync: an analyze fetches nothing.
      'measured', (
        select r.report || jsonb_build_object(
          'probe', (
            select s.report -> 'probe'
            from image_sync.runs s
            where s.bucket_id = p_bucket_id and s.mode = 'sync' and s.report is not null
            order by s.finished_at desc limit 1
          ),
          'moved_away', case
            when (r.report #> '{moved_away,count}')::bigint > 0 then image_sync.still_away(p_bucket_id, r.report -> 'moved_away')
          end
        )
        from image_sync.runs r
        where r.bucket_id = p_bucket_id and r.report is not null
        order by r.finished_at desc limit 1
      ),
      -- The newest look at every URL, and whether a sync came after it.
      'verified', (
        select r.report -> 'verified' || jsonb_build_object('is_older', exists (
          select
          from image_sync.runs s
          where s.bucket_id = p_bucket_id and s.mode = 'sync' and s.report is not null and s.finished_at > r.finished_at
        ))
        from image_sync.runs r
        where r.bucket_id = p_bucket_id and r.mode = 'verify' and r.report is not null
        order by r.finished_at desc limit 1
      ),
      -- What ended the last verify early, unless URLs were opened since.
      'unreached', (
        select r.error ->> 'detail'
        from (
          select l.*
          from image_sync.runs l
          where l.bucket_id = p_bucket_id
            and (l.mode = 'verify' and l.finished_at is not null or l.mode = 'sync' and (l.report #>> '{probe,ok}')::bigint > 0)
            and l.outcome <> 'cancelled'
          order by l.finished_at desc limit 1
        ) as r
        where r.mode = 'verify' and r.stop_reason = 'unreachable'
      ),
      'last_sync', image_sync.last_run(p_bucket_id, array['sync']),
      'last_listing', image_sync.last_run(p_bucket_id, array['sync', 'analyze', 'verify'])
    )
  );
end;
$$;

comment on function image_sync.measured_facts(text) is 'The part of a report''s facts that runs found out: the newest measurement, the newest verify, the last runs.';

-- Those, and what is true right now and cheap to ask.
create or replace function image_sync.report_facts(p_settings image_sync.settings)
returns jsonb language plpgsql stable set search_path = '' set plan_cache_mode = 'force_generic_plan' as $$
begin
  return image_sync.measured_facts(p_settings.bucket_id) || (
    select jsonb_build_object(
      'live', jsonb_build_object(
        'extensions', to_jsonb(p_settings.extensions),
        'nightly', p_settings.nightly,
        'renew_before', p_settings.renew_before,
        'standing_run', image_sync.standing_run(p_settings.bucket_id),
        'last_success_at', (
          select max(r.finished_at)
          from image_sync.runs r
          where r.bucket_id = p_settings.bucket_id and r.mode = 'sync'
            -- What fails for single files has a finding of its own and must not hide, night after night, that the rest went well.
            and (r.outcome = 'succeeded' or r.stop_reason in ('items_failed', 'row_locked', 'database_timeout', 'records_refused'))
        )
      ) || image_sync.bucket_facts(p_settings.bucket_id) || image_sync.table_facts(p_settings.bucket_id) || image_sync.stray_facts(p_settings.bucket_id) || image_sync.reader_facts(p_settings),
      'schedule', image_sync.schedule_facts()
    )
  );
end;
$$;

comment on function image_sync.report_facts(image_sync.settings) is 'What the report and its findings are made of: the last measurement, the last runs, the schedule, and what is cheap to ask now.';

-- Nothing is healthy while more than one image in a hundred has no working URL, or more than one record in a hundred shows nothing: by
-- the counts, or to a reader, by a verify and not by the few of a probe.
create or replace function image_sync.shows_enough(p_facts jsonb)
returns boolean language plpgsql stable set search_path = '' as $$
declare
  v_measured constant jsonb := coalesce(p_facts -> 'measured', '{}');
  v_away constant bigint := coalesce((v_measured #>> '{moved_away,count}')::bigint, 0);
begin
  return coalesce((v_measured #>> '{coverage,signed}')::numeric, 1) >= 0.99
    and 100 * (
      coalesce((v_measured #>> '{difference,orphaned,count}')::bigint, 0)
      + coalesce((v_measured ->> 'unsigned_with_object')::bigint, 0)
      + coalesce((v_measured ->> 'expired_with_object')::bigint, 0)
      + v_away
    ) <= coalesce((v_measured #>> '{records,total}')::bigint, 0) + v_away
    and coalesce((
      select 100 * sum(u.files) <= (p_facts #>> '{verified,checked}')::bigint
      from image_sync.unseen(p_facts) u
    ), true);
end;
$$;

comment on function image_sync.shows_enough(jsonb) is
  'Whether, by a measurement and the newest verify, at least 99 % of the images have a working URL and at most 1 % of the records show nothing.';

-- The status report, as far as nobody holds what it looks at: its caller says how long that is waited for.
create or replace function image_sync.report_of(p_bucket text)
returns jsonb language plpgsql stable set search_path = '' as $$
declare
  v_settings image_sync.settings;
  v_facts jsonb;
  v_measured jsonb;
  v_since jsonb;
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
  v_since := image_sync.since_of(v_facts);
  select coalesce(jsonb_agg(to_jsonb(f) || jsonb_strip_nulls(jsonb_build_object('since', v_since -> f.code))), '[]')
  into v_findings
  from image_sync.findings(v_facts) as f;

  return jsonb_build_object('report', jsonb_build_object(
    'generated_at', now(),
    'versions', jsonb_build_object('schema', image_sync.schema_version(), 'function', (
      select p.function_version
      from image_sync.project p
    )),
    'measured_at', v_measured -> 'measured_at',
    -- As far as counts tell: findings have their levels in the function.
    'healthy', image_sync.shows_enough(v_facts),
    'bucket', jsonb_build_object('id', p_bucket) || coalesce(v_measured -> 'bucket', '{"objects": null, "images": null, "bytes": null, "by_extension": {}}'),
    'records', coalesce(v_measured -> 'records', '{"total": null, "signed": null, "unsigned": null, "expired": null, "soonest_expiry": null}'),
    'difference', coalesce(v_measured -> 'difference', '{"missing": {"count": null, "samples": []}, "orphaned": {"count": null, "samples": []}, "collided": {"count": null, "samples": []}, "moved": {"count": null, "samples": []}}'),
    'coverage', coalesce(v_measured -> 'coverage', '{"recorded": null, "signed": null}'),
    'probe', coalesce(nullif(v_measured -> 'probe', 'null'), '{"checked": 0, "ok": 0, "failures": []}'),
    'verified', nullif(v_facts -> 'verified', 'null') - 'is_older',
    'open_run', (
      select image_sync.run_document(r.id)
      from image_sync.runs r
      where r.bucket_id = p_bucket and r.finished_at is null
      order by r.started_at desc limit 1
    ),
    'next_run_at', case when v_settings.nightly then v_facts #> '{schedule,next_run_at}' end,
    'last_runs', jsonb_build_object(
      'sync', v_facts -> 'last_sync',
      'analyze', image_sync.last_run(p_bucket, array['analyze']),
      'verify', image_sync.last_run(p_bucket, array['verify']),
      'cleanup', image_sync.last_run(p_bucket, array['cleanup']),
      'restore', image_sync.last_run(p_bucket, array['restore'])
    ),
    'findings', v_findings
  ));
end;
$$;

comment on function image_sync.report_of(text) is 'The status report of a bucket, as {"report"} or {"problem"}.';

create or replace function public.image_sync_report(p_bucket text)
returns jsonb
language plpgsql
stable
set search_path = ''
-- Whatever somebody holds: the report says what it can see.
set lock_timeout = '1s'
as $$
begin
  return image_sync.report_of(p_bucket);
end;
$$;

comment on function public.image_sync_report(text) is
  'The status report of a bucket: what the last run measured, the last run of each mode, the open run, the next one, and the findings, by their codes: the function has their words. Problem: unknown_bucket (404). Never contains a signed URL or a key.';
