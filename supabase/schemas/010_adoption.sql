-- step 1.0.0
-- image-sync comes into a project that may have a public.part_images of its own. Everything is asked before anything is changed, and
-- all that is in the way is said at once: what, why, and the way out, in the message, because the CLI prints neither hint nor detail.
-- What cannot be asked (a trigger, a constraint or a rule that says no) is tried in 080_part_images.sql: a migration is one
-- transaction, and a refusal there undoes all of it.
do $$
declare
  v_functions constant text := (
    select string_agg(format('drop function %s;', p.oid::regprocedure), ' ' order by p.proname)
    from pg_catalog.pg_proc p
    where p.pronamespace = 'public'::regnamespace and p.proname like 'image\_sync\_%'
  );
  v_hint constant text := 'Nothing has been changed: run the migration again afterwards.';
begin
  if to_regnamespace('image_sync') is not null then
    raise exception E'Cannot install image-sync: the schema image_sync exists already\nIf it is image-sync''s, go on from there: npx image-sync upgrade. If it is yours, run: alter schema image_sync rename to image_sync_other;'
      using errcode = 'duplicate_schema', hint = v_hint;
  elsif v_functions is not null then
    raise exception E'Cannot install image-sync: public holds functions named image_sync_ already\nRename them, or run: %', v_functions
      using errcode = 'duplicate_function', hint = v_hint;
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

create temporary table adoption_obstacles (place integer generated always as identity, what text, why text, way_out text) on commit drop;

-- What is printed has its schema in front of it; and rows that row level security hides are an error, not none.
select
  set_config('image_sync.search_path', current_setting('search_path'), true), set_config('search_path', '', true),
  set_config('image_sync.row_security', current_setting('row_security'), true), set_config('row_security', 'off', true);

-- Rows are told apart by their place in one physical table, and foreign keys, indexes and identity do not reach across several.
insert into pg_temp.adoption_obstacles (what, why, way_out)
select 'a type', 'has its name', 'Run: alter type public.part_images rename to part_images_other;'
where to_regclass('public.part_images') is null and to_regtype('public.part_images') is not null
union all
select 'it', k.why, k.way_out
from pg_catalog.pg_class c
cross join lateral (values
  (
    c.relkind not in ('r', 'p'), 'is not a table',
    format('Rename it: alter %s public.part_images rename to part_images_other;', case c.relkind
      when 'v' then 'view' when 'm' then 'materialized view' when 'f' then 'foreign table' when 'S' then 'sequence' when 'c' then 'type' else 'index'
    end)
  ),
  (
    c.relkind = 'p', 'is partitioned',
    'Make it one table: alter table public.part_images rename to part_images_partitioned; create table public.part_images (like public.part_images_partitioned including all); insert into public.part_images select * from public.part_images_partitioned; and give it the grants, policies, triggers and foreign keys of the old one.'
  ),
  (c.reloftype <> 0, 'is a typed table', 'Run: alter table public.part_images not of;'),
  (
    not pg_has_role(c.relowner, 'usage'), format('belongs to %s, and %s may not alter it', pg_get_userbyid(c.relowner), current_user),
    format('Run: grant %I to %I; or give the table to %2$I: alter table public.part_images owner to %2$I;', pg_get_userbyid(c.relowner), current_user)
  )
) as k (applies, why, way_out)
where c.oid = to_regclass('public.part_images') and k.applies
union all
select
  format('%s', i.inhrelid::regclass), format('inherits from %s', i.inhparent::regclass),
  format('Move what it holds, or let it stand alone: alter table %s;', case
    when c.relispartition then format('%s detach partition %s', i.inhparent::regclass, c.oid::regclass)
    else format('%s no inherit %s', c.oid::regclass, i.inhparent::regclass)
  end)
from pg_catalog.pg_inherits i
join pg_catalog.pg_class c on c.oid = i.inhrelid
where c.oid = to_regclass('public.part_images')
  or i.inhparent = to_regclass('public.part_images') and not c.relispartition
order by 1;

-- The columns of a table that can be asked further; none where there is none. Those that a sync writes have the type that it wants.
create temporary table adoption_columns on commit drop as
select
  a.attnum, a.attname::text as name, w.type as wanted, format_type(a.atttypid, null) as type, a.attgenerated <> '' as is_generated,
  a.attcollation <> t.typcollation as is_collated, a.attnotnull or t.typnotnull as is_required,
  w.type = 'text' and a.atttypid in ('varchar'::regtype, 'bpchar'::regtype) as is_varchar, a.atttypid = 'bpchar'::regtype or a.atttypmod <> -1 as is_limited,
  a.atthasdef or a.attidentity <> '' or t.typdefault is not null as has_default, pg_get_expr(f.adbin, f.adrelid) as default_value,
  a.attnum = any ((select i.indkey from pg_catalog.pg_index i where i.indrelid = a.attrelid and i.indisprimary)::int2[]) as is_key,
  (
    select string_agg(distinct pg_describe_object(d.classid, d.objid, 0), ', ')
    from pg_catalog.pg_depend d
    where (d.refclassid, d.refobjid, d.refobjsubid) = ('pg_catalog.pg_class'::regclass, a.attrelid, a.attnum)
      and d.classid::regclass::text in ('pg_rewrite', 'pg_policy', 'pg_trigger', 'pg_attrdef', 'pg_proc', 'pg_publication_rel')
      and d.objid is distinct from f.oid
  ) as dependants
