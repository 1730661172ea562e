-- set
-- Everything that the report tells the operator to look at: the one place that defines it. A function for each thing that is looked
-- at says what may be wrong with it; image_sync.findings() says which of that stands: what has a count above 0, unless another
-- that stands is its cause: one fault, one finding. p_facts is what image_sync.report_facts() gathers.

-- What would mend a fault, for a machine: a request to the API with the bucket in it, or SQL to run as the owner of the schema.
create or replace function image_sync.request_of(p_bucket_id text, p_request jsonb)
returns jsonb
language plpgsql
immutable
set search_path = ''
as $$
begin
  return jsonb_build_object('request', p_request || jsonb_build_object('bucket', p_bucket_id));
end;
$$;

comment on function image_sync.request_of(text, jsonb) is 'The action {"request": body of a POST} for a bucket.';

create or replace function image_sync.sql_of(p_sql text)
returns jsonb
language sql
immutable
set search_path = ''
as $$
  select jsonb_build_object('sql', p_sql)
$$;

comment on function image_sync.sql_of(text) is 'The action {"sql": statements to run as the owner of the schema image_sync}.';

-- URLs that show no image, by reason: what the newest verify saw of all of them, and the probe of a newer sync of a few. A sync that
-- came after the verify signed anew what was rejected and counted what is gone; a file that is lost stays lost until it is looked at.
create or replace function image_sync.unseen(p_facts jsonb)
returns table (code text, files bigint, samples jsonb, none_shown boolean)
language plpgsql
stable
set search_path = ''
as $$
-- What it returns has the names of columns.
#variable_conflict use_column
begin
  return query
  with f as (
    select
      nullif(p_facts -> 'verified', 'null') as verified,
      coalesce((p_facts #>> '{verified,is_older}')::boolean, true) as is_older,
      p_facts #> '{measured,probe}' as probe
  )
  select
    reason.code,
    greatest(by_verify.files, by_probe.files, unreached.files),
    case when by_verify.files >= by_probe.files then by_verify.samples else by_probe.samples end,
    by_verify.none_shown or by_probe.none_shown or unreached.files > 0
  from f
  cross join unnest('{file_lost,file_gone,not_an_image,wrong_content_type,url_rejected,unreachable}'::text[]) as reason (code)
  cross join lateral (
    select
      case when told.by_verify then coalesce((f.verified #>> array['failures', reason.code, 'count'])::bigint, 0) else 0 end as files,
      coalesce(f.verified #> array['failures', reason.code, 'samples'], '[]') as samples,
      told.by_verify and (f.verified ->> 'ok')::bigint = 0 and (f.verified ->> 'checked')::bigint > 0 as none_shown
    from (
      select f.verified is not null and (not f.is_older or reason.code in ('file_lost', 'not_an_image', 'wrong_content_type')) as by_verify
    ) as told
  ) as by_verify
  cross join lateral (
    select
      count(p.failure) as files,
      coalesce(jsonb_agg(p.failure ->> 'name'), '[]') as samples,
      coalesce((f.probe ->> 'ok')::bigint = 0 and (f.probe ->> 'checked')::bigint > 0, false) and f.is_older as none_shown
    from jsonb_array_elements(coalesce(f.probe -> 'failures', '[]')) as p (failure)
    where f.is_older
      and p.failure ->> 'code' = reason.code
  ) as by_probe
  cross join lateral (
    -- One at least: the verify ended there.
    select (reason.code = 'unreachable' and p_facts ->> 'unreached' is not null)::integer as files
  ) as unreached;
end;
$$;

comment on function image_sync.unseen(jsonb) is
  'Of the facts of a report: how many URLs show no image, by reason, with samples, and whether none of those looked at showed one.';

-- Of the bucket as a whole.
create or replace function image_sync.bucket_findings(p_facts jsonb)
returns table (code text, level text, title text, count bigint, samples jsonb, remediation text, action jsonb)
language plpgsql
stable
set search_path = ''
as $$
declare
  v_bucket_id constant text := p_facts ->> 'bucket_id';
  v_live constant jsonb := p_facts -> 'live';
  v_last_listing constant jsonb := p_facts -> 'last_listing';
begin
  return query
  select v.*
  from (values
    (
      'bucket_missing', 'error', 'The bucket does not exist',
      (not (v_live ->> 'bucket_exists')::boolean)::integer::bigint, null::jsonb,
      format('Create the private bucket %s under Storage and upload its files. If it is gone for good, archive its records with a cleanup that says so (bucket_is_gone) and take it out of the settings.', v_bucket_id),
      image_sync.sql_of(format('insert into storage.buckets (id, name, public) values (%1$L, %1$L, false);', v_bucket_id))
    ),
    (
      'bucket_empty', case when (v_live ->> 'has_records')::boolean then 'error' else 'warning' end, 'No files found in bucket',
      ((v_live ->> 'bucket_exists')::boolean and not (v_live ->> 'has_objects')::boolean)::integer, null,
      format('Check that %s is the right bucket, upload its files there, then start a sync. Nothing is removed from the table for an empty bucket.', v_bucket_id),
      image_sync.request_of(v_bucket_id, '{"mode": "sync"}')
    ),
    (
      'listing_incomplete', 'error', 'The last run stopped before the end of the bucket',
      (v_last_listing ->> 'state' in ('failed', 'cancelled') and not (v_last_listing ->> 'reached_end')::boolean and coalesce(v_last_listing #>> '{error,code}', '') not in ('bucket_missing', 'function_unknown', 'unreachable'))::integer, null,
      'Files beyond that point were not looked at. A run lists page by page to the very end and has no limit of 100 files: see the run''s error, mend its cause and start a sync.',
      image_sync.request_of(v_bucket_id, '{"mode": "sync"}')
    )
  ) as v (code, level, title, count, samples, remediation, action);
end;
$$;

comment on function image_sync.bucket_findings(jsonb) is 'What is wrong with the bucket as a whole: absent, empty, or not listed to its end.';

-- Of who may do what: too much, or too little.
create or replace function image_sync.access_findings(p_facts jsonb)
returns table (code text, level text, title text, count bigint, samples jsonb, remediation text, action jsonb)
language plpgsql
stable
set search_path = ''
as $$
declare
  v_bucket_id constant text := p_facts ->> 'bucket_id';
  v_live constant jsonb := p_facts -> 'live';
begin
  return query
  select v.*
  from (values
    (
      'bucket_public', 'warning', 'The bucket is public',
      coalesce((v_live ->> 'bucket_public')::boolean, false)::integer::bigint, null::jsonb,
      format('Anyone can fetch every file without a signed URL. Make bucket %s private under Storage, Edit bucket.', v_bucket_id),
      image_sync.sql_of(format('update storage.buckets set public = false where id = %L;', v_bucket_id))
    ),
    (
      'listing_failed', 'error', 'Error listing files',
      coalesce((v_live ->> 'listing_refused')::boolean, false)::integer, null,
      'storage.objects could not be read: service_role lacks the rights, or the function uses another key. Grant them, then start a sync.',
      image_sync.sql_of('grant usage on schema storage to service_role; grant select on storage.objects, storage.buckets to service_role;')
    ),
    (
      'table_refused', 'error', 'The function may not use the table',
      coalesce((v_live ->> 'table_refused')::boolean, false)::integer, null,
      'The table was adopted as it was, and its grants do not let service_role work. Grant them, then start a sync.',
      image_sync.sql_of('grant select, insert, update, delete on public.part_images to service_role;')
    ),
    (
      'table_public', 'warning', 'Anyone with the publishable key can read the signed URLs',
      coalesce((v_live ->> 'table_public')::boolean, false)::integer, null,
      'The role anon may select from public.part_images. Unless that is wanted, revoke it, or enable row level security on the table.',
      image_sync.sql_of('revoke select on public.part_images from anon, public;')
    )
  ) as v (code, level, title, count, samples, remediation, action);
end;
$$;

comment on function image_sync.access_findings(jsonb) is 'Who may read what they should not, and what the function may not do.';

-- Of the files: what they are called, how large they are, which are left out.
create or replace function image_sync.file_findings(p_facts jsonb)
returns table (code text, level text, title text, count bigint, samples jsonb, remediation text, action jsonb)
language plpgsql
stable
set search_path = ''
as $$
declare
  v_bucket_id constant text := p_facts ->> 'bucket_id';
  v_live constant jsonb := p_facts -> 'live';
  v_measured constant jsonb := p_facts -> 'measured';
  -- Extensions that are left out and are of pictures.
  v_pictures constant jsonb := (
    select coalesce(jsonb_agg(e.extension order by e.extension), '[]')
    from jsonb_object_keys(coalesce(nullif(p_facts #> '{measured,bucket,by_extension}', 'null'), '{}')) as e (extension)
    where e.extension in ('jpg', 'jpeg', 'png', 'gif', 'webp', 'bmp', 'svg', 'ico', 'heic', 'heif', 'tif', 'tiff', 'avif')
      and not p_facts #> '{live,extensions}' ? e.extension
  );
begin
  return query
  select v.*
  from (values
    (
      'excluded_extensions', 'info', 'Files left out because of their extension',
      (v_measured #>> '{other_extensions,count}')::bigint, v_measured #> '{other_extensions,samples}',
      case
        when jsonb_array_length(v_pictures) = 0 then 'None of them is a picture by its extension: nothing to do.'
        else 'To include the pictures among them, add their extensions; then start a sync.'
      end
        || case when v_pictures ?| '{heic,heif,tif,tiff,avif}' then ' Neither every spreadsheet nor every browser shows heic, heif, tif, tiff or avif.' else '' end
        || case when v_measured #> '{bucket,by_extension}' ? '(none)' and not v_live -> 'extensions' ? '' then ' Files without an extension are included by an empty one in that list.' else '' end,
      case when jsonb_array_length(v_pictures) > 0 then image_sync.sql_of(format(
        'update image_sync.settings set extensions = extensions || %L::text[] where bucket_id = %L;',
        array(select jsonb_array_elements_text(v_pictures)), v_bucket_id
      )) end
    ),
    (
      'excluded_names', 'info', 'Hidden and system files left out by name',
      (v_measured #>> '{excluded,count}')::bigint, v_measured #> '{excluded,samples}',
      'Their names match a pattern of the setting exclude, so they have no record.',
      null::jsonb
    ),
    (
      'empty_files', 'warning', 'Files that are empty',
      (v_measured #>> '{empty_files,count}')::bigint, v_measured #> '{empty_files,samples}',
      'They have a size of 0 and show nothing, so they count as no images. Upload them again, then start a sync.',
      image_sync.request_of(v_bucket_id, '{"mode": "sync"}')
    ),
    (
      'several_files', 'warning', 'Several files for one part number',
      (v_measured #>> '{several_files,count}')::bigint, v_measured #> '{several_files,samples}',
      'Each file has its own record; a look-up by part number finds one of them. Keep one file for each part number and delete or rename the others, then start a sync; nothing is overwritten.',
      image_sync.request_of(v_bucket_id, '{"mode": "sync"}')
    ),
    (
      'unsignable_names', 'warning', 'Files whose name Storage opens no URL of',
      (v_measured #>> '{unsignable,count}')::bigint, v_measured #> '{unsignable,samples}',
      'A name that Storage does not open (non-ASCII characters, # % ~ ^ | [ ] { } < > quotes, tabs, a path segment . or ..) has to be changed: rename the file, then start a sync.',
      image_sync.request_of(v_bucket_id, '{"mode": "sync"}')
    )
  ) as v (code, level, title, count, samples, remediation, action);
end;
$$;

comment on function image_sync.file_findings(jsonb) is 'Which files have no record, no URL or no picture because of their name or size.';

-- Of how files and records differ.
create or replace function image_sync.difference_findings(p_facts jsonb)
returns table (code text, level text, title text, count bigint, samples jsonb, remediation text, action jsonb)
language plpgsql
stable
set search_path = ''
as $$
declare
  v_bucket_id constant text := p_facts ->> 'bucket_id';
  v_live constant jsonb := p_facts -> 'live';
  v_measured constant jsonb := p_facts -> 'measured';
  v_last_sync constant jsonb := p_facts -> 'last_sync';
  -- Where the first of the files is that were moved away.
  v_away_to record;
begin
  select f.bucket_id, f.is_followed, exists (
    select
    from image_sync.settings s
    where s.bucket_id = f.bucket_id
  ) as has_settings
  into v_away_to
  from (select v_measured #>> '{moved_away,files,0,bucket}', coalesce((v_measured #>> '{moved_away,files,0,is_followed}')::boolean, true)) as f (bucket_id, is_followed);
  return query
  select v.*
  from (values
    (
      'missing', 'warning', 'Images without a record',
      (v_measured #>> '{difference,missing,count}')::bigint, v_measured #> '{difference,missing,samples}',
      'Start a sync; the nightly run does it too.',
      image_sync.request_of(v_bucket_id, '{"mode": "sync"}')
    ),
    (
      'orphaned', 'warning', 'Records without a file',
      (v_measured #>> '{difference,orphaned,count}')::bigint, v_measured #> '{difference,orphaned,samples}',
      'If the files are gone for good, start a cleanup: it lists the records first and removes them only when that list is confirmed. If they should be there, restore the files.'
        || case
          when (v_last_sync #>> '{totals,inserted}')::bigint = (v_measured #>> '{difference,orphaned,count}')::bigint
            then ' Just as many files came as went: if they were copied and deleted instead of moved, their records could not follow. Move files with Storage''s own move, which keeps their records.'
          else ''
        end,
      image_sync.request_of(v_bucket_id, '{"mode": "cleanup"}')
    ),
    (
      'collided', 'warning', 'Images whose record the table refuses',
      (v_measured #>> '{difference,collided,count}')::bigint, v_measured #> '{difference,collided,samples}',
      coalesce((
        select format('Column %I must have a value, and a sync has none for it. Give it a default, or run: alter table public.part_images alter column %1$I drop not null; then start a sync.', c.name)
        from jsonb_array_elements(coalesce(v_last_sync -> 'problems', '[]')) as p (problem)
        cross join substring(p.problem ->> 'detail', '^null value in column "(.+)" of relation "part_images"') as c (name)
        where c.name is not null
        limit 1
      ), 'Another record has the same part number, or a constraint or trigger of the table says no. Rename the file, or change the other record, then start a sync.'),
      image_sync.request_of(v_bucket_id, '{"mode": "sync"}')
    ),
    (
      'moved', 'warning', 'Files that were renamed or moved',
      (v_measured #>> '{difference,moved,count}')::bigint, v_measured #> '{difference,moved,samples}',
      'Their URLs open nothing any more. Start a sync: it takes each record along to the new name and signs it; the nightly run does it too.',
      image_sync.request_of(v_bucket_id, '{"mode": "sync"}')
    ),
    (
      'moved_away', 'warning', 'Files that were moved away',
      (v_measured #>> '{moved_away,count}')::bigint,
      (
        select jsonb_agg(format('%s → %s', a.file ->> 'name', image_sync.place_in_words(v_bucket_id, a.file ->> 'bucket', coalesce(a.file ->> 'to', a.file ->> 'name'))))
        from jsonb_array_elements(coalesce(nullif(v_measured -> 'moved_away', 'null') -> 'files', '[]')) as a (file)
      ),
      'Their records are here still, with URLs that open nothing' || case
        when v_away_to.has_settings and v_away_to.is_followed then ': a sync of the bucket that they went to takes them along. Start a sync of that bucket.'
        when v_away_to.has_settings then ', and no sync takes them along: what they are called now is left out, or they are empty. Rename them, or change what is left out; then start a sync.'
        else ', and no sync looks at the bucket that they went to. Give it settings and start a sync of it, or move them back.'
      end,
      case
        when v_away_to.has_settings then image_sync.request_of(v_away_to.bucket_id, '{"mode": "sync"}')
        else image_sync.sql_of(format('insert into image_sync.settings (bucket_id) values (%L);', v_away_to.bucket_id))
      end
    ),
    (
      'not_moved', 'warning', 'Records that could not follow their files',
      (v_measured #>> '{unmoved,count}')::bigint, v_measured #> '{unmoved,samples}',
      'The problems of the last sync say why of each: somebody held the record (the next sync settles it), or a constraint or trigger of the table refused its new name or part number. Mend that, then start a sync.',
      image_sync.request_of(v_bucket_id, '{"mode": "sync"}')
    ),
    (
      'unnamed_records', 'warning', 'Records without a file name',
      (v_measured ->> 'unnamed')::bigint, null,
      'They cannot be matched with any file. Give them their file names, or move them to the archive; then start an analyze.',
      image_sync.sql_of(format(
        'with taken as (delete from public.part_images p where p.bucket_id = %1$L and coalesce(p.file_name, '''') = '''' returning to_jsonb(p.*) as record) insert into image_sync.archive (bucket_id, file_name, record, reason) select %1$L, '''', taken.record, ''unnamed'' from taken;',
        v_bucket_id
      ))
    ),
    (
      'stray_records', 'warning', 'Records of buckets that no run looks at',
      (
        select sum((s.stray ->> 'records')::bigint)
        from jsonb_array_elements(v_live -> 'strays') as s (stray)
      )::bigint,
      (
        select jsonb_agg(format(
          '%s: %s%s %s, %s', s.stray ->> 'bucket_id',
          s.stray ->> 'records', case when (s.stray ->> 'records')::integer >= 10000 then ' or more' end,
          case when (s.stray ->> 'records')::integer = 1 then 'record' else 'records' end,
          case when (s.stray ->> 'bucket_exists')::boolean then 'a bucket without settings' else 'the bucket does not exist' end
        ))
        from jsonb_array_elements(v_live -> 'strays') as s (stray)
      ),
      'Nothing renews their URLs. A bucket that exists is kept in step once it has settings; the records of one that is gone are archived by a cleanup that says so: bucket by bucket, beginning with the first.',
      case
        when (v_live #>> '{strays,0,bucket_exists}')::boolean then image_sync.sql_of(format('insert into image_sync.settings (bucket_id) values (%L);', v_live #>> '{strays,0,bucket_id}'))
        -- No bucket can be called so, and none can have settings by that name.
        when v_live #>> '{strays,0,bucket_id}' ~ '^$|[\u0001-\u001f\u007f-\u009f\u2028\u2029]' then image_sync.sql_of(format(
          'with taken as (delete from public.part_images p where p.bucket_id = %1$L returning p.file_name, to_jsonb(p.*) as record) insert into image_sync.archive (bucket_id, file_name, record, reason) select %1$L, coalesce(taken.file_name, ''''), taken.record, ''orphaned'' from taken;',
          v_live #>> '{strays,0,bucket_id}'
        ))
        else image_sync.request_of(v_live #>> '{strays,0,bucket_id}', '{"mode": "cleanup", "bucket_is_gone": true}')
      end
    )
  ) as v (code, level, title, count, samples, remediation, action);
end;
$$;

comment on function image_sync.difference_findings(jsonb) is 'Which images have no record, which records no file, and why they stay so.';

-- Of the URLs that records have: none, one that has died, one that will die too soon.
create or replace function image_sync.url_findings(p_facts jsonb)
returns table (code text, level text, title text, count bigint, samples jsonb, remediation text, action jsonb)
language plpgsql
stable
set search_path = ''
as $$
declare
  v_bucket_id constant text := p_facts ->> 'bucket_id';
  v_live constant jsonb := p_facts -> 'live';
  v_schedule constant jsonb := p_facts -> 'schedule';
  v_measured constant jsonb := p_facts -> 'measured';
  v_last_sync constant jsonb := p_facts -> 'last_sync';
begin
  return query
  select v.*
  from (values
    (
      'signing_failed', 'error', 'Error signing URLs',
      (v_last_sync ->> 'stop_reason' in ('signing_failed', 'signing_impossible', 'dead_chunks'))::integer, null,
      coalesce((v_last_sync #>> '{error,detail}') || '. ', '')
        || 'The Storage API did not sign. See the run''s error and problems; check that the bucket is the one in the settings, that the function has a secret key, and the status of Storage. Then start a sync.',
      image_sync.request_of(v_bucket_id, '{"mode": "sync"}')
    ),
    (
      'unsigned', 'warning', 'Records without a URL',
      -- Those that the last run could not sign or write stand under findings of their own.
      (v_measured ->> 'unsigned_with_object')::bigint - (v_measured #>> '{failed,count}')::bigint
        - (v_measured #>> '{held,count}')::bigint - (v_measured #>> '{too_slow,count}')::bigint - (v_measured #>> '{url_refused,count}')::bigint, null,
      'Start a sync. If they stay, see the problems of that run.',
      image_sync.request_of(v_bucket_id, '{"mode": "sync"}')
    ),
    (
      'row_locked', 'warning', 'Records that somebody else held',
      (v_measured #>> '{held,count}')::bigint, v_measured #> '{held,samples}',
      'Other sessions had them locked, so they were left as they were; the next sync settles them. If it does not, look for who stays: select pid, usename, application_name, xact_start from pg_stat_activity where state like ''idle in transaction%'' order by xact_start;',
      image_sync.request_of(v_bucket_id, '{"mode": "sync"}')
    ),
    (
      'database_timeout', 'warning', 'Records that the database could not write in time',
      (v_measured #>> '{too_slow,count}')::bigint, v_measured #> '{too_slow,samples}',
      'Each of them alone took longer than the statement timeout of the Data API. Look at the triggers of the table: select tgname, tgfoid::regproc from pg_trigger where tgrelid = ''public.part_images''::regclass and not tgisinternal; Then start a sync.',
      image_sync.request_of(v_bucket_id, '{"mode": "sync"}')
    ),
    (
      'url_refused', 'warning', 'Records that the table does not let be changed',
      (v_measured #>> '{url_refused,count}')::bigint, v_measured #> '{url_refused,samples}',
      'A constraint or trigger of the table refused their new URL. See the problems of the last sync for its words, mend that, then start a sync.',
      image_sync.request_of(v_bucket_id, '{"mode": "sync"}')
    ),
    (
      'expired', 'error', 'Records whose URL has expired',
      case
        -- Nothing was measured since the first of them died: at least one has.
        when (v_measured #>> '{records,soonest_expiry}')::timestamptz <= now() then greatest((v_measured ->> 'expired_with_object')::bigint, 1)
        else (v_measured ->> 'expired_with_object')::bigint
      end, null,
      'Start a sync: it signs them again. Then see why the nights before did not.',
      image_sync.request_of(v_bucket_id, '{"mode": "sync"}')
    ),
    (
      'renewed_too_late', 'warning', 'URLs will die before the schedule renews them',
      (
        (v_live ->> 'nightly')::boolean
        and (
          select min(image_sync.next_time(
            s.schedule, greatest(now(), (v_measured #>> '{records,soonest_expiry}')::timestamptz - (v_live ->> 'renew_before')::interval)
          ))
          from jsonb_array_elements_text(v_schedule -> 'schedules') as s (schedule)
        ) > (v_measured #>> '{records,soonest_expiry}')::timestamptz
        and (v_measured #>> '{records,soonest_expiry}')::timestamptz > now()
      )::integer, null,
      format(
        'The first URL dies at %s, and no scheduled sync lies in the %s before it. Let URLs live longer and be renewed earlier than the time between two nights, then start a sync.',
        to_char((v_measured #>> '{records,soonest_expiry}')::timestamptz at time zone 'UTC', 'YYYY-MM-DD HH24:MI "GMT"'), v_live ->> 'renew_before'
      ),
      image_sync.sql_of(format('update image_sync.settings set signed_url_ttl = greatest(signed_url_ttl, ''7 days''), renew_before = greatest(renew_before, ''2 days'') where bucket_id = %L;', v_bucket_id))
    ),
    (
      'register_opened_rarely', 'info', 'Registers that are opened less often than their URLs live',
      jsonb_array_length(v_live -> 'rare_readers'), v_live -> 'rare_readers',
      'What their sheets show has died meanwhile: they see no picture until they refresh. Let every URL have more life left than it takes them to look again, then start a sync: for a register that is opened once a month signed_url_ttl is 45 days and renew_before a month. A reader who has left should be revoked.',
      image_sync.sql_of(format(
        'update image_sync.settings set signed_url_ttl = greatest(signed_url_ttl, ''%s days''), renew_before = greatest(renew_before, ''%s days'') where bucket_id = %L;',
        greatest(45, least(365, ceil(1.4 * (v_live ->> 'longest_absence_days')::numeric))), v_live ->> 'longest_absence_days', v_bucket_id
      ))
    )
  ) as v (code, level, title, count, samples, remediation, action);
end;
$$;

comment on function image_sync.url_findings(jsonb) is 'Which records have no URL that works, or will have none when somebody looks.';

-- Of what a reader sees who opens the URLs.
create or replace function image_sync.unseen_findings(p_facts jsonb)
returns table (code text, level text, title text, count bigint, samples jsonb, remediation text, action jsonb)
language plpgsql
stable
set search_path = ''
as $$
declare
  v_bucket_id constant text := p_facts ->> 'bucket_id';
begin
  return query
  select
    u.code, case when u.none_shown then 'error' else 'warning' end, told.title, u.files, u.samples,
    told.remediation, image_sync.request_of(v_bucket_id, told.request)
  from image_sync.unseen(p_facts) u
  join (values
    (
      'file_lost', 'Files that are lost or empty in Storage',
      'Storage has their row and no content: no URL shows them. Upload them again, then start a verify. Where no file shows, look at Storage first: a database that was restored brings no files along.',
      '{"mode": "verify"}'::jsonb
    ),
    (
      'file_gone', 'Files that were deleted while they were looked at',
      'Their records are orphaned from now on: start a sync, and then see what it says of them.',
      '{"mode": "sync"}'
    ),
    (
      'not_an_image', 'Files that are no images',
      'What they begin with is of no kind of image, whatever their names say. Upload the right files, or leave them out by the setting exclude; then start a verify.',
      '{"mode": "verify"}'
    ),
    (
      'wrong_content_type', 'Images stored under a wrong content type',
      'Browsers and spreadsheets may not show them. Upload them again with their content type (image/jpeg), then start a verify.',
      '{"mode": "verify"}'
    ),
    (
      'url_rejected', 'URLs that Storage rejects',
      'The key that signs URLs was rotated, or the URL was changed by hand. They have to be signed anew: start a sync that renews all.',
      '{"mode": "sync", "renew": "all"}'
    ),
    (
      'unreachable', 'URLs that could not be opened',
      format(
        '%s. Nothing was changed. Mend that, then start a verify.',
        rtrim(coalesce(
          p_facts ->> 'unreached',
          (
            select p.failure ->> 'error'
            from jsonb_array_elements(coalesce(p_facts #> '{measured,probe,failures}', '[]')) as p (failure)
            where p.failure ->> 'code' = 'unreachable'
            limit 1
          ),
          p_facts #>> '{verified,failures,unreachable,said}',
          'Storage, or the address that readers use (the setting public_url), gave no answer that says anything of the file'
        ), '.')
      ),
      '{"mode": "verify"}'
    )
  ) as told (code, title, remediation, request) on told.code = u.code;
end;
$$;

comment on function image_sync.unseen_findings(jsonb) is 'Which URLs show no image, by reason; an error where none of those looked at showed one.';

-- Of the runs: the open one, the last one, the one that should have been.
create or replace function image_sync.run_findings(p_facts jsonb)
returns table (code text, level text, title text, count bigint, samples jsonb, remediation text, action jsonb)
language plpgsql
stable
set search_path = ''
as $$
declare
  v_bucket_id constant text := p_facts ->> 'bucket_id';
  v_live constant jsonb := p_facts -> 'live';
  v_schedule constant jsonb := p_facts -> 'schedule';
  v_measured constant jsonb := p_facts -> 'measured';
  v_last_sync constant jsonb := p_facts -> 'last_sync';
begin
  return query
  select v.*
  from (values
    (
      'run_stands_still', 'error', 'An open run stands still',
      (v_live -> 'standing_run' <> 'null')::integer::bigint, null,
      format(
        'The %s %s has not moved since %s. %s The watchdog calls the function again every minute; after 6 hours the nightly job closes the run. Starting it again wakes it at once; to end it, cancel it.',
        v_live #>> '{standing_run,mode}', v_live #>> '{standing_run,id}', to_char((v_live #>> '{standing_run,since}')::timestamptz at time zone 'UTC', 'YYYY-MM-DD HH24:MI "GMT"'), v_live #>> '{standing_run,reason}'
      ),
      image_sync.request_of(v_bucket_id, jsonb_strip_nulls(jsonb_build_object(
        'mode', v_live #> '{standing_run,mode}',
        'confirm', case when v_live #>> '{standing_run,mode}' = 'cleanup' then v_live #> '{standing_run,plan_id}' end,
        'restore', case when v_live #>> '{standing_run,mode}' = 'restore' then v_live #> '{standing_run,plan_id}' end,
        'bucket_is_gone', v_live #> '{standing_run,bucket_is_gone}'
      )))
    ),
    (
      'last_run_failed', 'error', 'The last sync failed',
      (
        v_last_sync ->> 'state' = 'failed'
        -- function_unknown says it already.
        and not coalesce(v_last_sync #>> '{error,code}' = 'function_unknown' and v_schedule -> 'function_url' = 'null', false)
      )::integer, null,
      format('%s Then start a sync.', coalesce((v_last_sync #>> '{error,title}') || ': ' || (v_last_sync #>> '{error,detail}'), 'See the run''s problems.')),
      image_sync.request_of(v_bucket_id, '{"mode": "sync"}')
    ),
    (
      'last_run_partial', 'warning', 'The last sync could not do all of its work',
      (v_last_sync ->> 'state' = 'partial')::integer, v_measured #> '{failed,samples}',
      'See the run''s problems for what was said of each. The next sync tries again.',
      image_sync.request_of(v_bucket_id, '{"mode": "sync"}')
    ),
    (
      'no_recent_sync', 'error', 'No successful sync since one was due',
      (v_live -> 'last_success_at' = 'null' or coalesce((
        -- Two hours after the first night that should have come since. Without a schedule there is no such limit.
        select min(image_sync.next_time(s.schedule, (v_live ->> 'last_success_at')::timestamptz)) < now() - interval '2 hours'
        from jsonb_array_elements_text(v_schedule -> 'schedules') as s (schedule)
        where (v_live ->> 'nightly')::boolean
      ), false))::integer, null,
      'Start a sync by hand. If the nightly one does not come, look at the findings about its job and its calls.',
      image_sync.request_of(v_bucket_id, '{"mode": "sync"}')
    )
  ) as v (code, level, title, count, samples, remediation, action);
end;
$$;

comment on function image_sync.run_findings(jsonb) is 'Which run stands still, failed, did a part of its work, or never was.';

-- Of the schedule: its jobs, and the calls that it queues.
create or replace function image_sync.schedule_findings(p_facts jsonb)
returns table (code text, level text, title text, count bigint, samples jsonb, remediation text, action jsonb)
language plpgsql
stable
set search_path = ''
as $$
declare
  v_bucket_id constant text := p_facts ->> 'bucket_id';
  v_live constant jsonb := p_facts -> 'live';
  v_schedule constant jsonb := p_facts -> 'schedule';
  v_call constant jsonb := p_facts -> 'schedule' -> 'calls' -> (p_facts ->> 'bucket_id');
begin
  return query
  select v.*
  from (values
    (
      'job_missing', 'error', 'A scheduled job is absent, switched off, or does something else',
      jsonb_array_length(coalesce(v_schedule -> 'missing_jobs', '["image-sync-housekeeping", "image-sync-nightly", "image-sync-watchdog"]')), coalesce(v_schedule -> 'missing_jobs', '["image-sync-housekeeping", "image-sync-nightly", "image-sync-watchdog"]'),
      'The lines of SQL below make it; the owner of the schema image_sync (postgres) has to run them.',
      image_sync.sql_of(coalesce(v_schedule ->> 'missing_lines', 'create extension pg_cron with schema pg_catalog;'))
    ),
    (
      'job_failed', 'error', 'A scheduled job failed the last time',
      (
        select count(*)
        from jsonb_array_elements(v_schedule -> 'failed_jobs') as j (job)
        -- What a later success refutes is gone.
        where not coalesce(j.job ->> 'name' = 'image-sync-nightly' and (v_live ->> 'last_success_at')::timestamptz > (j.job ->> 'at')::timestamptz, false)
      ),
      (
        select jsonb_agg(format('%s at %s: %s', j.job ->> 'name', to_char((j.job ->> 'at')::timestamptz at time zone 'UTC', 'YYYY-MM-DD HH24:MI "GMT"'), j.job ->> 'message'))
        from jsonb_array_elements(v_schedule -> 'failed_jobs') as j (job)
      ),
      'Mend what its message says. The finding goes when the job has run well, or a sync has succeeded since.',
      image_sync.request_of(v_bucket_id, '{"mode": "sync"}')
    ),
    (
      'calls_unanswered', 'error', 'Calls of the function are not answered',
      (
        (v_call ->> 'is_open')::boolean
        and not (v_call ->> 'answered')::boolean
        and not (v_call ->> 'arrived')::boolean
        and (v_call ->> 'moved_at')::timestamptz < now() - interval '2 minutes'
        and (v_call ->> 'kicked_at')::timestamptz < now() - interval '10 seconds'
      )::integer, null,
      format(
        'Nothing has moved since %s GMT, and the last call is queued or lost: is pg_net at work? select count(*) from net.http_request_queue; select net.worker_restart(); A sync started by hand does the work meanwhile, as long as its command waits or the window is open.',
        to_char((v_call ->> 'moved_at')::timestamptz at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS')
      ),
      image_sync.request_of(v_bucket_id, '{"mode": "sync"}')
    ),
    (
      'function_unknown', 'error', 'The function has not said where it lives',
      (v_schedule -> 'function_url' = 'null')::integer, null,
      'The schedule cannot call it. It announces its address whenever it starts a run: deploy it, and start a sync by hand.',
      image_sync.request_of(v_bucket_id, '{"mode": "sync"}')
    ),
    (
      'function_outdated', 'error', 'The deployed function does not know this schema',
      (not (v_schedule ->> 'function_fits')::boolean)::integer, null,
      'Runs wait for it. Deploy it, and start a sync by hand: npx supabase functions deploy image-sync --use-api',
      image_sync.request_of(v_bucket_id, '{"mode": "sync"}')
    ),
    (
      'address_stale', 'error', 'The schedule calls a function that does not know this database',
      ((v_call ->> 'answered')::boolean and (v_call ->> 'status')::integer = 401)::integer,
      jsonb_build_array(v_schedule ->> 'function_url'),
      'As after a restore or a branch into another project: the address is the old one''s until this project''s own function has been called. Start a sync by hand.',
      image_sync.request_of(v_bucket_id, '{"mode": "sync"}')
    ),
    (
      'last_call_failed', 'warning', 'The last call that the schedule queued got an error',
      ((v_call ->> 'answered')::boolean and coalesce(
        (v_call ->> 'status')::integer not between 200 and 299 and (v_call ->> 'status')::integer <> 401,
        not (v_call ->> 'arrived')::boolean
      ) and (v_schedule ->> 'function_fits')::boolean)::integer,
      jsonb_build_array(coalesce('HTTP ' || (v_call ->> 'status'), v_call ->> 'error')),
      format('404: the function is not deployed. 503: it did not start, or could not reach the database; its log says more. No answer: %s cannot be reached. A sync started by hand does the work meanwhile, as long as its command waits or the window is open.', coalesce(v_schedule ->> 'function_url', 'its address')),
      image_sync.request_of(v_bucket_id, '{"mode": "sync"}')
    )
  ) as v (code, level, title, count, samples, remediation, action);
end;
$$;

comment on function image_sync.schedule_findings(jsonb) is 'What keeps the schedule from calling the function.';

-- Those that stand, the gravest first.
create or replace function image_sync.findings(p_facts jsonb)
returns table (code text, level text, title text, count bigint, samples jsonb, remediation text, action jsonb)
-- Not in sql, which would plan all of them anew at each call: 15 ms to find in one. What it calls inherits the setting.
language plpgsql
stable
set search_path = ''
set plan_cache_mode = 'force_generic_plan'
as $$
begin
  return query
  with found as (
    select v.code, v.level, v.title, v.count, coalesce(v.samples, '[]') as samples, v.remediation, v.action
    from (
      select * from image_sync.bucket_findings(p_facts)
      union all select * from image_sync.access_findings(p_facts)
      union all select * from image_sync.file_findings(p_facts)
      union all select * from image_sync.difference_findings(p_facts)
      union all select * from image_sync.url_findings(p_facts)
      union all select * from image_sync.unseen_findings(p_facts)
      union all select * from image_sync.run_findings(p_facts)
      union all select * from image_sync.schedule_findings(p_facts)
    ) as v
    where v.count > 0
  )
  select found.code, found.level, found.title, found.count, found.samples, found.remediation, found.action
  from found
  where not exists (
    select
    from (values
      ('last_run_failed', 'bucket_missing'),
      ('last_run_failed', 'listing_failed'),
      ('last_run_failed', 'signing_failed'),
      ('last_run_partial', 'signing_failed'),
      ('last_run_failed', 'table_refused'),
      ('listing_incomplete', 'listing_failed'),
      ('last_run_partial', 'unsignable_names'),
      ('last_run_partial', 'row_locked'),
      ('last_run_partial', 'database_timeout'),
      ('last_run_partial', 'url_refused'),
      ('last_run_partial', 'not_moved'),
      ('last_run_partial', 'collided'),
      ('last_call_failed', 'calls_unanswered'),
      ('run_stands_still', 'calls_unanswered'),
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
$$;

comment on function image_sync.findings(jsonb) is
  'The findings of a report: code, level (error, warning, info), title, count, samples, remediation, and action: {"request"}, {"sql"}, or null where only a person can do something. The one definition of all of them.';
