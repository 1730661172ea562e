-- A run as the world sees it: what its chunks add up to, how far it is, and how it ends.

-- The first 20 names that a run's chunks kept under a key of their facts.
create function image_sync.samples(p_run uuid, p_key text)
returns jsonb
language sql
stable
set search_path = ''
return (
  select coalesce(jsonb_agg(s.name), '[]')
  from (
    select name
    from image_sync.chunks c
    cross join lateral jsonb_array_elements(c.facts -> p_key) as name
    where c.run_id = p_run
      and c.facts ? p_key
    order by c.number
    limit 20
  ) as s
);

comment on function image_sync.samples(uuid, text) is 'Up to 20 sample names of a kind, from the chunks of a run in key order.';

-- The totals of a run, from its chunks. Kept in runs.summary when it finishes, because chunks are pruned.
create function image_sync.summarize(p_run uuid)
returns jsonb
language sql
stable
set search_path = ''
return (
  select jsonb_build_object(
    'chunks', count(*),
    'dead_chunks', count(*) filter (where c.state = 'dead'),
    'invocations', count(distinct c.worker_id),
    'done', coalesce(sum(greatest(c.listed, c.removed + c.restored + c.skipped)) filter (where c.state in ('done', 'dead')), 0),
    'balanced', coalesce(bool_and(
      c.listed = c.images + c.not_images
      and c.images = c.recorded + c.inserted + c.collided + c.vanished + c.missing
      and (c.state not in ('done', 'dead') or c.to_sign = c.signed + c.withdrawn + c.failed)
    ), true),
    'totals', jsonb_build_object(
      'listed', coalesce(sum(c.listed), 0),
      'images', coalesce(sum(c.images), 0),
      'not_images', coalesce(sum(c.not_images), 0),
      'recorded', coalesce(sum(c.recorded), 0),
      'inserted', coalesce(sum(c.inserted), 0),
      'collided', coalesce(sum(c.collided), 0),
      'vanished', coalesce(sum(c.vanished), 0),
      'missing', coalesce(sum(c.missing), 0),
      'to_sign', coalesce(sum(c.to_sign), 0),
      'signed', coalesce(sum(c.signed), 0),
      'withdrawn', coalesce(sum(c.withdrawn), 0),
      'failed', coalesce(sum(c.failed), 0),
      'orphaned', coalesce(sum(c.orphaned), 0),
      'records', coalesce(sum(c.records), 0),
      'removed', coalesce(sum(c.removed), 0),
      'restored', coalesce(sum(c.restored), 0),
      'skipped', coalesce(sum(c.skipped), 0),
      'rows_written', coalesce(sum(c.inserted + c.signed + c.removed + c.restored), 0),
      'storage_calls', coalesce(sum(c.storage_calls), 0),
      'retries', coalesce(sum(c.retries), 0)
    ),
    'orphaned_samples', image_sync.samples(p_run, 'orphaned'),
    'problems', (
      select coalesce(jsonb_agg(p.problem), '[]')
      from (
        select problem
        from image_sync.chunks d
        cross join lateral jsonb_array_elements(
          d.problems || case when d.state = 'dead' then jsonb_build_object('name', format('chunk %s', d.number)) || d.error else '[]' end
        ) as problem
        where d.run_id = p_run
          and (d.problems <> '[]' or d.state = 'dead')
        order by d.number
        limit 20
      ) as p
    )
  )
  from image_sync.chunks c
  where c.run_id = p_run
);

comment on function image_sync.summarize(uuid) is
  'What a run''s chunks add up to: chunks, invocations, whether the ledger balances in every chunk, totals, and up to 20 named problems.';

-- The run as GET answers it. Never a URL, a key or a lease.
create function image_sync.run_document(p_run uuid)
returns jsonb
language sql
stable
set search_path = ''
return (
  select jsonb_build_object(
    'id', r.id,
    'bucket_id', r.bucket_id,
    'mode', r.mode,
    'trigger', r.trigger,
    'options', r.options,
    'plan_id', r.plan_id,
    'state', coalesce(r.outcome, 'open'),
    'stop_reason', r.stop_reason,
    'started_at', r.started_at,
    'finished_at', r.finished_at,
    'duration_seconds', round(extract(epoch from coalesce(r.finished_at, now()) - r.started_at), 3),
    'progress', jsonb_build_object(
      'done', p.done,
      'total_estimate', p.total,
      'percent', case
        when r.finished_at is not null and r.exhausted then 100
        when p.total > 0 then least(99, floor(100.0 * p.done / p.total))
        else 0
      end,
      'rate_per_second', p.rate,
      'eta_seconds', case
        when r.finished_at is not null then 0
        when p.rate > 0 then ceil((p.total - p.done) / p.rate)
      end
    ),
    'totals', s.summary -> 'totals',
    'chunks', s.summary -> 'chunks',
    'invocations', s.summary -> 'invocations',
    'balanced', s.summary -> 'balanced',
    'error', r.error,
    'problems', s.summary -> 'problems'
  ) || case
    -- What a dry run would remove: the list itself stays in its chunks.
    when r.mode = 'cleanup' and r.plan_id is null then jsonb_build_object('plan', jsonb_build_object(
      'count', s.summary #> '{totals,orphaned}', 'samples', s.summary -> 'orphaned_samples'
    ))
    else '{}'
  end
  from image_sync.runs r
  cross join lateral (select coalesce(r.summary, image_sync.summarize(r.id)) as summary) as s
  cross join lateral (select (s.summary ->> 'done')::bigint as done) as d
  cross join lateral (
    select
      d.done,
      case when r.exhausted and r.finished_at is not null then d.done else greatest(r.total_estimate, d.done) end as total,
      round(d.done / greatest(extract(epoch from coalesce(r.finished_at, now()) - r.started_at), 0.001), 1) as rate
  ) as p
  where r.id = p_run
);

comment on function image_sync.run_document(uuid) is 'One run as JSON: identity, state, progress, totals, ledger, error and problems; null for an unknown id.';

-- How many objects the run can expect: what the last run of the bucket counted, else a count that gives up at 100,000 and then
-- trusts the statistics of the table.
create function image_sync.estimate_total(p_bucket_id text)
returns bigint
language plpgsql
stable
set search_path = ''
as $$
declare
  v_total bigint;
begin
  select (r.summary #>> '{totals,listed}')::bigint
  into v_total
  from image_sync.runs r
  where r.bucket_id = p_bucket_id
    and r.mode in ('sync', 'analyze')
    and r.outcome in ('succeeded', 'partial')
  order by r.started_at desc
  limit 1;
  if v_total > 0 then
    return v_total;
  end if;

  select count(*)
  into v_total
  from (
    select
    from storage.objects o
    where o.bucket_id = p_bucket_id
    limit 100000
  ) as counted;
  if v_total < 100000 then
    return v_total;
  end if;
  return greatest(
    v_total,
    (
      select c.reltuples::bigint
      from pg_catalog.pg_class c
      where c.oid = 'storage.objects'::regclass
    )
  );
end;
$$;

comment on function image_sync.estimate_total(text) is 'About how many objects the bucket holds, in a few milliseconds at any size; for progress alone.';

revoke all on function
  image_sync.samples(uuid, text),
  image_sync.summarize(uuid),
  image_sync.run_document(uuid),
  image_sync.estimate_total(text)
from public;
grant execute on function
  image_sync.samples(uuid, text),
  image_sync.summarize(uuid),
  image_sync.run_document(uuid),
  image_sync.estimate_total(text)
to service_role;
