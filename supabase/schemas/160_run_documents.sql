-- set
-- A run as the world sees it: what its chunks add up to, how far it is, and how it ends.

-- The first 20 names that a run's chunks kept under a key of their facts.
create or replace function image_sync.samples(p_run uuid, p_key text)
returns jsonb language plpgsql stable set search_path = '' as $$
begin
  return (
    -- A name may have 1,024 characters and more: a sample is for the eye.
    select coalesce(jsonb_agg(case when length(s.name) > 300 then left(s.name, 299) || '…' else s.name end), '[]')
    from (
      select name #>> '{}' as name
      from image_sync.chunks c
      cross join lateral jsonb_array_elements(c.facts -> p_key) as name
      where c.run_id = p_run and c.facts ? p_key
      order by c.number limit 20
    ) as s
  );
end;
$$;

comment on function image_sync.samples(uuid, text) is 'Up to 20 sample names of a kind, of 300 characters at most, from the chunks of a run in key order.';

-- The same of the items that failed with a code.
create or replace function image_sync.problem_samples(p_run uuid, p_code text)
returns jsonb language plpgsql stable set search_path = '' as $$
begin
  return (
    select coalesce(jsonb_agg(case when length(s.name) > 300 then left(s.name, 299) || '…' else s.name end), '[]')
    from (
      select problem ->> 'name' as name
      from image_sync.chunks c
      cross join lateral jsonb_array_elements(c.problems) as problem
      where c.run_id = p_run and c.problems <> '[]' and problem ->> 'code' = p_code
      order by c.number limit 20
    ) as s
  );
end;
$$;

comment on function image_sync.problem_samples(uuid, text) is 'Up to 20 names of items that failed with this code, of 300 characters at most, from the chunks of a run in key order.';

-- The ledger of a run: those of its chunks, added up.
create or replace function image_sync.run_ledger(p_run uuid)
returns jsonb
language plpgsql
stable
set search_path = ''
-- The chunks of one run, by their key, whatever the statistics said when this session planned it.
set enable_seqscan = 'off'
as $$
begin
  return (
    select coalesce(jsonb_object_agg(t.name, t.count), '{}')
    from (
      select e.key as name, sum(e.value::bigint) as count
      from image_sync.chunks c
      cross join lateral jsonb_each_text(c.ledger) as e
      where c.run_id = p_run
      group by 1
    ) as t
  );
end;
$$;

comment on function image_sync.run_ledger(uuid) is 'What the ledgers of a run''s chunks add up to, counter by counter.';

-- Whether every object and every name of a chunk has one end.
create or replace function image_sync.is_balanced(p_ledger jsonb, p_is_closed boolean)
returns boolean language sql immutable set search_path = '' as $$
  select image_sync.count_of(p_ledger, 'listed') = image_sync.count_of(p_ledger, 'images') + image_sync.count_of(p_ledger, 'not_images')
    and image_sync.count_of(p_ledger, 'images') = image_sync.count_of(p_ledger, 'recorded') + image_sync.count_of(p_ledger, 'inserted') + image_sync.count_of(p_ledger, 'moved') + image_sync.count_of(p_ledger, 'unmoved') + image_sync.count_of(p_ledger, 'collided') + image_sync.count_of(p_ledger, 'vanished') + image_sync.count_of(p_ledger, 'missing') + image_sync.count_of(p_ledger, 'unsettled')
    and (not p_is_closed or image_sync.count_of(p_ledger, 'to_sign') = image_sync.count_of(p_ledger, 'signed') + image_sync.count_of(p_ledger, 'withdrawn') + image_sync.count_of(p_ledger, 'failed') + image_sync.count_of(p_ledger, 'held') and image_sync.count_of(p_ledger, 'to_open') = image_sync.count_of(p_ledger, 'shown') + image_sync.count_of(p_ledger, 'broken'))
$$;

comment on function image_sync.is_balanced(jsonb, boolean) is
  'Whether a chunk''s ledger says of each object what it is, and, once the chunk is closed, of each name that had to be signed or opened what became of it.';

-- The totals of a run, from its chunks. Kept in runs.summary when it finishes, because chunks are pruned.
create or replace function image_sync.summarize(p_run uuid)
returns jsonb language plpgsql stable set search_path = '' set enable_seqscan = 'off' as $$
declare
  v_ledger constant jsonb := image_sync.run_ledger(p_run);
