-- upgrade
-- From 1.x our functions and views go first and come anew behind the steps: no step meets a function that uses the row type of the table that it
-- changes, which Postgres refuses since the security releases of November 2026. public.part_register stays, with what its readers were
-- granted; it calls none of them.
do $$
declare
  v_objects record;
  v_others text;
begin
  select
    string_agg(o.id::regprocedure::text, ', ') filter (where o.class = 'pg_proc'::regclass) as functions,
    string_agg(o.id::regclass::text, ', ') filter (where o.class = 'pg_class'::regclass) as views,
    array_agg(o.id) as ids
  into v_objects
  from (
    select 'pg_proc'::regclass as class, p.oid as id
    from pg_catalog.pg_proc p
    where p.pronamespace = 'image_sync'::regnamespace
      or p.pronamespace = 'public'::regnamespace
        and p.proname like 'image\_sync\_%'
    union all
    select 'pg_class', c.oid
    from pg_catalog.pg_class c
    where c.relnamespace = 'image_sync'::regnamespace
      and c.relkind = 'v'
  ) as o;

  -- A view or a policy of the project's own that uses one of them would go too.
  select string_agg(distinct pg_describe_object(coalesce(w.class, d.classid), coalesce(w.id, d.objid), 0), ', ')
  into v_others
  from pg_catalog.pg_depend d
  left join lateral (
    select 'pg_class'::regclass as class, r.ev_class as id
    from pg_catalog.pg_rewrite r
    where d.classid = 'pg_rewrite'::regclass
      and r.oid = d.objid
  ) as w
    on true
  where d.refobjid = any (v_objects.ids)
    and d.refclassid in ('pg_proc'::regclass, 'pg_class'::regclass)
    and d.classid in ('pg_proc'::regclass, 'pg_rewrite'::regclass, 'pg_attrdef'::regclass, 'pg_constraint'::regclass, 'pg_policy'::regclass, 'pg_trigger'::regclass, 'pg_class'::regclass)
    and coalesce(w.id, d.objid) <> all (v_objects.ids);
  if v_others is not null then
    raise exception E'Cannot upgrade image-sync: % uses a function or view of the schema image_sync\nDrop it first, and make it again afterwards', v_others
      using errcode = 'dependent_objects_still_exist',
        hint = 'Nothing has been changed.';
  end if;

  execute coalesce(format('drop view %s cascade', v_objects.views), '');
  -- What the views took along with them is gone already.
  select string_agg(p.oid::regprocedure::text, ', ')
  into v_objects.functions
  from pg_catalog.pg_proc p
  where p.oid = any (v_objects.ids);
  execute coalesce(format('drop function %s cascade', v_objects.functions), '');
end;
$$;