from pg_catalog.pg_attribute a
join pg_catalog.pg_type t on t.oid = a.atttypid
left join pg_catalog.pg_attrdef f on (f.adrelid, f.adnum) = (a.attrelid, a.attnum)
left join (values
  ('part_number', 'text'), ('file_name', 'text'), ('url', 'text'), ('signed_url', 'text'), ('bucket_id', 'text'),
  ('signed_url_expires_at', 'timestamp with time zone'), ('object_id', 'uuid')
) as w (name, type) on w.name = a.attname
where a.attrelid = to_regclass('public.part_images') and a.attnum > 0 and not a.attisdropped
  and not exists (select from pg_temp.adoption_obstacles);

-- varchar and char become text, unless something fixes their type: text alone holds any URL and name, and psqlODBC cuts a varchar of
-- any length at 255 characters. Of another type, or with a collation of its own, which cannot be compared with storage.objects.name,
-- its owner meant something by it. A sync gives a new record bucket, name and part number, and 080_part_images.sql gives defaults to
-- id and created_at; whether a trigger that fires before an insert gives the rest is tried there.
insert into pg_temp.adoption_obstacles (what, why, way_out)
select format('column %I', c.name), k.why, k.way_out
from pg_temp.adoption_columns c
cross join lateral (
  select c.name in ('signed_url_expires_at', 'object_id') as may_be_null, format('alter table public.part_images alter column %I', c.name) as alter_it
) as a
cross join lateral (values
  (
    c.type <> c.wanted and not c.is_varchar, format('is not of type %s but %s', c.wanted, c.type),
    case
      when c.name = 'object_id' or c.name = 'bucket_id' and c.type in ('uuid', 'smallint', 'integer', 'bigint', 'numeric')
        then format('It means something else there. Run: alter table public.part_images rename column %s to other_%1$s;%s', c.name, case
          when c.is_required and not c.has_default then format(' alter table public.part_images alter column other_%s drop not null;', c.name)
        end)
      else format(
        'Run: %s drop default, alter column %s type %s using %2$s%4$s;', a.alter_it, c.name, c.wanted,
        case when c.type = 'timestamp without time zone' then ' at time zone ''UTC''' else '::text::' || c.wanted end
      )
    end
  ),
  (c.is_generated and c.wanted is not null and c.name <> 'url', 'is generated, and a run has to write it', format('Run: %s drop expression;', a.alter_it)),
  (c.is_collated and c.wanted = 'text', 'has a collation of its own', format('Run: %s type text collate pg_catalog."default";', a.alter_it)),
  (
    c.is_varchar and c.is_limited and c.dependants is not null, format('of limited length has to become text, and these depend on it: %s', c.dependants),
    format('Keep their definitions (pg_get_viewdef for views) and drop them. Run: %s type text; and create them again.', a.alter_it)
  ),
  (
    c.is_required and c.name not in ('bucket_id', 'file_name', 'part_number') and not (c.name = 'id' and c.type = 'uuid' or c.name = 'created_at' and c.type ~ '^timestamp')
      and (a.may_be_null or not c.has_default and not exists (
        select
        from pg_catalog.pg_trigger g
        where g.tgrelid = to_regclass('public.part_images')
          -- For each row, before, on insert. Source: pg_trigger.h, TRIGGER_TYPE_ROW, _BEFORE, _INSERT.
          and g.tgtype & 7 = 7
          and g.tgenabled in ('O', 'A')
      )),
    'must have a value, and a sync has none for it',
    case
      when c.name = 'id' and c.type in ('smallint', 'integer', 'bigint', 'numeric')
        then 'Give it a default, as: create sequence public.part_images_id_numbers; select setval(''public.part_images_id_numbers'', coalesce(max(id), 0) + 1) from public.part_images; alter table public.part_images alter column id set default nextval(''public.part_images_id_numbers'');'
      when c.name = 'id' then format('Give it a default, as: %s set default gen_random_uuid();', a.alter_it)
      when c.type ~ '^(timestamp|date)' and not a.may_be_null then format('Run: %s set default now();', a.alter_it)
      when c.is_key then format('Give it a default: %s set default ...;', a.alter_it)
      else format('%s: %s drop not null;', case when a.may_be_null then 'Run' else 'Give it a default, or run' end, a.alter_it)
    end
  )
) as k (applies, why, way_out)
where k.applies
order by c.attnum;

