-- set
-- What grows with the bucket is measured by the runs, in their chunks; reading the report adds up nothing but a handful of rows,
-- whatever the size of the bucket.

-- What a finished sync or analyze measured, merged from its chunks: stored in runs.report.
create or replace function image_sync.measure(p_run image_sync.runs, p_probe jsonb)
returns jsonb
language plpgsql
stable
set search_path = ''
-- The chunks of one run, by their key, whatever the statistics said when this session planned it.
set enable_seqscan = 'off'
as $$
begin
  return (
    with counted as (
      select
        coalesce(sum(c.listed), 0) as objects,
        coalesce(sum(c.images), 0) as images,
        coalesce(sum(c.images - c.vanished), 0) as images_left,
        coalesce(sum(c.not_images), 0) as not_images,
        coalesce(sum(c.excluded), 0) as excluded,
        coalesce(sum(c.empty_files), 0) as empty_files,
        coalesce(sum(c.bytes), 0) as bytes,
        coalesce(sum(c.recorded + c.inserted + case when p_run.mode = 'sync' then c.moved else 0 end), 0) as recorded,
        coalesce(sum(c.moved), 0) as moved,
        coalesce(sum(c.unmoved), 0) as unmoved,
        coalesce(sum(c.images_signed), 0) as images_signed,
        coalesce(sum(c.records), 0) as records,
        coalesce(sum(c.records_signed - c.records_expired), 0) as signed,
        coalesce(sum(c.records - c.records_signed), 0) as unsigned,
        coalesce(sum(c.records_expired), 0) as expired,
        coalesce(sum(c.records - c.records_signed - c.orphans_unsigned), 0) as unsigned_with_object,
        coalesce(sum(c.records_expired - c.orphans_expired), 0) as expired_with_object,
        coalesce(sum(c.orphaned), 0) as orphaned,
        coalesce(sum(c.missing), 0) as missing,
        coalesce(sum(c.collided), 0) as collided,
        coalesce(sum(c.failed), 0) as failed,
        coalesce(sum(c.held), 0) as held,
        coalesce(sum(c.failed) filter (where c.error ->> 'code' = 'database_timeout'), 0) as too_slow,
        count(*) filter (where c.state = 'dead' and c.error ->> 'code' = 'database_timeout') as too_slow_names,
        coalesce(sum(jsonb_array_length(jsonb_path_query_array(c.problems, '$[*] ? (@.code == "url_refused")'))) filter (where c.problems <> '[]'), 0) as url_refused,
        coalesce(sum(jsonb_array_length(jsonb_path_query_array(c.problems, '$[*] ? (@.code == "unsignable_name")'))) filter (where c.problems <> '[]'), 0) as unsignable,
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
      -- URLs by the day on which they die.
      'expiry', (
        select coalesce(jsonb_object_agg(d.day, d.urls), '{}')
        from (
          select e.day, sum(e.urls::bigint) as urls
          from image_sync.chunks c
          cross join lateral jsonb_each_text(c.facts -> 'expiry') as e (day, urls)
          where c.run_id = p_run.id
          group by e.day
        ) as d
      ),
      'difference', jsonb_build_object(
        'missing', jsonb_build_object('count', counted.missing, 'samples', image_sync.samples(p_run.id, 'missing')),
        'orphaned', jsonb_build_object('count', counted.orphaned, 'samples', image_sync.samples(p_run.id, 'orphaned')),
        'collided', jsonb_build_object('count', counted.collided, 'samples', image_sync.samples(p_run.id, 'collided')),
        -- In an analyze: that would move. In a sync they did.
        'moved', jsonb_build_object('count', case when p_run.mode = 'sync' then 0 else counted.moved end, 'samples', case when p_run.mode = 'sync' then '[]' else image_sync.samples(p_run.id, 'moved') end)
      ),
      'moved_away', (
        select jsonb_build_object('count', coalesce(sum((c.facts #> '{away,count}')::bigint), 0), 'files', coalesce((
          select jsonb_agg(few.file)
          from (
            select e.file
            from image_sync.chunks k
            cross join lateral jsonb_array_elements(k.facts #> '{away,files}') as e (file)
            where k.run_id = p_run.id
              and k.facts ? 'away'
            order by k.number
            limit 20
          ) as few
        ), '[]'))
        from image_sync.chunks c
        where c.run_id = p_run.id
          and c.facts ? 'away'
      ),
      -- Rounded down: 1 means all of them.
      'coverage', jsonb_build_object(
        'recorded', case when counted.images_left > 0 then trunc(counted.recorded::numeric / counted.images_left, 6) else 1 end,
        'signed', case when counted.images_left > 0 then trunc(counted.images_signed::numeric / counted.images_left, 6) else 1 end
      ),
      'probe', coalesce(p_probe, '{"checked": 0, "ok": 0, "failures": []}'),
      'other_extensions', jsonb_build_object('count', counted.not_images - counted.excluded - counted.empty_files, 'samples', image_sync.samples(p_run.id, 'other_extensions')),
      'excluded', jsonb_build_object('count', counted.excluded, 'samples', image_sync.samples(p_run.id, 'excluded')),
      'empty_files', jsonb_build_object('count', counted.empty_files, 'samples', image_sync.samples(p_run.id, 'empty_files')),
      'several_files', jsonb_build_object(
        'count', counted.several_files + coalesce(p_run.twins, 0),
        'samples', jsonb_path_query_array(image_sync.twin_samples(p_run.bucket_id, p_run.twin_keys) || image_sync.samples(p_run.id, 'several_files'), '$[0 to 19]')
      ),
      'unsigned_with_object', counted.unsigned_with_object,
      'expired_with_object', counted.expired_with_object,
      'failed', jsonb_build_object(
        'count', counted.failed - counted.too_slow - counted.url_refused, 'samples', image_sync.problem_samples(p_run.id, 'signing_failed')
      ),
      'unsignable', jsonb_build_object('count', counted.unsignable, 'samples', image_sync.problem_samples(p_run.id, 'unsignable_name')),
      'unmoved', jsonb_build_object('count', counted.unmoved, 'samples', image_sync.problem_samples(p_run.id, 'not_moved')),
      'held', jsonb_build_object('count', counted.held, 'samples', image_sync.problem_samples(p_run.id, 'row_locked')),
      'too_slow', jsonb_build_object('count', counted.too_slow_names, 'samples', image_sync.problem_samples(p_run.id, 'database_timeout')),
      'url_refused', jsonb_build_object('count', counted.url_refused, 'samples', image_sync.problem_samples(p_run.id, 'url_refused')),
      -- Two look-ups by index: what has no name, and what has the empty one, which the walk begins behind.
      'unnamed', (
        select count(*)
        from public.part_images p
        where p.bucket_id = p_run.bucket_id
          and p.file_name is null
      ) + (
        select count(*)
        from public.part_images p
        where p.bucket_id = p_run.bucket_id
          and p.file_name collate "C" = ''
      )
    )
    from counted
  );
end;
$$;

comment on function image_sync.measure(image_sync.runs, jsonb) is
  'What a finished sync or analyze found: the sections bucket, records, difference, coverage and probe of the report, and the counts that findings need. No URL, no key.';

-- What a verify saw, for the report.
create or replace function image_sync.measure_verified(p_run image_sync.runs)
returns jsonb
language plpgsql
stable
set search_path = ''
as $$
begin
  return (
    select jsonb_build_object(
      'run', p_run.id,
      'at', clock_timestamp(),
      'checked', coalesce(sum(c.shown + c.broken), 0),
      'ok', coalesce(sum(c.shown), 0),
      -- Rejected URLs whose expiry was not forgotten.
      'kept', coalesce(sum((c.facts #>> '{broken,url_rejected}')::bigint), 0) - coalesce(sum(c.updated), 0),
      'failures', (
        select coalesce(jsonb_object_agg(b.code, jsonb_build_object(
          'count', b.files,
          'samples', image_sync.problem_samples(p_run.id, b.code),
          'said', case when b.code = 'unreachable' then (
            select p.problem ->> 'detail'
            from image_sync.chunks h
            cross join lateral jsonb_array_elements(h.problems) as p (problem)
            where h.run_id = p_run.id
              and h.broken > 0
              and p.problem ->> 'code' = 'unreachable'
            limit 1
          ) end
        )), '{}')
        from (
          select e.code, sum(e.files::bigint) as files
          from image_sync.chunks k
          cross join lateral jsonb_each_text(k.facts -> 'broken') as e (code, files)
          where k.run_id = p_run.id
            and k.broken > 0
          group by e.code
        ) as b
      )
    )
    from image_sync.chunks c
    where c.run_id = p_run.id
  );
end;
$$;

comment on function image_sync.measure_verified(image_sync.runs) is
  'What a finished verify saw: {"run", "at", "checked", "ok", "kept", "failures": {reason: {"count", "samples", "said"}}}; kept: rejected URLs that keep their expiry; said: what answered in Storage''s place. Reasons: file_lost, file_gone, not_an_image, wrong_content_type, url_rejected, unreachable.';

revoke all on function
  image_sync.measure(image_sync.runs, jsonb),
  image_sync.measure_verified(image_sync.runs)
from public;
grant execute on function
  image_sync.measure(image_sync.runs, jsonb),
  image_sync.measure_verified(image_sync.runs)
to service_role;
