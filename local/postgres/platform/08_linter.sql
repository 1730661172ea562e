-- What "supabase db lint" checks function bodies with, where the server has it.

do $$
begin
  if exists (select from pg_catalog.pg_available_extensions where name = 'plpgsql_check') then
    create extension plpgsql_check with schema extensions;
  end if;
end
$$;