-- An index of our name on other columns would be taken for ours.
insert into pg_temp.adoption_obstacles (what, why, way_out)
select format('the name %s', n.name), 'is taken, and one of its indexes needs it', format('Run: alter table public.%I rename to %I;', n.name, n.name || '_old')
from (values
  ('part_images_bucket_id_file_name_key', 'CREATE UNIQUE INDEX % ON public.part_images USING btree (bucket_id, file_name COLLATE "C")'),
  ('part_images_object_idx', 'CREATE INDEX % ON public.part_images USING hash (object_id)'),
  ('part_images_twins_idx', 'CREATE INDEX % ON public.part_images USING btree (%lower(%kopie%) COLLATE "C") INCLUDE (part_number, bucket_id)')
) as n (name, definition)
join pg_catalog.pg_class c on c.relname = n.name and c.relnamespace = 'public'::regnamespace
left join pg_catalog.pg_index i on i.indexrelid = c.oid
where not coalesce(i.indisvalid and pg_get_indexdef(i.indexrelid) like n.definition, false);

-- Whether a foreign key of any table refers to a row p. A reference of a row to itself goes with it, and holds nobody back: said of the
-- referring row alone, so that the tables can be hashed. The operators and the collation are those of the key itself.
select set_config('image_sync.is_referred', coalesce(string_agg(format('exists (select from %s as r where %s and (%s) is not true)', k.id, k.matches, k.itself), ' or '), 'false'), true)
from (
  select
    c.conrelid::regclass as id, string_agg('p.' || m.comparison, ' and ') as matches,
    case when c.conrelid = c.confrelid then string_agg('r.' || m.comparison, ' and ') else 'false' end as itself
  from pg_catalog.pg_constraint c
  cross join lateral (
    select format(
      '%I operator(%s) r.%I%s', ours.attname, f.operator::regoper, theirs.attname,
      case when ours.attcollation <> theirs.attcollation then ' collate ' || ours.attcollation::regcollation else '' end
    ) as comparison
    from unnest(c.conkey, c.confkey, c.conpfeqop) as f (theirs, ours, operator)
    join pg_catalog.pg_attribute theirs on (theirs.attrelid, theirs.attnum) = (c.conrelid, f.theirs)
    join pg_catalog.pg_attribute ours on (ours.attrelid, ours.attnum) = (c.confrelid, f.ours)
  ) as m
  -- A partition's copy of the key is its table's.
  where c.confrelid = to_regclass('public.part_images') and c.contype = 'f' and c.conparentid = 0
  group by c.oid, c.conrelid, c.confrelid
) as k;

-- Which bucket a row means that names none: the one that its owner's default says. Without a default part-images, unless there is no
-- such bucket and every other row names one and the same.
do $$
declare
  v_default constant text := (select c.default_value from pg_temp.adoption_columns c where c.name = 'bucket_id');
  v_bucket_id text;
