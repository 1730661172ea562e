-- set
-- What runs measured, by day: when URLs die, how the nights went, how the bucket grew. Read from what runs kept, never by scanning.

-- URLs by the day (GMT) on which they die, as the newest measurement has it.
-- Returns {"expiry": {"measured_at", "renew_before_seconds", "next_run_at", "unsigned", "expired", "days": [{"day", "urls"}]}}.
create or replace function public.image_sync_expiry(p_bucket text)
returns jsonb language sql stable set search_path = '' as $$
  select coalesce(image_sync.unknown_bucket(p_bucket, 'tell when the URLs of bucket %s die'), (
    select jsonb_build_object('expiry', jsonb_build_object(
      'measured_at', m.report -> 'measured_at',
      'renew_before_seconds', extract(epoch from s.renew_before)::bigint,
      'next_run_at', case when s.nightly then image_sync.schedule_facts() -> 'next_run_at' end,
      'unsigned', m.report #> '{records,unsigned}',
      'expired', m.report #> '{records,expired}',
      'days', (
        select coalesce(jsonb_agg(jsonb_build_object('day', e.day, 'urls', e.urls::bigint) order by e.day), '[]')
        from jsonb_each_text(coalesce(m.report -> 'expiry', '{}')) as e (day, urls)
      )
    ))
    from image_sync.settings s
    left join lateral (
      select r.report
      from image_sync.runs r
      where r.bucket_id = p_bucket and r.mode in ('sync', 'analyze', 'verify') and r.report ? 'expiry'
      order by r.finished_at desc limit 1
    ) as m on true
    where s.bucket_id = p_bucket
  ))
$$;

comment on function public.image_sync_expiry(text) is 'How many URLs die on which day (GMT), as the chunks of the newest run noted it. Problem: unknown_bucket (404).';

-- The days of a bucket's history on which something ran, oldest first, days (GMT) up to p_days back.
-- Returns {"history": {"from", "to", "days": [{"day", "runs": {outcome: number}, "night", "seconds", "inserted", "signed", "failed",
-- "removed", "objects", "bytes", "images", "records"}]}}: night is how the day's last scheduled sync ended, the sizes are those of its
-- last measurement.
create or replace function public.image_sync_history(p_bucket text, p_days integer default 90)
returns jsonb language plpgsql stable set search_path = '' as $$
declare
  v_to constant date := (now() at time zone 'UTC')::date;
  v_from constant date := v_to - (least(greatest(coalesce(p_days, 90), 1), 366) - 1);
begin
  return coalesce(image_sync.unknown_bucket(p_bucket, 'show the history of bucket %s'), (
    with runs as (
      select r.id, r.mode, r.trigger, r.outcome, r.started_at, r.finished_at, r.report is not null as has_report, (r.started_at at time zone 'UTC')::date as day
      from image_sync.runs r
      where r.bucket_id = p_bucket
        and r.mode = any ('{sync,analyze,verify,cleanup,restore}')
        and r.started_at >= v_from::timestamp at time zone 'UTC'
        and r.finished_at is not null
      -- The newest, should somebody start one every minute.
      order by r.started_at desc limit 3000
    ), counted as (
      select q.day, jsonb_object_agg(q.outcome, q.number) as runs
      from (select r.day, r.outcome, count(*) as number from runs r group by r.day, r.outcome) as q
      group by q.day
    ), syncs as (
      select distinct on (r.day) r.* from runs r where r.mode = 'sync' order by r.day, (r.trigger = 'schedule') desc, r.started_at desc
    ), measured as (
      select distinct on (r.day) r.* from runs r where r.has_report and r.mode in ('sync', 'analyze') order by r.day, r.finished_at desc
    )
    select jsonb_build_object('history', jsonb_build_object('from', v_from, 'to', v_to, 'days', coalesce(jsonb_agg(jsonb_strip_nulls(jsonb_build_object(
      'day', c.day,
      'runs', c.runs,
      'night', case when s.trigger = 'schedule' then s.outcome end,
      'sync', s.outcome,
      'seconds', round(extract(epoch from s.finished_at - s.started_at), 1),
      'inserted', w.summary #> '{totals,inserted}',
      'signed', w.summary #> '{totals,signed}',
      'failed', w.summary #> '{totals,failed}',
      'objects', g.report #> '{bucket,objects}',
      'images', g.report #> '{bucket,images}',
      'bytes', g.report #> '{bucket,bytes}',
      'records', g.report #> '{records,total}'
    )) order by c.day), '[]')))
    from counted c
    left join syncs s on s.day = c.day
    left join image_sync.runs w on w.id = s.id
    left join measured m on m.day = c.day
    left join image_sync.runs g on g.id = m.id
  ));
end;
$$;

comment on function public.image_sync_history(text, integer) is 'The days (GMT) on which runs of a bucket ended, how they went and what they measured, up to 366 days back. Problem: unknown_bucket (404).';
