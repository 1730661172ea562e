-- set
-- What grows with the bucket is measured by the runs, in their chunks; reading the report adds up nothing but a handful of rows,
-- whatever the size of the bucket.

-- Files of a run by extension: the 20 most frequent, the rest together.
create or replace function image_sync.measured_extensions(p_run uuid)
returns jsonb language plpgsql stable set search_path = '' set enable_seqscan = 'off' as $$
begin
  return (
    with extensions as (
      select
        coalesce(nullif(e.extension, ''), '(none)') as extension,
        sum(e.files::bigint) as files,
        row_number() over (order by sum(e.files::bigint) desc, e.extension) as place
      from image_sync.chunks c
      cross join lateral jsonb_each_text(c.facts -> 'by_extension') as e (extension, files)
      where c.run_id = p_run
      group by e.extension
    )
    select coalesce(jsonb_object_agg(shown.extension, shown.files), '{}')
    from (
      select case when x.place <= 20 then x.extension else 'other' end as extension, sum(x.files) as files
      from extensions x
      group by 1
    ) as shown
  );
end;
$$;

comment on function image_sync.measured_extensions(uuid) is 'How many files a run listed, by extension; those beyond the 20 most frequent as "other".';

-- What findings are made of: {"count", "samples"} by the name of what was counted.
create or replace function image_sync.measured_counts(p_run image_sync.runs, p_ledger jsonb)
returns jsonb language plpgsql stable set search_path = '' set enable_seqscan = 'off' as $$
begin
  return (
    with refused as (
      select
        coalesce(sum(jsonb_array_length(jsonb_path_query_array(c.problems, '$[*] ? (@.code == "url_refused")'))) filter (where c.problems <> '[]'), 0) as url_refused,
        coalesce(sum(jsonb_array_length(jsonb_path_query_array(c.problems, '$[*] ? (@.code == "unsignable_name")'))) filter (where c.problems <> '[]'), 0) as unsignable
      from image_sync.chunks c
      where c.run_id = p_run.id
    )
    select jsonb_object_agg(n.name, jsonb_build_object('count', n.count, 'samples', case
      when n.name = 'several_files' then jsonb_path_query_array(image_sync.twin_samples(p_run.bucket_id, p_run.twin_keys) || image_sync.samples(p_run.id, n.name), '$[0 to 19]')
      when n.code is null then image_sync.samples(p_run.id, n.name)
      else image_sync.problem_samples(p_run.id, n.code)
    end))
    from refused
    cross join lateral (values
      ('other_extensions', image_sync.count_of(p_ledger, 'not_images') - image_sync.count_of(p_ledger, 'excluded') - image_sync.count_of(p_ledger, 'empty_files'), null),
      ('excluded', image_sync.count_of(p_ledger, 'excluded'), null),
      ('empty_files', image_sync.count_of(p_ledger, 'empty_files'), null),
      ('several_files', image_sync.count_of(p_ledger, 'several_files') + coalesce(p_run.twins, 0), null),
      ('failed', greatest(image_sync.count_of(p_ledger, 'failed') - image_sync.count_of(p_ledger, 'too_slow') - refused.url_refused, 0), 'signing_failed'),
      ('unsignable', refused.unsignable, 'unsignable_name'),
      ('unmoved', image_sync.count_of(p_ledger, 'unmoved'), 'not_moved'),
      ('held', image_sync.count_of(p_ledger, 'held'), 'row_locked'),
      ('too_slow', image_sync.count_of(p_ledger, 'too_slow'), 'database_timeout'),
      ('url_refused', refused.url_refused, 'url_refused')
    ) as n (name, count, code)
  );
end;
$$;

comment on function image_sync.measured_counts(image_sync.runs, jsonb) is 'What a finished run counted beside the difference, each with up to 20 samples, for findings.';

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
  l constant jsonb := image_sync.run_ledger(p_run.id);
  v_images constant bigint := image_sync.count_of(l, 'images') - image_sync.count_of(l, 'vanished');
  v_moved constant bigint := image_sync.count_of(l, 'moved');
  v_is_sync constant boolean := p_run.mode = 'sync';
  v_recorded constant bigint := image_sync.count_of(l, 'recorded') + image_sync.count_of(l, 'inserted') + case when v_is_sync then v_moved else 0 end;
  v_records constant bigint := image_sync.count_of(l, 'records');
  v_signed constant bigint := image_sync.count_of(l, 'records_signed');
  v_expired constant bigint := image_sync.count_of(l, 'records_expired');
