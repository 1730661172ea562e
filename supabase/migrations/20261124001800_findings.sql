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
        -- Those that the last run could not sign or write stand under findings of their own.
        (f.measured ->> 'unsigned_with_object')::bigint - (f.measured #>> '{failed,count}')::bigint
          - (f.measured #>> '{held,count}')::bigint - (f.measured #>> '{too_slow,count}')::bigint - (f.measured #>> '{url_refused,count}')::bigint, null,
        'Start a sync. If they stay, see the problems of that run.'
      ),
      (
        'row_locked', 'warning', 'Records that somebody else held',
        (f.measured #>> '{held,count}')::bigint, f.measured #> '{held,samples}',
        'Other sessions had them locked, so they were left as they were; the next sync settles them. If it does not, look for who stays: select pid, usename, application_name, xact_start from pg_stat_activity where state like ''idle in transaction%'' order by xact_start;'
      ),
      (
        'database_timeout', 'warning', 'Records that the database could not write in time',
        (f.measured #>> '{too_slow,count}')::bigint, f.measured #> '{too_slow,samples}',
        'Each of them alone took longer than the statement timeout of the Data API. Look at the triggers of the table: select tgname, tgfoid::regproc from pg_trigger where tgrelid = ''public.part_images''::regclass and not tgisinternal; Then start a sync.'
      ),
      (
        'url_refused', 'warning', 'Records that the table does not let be changed',
        (f.measured #>> '{url_refused,count}')::bigint, f.measured #> '{url_refused,samples}',
        'A constraint or trigger of the table refused their new URL. See the problems of the last sync for its words.'
      ),
      (
        'run_stands_still', 'error', 'An open run stands still',
        (f.live -> 'standing_run' <> 'null')::integer, null,
        format(
          'The %s %s has not moved since %s. %s The watchdog calls the function again every minute; after 6 hours the nightly job closes the run. To end it now, cancel it.',
          f.live #>> '{standing_run,mode}', f.live #>> '{standing_run,id}', to_char((f.live #>> '{standing_run,since}')::timestamptz at time zone 'UTC', 'YYYY-MM-DD HH24:MI "GMT"'), f.live #>> '{standing_run,reason}'
        )
      ),
      (
        'table_refused', 'error', 'The function may not use the table',
        coalesce((f.live ->> 'table_refused')::boolean, false)::integer, null,
        'Run: grant select, insert, update, delete on public.part_images to service_role; Then start a sync.'
      ),
      (
        'renewed_too_late', 'warning', 'URLs will die before the schedule renews them',
        (
          (f.live ->> 'nightly')::boolean
          and image_sync.next_time(
            f.schedule ->> 'schedule',
            greatest(now(), (f.measured #>> '{records,soonest_expiry}')::timestamptz - (f.live ->> 'renew_before')::interval)
          ) > (f.measured #>> '{records,soonest_expiry}')::timestamptz
          and (f.measured #>> '{records,soonest_expiry}')::timestamptz > now()
        )::integer, null,
        format(
          'The first URL dies at %s, and no scheduled sync lies in the %s before it. Make renew_before longer than the time between two nights: update image_sync.settings set renew_before = ''2 days'' where bucket_id = %L;',
          to_char((f.measured #>> '{records,soonest_expiry}')::timestamptz at time zone 'UTC', 'YYYY-MM-DD HH24:MI "GMT"'), f.live ->> 'renew_before', f.bucket_id
        )
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
        format('They cannot be matched with any file. See: select * from public.part_images where bucket_id = %L and coalesce(file_name, '''') = '''';', f.bucket_id)
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
      ('last_run_failed', 'table_refused'),
      ('last_run_partial', 'unsignable_names'),
      ('last_run_partial', 'row_locked'),
      ('last_run_partial', 'database_timeout'),
      ('last_run_partial', 'url_refused'),
      ('last_run_partial', 'collided'),
      ('missing', 'row_locked'),
      ('missing', 'database_timeout'),
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

revoke all on function
  image_sync.findings(jsonb)
from public;
grant execute on function
  image_sync.findings(jsonb)
to service_role;
