-- set
-- Since when a finding stands. What runs measure is told by them: each keeps in its report, under "since", which findings it saw and
-- when the first of an unbroken line of runs saw them. What is asked at the moment of reading has the moment that its fact gives, or
-- none: where nobody can know, nothing is said.

-- Runs before version 1.1.0 kept no such thing: what they saw already, nobody knows since when, so the run after them notes it with
-- null. It is told once it has gone and come again.
create or replace function image_sync.note_since(p_run image_sync.runs)
returns void language plpgsql set search_path = '' as $$
begin
  update image_sync.runs r
  set report = r.report || jsonb_build_object('since', (
    select coalesce(jsonb_object_agg(f.code, case
      when before.since = 'null' then before.since
      else coalesce(before.since -> f.code, to_jsonb(p_run.finished_at))
    end), '{}')
    -- Without what is asked of the bucket, the table and the schedule: a run that ends waits for nobody.
    from image_sync.findings(image_sync.measured_facts(p_run.bucket_id) || '{"live": {}, "schedule": {"missing_jobs": []}}') as f
    left join (
      select coalesce(o.report -> 'since', 'null') as since
      from image_sync.runs o
      where o.bucket_id = p_run.bucket_id and o.report is not null and o.id <> p_run.id
      order by o.finished_at desc limit 1
    ) as before on true
  ))
  where r.id = p_run.id;
exception
  when others then
    -- A run that did its work does not fail over this; the next one then cannot tell either.
    return;
end;
$$;

comment on function image_sync.note_since(image_sync.runs) is
  'Keeps in the report of a run that measured, under since, the codes of the findings that it saw, each with the end of the first run of those in a row that saw it; null where that is not known.';

-- When the last syncs of a bucket began to end as the newest did, without a break: by the finding that says so. Syncs that went well
-- say nothing, and cost nothing.
create or replace function image_sync.failing_since(p_bucket_id text, p_last_sync jsonb)
returns jsonb language plpgsql stable set search_path = '' as $$
begin
  if coalesce(p_last_sync ->> 'state', 'succeeded') = 'succeeded' then
    return '{}'::jsonb;
  end if;
  return (
    select coalesce(jsonb_object_agg(t.code, t.since) filter (where t.since is not null), '{}')
    from (values
      ('last_run_failed', array['failed'], null),
      ('last_run_partial', array['partial'], null),
      ('signing_failed', null, array['signing_failed', 'signing_impossible', 'dead_chunks']),
      ('bucket_missing', null, array['bucket_missing']),
      ('listing_failed', null, array['listing_failed'])
    ) as e (code, outcomes, reasons)
    cross join lateral (
      select e.code, min(r.finished_at) as since
      from image_sync.runs r
      where r.bucket_id = p_bucket_id
        and r.mode = 'sync'
        and r.finished_at > coalesce((
          select max(o.finished_at)
          from image_sync.runs o
          where o.bucket_id = p_bucket_id
            and o.mode = 'sync'
            and o.finished_at is not null
            and coalesce(o.outcome <> all (e.outcomes), not coalesce(o.stop_reason = any (e.reasons), false))
        ), '-infinity')
    ) as t
  );
end;
$$;

comment on function image_sync.failing_since(text, jsonb) is
  'For the findings about how the last sync ended: the end of the first sync of those in a row that ended so. {code: time}; empty where it went well.';

-- Since when what the facts of a report say is so: {code: time}. A code that is not in it: nobody knows, or nothing is found.
create or replace function image_sync.since_of(p_facts jsonb)
returns jsonb language plpgsql stable set search_path = '' as $$
declare
  v_call constant jsonb := p_facts -> 'schedule' -> 'calls' -> (p_facts ->> 'bucket_id');
begin
  return coalesce(p_facts #> '{measured,since}', '{}')
    || image_sync.failing_since(p_facts ->> 'bucket_id', p_facts -> 'last_sync')
    || jsonb_strip_nulls(jsonb_build_object(
      'listing_incomplete', p_facts #> '{last_listing,finished_at}',
      'run_stands_still', p_facts #> '{live,standing_run,since}',
      'calls_unanswered', v_call -> 'moved_at',
      'last_call_failed', v_call -> 'kicked_at',
      'address_stale', v_call -> 'kicked_at',
      'job_failed', (
        select min((j.job ->> 'at')::timestamptz)
        from jsonb_array_elements(image_sync.standing_failures(p_facts)) as j (job)
      ),
      -- When the first night should have come that did not.
      'no_recent_sync', case when (p_facts #>> '{live,nightly}')::boolean then image_sync.next_night(p_facts, (p_facts #>> '{live,last_success_at}')::timestamptz) end,
      -- What a run counted, and what has died since then.
      'expired', case
        when (p_facts #>> '{measured,expired_with_object}')::bigint = 0 then p_facts #> '{measured,records,soonest_expiry}'
      end
    ));
end;
$$;

comment on function image_sync.since_of(jsonb) is
  'Of the facts of a report: since when each finding stands, as {code: time}, as far as runs or the facts themselves tell.';
