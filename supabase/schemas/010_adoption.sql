-- step 1.0.0
-- What was installed before 1.0.0, which was never released, makes room: its jobs, functions and indexes go, and its settings and
-- archive wait in the schema image_sync_before until 070_archive.sql brings them home. public.part_images stays as it is and is
-- adopted like anybody's.
do $$
declare
  v_version text;
  v_object record;
begin
  if to_regclass('image_sync.settings') is null
    or to_regclass('image_sync.archive') is null
    or to_regprocedure('image_sync.run_nightly()') is null then
    return;
  end if;
  if to_regprocedure('image_sync.schema_version()') is not null then
    execute 'select image_sync.schema_version()' into v_version;
    if v_version !~ '^0\.' then
      raise exception E'Cannot install image-sync: version % is installed already\nTo go on to another version: npx image-sync upgrade', v_version
        using errcode = 'duplicate_schema',
          hint = 'Nothing has been changed.';
    end if;
  end if;
  if to_regclass('cron.job') is not null then
    perform cron.unschedule(j.jobid)
    from cron.job j
    where j.username = current_user
      and j.command in ('select image_sync.run_nightly()', 'select image_sync.watchdog()', 'select image_sync.prune_history()');
  end if;
  for v_object in
    select p.oid::regprocedure as signature
    from pg_catalog.pg_proc p
    where p.pronamespace = 'public'::regnamespace
      and p.proname like 'image\_sync\_%'
  loop
    execute format('drop function %s', v_object.signature);
  end loop;
  drop index if exists public.part_images_look_up_key_idx, public.part_images_object_id_idx;
  alter schema image_sync rename to image_sync_before;
  drop view if exists image_sync_before.records, image_sync_before.objects cascade;
end;
$$;

-- The private home of image-sync, and the question whether the project's own public.part_images can be adopted. It is asked in the
-- first file, because each file is a transaction of its own: a refusal further down would leave half of the schema behind. What
-- cannot be asked beforehand (a trigger, a constraint, a view that says no) is tried: the whole adoption is rehearsed and undone.
do $$
declare
  v_functions text;
begin
  if exists (
    select
    from pg_catalog.pg_namespace n
    where n.nspname = 'image_sync'
  ) then
    raise exception E'Cannot install image-sync: the schema image_sync exists already\nIt is something else of yours. Run: alter schema image_sync rename to image_sync_other;'
      using errcode = 'duplicate_schema',
        hint = 'Nothing has been changed: run the migration again afterwards.';
  end if;
  select string_agg(format('drop function %s;', p.oid::regprocedure), ' ' order by p.proname)
  into v_functions
  from pg_catalog.pg_proc p
  where p.pronamespace = 'public'::regnamespace
    and p.proname like 'image\_sync\_%';
  if v_functions is not null then
    raise exception E'Cannot install image-sync: public holds functions named image_sync_ already\nRename them, or run: %', v_functions
      using errcode = 'duplicate_function',
        hint = 'Nothing has been changed: run the migration again afterwards.';
  end if;
end;
$$;

-- It is not among the schemas that the Data API exposes, and only service_role may enter it: since 30 October 2026 the platform
-- grants nothing by itself, so every migration here says what it grants.
create extension if not exists pg_cron with schema pg_catalog;
create extension if not exists pg_net with schema extensions;

create schema image_sync;

comment on schema image_sync is
  'Keeps storage buckets and public.part_images in step: settings, runs (the status table), chunks, archive, and the functions behind public.image_sync_*. Private: service_role alone.';

revoke all on schema image_sync from public;
grant usage on schema image_sync to service_role;

-- The functions below are for adoption alone: 080_part_images.sql calls them once more and drops them.

-- What the table calls one of its columns is known only when it is looked at: null where it has none of that name.
create function image_sync.column_type(p_column text)
returns text
language sql
stable
set search_path = ''
as $$
  select format_type(a.atttypid, null)
  from pg_catalog.pg_attribute a
  where a.attrelid = to_regclass('public.part_images')
    and a.attname = p_column
    and a.attnum > 0
    and not a.attisdropped
$$;

comment on function image_sync.column_type(text) is 'The type of a column of public.part_images without its length; null where there is no such column.';

-- Every refusal says the same three things: what, why, and the way out. The CLI prints neither hint nor detail, so all of it is in
-- the message.
create function image_sync.refuse_adoption(p_reason text, p_way_out text, p_errcode text default 'object_not_in_prerequisite_state')
returns void
language plpgsql
set search_path = ''
as $$
begin
  raise exception E'Cannot adopt public.part_images: %\n%', p_reason, p_way_out
    using errcode = p_errcode,
      hint = 'Nothing has been changed: run the migration again afterwards.';
end;
$$;

comment on function image_sync.refuse_adoption(text, text, text) is 'Raises the refusal of an adoption, with the way out.';

-- Rows are told apart by their place in one physical table, and foreign keys, indexes and identity do not reach across several.
create function image_sync.check_table_kind()
returns void
language plpgsql
set search_path = ''
as $$
declare
  v_table constant regclass := to_regclass('public.part_images');
  v_class pg_catalog.pg_class;
  v_children text;
  v_parents text;
