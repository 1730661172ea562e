-- Schemas that every project has. Since 30 October 2026 nothing in public is granted to the API roles unless a
-- migration does it; that anybody may execute a new function is Postgres' own default, and stays.

grant usage on schema public to anon, authenticated, service_role;

create schema extensions authorization postgres;
grant usage on schema extensions to anon, authenticated, service_role;
create extension if not exists pgcrypto with schema extensions;
create extension if not exists "uuid-ossp" with schema extensions;

-- What policies refer to. Signing in is not part of this stack.
create schema auth;
grant usage on schema auth to postgres, anon, authenticated, service_role;

create function auth.jwt() returns jsonb
language sql stable set search_path = ''
as $$ select nullif(current_setting('request.jwt.claims', true), '')::jsonb $$;

create function auth.uid() returns uuid
language sql stable set search_path = ''
as $$ select (auth.jwt() ->> 'sub')::uuid $$;

create function auth.role() returns text
language sql stable set search_path = ''
as $$ select auth.jwt() ->> 'role' $$;

-- The Data API learns of changed functions by itself.
create function extensions.notify_data_api() returns event_trigger
language plpgsql set search_path = ''
as $$
begin
  notify pgrst, 'reload schema';
end
$$;

create event trigger notify_data_api_ddl on ddl_command_end execute function extensions.notify_data_api();
create event trigger notify_data_api_drop on sql_drop execute function extensions.notify_data_api();