begin
  return image_sync.measured_counts(p_run, l) || jsonb_build_object(
    'measured_at', clock_timestamp(),
    'bucket', jsonb_build_object(
      'objects', image_sync.count_of(l, 'listed'), 'images', image_sync.count_of(l, 'images'), 'bytes', image_sync.count_of(l, 'bytes'),
      'by_extension', image_sync.measured_extensions(p_run.id)
    ),
    'records', jsonb_build_object(
      'total', v_records, 'signed', v_signed - v_expired, 'unsigned', v_records - v_signed, 'expired', v_expired,
      'soonest_expiry', (select min((c.facts ->> 'soonest_expiry')::timestamptz) from image_sync.chunks c where c.run_id = p_run.id)
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
    'difference', (
      select jsonb_object_agg(k.kind, jsonb_build_object('count', image_sync.count_of(l, k.kind), 'samples', image_sync.samples(p_run.id, k.kind)))
      from unnest('{missing,orphaned,collided}'::text[]) as k (kind)
    ) || jsonb_build_object('moved', case
      -- In an analyze: that would move. In a sync they did.
      when v_is_sync then '{"count": 0, "samples": []}' else jsonb_build_object('count', v_moved, 'samples', image_sync.samples(p_run.id, 'moved'))
    end),
    'moved_away', (
      select jsonb_build_object('count', coalesce(sum((c.facts #>> '{away,count}')::bigint), 0), 'files', jsonb_path_query_array(
        jsonb_path_query_array(coalesce(jsonb_agg(c.facts #> '{away,files}' order by c.number), '[]'), '$[*][*]'), '$[0 to 19]'
      ))
      from image_sync.chunks c
      where c.run_id = p_run.id and c.facts ? 'away'
    ),
    -- Rounded down: 1 means all of them.
    'coverage', jsonb_build_object(
      'recorded', case when v_images > 0 then trunc(v_recorded::numeric / v_images, 6) else 1 end,
      'signed', case when v_images > 0 then trunc(image_sync.count_of(l, 'images_signed')::numeric / v_images, 6) else 1 end
    ),
    'probe', coalesce(p_probe, '{"checked": 0, "ok": 0, "failures": []}'),
    'unsigned_with_object', v_records - v_signed - image_sync.count_of(l, 'orphans_unsigned'),
    'expired_with_object', v_expired - image_sync.count_of(l, 'orphans_expired'),
    -- Two look-ups by index: what has no name, and what has the empty one, which the walk begins behind.
    'unnamed', (select count(*) from public.part_images p where p.bucket_id = p_run.bucket_id and p.file_name is null)
      + (select count(*) from public.part_images p where p.bucket_id = p_run.bucket_id and p.file_name collate "C" = '')
  );
end;
$$;

comment on function image_sync.measure(image_sync.runs, jsonb) is
  'What a finished sync or analyze found: the sections bucket, records, difference, coverage and probe of the report, and the counts that findings need. No URL, no key.';

-- What a verify saw, for the report.
create or replace function image_sync.measure_verified(p_run image_sync.runs)
returns jsonb language plpgsql stable set search_path = '' as $$
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
            where h.run_id = p_run.id and h.ledger ? 'broken' and p.problem ->> 'code' = 'unreachable'
            limit 1
          ) end
        )), '{}')
        from (
          select e.code, sum(e.files::bigint) as files
          from image_sync.chunks k
          cross join lateral jsonb_each_text(k.facts -> 'broken') as e (code, files)
          where k.run_id = p_run.id and k.ledger ? 'broken'
          group by e.code
        ) as b
      )
    )
  );
end;
$$;

comment on function image_sync.measure_verified(image_sync.runs) is
  'What a finished verify saw: {"run", "at", "checked", "ok", "kept", "failures": {reason: {"count", "samples", "said"}}}; kept: rejected URLs that keep their expiry; said: what answered in Storage''s place. Reasons: file_lost, file_gone, not_an_image, wrong_content_type, url_rejected, unreachable.';
