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
declare
  v_ledger constant jsonb := image_sync.run_ledger(p_run.id);
  v_images_left constant bigint := image_sync.count_of(v_ledger, 'images') - image_sync.count_of(v_ledger, 'vanished');
  v_recorded constant bigint := image_sync.count_of(v_ledger, 'recorded') + image_sync.count_of(v_ledger, 'inserted') + case when p_run.mode = 'sync' then image_sync.count_of(v_ledger, 'moved') else 0 end;
begin
  return (
    with counted as (
      select
        coalesce(sum(image_sync.count_of(c.ledger, 'failed')) filter (where c.error ->> 'code' = 'database_timeout'), 0) as too_slow,
        count(*) filter (where c.state = 'dead' and c.error ->> 'code' = 'database_timeout') as too_slow_names,
        coalesce(sum(jsonb_array_length(jsonb_path_query_array(c.problems, '$[*] ? (@.code == "url_refused")'))) filter (where c.problems <> '[]'), 0) as url_refused,
        coalesce(sum(jsonb_array_length(jsonb_path_query_array(c.problems, '$[*] ? (@.code == "unsignable_name")'))) filter (where c.problems <> '[]'), 0) as unsignable,
        min((c.facts ->> 'soonest_expiry')::timestamptz) as soonest_expiry
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
        'objects', image_sync.count_of(v_ledger, 'listed'),
        'images', image_sync.count_of(v_ledger, 'images'),
        'bytes', image_sync.count_of(v_ledger, 'bytes'),
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
        'total', image_sync.count_of(v_ledger, 'records'),
        'signed', image_sync.count_of(v_ledger, 'records_signed') - image_sync.count_of(v_ledger, 'records_expired'),
        'unsigned', image_sync.count_of(v_ledger, 'records') - image_sync.count_of(v_ledger, 'records_signed'),
        'expired', image_sync.count_of(v_ledger, 'records_expired'),
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
        'missing', jsonb_build_object('count', image_sync.count_of(v_ledger, 'missing'), 'samples', image_sync.samples(p_run.id, 'missing')),
        'orphaned', jsonb_build_object('count', image_sync.count_of(v_ledger, 'orphaned'), 'samples', image_sync.samples(p_run.id, 'orphaned')),
        'collided', jsonb_build_object('count', image_sync.count_of(v_ledger, 'collided'), 'samples', image_sync.samples(p_run.id, 'collided')),
        -- In an analyze: that would move. In a sync they did.
        'moved', jsonb_build_object('count', case when p_run.mode = 'sync' then 0 else image_sync.count_of(v_ledger, 'moved') end, 'samples', case when p_run.mode = 'sync' then '[]' else image_sync.samples(p_run.id, 'moved') end)
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
        'recorded', case when v_images_left > 0 then trunc(v_recorded::numeric / v_images_left, 6) else 1 end,
        'signed', case when v_images_left > 0 then trunc(image_sync.count_of(v_ledger, 'images_signed')::numeric / v_images_left, 6) else 1 end
      ),
      'probe', coalesce(p_probe, '{"checked": 0, "ok": 0, "failures": []}'),
      'other_extensions', jsonb_build_object('count', image_sync.count_of(v_ledger, 'not_images') - image_sync.count_of(v_ledger, 'excluded') - image_sync.count_of(v_ledger, 'empty_files'), 'samples', image_sync.samples(p_run.id, 'other_extensions')),
      'excluded', jsonb_build_object('count', image_sync.count_of(v_ledger, 'excluded'), 'samples', image_sync.samples(p_run.id, 'excluded')),
      'empty_files', jsonb_build_object('count', image_sync.count_of(v_ledger, 'empty_files'), 'samples', image_sync.samples(p_run.id, 'empty_files')),
      'several_files', jsonb_build_object(
        'count', image_sync.count_of(v_ledger, 'several_files') + coalesce(p_run.twins, 0),
        'samples', jsonb_path_query_array(image_sync.twin_samples(p_run.bucket_id, p_run.twin_keys) || image_sync.samples(p_run.id, 'several_files'), '$[0 to 19]')
      ),
      'unsigned_with_object', image_sync.count_of(v_ledger, 'records') - image_sync.count_of(v_ledger, 'records_signed') - image_sync.count_of(v_ledger, 'orphans_unsigned'),
      'expired_with_object', image_sync.count_of(v_ledger, 'records_expired') - image_sync.count_of(v_ledger, 'orphans_expired'),
      'failed', jsonb_build_object(
        'count', image_sync.count_of(v_ledger, 'failed') - counted.too_slow - counted.url_refused, 'samples', image_sync.problem_samples(p_run.id, 'signing_failed')
      ),
      'unsignable', jsonb_build_object('count', counted.unsignable, 'samples', image_sync.problem_samples(p_run.id, 'unsignable_name')),
      'unmoved', jsonb_build_object('count', image_sync.count_of(v_ledger, 'unmoved'), 'samples', image_sync.problem_samples(p_run.id, 'not_moved')),
      'held', jsonb_build_object('count', image_sync.count_of(v_ledger, 'held'), 'samples', image_sync.problem_samples(p_run.id, 'row_locked')),
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
declare
  v_ledger constant jsonb := image_sync.run_ledger(p_run.id);
begin
  return (
    select jsonb_build_object(
      'run', p_run.id,
      'at', clock_timestamp(),
      'checked', image_sync.count_of(v_ledger, 'shown') + image_sync.count_of(v_ledger, 'broken'),
      'ok', image_sync.count_of(v_ledger, 'shown'),
      -- Rejected URLs whose expiry was not forgotten.
      'kept', image_sync.count_of(v_ledger, 'rejected') - image_sync.count_of(v_ledger, 'updated'),
      'failures', (
        select coalesce(jsonb_object_agg(b.code, jsonb_build_object(
          'count', b.files,
          'samples', image_sync.problem_samples(p_run.id, b.code),
          'said', case when b.code = 'unreachable' then (
            select p.problem ->> 'detail'
            from image_sync.chunks h
            cross join lateral jsonb_array_elements(h.problems) as p (problem)
            where h.run_id = p_run.id
              and h.ledger ? 'broken'
              and p.problem ->> 'code' = 'unreachable'
            limit 1
          ) end
        )), '{}')
        from (
          select e.code, sum(e.files::bigint) as files
          from image_sync.chunks k
          cross join lateral jsonb_each_text(k.facts -> 'broken') as e (code, files)
          where k.run_id = p_run.id
            and k.ledger ? 'broken'
          group by e.code
        ) as b
      )
    )
  );
end;
$$;

comment on function image_sync.measure_verified(image_sync.runs) is
  'What a finished verify saw: {"run", "at", "checked", "ok", "kept", "failures": {reason: {"count", "samples", "said"}}}; kept: rejected URLs that keep their expiry; said: what answered in Storage''s place. Reasons: file_lost, file_gone, not_an_image, wrong_content_type, url_rejected, unreachable.';
