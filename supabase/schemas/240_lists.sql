-- set
-- Lists for the operator: the buckets that are kept in step, and the history of runs. Pages by keyset, each bounded.

-- Every bucket with settings, with its verdict.
-- Returns {"buckets": [{"bucket_id", "exists", "nightly", "healthy", "findings", "images", "coverage", "last_sync_at",
-- "last_sync_state", "open_run"}], "next": the p_after of the next page or null}.
create or replace function public.image_sync_buckets(p_after text default '', p_limit integer default 50)
returns jsonb language plpgsql stable set search_path = '' set lock_timeout = '1s' as $$
declare
  v_limit constant integer := least(greatest(coalesce(p_limit, 50), 1), 100);
begin
  return (
    select image_sync.page('buckets', coalesce(jsonb_agg(jsonb_build_object(
      'bucket_id', s.bucket_id,
      'exists', (r.facts #>> '{bucket_exists}')::boolean,
      'nightly', s.nightly,
      'healthy', r.report -> 'healthy',
      'findings', (
        select coalesce(jsonb_agg(f.finding || '{"samples": []}'), '[]')
        from jsonb_array_elements(r.report -> 'findings') as f (finding)
      ),
      'images', r.report #> '{bucket,images}',
      'coverage', r.report #> '{coverage,signed}',
      'last_sync_at', r.report #> '{last_runs,sync,finished_at}',
      'last_sync_state', r.report #> '{last_runs,sync,state}',
      'open_run', r.report #> '{open_run,id}'
    ) order by s.bucket_id collate "C"), '[]'), 'bucket_id', v_limit)
    from (
      select q.bucket_id, q.nightly
      from image_sync.settings q
      where q.bucket_id collate "C" > coalesce(p_after, '')
      order by q.bucket_id collate "C" limit v_limit
    ) as s
    cross join lateral (
      select image_sync.report_of(s.bucket_id) -> 'report' as report, image_sync.bucket_facts(s.bucket_id) as facts
      -- One report for each, not one for each of the columns above.
      offset 0
    ) as r
  );
end;
$$;

comment on function public.image_sync_buckets(text, integer) is 'A page of the buckets that have settings, in byte order behind p_after, 1 to 100 of them, each with its verdict.';

-- Gives a bucket settings, the defaults: the next night keeps it in step. Its files and records stay as they are.
create or replace function public.image_sync_add_bucket(p_bucket text)
returns jsonb language plpgsql set search_path = '' as $$
begin
  if not exists (select from storage.buckets b where b.id = p_bucket) then
    return image_sync.problem(
      409, 'bucket_missing', 'The bucket does not exist',
      format('Cannot keep bucket %s in step: storage.buckets has no such id. Create it under Storage first.', p_bucket));
  end if;
  insert into image_sync.settings (bucket_id) values (p_bucket) on conflict do nothing;
  return jsonb_build_object('bucket', jsonb_build_object('bucket_id', p_bucket, 'changed', found));
end;
$$;

comment on function public.image_sync_add_bucket(text) is 'Gives a bucket the default settings, so that it is kept in step. Returns {"bucket": {"bucket_id", "changed": false where it had some}}. Problem: bucket_missing (409).';

-- Takes a bucket's settings away: no run looks at it any more. Its files, records and history stay.
create or replace function public.image_sync_remove_bucket(p_bucket text)
returns jsonb language plpgsql set search_path = '' set lock_timeout = '2s' as $$
declare
  v_open uuid;
begin
  perform pg_advisory_xact_lock(hashtextextended('image_sync.start ' || p_bucket, 0));
  select r.id into v_open from image_sync.runs r where r.bucket_id = p_bucket and r.finished_at is null limit 1;
  if v_open is not null then
    return image_sync.problem(
      409, 'conflicting_run', 'A run of the bucket is open',
      format('Cannot remove bucket %s: run %s is open. Wait for its end, or cancel it with DELETE ?run=%2$s.', p_bucket, v_open),
      jsonb_build_object('open_run', v_open));
  end if;
  delete from image_sync.settings s where s.bucket_id = p_bucket;
  return coalesce(
    case when not found then image_sync.unknown_bucket(p_bucket, 'remove bucket %s') end,
    jsonb_build_object('bucket', jsonb_build_object('bucket_id', p_bucket, 'changed', true)));
end;
$$;

comment on function public.image_sync_remove_bucket(text) is 'Takes a bucket''s settings away, so that no run looks at it any more; files, records and history stay. Problems: unknown_bucket (404), conflicting_run (409).';

-- The history of runs, newest first.
--   p_bucket, p_mode, p_state  only those, null: all; p_state as a run document says it: open, succeeded, partial, failed, cancelled
--   p_after                    the last run of the page before
-- Returns {"runs": [document], "next": the p_after of the next page or null}.
create or replace function public.image_sync_runs(
  p_bucket text default null, p_mode text default null, p_state text default null, p_after uuid default null, p_limit integer default 20
)
returns jsonb language plpgsql stable set search_path = '' as $$
declare
  v_limit constant integer := least(greatest(coalesce(p_limit, 20), 1), 100);
begin
  if p_after is not null and not exists (select from image_sync.runs r where r.id = p_after) then
    return image_sync.unknown_run(p_after);
  end if;
  return (
    select image_sync.page('runs', coalesce(jsonb_agg(image_sync.run_document(q.id) order by q.started_at desc, q.id desc), '[]'), 'id', v_limit)
    from (
      select r.id, r.started_at
      from image_sync.runs r
      where (p_bucket is null or r.bucket_id = p_bucket)
        and (p_mode is null or r.mode = p_mode)
        and (p_state is null or coalesce(r.outcome, 'open') = p_state)
        and (p_after is null or (r.started_at, r.id) < (select a.started_at, a.id from image_sync.runs a where a.id = p_after))
      order by r.started_at desc, r.id desc limit v_limit
    ) as q
  );
end;
$$;

comment on function public.image_sync_runs(text, text, text, uuid, integer) is 'A page of the history of runs, newest first, 1 to 100 of them. Problem: unknown_run (404) for a p_after that housekeeping pruned.';