begin
  select c.*
  into v_class
  from pg_catalog.pg_class c
  where c.oid = v_table;
  if v_class.relkind not in ('r', 'p') then
    perform image_sync.refuse_adoption(
      'it is not a table',
      format('Rename it: alter %s public.part_images rename to part_images_other;', case v_class.relkind
        when 'v' then 'view'
        when 'm' then 'materialized view'
        when 'f' then 'foreign table'
        when 'S' then 'sequence'
        when 'c' then 'type'
        else 'index'
      end),
      'wrong_object_type'
    );
  end if;
  if v_class.relkind = 'p' then
    perform image_sync.refuse_adoption(
      'it is partitioned',
      'Make it one table: alter table public.part_images rename to part_images_partitioned; create table public.part_images (like public.part_images_partitioned including all); insert into public.part_images select * from public.part_images_partitioned; and give it the grants, policies, triggers and foreign keys of the old one.',
      'wrong_object_type'
    );
  end if;
  select
    string_agg(format('alter table %s no inherit public.part_images;', i.inhrelid::regclass), ' ') filter (where i.inhparent = v_table),
    string_agg(
      case when v_class.relispartition
        then format('alter table %s detach partition public.part_images;', i.inhparent::regclass)
        else format('alter table public.part_images no inherit %s;', i.inhparent::regclass)
      end, ' '
    ) filter (where i.inhrelid = v_table)
  into v_children, v_parents
  from pg_catalog.pg_inherits i
  where v_table in (i.inhparent, i.inhrelid);
  if v_children is not null then
    perform image_sync.refuse_adoption(
      'other tables inherit from it',
      format('Move what they hold into it, or let them stand alone: %s', v_children),
      'wrong_object_type'
    );
  end if;
  if v_parents is not null then
    perform image_sync.refuse_adoption('it is part of another table', format('Let it stand alone: %s', v_parents), 'wrong_object_type');
  end if;
end;
$$;

comment on function image_sync.check_table_kind() is 'Refuses a part_images that is no table, or no single one: partitioned, a partition, a parent or a child.';

-- Who may not alter the table, or sees a part of its rows only, cannot adopt it.
create function image_sync.check_table_rights()
returns void
language plpgsql
set search_path = ''
as $$
declare
  v_owner name;
  v_hidden regclass;
begin
  select pg_get_userbyid(c.relowner)
  into v_owner
  from pg_catalog.pg_class c
  where c.oid = 'public.part_images'::regclass
    and not pg_has_role(c.relowner, 'usage');
  if v_owner is not null then
    perform image_sync.refuse_adoption(
      format('it belongs to %s, and %s may not alter it', v_owner, current_user),
      format('Run: grant %I to %I; or give the table to %2$I: alter table public.part_images owner to %2$I;', v_owner, current_user),
      'insufficient_privilege'
    );
  end if;
  -- Only who sees every reference can tell that a row has none.
  select t.id
  into v_hidden
  from (
    select 'public.part_images'::regclass as id
    union all
    select c.conrelid::regclass
    from pg_catalog.pg_constraint c
    where c.confrelid = 'public.part_images'::regclass
      and c.contype = 'f'
  ) as t
  where case when has_table_privilege(t.id, 'select') then row_security_active(t.id) else true end
  limit 1;
  if v_hidden is not null then
    perform image_sync.refuse_adoption(
      format('%s may not read every row of %s', current_user, v_hidden),
      format('Run: grant select on %1$s to %2$I; and, where row level security holds for it: alter role %2$I bypassrls;', v_hidden, current_user),
      'insufficient_privilege'
    );
  end if;
end;
$$;

comment on function image_sync.check_table_rights() is 'Refuses where the migrating role may not alter part_images, or may not see all rows of it or of a table that refers to it.';

-- The columns that a run reads or writes have the types that its statements expect.
create function image_sync.check_column_types()
returns void
language plpgsql
set search_path = ''
as $$
declare
  v_column record;
  v_is_other boolean;
begin
  for v_column in
    select c.name, image_sync.column_type(c.name) as type, c.wanted
    from (values
      ('part_number', 'text'),
      ('file_name', 'text'),
      ('url', 'text'),
      ('signed_url', 'text'),
      ('bucket_id', 'text'),
      ('signed_url_expires_at', 'timestamp with time zone'),
      ('object_id', 'uuid')
    ) as c (name, wanted)
    where image_sync.column_type(c.name) <> c.wanted
      and (c.wanted, image_sync.column_type(c.name)) not in (('text', 'character varying'), ('text', 'character'))
  loop
    perform image_sync.refuse_adoption(
      format('column %s is not of type %s but %s', v_column.name, v_column.wanted, v_column.type),
      case
        when v_column.name = 'bucket_id' and v_column.type in ('uuid', 'smallint', 'integer', 'bigint', 'numeric')
          then 'It means something else there. Run: alter table public.part_images rename column bucket_id to other_bucket_id;'
        when v_column.name = 'object_id'
          then 'It means something else there. Run: alter table public.part_images rename column object_id to other_object_id;'
        else format(
          'Run: alter table public.part_images alter column %1$I drop default, alter column %1$I type %2$s using %3$s;', v_column.name, v_column.wanted,
          case
            when v_column.type = 'timestamp without time zone' then format('%I at time zone ''UTC''', v_column.name)
            else format('%I::text::%s', v_column.name, v_column.wanted)
          end
        )
      end,
      'datatype_mismatch'
    );
  end loop;
  -- Ours says which object of Storage a record is of.
  if image_sync.column_type('object_id') is not null then
    execute '
      select exists (
        select
        from public.part_images p
        where p.object_id is not null
      ) and not exists (
        select
        from public.part_images p
        join storage.objects o on o.id = p.object_id
      )'
    into v_is_other;
    if v_is_other then
      perform image_sync.refuse_adoption(
        'column object_id holds what are no ids of storage.objects',
        'It means something else there. Run: alter table public.part_images rename column object_id to other_object_id;',
        'datatype_mismatch'
      );
    end if;
  end if;
