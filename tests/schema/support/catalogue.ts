import type { Sql, TransactionSql } from "postgres";

/** Everything of ours that the catalogue holds, by name and without oids: what two installations are compared by. */
export async function readOurCatalogue(tx: Sql | TransactionSql): Promise<readonly string[]> {
  const rows = await tx<{ thing: string }[]>`
    with ours as (
      select c.oid, c.relkind, array(select a::text from unnest(c.relacl) as a order by 1) as relacl, c.reloptions, c.relrowsecurity, c.oid::regclass::text as name
      from pg_catalog.pg_class c
      where c.relnamespace = 'image_sync'::regnamespace
        or c.oid = 'public.part_images'::regclass
        or (c.relnamespace = 'public'::regnamespace and c.relname like 'part\\_%')
    ), routines as (
      select p.*, p.oid::regprocedure::text as name
      from pg_catalog.pg_proc p
      where p.pronamespace = 'image_sync'::regnamespace or (p.pronamespace = 'public'::regnamespace and p.proname like 'image\\_sync\\_%')
    )
    select format('%s %s acl %s options %s rls %s %s', o.relkind, o.name, o.relacl, o.reloptions, o.relrowsecurity, obj_description(o.oid, 'pg_class')) as thing
    from ours o
    union all
    select format('column %s.%s %s %s not null %s default %s acl %s %s', o.name, a.attname, format_type(a.atttypid, a.atttypmod), a.attidentity, a.attnotnull,
      pg_get_expr(d.adbin, d.adrelid), a.attacl, col_description(o.oid, a.attnum))
    from ours o
    join pg_catalog.pg_attribute a on a.attrelid = o.oid and a.attnum > 0 and not a.attisdropped
    left join pg_catalog.pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
    where o.relkind <> 'i'
    union all
    select format('view %s %s', o.name, pg_get_viewdef(o.oid)) from ours o where o.relkind = 'v'
    union all
    select format('index %s', pg_get_indexdef(o.oid)) from ours o where o.relkind = 'i'
    union all
    select format('constraint %s %s %s %s', o.name, c.conname, pg_get_constraintdef(c.oid), obj_description(c.oid, 'pg_constraint')) from ours o join pg_catalog.pg_constraint c on c.conrelid = o.oid
    union all
    select format('trigger %s', pg_get_triggerdef(t.oid)) from ours o join pg_catalog.pg_trigger t on t.tgrelid = o.oid where not t.tgisinternal
    union all
    select format('policy %s %s', o.name, p.polname) from ours o join pg_catalog.pg_policy p on p.polrelid = o.oid
    union all
    select format('function acl %s %s %s', r.proacl, obj_description(r.oid, 'pg_proc'), pg_get_functiondef(r.oid)) from routines r
    union all
    select format('job %s %s %s', j.jobname, j.schedule, j.command) from cron.job j where j.jobname like 'image-sync-%'
    union all
    select format('schema %s %s', n.nspname, n.nspacl) from pg_catalog.pg_namespace n where n.nspname like 'image\\_sync%'
    order by 1`;
  return rows.map(({ thing }) => thing);
}
