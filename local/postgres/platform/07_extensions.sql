-- Registers the stand-ins as installed, so that "create extension if not exists" in a migration finds them.

set allow_system_table_mods = on;

insert into pg_catalog.pg_extension (oid, extname, extowner, extnamespace, extrelocatable, extversion)
select
  (select max(oid::bigint) from pg_catalog.pg_extension)::oid::bigint + stand_in.place,
  stand_in.name,
  'supabase_admin'::regrole,
  stand_in.schema::regnamespace,
  false,
  stand_in.version
from (
  values
    (1, 'pg_cron', 'pg_catalog', '1.4-1'),
    (2, 'pg_net', 'extensions', '0.20.0'),
    (3, 'supabase_vault', 'vault', '0.3.1')
) as stand_in (place, name, schema, version)
where not exists (select from pg_catalog.pg_extension as present where present.extname = stand_in.name);

reset allow_system_table_mods;