begin
  return (
    select jsonb_build_object(
      'chunks', count(*),
      'dead_chunks', count(*) filter (where c.state = 'dead'),
      'invocations', count(distinct c.worker_id),
      'done', coalesce(sum(greatest(
        image_sync.count_of(c.ledger, 'listed'),
        image_sync.count_of(c.ledger, 'removed') + image_sync.count_of(c.ledger, 'restored') + image_sync.count_of(c.ledger, 'skipped')
      )) filter (where c.state in ('done', 'dead')), 0),
      'balanced', coalesce(bool_and(image_sync.is_balanced(c.ledger, c.state in ('done', 'dead'))), true),
      'totals', (
        select jsonb_object_agg(n.name, image_sync.count_of(v_ledger, n.name))
        from unnest('{listed,images,not_images,recorded,inserted,moved,unmoved,collided,vanished,missing,to_sign,signed,withdrawn,failed,held,shown,orphaned,records,removed,restored,skipped,storage_calls,retries}'::text[]) as n (name)
      ) || jsonb_build_object(
        'opened', image_sync.count_of(v_ledger, 'shown') + image_sync.count_of(v_ledger, 'broken'),
        'rows_written', (
          select sum(image_sync.count_of(v_ledger, n.name))
          from unnest('{inserted,updated,linked,removed,restored}'::text[]) as n (name)
        ) + case
          when (
            select r.mode = 'sync'
            from image_sync.runs r
            where r.id = p_run
          ) then image_sync.count_of(v_ledger, 'moved')
          else 0
        end
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
          where d.run_id = p_run and (d.problems <> '[]' or d.state = 'dead')
          order by d.number limit 20
        ) as p
      )
    )
    from image_sync.chunks c
    where c.run_id = p_run
  );
end;
$$;

comment on function image_sync.summarize(uuid) is
  'What a run''s chunks add up to: chunks, invocations, whether the ledger balances in every chunk, totals, and up to 20 named problems.';

-- The run as GET answers it. Never a URL, a key or a lease.
create or replace function image_sync.run_document(p_run uuid)
returns jsonb language plpgsql stable set search_path = '' as $$
declare
  v_run image_sync.runs;
  v_summary jsonb;
  v_seconds numeric;
  v_done bigint;
  v_total bigint;
  v_rate numeric;
begin
  select r.*
  into v_run
  from image_sync.runs r
  where r.id = p_run;
  if not found then
    return null;
  end if;

  v_summary := coalesce(v_run.summary, image_sync.summarize(p_run));
  v_seconds := extract(epoch from coalesce(v_run.finished_at, now()) - v_run.started_at);
  v_done := (v_summary ->> 'done')::bigint;
  v_total := case when v_run.exhausted and v_run.finished_at is not null then v_done else greatest(v_run.total_estimate, v_done) end;
  v_rate := round(v_done / greatest(v_seconds, 0.001), 1);

  return jsonb_build_object(
    'id', v_run.id,
    'bucket_id', v_run.bucket_id,
    'mode', v_run.mode,
    'trigger', v_run.trigger,
    'options', v_run.options,
    'plan_id', v_run.plan_id,
    'state', coalesce(v_run.outcome, 'open'),
    'stop_reason', v_run.stop_reason,
    'started_at', v_run.started_at,
    'moved_at', v_run.moved_at,
    'idle', v_run.finished_at is null and image_sync.is_idle(v_run),
    'finished_at', v_run.finished_at,
    'duration_seconds', round(v_seconds, 3),
    'progress', jsonb_build_object(
      'done', v_done,
      'total_estimate', v_total,
      'percent', case
        when v_run.finished_at is not null and v_run.exhausted then 100
        when v_total > 0 then least(99, floor(100.0 * v_done / v_total))
        else 0
      end,
      'rate_per_second', v_rate,
      'eta_seconds', case
        when v_run.finished_at is not null then 0
        when v_rate > 0 then ceil((v_total - v_done) / v_rate)
      end
    ),
    'totals', v_summary -> 'totals',
    'chunks', v_summary -> 'chunks',
    'invocations', v_summary -> 'invocations',
    'balanced', v_summary -> 'balanced',
    'error', v_run.error,
    'problems', v_summary -> 'problems'
  ) || case
    -- What a dry run would remove: the list itself stays in its chunks.
    when v_run.mode = 'cleanup' and v_run.plan_id is null then jsonb_build_object('plan', jsonb_build_object(
      'count', v_summary #> '{totals,orphaned}', 'samples', v_summary -> 'orphaned_samples'
    ))
    else '{}'
  end;
end;
$$;

comment on function image_sync.run_document(uuid) is 'One run as JSON: identity, state, progress, totals, ledger, error and problems; null for an unknown id.';

-- How many objects the run can expect: what the last run of the bucket counted, else a count that gives up at 100,000 and then
-- trusts the statistics of the table.
create or replace function image_sync.estimate_total(p_bucket_id text)
returns bigint language plpgsql stable set search_path = '' as $$
declare
  v_total bigint;
begin
  select (r.summary #>> '{totals,listed}')::bigint
  into v_total
  from image_sync.runs r
  where r.bucket_id = p_bucket_id and r.mode in ('sync', 'analyze', 'verify') and r.outcome in ('succeeded', 'partial')
  order by r.started_at desc limit 1;
  if v_total > 0 then
    return v_total;
  end if;

  select count(*)
  into v_total
  from (
    select
    from storage.objects o
    where o.bucket_id = p_bucket_id
    order by o.name collate "C" limit 100000
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
