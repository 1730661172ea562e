-- set
-- Who may do what with our functions, in one place. Default privileges of a project (older ones grant everything in public to anon and
-- authenticated) reach what is created, and revoking from public does not take them back: so all of it is revoked first.
revoke all on all tables in schema image_sync from public, anon, authenticated;
revoke all on all sequences in schema image_sync from public, anon, authenticated;

-- service_role, as which the function calls, may call all of them but those of the jobs, which run as their owner. Nothing that is called
-- from outside compiles its statements, as a server with jit on would, for seconds: each of them is small, and costs much only where
-- the planner was told that a way is off.
do $$
declare
  v_jobs constant text[] := '{run_nightly,watchdog,prune_history}';
  v_parts_of_jobs constant text[] := '{refresh_objects_view,start_night}';
  v_function record;
begin
  for v_function in
    select p.oid::regprocedure as name, p.proname::text, p.pronamespace = 'public'::regnamespace as is_public
    from pg_catalog.pg_proc p
    where p.pronamespace = 'image_sync'::regnamespace
      or p.pronamespace = 'public'::regnamespace
        and p.proname like 'image\_sync\_%'
  loop
    execute format('revoke all on function %s from public, anon, authenticated, service_role', v_function.name);
    if v_function.proname <> all (v_jobs || v_parts_of_jobs) then
      execute format('grant execute on function %s to service_role', v_function.name);
    end if;
    if v_function.is_public or v_function.proname = any (v_jobs) then
      execute format('alter function %s set jit = off', v_function.name);
    end if;
  end loop;
end;
$$;
