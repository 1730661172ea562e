-- The real pg_cron, installed and granted as the hosted platform does.

create extension pg_cron with schema pg_catalog;
revoke all on cron.job, cron.job_run_details from public;
grant usage on schema cron to postgres with grant option;
grant select on cron.job to postgres with grant option;
grant all on cron.job_run_details to postgres with grant option;
grant all on all sequences in schema cron to postgres with grant option;
grant all on all functions in schema cron to postgres with grant option;