end;
$$;

comment on function image_sync.check_column_types() is 'Refuses columns whose type a run cannot work with. varchar and char are converted, not refused.';

-- A column that computes its own value cannot be written; one that must have a value and has no default cannot be left out; one that
-- compares by rules of its own says that two files are one, or cannot be compared with storage.objects.name at all.
create function image_sync.check_column_rules()
returns void
language plpgsql
set search_path = ''
as $$
declare
  v_column record;
begin
  for v_column in
    select
      a.attname as name,
      a.attgenerated <> '' or a.attidentity = 'a' as is_computed,
      a.attcollation <> t.typcollation as is_collated,
      a.attnotnull
        and not a.atthasdef
        and a.attidentity = ''
        -- What 080_part_images.sql gives a default.
        and not (a.attname = 'id' and a.atttypid = 'uuid'::regtype)
        and not (a.attname = 'created_at' and a.atttypid in ('timestamp'::regtype, 'timestamptz'::regtype))
        and not exists (
          select
          from pg_catalog.pg_trigger g
          where g.tgrelid = a.attrelid
            and not g.tgisinternal
            -- For each row, before, on insert. Source: pg_trigger.h, TRIGGER_TYPE_ROW, _BEFORE, _INSERT.
            and g.tgtype & 7 = 7
        ) as is_demanded
    from pg_catalog.pg_attribute a
    join pg_catalog.pg_type t
      on t.oid = a.atttypid
    where a.attrelid = 'public.part_images'::regclass
      and a.attnum > 0
      and not a.attisdropped
  loop
    if v_column.is_computed and v_column.name in ('file_name', 'part_number', 'signed_url', 'bucket_id', 'signed_url_expires_at', 'object_id') then
      perform image_sync.refuse_adoption(
        format('column %s is generated, and a run has to write it', v_column.name),
        format('Run: alter table public.part_images alter column %I drop expression;', v_column.name)
      );
    end if;
    if v_column.is_collated and v_column.name in ('file_name', 'part_number', 'url', 'signed_url', 'bucket_id') then
      perform image_sync.refuse_adoption(
        format('column %s has a collation of its own', v_column.name),
        format('Run: alter table public.part_images alter column %I type text collate pg_catalog."default";', v_column.name),
        'collation_mismatch'
      );
    end if;
    if v_column.is_demanded and v_column.name in ('id', 'url', 'signed_url', 'created_at', 'signed_url_expires_at', 'object_id') then
      perform image_sync.refuse_adoption(
        format('column %s must have a value and has no default, so no record can be inserted', v_column.name),
        case v_column.name
          when 'id' then case
            when image_sync.column_type('id') in ('smallint', 'integer', 'bigint', 'numeric')
              then 'Give it a default, as: create sequence public.part_images_id_numbers; select setval(''public.part_images_id_numbers'', coalesce(max(id), 0) + 1) from public.part_images; alter table public.part_images alter column id set default nextval(''public.part_images_id_numbers'');'
            else 'Give it a default, as: alter table public.part_images alter column id set default gen_random_uuid();'
          end
          else format('Run: alter table public.part_images alter column %I drop not null;', v_column.name)
        end
      );
    end if;
  end loop;
end;
$$;

comment on function image_sync.check_column_rules() is 'Refuses columns that a run cannot write, cannot leave out or cannot compare.';

