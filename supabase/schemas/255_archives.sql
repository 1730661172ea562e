-- set
-- What cleanups took out of the table, run by run: what can be put back.

-- The cleanups of a bucket that archived something, newest first.
-- Returns {"archives": [{"run", "archived_at", "removed", "restored"}]}. The archive outlives the history of runs: of a run that
-- housekeeping pruned the records are counted, up to 10,000.
create or replace function public.image_sync_archives(p_bucket text, p_limit integer default 50)
returns jsonb
language plpgsql
stable
set search_path = ''
as $$
begin
  return (
    -- From one run to the next in the index, however many records each of them archived.
    with recursive walk as (
      (select a.run_id from image_sync.archive a where a.run_id is not null order by a.run_id limit 1)
      union all
      select (select a.run_id from image_sync.archive a where a.run_id > w.run_id order by a.run_id limit 1)
      from walk w
      where w.run_id is not null
    ), archives as (
      select w.run_id, f.archived_at
      from (select walk.run_id from walk where walk.run_id is not null limit 500) as w
      cross join lateral (
        select a.bucket_id, a.archived_at
        from image_sync.archive a
        where a.run_id = w.run_id
        order by a.file_name collate "C"
        limit 1
      ) as f
      where f.bucket_id = p_bucket
      order by f.archived_at desc
      limit least(greatest(coalesce(p_limit, 50), 1), 100)
    )
    select jsonb_build_object('archives', coalesce(jsonb_agg(jsonb_build_object(
      'run', a.run_id,
      'archived_at', a.archived_at,
      'removed', coalesce((r.summary #>> '{totals,removed}')::bigint, (
        select count(*)
        from (select from image_sync.archive q where q.run_id = a.run_id limit 10000) as counted
      )),
      'restored', (
        select coalesce(sum((u.summary #>> '{totals,restored}')::bigint), 0)
        from image_sync.runs u
        where u.plan_id = a.run_id
          and u.mode = 'restore'
      )
    ) order by a.archived_at desc), '[]'))
    from archives a
    left join image_sync.runs r on r.id = a.run_id
  );
end;
$$;

comment on function public.image_sync_archives(text, integer) is
  'The cleanups of a bucket that archived records, newest first, at most 100, with how many each removed and how many were put back since.';

-- The records that a cleanup archived, by name.
-- Returns {"archived": {"run", "records": [{"file_name", "part_number", "restored_at"}], "next"}}. No URL.
create or replace function public.image_sync_archived(p_run uuid, p_after text default '', p_limit integer default 100)
returns jsonb
language plpgsql
stable
set search_path = ''
as $$
declare
  v_limit constant integer := least(greatest(coalesce(p_limit, 100), 1), 1000);
  v_records jsonb;
begin
  select coalesce(jsonb_agg(to_jsonb(q) order by q.file_name collate "C"), '[]')
  into v_records
  from (
    select a.file_name, a.record ->> 'part_number' as part_number, a.restored_at
    from image_sync.archive a
    where a.run_id = p_run
      and a.file_name collate "C" > coalesce(p_after, '')
    order by a.file_name collate "C"
    limit v_limit
  ) as q;
  return jsonb_build_object('archived', jsonb_build_object(
    'run', p_run,
    'records', v_records,
    'next', case when jsonb_array_length(v_records) = v_limit then v_records #> '{-1,file_name}' end
  ));
end;
$$;

comment on function public.image_sync_archived(uuid, text, integer) is
  'A page of the records that a cleanup archived, in byte order, 1 to 1,000 of them, with when each was put back.';