begin
  if v_default is not null then
    execute format('select nullif((%s)::text, '''')', v_default) into v_bucket_id;
  end if;
  perform set_config('image_sync.has_bucket', (v_bucket_id is not null)::text, true);
  if v_default is null and exists (select from pg_temp.adoption_columns c where c.name = 'bucket_id') then
    select min(p.bucket_id::text) into v_bucket_id
    from public.part_images p
    where p.bucket_id::text <> '' and not exists (select from storage.buckets b where b.id = 'part-images')
    having count(distinct p.bucket_id::text) = 1;
  end if;
  perform set_config('image_sync.bucket_id', coalesce(v_bucket_id, 'part-images'), true);
end;
$$;

-- Of several rows of one file the one that other tables refer to stays (place 1), else the one with a URL, else the oldest, else the
-- one with the smaller number, else the one stored first.
create temporary table adoption_duplicates (row_id tid, bucket_id text, file_name text, key jsonb, is_referred boolean, place bigint) on commit drop;

do $$
declare
  v_columns record;
begin
  select
    coalesce(min(c.name), '') as first,
    string_agg(format('%1$L, p.%1$I', c.name), ', ' order by c.attnum) filter (where c.is_key) as key,
    string_agg(format(', p.%I nulls last', c.name), '' order by c.name) filter (
      where c.name = 'created_at' and c.type ~ '^(timestamp|date)' or c.name = 'id' and c.type ~ 'int'
    ) as age
  into v_columns
  from pg_temp.adoption_columns c;
  if v_columns.first = '' then
    return;
  end if;
  lock table public.part_images in access exclusive mode;
  -- An unqualified name means the column of the table, or the constant beside it where there is none.
  execute format('
    insert into pg_temp.adoption_duplicates
    select t.row_id, t.bucket_id, t.file_name, jsonb_build_object(%s), f.is_referred, row_number() over (
      partition by t.bucket_id, t.file_name collate "C" order by f.is_referred desc, t.has_url desc%s, t.row_id
    )
    from (
      select r.*, count(*) over (partition by r.bucket_id, r.file_name collate "C") as rows
      from (select null as bucket_id, null as file_name, null as signed_url) as absent
      cross join lateral (
        select
          p.ctid as row_id, coalesce(nullif(bucket_id::text, ''''), current_setting(''image_sync.bucket_id'')) as bucket_id,
          file_name::text as file_name, coalesce(signed_url::text, '''') <> '''' as has_url
        from public.part_images p
        where file_name::text <> ''''
      ) as r
    ) as t
    join public.part_images p on p.ctid = t.row_id
    cross join lateral (select %s as is_referred) as f
    where t.rows > 1', v_columns.key, v_columns.age, current_setting('image_sync.is_referred'));
  -- What a publication says to every change of a row is said before one is made.
  execute format('explain update public.part_images set %I = default', v_columns.first);
  execute 'explain delete from public.part_images';
exception
  when object_not_in_prerequisite_state or invalid_column_reference then
    insert into pg_temp.adoption_obstacles (what, why, way_out)
    values ('it', format('is published as it is: %s', sqlerrm), 'Give it a primary key, or run: alter table public.part_images replica identity full; a publication of some of its columns or rows has to have all of them.');
end;
$$;

-- Where other tables refer to several of them, which of them stays is not ours to say.
insert into pg_temp.adoption_obstacles (what, why, way_out)
select
  'it',
  format(
    'holds of %s file(s) several rows that other tables refer to, %s rows in all: %s%s', count(distinct (d.bucket_id, d.file_name)), count(*),
    string_agg(format('%s %s', d.file_name, d.key), ', ' order by d.file_name) filter (where d.number <= 20), case when count(*) > 20 then ', ...' end
  ),
  format(
    'Let the other tables refer to one row of each file, or give the rows file names of their own. All of them: select (d.record).* from (select row(p.*)::public.part_images as record, count(*) over (partition by coalesce(nullif(to_jsonb(p.*) ->> ''bucket_id'', ''''), %L), p.file_name) as referred from public.part_images p where p.file_name <> '''' and (%s)) as d where d.referred > 1 order by (d.record).file_name;',
    current_setting('image_sync.bucket_id'), current_setting('image_sync.is_referred')
  )
from (
  select f.*, row_number() over (order by f.file_name) as number
  from (
    select d.*, count(*) over (partition by d.bucket_id, d.file_name) as referred
    from pg_temp.adoption_duplicates d
    where d.is_referred
  ) as f
  where f.referred > 1
) as d
having count(*) > 0;

-- Ours says which object of Storage a record is of. And the key lets several nulls stand where it lets one empty name.
do $$
begin
  if exists (select from pg_temp.adoption_columns c where c.name = 'object_id' and c.type = c.wanted) then
    insert into pg_temp.adoption_obstacles (what, why, way_out)
    select 'column object_id', 'holds what are no ids of storage.objects', 'It means something else there. Run: alter table public.part_images rename column object_id to other_object_id;'
    from public.part_images p
    left join storage.objects o on o.id = p.object_id
    having count(p.object_id) > 0 and count(o.id) = 0;
  end if;
  if exists (select from pg_temp.adoption_columns c where c.name = 'file_name' and c.is_required) then
    insert into pg_temp.adoption_obstacles (what, why, way_out)
    select 'it', 'holds several rows with an empty file_name, which cannot be null: select * from public.part_images where file_name = '''';', 'Name them, or run: alter table public.part_images alter column file_name drop not null;'
    from public.part_images p
    where p.file_name::text = ''
    having count(*) > 1;
  end if;
end;
$$;

do $$
declare
  v_obstacles constant text := (select string_agg(format(E'%s %s\n%s', o.what, o.why, o.way_out), E'\nAlso: ' order by o.place) from pg_temp.adoption_obstacles o);
begin
  if v_obstacles is not null then
    raise exception 'Cannot adopt public.part_images: %', v_obstacles
      using errcode = 'object_not_in_prerequisite_state', hint = 'Nothing has been changed: run the migration again afterwards.';
  end if;
  perform set_config('search_path', current_setting('image_sync.search_path'), true), set_config('row_security', current_setting('image_sync.row_security'), true);
end;
$$;