-- Only a plain text holds any URL and any name. One without a length does too, but psqlODBC cuts it at 255 characters.
create function image_sync.columns_to_convert()
returns table (name text, must boolean, dependants text)
language sql
stable
set search_path = ''
as $$
  select
    a.attname::text,
    a.atttypid <> 'varchar'::regtype or a.atttypmod <> -1,
    (
      select string_agg(distinct pg_describe_object(
        case when w.rulename = '_RETURN' then 'pg_catalog.pg_class'::regclass else d.classid end,
        case when w.rulename = '_RETURN' then w.ev_class else d.objid end,
        0
      ), ', ')
      from pg_catalog.pg_depend d
      left join pg_catalog.pg_rewrite w
        on d.classid = 'pg_catalog.pg_rewrite'::regclass
        and w.oid = d.objid
      left join pg_catalog.pg_attrdef f
        on d.classid = 'pg_catalog.pg_attrdef'::regclass
        and f.oid = d.objid
      where d.refclassid = 'pg_catalog.pg_class'::regclass
        and d.refobjid = a.attrelid
        and d.refobjsubid = a.attnum
        and d.classid in (
          'pg_catalog.pg_rewrite'::regclass, 'pg_catalog.pg_policy'::regclass, 'pg_catalog.pg_trigger'::regclass,
          'pg_catalog.pg_attrdef'::regclass, 'pg_catalog.pg_proc'::regclass, 'pg_catalog.pg_publication_rel'::regclass
        )
        and f.adnum is distinct from a.attnum
    )
  from pg_catalog.pg_attribute a
  where a.attrelid = to_regclass('public.part_images')
    and a.attname in ('part_number', 'file_name', 'url', 'signed_url', 'bucket_id')
    and a.atttypid in ('varchar'::regtype, 'bpchar'::regtype)
    and not a.attisdropped;
$$;

comment on function image_sync.columns_to_convert() is 'The varchar and char columns that become text, whether they have to, and the views, policies, triggers and functions that forbid it.';

-- A view fixes the types of the columns it shows: only its owner can make it anew.
create function image_sync.check_dependants()
returns void
language plpgsql
set search_path = ''
as $$
declare
  v_names text;
  v_columns text;
begin
  select
    string_agg(distinct c.dependants, ', '),
    string_agg(format('alter column %I type text', c.name), ', ')
  into v_names, v_columns
  from image_sync.columns_to_convert() c
  where c.must
    and c.dependants is not null;
  if v_names is not null then
    perform image_sync.refuse_adoption(
      format('columns of limited length have to become text, and these depend on them: %s', v_names),
      format('Keep their definitions (pg_get_viewdef for views) and drop them. Run: alter table public.part_images %s; and create them again.', v_columns),
      'dependent_objects_still_exist'
    );
  end if;
end;
$$;

comment on function image_sync.check_dependants() is 'Refuses where views, policies, triggers or functions forbid that a column of limited length becomes text, and names them.';

-- An index of our name on other columns would be taken for ours.
create function image_sync.check_names()
returns void
language plpgsql
set search_path = ''
as $$
declare
  v_name text;
