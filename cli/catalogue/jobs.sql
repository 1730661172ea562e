-- The jobs of pg_cron that call a function of ours, as rows of the catalogue: by what they do, whatever they are called and whenever.
select
  'job' as kind,
  'select ' || c.calls as name,
  '' as definition,
  null as query,
  format('select cron.unschedule(j.jobid) from cron.job j where j.jobname = %1$L; select cron.schedule(%1$L, %2$L, %3$L);', min(j.jobname), min(j.schedule), 'select ' || c.calls)
    as creation,
  null as correction
from cron.job j
cross join lateral (
  select substring(j.command from 'image_sync\.\w+\(\)') as calls
) as c
where j.active
  and j.database = current_database()
  and c.calls is not null
group by c.calls
order by 2;
