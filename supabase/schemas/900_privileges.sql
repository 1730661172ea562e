-- set
-- Default privileges of a project (older ones grant everything in public to anon and authenticated) reach what is created here, and
-- revoking from public does not take them back. So what the files above grant is all there is, whatever a project grants by itself.
revoke all on all tables in schema image_sync from public, anon, authenticated;
revoke all on all sequences in schema image_sync from public, anon, authenticated;
revoke all on all functions in schema image_sync from public, anon, authenticated;

-- And nothing that is called from outside compiles its statements, as a server with jit on would, for seconds: each of them is small,
-- and costs much only where the planner was told that a way is off.
do $$
declare
  v_function regprocedure;
begin
  for v_function in
    select p.oid::regprocedure
    from pg_catalog.pg_proc p
    where p.pronamespace = 'public'::regnamespace
      and p.proname like 'image\_sync\_%'
  loop
    execute format('revoke all on function %s from public, anon, authenticated', v_function);
    execute format('alter function %s set jit = off', v_function);
  end loop;
  alter function image_sync.run_nightly() set jit = off;
  alter function image_sync.watchdog() set jit = off;
  alter function image_sync.prune_history() set jit = off;
end;
$$;