begin
  select n.name
  into v_name
  from (values
    ('part_images_bucket_id_file_name_key', 'CREATE UNIQUE INDEX part_images_bucket_id_file_name_key ON public.part_images USING btree (bucket_id, file_name COLLATE "C")'),
    ('part_images_look_up_key_idx', 'CREATE INDEX part_images_look_up_key_idx ON public.part_images USING btree ((((bucket_id || ''/''::text) || lower(regexp_replace(part_number, ''( *\(\d+\)| - (copy|kopie|copie|copia)( \(\d+\))?|_jpe?g|_png)?\s*$''::text, ''''::text, ''i''::text)))) COLLATE "C") INCLUDE (part_number, bucket_id)'),
    ('part_images_object_id_idx', 'CREATE INDEX part_images_object_id_idx ON public.part_images USING btree (object_id)')
  ) as n (name, definition)
  join pg_catalog.pg_class c
    on c.relnamespace = 'public'::regnamespace
    and c.relname = n.name
  left join pg_catalog.pg_index i
    on i.indexrelid = c.oid
  where not coalesce(i.indisvalid and pg_get_indexdef(i.indexrelid) = n.definition, false);
  if v_name is not null then
    perform image_sync.refuse_adoption(
      format('the name %s, which one of its indexes needs, is taken by something else', v_name),
      format('Run: alter table public.%I rename to %I;', v_name, v_name || '_old'),
      'duplicate_object'
    );
  end if;
end;
$$;

comment on function image_sync.check_names() is 'Refuses where something else has the name of one of our indexes.';

-- Which bucket a row means that names none: the one its owner's default says. Without a default part-images, unless there is no
-- such bucket and every other row names one and the same.
create function image_sync.bucket_of_unlabelled()
returns text
language plpgsql
set search_path = ''
as $$
declare
  v_default text;
  v_bucket_id text;
begin
  if image_sync.column_type('bucket_id') is null then
    return 'part-images';
  end if;
  select pg_get_expr(d.adbin, d.adrelid)
  into v_default
  from pg_catalog.pg_attrdef d
  join pg_catalog.pg_attribute a
    on a.attrelid = d.adrelid
    and a.attnum = d.adnum
  where a.attrelid = 'public.part_images'::regclass
    and a.attname = 'bucket_id';
  if v_default is not null then
    execute format('select nullif((%s)::text, '''')', v_default)
    into v_bucket_id;
  elsif not exists (
    select
    from storage.buckets b
    where b.id = 'part-images'
  ) then
    select min(p.bucket_id)
    into v_bucket_id
    from public.part_images p
    where p.bucket_id <> ''
    having count(distinct p.bucket_id) = 1;
  end if;
  return coalesce(v_bucket_id, 'part-images');
end;
$$;

comment on function image_sync.bucket_of_unlabelled() is 'The bucket of rows whose bucket_id is null or empty.';

-- A record's bucket and file, also while the table is as its owner made it.
create function image_sync.file_expression(p_bucket_id text)
returns text
language sql
stable
set search_path = ''
as $$
  select case when image_sync.column_type('bucket_id') is null then quote_literal(p_bucket_id) || '::text'
    else format('coalesce(nullif(p.bucket_id::text, ''''), %L)', p_bucket_id)
  end || ', p.file_name::text collate "C"'
$$;

comment on function image_sync.file_expression(text) is 'SQL, of a row p of public.part_images: its bucket and its file. Rows in which both are equal are duplicates.';

-- Whether other tables refer to a row is asked of duplicates alone: their foreign keys need not have an index.
create function image_sync.duplicates_expression(p_bucket_id text)
returns text
language sql
stable
set search_path = ''
as $$
  select format(
    'public.part_images p join (select p.ctid as row_id, count(*) over (partition by %s) as rows from public.part_images p where p.file_name <> '''') as twins on twins.row_id = p.ctid and twins.rows > 1',
    image_sync.file_expression(p_bucket_id)
  )
$$;

comment on function image_sync.duplicates_expression(text) is 'SQL, to select from: the rows p of public.part_images that are not the only ones of their file.';

-- A reference of a row to itself goes with it, and holds nobody back: said of the referring row alone, so that the tables can be
-- hashed. The operators and the collation are those of the key itself.
create function image_sync.reference_condition()
returns text
language sql
stable
set search_path = ''
as $$
  select coalesce(string_agg(format(
    'exists (select from %s%s as r where %s%s)',
    case when t.relkind = 'r' then 'only ' else '' end,
    c.conrelid::regclass,
    pairs.matches,
    case when c.conrelid = c.confrelid then format(' and (%s) is not true', pairs.refers_to_itself) else '' end
  ), ' or ' order by c.oid), 'false')
  from pg_catalog.pg_constraint c
  join pg_catalog.pg_class t
    on t.oid = c.conrelid
  cross join lateral (
    select
      string_agg('p.' || k.comparison, ' and ' order by k.place) as matches,
      string_agg('r.' || k.comparison, ' and ' order by k.place) as refers_to_itself
    from (
      select
        f.place,
        format(
          '%I operator(%I.%s) r.%I%s', ours.attname, n.nspname, o.oprname, theirs.attname,
          case when ours.attcollation <> theirs.attcollation then ' collate ' || ours.attcollation::regcollation else '' end
        ) as comparison
      from unnest(c.conkey, c.confkey, c.conpfeqop) with ordinality as f (theirs, ours, operator, place)
      join pg_catalog.pg_attribute theirs
        on theirs.attrelid = c.conrelid
        and theirs.attnum = f.theirs
      join pg_catalog.pg_attribute ours
        on ours.attrelid = c.confrelid
        and ours.attnum = f.ours
      join pg_catalog.pg_operator o
        on o.oid = f.operator
      join pg_catalog.pg_namespace n
        on n.oid = o.oprnamespace
    ) as k
  ) as pairs
  where c.confrelid = to_regclass('public.part_images')
    and c.contype = 'f'
    -- A partition's copy of the key is its table's.
    and c.conparentid = 0;
$$;

comment on function image_sync.reference_condition() is 'SQL, of a row p of public.part_images: whether a foreign key of any table refers to it.';

-- What tells a person which row is meant: its primary key, else what foreign keys refer to.
create function image_sync.key_expression()
returns text
language sql
stable
set search_path = ''
as $$
  select format('jsonb_build_object(%s)', string_agg(format('%1$L, p.%1$I', a.attname), ', ' order by a.attnum))
  from pg_catalog.pg_attribute a
  where a.attrelid = to_regclass('public.part_images')
    and a.attnum = any ((
      select case when c.contype = 'f' then c.confkey else c.conkey end
      from pg_catalog.pg_constraint c
      where c.contype = 'p' and c.conrelid = to_regclass('public.part_images')
        or c.contype = 'f' and c.confrelid = to_regclass('public.part_images')
      order by c.contype = 'f', c.oid
      limit 1
    )::smallint[]);
$$;

comment on function image_sync.key_expression() is 'SQL, of a row p of public.part_images: its key as jsonb.';

-- Where other tables refer to several rows of one file, which of them stays is not ours to say.
create function image_sync.check_references(p_bucket_id text)
returns void
language plpgsql
set search_path = ''
as $$
declare
  v_condition constant text := image_sync.reference_condition();
  v_referred text;
  v_found record;
begin
  if v_condition = 'false' or image_sync.column_type('file_name') is null then
    return;
  end if;
  v_referred := format(
    'select p as record, count(*) over (partition by %s) as referred from %s where case when twins.rows > 1 then %s end',
    image_sync.file_expression(p_bucket_id), image_sync.duplicates_expression(p_bucket_id), v_condition
  );
  execute format(
    'select count(*) as rows, count(distinct (%s)) as files, string_agg(format(''%%s %%s'', p.file_name, %s), '', '' order by p.file_name) filter (where d.place <= 20) as samples
     from (select f.record, row_number() over (order by (f.record).file_name) as place from (%s) as f where f.referred > 1) as d
     cross join lateral (select (d.record).*) as p',
    replace(image_sync.file_expression(p_bucket_id), ' collate "C"', ''), image_sync.key_expression(), v_referred
  )
  into v_found;
  if v_found.rows > 0 then
    perform image_sync.refuse_adoption(
      format(
        'of %s file(s) it holds several rows that other tables refer to, %s rows in all: %s%s',
        v_found.files, v_found.rows, v_found.samples, case when v_found.rows > 20 then ', ...' else '' end
      ),
      format(
        'Let the other tables refer to one row of each file, or give the rows file names of their own. All of them: select (d.record).* from (%s) as d where d.referred > 1 order by (d.record).file_name;',
        v_referred
      ),
      'restrict_violation'
    );
  end if;
end;
$$;

comment on function image_sync.check_references(text) is 'Refuses where foreign keys refer to more than one row of a file, and names up to 20 of them.';

-- Inserts name neither id nor created_at, so that an owner's own defaults win; where there is none, these serve.
create function image_sync.prepare_columns()
returns void
language plpgsql
set search_path = ''
as $$
declare
  v_column record;
begin
  for v_column in
    select c.name
    from image_sync.columns_to_convert() c
    where c.must
      or c.dependants is null
  loop
    execute format('alter table public.part_images alter column %I type text', v_column.name);
  end loop;

  alter table public.part_images
    add column if not exists part_number text,
    add column if not exists file_name text,
    add column if not exists url text,
    add column if not exists signed_url text,
    add column if not exists created_at timestamptz default now(),
    add column if not exists bucket_id text not null default 'part-images',
    add column if not exists signed_url_expires_at timestamptz,
    add column if not exists object_id uuid;

  for v_column in
    select a.attname, d.expression
    from pg_catalog.pg_attribute a
    join (values ('id', 'uuid'::regtype, 'gen_random_uuid()'), ('created_at', 'timestamptz'::regtype, 'now()'), ('created_at', 'timestamp'::regtype, 'now()'))
      as d (column_name, column_type, expression)
      on d.column_name = a.attname
      and d.column_type = a.atttypid
    where a.attrelid = 'public.part_images'::regclass
      and not a.atthasdef
      and a.attidentity = ''
  loop
    execute format('alter table public.part_images alter column %I set default %s', v_column.attname, v_column.expression);
  end loop;
end;
$$;

comment on function image_sync.prepare_columns() is 'Gives public.part_images the columns, types and defaults that a run needs.';

-- Several rows without a name are no duplicates, and the key lets several nulls stand where it lets one empty text.
create function image_sync.settle_unnamed()
returns void
language plpgsql
set search_path = ''
as $$
begin
  if (
    select count(*)
    from public.part_images p
    where p.file_name = ''
  ) < 2 then
    return;
  end if;
  if exists (
    select
    from pg_catalog.pg_attribute a
    where a.attrelid = 'public.part_images'::regclass
      and a.attname = 'file_name'
      and a.attnotnull
  ) then
    perform image_sync.refuse_adoption(
      'several rows have an empty file_name, which cannot be null: select * from public.part_images where file_name = '''';',
      'Name them, or run: alter table public.part_images alter column file_name drop not null;',
      'not_null_violation'
    );
  end if;
  update public.part_images p
  set file_name = null
  where p.file_name = '';
end;
$$;

comment on function image_sync.settle_unnamed() is 'Sets the file_name of several rows without one from empty to null.';

-- Of several rows of one file the one that other tables refer to stays, then the oldest: the original, which its owner's work went
-- into. That another one has a URL counts for nothing: a URL can be made, and is taken over.
create function image_sync.remove_duplicates(p_bucket_id text)
returns boolean
language plpgsql
set search_path = ''
as $$
declare
  v_age constant text := case when image_sync.column_type('created_at') ~ '^(timestamp|date)' then 'p.created_at nulls last, ' else '' end;
  v_number constant text := case when image_sync.column_type('id') ~ 'int' then 'p.id, ' else '' end;
  v_left bigint;
begin
  create temporary table removed_duplicates (like public.part_images, image_sync_bucket_id text, image_sync_place bigint) on commit drop;
  execute format('select count(*) from %s', image_sync.duplicates_expression(p_bucket_id))
  into v_left;
  if v_left = 0 then
    return false;
  end if;
  execute format(
    'with ranked as (
      select p.ctid as row_id, %1$s, row_number() over (partition by %1$s order by (%2$s) desc, %3$s%4$sp.ctid)
      from %5$s
    ), removed as (
      delete from public.part_images p
      using ranked as r (row_id, bucket_id, file_name, place)
      where p.ctid = r.row_id
        and r.place > 1
      returning p.*, r.bucket_id as image_sync_bucket_id, r.place
    )
    insert into pg_temp.removed_duplicates
    select * from removed',
    image_sync.file_expression(p_bucket_id), image_sync.reference_condition(), v_age, v_number, image_sync.duplicates_expression(p_bucket_id)
  );
  -- What is checked at the end of a transaction is checked here: nothing of it may wait while the table is altered.
  set constraints all immediate;
  execute format('select count(*) from %s', image_sync.duplicates_expression(p_bucket_id))
  into v_left;
  if v_left > 0 then
    perform image_sync.refuse_adoption(
      format('%s rows that are not the only ones of their file cannot be moved to the archive: a trigger or rule of its owner keeps them', v_left),
      'Look at: select tgname, tgfoid::regproc from pg_trigger where tgrelid = ''public.part_images''::regclass and not tgisinternal; and let the rows go, or remove them yourself.',
      'triggered_action_exception'
    );
  end if;
  return true;
end;
$$;

comment on function image_sync.remove_duplicates(text) is 'Moves the second and further rows of each file to the temporary table removed_duplicates, with their rank. False where there are none.';

-- Columns that mean something together are taken together: a URL and its expiry, the columns of one foreign key.
create function image_sync.columns_to_take()
returns table (columns text[], lacks text, has text)
language sql
stable
set search_path = ''
as $$
  with takeable as (
    select
      a.attname::text as name,
      case when a.attname in ('part_number', 'url', 'signed_url') then format('nullif(k.%I, '''')', a.attname) else format('k.%I', a.attname) end as value,
      case when a.attname in ('part_number', 'url', 'signed_url') then format('nullif(x.%I, '''')', a.attname) else format('x.%I', a.attname) end as other_value,
      coalesce(
        case when a.attname in ('signed_url', 'signed_url_expires_at') then 'signed_url' end,
        (
          select min(c.oid)::text
          from pg_catalog.pg_constraint c
          where c.conrelid = a.attrelid
            and c.contype = 'f'
            and a.attnum = any (c.conkey)
            and cardinality(c.conkey) > 1
        ),
        a.attname
      ) as together,
      -- A row that stays must not come to refer to itself because the row that went did refer to it.
      (
        select string_agg(format(' and not exists (select where %s)', (
          select string_agg(format('k.%I = x.%I', ours.attname, theirs.attname), ' and ')
          from unnest(c.conkey, c.confkey) as f (theirs, ours)
          join pg_catalog.pg_attribute theirs
            on theirs.attrelid = c.conrelid
            and theirs.attnum = f.theirs
          join pg_catalog.pg_attribute ours
            on ours.attrelid = c.conrelid
            and ours.attnum = f.ours
        )), '')
        from pg_catalog.pg_constraint c
        where c.conrelid = a.attrelid
          and c.confrelid = a.attrelid
          and c.contype = 'f'
          and a.attnum = any (c.conkey)
      ) as other_than_itself
    from pg_catalog.pg_attribute a
    where a.attrelid = to_regclass('public.part_images')
      and a.attnum > 0
      and not a.attisdropped
      and a.attgenerated = ''
      and a.attidentity <> 'a'
      and a.attname not in ('bucket_id', 'file_name', 'object_id')
      and not exists (
        select
        from pg_catalog.pg_constraint c
        where c.conrelid = a.attrelid
          and c.contype = 'p'
          and a.attnum = any (c.conkey)
      )
  )
  select
    array_agg(t.name order by t.name),
    string_agg(t.value || ' is null', ' and ') filter (where t.name <> 'signed_url_expires_at') || coalesce(max(t.other_than_itself), ''),
    string_agg(t.other_value || ' is distinct from null', ' or ') filter (where t.name <> 'signed_url_expires_at')
  from takeable t
  group by t.together;
$$;

comment on function image_sync.columns_to_take() is 'The columns that a row takes from its duplicates, and SQL that says when the row k lacks them and a duplicate x has them.';

-- What the table itself does not let the row take (a constraint, a trigger) stays in the archive alone.
create function image_sync.take_columns(p_columns text[], p_lacks text, p_has text)
returns void
language plpgsql
set search_path = ''
as $$
declare
  v_statement constant text := format(
    'update public.part_images k
    set (%1$s) = row(%2$s)
    from (
      select distinct on (x.image_sync_bucket_id, x.file_name collate "C") x.*
      from pg_temp.removed_duplicates x
      where %4$s
      order by x.image_sync_bucket_id, x.file_name collate "C", x.image_sync_place
    ) as x
    where k.bucket_id = x.image_sync_bucket_id
      and k.file_name collate "C" = x.file_name
      and %3$s',
    (select string_agg(format('%I', c.name), ', ') from unnest(p_columns) as c (name)),
    (select string_agg(format('x.%I', c.name), ', ') from unnest(p_columns) as c (name)),
    p_lacks, p_has
  );
  v_file record;
begin
  begin
    execute v_statement;
    return;
  exception
    when integrity_constraint_violation or data_exception or raise_exception then
      null;
  end;
  for v_file in execute 'select distinct d.image_sync_bucket_id as bucket_id, d.file_name from pg_temp.removed_duplicates d' loop
    begin
      execute v_statement || ' and x.image_sync_bucket_id = $1 and x.file_name = $2'
      using v_file.bucket_id, v_file.file_name;
    exception
      when integrity_constraint_violation or data_exception or raise_exception then
        raise warning 'The record of % does not take % from its duplicate, which stands in the archive: %', v_file.file_name, p_columns, sqlerrm;
    end;
  end loop;
end;
$$;

comment on function image_sync.take_columns(text[], text, text) is 'Fills columns that a row lacks from the best of its removed duplicates that has them.';

-- No row is without a bucket from here on.
create function image_sync.label_records(p_bucket_id text)
returns void
language plpgsql
set search_path = ''
as $$
begin
  if exists (
    select
    from public.part_images p
    where nullif(p.bucket_id, '') is null
  ) then
    update public.part_images p
    set bucket_id = p_bucket_id
    where nullif(p.bucket_id, '') is null;
    set constraints all immediate;
  end if;
  if coalesce((
    select pg_get_expr(d.adbin, d.adrelid)
    from pg_catalog.pg_attrdef d
    join pg_catalog.pg_attribute a
      on a.attrelid = d.adrelid
      and a.attnum = d.adnum
    where a.attrelid = 'public.part_images'::regclass
      and a.attname = 'bucket_id'
  ), 'NULL') ~ '^(NULL|'''')(::.*)?$' then
    execute format('alter table public.part_images alter column bucket_id set default %L', p_bucket_id);
  end if;
  alter table public.part_images alter column bucket_id set not null;
end;
$$;

comment on function image_sync.label_records(text) is 'Fills empty bucket_ids, forbids null, and gives the column a default where it has none.';

create function image_sync.index_records()
returns void
language plpgsql
set search_path = ''
as $$
begin
  -- The key of a record, in the order in which chunks walk. Byte order, as storage.objects' own keyset index has it.
  create unique index if not exists part_images_bucket_id_file_name_key on public.part_images (bucket_id, file_name collate "C");

  -- Where the record of an object is, whatever the object is called by now.
  create index if not exists part_images_object_id_idx on public.part_images (object_id);

  -- Several files for one part number of a bucket, as a spreadsheet compares: the expression is that of image_sync.records. The bucket
  -- stands in the key: an index that began with it would seem as good as the first one to a planner that knows nothing of the table.
  create index if not exists part_images_look_up_key_idx on public.part_images (
    (bucket_id || '/' || lower(regexp_replace(part_number, '( *\(\d+\)| - (copy|kopie|copie|copia)( \(\d+\))?|_jpe?g|_png)?\s*$', '', 'i'))) collate "C"
  ) include (part_number, bucket_id);
end;
$$;

comment on function image_sync.index_records() is 'Creates the indexes that public.part_images lacks.';

create function image_sync.adopt_part_images()
returns table (bucket_id text, file_name text, record jsonb)
language plpgsql
set search_path = ''
as $$
declare
  v_bucket_id constant text := image_sync.bucket_of_unlabelled();
  v_has_removed boolean;
  v_group record;
begin
  lock table public.part_images in access exclusive mode;
  perform image_sync.check_references(v_bucket_id);
  perform image_sync.prepare_columns();
  perform image_sync.settle_unnamed();
  v_has_removed := image_sync.remove_duplicates(v_bucket_id);
  perform image_sync.label_records(v_bucket_id);
  for v_group in
    select t.*
    from image_sync.columns_to_take() t
    where v_has_removed
  loop
    perform image_sync.take_columns(v_group.columns, v_group.lacks, v_group.has);
  end loop;
  set constraints all immediate;
  perform image_sync.index_records();
  return query execute
    'select d.image_sync_bucket_id, d.file_name, to_jsonb(d.*) - ''{image_sync_bucket_id,image_sync_place}''::text[] from pg_temp.removed_duplicates d';
  drop table pg_temp.removed_duplicates;
end;
$$;

comment on function image_sync.adopt_part_images() is 'Makes public.part_images what a run needs, and returns the duplicates that it took out, as they were.';

-- An owner's triggers, rules and constraints fire here as they will later, and what they did is undone.
create function image_sync.rehearse_adoption()
returns void
language plpgsql
set search_path = ''
as $$
declare
  v_message text;
begin
  perform from image_sync.adopt_part_images();
  raise exception 'Rehearsed' using errcode = 'IS000';
exception
  when sqlstate 'IS000' then
    return;
  when others then
    get stacked diagnostics v_message = message_text;
    if starts_with(v_message, 'Cannot adopt public.part_images: ') then
      raise;
    end if;
    perform image_sync.refuse_adoption(
      format('it was tried and undone, because the database said: %s', v_message),
      'Mend what it says: a trigger, rule or constraint of the table, or a name that is too long.',
      sqlstate
    );
end;
$$;

comment on function image_sync.rehearse_adoption() is 'Adopts public.part_images and undoes it: raises what would stop the adoption.';

revoke all on all functions in schema image_sync from public;

do $$
begin
  perform image_sync.check_names();
  if to_regtype('public.part_images') is null and to_regclass('public.part_images') is null then
    return;
  end if;
  if to_regclass('public.part_images') is null then
    perform image_sync.refuse_adoption('a type has its name', 'Run: alter type public.part_images rename to part_images_other;', 'duplicate_object');
  end if;
  perform image_sync.check_table_kind();
  perform image_sync.check_table_rights();
  perform image_sync.check_column_types();
  perform image_sync.check_column_rules();
  perform image_sync.check_dependants();
  perform image_sync.rehearse_adoption();
end;
$$;
