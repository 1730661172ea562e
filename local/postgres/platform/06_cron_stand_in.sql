-- pg_cron 1.4 where the server has none: its tables and functions; local/cron/scheduler.ts runs the jobs.

create schema cron;

create sequence cron.jobid_seq;
create sequence cron.runid_seq;
create table cron.job (
  jobid bigint not null default nextval('cron.jobid_seq'),
  schedule text not null,
  command text not null,
  nodename text not null default 'localhost',
  nodeport integer not null default inet_server_port(),
  database text not null default current_database(),
  username text not null default current_user,
  active boolean not null default true,
  jobname name,
  constraint job_pkey primary key (jobid),
  constraint jobname_username_uniq unique (jobname, username)
);
alter table cron.job enable row level security;
create policy cron_job_policy on cron.job using (username = current_user);

create table cron.job_run_details (
  jobid bigint,
  runid bigint not null default nextval('cron.runid_seq'),
  job_pid integer,
  database text,
  username text,
  command text,
  status text,
  return_message text,
  start_time timestamptz,
  end_time timestamptz,
  constraint job_run_details_pkey primary key (runid)
);
alter table cron.job_run_details enable row level security;
create policy cron_job_run_details_policy on cron.job_run_details using (username = current_user);

-- One field: a list of values, ranges and steps within bounds, or of the names of months and days.
create function cron._field_is_valid(field text, lowest integer, highest integer, names text[]) returns boolean
language plpgsql immutable set search_path = ''
as $$
declare
  item text;
  parts text[];
begin
  for item in select unnest(string_to_array(lower(field), ',')) loop
    parts := regexp_match(item, '^(?:\*|(\d{1,2}|[a-z]{3})(?:-(\d{1,2}|[a-z]{3}))?)(?:/(\d{1,2}))?$');
    if parts is null or parts[3]::integer = 0 then
      return false;
    end if;
    for bound in 1..2 loop
      if parts[bound] ~ '^\d' and parts[bound]::integer not between lowest and highest then
        return false;
      elsif parts[bound] ~ '^[a-z]' and not parts[bound] = any (names) then
        return false;
      end if;
    end loop;
  end loop;
  return field <> '';
end
$$;

create function cron._check_schedule(schedule text) returns void
language plpgsql immutable set search_path = ''
as $$
declare
  fields text[] := regexp_split_to_array(trim(schedule), '\s+');
begin
  if lower(schedule) in ('@yearly', '@annually', '@monthly', '@weekly', '@daily', '@midnight', '@hourly') then
    return;
  end if;
  if cardinality(fields) is distinct from 5
    or not cron._field_is_valid(fields[1], 0, 59, '{}')
    or not cron._field_is_valid(fields[2], 0, 23, '{}')
    or not cron._field_is_valid(fields[3], 1, 31, '{}')
    or not cron._field_is_valid(fields[4], 1, 12, '{jan,feb,mar,apr,may,jun,jul,aug,sep,oct,nov,dec}')
    or not cron._field_is_valid(fields[5], 0, 7, '{sun,mon,tue,wed,thu,fri,sat}')
  then
    raise exception 'invalid schedule: %', schedule;
  end if;
end
$$;

-- The jobs belong to the caller, whom security definer would hide: session_user's stand-in is passed along.
create function cron._put_job(job_name text, job_schedule text, job_command text, owner name) returns bigint
language plpgsql security definer set search_path = ''
as $$
declare
  id bigint;
begin
  perform cron._check_schedule(job_schedule);
  insert into cron.job (jobname, schedule, command, username)
  values (job_name, job_schedule, job_command, owner)
  on conflict on constraint jobname_username_uniq do update
  set schedule = excluded.schedule, command = excluded.command
  returning jobid into id;
  return id;
end
$$;

create function cron.schedule(job_name text, schedule text, command text) returns bigint
language sql set search_path = ''
as $$ select cron._put_job(job_name, schedule, command, current_user) $$;

create function cron.schedule(schedule text, command text) returns bigint
language sql strict set search_path = ''
as $$ select cron._put_job(null, schedule, command, current_user) $$;

create function cron._remove_job(job_id bigint, owner name) returns boolean
language plpgsql security definer set search_path = ''
as $$
begin
  delete from cron.job where jobid = job_id and username = owner;
  return true;
end
$$;

create function cron.unschedule(job_id bigint) returns boolean
language plpgsql strict set search_path = ''
as $$
begin
  if not exists (select from cron.job where jobid = job_id and username = current_user) then
    raise exception 'could not find valid entry for job ''%''', job_id;
  end if;
  return cron._remove_job(job_id, current_user);
end
$$;

create function cron.unschedule(job_name text) returns boolean
language plpgsql strict set search_path = ''
as $$
declare
  id bigint := (select jobid from cron.job where jobname = job_name and username = current_user);
begin
  if id is null then
    raise exception 'could not find valid entry for job ''%''', job_name;
  end if;
  return cron._remove_job(id, current_user);
end
$$;

revoke all on all functions in schema cron from public;
grant usage on schema cron to postgres with grant option;
grant select on cron.job to postgres with grant option;
grant select, delete on cron.job_run_details to postgres with grant option;
grant select on all sequences in schema cron to public;
grant execute on all functions in schema cron to postgres with grant option;
