-- set
-- What there is to look at, by code: how much of it, samples, and the numbers that its words need. The words, what mends it, and what
-- explains what away are a row of the function's findings.ts. p_facts is what image_sync.report_facts() gathers; a fact that is absent
-- finds nothing.

-- URLs that show no image, by reason: what the newest verify saw of all of them, and the probe of a newer sync of a few. A sync that
-- came after the verify signed anew what was rejected and counted what is gone; a file that is lost stays lost until it is looked at.
create or replace function image_sync.unseen(p_facts jsonb)
returns table (code text, files bigint, samples jsonb, none_shown boolean) language plpgsql stable set search_path = '' as $$
declare
  v_verified constant jsonb := p_facts -> 'verified';
  v_probe constant jsonb := p_facts #> '{measured,probe}';
  v_is_older constant boolean := coalesce((p_facts #>> '{verified,is_older}')::boolean, true);
  v_verify_shows_none constant boolean := coalesce((v_verified ->> 'ok')::bigint = 0 and (v_verified ->> 'checked')::bigint > 0, false);
  v_probe_shows_none constant boolean := coalesce(v_is_older and (v_probe ->> 'ok')::bigint = 0 and (v_probe ->> 'checked')::bigint > 0, false);
begin
  return query
  select
    reason.code,
    -- One at least where the verify ended there.
    greatest(by_verify.files, by_probe.files, unreached.files),
    case when by_verify.files >= by_probe.files then by_verify.samples else by_probe.samples end,
    reason.is_told and v_verify_shows_none or v_probe_shows_none or unreached.files > 0
  from (
    select c.code, not v_is_older or c.code in ('file_lost', 'not_an_image', 'wrong_content_type') as is_told
    from unnest('{file_lost,file_gone,not_an_image,wrong_content_type,url_rejected,unreachable}'::text[]) as c (code)
  ) as reason
  cross join lateral (
    select
      case when reason.is_told then coalesce((v_verified #>> array['failures', reason.code, 'count'])::bigint, 0) else 0 end as files,
      coalesce(v_verified #> array['failures', reason.code, 'samples'], '[]') as samples
  ) as by_verify
  cross join lateral (
    select count(p.failure) as files, coalesce(jsonb_agg(p.failure ->> 'name'), '[]') as samples
    from jsonb_array_elements(coalesce(v_probe -> 'failures', '[]')) as p (failure)
    where v_is_older and p.failure ->> 'code' = reason.code
  ) as by_probe
  cross join lateral (
    select (reason.code = 'unreachable' and p_facts ->> 'unreached' is not null)::integer as files
  ) as unreached;
end;
$$;

comment on function image_sync.unseen(jsonb) is
  'Of the facts of a report: how many URLs show no image, by reason, with samples, and whether none of those looked at showed one.';

-- What runs counted, and what readers see.
create or replace function image_sync.measured_findings(p_facts jsonb)
returns table (code text, count bigint, samples jsonb, numbers jsonb) language plpgsql stable set search_path = '' as $$
declare
  v_measured constant jsonb := p_facts -> 'measured';
begin
  return query
  select f.code, (v_measured #>> (f.path || '{count}'))::bigint, v_measured #> (f.path || '{samples}'), f.numbers
  from (values
    ('excluded_extensions', '{other_extensions}'::text[], jsonb_build_object('extensions', p_facts #> '{live,extensions}')),
    ('excluded_names', '{excluded}', null),
    ('empty_files', '{empty_files}', null),
    ('several_files', '{several_files}', null),
    ('unsignable_names', '{unsignable}', null),
    ('missing', '{difference,missing}', null),
    ('orphaned', '{difference,orphaned}', null),
    ('collided', '{difference,collided}', null),
    ('moved', '{difference,moved}', null),
    ('moved_away', '{moved_away}', jsonb_build_object('files', v_measured #> '{moved_away,files}', 'has_settings', exists (
      select
      from image_sync.settings s
      where s.bucket_id = v_measured #>> '{moved_away,files,0,bucket}'
    ))),
    ('not_moved', '{unmoved}', null),
    ('row_locked', '{held}', null),
    ('database_timeout', '{too_slow}', null),
    ('url_refused', '{url_refused}', null)
  ) as f (code, path, numbers)
  union all
  select u.code, u.files, u.samples, jsonb_build_object('none_shown', u.none_shown, 'said', case when u.code = 'unreachable' then coalesce(
    p_facts ->> 'unreached',
    jsonb_path_query_first(v_measured, '$.probe.failures[*] ? (@.code == "unreachable").error') #>> '{}',
    p_facts #>> '{verified,failures,unreachable,said}'
  ) end)
  from image_sync.unseen(p_facts) as u;
end;
$$;

comment on function image_sync.measured_findings(jsonb) is 'What runs counted and readers see, by the code of a finding, 0 and null included.';

-- What is true of the bucket, its rights, its URLs and its runs.
create or replace function image_sync.bucket_findings(p_facts jsonb)
returns table (code text, count bigint, samples jsonb, numbers jsonb) language plpgsql stable set search_path = '' as $$
declare
  v_live constant jsonb := p_facts -> 'live';
  v_measured constant jsonb := p_facts -> 'measured';
  v_sync constant jsonb := p_facts -> 'last_sync';
  v_listing constant jsonb := p_facts -> 'last_listing';
  v_expiry constant timestamptz := (v_measured #>> '{records,soonest_expiry}')::timestamptz;
  v_expired constant bigint := (v_measured ->> 'expired_with_object')::bigint;
begin
  return query
  select v.code, v.is_so::bigint, null::jsonb, v.numbers
  from (values
    ('bucket_missing', (not (v_live ->> 'bucket_exists')::boolean)::integer, null::jsonb),
    ('bucket_empty', ((v_live ->> 'bucket_exists')::boolean and not (v_live ->> 'has_objects')::boolean)::integer, jsonb_build_object('has_records', v_live -> 'has_records')),
    ('listing_incomplete', (v_listing ->> 'state' in ('failed', 'cancelled') and not (v_listing ->> 'reached_end')::boolean and coalesce(v_listing #>> '{error,code}', '') not in ('bucket_missing', 'function_unknown', 'unreachable'))::integer, null),
    ('bucket_public', (v_live ->> 'bucket_public')::boolean::integer, null),
    ('listing_failed', (v_live ->> 'listing_refused')::boolean::integer, null),
    ('table_refused', (v_live ->> 'table_refused')::boolean::integer, null),
    ('table_public', (v_live ->> 'table_public')::boolean::integer, null),
    ('unnamed_records', (v_measured ->> 'unnamed')::bigint, null),
    ('signing_failed', (v_sync ->> 'stop_reason' in ('signing_failed', 'signing_impossible', 'dead_chunks'))::integer, null),
    -- Those that the last run could not sign or write have findings of their own.
    ('unsigned', (v_measured ->> 'unsigned_with_object')::bigint - (
      select sum((v_measured #>> array[k.key, 'count'])::bigint)
      from unnest('{failed,held,too_slow,url_refused}'::text[]) as k (key)
    ), null),
    -- Nothing was measured since the first of them died: at least one has.
    ('expired', case when v_expiry <= now() then greatest(v_expired, 1) else v_expired end, null),
    -- function_unknown says it already.
    ('last_run_failed', (v_sync ->> 'state' = 'failed' and (v_sync #>> '{error,code}' is distinct from 'function_unknown' or p_facts #> '{schedule,function_url}' is distinct from 'null'))::integer, null)
  ) as v (code, is_so, numbers)
  union all
  values
    ('last_run_partial', (v_sync ->> 'state' = 'partial')::integer, v_measured #> '{failed,samples}', null),
    ('register_opened_rarely', jsonb_array_length(v_live -> 'rare_readers'), v_live -> 'rare_readers', jsonb_build_object('longest_absence_days', v_live -> 'longest_absence_days')),
    ('stray_records', (select sum((s.stray ->> 'records')::bigint)::bigint from jsonb_array_elements(v_live -> 'strays') as s (stray)), null, jsonb_build_object('strays', v_live -> 'strays')),
    ('run_stands_still', (v_live -> 'standing_run' <> 'null')::integer, null, jsonb_build_object('run', v_live -> 'standing_run'));
end;
$$;

comment on function image_sync.bucket_findings(jsonb) is 'What is true of a bucket, the rights, the URLs and the runs, by the code of a finding.';

-- Of the schedule: its jobs, the calls that it queues, and whether it comes in time.
create or replace function image_sync.schedule_findings(p_facts jsonb)
returns table (code text, count bigint, samples jsonb, numbers jsonb) language plpgsql stable set search_path = '' as $$
declare
  v_live constant jsonb := p_facts -> 'live';
  v_schedule constant jsonb := p_facts -> 'schedule';
  v_missing constant jsonb := coalesce(v_schedule -> 'missing_jobs', '["image-sync-housekeeping", "image-sync-nightly", "image-sync-watchdog"]');
  v_call constant jsonb := v_schedule -> 'calls' -> (p_facts ->> 'bucket_id');
  v_status constant integer := (v_call ->> 'status')::integer;
  v_answered constant boolean := (v_call ->> 'answered')::boolean;
  v_arrived constant boolean := (v_call ->> 'arrived')::boolean;
  v_nightly constant boolean := (v_live ->> 'nightly')::boolean;
  v_success constant timestamptz := (v_live ->> 'last_success_at')::timestamptz;
  v_expiry constant timestamptz := (p_facts #>> '{measured,records,soonest_expiry}')::timestamptz;
  v_failed constant jsonb := image_sync.standing_failures(p_facts);
begin
  return query
  values
    ('job_missing', jsonb_array_length(v_missing)::bigint, v_missing, jsonb_build_object('lines', v_schedule -> 'missing_lines')),
    ('job_failed', jsonb_array_length(v_failed), null::jsonb, jsonb_build_object('jobs', v_failed)),
    ('calls_unanswered', (
      (v_call ->> 'is_open')::boolean and not v_answered and not v_arrived
      and (v_call ->> 'moved_at')::timestamptz < now() - interval '2 minutes'
      and (v_call ->> 'kicked_at')::timestamptz < now() - interval '10 seconds'
    )::integer, null, jsonb_build_object('moved_at', v_call -> 'moved_at')),
    ('function_unknown', (v_schedule -> 'function_url' = 'null')::integer, null, null),
    ('function_outdated', (not (v_schedule ->> 'function_fits')::boolean)::integer, null, null),
    ('address_stale', (v_answered and v_status = 401)::integer, jsonb_build_array(v_schedule ->> 'function_url'), null),
    ('last_call_failed', (
      v_answered and coalesce(v_status not between 200 and 299 and v_status <> 401, not v_arrived) and (v_schedule ->> 'function_fits')::boolean
    )::integer, null, jsonb_build_object('status', v_status, 'error', v_call -> 'error', 'function_url', v_schedule -> 'function_url')),
    -- No sync is due between the moment from which the first URL may be renewed and its death.
    ('renewed_too_late', (
      v_nightly and v_expiry > now()
      and image_sync.next_night(p_facts, greatest(now(), v_expiry - (v_live ->> 'renew_before')::interval)) > v_expiry
    )::integer, null, jsonb_build_object('renew_before', v_live -> 'renew_before')),
    -- Two hours after the first night that should have come since. Without a schedule there is no such limit.
    ('no_recent_sync', (
      v_live -> 'last_success_at' = 'null' or coalesce(v_nightly and image_sync.next_night(p_facts, v_success) < now() - interval '2 hours', false)
    )::integer, null, null);
end;
$$;

comment on function image_sync.schedule_findings(jsonb) is 'What keeps the schedule from calling the function, or from coming in time, by the code of a finding.';

create or replace function image_sync.next_night(p_facts jsonb, p_after timestamptz)
returns timestamptz language sql stable set search_path = '' as $$
  select min(image_sync.next_time(s.schedule, p_after))
  from jsonb_array_elements_text(p_facts #> '{schedule,schedules}') as s (schedule)
$$;

comment on function image_sync.next_night(jsonb, timestamptz) is 'When the facts'' nightly job is due next after a moment; null without one.';

create or replace function image_sync.standing_failures(p_facts jsonb)
returns jsonb language sql stable set search_path = '' as $$
  select coalesce(jsonb_agg(j.job), '[]')
  from jsonb_array_elements(p_facts #> '{schedule,failed_jobs}') as j (job)
  where (j.job ->> 'name' = 'image-sync-nightly' and (p_facts #>> '{live,last_success_at}')::timestamptz > (j.job ->> 'at')::timestamptz) is not true
$$;

comment on function image_sync.standing_failures(jsonb) is 'The facts'' failed jobs but for a nightly one that a later success refutes.';

-- All that there is.
create or replace function image_sync.findings(p_facts jsonb)
returns table (code text, count bigint, samples jsonb, numbers jsonb)
-- Not in sql, which would plan all of them anew at each call: 15 ms to find in one. What it calls inherits the setting.
language plpgsql
stable
set search_path = ''
set plan_cache_mode = 'force_generic_plan'
as $$
begin
  return query
  select f.code, f.count, coalesce(f.samples, '[]'), jsonb_strip_nulls(coalesce(f.numbers, '{}'))
  from (
    select * from image_sync.measured_findings(p_facts)
    union all select * from image_sync.bucket_findings(p_facts)
    union all select * from image_sync.schedule_findings(p_facts)
  ) as f
  where f.count > 0
  order by f.code;
end;
$$;

comment on function image_sync.findings(jsonb) is
  'The findings of a report before their words: code, count, samples, and the numbers that the words need.';
