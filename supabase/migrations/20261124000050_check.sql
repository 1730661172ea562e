-- Whether an existing public.part_images can be adopted, and whether our names are free: asked before anything is changed, so that a
-- refusal leaves the database as it was. Creates nothing. Each refusal says what to do; then run the migrations again.
do $$
declare
  v_table constant regclass := to_regclass('public.part_images');
  v_kind "char";
  v_column record;
  v_names text;
  v_bucket text := quote_literal('part-images');
  v_referenced text;
  v_query text;
  v_rows text;
  v_count bigint;
begin
  if to_regnamespace('image_sync') is not null then
    raise exception 'Cannot install image-sync: there is a schema image_sync already'
      using errcode = 'duplicate_schema',
        hint = 'If it is image-sync''s own, remove that first (docs/operations.md, Uninstalling); if it is somebody else''s, rename it. Then run the migration again.';
  end if;
  select string_agg(distinct format('public.%I', p.proname), ', ')
  into v_names
  from pg_catalog.pg_proc p
  where p.pronamespace = 'public'::regnamespace
    and p.proname ~ '^image_sync_(announce|start|advance|end_attempt|finish|hand_off|cancel|run|report|file)$';
  if v_names is not null then
    raise exception 'Cannot install image-sync: functions of its names exist: %', v_names
      using errcode = 'duplicate_function', hint = 'Drop or rename them, then run the migration again.';
  end if;
  if v_table is null then
    return;
  end if;

  select c.relkind
  into v_kind
  from pg_catalog.pg_class c
  where c.oid = v_table;
  if v_kind = 'p' or exists (
    select
    from pg_catalog.pg_inherits h
    where v_table in (h.inhrelid, h.inhparent)
  ) then
    raise exception 'Cannot adopt public.part_images: it is partitioned, or inherits, or is inherited from'
      using errcode = 'wrong_object_type',
        hint = 'Copy its rows into a plain table: create table public.part_images_plain (like public.part_images including all); insert into public.part_images_plain select * from public.part_images; Then rename the two, and run the migration again.';
  elsif v_kind <> 'r' then
    raise exception 'Cannot adopt public.part_images: it is not a table'
      using errcode = 'wrong_object_type',
        hint = 'Rename the view or foreign table of that name, then run the migration again.';
  end if;

  for v_column in
    select a.attname, format_type(a.atttypid, a.atttypmod) as type, a.atttypid, a.attgenerated, a.attnum, w.types, w.to_type
    from pg_catalog.pg_attribute a
    join (values
      ('part_number', '{text,varchar,bpchar}'::regtype[], 'text'),
      ('file_name', '{text,varchar,bpchar}'::regtype[], 'text'),
      ('url', '{text,varchar,bpchar}'::regtype[], 'text'),
      ('signed_url', '{text,varchar,bpchar}'::regtype[], 'text'),
      ('bucket_id', '{text,varchar,bpchar}'::regtype[], 'text'),
      ('signed_url_expires_at', '{timestamptz}'::regtype[], 'timestamptz')
    ) as w (name, types, to_type) on w.name = a.attname
    where a.attrelid = v_table
      and not a.attisdropped
    order by a.attnum
  loop
    if v_column.attgenerated <> '' then
      raise exception 'Cannot adopt public.part_images: column % is generated', v_column.attname
        using errcode = 'datatype_mismatch',
          hint = format('Run: alter table public.part_images alter column %I drop expression; then run the migration again.', v_column.attname);
    elsif v_column.atttypid <> all (v_column.types) then
      raise exception 'Cannot adopt public.part_images: column % is not of type %, but %', v_column.attname, v_column.to_type, v_column.type
        using errcode = 'datatype_mismatch',
          hint = format('Run: alter table public.part_images alter column %I type %s; then run the migration again.', v_column.attname, v_column.to_type);
    end if;
    -- It becomes text; what was built on the type stands in the way.
    if v_column.to_type = 'text' and v_column.atttypid <> 'text'::regtype then
      select string_agg(distinct pg_describe_object(d.classid, d.objid, 0), ', ')
      into v_names
      from pg_catalog.pg_depend d
      where d.refclassid = 'pg_class'::regclass
        and d.refobjid = v_table
        and d.refobjsubid = v_column.attnum
        and d.classid in ('pg_rewrite'::regclass, 'pg_policy'::regclass, 'pg_trigger'::regclass);
      if v_names is not null then
        raise exception 'Cannot adopt public.part_images: column % has to become text, and this depends on its type %: %', v_column.attname, v_column.type, v_names
          using errcode = 'dependent_objects_still_exist',
            hint = format('Drop those, run: alter table public.part_images alter column %I type text; make them again, then run the migration again.', v_column.attname);
      end if;
    end if;
  end loop;

  select string_agg(format('public.%I', c.relname), ', ')
  into v_names
  from pg_catalog.pg_class c
  join (values
    ('part_images_bucket_id_file_name_key', '(bucket_id, file_name COLLATE "C")'),
    ('part_images_part_number_bucket_id_idx', '(part_number, bucket_id)')
  ) as w (name, columns) on w.name = c.relname
  where c.relnamespace = 'public'::regnamespace
    and not coalesce(c.relkind = 'i' and pg_get_indexdef(c.oid) like '% ON public.part_images USING btree ' || w.columns, false);
  if v_names is not null then
    raise exception 'Cannot adopt public.part_images: names that its indexes need are taken by something else: %', v_names
      using errcode = 'duplicate_table', hint = 'Rename those (alter index ... rename to ...), then run the migration again.';
  end if;

  -- Of several rows of one file one stays. Which, is plain as long as rows of other tables refer to one of them at most.
  if not exists (
    select
    from pg_catalog.pg_attribute a
    where a.attrelid = v_table
      and a.attname = 'file_name'
      and not a.attisdropped
  ) then
    return;
  end if;
  select format('coalesce(nullif(p.bucket_id, %L), %s)', '', coalesce(pg_get_expr(d.adbin, d.adrelid), v_bucket))
  into v_bucket
  from pg_catalog.pg_attribute a
  left join pg_catalog.pg_attrdef d
    on d.adrelid = a.attrelid
    and d.adnum = a.attnum
  where a.attrelid = v_table
    and a.attname = 'bucket_id'
    and not a.attisdropped;
  v_bucket := coalesce(v_bucket, quote_literal('part-images'));

  select string_agg(
    format(
      'exists (select from %s t where %s)', c.conrelid::regclass,
      (
        select string_agg(format('t.%I = p.%I', child.attname, parent.attname), ' and ')
        from unnest(c.conkey, c.confkey) as k (child, parent)
        join pg_catalog.pg_attribute child on child.attrelid = c.conrelid and child.attnum = k.child
        join pg_catalog.pg_attribute parent on parent.attrelid = c.confrelid and parent.attnum = k.parent
      )
    ), ' or ')
  into v_referenced
  from pg_catalog.pg_constraint c
  where c.contype = 'f'
    and c.confrelid = v_table
    and c.conparentid = 0;
  if v_referenced is null then
    return;
  end if;
  v_query := format(
    'select %1$s as bucket, p.file_name, to_jsonb(p) -> ''id'' as id from public.part_images p where (%2$s) and (%1$s, p.file_name) in (select %1$s, p.file_name from public.part_images p where %2$s group by 1, 2 having count(*) > 1) order by 1, 2',
    v_bucket, v_referenced
  );
  execute format(
    'select count(*), string_agg(format(''%%s (id %%s)'', file_name, id), '', '') filter (where place <= 20) from (select r.*, row_number() over () as place from (%s) as r) as rows',
    v_query
  )
  into v_count, v_rows;
  if v_count > 0 then
    raise exception 'Cannot adopt public.part_images: rows of other tables refer to more than one row of the same file, % rows in all: %', v_count, v_rows
      using errcode = 'integrity_constraint_violation',
        hint = format('Let the references of each file point to one of its rows, then run the migration again. To see all of those rows: %s;', v_query);
  end if;
end;
$$;
