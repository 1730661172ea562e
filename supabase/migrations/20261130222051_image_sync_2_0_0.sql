-- image-sync 2.0.0: keeps a storage bucket and the table public.part_images in step. Generated; do not edit.
--
--   makes    schema image_sync: 7 tables, 4 types (move, look, item, write), 9 indexes, 2 views (objects,
--              records), 174 functions
--            schema public: 1 table (part_images), 3 indexes, 1 view (part_register), 29 functions
--            jobs of pg_cron: image-sync-nightly (0 2 * * *), image-sync-watchdog (* * * * *),
--              image-sync-housekeeping (30 3 * * *)
--            extensions, where they are missing: pg_cron, pg_net
--   definer  run with their owner's rights: image_sync.kick, image_sync.scheduled_jobs,
--              image_sync.schedule_facts, image_sync.referenced_names
--   grants   usage on schema image_sync to service_role
--            select, insert, update, delete on image_sync.settings, image_sync.project, image_sync.runs,
--              image_sync.chunks, image_sync.archive, image_sync.readers to service_role
--            select, insert on image_sync.moves to service_role
--            select on image_sync.objects, image_sync.records, public.part_register to service_role
--            execute on its functions, but for the jobs', to service_role; nothing to anon, authenticated
--              and public
--   yours    public.part_images is made where there is none. One that is there keeps rows, columns, grants
--              and policies; it gets, where it lacks them, the columns part_number, file_name, url,
--              signed_url, created_at, bucket_id, signed_url_expires_at, object_id, object_name and the
--              indexes part_images_bucket_id_file_name_key, part_images_object_idx, part_images_twins_idx;
--              varchar becomes text; id, bucket_id and created_at get a default where they have none. Of
--              several rows for one file one stays, the others go whole to image_sync.archive. An empty
--              bucket_id and part_number are filled
--   check    sed '1,/^$/d' THIS_FILE | sha256sum prints what --dry-run shows on another machine too:
--            8ce54c05498030774f23e0da7137c94d1b9a416a15c46c6a412bc3c0b53154f4

-- adoption, 1.0.0

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

-- settings, 1.0.0

-- One row per bucket that is kept in step. A bucket without a row is unknown to every request.
create table image_sync.settings (
  bucket_id text not null,
  extensions text[] not null default '{jpg,jpeg}',
  exclude text[] not null default '{.%,%/.%,__MACOSX/%,%/__MACOSX/%,@eaDir/%,%/@eaDir/%,Thumbs.db,%/Thumbs.db,desktop.ini,%/desktop.ini}',
  signed_url_ttl interval not null default '7 days',
  renew_before interval not null default '2 days',
  chunk_size integer not null default 1000,
  lease_duration interval not null default '60 seconds',
  max_attempts integer not null default 5,
  retry_delay interval not null default '15 seconds',
  max_delete_fraction numeric not null default 0.10,
  max_delete_count integer not null default 1000,
  probe_size integer not null default 10,
  verify_rate integer not null default 200,
  nightly boolean not null default true,
  public_url text,
  keep_chunks interval not null default '14 days',
  keep_runs interval not null default '90 days',
  constraint settings_pkey primary key (bucket_id),
  constraint settings_public_url_check check (public_url ~ '^https?://[^/?#]+$'),
  -- Storage signs at most 1,000 paths a call, and a chunk is signed with as few calls as can be.
  constraint settings_chunk_size_check check (chunk_size between 1 and 1000),
  constraint settings_max_attempts_check check (max_attempts between 1 and 100),
  constraint settings_max_delete_fraction_check check (max_delete_fraction between 0 and 1),
  constraint settings_max_delete_count_check check (max_delete_count >= 0),
  constraint settings_probe_size_check check (probe_size between 0 and 100),
  constraint settings_verify_rate_check check (verify_rate between 1 and 10000)
);

comment on table image_sync.settings is 'How each bucket is kept in step: one row per bucket. Change a row with an update; the next run follows it.';
comment on column image_sync.settings.bucket_id is 'The storage bucket, storage.buckets.id.';
comment on column image_sync.settings.extensions is 'Extensions, in lower case and without the dot, that make an object an image; compared without regard to case.';
comment on column image_sync.settings.signed_url_ttl is 'How long a new signed URL lives.';
comment on column image_sync.settings.renew_before is 'A URL that would expire within this time is signed again; two days let it survive two failed nights.';
comment on column image_sync.settings.chunk_size is 'At most so many objects (and so many records) in one chunk, 1 to 1,000.';
comment on column image_sync.settings.lease_duration is 'How long a worker owns a chunk before another may take it over.';
comment on column image_sync.settings.max_attempts is 'After so many failed attempts a chunk is dead and its run is partial at best.';
comment on column image_sync.settings.retry_delay is 'A failed chunk waits this long, doubled with each further attempt.';
comment on column image_sync.settings.max_delete_fraction is 'Cleanup refuses to remove more than this fraction of the bucket''s records.';
comment on column image_sync.settings.max_delete_count is 'Cleanup refuses to remove more than this number of records.';
comment on column image_sync.settings.probe_size is 'How many random signed URLs every sync fetches to see that they work.';
comment on column image_sync.settings.verify_rate is 'At most so many URLs a second are opened by a verify, by all of its workers together.';
comment on column image_sync.settings.nightly is 'Whether the nightly job syncs this bucket.';
comment on column image_sync.settings.public_url is 'Scheme and host under which readers reach the project, where that is not the SUPABASE_URL of the function (a custom domain, a local stack). Null: SUPABASE_URL.';
comment on column image_sync.settings.keep_chunks is 'Chunks of finished runs are pruned after this time.';
comment on column image_sync.settings.keep_runs is 'Finished runs are pruned after this time; the last run of each mode always stays.';

alter table image_sync.settings enable row level security;
grant select, insert, update, delete on image_sync.settings to service_role;

insert into image_sync.settings (bucket_id) values ('part-images');

-- project, 1.0.0

-- Where the function lives. It says so itself, with its first authenticated request: so the database can tell URLs of this project
-- from others, and knows after a restore into another project that nobody has spoken yet.
create table image_sync.project (
  singleton boolean not null default true,
  url text not null,
  function_version text not null,
  announced_at timestamptz not null default now(),
  constraint project_pkey primary key (singleton),
  constraint project_singleton_check check (singleton),
  constraint project_url_check check (url ~ '^https?://[^/?#]+$')
);

comment on table image_sync.project is 'The project that the function announced: one row, or none before its first authenticated request.';
comment on column image_sync.project.singleton is 'There is one row at most.';
comment on column image_sync.project.url is 'SUPABASE_URL of the function: scheme and host.';
comment on column image_sync.project.function_version is 'The version of the function that announced itself last.';
comment on column image_sync.project.announced_at is 'When the row was last written: when something in it changed.';

alter table image_sync.project enable row level security;
grant select, insert, update, delete on image_sync.project to service_role;

-- runs, 1.0.0

-- The status table: a row per pass over a bucket, with its report.
create table image_sync.runs (
  id uuid not null default gen_random_uuid(),
  bucket_id text not null,
  mode text not null,
  trigger text not null,
  options jsonb not null default '{}',
  plan_id uuid,
  cursor text not null default '',
  exhausted boolean not null default false,
  total_estimate bigint,
  chunk_size integer,
  bucket_created_at timestamptz,
  started_at timestamptz not null default now(),
  moved_at timestamptz not null default now(),
  kicked_at timestamptz,
  kick_id bigint,
  wake_hashes bytea[] not null default '{}',
  handed_off_by uuid,
  paced_until timestamptz,
  twins bigint,
  twins_cursor text,
  twin_keys text[] not null default '{}',
  finished_at timestamptz,
  outcome text,
  stop_reason text,
  error jsonb,
  summary jsonb,
  report jsonb,
  constraint runs_pkey primary key (id),
  constraint runs_mode_check check (mode in ('sync', 'analyze', 'verify', 'cleanup', 'restore')),
  constraint runs_trigger_check check (trigger in ('schedule', 'request')),
  constraint runs_outcome_check check (outcome in ('succeeded', 'partial', 'failed', 'cancelled')),
  constraint runs_chunk_size_check check (chunk_size > 0),
  constraint runs_finished_check check ((finished_at is null) = (outcome is null))
);

-- "At most one open run per bucket and mode" is this index, not a promise.
create unique index runs_open_key on image_sync.runs (bucket_id, mode) where finished_at is null;
-- The last run of each mode, and the history that housekeeping prunes.
create index runs_bucket_id_mode_started_at_idx on image_sync.runs (bucket_id, mode, started_at desc);
create index runs_plan_id_idx on image_sync.runs (plan_id);

comment on table image_sync.runs is 'The status table: one row per pass over a bucket in one mode. Open while finished_at is null.';
comment on column image_sync.runs.id is 'The run; made by whoever starts it, so that starting can be repeated.';
comment on column image_sync.runs.bucket_id is 'The bucket that it passes over. No foreign key to settings: history outlives them.';
comment on column image_sync.runs.mode is 'sync, analyze, cleanup (a dry run unless plan_id is set) or restore.';
comment on column image_sync.runs.trigger is 'schedule: the nightly job; request: a POST.';
comment on column image_sync.runs.options is 'What the request asked for beyond the mode, as it was sent.';
comment on column image_sync.runs.plan_id is 'cleanup: the dry run whose list is applied. restore: the cleanup run that is undone; no foreign key, because the archive may outlive that run.';
comment on column image_sync.runs.cursor is 'The key up to which chunks have been made; the next chunk begins behind it (byte order).';
comment on column image_sync.runs.exhausted is 'True once the last chunk of the bucket has been made.';
comment on column image_sync.runs.total_estimate is 'How many objects (restore and an applied cleanup: records) were expected when the run began; for progress alone.';
comment on column image_sync.runs.chunk_size is 'At most so many names in the next chunk, where that is less than the setting: chunks that the database could not do within its statement timeout were halved.';
comment on column image_sync.runs.bucket_created_at is 'created_at of the bucket when the run began: a bucket deleted and made again is another bucket.';
comment on column image_sync.runs.started_at is 'When the run was opened.';
comment on column image_sync.runs.kicked_at is 'When a call of the function was last queued for the run.';
comment on column image_sync.runs.kick_id is 'That call''s id in net._http_response.';
comment on column image_sync.runs.wake_hashes is 'SHA-256 of the tokens of the last two queued calls that were not used yet: who brings one may wake this run, and nothing else.';
comment on column image_sync.runs.handed_off_by is 'The worker that last handed the run off, so that a repeated hand-off queues no second call.';
comment on column image_sync.runs.twins is 'Look-up keys that several records of the bucket have, counted at the run''s end; null before.';
comment on column image_sync.runs.twins_cursor is 'Where that count stands; null before it and at its end.';
comment on column image_sync.runs.twin_keys is 'The first 20 of those keys.';
comment on column image_sync.runs.paced_until is 'A verify leases no chunk before this time: what it leased last takes so long at the setting''s rate.';
comment on column image_sync.runs.finished_at is 'When the run was closed; null while it is open.';
comment on column image_sync.runs.outcome is 'succeeded, partial (some items failed), failed (could not do its work) or cancelled; null while open.';
comment on column image_sync.runs.stop_reason is 'In one word why the run ended as it did, where it did not simply reach its end.';
comment on column image_sync.runs.error is 'What went wrong for the run as a whole, or the last attempt that the database ended: code, title, detail.';
comment on column image_sync.runs.summary is 'The totals of its chunks, kept when the run finished because chunks are pruned.';
comment on column image_sync.runs.report is 'What the run measured of bucket and table: the source of the status report (sync and analyze).';

alter table image_sync.runs enable row level security;
grant select, insert, update, delete on image_sync.runs to service_role;

-- chunks

-- A run's range of keys, the lease on it, and the ledger of what was found and done in it.
create table image_sync.chunks (
  run_id uuid not null,
  number integer not null,
  from_key text,
  to_key text,
  state text not null,
  attempts integer not null default 0,
  lease_token uuid,
  lease_expires_at timestamptz,
  not_before timestamptz,
  worker_id uuid,
  ledger jsonb not null default '{}',
  facts jsonb not null default '{}',
  problems jsonb not null default '[]',
  error jsonb,
  closed_at timestamptz,
  to_do text[] not null default '{}',
  to_do_ids uuid[] not null default '{}',
  to_link text[] not null default '{}',
  to_move text[] not null default '{}',
  write_size integer,
  constraint chunks_pkey primary key (run_id, number),
  constraint chunks_run_id_fkey foreign key (run_id) references image_sync.runs (id) on delete cascade,
  constraint chunks_state_check check (state in ('pending', 'leased', 'done', 'dead')),
  constraint chunks_write_size_check check (write_size > 0),
  constraint chunks_lease_check check (state <> 'leased' or (lease_token is not null and lease_expires_at is not null)),
  -- No object in two chunks: every range begins where another one ended.
  constraint chunks_run_id_from_key_key unique (from_key, run_id)
);

-- Each look of a working run is one at a few rows, however many thousand chunks it has. Plans are made when the table is empty and stay
-- in their sessions: to such a plan every index that begins with run_id is as good as any other, and leads through all chunks of
-- the run. So one index alone begins with it, the primary key; and a query that says "run_id is not distinct from" means so: no
-- index has what it says, and what it is meant for is left.
-- What is left to claim: a handful of rows.
create index chunks_open_idx on image_sync.chunks (number) where state in ('pending', 'leased');
-- The chunk of a lease.
create index chunks_lease_token_idx on image_sync.chunks (lease_token);
-- Where records and their files have still to meet.
create index chunks_to_move_idx on image_sync.chunks (number) where to_move <> '{}';
-- The last chunks that were signed, newest first: an order that only this index gives.
create index chunks_closed_idx on image_sync.chunks (run_id, closed_at desc nulls first) where ledger ? 'to_sign';

alter table image_sync.chunks enable row level security;
grant select, insert, update, delete on image_sync.chunks to service_role;

-- archive, 1.0.0

-- Records that were taken out of public.part_images, whole, with whatever columns their owner added.
create table image_sync.archive (
  id bigint generated always as identity,
  bucket_id text not null,
  file_name text not null,
  record jsonb not null,
  reason text not null,
  run_id uuid,
  archived_at timestamptz not null default now(),
  restored_at timestamptz,
  constraint archive_pkey primary key (id),
  constraint archive_reason_check check (reason in ('orphaned', 'duplicate', 'unnamed'))
);

-- A restore walks the records of one cleanup run in key order.
create index archive_run_id_file_name_idx on image_sync.archive (run_id, file_name collate "C");

comment on table image_sync.archive is 'Records that were taken out of public.part_images, whole and restorable. Never pruned by image-sync.';
comment on column image_sync.archive.id is 'The archived record.';
comment on column image_sync.archive.bucket_id is 'The bucket that it belonged to.';
comment on column image_sync.archive.file_name is 'The object that it was the record of.';
comment on column image_sync.archive.record is 'The whole row as to_jsonb() gave it, columns of its owner included.';
comment on column image_sync.archive.reason is 'orphaned: removed by a confirmed cleanup; duplicate: a second row of one file, found when the table was adopted; unnamed: a record without a file name, moved by hand.';
comment on column image_sync.archive.run_id is 'The cleanup run that removed it, by which it is restored; null for duplicates found at adoption. No foreign key: what can be restored outlives the history of runs.';
comment on column image_sync.archive.archived_at is 'When it was removed.';
comment on column image_sync.archive.restored_at is 'When it was put back; null while it is only here.';

alter table image_sync.archive enable row level security;
grant select, insert, update, delete on image_sync.archive to service_role;

-- part images, 1.0.0

-- public.part_images: the table that the register reads. Created where there is none; adopted where one exists, with every row,
-- column, constraint, grant, policy and trigger of its owner. The names and types of its first six columns are a contract with
-- its readers: select part_number, file_name, signed_url from part_images where signed_url is not null order by part_number.
-- What is in the way of an adoption was asked in 010_adoption.sql; what could not be asked is tried here.
do $$
begin
  if to_regclass('public.part_images') is null then
    create table public.part_images (
      id uuid not null default gen_random_uuid(),
      constraint part_images_pkey primary key (id)
    );
    alter table public.part_images enable row level security;
    -- Older projects grant everything on a new table of public to everybody, by default privileges.
    revoke all on public.part_images from public, anon, authenticated, service_role;
    grant select, insert, update, delete on public.part_images to service_role;
  end if;
end;
$$;

-- An owner's triggers fire for what goes and what is changed, as for anybody's work; and none, of a statement either, for nothing.
do $$
declare
  v_table text;
  v_column text;
  v_constraint text;
  v_detail text;
  v_hint text;
  v_which text;
begin
  -- Inserts name neither id nor created_at, so that an owner's own defaults win; where there is none, these serve.
  alter table public.part_images
    add column if not exists part_number text,
    add column if not exists file_name text,
    add column if not exists url text,
    add column if not exists signed_url text,
    add column if not exists created_at timestamptz default now(),
    add column if not exists bucket_id text not null default 'part-images',
    add column if not exists signed_url_expires_at timestamptz,
    add column if not exists object_id uuid;

  if exists (select from pg_temp.adoption_duplicates) then
    with removed as (
      delete from public.part_images p
      using pg_temp.adoption_duplicates d
      where d.place > 1 and p.ctid = d.row_id
      returning d.bucket_id, d.file_name, to_jsonb(p.*) as record
    )
    insert into image_sync.archive (bucket_id, file_name, record, reason)
    select r.bucket_id, r.file_name, r.record, 'duplicate' from removed r;
    if exists (select from pg_temp.adoption_duplicates d join public.part_images p on p.ctid = d.row_id where d.place > 1) then
      raise exception 'rows that are not the only ones of their file cannot go to the archive: a trigger or rule of its owner keeps them'
        using errcode = 'IS001',
          hint = 'Look at: select tgname, tgfoid::regproc from pg_trigger where tgrelid = ''public.part_images''::regclass and not tgisinternal; and let the rows go, or remove them yourself.';
    end if;
  end if;
  -- What is checked at the end of a transaction is checked here: nothing of it may wait while the table is altered.
  set constraints all immediate;
  execute coalesce((
    select 'alter table public.part_images ' || string_agg(format('alter column %I type text', c.name), ', ')
    from pg_temp.adoption_columns c
    where c.is_varchar and c.dependants is null
  ), '');
  if exists (select from public.part_images p where nullif(p.bucket_id, '') is null) then
    update public.part_images p set bucket_id = current_setting('image_sync.bucket_id') where nullif(p.bucket_id, '') is null;
  end if;
  -- Several rows without a name are no duplicates, and the key lets several nulls stand where it lets one empty name.
  if (select count(*) > 1 from public.part_images p where p.file_name = '') then
    update public.part_images p set file_name = null where p.file_name = '';
  end if;
  set constraints all immediate;

  -- A part number that is null is the file name without folders and extension, as image_sync.part_numbers_of() has it. Where the table
  -- does not take all of them, it is asked row by row: one that has to be unique, and is another record's, stays null.
  for v_which in
    select 'true' where exists (select from public.part_images p where p.part_number is null and p.file_name <> '')
    union all
    select format('p.ctid = %L', p.ctid) from public.part_images p where p.part_number is null and p.file_name <> ''
  loop
    begin
      execute 'update public.part_images p set part_number = regexp_replace(p.file_name, ''^.*/|\.[^./]*$'', '''', ''g'') where p.part_number is null and p.file_name <> '''' and ' || v_which;
      set constraints all immediate;
      exit when v_which = 'true';
    exception
      when integrity_constraint_violation or data_exception or raise_exception then
        continue;
    end;
  end loop;

  execute coalesce((
    select 'alter table public.part_images ' || string_agg(format('alter column %s set default %s', c.name, case c.name
      when 'id' then 'gen_random_uuid()' when 'created_at' then 'now()' else quote_literal(current_setting('image_sync.bucket_id'))
    end), ', ')
    from pg_temp.adoption_columns c
    where not c.has_default and (c.name = 'id' and c.type = 'uuid' or c.name = 'created_at' and c.type ~ '^timestamp')
      or c.name = 'bucket_id' and current_setting('image_sync.has_bucket') = 'false'
  ), '');
  alter table public.part_images alter column bucket_id set not null;
  -- The key of a record, in the order in which chunks walk. Byte order, as storage.objects' own keyset index has it.
  create unique index if not exists part_images_bucket_id_file_name_key on public.part_images (bucket_id, file_name collate "C");
  -- Two records as a sync inserts them, undone at once: whether a trigger fills what a sync leaves out, and whether a unique key lets
  -- more than one in, is known by trying. Names that nobody has may be refused for what they are: that is no answer.
  begin
    insert into public.part_images (bucket_id, file_name, part_number)
    select current_setting('image_sync.bucket_id'), n.name || '.jpg', n.name
    from (values ('image-sync-1'), ('image-sync-2')) as n (name);
    set constraints all immediate;
    raise exception 'Tried';
  exception
    when others then
      get stacked diagnostics v_table = table_name, v_column = column_name, v_constraint = constraint_name, v_detail = pg_exception_detail;
      if v_table = 'part_images' and sqlstate in ('23502', '23505', '23P01') then
        raise exception 'a sync could not insert its records: %', concat(sqlerrm, case when v_column = '' then ': ' || v_detail end)
          using errcode = 'IS001',
            hint = case
              when v_column <> '' then format('Neither a sync nor a trigger gives it a value. Give it a default, or run: alter table public.part_images alter column %I drop not null;', v_column)
              else format('Give its columns a default that differs from row to row (a sequence that is behind its rows is set by setval), or drop it. It is: select pg_get_indexdef(''public.%I''::regclass);', v_constraint)
            end;
      end if;
  end;
exception
  when others then
    get stacked diagnostics v_detail = pg_exception_detail, v_hint = pg_exception_hint;
    raise exception E'Cannot adopt public.part_images: %\n%',
      concat(case when sqlstate <> 'IS001' then 'it was tried and undone, because the database said: ' end, sqlerrm, ': ' || nullif(v_detail, '')),
      coalesce(nullif(v_hint, ''), 'Mend what it says: a trigger, rule or constraint of the table, or a name that is too long.')
      using errcode = 'object_not_in_prerequisite_state', hint = 'Nothing has been changed: run the migration again afterwards.';
end;
$$;

drop table pg_temp.adoption_obstacles, pg_temp.adoption_columns, pg_temp.adoption_duplicates;

-- An owner's own words stay.
do $$
begin
  execute coalesce((
    select string_agg(format('comment on column public.part_images.%I is %L', a.attname, c.words), '; ')
    from pg_catalog.pg_attribute a
    join (values
      ('id', 'The record.'),
      ('part_number', 'The file name without folders and extension.'),
      ('file_name', 'The object''s name in its bucket, folders included. Together with bucket_id the record''s key.'),
      ('url', 'Deprecated: image-sync neither reads nor writes it.'),
      ('signed_url', 'A URL that shows the image without a key until signed_url_expires_at.'),
      ('created_at', 'When the record was made.'),
      ('bucket_id', 'The storage bucket of the file.'),
      ('object_id', 'The object of Storage that the record is of, whatever that is called by now: so the record follows it when it is renamed or moved. Null: not known yet.'),
      ('signed_url_expires_at', 'When signed_url stops working; never later than its token says. Null: not known, so the URL is made anew.')
    ) as c (column_name, words) on c.column_name = a.attname
    where a.attrelid = 'public.part_images'::regclass and col_description(a.attrelid, a.attnum) is null
  ), '');
  if obj_description('public.part_images'::regclass, 'pg_class') is null then
    comment on table public.part_images is 'One row per image of a storage bucket with a signed URL that works. Kept in step by image-sync.';
  end if;
end;
$$;

-- places, 1.0.0

-- Files that were renamed or moved. Storage's own move and rename change the row of storage.objects in place: its id stays, which the
-- record remembers as object_id. So a record follows its file: same id, same created_at, same columns of its owner's, new name.
-- A copy and a delete give another id: one record too many and one too few, which nobody can tell from two files.

create table image_sync.moves (
  id bigint generated always as identity,
  bucket_id text not null,
  file_name text not null,
  object_id uuid not null,
  moved_at timestamptz not null default now(),
  constraint moves_pkey primary key (id)
);

create index moves_bucket_id_file_name_idx on image_sync.moves (bucket_id, file_name collate "C");

comment on table image_sync.moves is 'The names that records had before they followed their files. Pruned with the history of runs.';
comment on column image_sync.moves.id is 'The move.';
comment on column image_sync.moves.bucket_id is 'The bucket that the file was in.';
comment on column image_sync.moves.file_name is 'The name that it had there.';
comment on column image_sync.moves.object_id is 'The object: where it is now, storage.objects says.';
comment on column image_sync.moves.moved_at is 'When the record followed.';

alter table image_sync.moves enable row level security;
grant select, insert on image_sync.moves to service_role;

-- schedule, 1.0.0

-- pg_cron's clock is GMT. A job of the same name is replaced.
select cron.schedule('image-sync-nightly', '0 2 * * *', 'select image_sync.run_nightly()');
select cron.schedule('image-sync-watchdog', '* * * * *', 'select image_sync.watchdog()');
select cron.schedule('image-sync-housekeeping', '30 3 * * *', 'select image_sync.prune_history()');

-- settings, 1.1.0

alter table image_sync.settings
  add column register boolean not null default false,
  -- In like _ is any character: MYMACOSX/ is a folder like any other. And the bins of Windows and of network drives are none.
  alter column exclude set default '{.%,%/.%,"\\_\\_MACOSX/%","%/\\_\\_MACOSX/%",@eaDir/%,%/@eaDir/%,#recycle/%,%/#recycle/%,$RECYCLE.BIN/%,%/$RECYCLE.BIN/%,"System Volume Information/%","%/System Volume Information/%",Thumbs.db,%/Thumbs.db,desktop.ini,%/desktop.ini}';

update image_sync.settings s set register = true where s.bucket_id = 'part-images';
update image_sync.settings s
set exclude = default
where s.exclude = '{.%,%/.%,__MACOSX/%,%/__MACOSX/%,@eaDir/%,%/@eaDir/%,Thumbs.db,%/Thumbs.db,desktop.ini,%/desktop.ini}';

-- A pattern of like that ends with a lone escape character is an error whatever it is matched with: it would end every run.
update image_sync.settings s
set exclude = array(
  select case when p.pattern ~ '(^|[^\\])(\\\\)*\\$' then p.pattern || '\' else p.pattern end
  from unnest(s.exclude) with ordinality as p (pattern, place)
  order by p.place
)
where array_to_string(s.exclude, E'\n') ~ '\\';

comment on column image_sync.settings.exclude is 'Patterns of LIKE (% any text, _ any character, \ before either for itself); an object whose whole name matches one of them, and that has no record, is left out. Hidden and system files and bins of the common systems by default; add thumbs/% to leave a folder out.';
comment on column image_sync.settings.register is 'Whether public.part_register shows this bucket. Where none says so, or several do, it is part-images, else the first by name.';

-- part images, 1.1.0

-- Every insert writes both indexes. A thousand random ids in a tree of a million cost three times what they cost in a hash. The
-- bucket is part of the other one's expression, which is that of image_sync.records: an index that began with it would seem as good
-- as the record's key to a planner that knows nothing of the table.
create index if not exists part_images_object_idx on public.part_images using hash (object_id);
create index if not exists part_images_twins_idx on public.part_images ((
  bucket_id || '/' || lower(case
    when part_number ~ '[_)\s]' then coalesce(nullif(regexp_replace(part_number, '^((copy of|kopie von|copie de|copia d[ei]) )+|( *\((\d+|([^()]+ )?(copy|kopie|copie|copia))\)|( -)? (copy|kopie|copie|copia)( \d+| \(\d+\))?|_jpe?g|_png)?\s*$', '', 'gi'), ''), part_number)
    else part_number
  end)
) collate "C") include (part_number, bucket_id);
drop index if exists public.part_images_object_id_idx, public.part_images_look_up_key_idx;

-- objects and records, 1.1.0

-- Made anew below: it stays as it is where nothing was added to storage.objects.
drop view if exists image_sync.objects cascade;

-- readers, 1.1.0

-- Readers: who may read the register and nothing else. One by ODBC is a database role of the same name, which the SQL of
-- "image-sync reader add NAME --odbc" makes together with its row here. One by HTTPS has a key of 256 random bits, of which only the
-- SHA-256 is kept: with that many bits a plain hash is enough, and one look-up by its index tells a key from a guess.
create table image_sync.readers (
  name text not null,
  kind text not null,
  bucket_id text not null,
  key_hash bytea,
  created_at timestamptz not null default now(),
  last_used_at timestamptz,
  constraint readers_pkey primary key (name),
  constraint readers_name_check check (name ~ '^[a-z][a-z0-9_-]{0,47}$'),
  constraint readers_kind_check check (kind in ('odbc', 'https')),
  constraint readers_bucket_id_check check (bucket_id <> ''),
  constraint readers_key_hash_check check ((kind = 'https') = (key_hash is not null)),
  constraint readers_key_hash_length_check check (octet_length(key_hash) = 32),
  constraint readers_key_hash_key unique (key_hash)
);

comment on table image_sync.readers is 'Who may read the register of a bucket and nothing else: a database role for ODBC, or a key for register.csv.';
comment on column image_sync.readers.name is 'The reader; of an ODBC reader it is the database role.';
comment on column image_sync.readers.kind is 'odbc or https.';
comment on column image_sync.readers.bucket_id is 'The bucket whose register they read.';
comment on column image_sync.readers.key_hash is 'SHA-256 of an HTTPS reader''s key; the key itself is shown once and kept nowhere.';
comment on column image_sync.readers.created_at is 'When the reader was added.';
comment on column image_sync.readers.last_used_at is 'When the key was last used, to the hour; null: not yet, or an ODBC reader, whose reading the database does not tell.';

alter table image_sync.readers enable row level security;
grant select, insert, update, delete on image_sync.readers to service_role;

-- register, 1.1.0

-- A view of the project's own would be replaced without a word.
do $$
begin
  if to_regclass('public.part_register') is not null then
    raise exception E'Cannot install image-sync: public.part_register exists already\nRename it: alter table public.part_register rename to part_register_other;'
      using errcode = 'duplicate_table',
        hint = 'Nothing has been changed: run the migration again afterwards.';
  end if;
end;
$$;

-- settings, 2.0.0

-- What a setting may hold is checked where it is set. An interval is compared by its sum, and added to a time part by part: years that days
-- take back again would leave the calendar. The history of a hundred years is what nobody prunes.
update image_sync.settings s
set keep_chunks = least(s.keep_chunks, interval '100 years'), keep_runs = least(s.keep_runs, interval '100 years')
where s.keep_runs > interval '100 years';

do $$
declare
  v_check record;
begin
  execute coalesce((
    select 'alter table image_sync.settings ' || string_agg(format('drop constraint %I', c.conname), ', ')
    from pg_catalog.pg_constraint c
    where c.conrelid = 'image_sync.settings'::regclass
      and c.conname ~ '^settings_(bucket_id|extensions|exclude|signed_url_ttl|renew_before|lease_duration|retry_delay|keep_chunks|keep_runs)_check$'
  ), '');
  for v_check in
    select c.name, c.bounds, format('abs(extract(year from %1$s)) <= 100 and abs(extract(day from %1$s)) <= 36600', c.name) as parts
    from (values
      ('signed_url_ttl', 'between interval ''1 minute'' and interval ''365 days'''),
      -- A URL that is due for renewal as soon as it is made would be made again every night.
      ('renew_before', '>= interval ''0'' and renew_before < signed_url_ttl'),
      ('lease_duration', 'between interval ''1 second'' and interval ''10 minutes'''),
      ('retry_delay', 'between interval ''0'' and interval ''1 hour'''),
      -- A plan is good for a day and an open run for hours: their chunks must outlive them.
      ('keep_chunks', 'between interval ''2 days'' and interval ''100 years'''),
      ('keep_runs', 'between keep_chunks and interval ''100 years''')
    ) as c (name, bounds)
  loop
    execute format('update image_sync.settings set %1$s = justify_interval(%1$s) where not (%2$s)', v_check.name, v_check.parts);
    execute format('alter table image_sync.settings add constraint settings_%1$s_check check (%1$s %2$s and %3$s)', v_check.name, v_check.bounds, v_check.parts);
  end loop;
end;
$$;

-- Control characters: no name that Storage opens has one, and whoever pastes one does not see it. In a pattern _ is any character.
update image_sync.settings s
set
  extensions = coalesce(nullif(array(
    select regexp_replace(e.extension, '[\u0001-\u001f\u007f-\u009f\u2028\u2029]', '', 'g')
    from unnest(s.extensions) with ordinality as e (extension, place)
    -- None is files without an extension, which nobody meant.
    where e.extension !~ '^[\u0001-\u001f\u007f-\u009f\u2028\u2029]+$'
    order by e.place
  ), '{}'), '{jpg,jpeg}'),
  exclude = array(
    select regexp_replace(p.pattern, '\\?[\u0001-\u001f\u007f-\u009f\u2028\u2029]', '_', 'g')
    from unnest(s.exclude) with ordinality as p (pattern, place)
    order by p.place
  )
where array_to_string(s.extensions || s.exclude, '') ~ '[\u0001-\u001f\u007f-\u009f\u2028\u2029]';

delete from image_sync.settings s where s.bucket_id ~ '[\u0001-\u001f\u007f-\u009f\u2028\u2029]';

alter table image_sync.settings
  add constraint settings_bucket_id_check check (bucket_id <> '' and bucket_id !~ '[\u0001-\u001f\u007f-\u009f\u2028\u2029]'),
  add constraint settings_extensions_check check (
    cardinality(extensions) > 0
    and array_position(extensions, null) is null
    and array_to_string(extensions, '') = lower(array_to_string(extensions, ''))
    and array_to_string(extensions, ' ') !~ '[./\u0001-\u001f\u007f-\u009f\u2028\u2029]'
  ),
  add constraint settings_exclude_check check (
    array_position(exclude, null) is null
    and array_position(exclude, '') is null
    -- One pattern a line.
    and array_to_string(exclude, E'\n') !~ '(^|[^\\])(\\\\)*\\(\n|$)'
    and array_to_string(exclude, '') !~ '[\u0001-\u001f\u007f-\u009f\u2028\u2029]'
  );

-- project, 2.0.0

-- An address is the beginning of every URL. Of the setting public_url what is one without its spaces and line breaks stays; without the
-- rest readers use the project's own, as the next sync signs. Of the project what is none goes: the function announces itself anew with
-- its next request.
do $$
declare
  v_address constant text := '^https?://((([A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?\.)*(?![0-9]+(:|$))[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)|((25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])\.){3}(25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])|\[[0-9A-Fa-f]{0,4}(:[0-9A-Fa-f]{0,4}){2,7}\])(:(6553[0-5]|655[0-2][0-9]|65[0-4][0-9]{2}|6[0-4][0-9]{3}|[1-5][0-9]{4}|[1-9][0-9]{0,3}))?$';
  v_other record;
begin
  alter table image_sync.settings drop constraint settings_public_url_check;
  alter table image_sync.project drop constraint project_url_check;
  delete from image_sync.project p where p.url !~ v_address;
  update image_sync.settings s
  set public_url = regexp_replace(s.public_url, '[\u0001-\u0020\u007f-\u00a0\u2028\u2029]', '', 'g')
  where s.public_url !~ v_address;
  for v_other in select s.bucket_id, s.public_url from image_sync.settings s where s.public_url !~ v_address loop
    raise warning 'The public_url of bucket % is no address and was set to null: %', v_other.bucket_id, v_other.public_url;
  end loop;
  update image_sync.settings s set public_url = null where s.public_url !~ v_address;
  execute format('alter table image_sync.settings add constraint settings_public_url_check check (public_url ~ %L)', v_address);
  execute format('alter table image_sync.project add constraint project_url_check check (url ~ %L)', v_address);
end;
$$;

-- runs, 2.0.0

alter table image_sync.runs add column stride integer;
comment on column image_sync.runs.stride is 'How many names the walk looks at next at once; null: as many as a chunk may have.';
comment on column image_sync.runs.chunk_size is 'At most so many rows in one write, where that is less than the setting: as many as the database did within its statement timeout.';
comment on column image_sync.runs.moved_at is 'When a chunk of the run was last made or closed. Looking at the run or handing it on is no progress.';
comment on column image_sync.runs.wake_hashes is 'SHA-256 of the tokens of the last two queued calls, newest first, null for one that was used: who brings one may wake this run, and nothing else.';

-- archive, 2.0.0

-- JSON has no word for some of what a row may hold: an hstore, the lower bound of an array, a key that a json has twice.
alter table image_sync.archive
  add column row_text text,
  add column row_columns text[];

comment on column image_sync.archive.record is 'The whole row as to_jsonb() gave it, columns of its owner included: to read, and to restore what has no row_text.';
comment on column image_sync.archive.row_text is 'The whole row in its own text form, from which it is restored; null where it was archived before 2.0.0 or not by a cleanup.';
comment on column image_sync.archive.row_columns is 'The columns that row_text has, in their order.';

-- places, 2.0.0

-- Without it nobody could tell a file that was renamed from a record whose file_name its owner changed: both are elsewhere than their
-- object. Null in a record that was linked before this was remembered.
alter table public.part_images add column if not exists object_name text;
comment on column public.part_images.object_name is 'The name that the object had when the record was linked to it; where file_name is another one, the record''s owner chose it.';

-- A record that follows its file from one place to another.
create type image_sync.move as (from_bucket text, from_name text, from_part text, to_bucket text, to_name text, to_part text, object_id uuid);

comment on type image_sync.move is 'A record''s old and new bucket, name and part number (null: that stays), and the object that it follows.';

-- compare, 2.0.0

-- What a look at names gave.
create type image_sync.look as (to_do text[], to_do_ids uuid[], to_link text[], to_move text[], found integer, ledger jsonb, facts jsonb);

comment on type image_sync.look is 'What a run found among names: to_do, those that need a URL (in a verify: whose URL is to be opened), with the objects of those that have no record; to_link, whose record does not know its object; to_move, where a record and its file have to meet first; found, how many need something; and what was counted (image_sync.chunks.ledger, facts).';

-- writing, 2.0.0

-- A name with what is to stand in its record.
create type image_sync.item as (name text, url text, expires_at timestamptz, object_id uuid);

comment on type image_sync.item is 'A record to be written: its file name and, where a kind of write has use for them, its URL, when that dies, and the object, where no record is expected at the name.';

-- What became of items.
create type image_sync.write as (written text[], inserted text[], held text[], refused jsonb);

comment on type image_sync.write is 'What became of records that were to be written: the names of those that really were, of these those that are new, of those that somebody else holds, and [{"name", "sqlstate", "is_taken", "words"}] for each that the table refuses. A name that is in none of them was left out, by a trigger or by the statement itself.';

-- redaction

-- Words that come from elsewhere (a trigger's message, an answer of Storage) may quote a whole row, signed URL and all. They are
-- redacted before they are stored, here as in the function's log.ts.
create or replace function image_sync.redact(p_words text)
returns text
language sql
immutable
set search_path = ''
as $$
  select left(
    regexp_replace(
      regexp_replace(
        regexp_replace(p_words, 'token=[^\s"''&]+', 'token=[redacted]', 'g'),
        'eyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+', '[redacted]', 'g'
      ),
      '(sb_secret|sb_publishable|\misr)_[A-Za-z0-9_-]+', '\1_[redacted]', 'g'
    ),
    500
  )
$$;

comment on function image_sync.redact(text) is
  'Words of foreign origin, fit to be stored: without tokens of signed URLs, JWTs and keys, at most 500 characters.';

-- project

-- Which version of the schema this is, as semantic versioning counts: the function refuses to work beside one that it does not fit.
create or replace function image_sync.schema_version()
returns text language sql immutable set search_path = '' as $$
  select '2.0.0'
$$;

comment on function image_sync.schema_version() is 'The version of the schema.';

-- Whether the function that announced itself last knows this schema, as semantic versioning counts; so does one that has not yet.
create or replace function image_sync.function_fits()
returns boolean language sql stable set search_path = '' as $$
  select not exists (
    select
    from image_sync.project p
    where p.function_version ~ '^\d+\.\d+\.\d+$'
      and split_part(p.function_version, '.', 1) <> split_part(image_sync.schema_version(), '.', 1)
  )
$$;

comment on function image_sync.function_fits() is 'False while a function of another major version is deployed: between a push and the deploy after it.';

-- A bucket's name as encodeURIComponent() writes it. Source: ECMA-262, 19.2.6.4.
create or replace function image_sync.encode_uri_component(p_text text)
returns text language sql immutable set search_path = '' as $$
  select string_agg(
    case
      when c.character ~ '[A-Za-z0-9_.!~*''()-]' then c.character
      else upper(regexp_replace(encode(convert_to(c.character, 'UTF8'), 'hex'), '(..)', '%\1', 'g'))
    end, '' order by c.place)
  from regexp_split_to_table(p_text, '') with ordinality as c (character, place)
$$;

comment on function image_sync.encode_uri_component(text) is 'The text with everything percent-encoded that JavaScript''s encodeURIComponent() encodes.';

-- What a signed URL of the bucket begins with: the address for readers, and the bucket's path.
create or replace function image_sync.url_base(p_settings image_sync.settings)
returns text language plpgsql stable set search_path = '' as $$
begin
  return coalesce(
    coalesce(p_settings.public_url, (select p.url from image_sync.project p)) || '/storage/v1/object/sign/'
    || case
      when p_settings.bucket_id ~ '^[A-Za-z0-9_.-]+$' then p_settings.bucket_id
      else image_sync.encode_uri_component(p_settings.bucket_id)
    end
    || '/', '');
end;
$$;

comment on function image_sync.url_base(image_sync.settings) is 'What every signed URL of the bucket begins with; empty, so that every text begins with it, where no address is known.';

-- Whether a URL is that of a file below an address, and not of another one. The common names are the same in a URL: few are encoded.
create or replace function image_sync.is_url_of(p_url text, p_url_base text, p_name text)
returns boolean language sql immutable as $$
  select p_url_base = ''
    or starts_with(p_url, p_url_base || p_name || '?')
    or p_name ~ '[^A-Za-z0-9_./-]' and starts_with(p_url, p_url_base || replace(image_sync.encode_uri_component(p_name), '%2F', '/') || '?')
$$;

comment on function image_sync.is_url_of(text, text, text) is 'Whether a signed URL begins with what image_sync.url_base gave and is of this object; true where no address is known. Inlined.';

-- Written only where it differs, so that a thousand isolates cost a look each.
create or replace function public.image_sync_announce(p_url text, p_version text)
returns jsonb language plpgsql set search_path = '' set lock_timeout = '1s' as $$
declare
  v_changed boolean := false;
begin
  if not exists (select from image_sync.project p where p.url = p_url and p.function_version = p_version) then
    insert into image_sync.project as p (url, function_version)
    values (p_url, p_version)
    on conflict (singleton) do update
    set url = excluded.url, function_version = excluded.function_version, announced_at = now()
    where (p.url, p.function_version) is distinct from (excluded.url, excluded.function_version);
    v_changed := found;
  end if;
  return jsonb_build_object('changed', v_changed, 'schema_version', image_sync.schema_version());
exception
  when check_violation or not_null_violation then
    raise exception 'Cannot announce %: it is not an address', p_url
      using errcode = 'invalid_parameter_value', hint = 'Send scheme and host, as in https://ref.supabase.co.';
end;
$$;

comment on function public.image_sync_announce(text, text) is 'The function says where it lives (scheme and host) and which version it is. Returns {"changed", "schema_version"}. Raises invalid_parameter_value for anything but an http address.';

-- chunks

comment on table image_sync.chunks is 'A run''s range of keys with its lease and its ledger. Balanced: listed = images + not_images, images = recorded + inserted + moved + unmoved + collided + vanished + missing + unsettled and, once done, to_sign = signed + withdrawn + failed + held and to_open = shown + broken.';
comment on column image_sync.chunks.run_id is 'The run that the chunk belongs to.';
comment on column image_sync.chunks.number is 'The chunk''s place in its run, from 1.';
comment on column image_sync.chunks.from_key is 'The range begins behind this key (byte order); empty: at the beginning. Null: names from anywhere, to which records were moved.';
comment on column image_sync.chunks.to_key is 'The range ends with this key, included; null: at the end of the bucket.';
comment on column image_sync.chunks.state is 'pending, leased, done, or dead after too many attempts.';
comment on column image_sync.chunks.attempts is 'How many attempts have failed: reported by a worker, or ended by an expired lease. What the database ended counts for nothing.';
comment on column image_sync.chunks.lease_token is 'The token of the present or last lease; closing with another one changes nothing.';
comment on column image_sync.chunks.lease_expires_at is 'From then on another worker may take the chunk over.';
comment on column image_sync.chunks.not_before is 'A pending chunk is not leased again before this time.';
comment on column image_sync.chunks.worker_id is 'The invocation that leased or walked the chunk last.';
comment on column image_sync.chunks.to_do is 'Names that still need a URL; in a verify those whose URL is to be opened.';
comment on column image_sync.chunks.to_do_ids is 'The objects of to_do, in the same order, where the name had no record when it was looked at; null where it had one.';
comment on column image_sync.chunks.to_link is 'Names whose record does not know its object yet.';
comment on column image_sync.chunks.to_move is 'Names at which a record and its file have to meet first; taken out once that was tried.';
comment on column image_sync.chunks.write_size is 'As many rows at once as the database does in time; null: all.';
comment on column image_sync.chunks.ledger is 'What was counted in the range, by name; what is zero is left out.
Found: listed, bytes, images, not_images (of these excluded, empty_files), recorded, missing, moved, unmoved, unsettled, orphaned, several_files; records, records_signed, records_expired, images_signed, orphans_unsigned, orphans_expired.
Done: to_sign = signed + withdrawn + failed + held, inserted, updated, linked, collided, vanished; to_open = shown + broken (of these rejected); removed, restored, skipped; storage_calls, retries, listing_ms.';
comment on column image_sync.chunks.facts is 'What the report is merged from: objects by extension, URLs by the day on which they die, the soonest of those days, samples, and for a dry run the orphaned records'' names.';
comment on column image_sync.chunks.problems is 'Items that failed or were skipped: name, code, detail.';
comment on column image_sync.chunks.error is 'The last failure of the chunk as a whole.';
comment on column image_sync.chunks.closed_at is 'When the chunk became done or dead.';

-- A ledger is counters by name.

create or replace function image_sync.count_of(p_ledger jsonb, p_name text)
returns bigint
language sql
immutable
as $$
  select coalesce((p_ledger ->> p_name)::bigint, 0)
$$;

comment on function image_sync.count_of(jsonb, text) is 'A counter of a ledger; zero where it is left out. Inlined.';

create or replace function image_sync.add_counts(p_ledger jsonb, p_counts jsonb)
returns jsonb
language sql
immutable
set search_path = ''
as $$
  select coalesce(jsonb_object_agg(c.key, c.value), '{}')
  from (
    select e.key, sum(e.value::bigint) as value
    from (
      select *
      from jsonb_each_text(p_ledger)
      union all
      select *
      from jsonb_each_text(p_counts)
    ) as e
    group by 1
    having sum(e.value::bigint) <> 0
  ) as c
$$;

comment on function image_sync.add_counts(jsonb, jsonb) is 'The sums of two ledgers, counter by counter; null counts for nothing.';

-- objects and records

-- What the two sides look like to a run: objects and records, each defined once.

-- Delete markers and archived versions are no objects of the bucket. Older storage schemas lack those columns: an unqualified
-- name in the lateral query means the column where there is one, and the constant beside it where there is none. A view keeps what
-- it meant when it was made, so it is made anew once the platform has added a column that it does not look at.
-- Of a thousand rows, in ms: the extension by split_part 0.6, by a regular expression 2.9; the size by jsonb_typeof 0.5, by a
-- regular expression 1.9; so no pattern is matched here.
create or replace function image_sync.refresh_objects_view()
returns boolean
language plpgsql
set search_path = ''
-- Whoever holds the view keeps it for today: everybody who came after us would wait with us.
set lock_timeout = '1s'
as $$
begin
  if to_regclass('image_sync.objects') is not null and not exists (
    select
    from pg_catalog.pg_attribute a
    where a.attrelid = 'storage.objects'::regclass
      and a.attname in ('is_delete_marker', 'archived_at')
      and not a.attisdropped
      and not exists (
        select
        from pg_catalog.pg_rewrite w
        join pg_catalog.pg_depend d
          on d.classid = 'pg_catalog.pg_rewrite'::regclass
          and d.objid = w.oid
        where w.ev_class = to_regclass('image_sync.objects')
          and d.refclassid = 'pg_catalog.pg_class'::regclass
          and d.refobjid = a.attrelid
          and d.refobjsubid = a.attnum
      )
  ) then
    return false;
  end if;
  execute $view$
      create or replace view image_sync.objects with (security_invoker = on) as
      select
        o.bucket_id,
        o.name,
        case
          when o.ending <> o.name and strpos(o.ending, '/') = 0 then lower(o.ending collate "C") collate "default"
          else ''
        end as extension,
        case jsonb_typeof(o.metadata -> 'size')
          when 'number' then least((o.metadata -> 'size')::numeric, 1e15)::bigint
        end as bytes,
        o.id
      from (select false as is_delete_marker, null::timestamptz as archived_at) as absent
      cross join lateral (
        select
          s.id,
          s.bucket_id,
          s.name,
          s.metadata,
          split_part(s.name, '.', -1) as ending,
          is_delete_marker as is_deleted,
          archived_at is not null as is_archived
        from storage.objects s
      ) as o
      where o.is_deleted is not true
        and not o.is_archived
        and o.name <> '.emptyFolderPlaceholder'
        and o.name not like '%/.emptyFolderPlaceholder'
  $view$;
  -- The register looks at the same columns; while a first installation is under way there is none yet.
  if to_regproc('image_sync.make_register') is not null then
    perform image_sync.make_register();
  end if;
  return true;
exception
  when lock_not_available then
    return false;
end;
$$;

comment on function image_sync.refresh_objects_view() is
  'Makes the view image_sync.objects, anew where storage.objects has gained a column that tells delete markers or archived versions. True where it did; takes no lock where there is nothing to do.';

select image_sync.refresh_objects_view();

comment on view image_sync.objects is 'The files of every bucket: storage.objects without delete markers, archived versions and the dashboard''s folder placeholders. Walk it by (bucket_id, name collate "C"): idx_objects_bucket_id_name serves that.';
comment on column image_sync.objects.bucket_id is 'The bucket.';
comment on column image_sync.objects.name is 'The object''s key in the bucket, folders included.';
comment on column image_sync.objects.extension is 'What follows the last dot of the file name, in lower case; empty where there is none.';
comment on column image_sync.objects.id is 'What stays of an object when it is renamed or moved, also to another bucket.';
comment on column image_sync.objects.bytes is 'Size in bytes as the upload recorded it; null where that is unknown.';

-- A column that was a varchar(255) has cut URLs, which work for nobody. The token of one that is whole has three parts, the last of
-- them a signature of a known length: 32, 48 or 64 bytes (HMAC, ECDSA), 256, 384 or 512 (RSA), in base64url. Said twice because a
-- function could not be inlined: of a thousand URLs this costs 1.5 ms, a function 4,
-- a regular expression 34.
create or replace view image_sync.records with (security_invoker = on) as
select
  p.bucket_id,
  p.file_name,
  p.part_number,
  p.signed_url,
  nullif(p.signed_url, '') is not null as signed,
  nullif(p.signed_url, '') is not null and not coalesce(
    p.signed_url_expires_at > now() and (
      octet_length(split_part(split_part(p.signed_url, '?token=eyJ', 2), '.', 3)) in (43, 64, 86, 342, 512, 683)
      -- A token of another kind; what is left of eyJ is none.
      or strpos(p.signed_url, '?token=') > 0 and not starts_with('eyJ', left(split_part(p.signed_url, '?token=', 2), 3))
    ), false
  ) as expired,
  case
    when p.signed_url_expires_at > now() and (
      octet_length(split_part(split_part(p.signed_url, '?token=eyJ', 2), '.', 3)) in (43, 64, 86, 342, 512, 683)
      -- A token of another kind; what is left of eyJ is none.
      or strpos(p.signed_url, '?token=') > 0 and not starts_with('eyJ', left(split_part(p.signed_url, '?token=', 2), 3))
    ) then p.signed_url_expires_at
  end as usable_until,
  p.object_id,
  p.bucket_id || '/' || lower(
    case
      when p.part_number ~ '[_)\s]' then coalesce(nullif(regexp_replace(p.part_number, '^((copy of|kopie von|copie de|copia d[ei]) )+|( *\((\d+|([^()]+ )?(copy|kopie|copie|copia))\)|( -)? (copy|kopie|copie|copia)( \d+| \(\d+\))?|_jpe?g|_png)?\s*$', '', 'gi'), ''), p.part_number)
      else p.part_number
    end
  ) as look_up_key
from public.part_images p;

comment on view image_sync.records is 'The rows of public.part_images with the state of their URLs. Walk it by (bucket_id, file_name collate "C"): part_images_bucket_id_file_name_key serves that.';
comment on column image_sync.records.bucket_id is 'The bucket.';
comment on column image_sync.records.file_name is 'The object that the record is of.';
comment on column image_sync.records.part_number is 'The file name without folders and extension, or what the record''s owner made of it.';
comment on column image_sync.records.signed_url is 'The URL. Whether it is that of the file, of this project: image_sync.is_url_of(signed_url, image_sync.url_base(...), file_name).';
comment on column image_sync.records.signed is 'There is a URL, working or not.';
comment on column image_sync.records.expired is 'There is a URL and it has expired, or its expiry is unknown, or it was cut.';
comment on column image_sync.records.usable_until is 'Until when the URL works; null where it does not.';
comment on column image_sync.records.look_up_key is 'The part number as a look-up in a spreadsheet takes it, and as copies of one file have it in common: without regard to case, spaces at the end, " (1)", " - Copy", " copy 2", "Copy of " and the like, "_JPG"; behind the bucket and a slash. The expression of part_images_twins_idx.';
comment on column image_sync.records.object_id is 'The object that the record is of, by its id; null where that is not known yet.';

-- The part of a look-up key behind the bucket, of one part number: the expression of the view, where it is asked of few.
create or replace function image_sync.look_up_part(p_part_number text)
returns text language plpgsql immutable set search_path = '' as $$
begin
  return lower(coalesce(nullif(regexp_replace(p_part_number, '^((copy of|kopie von|copie de|copia d[ei]) )+|( *\((\d+|([^()]+ )?(copy|kopie|copie|copia))\)|( -)? (copy|kopie|copie|copia)( \d+| \(\d+\))?|_jpe?g|_png)?\s*$', '', 'gi'), ''), p_part_number));
end;
$$;

comment on function image_sync.look_up_part(text) is 'A part number as image_sync.records.look_up_key has it, without the bucket.';

-- a.b/12.x.jpg: 12.x. Of many names at once: a call for each costs more than what it does.
create or replace function image_sync.part_numbers_of(p_names text[])
returns text[] language plpgsql immutable set search_path = '' as $$
begin
  return array(
    select case when strpos(f.name, '.') = 0 then f.name else left(f.name, -1 - length(split_part(f.name, '.', -1))) end
    from (
      select split_part(n.name, '/', -1) as name
      from unnest(p_names) as n (name)
      -- The last part of the path is found out once.
      offset 0
    ) as f
  );
end;
$$;

comment on function image_sync.part_numbers_of(text[]) is 'The part numbers of files, in their order: each is the name without folders and extension.';

grant select on image_sync.objects, image_sync.records to service_role;

-- Above every key of the walk in byte order: longer than any key that a btree index can hold, of the highest character there is.
create or replace function image_sync.last_key()
returns text language sql immutable set search_path = '' as $$
  select repeat(U&'\+10FFFF', 700)
$$;

comment on function image_sync.last_key() is 'A key above all others in byte order: the upper bound of a chunk that reaches to the end of the bucket.';

-- places

-- Whether two records of one part number are impossible, by a unique index of the table's owner.
create or replace function image_sync.part_number_is_unique()
returns boolean language sql stable set search_path = '' as $$
  select exists (
    select
    from pg_catalog.pg_index i
    join pg_catalog.pg_attribute a
      on a.attrelid = i.indrelid
      and a.attnum = i.indkey[0]
    where i.indrelid = 'public.part_images'::regclass
      and i.indisunique
      and i.indnkeyatts = 1
      and i.indpred is null
      and a.attname = 'part_number'
  )
$$;

comment on function image_sync.part_number_is_unique() is 'True where the table''s owner made part_number unique.';

-- A file that a record may follow: an image of a bucket that is kept in step, at whose name there is not its own record already.
create or replace function image_sync.followed_file(p_object_id uuid)
returns table (bucket_id text, name text) language sql stable as $$
  select o.bucket_id, o.name
  from image_sync.objects o
  join image_sync.settings s
    on s.bucket_id = o.bucket_id
  where o.id = p_object_id
    and o.extension = any (s.extensions)
    and o.bytes is distinct from 0
    and not (o.name like any (s.exclude))
    and not exists (
      select
      from public.part_images p
      where p.object_id = p_object_id and p.bucket_id = o.bucket_id and p.file_name collate "C" = o.name
    )
$$;

comment on function image_sync.followed_file(uuid) is 'Where this object is, if it is an image of a bucket that is kept in step and no record there is of it; else no row. Inlined.';

-- Where the file of a record lies, if a sync takes the record along. Not one that its owner put where it is; of several records of one
-- object the first; and not where another one stays: one that its owner put there, or whose own file is nowhere to follow.
create or replace function image_sync.destination_of(p_bucket_id text, p_file_name text, p_object_id uuid)
returns table (bucket_id text, name text) language plpgsql stable set search_path = '' as $$
begin
  -- Few ask: inlined, each statement that may have to would carry the plan of it.
  return query
  select f.bucket_id, f.name
  from image_sync.followed_file(p_object_id) as f
  where (f.bucket_id <> p_bucket_id or f.name collate "C" <> p_file_name)
    and not exists (
      select
      from public.part_images p
      where p.object_id = p_object_id
        and (
          (p.bucket_id, p.file_name collate "C") < (p_bucket_id, p_file_name)
          or p.bucket_id = p_bucket_id and p.file_name collate "C" = p_file_name and p.object_name <> p.file_name
        )
    )
    and not exists (
      select
      from public.part_images p
      where p.bucket_id = f.bucket_id
        and p.file_name collate "C" = f.name
        and (p.object_name <> p.file_name or not exists (select from image_sync.followed_file(p.object_id)))
    );
end;
$$;

comment on function image_sync.destination_of(text, text, uuid) is 'The bucket and name to which a sync takes the record of this place along; no row where its file is at its place, gone, or left out.';

-- A filter of the few that it is asked of: as a join, a planner that knows nothing of the table asks it of all.
create or replace function image_sync.is_leaving(p_bucket_id text, p_file_name text, p_object_id uuid)
returns boolean language plpgsql stable set search_path = '' as $$
begin
  return exists (select from image_sync.destination_of(p_bucket_id, p_file_name, p_object_id));
end;
$$;

comment on function image_sync.is_leaving(text, text, uuid) is 'Whether a sync takes the record of this place along to where its file is.';

-- Where the file of a record is now, if that is elsewhere: storage.objects has it by its id, under whatever name, in whatever bucket. So
-- the record is no orphan, whether a sync takes it along or not. Where another record stands at that place, and stays, that one has the file.
create or replace function image_sync.place_of(p_bucket_id text, p_file_name text, p_object_id uuid)
returns table (bucket_id text, name text, is_followed boolean) language sql stable set search_path = '' as $$
  select o.bucket_id, o.name, d.name is not null
  from image_sync.objects o
  left join lateral image_sync.destination_of(p_bucket_id, p_file_name, p_object_id) as d
    on true
  where o.id = p_object_id
    and (o.bucket_id <> p_bucket_id or o.name collate "C" <> p_file_name)
    and (d.name is not null or not exists (
      select
      from public.part_images p
      where p.bucket_id = o.bucket_id and p.file_name collate "C" = o.name
    ));
$$;

comment on function image_sync.place_of(text, text, uuid) is 'The bucket and name at which the file of this record is now, and whether a sync takes the record along (is_followed); no row where it is at its place, gone, or another record''s.';

-- Where the files of these records are, as far as that is elsewhere.
create or replace function image_sync.places_of(p_bucket_id text, p_names text[])
returns table (file_name text, bucket_id text, name text, is_followed boolean) language plpgsql stable set search_path = '' as $$
begin
  return query
  select p.file_name, w.bucket_id, w.name, w.is_followed
  from unnest(p_names) as n (name)
  cross join lateral (
    -- A range and an order that only the index of the key gives: no other one reads the bucket for it.
    select r.bucket_id, r.file_name, r.object_id
    from public.part_images r
    where r.bucket_id = p_bucket_id and r.file_name collate "C" >= n.name and r.file_name collate "C" <= n.name
    order by r.file_name collate "C" limit 1
  ) as p
  cross join lateral image_sync.place_of(p.bucket_id, p.file_name, p.object_id) as w;
end;
$$;

comment on function image_sync.places_of(text, text[]) is 'Of these records of the bucket those whose files are elsewhere, as image_sync.place_of says.';

-- Of files that were moved away: those whose records are where they were, because no sync has taken them along.
create or replace function image_sync.still_away(p_bucket_id text, p_away jsonb)
returns jsonb language plpgsql stable set search_path = '' as $$
begin
  return (
    select jsonb_build_object(
      'count', case when count(*) > 0 then (p_away -> 'count')::bigint else 0 end,
      'files', coalesce(jsonb_agg(f.file || jsonb_build_object('is_followed', w.is_followed) order by f.place), '[]')
    )
    from jsonb_array_elements(p_away -> 'files') with ordinality as f (file, place)
    join public.part_images p
      on p.bucket_id = p_bucket_id
      and p.file_name collate "C" = f.file ->> 'name'
    cross join lateral image_sync.place_of(p.bucket_id, p.file_name, p.object_id) as w
    where w.bucket_id <> p_bucket_id or not w.is_followed
  );
exception
  when insufficient_privilege then
    return p_away;
  when lock_not_available then
    perform image_sync.wait_no_more();
    return p_away;
end;
$$;

comment on function image_sync.still_away(text, jsonb) is 'What a run measured of files that were moved away ({"count", "files": [{"name", "bucket", "to"}]}), as far as it is still so, with is_followed, whether a sync of that bucket takes the record along: count 0 where none of those named is.';

-- Whether a record has this part number, and keeps it: one that follows its file to another one gives it up.
create or replace function image_sync.is_part_taken(p_part_number text)
returns boolean language sql stable set search_path = '' as $$
  select exists (
    select
    from public.part_images p
    where p.part_number = p_part_number
      and not exists (
        select
        from image_sync.destination_of(p.bucket_id, p.file_name, p.object_id) as d
        where image_sync.part_numbers_of(array[p.file_name]) = array[p_part_number]
          and image_sync.part_numbers_of(array[d.name]) <> array[p_part_number]
      )
  )
$$;

comment on function image_sync.is_part_taken(text) is 'Whether a record has this part number and does not give it up by following its file.';

-- compare

-- The one classification. What state is this name in? Every run, list and report asks here.

create or replace function image_sync.behind(p_key text)
returns text language sql immutable set search_path = '' as $$
  select p_key || chr(1)
$$;

comment on function image_sync.behind(text) is 'The first key behind this one in byte order: no text holds a character below chr(1).';

-- Each name of a bucket from p_from to p_to, both included, in one state. Inlined where it is called: the caller says by its settings
-- that both sides are merged in the order of their indexes (idx_objects_bucket_id_name, part_images_bucket_id_file_name_key). What
-- costs, patterns and looks by id, is asked of few.
--   kind    what the object is to this bucket: image, other (by its extension), empty, excluded; null: there is none
--   state   working, expiring, expired, unsigned, missing, empty, other, excluded; without an object orphaned, moved (its file has
--           another name in this bucket, and the next sync takes the record along) or moved_away (its file is elsewhere)
--   arrives, leaves  a record follows its file to this name, or the one at this name follows its own elsewhere
create or replace function image_sync.compare_range(
  p_bucket_id text, p_from text, p_to text, p_renew_at timestamptz, p_url_base text, p_extensions text[], p_exclude text[]
)
returns table (
  name text, state text, kind text, object_id uuid, extension text, bytes bigint, file_name text, record_of uuid, part_number text,
  signed_url text, is_signed boolean, usable_until timestamptz, arrives boolean, leaves boolean
)
language sql
stable
as $$
  select
    c.name,
    case
      when c.kind = 'image' and c.usable_until >= p_renew_at then 'working'
      when c.kind is null then coalesce((
        select case when w.is_followed and w.bucket_id = p_bucket_id then 'moved' else 'moved_away' end
        from image_sync.place_of(p_bucket_id, c.file_name, c.record_of) as w
      ), 'orphaned')
      when c.kind in ('excluded', 'empty') or c.kind = 'other' and c.file_name is null then c.kind
      when c.file_name is null then 'missing'
      when not c.is_signed then 'unsigned'
      when c.usable_until is null then 'expired'
      when c.usable_until < p_renew_at then 'expiring'
      else 'working'
    end,
    c.kind, c.object_id, c.extension, c.bytes, c.file_name, c.record_of, c.part_number, c.signed_url, c.is_signed, c.usable_until,
    case
      when c.record_of = c.object_id or c.kind is distinct from 'image' then false
      -- Not exists: that may be asked of the whole table at once.
      else coalesce((
        select true
        from public.part_images m
        where m.object_id = c.object_id and image_sync.is_leaving(m.bucket_id, m.file_name, m.object_id)
        limit 1
      ), false)
    end,
    case when c.record_of <> c.object_id then image_sync.is_leaving(p_bucket_id, c.file_name, c.record_of) else false end
  from (
    select
      coalesce(o.name, r.file_name) as name,
      -- A record that exists is kept whatever its file is called.
      case
        when o.name is null then null
        when r.file_name is null and o.name like any (p_exclude) then 'excluded'
        when o.extension <> all (p_extensions) then 'other'
        when o.bytes = 0 then 'empty'
        else 'image'
      end as kind,
      o.id as object_id, o.extension, o.bytes, r.file_name, r.object_id as record_of, r.part_number, r.signed_url,
      r.is_own as is_signed,
      case when r.is_own then r.usable_until end as usable_until
    from (
      select x.id, x.name, x.extension, x.bytes
      from image_sync.objects x
      where x.bucket_id = p_bucket_id and x.name collate "C" >= p_from and x.name collate "C" <= p_to
    ) as o
    full join (
      -- A URL of another address, or of another file, is none.
      select x.file_name, x.object_id, x.part_number, x.signed_url, x.usable_until, x.signed and image_sync.is_url_of(x.signed_url, p_url_base, x.file_name) as is_own
      from image_sync.records x
      where x.bucket_id = p_bucket_id and x.file_name collate "C" >= p_from and x.file_name collate "C" <= p_to
    ) as r
      on r.file_name collate "C" = o.name collate "C"
    -- Pulled up, a kind would be computed again wherever it is read.
    offset 0
  ) as c
$$;

comment on function image_sync.compare_range(text, text, text, timestamptz, text, text[], text[]) is
  'The names of a bucket from one key to another, both included, each in one state. p_renew_at: URLs that die before are expiring. Inlined.';

-- The same of single names, each by itself.
create or replace function image_sync.compare_names(
  p_bucket_id text, p_names text[], p_renew_at timestamptz, p_url_base text, p_extensions text[], p_exclude text[]
)
returns table (
  name text, state text, kind text, object_id uuid, extension text, bytes bigint, file_name text, record_of uuid, part_number text,
  signed_url text, is_signed boolean, usable_until timestamptz, arrives boolean, leaves boolean
)
language sql
stable
as $$
  select c.*
  from unnest(p_names) as n (name)
  cross join lateral image_sync.compare_range(p_bucket_id, n.name, n.name, p_renew_at, p_url_base, p_extensions, p_exclude) as c
$$;

comment on function image_sync.compare_names(text, text[], timestamptz, text, text[], text[]) is 'What image_sync.compare_range says of each of these names. Inlined.';

-- What names are once more, after they were tried.
create or replace function image_sync.see_names(p_run image_sync.runs, p_settings image_sync.settings, p_names text[])
returns table (name text, kind text, is_record boolean, arrives boolean) language plpgsql
stable set search_path = '' set enable_hashjoin = 'off' set enable_seqscan = 'off' set enable_bitmapscan = 'off' set enable_sort = 'off' as $$
begin
  return query
  select c.name, c.kind, c.file_name is not null, c.arrives
  from image_sync.compare_names(p_run.bucket_id, p_names, now(), '', p_settings.extensions, p_settings.exclude) as c;
end;
$$;

comment on function image_sync.see_names(image_sync.runs, image_sync.settings, text[]) is 'Kind of object, and whether there is a record, of each of these names that has either.';

create or replace function image_sync.first_names(p_names text[])
returns text[] language plpgsql immutable set search_path = '' as $$
begin
  return case when p_names is not null then array(
    select n.name
    from unnest(p_names) as n (name)
    order by n.name collate "C" limit 20
  ) end;
end;
$$;

comment on function image_sync.first_names(text[]) is 'The first 20 names in byte order; null for null.';

-- Counts the names of a range, or those given, and says which need something, in one pass: names are counted by what they have in
-- common, and kept of few. A name that needs a URL is counted as a record once it was tried; one that moves is not counted before.
--   p_mode  that of the run; again: names of a sync that should have moved, as they are; measure: nothing is needed
create or replace function image_sync.look(
  p_run image_sync.runs, p_settings image_sync.settings, p_mode text, p_from text, p_to text, p_names text[] default null
)
returns image_sync.look
language plpgsql
stable
set search_path = ''
set enable_hashjoin = 'off'
set enable_seqscan = 'off'
set enable_bitmapscan = 'off'
-- Grouped by a hash: a sort would compare states by the rules of a language.
set enable_sort = 'off'
-- A day is UTC's, without looking a zone up for each URL.
set timezone = 'UTC'
as $$
declare
  v_syncs constant boolean := p_mode in ('sync', 'again');
  v_is_unique constant boolean := image_sync.part_number_is_unique();
  v_renews_all constant boolean := v_syncs and coalesce(p_run.options ->> 'renew' = 'all', false);
  v_renew_at constant timestamptz := case when p_run.options ->> 'renew' = 'all' then 'infinity' else now() + p_settings.renew_before end;
  v_url_base constant text := image_sync.url_base(p_settings);
  v_names jsonb;
  v_look image_sync.look;
begin
  with counted as materialized (
    select
      c.kind, c.state, left(c.extension, 16) as extension, c.file_name is not null as is_record, c.is_signed, c.usable_until::date as dies_on,
      case
        -- A record that has to wait for its file keeps a URL that works meanwhile.
        when c.arrives or c.leaves or c.state = 'moved' and p_mode = 'sync' then case p_mode when 'again' then case when c.kind = 'image' and c.leaves and coalesce(c.usable_until < v_renew_at, true) then 'sign' when c.arrives then 'stay' else 'wait' end when 'sync' then 'move' else case when c.arrives then 'come' else 'go' end end
        when c.kind is null or c.file_name is null and c.kind <> 'image' then null
        -- Whoever has its part number moves on first, or keeps it: then nobody signs what the table will not take.
        when v_syncs and v_is_unique and c.file_name is null and exists (select from public.part_images p where p.part_number = (image_sync.part_numbers_of(array[c.name]))[1]) then
          case when p_mode = 'sync' and not image_sync.is_part_taken((image_sync.part_numbers_of(array[c.name]))[1]) then 'move' end
        when v_syncs and (v_renews_all or coalesce(c.usable_until < v_renew_at, true)) then 'sign'
        when v_syncs and c.record_of is distinct from c.object_id then 'link'
        when p_mode = 'verify' and c.usable_until is not null then 'open'
      end as need,
      count(*) as files, sum(c.bytes) as bytes, min(c.usable_until) as soonest_expiry,
      array_agg(c.name) filter (where c.state <> 'working' or c.record_of is distinct from c.object_id or v_renews_all or p_mode = 'verify') as names,
      array_agg(case when c.file_name is null then c.object_id end) filter (where c.state <> 'working' or c.record_of is distinct from c.object_id or v_renews_all or p_mode = 'verify') as ids
    from (
      select *
      from image_sync.compare_range(p_run.bucket_id, p_from, p_to, v_renew_at, v_url_base, p_settings.extensions, p_settings.exclude)
      where p_names is null
      union all
      select *
      from image_sync.compare_names(p_run.bucket_id, p_names, v_renew_at, v_url_base, p_settings.extensions, p_settings.exclude)
      where p_names is not null
    ) as c
    group by 1, 2, 3, 4, 5, 6, 7
  ), grouped as (
    -- A record that follows its file is counted where that is.
    select g.*, coalesce(g.need not in ('sign', 'move'), true) and g.state not in ('moved', 'moved_away') as is_settled
    from counted g
  ), named as (
    select coalesce(g.need, '') as need, g.kind, g.state, g.extension, g.is_record, n.name, n.id
    from counted g
    cross join lateral unnest(g.names, g.ids) as n (name, id)
  )
  select
    (select coalesce(array_agg(n.name order by n.name collate "C") filter (where n.need in ('sign', 'open')), '{}') from named n),
    (select coalesce(array_agg(n.id order by n.name collate "C") filter (where n.need in ('sign', 'open')), '{}') from named n),
    (select coalesce(array_agg(n.name order by n.name collate "C") filter (where n.need = 'link'), '{}') from named n),
    (select coalesce(array_agg(n.name order by n.name collate "C") filter (where n.need = 'move'), '{}') from named n),
    coalesce(sum(g.files) filter (where g.need in ('sign', 'open', 'link', 'move')), 0),
    -- What nothing was found of is left out.
    jsonb_strip_nulls(jsonb_build_object(
      'listed', sum(g.files) filter (where g.kind is not null and g.need is distinct from 'move'),
      'bytes', nullif(sum(g.bytes) filter (where g.need is distinct from 'move'), 0),
      'images', sum(g.files) filter (where g.kind = 'image' and g.need is distinct from 'move'),
      'not_images', sum(g.files) filter (where g.kind <> 'image' and g.need is distinct from 'move'),
      'excluded', sum(g.files) filter (where g.kind = 'excluded'),
      'empty_files', sum(g.files) filter (where g.kind = 'empty' and g.need is distinct from 'move'),
      'recorded', sum(g.files) filter (where g.kind = 'image' and g.is_record and coalesce(g.need not in ('sign', 'move', 'stay', 'come', 'go'), true)),
      'missing', sum(g.files) filter (where g.kind = 'image' and (g.need = 'go' or not g.is_record and g.need is null)),
      'moved', sum(g.files) filter (where g.kind = 'image' and g.need = 'come'),
      'unmoved', sum(g.files) filter (where g.kind = 'image' and g.need = 'stay'),
      'unsettled', sum(g.files) filter (where g.kind = 'image' and g.need = 'sign'),
      'to_sign', sum(g.files) filter (where g.need = 'sign'),
      'to_open', sum(g.files) filter (where g.need = 'open'),
      'records', sum(g.files) filter (where g.is_record and g.is_settled),
      'records_signed', sum(g.files) filter (where g.is_signed and g.is_settled),
      'records_expired', sum(g.files) filter (where g.is_signed and g.dies_on is null and g.is_settled),
      'images_signed', sum(g.files) filter (where g.kind = 'image' and g.dies_on is not null and g.is_settled),
      'orphaned', sum(g.files) filter (where g.state = 'orphaned'),
      'orphans_unsigned', sum(g.files) filter (where g.state = 'orphaned' and not g.is_signed),
      'orphans_expired', sum(g.files) filter (where g.state = 'orphaned' and g.is_signed and g.dies_on is null)
    )),
    jsonb_strip_nulls(jsonb_build_object(
      'soonest_expiry', min(g.soonest_expiry) filter (where g.is_settled),
      'by_extension', (
        select jsonb_object_agg(e.extension, e.files)
        from (select c.extension, sum(c.files) as files from counted c where c.kind is not null and c.need is distinct from 'move' group by 1) as e
      ),
      'expiry', (
        select jsonb_object_agg(d.dies_on, d.urls)
        from (select c.dies_on, sum(c.files) as urls from grouped c where c.dies_on is not null and c.is_settled group by 1) as d
      )
    )),
    (
      select jsonb_object_agg(k.state, k.names)
      from (
        select case when n.need in ('come', 'go') then n.need when n.state = 'other' and n.extension = any ('{jpg,jpeg,png,gif,webp,avif,bmp,tif,tiff,heic}'::text[]) then 'picture' else n.state end as state, to_jsonb(array_agg(n.name order by n.name collate "C")) as names
        from named n
        where n.need in ('', 'come', 'go')
        group by 1
      ) as k
    )
  into v_look.to_do, v_look.to_do_ids, v_look.to_link, v_look.to_move, v_look.found, v_look.ledger, v_look.facts, v_names
  from grouped g;
  return image_sync.add_samples(p_run, p_settings, p_mode, v_look, coalesce(v_names, '{}'));
end;
$$;

comment on function image_sync.look(image_sync.runs, image_sync.settings, text, text, text, text[]) is
  'Counts the names from p_from to p_to, both included, or p_names, and says what they need. Writes nothing.';

-- What a report shows of the names that a look found, 20 of each kind; of a cleanup all that are orphaned.
--   p_names  {state: [names in order]}; come and go: names that a record comes to, or leaves
create or replace function image_sync.add_samples(
  p_run image_sync.runs, p_settings image_sync.settings, p_mode text, p_look image_sync.look, p_names jsonb
)
returns image_sync.look language plpgsql stable set search_path = '' as $$
declare
  v_look image_sync.look := p_look;
  v_missing text[] := image_sync.texts(p_names -> 'missing') || image_sync.texts(p_names -> 'go');
  v_pictures constant text[] := image_sync.texts(p_names -> 'picture');
  v_found record;
begin
  if p_names = '{}' or p_mode = 'measure' and not p_names ? 'orphaned' then
    return v_look;
  end if;
  if v_missing <> '{}' and image_sync.part_number_is_unique() then
    select count(*) as files, array_agg(m.name order by m.name collate "C") as names
    into v_found
    from unnest(v_missing, image_sync.part_numbers_of(v_missing)) as m (name, part_number)
    where image_sync.is_part_taken(m.part_number);
    v_look.ledger := image_sync.add_counts(v_look.ledger, jsonb_build_object('collided', v_found.files, 'missing', -v_found.files));
    v_look.facts := v_look.facts || jsonb_strip_nulls(jsonb_build_object('collided', to_jsonb(v_found.names[1:20])));
    v_missing := array(select m.name from unnest(v_missing) as m (name) where m.name <> all (coalesce(v_found.names, '{}')));
  end if;
  if v_pictures <> '{}' or v_missing <> '{}' then
    select f.part_numbers, f.samples
    into v_found
    from image_sync.find_several_files(p_run.bucket_id, p_settings.extensions, v_pictures, v_missing) as f;
    v_look.ledger := image_sync.add_counts(v_look.ledger, jsonb_build_object('several_files', v_found.part_numbers));
    v_look.facts := v_look.facts || jsonb_strip_nulls(jsonb_build_object('several_files', v_found.samples));
  end if;
  v_look.facts := v_look.facts || jsonb_strip_nulls(jsonb_build_object(
    'missing', case when v_missing <> '{}' then to_jsonb(image_sync.first_names(v_missing)) end,
    'orphaned', case when p_mode = 'cleanup' then p_names -> 'orphaned' else image_sync.first_items(p_names -> 'orphaned') end,
    'unsigned', image_sync.first_items(p_names -> 'unsigned'),
    'expired', image_sync.first_items(p_names -> 'expired'),
    'excluded', image_sync.first_items(p_names -> 'excluded'),
    'empty_files', image_sync.first_items(p_names -> 'empty'),
    'other_extensions', to_jsonb(image_sync.first_names(nullif(v_pictures || image_sync.texts(p_names -> 'other'), '{}'))),
    'moved', (
      select jsonb_agg(p.file_name || ' → ' || n.name order by n.place)
      from jsonb_array_elements_text(image_sync.first_items(p_names -> 'come')) with ordinality as n (name, place)
      cross join lateral image_sync.compare_names(p_run.bucket_id, array[n.name], now(), '', p_settings.extensions, p_settings.exclude) as c
      join public.part_images p on p.object_id = c.object_id
      cross join lateral image_sync.destination_of(p.bucket_id, p.file_name, p.object_id)
    ),
    'away', (
      select jsonb_build_object('count', jsonb_array_length(p_names -> 'moved_away'), 'files', jsonb_agg(jsonb_build_object('name', w.file_name, 'bucket', w.bucket_id, 'to', w.name) order by w.file_name collate "C"))
      from image_sync.places_of(p_run.bucket_id, image_sync.texts(image_sync.first_items(p_names -> 'moved_away'))) as w
      having count(*) > 0
    )
  ));
  return v_look;
end;
$$;

comment on function image_sync.add_samples(image_sync.runs, image_sync.settings, text, image_sync.look, jsonb) is
  'A look with samples of the names in each state, and with what other names decide: part numbers that have to be unique and are taken, and those that several files have.';

create or replace function image_sync.texts(p_names jsonb)
returns text[] language sql immutable set search_path = '' as $$
  select coalesce(array_agg(n.name order by n.place), '{}')
  from jsonb_array_elements_text(p_names) with ordinality as n (name, place)
$$;

comment on function image_sync.texts(jsonb) is 'A JSON array of texts; empty for null.';

-- Whichever side has more names ends a range, so that one of records without objects is bounded too.
create or replace function image_sync.range_end(p_bucket_id text, p_from text, p_size integer)
returns text language plpgsql
stable set search_path = '' set enable_seqscan = 'off' set enable_bitmapscan = 'off' set enable_sort = 'off' as $$
begin
  return least(
    (
      -- Of the table itself: its index alone is read.
      select o.name collate "C"
      from storage.objects o
      where o.bucket_id = p_bucket_id and o.name collate "C" >= p_from
      order by o.name collate "C"
      offset p_size - 1
      limit 1
    ),
    (
      select r.file_name collate "C"
      from public.part_images r
      where r.bucket_id = p_bucket_id and r.file_name collate "C" >= p_from
      order by r.file_name collate "C"
      offset p_size - 1
      limit 1
    )
  );
end;
$$;

comment on function image_sync.range_end(text, text, integer) is 'The last key of a range of at most so many objects and so many records that begins with p_from; null where the bucket ends before.';

-- writing

-- The one way in which rows of public.part_images are written, whatever the kind.

-- Whether an error is the row's: a constraint, a trigger or a type of the table's owner says no to it. What the server lacks (disk,
-- memory, time), a connection that ends, a right that is missing for all rows alike, is none: it must not be counted against a file.
-- Classes of SQLSTATE: Postgres' manual, appendix A.
create or replace function image_sync.is_refusal(p_sqlstate text)
returns boolean language sql immutable set search_path = '' as $$
  select left(p_sqlstate, 2) not in ('08', '25', '40', '53', '57', '58', 'XX') and p_sqlstate <> '42501'
$$;

comment on function image_sync.is_refusal(text) is 'Whether an error of this SQLSTATE is a refusal of the row that was written, rather than trouble of the server or a missing right.';

-- Whether an error says that somebody else holds what a statement needs.
create or replace function image_sync.is_held(p_sqlstate text)
returns boolean language sql immutable set search_path = '' as $$
  select p_sqlstate in ('55P03', '40P01')
$$;

comment on function image_sync.is_held(text) is 'Whether an error of this SQLSTATE is a lock that was not to be had: lock_not_available or deadlock_detected.';

-- What a table may say at the end of a transaction (a deferred constraint, a constraint trigger) would end a whole call with all of
-- its rows, and nobody could tell which row it was about. So it is asked after each statement that writes, where what it refuses
-- costs itself alone; and it is deferred until then, as its owner may count on.
create or replace function image_sync.check_deferred()
returns void language plpgsql set search_path = '' as $$
begin
  set constraints all immediate;
  set constraints all deferred;
end;
$$;

comment on function image_sync.check_deferred() is 'Lets constraints and triggers that are deferred to the end of the transaction say now what they would say then.';

-- Where somebody holds the whole table (create index, lock table), none of its rows is held by itself: nothing is left out, named or
-- given up for it. Called after a lock was not to be had.
create or replace function image_sync.need_table()
returns void language plpgsql set search_path = '' as $$
begin
  lock table public.part_images in row exclusive mode;
end;
$$;

comment on function image_sync.need_table() is 'Raises lock_not_available where somebody else holds public.part_images as a whole, so that the attempt is made again later.';

-- A record without a URL has null there, or the empty text where its owner forbids null: both are none.
create or replace function image_sync.no_url()
returns text language sql stable set search_path = '' as $$
  select case when a.attnotnull then '' end
  from pg_catalog.pg_attribute a
  where a.attrelid = 'public.part_images'::regclass and a.attname = 'signed_url'
$$;

comment on function image_sync.no_url() is 'What signed_url holds where there is no URL: null, or the empty text where null is forbidden.';

-- A row that is tried by itself waits 20 ms for a lock, and hardly at all once a second has gone into waiting: a thousand rows that
-- somebody holds must not add up to the statement timeout.
create or replace function image_sync.row_patience(p_since timestamptz)
returns text language sql volatile set search_path = '' as $$
  select case when clock_timestamp() < p_since + interval '1 second' then '20ms' else '1ms' end
$$;

comment on function image_sync.row_patience(timestamptz) is 'lock_timeout for a single row of many, tried one by one since p_since.';

-- A problem of one item, as runs show it.
create or replace function image_sync.item_problem(p_name text, p_code text, p_words text default null)
returns jsonb language sql immutable set search_path = '' as $$
  select jsonb_build_object(
    'name', p_name,
    'code', p_code,
    'detail', coalesce(image_sync.redact(p_words), case p_code
      when 'row_locked' then 'Somebody else holds it locked: the next run settles it'
    end)
  )
$$;

comment on function image_sync.item_problem(text, text, text) is 'A named item that failed: name, code, and what was said of it, redacted.';

-- A chunk names 20 of its items at most: the counts say how many there are.
create or replace function image_sync.first_items(p_items jsonb)
returns jsonb language sql immutable set search_path = '' as $$
  select jsonb_path_query_array(p_items, '$[0 to 19]')
$$;

comment on function image_sync.first_items(jsonb) is 'The first 20 elements of an array.';

-- What went wrong for a chunk or a run, as it is stored: whoever says so, and whatever they quote.
create or replace function image_sync.clean_fault(p_error jsonb)
returns jsonb language sql immutable set search_path = '' as $$
  select case
    when p_error is not null then jsonb_build_object(
      'code', coalesce(left(p_error ->> 'code', 100), 'unknown'),
      'title', coalesce(image_sync.redact(p_error ->> 'title'), 'Something went wrong'),
      'detail', coalesce(image_sync.redact(p_error ->> 'detail'), '')
    )
  end
$$;

comment on function image_sync.clean_fault(jsonb) is 'An error with code, title and detail alone, its words redacted; null for null.';

-- Whose records somebody else holds: asked without waiting. The others are locked from then on.
create or replace function image_sync.held_names(p_bucket_id text, p_names text[])
returns text[] language sql set search_path = '' as $$
  with free as materialized (
    select p.file_name
    from unnest(p_names) as n (name)
    cross join lateral (
      select q.file_name
      from public.part_images q
      where q.bucket_id = p_bucket_id and q.file_name collate "C" >= n.name and q.file_name collate "C" <= n.name
      order by q.file_name collate "C" limit 1
      for update skip locked
    ) as p
  )
  select coalesce(array_agg(p.file_name), '{}')
  from unnest(p_names) as n (name)
  cross join lateral (
    select q.file_name
    from public.part_images q
    where q.bucket_id = p_bucket_id and q.file_name collate "C" >= n.name and q.file_name collate "C" <= n.name
    order by q.file_name collate "C" limit 1
  ) as p
  where p.file_name not in (
    select f.file_name
    from free f
  );
$$;

comment on function image_sync.held_names(text, text[]) is 'Those of these records of the bucket that somebody else holds; locks the others.';

-- The ladder that every write goes up: together; where somebody holds rows, without those; where one is refused, by halves, down to the
-- row that it is about. A thousand rows with a bad one cost about twice a thousand good ones.
-- Each kind is one statement over any number of items that returns the names which were really written: a trigger may return null.
create or replace function image_sync.write_rows(p_kind text, p_run image_sync.runs, p_items image_sync.item[], p_since timestamptz default null)
returns image_sync.write
language plpgsql
set search_path = ''
-- A row is looked up by its key, whatever the statistics say of a table that is only being filled.
set enable_seqscan = 'off'
set enable_bitmapscan = 'off'
set enable_hashjoin = 'off'
set enable_mergejoin = 'off'
-- Given back when the function ends: halves set it for themselves.
set lock_timeout = '400ms'
as $$
declare
  v_size constant integer := cardinality(p_items);
  v_middle constant integer := v_size / 2;
  v_write image_sync.write := ('{}', '{}', '{}', '[]')::image_sync.write;
  v_half image_sync.write;
  v_held text[] := '{}'::text[];
  v_schema text;
  v_table text;
begin
  if v_size = 0 then
    return v_write;
  end if;
  perform set_config('lock_timeout', image_sync.row_patience(p_since), true)
  where p_since is not null;
  begin
    if p_kind = 'store' then
      v_write := image_sync.write_store(p_run, p_items);
    else
      v_write.written := case p_kind
        when 'archive' then image_sync.write_archive(p_run, p_items)
        when 'restore' then image_sync.write_restore(p_run, p_items)
      end;
    end if;
    perform image_sync.check_deferred();
    return v_write;
  exception
    when others then
      get stacked diagnostics v_schema = schema_name, v_table = table_name;
      -- A right that is missing may be one that a trigger of the table's owner lacks for this row.
      if not image_sync.is_held(sqlstate) and not image_sync.is_refusal(sqlstate) and sqlstate <> '42501' then
        raise;
      elsif p_kind = 'store' and exists (select from unnest(p_items) as i where i.object_id is not null) then
        -- Somebody else inserted one meanwhile, or one is refused: now each is looked up.
        return image_sync.write_rows(p_kind, p_run, array(select (i.name, i.url, i.expires_at, null)::image_sync.item from unnest(p_items) as i), p_since);
      elsif image_sync.is_held(sqlstate) and p_since is null then
        perform image_sync.need_table();
        v_held := image_sync.held_names(p_run.bucket_id, array(
          select i.name
          from unnest(p_items) as i
        ));
      elsif image_sync.is_held(sqlstate) and v_size = 1 then
        return ('{}', '{}', array[p_items[1].name], '[]')::image_sync.write;
      elsif v_size = 1 then
        return ('{}', '{}', '{}', jsonb_build_array(jsonb_build_object(
          'name', p_items[1].name, 'sqlstate', sqlstate, 'is_taken', sqlstate in ('23505', '23P01') and v_schema = 'public' and v_table = 'part_images', 'words', sqlerrm
        )))::image_sync.write;
      end if;
  end;

  v_write := ('{}', '{}', v_held, '[]')::image_sync.write;
  for v_half in
    select w.*
    from (values
      (case when v_held <> '{}' then array(select i from unnest(p_items) as i where i.name <> all (v_held)) else p_items[:v_middle] end),
      (case when v_held <> '{}' then '{}' else p_items[v_middle + 1:] end)
    ) as part (items)
    cross join lateral image_sync.write_rows(p_kind, p_run, part.items, coalesce(p_since, clock_timestamp())) as w
  loop
    v_write := (v_write.written || v_half.written, v_write.inserted || v_half.inserted, v_write.held || v_half.held, v_write.refused || v_half.refused)::image_sync.write;
  end loop;
  return v_write;
end;
$$;

comment on function image_sync.write_rows(text, image_sync.runs, image_sync.item[], timestamptz) is
  'Writes records of a kind (store, archive, restore) for a run: all of them, or as many as nobody holds and the table takes. p_since: when the first attempt failed. Raises what is no matter of a row.';

-- Inserts the records that are missing, with or without a URL, and stores the URLs of those that are there. Whatever it writes knows its
-- object from then on. A file that went away is left out, and one whose record follows it from elsewhere.
--   url  null: what stands there stays; empty: none
create or replace function image_sync.write_store(p_run image_sync.runs, p_items image_sync.item[])
returns image_sync.write language plpgsql set search_path = '' as $$
declare
  v_names constant text[] := array(select i.name from unnest(p_items) as i);
  v_urls constant text[] := array(select i.url from unnest(p_items) as i);
  v_expires constant timestamptz[] := array(select i.expires_at from unnest(p_items) as i);
  v_no_url constant text := image_sync.no_url();
  v_write image_sync.write := ('{}', '{}', '{}', '[]')::image_sync.write;
begin
  -- New files: what was signed a moment ago is there, and nobody had a record of it.
  if not exists (select from unnest(p_items) as i where i.object_id is null or coalesce(i.url, '') = '') then
    with added as (
      insert into public.part_images (bucket_id, file_name, part_number, object_id, object_name, signed_url, signed_url_expires_at)
      select p_run.bucket_id, i.name, i.part_number, i.object_id, i.name, i.url, i.expires_at
      from unnest(v_names, v_urls, v_expires, array(select i.object_id from unnest(p_items) as i), image_sync.part_numbers_of(v_names)) as i (name, url, expires_at, object_id, part_number)
      returning file_name
    )
    select array_agg(a.file_name), array_agg(a.file_name)
    into v_write.written, v_write.inserted
    from added a;
    v_write.written := coalesce(v_write.written, '{}');
    v_write.inserted := coalesce(v_write.inserted, '{}');
    return v_write;
  end if;
  -- Locked before they are looked at: so their places stay, by which they are updated. A comparison by name reads the whole bucket for
  -- each of them where the statistics do not know it yet.
  perform
  from unnest(v_names) as n (name)
  cross join lateral (
    select
    from public.part_images q
    where q.bucket_id = p_run.bucket_id and q.file_name collate "C" >= n.name and q.file_name collate "C" <= n.name
    order by q.file_name collate "C" limit 1
    for no key update
  ) as r;
  with wanted as materialized (
    select i.name, i.url, i.expires_at, i.part_number, o.id as object_id, r.file_name is not null as is_record, r.ctid as record, r.object_id as record_of, r.signed_url,
      -- It was to follow its own file, and could not yet.
      case when r.object_id <> o.id then image_sync.is_leaving(p_run.bucket_id, r.file_name, r.object_id) else false end as is_leaving
    from unnest(v_names, v_urls, v_expires, image_sync.part_numbers_of(v_names)) as i (name, url, expires_at, part_number)
    -- A range and an order that only the index of names gives: one look for each.
    cross join lateral (
      select x.id
      from image_sync.objects x
      where x.bucket_id = p_run.bucket_id and x.name collate "C" >= i.name and x.name collate "C" <= i.name
      order by x.name collate "C" limit 1
    ) as o
    left join lateral (
      select x.ctid, x.file_name, x.object_id, x.signed_url
      from public.part_images x
      where x.bucket_id = p_run.bucket_id and x.file_name collate "C" >= i.name and x.file_name collate "C" <= i.name
      order by x.file_name collate "C" limit 1
    ) as r
      on true
  ), added as (
    insert into public.part_images (bucket_id, file_name, part_number, object_id, object_name, signed_url, signed_url_expires_at)
    select p_run.bucket_id, w.name, w.part_number, w.object_id, w.name, coalesce(nullif(w.url, ''), v_no_url), w.expires_at
    from wanted w
    where not w.is_record
      and (
        select true
        from public.part_images m
        where m.object_id = w.object_id and image_sync.is_leaving(m.bucket_id, m.file_name, m.object_id)
        limit 1
      ) is null
    order by w.name collate "C"
    returning file_name
  ), updated as (
    update public.part_images p
    set
      signed_url = case when w.url is null then p.signed_url else coalesce(nullif(w.url, ''), v_no_url) end,
      signed_url_expires_at = case when w.url is null then p.signed_url_expires_at else w.expires_at end,
      object_id = case when w.is_leaving then p.object_id else w.object_id end,
      object_name = case when w.is_leaving then p.object_name else p.file_name end
    from wanted w
    where p.ctid = w.record
      and (w.url <> '' or w.url = '' and nullif(w.signed_url, '') is not null or w.record_of is distinct from w.object_id and w.is_leaving is not true)
    returning p.file_name, w.url is null or nullif(p.signed_url, '') is not distinct from nullif(w.url, '') as is_stored
  )
  select
    coalesce(array_agg(k.file_name) filter (where k.is_stored), '{}'),
    coalesce(array_agg(k.file_name) filter (where k.is_new), '{}')
  into v_write.written, v_write.inserted
  from (
    select a.file_name, true as is_stored, true as is_new
    from added a
    union all
    select u.file_name, u.is_stored, false
    from updated u
  ) as k;
  return v_write;
end;
$$;

comment on function image_sync.write_store(image_sync.runs, image_sync.item[]) is
  'Inserts or updates the records of files that are in the bucket now. Returns the names whose record is as it should be, and of these those that are new.';

-- Rows that a restore gives back as they were: a row's own text form, which keeps what JSON has no word for (hstore, the lower bound of an
-- array, a key that a json has twice), in a form that reads the same under any setting of the session.
create or replace function image_sync.row_text(p_row anyelement)
returns text language sql
stable set search_path = '' set datestyle = 'ISO, YMD' set intervalstyle = 'postgres' set extra_float_digits = 1 set lc_monetary = 'C' as $$
  select p_row::text
$$;

comment on function image_sync.row_text(anyelement) is 'The text form of a row, as image_sync.row_of reads it.';

create or replace function image_sync.column_names(p_table regclass)
returns text[] language sql stable set search_path = '' as $$
  select array_agg(a.attname::text order by a.attnum)
  from pg_catalog.pg_attribute a
  where a.attrelid = p_table and a.attnum > 0 and not a.attisdropped
$$;

comment on function image_sync.column_names(regclass) is 'The columns of a table, in the order of its text form.';

-- Columns may have come, gone or changed places since the text was made: it is read by their names.
create or replace function image_sync.row_of(p_text text, p_columns text[], p_like anyelement)
returns anyelement language plpgsql
stable set search_path = '' set datestyle = 'ISO, YMD' set intervalstyle = 'postgres' set lc_monetary = 'C' as $$
declare
  v_row p_like%type;
begin
  execute format('select (read.whole).* from (select %L::%s as whole offset 0) as read', (
    select '(' || string_agg(coalesce(f.value, ''), ',' order by now.place) || ')'
    from unnest(image_sync.column_names((
      select t.typrelid
      from pg_catalog.pg_type t
      where t.oid = pg_typeof(p_like)
    ))) with ordinality as now (name, place)
    left join unnest(p_columns) with ordinality as c (name, place)
      on c.name = now.name
    left join (
      -- A field is nothing, which is null; or in quotes, with quotes and backslashes twice; or has neither quote nor comma.
      select m.field[1] as value, m.place
      from regexp_matches(substr(p_text, 2, length(p_text) - 2) || ',', '("(?:[^"]|"")*"|[^",]*),', 'g') with ordinality as m (field, place)
    ) as f
      on f.place = c.place
  ), pg_typeof(p_like))
  into v_row;
  return v_row;
end;
$$;

comment on function image_sync.row_of(text, text[], anyelement) is 'The row of p_like''s type that image_sync.row_text wrote, of a table that had these columns; null in columns that it did not have.';

-- moves

-- Moves: a phase of its own behind the walk, which has met every record that is elsewhere than its file.

-- The records that follow their files to these names of a bucket, or from them. A part number that its owner changed stays.
create or replace function image_sync.find_moves(p_bucket_id text, p_names text[])
returns image_sync.move[] language sql
stable set search_path = '' set enable_hashjoin = 'off' set enable_mergejoin = 'off' set enable_seqscan = 'off' as $$
  with moved as materialized (
    select o.id
    from unnest(p_names) as n (name)
    cross join lateral (
      select x.id
      from image_sync.objects x
      where x.bucket_id = p_bucket_id and x.name collate "C" >= n.name and x.name collate "C" <= n.name
      order by x.name collate "C" limit 1
    ) as o
    union
    select r.object_id
    from unnest(p_names) as n (name)
    cross join lateral (
      select x.object_id
      from public.part_images x
      where x.bucket_id = p_bucket_id and x.file_name collate "C" >= n.name and x.file_name collate "C" <= n.name
      order by x.file_name collate "C" limit 1
    ) as r
  )
  select coalesce(array_agg((
    r.bucket_id, r.file_name, case when p.is_derived then r.part_number end, d.bucket_id, d.name, case when p.is_derived then p.new end, r.object_id
  )::image_sync.move order by r.bucket_id, r.file_name collate "C"), '{}')
  from moved
  cross join lateral (
    select x.bucket_id, x.file_name, x.part_number, x.object_id
    from public.part_images x
    where x.object_id = moved.id
    -- One look-up by index for each, whatever the planner believes of the table.
    offset 0
  ) as r
  cross join lateral image_sync.destination_of(r.bucket_id, r.file_name, r.object_id) as d
  cross join lateral (
    select n.numbers[2] as new, r.part_number = n.numbers[1] and n.numbers[1] <> n.numbers[2] as is_derived
    from (select image_sync.part_numbers_of(array[r.file_name, d.name]) as numbers offset 0) as n
  ) as p
$$;

comment on function image_sync.find_moves(text, text[]) is 'The moves that bring records to these names of a bucket or take them away from there.';

-- Who waits: whoever goes to a place where a record stays, or gets a part number that one keeps; and who waits for those.
--   p_goes  by position, which of the moves may be done
create or replace function image_sync.waiting_moves(p_moves image_sync.move[], p_goes boolean[])
returns integer[]
language sql
stable
set search_path = ''
-- A chain of n is n rounds: each has to be a look into a hash.
set enable_hashjoin = 'on'
set enable_nestloop = 'off'
set enable_mergejoin = 'off'
as $$
  with recursive move as materialized (
    select m.*, g.goes
    from unnest(p_moves) with ordinality as m (from_bucket, from_name, from_part, to_bucket, to_name, to_part, object_id, place)
    join unnest(p_goes) with ordinality as g (goes, place)
      on g.place = m.place
  ), edge as materialized (
    select m.place, h.place as ahead
    from move m
    join lateral (
      select p.bucket_id, p.file_name
      from public.part_images p
      where p.bucket_id = m.to_bucket and p.file_name collate "C" >= m.to_name and p.file_name collate "C" <= m.to_name
      order by p.file_name collate "C" limit 1
    ) as p
      on true
    left join move h
      on h.from_bucket = p.bucket_id
      and h.from_name = p.file_name
    where m.goes
    union all
    select m.place, h.place
    from move m
    join lateral (
      select p.bucket_id, p.file_name
      from public.part_images p
      where p.part_number = m.to_part and p.object_id is distinct from m.object_id
      limit 1
    ) as p
      on image_sync.part_number_is_unique()
    left join move h
      on h.from_bucket = p.bucket_id
      and h.from_name = p.file_name
      and h.to_part is not null
    where m.goes
    union all
    -- Of two that want the same part number one stays: rather one whose own nobody waits for.
    select r.place, -1
    from (
      select m.place, row_number() over (partition by m.to_part order by m.from_part in (select n.to_part from move n where n.goes and n.to_part <> '') desc nulls last, m.place) as rank
      from move m
      where m.goes and m.to_part is not null and image_sync.part_number_is_unique()
    ) as r
    where r.rank > 1
  ), waiting as (
    select e.place
    from edge e
    left join move h
      on h.place = e.ahead
    where h.goes is not true
    union
    select e.place
    from waiting w
    join edge e
      on e.ahead = w.place
  )
  select coalesce(array_agg(w.place::integer), '{}')
  from waiting w
$$;

comment on function image_sync.waiting_moves(image_sync.move[], boolean[]) is
  'The positions of those moves that cannot be done because a record stays at their place, keeps their part number, or waits itself.';

-- Steps aside, under a name and a part number that nobody has. By their places, here and below: the caller holds the rows.
create or replace function image_sync.park(p_moves image_sync.move[])
returns integer language sql set search_path = '' as $$
  with parked as (
    update public.part_images p
    set file_name = '.moving/' || m.object_id, part_number = case when m.to_part is null then p.part_number else '.moving/' || m.object_id end
    from unnest(p_moves) as m
    cross join lateral (
      select q.ctid
      from public.part_images q
      where q.bucket_id = m.from_bucket
        and q.file_name collate "C" >= m.from_name
        and q.file_name collate "C" <= m.from_name
      order by q.file_name collate "C" limit 1
    ) as r
    where p.ctid = r.ctid and p.object_id = m.object_id
    returning 1
  )
  select count(*)::integer
  from parked
$$;

comment on function image_sync.park(image_sync.move[]) is 'Gives records names of their own until they are placed. Returns how many.';

-- The old URL is of the old name and opens nothing any more: it is taken away here and made anew where the new name lies.
create or replace function image_sync.place(p_moves image_sync.move[], p_is_parked boolean)
returns integer language sql set search_path = '' as $$
  with placed as (
    update public.part_images p
    set bucket_id = m.to_bucket, file_name = m.to_name, object_name = m.to_name, part_number = coalesce(m.to_part, p.part_number), signed_url = image_sync.no_url(), signed_url_expires_at = null
    from (
      select n.*, case when p_is_parked then '.moving/' || n.object_id else n.from_name end as name
      from unnest(p_moves) as n
    ) as m
    cross join lateral (
      select q.ctid
      from public.part_images q
      where q.bucket_id = m.from_bucket and q.file_name collate "C" >= m.name and q.file_name collate "C" <= m.name
      order by q.file_name collate "C" limit 1
    ) as r
    where p.ctid = r.ctid and p.object_id = m.object_id
    returning 1
  )
  select count(*)::integer
  from placed
$$;

comment on function image_sync.place(image_sync.move[], boolean) is 'Gives records their new places, from where they are parked or from their old ones. Returns how many.';

-- Moves records, all or none. Those in whose places, or part numbers, others come step aside first.
create or replace function image_sync.move_together(p_moves image_sync.move[])
returns void language plpgsql set search_path = '' set enable_seqscan = 'off' set enable_hashjoin = 'off' set enable_mergejoin = 'off' as $$
declare
  v_aside image_sync.move[];
  v_straight image_sync.move[];
begin
  select
    coalesce(array_agg(m::image_sync.move) filter (where a.steps_aside), '{}'),
    coalesce(array_agg(m::image_sync.move) filter (where not a.steps_aside), '{}')
  into v_aside, v_straight
  from unnest(p_moves) as m
  cross join lateral (
    select (m.from_bucket, m.from_name) in (select t.to_bucket, t.to_name from unnest(p_moves) as t)
      or coalesce(m.from_part, '') in (select t.to_part from unnest(p_moves) as t where t.to_part <> '') as steps_aside
    offset 0
  ) as a;
  if image_sync.park(v_aside) + image_sync.place(v_straight, false) + image_sync.place(v_aside, true) <> cardinality(p_moves) + cardinality(v_aside) then
    raise exception 'a trigger of the table keeps a record where it is'
      using errcode = 'triggered_action_exception';
  end if;
  perform image_sync.check_deferred();
end;
$$;

comment on function image_sync.move_together(image_sync.move[]) is 'Gives each record its new place, without a URL. Raises what the table raises, and has moved none then.';

-- Which of these moves the table refuses: each is parked, then each is placed, and all of it is undone.
create or replace function image_sync.refused_moves(p_moves image_sync.move[])
returns text[] language plpgsql set search_path = '' set enable_seqscan = 'off' as $$
declare
  v_since constant timestamptz := clock_timestamp();
  v_words text[] := array_fill(null::text, array[cardinality(p_moves)]);
begin
  for v_step in 1..2 loop
    for v_place in 1..cardinality(p_moves) loop
      continue when v_words[v_place] is not null;
      perform set_config('lock_timeout', image_sync.row_patience(v_since), true);
      begin
        if v_step = 1 and image_sync.park(p_moves[v_place:v_place]) = 0 or v_step = 2 and image_sync.place(p_moves[v_place:v_place], true) = 0 then
          raise exception 'a trigger of the table keeps it where it is'
            using errcode = 'triggered_action_exception';
        end if;
        perform image_sync.check_deferred();
      exception
        when others then
          if image_sync.is_held(sqlstate) then
            v_words[v_place] := 'somebody else holds it. The next run settles it';
          elsif image_sync.is_refusal(sqlstate) then
            v_words[v_place] := 'the table refused to change it: ' || sqlerrm;
          else
            raise;
          end if;
      end;
    end loop;
  end loop;
  raise exception 'Tried' using errcode = 'ISB04';
exception
  when sqlstate 'ISB04' then
    return v_words;
end;
$$;

comment on function image_sync.refused_moves(image_sync.move[]) is 'By position, why each of these moves cannot be done by itself, in words; null where it can. Changes nothing.';

-- Who stays because somebody holds the record, or because a row of another table refers to it by a key that a move would empty (on update
-- set null, set default): by position, in words.
create or replace function image_sync.staying_moves(p_moves image_sync.move[])
returns text[] language plpgsql set search_path = '' as $$
declare
  v_free text[];
  v_referenced text[];
  v_words text := 'a row of another table refers to it, and would lose the reference (on update set null or set default). Declare the key "on update cascade", and sync again';
begin
  v_free := array(
    select p.bucket_id || '/' || p.file_name
    from unnest(p_moves) as m
    cross join lateral (
      select q.bucket_id, q.file_name
      from public.part_images q
      where q.bucket_id = m.from_bucket
        and q.file_name collate "C" >= m.from_name
        and q.file_name collate "C" <= m.from_name
      order by q.file_name collate "C" limit 1
      for update skip locked
    ) as p
  );
  begin
    v_referenced := array(
      select b.from_bucket || '/' || r.name
      from (select m.from_bucket, array_agg(m.from_name) as names from unnest(p_moves) as m group by m.from_bucket) as b
      cross join lateral unnest(image_sync.referenced_names(b.from_bucket, b.names, p_by_move => true)) as r (name)
    );
  exception
    when insufficient_privilege then
      v_words := format('whether another table refers to it cannot be seen: %s. Let the owner of our functions read that table', sqlerrm);
      v_referenced := v_free;
    when lock_not_available or deadlock_detected then
      v_words := 'a table that may refer to it is held by somebody else. The next run settles it';
      v_referenced := v_free;
  end;
  return array(
    select case
      when m.from_bucket || '/' || m.from_name not in (select f.place from unnest(v_free) as f (place)) then 'somebody else holds it. The next run settles it'
      when m.from_bucket || '/' || m.from_name in (select r.place from unnest(v_referenced) as r (place)) then v_words
    end
    from unnest(p_moves) with ordinality as m (from_bucket, from_name, from_part, to_bucket, to_name, to_part, object_id, place)
    order by m.place
  );
end;
$$;

comment on function image_sync.staying_moves(image_sync.move[]) is 'Locks the records of these moves; by position, why one stays, in words, null where nothing is known against it.';

-- Moves records; who is held, referred to or refused stays, is named, and so do those that wait for his place or his part number.
create or replace function image_sync.move_records(p_moves image_sync.move[], out moved image_sync.move[], out problems jsonb)
language plpgsql set search_path = '' set lock_timeout = '400ms' as $$
declare
  v_waits constant text := 'its new place or part number is not free yet. The next sync goes on';
  v_words text[];
  v_tried text[];
  v_place integer;
begin
  v_words := image_sync.staying_moves(p_moves);
  for v_attempt in 1..4 loop
    foreach v_place in array image_sync.waiting_moves(p_moves, array(select w.words is null from unnest(v_words) with ordinality as w (words, place) order by w.place)) loop
      v_words[v_place] := v_waits;
    end loop;
    moved := array(select p_moves[w.place] from unnest(v_words) with ordinality as w (words, place) where w.words is null order by w.place);
    begin
      perform image_sync.move_together(moved) where moved <> '{}';
      exit;
    exception
      when others then
        if not image_sync.is_held(sqlstate) and not image_sync.is_refusal(sqlstate) then
          raise;
        elsif image_sync.is_held(sqlstate) then
          perform image_sync.need_table();
        end if;
        v_tried := case when v_attempt < 4 then image_sync.refused_moves(moved) end;
        -- None of them alone: then all of them.
        if coalesce(array_length(array_remove(v_tried, null), 1), 0) = 0 then
          v_tried := array_fill('the table refused to change it: ' || sqlerrm, array[cardinality(moved)]);
        end if;
    end;
    v_words := array(
      select coalesce(w.words, v_tried[(count(*) filter (where w.words is null) over (order by w.place))])
      from unnest(v_words) with ordinality as w (words, place)
      order by w.place
    );
    moved := '{}';
  end loop;
  insert into image_sync.moves (bucket_id, file_name, object_id)
  select m.from_bucket, m.from_name, m.object_id
  from unnest(moved) as m;
  -- Those with a cause of their own come first: only some are named.
  problems := (
    select coalesce(jsonb_agg(
      image_sync.item_problem(p_moves[w.place].to_name, 'not_moved', format('Its record is that of %s still: %s', p_moves[w.place].from_name, w.words))
      order by w.words = v_waits, w.place
    ), '[]')
    from unnest(v_words) with ordinality as w (words, place)
    where w.words is not null
  );
end;
$$;

comment on function image_sync.move_records(image_sync.move[]) is 'Moves records, as many as can be. Returns the moves that were done and a problem not_moved for each of the others.';

-- How many names are settled in one transaction.
create or replace function image_sync.max_moves()
returns integer language sql stable set search_path = '' as $$
  select coalesce(nullif(current_setting('image_sync.max_moves', true), '')::integer, 5000)
$$;

comment on function image_sync.max_moves() is 'How many names at which records and files have to meet are settled in one transaction; of a longer chain of names that wait for each other the next syncs move the rest.';

-- The walk is through and has noted where records and their files have to meet: the next of those names are settled, and only they are
-- looked at again. The caller holds the run's row lock. Returns whether there were any.
--   p_error  the database was too slow for a single name: it is left as it is, and named
create or replace function image_sync.settle_moves(p_run image_sync.runs, p_settings image_sync.settings, p_error jsonb default null)
returns boolean language plpgsql set search_path = '' as $$
declare
  v_most constant integer := case when p_error is null then ceil(image_sync.max_moves() * least(1.0 * p_run.chunk_size / p_settings.chunk_size, 1)) else 1 end;
  v_names text[];
  v_movement record;
  v_look image_sync.look;
  v_part text[];
begin
  with noted as materialized (
    select c.number, n.name
    from image_sync.chunks c
    cross join lateral unnest(c.to_move) as n (name)
    where c.run_id is not distinct from p_run.id and c.to_move <> '{}'
    order by c.number, n.name collate "C" limit v_most
  ), taken as (
    update image_sync.chunks c
    set to_move = array(select n.name from unnest(c.to_move) as n (name) where n.name not in (select t.name from noted t))
    where c.run_id = p_run.id and c.number in (select t.number from noted t)
  )
  select array_agg(t.name order by t.name collate "C")
  into v_names
  from noted t;
  if v_names is null then
    return false;
  end if;
  if p_error is null then
    v_movement := image_sync.move_records(image_sync.find_moves(p_run.bucket_id, v_names));
  else
    select '{}'::image_sync.move[] as moved, jsonb_agg(image_sync.item_problem(n.name, p_error ->> 'code', p_error ->> 'detail')) as problems
    into v_movement
    from unnest(v_names) as n (name);
  end if;
  for v_part in
    select array_agg(n.name order by n.name collate "C")
    from unnest(v_names) with ordinality as n (name, place)
    group by (n.place - 1) / p_settings.chunk_size
    order by 1
  loop
    v_look := image_sync.look(p_run, p_settings, 'again', null, null, v_part);
    perform image_sync.store_chunk(p_run, null, null, v_look, array(
      select m.to_name
      from unnest(v_movement.moved) as m
      where m.to_bucket = p_run.bucket_id
    ), image_sync.first_items(v_movement.problems));
    v_movement.problems := '[]';
  end loop;
  update image_sync.runs r
  set moved_at = clock_timestamp()
  where r.id = p_run.id;
  return true;
end;
$$;

comment on function image_sync.settle_moves(image_sync.runs, image_sync.settings, jsonb) is
  'Moves records to the next names that the walk noted, max_moves of them or as many as the database does in time, and makes chunks of what is to be done there then. False where none is left. The caller holds the run''s row lock.';

-- several files

-- Part numbers that several images stand for, as whoever looks them up in a spreadsheet sees them: in other case, with a space at the
-- end, as a copy that an upload or a file manager has made, or in another folder. The key by which they are compared stands in the
-- view image_sync.records, and part_images_twins_idx has all of them in order: once a run has passed its bucket, the index is
-- walked from end to end, a page at a time. So twins are found wherever they lie, by the first sync already, and a chunk costs nothing.

-- What the walk has found so far. The caller holds the run's row lock. Returns whether it is at its end; 250 ms keep a call short.
create or replace function image_sync.count_twins(p_run image_sync.runs)
returns boolean language plpgsql set search_path = '' as $$
declare
  v_page constant integer := 2000;
  v_until constant timestamptz := clock_timestamp() + interval '250 milliseconds';
  v_cursor text := coalesce(p_run.twins_cursor, p_run.bucket_id || '/');
  v_keys text[] := p_run.twin_keys;
  v_twins bigint := p_run.twins;
  v_is_full boolean;
  v_found record;
begin
  if p_run.twins_cursor is null and p_run.twins is not null then
    return true;
  end if;
  v_twins := coalesce(v_twins, 0);
  loop
    select
      sum(k.files) = v_page as is_full,
      max(k.key collate "C") as last_key,
      array_agg(k.key) filter (where k.files > 1) as twins
    into v_found
    from (
      select page.key, count(*) as files
      from (
        select r.look_up_key collate "C" as key
        from image_sync.records r
        where r.look_up_key collate "C" > v_cursor
          -- What follows the slash is a zero.
          and r.look_up_key collate "C" < p_run.bucket_id || '0'
        order by r.look_up_key collate "C" limit v_page
      ) as page
      group by page.key
    ) as k;
    v_is_full := coalesce(v_found.is_full, false);
    -- The last key of a full page may stand again behind it, if it is not known for a twin already: the next page begins with it.
    v_cursor := coalesce(case
      when v_is_full and v_found.last_key <> all (coalesce(v_found.twins, '{}')) then (
        select r.look_up_key
        from image_sync.records r
        where r.look_up_key collate "C" > v_cursor and r.look_up_key collate "C" < v_found.last_key
        order by r.look_up_key collate "C" desc limit 1
      )
      else v_found.last_key
    end, v_cursor);
    if v_found.twins is not null then
      v_found.twins := array(
        select t.key
        from unnest(v_found.twins) as t (key)
        where (
          select count(*)
          from image_sync.files_of_key(p_run.bucket_id, t.key)
        ) > 1
        order by t.key collate "C"
      );
      v_twins := v_twins + cardinality(v_found.twins);
      v_keys := (v_keys || v_found.twins)[1:20];
    end if;
    exit when not v_is_full or clock_timestamp() > v_until;
  end loop;
  update image_sync.runs r
  set
    twins = v_twins,
    twin_keys = v_keys,
    twins_cursor = case when v_is_full then v_cursor end,
    moved_at = clock_timestamp()
  where r.id = p_run.id;
  return not v_is_full;
end;
$$;

comment on function image_sync.count_twins(image_sync.runs) is
  'Walks the look-up keys of the run''s bucket on from where it was, for 250 ms at most, and keeps in the run how many stand more than once, and the first 20. Returns whether it is at the end.';

-- The files whose records have a look-up key, 20 at most: a record without its file is an orphan and no twin.
create or replace function image_sync.files_of_key(p_bucket_id text, p_key text)
returns table (name text, part_number text) language plpgsql stable set search_path = '' as $$
declare
  -- A caller with a key in byte order hands on that order to all texts of the call, and no index has the bucket in it: at a million
  -- objects that was 80 ms a file instead of 0.02.
  v_bucket_id constant text collate "default" := p_bucket_id;
begin
  return query
  select r.file_name, r.part_number
  from (
    select q.file_name, q.part_number, q.bucket_id
    from image_sync.records q
    where q.look_up_key collate "C" = p_key
    offset 0
  ) as r
  -- A range and an order that only the index of names gives: one look for each.
  cross join lateral (
    select o.name
    from image_sync.objects o
    where o.bucket_id = v_bucket_id and o.name collate "C" >= r.file_name and o.name collate "C" <= r.file_name
    order by o.name collate "C" limit 1
  ) as file
  where r.bucket_id = v_bucket_id
  limit 20;
end;
$$;

comment on function image_sync.files_of_key(text, text) is 'Up to 20 files of the bucket whose records have this look-up key, with their part numbers.';

-- Objects named like a file but for its extension, as far as a look is bounded: between "stem." and "stem/", an order that only the
-- index gives.
create or replace function image_sync.files_beside(p_bucket_id text, p_stem text)
returns table (name text, extension text) language plpgsql stable set search_path = '' as $$
begin
  return query
  select n.name, n.extension
  from (
    select o.name, o.extension
    from image_sync.objects o
    where o.bucket_id = p_bucket_id and o.name collate "C" >= p_stem || '.' and o.name collate "C" < p_stem || '/'
    order by o.name collate "C" limit 100
  ) as n
  where left(n.name, -(length(n.extension) + 1)) = p_stem
    and n.extension = any ('{jpg,jpeg,png,gif,webp,avif,bmp,tif,tiff,heic}');
end;
$$;

comment on function image_sync.files_beside(text, text) is 'The pictures of a stem (a name with its folders, without its extension), of whatever extension.';

create or replace function image_sync.stem_of(p_name text)
returns text language sql immutable set search_path = '' as $$
  select left(p_name, -(length(split_part(p_name, '.', -1)) + 1))
$$;

comment on function image_sync.stem_of(text) is 'A file''s name with its folders and without its extension.';

-- The twins of a run as a person reads them: "part number: files", with pictures beside them that are left out by their extension.
create or replace function image_sync.twin_samples(p_bucket_id text, p_keys text[])
returns jsonb language plpgsql stable set search_path = '' as $$
begin
  return (
    select coalesce(jsonb_agg(twins.part_number || ': ' || twins.files order by keys.place), '[]')
    from unnest(p_keys) with ordinality as keys (key, place)
    cross join lateral (
      select
        (
          select rtrim(min(q.part_number collate "C"))
          from image_sync.files_of_key(p_bucket_id, keys.key) q
        ) as part_number,
        string_agg(f.name, ', ' order by strpos(f.name, '/') = 0, f.name collate "C") as files
      from (
        select u.name
        from image_sync.files_of_key(p_bucket_id, keys.key) u
        union
        select b.name
        from image_sync.files_of_key(p_bucket_id, keys.key) u
        cross join lateral image_sync.files_beside(p_bucket_id, image_sync.stem_of(u.name)) as b
      ) as f
      having count(*) > 1
    ) as twins
  );
end;
$$;

comment on function image_sync.twin_samples(text, text[]) is 'Of these look-up keys, those that several files have, each as "part number: files".';

-- Whether a copy of a file lies in its folder, by the names that programs give to copies: what begins so is few, and is compared.
create or replace function image_sync.has_copy_beside(p_bucket_id text, p_stem text)
returns boolean language plpgsql stable set search_path = '' as $$
declare
  v_part_number constant text := split_part(p_stem, '/', -1);
  v_folder constant text := left(p_stem, length(p_stem) - length(v_part_number));
begin
  return exists (
    select
    from (
      select p_stem || c.low as low, p_stem || c.high as high
      from (values (' (', ' )'), (' - ', ' -!'), (' C', ' D'), (' K', ' L'), (' c', ' d'), (' k', ' l'), ('_JP', '_JQ'), ('_PN', '_PO'), ('_jp', '_jq'), ('_pn', '_po')) as c (low, high)
      union all
      select v_folder || c.prefix || v_part_number || '.', v_folder || c.prefix || v_part_number || '/'
      from (values ('Copy of '), ('Kopie von '), ('Copie de '), ('Copia di '), ('Copia de ')) as c (prefix)
    ) as range
    cross join lateral (
      select o.name
      from image_sync.objects o
      where o.bucket_id = p_bucket_id and o.name collate "C" >= range.low and o.name collate "C" < range.high
      order by o.name collate "C" limit 20
    ) as copy
    where strpos(substr(copy.name, length(v_folder) + 1), '/') = 0
      and image_sync.look_up_part((image_sync.part_numbers_of(array[copy.name]))[1]) = image_sync.look_up_part(v_part_number)
  );
end;
$$;

comment on function image_sync.has_copy_beside(text, text) is
  'Whether one of the first 20 objects in each place where copies of a stem (a name with its folders, without its extension) stand by name is one: its part number has the same look-up key.';

-- What no index of records knows: pictures that are left out by their extension beside the one image of their name, and twins among
-- images that have no record yet.
--   p_pictures  pictures of the chunk that are no images to this bucket
--   p_missing   images of the chunk without a record, in a run that makes none
create or replace function image_sync.find_several_files(
  p_bucket_id text,
  p_extensions text[],
  p_pictures text[],
  p_missing text[],
  out part_numbers integer,
  out samples text[]
)
language plpgsql stable set search_path = '' as $$
begin
  with pictures as (
    select image_sync.stem_of(f.name) as stem, array_agg(f.name) as names
    from unnest(p_pictures) as f (name)
    group by 1
  ), beside as (
    -- Images that have a twin beside them are counted by their key.
    select s.stem, images.names || s.names as names
    from pictures s
    cross join lateral (
      select array_agg(b.name) as names
      from image_sync.files_beside(p_bucket_id, s.stem) b
      where b.extension = any (p_extensions)
    ) as images
    where cardinality(images.names) = 1 and not image_sync.has_copy_beside(p_bucket_id, s.stem)
  ), unrecorded as (
    select lower(m.part_number) as stem, array_agg(m.name order by m.name collate "C") as names
    from unnest(p_missing, image_sync.part_numbers_of(p_missing)) as m (name, part_number)
    group by 1
    having count(*) > 1
  ), found as (
    select b.stem, b.names
    from beside b
    union all
    select u.stem, u.names
    from unrecorded u
  )
  select
    count(*)::integer,
    (array_agg(split_part(f.stem, '/', -1) || ': ' || array_to_string(f.names[1:20], ', ') order by f.stem collate "C"))[1:20]
  into part_numbers, samples
  from found f;
end;
$$;

comment on function image_sync.find_several_files(text, text[], text[], text[]) is
  'Part numbers with several files that records say nothing of: a picture that is left out beside an image of its name, or images of one part number without a record; and up to 20 of them as "part number: files".';

-- walk

-- The walk: from the first name of a bucket to the last, in ranges that are looked at once. A chunk is what is to be done.

create or replace function image_sync.next_number(p_run uuid)
returns integer language plpgsql stable set search_path = '' as $$
begin
  return 1 + coalesce(
    (
      select c.number
      from image_sync.chunks c
      where c.run_id = p_run
      order by c.number desc limit 1
    ), 0);
end;
$$;

comment on function image_sync.next_number(uuid) is 'The number of a run''s next chunk. The caller holds the run''s row lock.';

create or replace function image_sync.chunk_size(p_run image_sync.runs, p_settings image_sync.settings)
returns integer language plpgsql immutable set search_path = '' as $$
begin
  return least(
    case when p_run.plan_id is not null then p_run.chunk_size end,
    p_settings.chunk_size,
    -- What is opened has to be opened within a lease, several times over.
    case when p_run.mode = 'verify' then greatest(least(200, p_settings.verify_rate * extract(epoch from p_settings.lease_duration) / 4), 1)::integer end
  );
end;
$$;

comment on function image_sync.chunk_size(image_sync.runs, image_sync.settings) is 'How many names may need something in one chunk of the run.';

-- Stores what a look found as the run's next chunk: to be worked on, or done where nothing is to be done.
--   p_moved  names of it whose record came along
create or replace function image_sync.store_chunk(
  p_run image_sync.runs, p_from_key text, p_to_key text, p_look image_sync.look, p_moved text[] default '{}', p_problems jsonb default '[]', p_lease_duration interval default null, p_worker uuid default null, p_lease uuid default null
)
returns image_sync.chunks language plpgsql set search_path = '' as $$
declare
  v_is_done constant boolean := p_look.to_do = '{}' and p_look.to_link = '{}';
  v_moved constant integer := case when p_moved = '{}' then 0 else (select count(*) from unnest(p_look.to_do) as n (name) where n.name in (select m.name from unnest(p_moved) as m (name))) end;
  v_chunk image_sync.chunks;
begin
  insert into image_sync.chunks (run_id, number, from_key, to_key, state, worker_id, lease_token, lease_expires_at, to_do, to_do_ids, to_link, to_move, ledger, facts, problems, closed_at)
  values (
    p_run.id, image_sync.next_number(p_run.id), p_from_key, p_to_key, case when v_is_done then 'done' when p_lease is not null then 'leased' else 'pending' end, p_worker,
    case when not v_is_done then p_lease end, case when not v_is_done then clock_timestamp() + p_lease_duration end,
    p_look.to_do, p_look.to_do_ids, p_look.to_link, p_look.to_move,
    case when v_moved > 0 then image_sync.add_counts(p_look.ledger, jsonb_build_object('moved', v_moved, 'unsettled', -v_moved)) else p_look.ledger end,
    p_look.facts,
    case when p_run.mode = 'cleanup' and p_look.facts ? 'away' then (
      select jsonb_agg(image_sync.item_problem(f.name, 'moved_away', format('Left out: its file is %s now', image_sync.place_in_words(p_run.bucket_id, f.bucket, f."to"))))
      from jsonb_to_recordset(p_look.facts #> '{away,files}') as f (name text, bucket text, "to" text)
    ) else p_problems end,
    case when v_is_done then clock_timestamp() end
  )
  returning *
  into v_chunk;
  return v_chunk;
end;
$$;

comment on function image_sync.store_chunk(image_sync.runs, text, text, image_sync.look, text[], jsonb, interval, uuid, uuid) is
  'Stores a chunk of what a look found and returns it: done, leased where there is a token, or pending. The caller holds the run''s row lock.';

-- Goes on behind the run's cursor until there is something to be done, or 250 ms are over: they keep every call far from the API's
-- limits, and others waiting for the lock no longer than that. A range is as long as what the last ones found promises, 25 chunks' worth
-- of names at most; one that holds more than a chunk may have is looked at again in part, and one of a chunk's names never does.
create or replace function image_sync.walk(p_run image_sync.runs, p_settings image_sync.settings, p_worker uuid, p_lease uuid)
returns image_sync.chunks language plpgsql set search_path = '' as $$
declare
  v_until constant timestamptz := clock_timestamp() + interval '250 milliseconds';
  v_size constant integer := image_sync.chunk_size(p_run, p_settings);
  v_stride integer := coalesce(p_run.stride, v_size);
  v_run image_sync.runs := p_run;
  v_since timestamptz;
  v_to_key text;
  v_look image_sync.look;
  v_chunk image_sync.chunks;
begin
  loop
    v_since := clock_timestamp();
    if v_run.plan_id is not null then
      v_chunk := image_sync.settle_chunk(v_run, p_settings, p_worker);
    else
      v_to_key := image_sync.range_end(v_run.bucket_id, image_sync.behind(v_run.cursor), v_stride);
      v_look := image_sync.look(v_run, p_settings, v_run.mode, image_sync.behind(v_run.cursor), coalesce(v_to_key, image_sync.last_key()));
      if v_look.found > v_size and v_stride > v_size then
        v_stride := v_size;
        continue;
      end if;
      v_look.ledger := v_look.ledger || jsonb_build_object('listing_ms', ceil(1000 * extract(epoch from clock_timestamp() - v_since))::integer);
      v_chunk := image_sync.store_chunk(v_run, v_run.cursor, v_to_key, v_look, p_lease_duration => p_settings.lease_duration, p_worker => p_worker, p_lease => p_lease);
      v_stride := greatest(1, least(
        v_stride * case when clock_timestamp() > v_since + interval '150 milliseconds' then 1 else 5 end,
        case when v_look.found > 0 then greatest(0.8 * v_size * v_stride / v_look.found, v_size) end,
        25 * p_settings.chunk_size
      ))::integer;
    end if;
    v_run.exhausted := v_chunk.to_key is null;
    v_run.cursor := coalesce(v_chunk.to_key, v_run.cursor);
    exit when v_run.exhausted or v_chunk.state = 'leased' or clock_timestamp() >= v_until or v_run.chunk_size is not null;
  end loop;
  update image_sync.runs r
  set
    cursor = v_run.cursor, exhausted = v_run.exhausted, stride = v_stride, moved_at = clock_timestamp(),
    -- Where the database was too slow once, it is asked for more again.
    chunk_size = nullif(least(r.chunk_size * case when v_run.plan_id is not null and clock_timestamp() < v_since + interval '1 second' then 2 else 1 end, p_settings.chunk_size), p_settings.chunk_size)
  where r.id = v_run.id;
  return case when v_chunk.state = 'leased' then v_chunk end;
end;
$$;

comment on function image_sync.walk(image_sync.runs, image_sync.settings, uuid, uuid) is
  'Makes chunks from the cursor on until one needs something (it is returned, leased with the token), the bucket ends or 250 ms are over. The caller holds the run''s row lock.';

-- verify

-- Verifying: every URL of a bucket is opened as a reader does. The bucket is walked and counted as in an analyze; a chunk that holds
-- URLs is leased to a worker that opens them, no faster than settings.verify_rate over all workers of the run.

-- Takes the time that so many URLs cost at the setting's rate, and returns them with their names. The caller holds the run's row lock.
create or replace function image_sync.lease_targets(p_run image_sync.runs, p_settings image_sync.settings, p_names text[])
returns jsonb language plpgsql set search_path = '' as $$
begin
  update image_sync.runs r
  set paced_until = clock_timestamp() + make_interval(secs => cardinality(p_names)::double precision / p_settings.verify_rate)
  where r.id = p_run.id;
  return (
    select coalesce(jsonb_agg(jsonb_build_object('name', p.file_name, 'url', p.signed_url)), '[]')
    from public.part_images p
    where p.bucket_id = p_run.bucket_id and p.file_name collate "C" = any (p_names)
      -- In order: no more than their range is read.
      and p.file_name collate "C" >= p_names[1]
      and p.file_name collate "C" <= p_names[cardinality(p_names)]
  );
end;
$$;

comment on function image_sync.lease_targets(image_sync.runs, image_sync.settings, text[]) is
  'The URLs of these names as [{"name", "url"}], for the worker''s eyes alone; the run''s next chunk waits until they can have been opened at settings.verify_rate.';

-- A token that Storage says is dead (InvalidJWT; no other answer brings a URL along) is signed anew by the next sync, once its expiry is
-- forgotten. Where the run has seen no image yet it is rather the key than these files: then nothing is forgotten, and the next sync
-- renews all (image_sync.renews_all). A row that somebody holds is not waited for,
-- and a table that refuses keeps what it has: the verify says of each all the same what was to be seen.
create or replace function image_sync.forget_rejected(p_run image_sync.runs, p_chunk image_sync.chunks, p_failures jsonb)
returns integer language plpgsql set search_path = '' set lock_timeout = '400ms' as $$
declare
  v_forgotten integer;
begin
  if not p_chunk.ledger ? 'shown' and not exists (
    select
    from image_sync.chunks c
    where c.run_id = p_run.id and c.ledger ? 'shown'
  ) then
    return 0;
  end if;
  with free as materialized (
    select p.bucket_id, p.file_name
    from jsonb_to_recordset(p_failures) as e (name text, url text)
    join public.part_images p
      on p.bucket_id = p_run.bucket_id
      and p.file_name collate "C" = e.name
      and p.file_name collate "C" > p_chunk.from_key
      and p.file_name collate "C" <= coalesce(p_chunk.to_key, image_sync.last_key())
      and p.signed_url = e.url
    for update of p skip locked
  ), forgotten as (
    update public.part_images p
    set signed_url_expires_at = null
    from free f
    where p.bucket_id = f.bucket_id
      -- By the index of names, in its order: any other comparison reads the bucket once for each URL.
      and p.file_name collate "C" = f.file_name
      and p.file_name collate "C" > p_chunk.from_key
      and p.file_name collate "C" <= coalesce(p_chunk.to_key, image_sync.last_key())
    returning 1
  )
  select count(*)
  into v_forgotten
  from forgotten;
  perform image_sync.check_deferred();
  return v_forgotten;
exception
  when others then
    if not image_sync.is_held(sqlstate) and not image_sync.is_refusal(sqlstate) then
      raise;
    end if;
    return 0;
end;
$$;

comment on function image_sync.forget_rejected(image_sync.runs, image_sync.chunks, jsonb) is
  'Forgets the expiry of the chunk''s records whose URL came along as dead, where the run has seen an image, unless they have got another one meanwhile, are held, or the table refuses. Returns how many.';

-- Closes a chunk of a verify.
--   p_shown     the names whose URL showed an image
--   p_failures  [{"name", "code", "error", "url"}], the URL only where Storage said that its token is dead
create or replace function image_sync.close_verified(p_run image_sync.runs, p_chunk image_sync.chunks, p_shown text[], p_failures jsonb, p_is_given_up boolean)
returns text language plpgsql set search_path = '' as $$
declare
  v_chunk image_sync.chunks := p_chunk;
  v_failures jsonb;
  v_counts jsonb;
  v_forgotten integer;
begin
  -- The object tells whether a file that Storage does not find was deleted or lost; one that was deleted meanwhile shows nothing to
  -- nobody, and is an orphan from now on.
  with seen as (
    select e.name, e.code, e.error, o.name is not null as has_object
    from jsonb_to_recordset(p_failures) as e (name text, code text, error text)
    left join image_sync.objects o
      on o.bucket_id = p_run.bucket_id
      and o.name collate "C" = e.name
      and o.name collate "C" > v_chunk.from_key
      and o.name collate "C" <= coalesce(v_chunk.to_key, image_sync.last_key())
  ), told as (
    select s.name, case when s.code = 'file_gone' and s.has_object then 'file_lost' when s.has_object then s.code else 'file_gone' end as code, s.error
    from seen s
  )
  -- All of them are named: a chunk of a verify has 200 files at most.
  select
    coalesce(jsonb_agg(image_sync.item_problem(t.name, t.code, t.error) order by t.code, t.name collate "C"), '[]'),
    coalesce(
      (
        select jsonb_object_agg(k.code, k.files)
        from (
          select told.code, count(*) as files
          from told
          group by told.code
        ) as k
      ), '{}')
  into v_failures, v_counts
  from told t;

  v_chunk.ledger := image_sync.add_counts(v_chunk.ledger, jsonb_build_object('shown', cardinality(p_shown)));
  v_forgotten := image_sync.forget_rejected(p_run, v_chunk, p_failures);

  update image_sync.chunks c
  set
    state = case when p_is_given_up then 'dead' else 'done' end,
    to_do = '{}',
    to_do_ids = '{}',
    ledger = image_sync.add_counts(p_chunk.ledger, jsonb_build_object(
      'to_open', case when p_is_given_up then 0 else cardinality(p_shown) + jsonb_array_length(p_failures) - image_sync.count_of(c.ledger, 'to_open') end,
      'shown', cardinality(p_shown),
      'broken', case when p_is_given_up then image_sync.count_of(c.ledger, 'to_open') else jsonb_array_length(p_failures) end,
      'rejected', v_counts -> 'url_rejected',
      'updated', v_forgotten,
      'records_expired', v_forgotten,
      -- What Storage rejects is no working URL, forgotten or not.
      'images_signed', -least(coalesce((v_counts ->> 'url_rejected')::integer, 0), image_sync.count_of(c.ledger, 'images_signed'))
    )),
    facts = c.facts || jsonb_build_object('broken', v_counts),
    problems = c.problems || v_failures,
    lease_expires_at = null,
    error = case when p_is_given_up then c.error end,
    closed_at = clock_timestamp()
  where c.run_id = v_chunk.run_id and c.number = v_chunk.number;
  return 'closed';
end;
$$;

comment on function image_sync.close_verified(image_sync.runs, image_sync.chunks, text[], jsonb, boolean) is
  'Closes a leased chunk whose URLs were opened: counts what showed an image and what did not, by reason, and makes the next sync sign anew what has a dead token. Returns closed.';

-- A file that Storage does not find is lost where its object is there, and deleted where it is not: the words of S3 and of Storage
-- tell that in some versions only.
create or replace function image_sync.tell_lost(p_bucket_id text, p_probe jsonb)
returns jsonb language sql stable set search_path = '' as $$
  select case
    when jsonb_path_exists(p_probe, '$.failures[*] ? (@.code == "file_gone" || @.code == "file_lost")') then p_probe || jsonb_build_object('failures', (
      select jsonb_agg(
        case
          when p.failure ->> 'code' not in ('file_gone', 'file_lost') then p.failure
          when exists (
            select
            from image_sync.objects o
            where o.bucket_id = p_bucket_id
              and o.name collate "C" >= p.failure ->> 'name'
              and o.name collate "C" <= p.failure ->> 'name'
            order by o.name collate "C"
            offset 0
          ) then p.failure || '{"code": "file_lost"}'
          else p.failure || '{"code": "file_gone"}'
        end
      )
      from jsonb_array_elements(p_probe -> 'failures') as p (failure)
    ))
    else p_probe
  end
$$;

comment on function image_sync.tell_lost(text, jsonb) is 'What a probe gave, with file_lost where the object of a file that Storage does not find is there, else file_gone.';

-- Where a look at the URLs saw a rejected one and could not forget it, the next sync renews all: after a rotation of the URL-signing key
-- that is what mends them. By the newest look: a verify, or the probe of a sync; a sync that has renewed all is one too.
create or replace function image_sync.renews_all(p_bucket_id text)
returns boolean language plpgsql stable set search_path = '' as $$
begin
  return coalesce(
    (
      select case look.mode
        when 'verify' then (look.report #>> '{verified,kept}')::bigint > 0
        else jsonb_path_exists(look.report, '$.probe ? (@.ok == 0 && @.checked > 0)')
          and not jsonb_path_exists(look.report, '$.probe.failures[*] ? (@.code != "url_rejected")')
      end
      from image_sync.runs look
      where look.bucket_id = p_bucket_id
        and look.finished_at is not null
        and look.report is not null
        and (
          look.mode = 'verify'
          or look.mode = 'sync' and (
            (look.report #>> '{probe,checked}')::bigint > 0
            or look.outcome <> 'failed' and look.options ->> 'renew' = 'all'
          )
        )
      order by look.finished_at desc limit 1
    ), false);
end;
$$;

comment on function image_sync.renews_all(text) is
  'Whether the next sync of a bucket renews all URLs: the newest look at them saw rejected ones that keep their expiry.';

-- leases

-- The lease on a chunk: who may close it, and what becomes of it when its worker does not. docs/leases.md has the whole of it.

-- The next chunk that is free: given back, waited out, or of a worker whose lease ran out, which counts as a failed attempt. The caller
-- holds the run's row lock, which makes claiming one at a time; skip locked passes over a chunk that its late worker is closing now.
create or replace function image_sync.claim_chunk(p_run image_sync.runs)
returns image_sync.chunks language plpgsql set search_path = '' as $$
declare
  v_chunk image_sync.chunks;
begin
  select c.*
  into v_chunk
  from image_sync.chunks c
  where c.run_id is not distinct from p_run.id
    and c.state in ('pending', 'leased')
    and (
      c.state = 'pending' and coalesce(c.not_before <= clock_timestamp(), true)
      or c.state = 'leased' and c.lease_expires_at <= clock_timestamp()
    )
  order by c.number limit 1
  for update skip locked;
  if v_chunk.state = 'leased' then
    v_chunk.attempts := v_chunk.attempts + 1;
    v_chunk.error := jsonb_build_object('code', 'lease_expired', 'title', 'A worker did not finish its chunk in time', 'detail', format('Worker %s leased chunk %s and was not heard of again.', v_chunk.worker_id, v_chunk.number));
  end if;
  return v_chunk;
end;
$$;

comment on function image_sync.claim_chunk(image_sync.runs) is
  'The first chunk that waits or whose lease expired, its row locked and its attempts counted (not stored); null columns where there is none.';

-- Leases a chunk. A chunk that has failed too often is given up: there is nothing to sign any more, and whoever closes it writes the
-- records that are missing without URLs.
create or replace function image_sync.lease_chunk(p_chunk image_sync.chunks, p_settings image_sync.settings, p_worker uuid, p_lease uuid)
returns image_sync.chunks language plpgsql set search_path = '' as $$
declare
  v_chunk image_sync.chunks;
begin
  update image_sync.chunks c
  set
    state = 'leased',
    attempts = p_chunk.attempts,
    error = p_chunk.error,
    lease_token = p_lease,
    lease_expires_at = clock_timestamp() + p_settings.lease_duration,
    not_before = null,
    worker_id = p_worker
  where c.run_id = p_chunk.run_id and c.number = p_chunk.number
  returning *
  into v_chunk;
  return v_chunk;
end;
$$;

comment on function image_sync.lease_chunk(image_sync.chunks, image_sync.settings, uuid, uuid) is 'Stores the lease of a chunk and returns it.';

-- The chunk that a worker closes, its row locked: by number and token, so that a late call never meets a chunk that it does not mean.
-- Whoever else is at the row is this call's double, over in a moment. Null columns where it is not to be had.
create or replace function image_sync.lock_chunk(p_run uuid, p_number integer)
returns image_sync.chunks language plpgsql set search_path = '' set lock_timeout = '400ms' as $$
declare
  v_chunk image_sync.chunks;
begin
  select c.*
  into v_chunk
  from image_sync.chunks c
  where c.run_id = p_run and c.number = p_number
  for update;
  return v_chunk;
exception
  when lock_not_available then
    return null;
end;
$$;

comment on function image_sync.lock_chunk(uuid, integer) is 'Locks the row of a chunk and returns it; null columns after 400 ms without the lock.';

-- Closes a leased chunk with what its worker has of it, or counts its failed attempt (p_error).
-- Returns closed; more where something is left and the same call is to be made again; already_closed where it was made before, its
-- answer lost; stale where the token is not, or no longer, the chunk's: then nothing changes.
create or replace function image_sync.close_lease(
  p_run image_sync.runs, p_settings image_sync.settings, p_number integer, p_token uuid,
  p_names text[], p_urls text[], p_expires bigint[], p_failures jsonb, p_error jsonb, p_storage_calls integer, p_retries integer
)
returns text language plpgsql set search_path = '' as $$
declare
  v_chunk image_sync.chunks := image_sync.lock_chunk(p_run.id, p_number);
  v_counts constant jsonb := jsonb_build_object('storage_calls', p_storage_calls, 'retries', p_retries);
begin
  if v_chunk.run_id is null and p_run.finished_at is null and exists (select from image_sync.chunks c where c.run_id = p_run.id and c.number = p_number) then
    return 'more';
  elsif p_run.finished_at is not null and v_chunk.state = 'leased' or v_chunk.lease_token is distinct from p_token or v_chunk.state = 'pending' or v_chunk.state is null then
    return 'stale';
  elsif v_chunk.state <> 'leased' then
    return 'already_closed';
  end if;
  if p_error is not null and coalesce(p_error ->> 'is_final', 'false') <> 'true' then
    -- It waits for its next attempt, longer each time; after the last one it is given up at once.
    update image_sync.chunks c
    set
      state = 'pending',
      attempts = c.attempts + 1,
      ledger = image_sync.add_counts(c.ledger, v_counts),
      not_before = clock_timestamp() + case when c.attempts + 1 < p_settings.max_attempts then p_settings.retry_delay * power(2, least(c.attempts, 10)) else interval '0' end,
      lease_expires_at = null,
      error = p_error - 'is_final'
    where c.run_id = p_run.id and c.number = p_number;
    return 'closed';
  elsif p_run.mode = 'verify' then
    v_chunk.ledger := image_sync.add_counts(v_chunk.ledger, v_counts);
    return image_sync.close_verified(p_run, v_chunk, p_names, p_failures, v_chunk.attempts >= p_settings.max_attempts);
  elsif p_error is not null then
    v_chunk.error := p_error - 'is_final';
    v_chunk.attempts := greatest(v_chunk.attempts, p_settings.max_attempts);
  end if;
  return image_sync.close_chunk(p_run, p_settings, v_chunk, p_names, p_urls, p_expires, p_failures, v_counts);
end;
$$;

comment on function image_sync.close_lease(image_sync.runs, image_sync.settings, integer, uuid, text[], text[], bigint[], jsonb, jsonb, integer, integer) is
  'Closes the chunk of this number if the token holds it: closed, more, already_closed or stale.';

-- Writes what a chunk has to write and accounts for each of its names: all of it, or, where the database was too slow for that once, as
-- many rows as it does in time; the rest is left in the chunk.
--   p_counts  what signing took, counted once: with the last of its rows
create or replace function image_sync.close_chunk(
  p_run image_sync.runs, p_settings image_sync.settings, p_chunk image_sync.chunks, p_names text[], p_urls text[], p_expires bigint[], p_failures jsonb, p_counts jsonb
)
returns text
language plpgsql
set search_path = ''
-- Arrays of a thousand are joined by their hashes.
set enable_hashjoin = 'on'
as $$
declare
  v_since constant timestamptz := clock_timestamp();
  v_size constant integer := coalesce(p_chunk.write_size, p_run.chunk_size, p_settings.chunk_size);
  v_is_given_up constant boolean := p_chunk.attempts >= p_settings.max_attempts;
  v_tried constant text[] := p_chunk.to_do[:v_size];
  v_linked constant text[] := p_chunk.to_link[:v_size - cardinality(v_tried)];
  v_to_do constant text[] := p_chunk.to_do[v_size + 1:];
  v_to_link constant text[] := p_chunk.to_link[cardinality(v_linked) + 1:];
  v_is_over constant boolean := v_to_do = '{}' and v_to_link = '{}';
  v_items image_sync.item[];
  v_write image_sync.write := ('{}', '{}', '{}', '[]')::image_sync.write;
  v_chunk image_sync.chunks := p_chunk;
begin
  v_items := array(
    select (n.name, case when f.name is null then s.url when not image_sync.is_signable(n.name) then '' end, to_timestamp(s.expires), n.id)::image_sync.item
    from unnest(v_tried, p_chunk.to_do_ids[:v_size]) as n (name, id)
    left join unnest(p_names, p_urls, p_expires) as s (name, url, expires)
      on s.name = n.name
    left join jsonb_to_recordset(p_failures) as f (name text)
      on f.name = n.name
    order by n.name collate "C"
  ) || array(
    select (n.name, null, null, null)::image_sync.item
    from unnest(v_linked) as n (name)
  );
  -- Given up and not heard of again: its worker died while it wrote. Nothing is written then.
  if p_chunk.attempts < p_settings.max_attempts + 3 then
    v_write := image_sync.write_rows('store', p_run, v_items);
  end if;
  v_chunk := image_sync.account_for(p_run, p_settings, v_chunk, v_items[:cardinality(v_tried)], v_write, p_failures, v_is_given_up);
  v_chunk.ledger := image_sync.add_counts(v_chunk.ledger, jsonb_build_object('linked', (select count(*) from unnest(v_linked) as n (name) where n.name = any (v_write.written))));
  if v_is_over then
    -- Whatever of it was found to be an image and had no other end has a record.
    v_chunk.ledger := image_sync.add_counts(v_chunk.ledger - 'unsettled', jsonb_build_object('recorded', v_chunk.ledger -> 'unsettled') || p_counts);
  end if;
  update image_sync.chunks c
  set
    state = case when not v_is_over then 'leased' when v_is_given_up then 'dead' else 'done' end,
    to_do = v_to_do,
    to_do_ids = case when v_is_over then '{}' else c.to_do_ids[v_size + 1:] end,
    to_link = v_to_link,
    write_size = case when v_is_over then null else v_size * case when clock_timestamp() < v_since + interval '500 milliseconds' then 4 else 1 end end,
    ledger = v_chunk.ledger,
    facts = v_chunk.facts,
    problems = v_chunk.problems,
    error = case when v_is_given_up then v_chunk.error end,
    attempts = v_chunk.attempts,
    lease_expires_at = case when not v_is_over then clock_timestamp() + p_settings.lease_duration end,
    closed_at = case when v_is_over then clock_timestamp() end
  where c.run_id = p_chunk.run_id and c.number = p_chunk.number;
  return case when v_is_over then 'closed' else 'more' end;
end;
$$;

comment on function image_sync.close_chunk(image_sync.runs, image_sync.settings, image_sync.chunks, text[], text[], bigint[], jsonb, jsonb) is
  'Writes the records of a leased chunk whose row the caller has locked. Returns closed, or more where rows are left.';

-- Where every name went that a chunk had to sign: signed, held, withdrawn (gone, or not taken by the table) or failed; and what became of
-- images that had no record. A record may have come to follow its file to one of them meanwhile: the next run takes it along.
create or replace function image_sync.account_for(
  p_run image_sync.runs, p_settings image_sync.settings, p_chunk image_sync.chunks, p_items image_sync.item[], p_write image_sync.write, p_failures jsonb, p_is_given_up boolean
)
returns image_sync.chunks
language plpgsql
set search_path = ''
-- Arrays of a thousand are joined by their hashes.
set enable_hashjoin = 'on'
as $$
declare
  v_chunk image_sync.chunks := p_chunk;
  v_expires timestamptz[];
  v_rest text[];
  v_others integer := 0;
  v_look image_sync.look;
  v_ends record;
begin
  select array_agg(i.expires_at) filter (where i.url <> '' and w.name is not null), array_agg(i.name) filter (where (i.url <> '' and w.name is not null) is not true)
  into v_expires, v_rest
  from unnest(p_items) as i
  left join unnest(p_write.written) as w (name)
    on w.name = i.name;
  -- Records of no image have URLs too, and are few.
  if v_expires is not null and image_sync.count_of(p_chunk.ledger, 'unsettled') <> cardinality(p_chunk.to_do) then
    select count(*)
    into v_others
    from image_sync.see_names(p_run, p_settings, p_write.written) as c
    where c.kind <> 'image' and c.name <> all (coalesce(v_rest, '{}'));
  end if;
  v_chunk.ledger := image_sync.add_counts(v_chunk.ledger, jsonb_build_object(
    'signed', cardinality(v_expires), 'records', cardinality(v_expires), 'records_signed', cardinality(v_expires), 'images_signed', cardinality(v_expires) - v_others,
    'inserted', cardinality(p_write.inserted), 'unsettled', -cardinality(p_write.inserted),
    'updated', cardinality(v_expires) - (select count(*) from unnest(p_write.inserted) as n (name) where n.name <> all (coalesce(v_rest, '{}')))
  ));
  v_chunk.facts := image_sync.add_expiry(v_chunk.facts, v_expires);
  if v_rest is null then
    return v_chunk;
  end if;

  with ended as (
    select
      n.name, f.error, w.words, w.is_taken, n.name = any (p_write.held) as is_held, f.name is not null as has_failed,
      c.kind is not null as is_object, coalesce(c.is_record, false) as is_record, coalesce(c.arrives, false) as is_elsewhere
    from unnest(v_rest) as n (name)
    left join image_sync.see_names(p_run, p_settings, v_rest) as c
      on c.name = n.name
    left join jsonb_to_recordset(p_failures) as f (name text, error text)
      on f.name = n.name
    left join jsonb_to_recordset(p_write.refused) as w (name text, words text, is_taken boolean)
      on w.name = n.name
  ), told as (
    select e.*,
      case when not e.is_object then 'withdrawn' when e.has_failed then 'failed' when e.is_held then 'held' when p_is_given_up or e.is_record then 'failed' else 'withdrawn' end as outcome,
      case when e.is_record then null when not e.is_object then 'vanished' when e.is_held or e.is_elsewhere or p_is_given_up and e.words is null then 'missing' else 'collided' end as fate
    from ended e
  )
  select
    (
      select jsonb_object_agg(k.key, k.names)
      from (
        select t.outcome as key, count(*) as names from told t group by 1
        union all
        select t.fate, count(*) from told t where t.fate is not null group by 1
        union all
        select 'unsettled', -count(*) from told t where t.fate is not null having count(*) > 0
      ) as k
    ) as counts,
    (
      select coalesce(jsonb_agg(image_sync.item_problem(
        t.name,
        case
          when t.outcome = 'held' then 'row_locked'
          when t.has_failed and image_sync.is_signable(t.name) then 'signing_failed'
          when t.has_failed then 'unsignable_name'
          when t.is_record then 'url_refused'
          else 'record_refused'
        end,
        case when t.has_failed and t.outcome = 'failed' then t.error when t.outcome <> 'held' then coalesce(t.words, 'a trigger of the table keeps what it had') end
      ) order by t.name collate "C"), '[]')
      from told t
      where t.outcome = 'held' or t.outcome = 'failed' and (t.has_failed or not p_is_given_up) or t.fate = 'collided' and not t.is_taken
    ) as problems,
    (select to_jsonb((array_agg(t.name order by t.name collate "C"))[1:20]) from told t where t.fate = 'collided') as collided
  into v_ends;
  v_look := image_sync.look(p_run, p_settings, 'measure', null, null, v_rest);
  v_chunk.ledger := image_sync.add_counts(image_sync.add_counts(v_chunk.ledger, v_ends.counts), image_sync.record_counts(v_look) - 'missing');
  v_chunk.facts := v_chunk.facts || jsonb_strip_nulls(jsonb_build_object(
    'expiry', image_sync.add_counts(v_chunk.facts -> 'expiry', v_look.facts -> 'expiry'),
    'soonest_expiry', least(v_chunk.facts ->> 'soonest_expiry', v_look.facts ->> 'soonest_expiry'),
    'orphaned', image_sync.first_items(coalesce(v_chunk.facts -> 'orphaned', '[]') || coalesce(v_look.facts -> 'orphaned', '[]')),
    'collided', to_jsonb(image_sync.first_names(nullif(image_sync.texts(v_chunk.facts -> 'collided') || image_sync.texts(v_ends.collided), '{}')))
  ));
  v_chunk.problems := v_chunk.problems || v_ends.problems;
  return v_chunk;
end;
$$;

comment on function image_sync.account_for(image_sync.runs, image_sync.settings, image_sync.chunks, image_sync.item[], image_sync.write, jsonb, boolean) is
  'A chunk (not stored) with what became of those of its names that were tried: what was counted, and the problems by name.';

-- What a look counted of records: their files were counted before.
create or replace function image_sync.record_counts(p_look image_sync.look)
returns jsonb language sql immutable set search_path = '' as $$
  select coalesce(jsonb_object_agg(e.key, e.value), '{}')
  from jsonb_each(p_look.ledger) as e
  where e.key = any ('{records,records_signed,records_expired,images_signed,orphaned,orphans_unsigned,orphans_expired,missing}')
$$;

comment on function image_sync.record_counts(image_sync.look) is 'The counters of a look that say something of records.';

create or replace function image_sync.add_expiry(p_facts jsonb, p_expires timestamptz[])
returns jsonb language sql stable set search_path = '' set timezone = 'UTC' as $$
  select case when p_expires is null then p_facts else p_facts || jsonb_build_object(
    'expiry', image_sync.add_counts(p_facts -> 'expiry', (select jsonb_object_agg(d.day, d.urls) from (select e.at::date as day, count(*) as urls from unnest(p_expires) as e (at) group by 1) as d)),
    'soonest_expiry', least((p_facts ->> 'soonest_expiry')::timestamptz, (select min(e.at) from unnest(p_expires) as e (at)))
  ) end
$$;

comment on function image_sync.add_expiry(jsonb, timestamptz[]) is 'The facts of a chunk with more URLs that die at these times.';

-- Ends an attempt at a chunk that the database ended: its transaction is gone, so nothing of it is known but the error. What took too
-- long is written in tenths by the same worker, with the same URLs; a single row that takes too long is left out and named. What
-- somebody held waits for them, however often.
create or replace function image_sync.interrupt_chunk(p_run image_sync.runs, p_settings image_sync.settings, p_chunk image_sync.chunks, p_error jsonb)
returns text language plpgsql set search_path = '' as $$
declare
  v_left constant integer := cardinality(p_chunk.to_do) + cardinality(p_chunk.to_link);
  v_size constant integer := least(coalesce(p_chunk.write_size, p_run.chunk_size, p_settings.chunk_size), v_left);
  v_slow constant text := case when v_size <= 1 then coalesce(p_chunk.to_do[1], p_chunk.to_link[1]) end;
  v_counts jsonb;
begin
  if p_error ->> 'code' <> 'database_timeout' or p_run.mode = 'verify' then
    update image_sync.chunks c
    set state = 'pending', not_before = clock_timestamp() + least(p_settings.retry_delay, interval '10 seconds'), lease_expires_at = null, error = p_error
    where c.run_id = p_chunk.run_id and c.number = p_chunk.number;
    return 'waits';
  end if;
  if v_slow = any (p_chunk.to_do) then
    v_counts := image_sync.record_counts(image_sync.look(p_run, p_settings, 'measure', null, null, array[v_slow]));
    v_counts := v_counts || jsonb_build_object('failed', 1, 'unsettled', -image_sync.count_of(v_counts, 'missing'));
  end if;
  v_counts := case when v_slow is not null then coalesce(v_counts, '{}') || '{"too_slow": 1}' end;
  update image_sync.chunks c
  set
    write_size = case when v_slow is null then greatest(v_size / 10, 1) end,
    to_do = array_remove(c.to_do, v_slow),
    to_do_ids = case when v_slow = any (c.to_do) then c.to_do_ids[2:] else c.to_do_ids end,
    to_link = array_remove(c.to_link, v_slow),
    lease_expires_at = clock_timestamp() + p_settings.lease_duration,
    ledger = image_sync.add_counts(c.ledger, v_counts),
    problems = case when v_slow is null then c.problems else c.problems || image_sync.item_problem(v_slow, p_error ->> 'code', p_error ->> 'detail') end
  where c.run_id = p_chunk.run_id and c.number = p_chunk.number;
  -- The chunks that follow begin where this one ended up; one slow row is no reason to.
  update image_sync.runs r
  set chunk_size = case when v_slow is null then greatest(least(r.chunk_size, v_size) / 10, 1) end
  where r.id = p_run.id;
  return 'more';
end;
$$;

comment on function image_sync.interrupt_chunk(image_sync.runs, image_sync.settings, image_sync.chunks, jsonb) is
  'After a timeout lets the same close be made again with a tenth of the rows (more), or without the one row that takes too long; otherwise lets the chunk wait (waits). The caller holds the run''s row lock.';

-- Gives back what a worker holds and will not do any more: no attempt is counted.
create or replace function image_sync.release_chunks(p_run uuid, p_leases uuid[])
returns integer language sql set search_path = '' as $$
  with free as materialized (
    -- A row that somebody else holds is not waited for: its lease runs out.
    select c.number
    from image_sync.chunks c
    where c.run_id = p_run and c.state = 'leased' and (p_leases is null or c.lease_token = any (p_leases))
    for update skip locked
  ), released as (
    update image_sync.chunks c
    set state = 'pending', lease_token = null, lease_expires_at = null, not_before = null
    from free
    where c.run_id = p_run and c.number = free.number
    returning 1
  )
  select count(*)::integer
  from released;
$$;

comment on function image_sync.release_chunks(uuid, uuid[]) is 'Makes the chunks that hold these leases (null: all leases of the run) pending again and returns how many there were.';

-- run documents

-- A run as the world sees it: what its chunks add up to, how far it is, and how it ends.

-- The first 20 names that a run's chunks kept under a key of their facts.
create or replace function image_sync.samples(p_run uuid, p_key text)
returns jsonb language plpgsql stable set search_path = '' as $$
begin
  return (
    -- A name may have 1,024 characters and more: a sample is for the eye.
    select coalesce(jsonb_agg(case when length(s.name) > 300 then left(s.name, 299) || '…' else s.name end), '[]')
    from (
      select name #>> '{}' as name
      from image_sync.chunks c
      cross join lateral jsonb_array_elements(c.facts -> p_key) as name
      where c.run_id = p_run and c.facts ? p_key
      order by c.number limit 20
    ) as s
  );
end;
$$;

comment on function image_sync.samples(uuid, text) is 'Up to 20 sample names of a kind, of 300 characters at most, from the chunks of a run in key order.';

-- The same of the items that failed with a code.
create or replace function image_sync.problem_samples(p_run uuid, p_code text)
returns jsonb language plpgsql stable set search_path = '' as $$
begin
  return (
    select coalesce(jsonb_agg(case when length(s.name) > 300 then left(s.name, 299) || '…' else s.name end), '[]')
    from (
      select problem ->> 'name' as name
      from image_sync.chunks c
      cross join lateral jsonb_array_elements(c.problems) as problem
      where c.run_id = p_run and c.problems <> '[]' and problem ->> 'code' = p_code
      order by c.number limit 20
    ) as s
  );
end;
$$;

comment on function image_sync.problem_samples(uuid, text) is 'Up to 20 names of items that failed with this code, of 300 characters at most, from the chunks of a run in key order.';

-- The ledger of a run: those of its chunks, added up.
create or replace function image_sync.run_ledger(p_run uuid)
returns jsonb
language plpgsql
stable
set search_path = ''
-- The chunks of one run, by their key, whatever the statistics said when this session planned it.
set enable_seqscan = 'off'
as $$
begin
  return (
    select coalesce(jsonb_object_agg(t.name, t.count), '{}')
    from (
      select e.key as name, sum(e.value::bigint) as count
      from image_sync.chunks c
      cross join lateral jsonb_each_text(c.ledger) as e
      where c.run_id = p_run
      group by 1
    ) as t
  );
end;
$$;

comment on function image_sync.run_ledger(uuid) is 'What the ledgers of a run''s chunks add up to, counter by counter.';

-- Whether every object and every name of a chunk has one end.
create or replace function image_sync.is_balanced(p_ledger jsonb, p_is_closed boolean)
returns boolean language sql immutable set search_path = '' as $$
  select image_sync.count_of(p_ledger, 'listed') = image_sync.count_of(p_ledger, 'images') + image_sync.count_of(p_ledger, 'not_images')
    and image_sync.count_of(p_ledger, 'images') = image_sync.count_of(p_ledger, 'recorded') + image_sync.count_of(p_ledger, 'inserted') + image_sync.count_of(p_ledger, 'moved') + image_sync.count_of(p_ledger, 'unmoved') + image_sync.count_of(p_ledger, 'collided') + image_sync.count_of(p_ledger, 'vanished') + image_sync.count_of(p_ledger, 'missing') + image_sync.count_of(p_ledger, 'unsettled')
    and (not p_is_closed or image_sync.count_of(p_ledger, 'to_sign') = image_sync.count_of(p_ledger, 'signed') + image_sync.count_of(p_ledger, 'withdrawn') + image_sync.count_of(p_ledger, 'failed') + image_sync.count_of(p_ledger, 'held') and image_sync.count_of(p_ledger, 'to_open') = image_sync.count_of(p_ledger, 'shown') + image_sync.count_of(p_ledger, 'broken'))
$$;

comment on function image_sync.is_balanced(jsonb, boolean) is
  'Whether a chunk''s ledger says of each object what it is, and, once the chunk is closed, of each name that had to be signed or opened what became of it.';

-- The totals of a run, from its chunks. Kept in runs.summary when it finishes, because chunks are pruned.
create or replace function image_sync.summarize(p_run uuid)
returns jsonb language plpgsql stable set search_path = '' set enable_seqscan = 'off' as $$
declare
  v_ledger constant jsonb := image_sync.run_ledger(p_run);
begin
  return (
    select jsonb_build_object(
      'chunks', count(*),
      'dead_chunks', count(*) filter (where c.state = 'dead'),
      'invocations', count(distinct c.worker_id),
      'done', coalesce(sum(greatest(
        image_sync.count_of(c.ledger, 'listed'),
        image_sync.count_of(c.ledger, 'removed') + image_sync.count_of(c.ledger, 'restored') + image_sync.count_of(c.ledger, 'skipped')
      )) filter (where c.state in ('done', 'dead')), 0),
      'balanced', coalesce(bool_and(image_sync.is_balanced(c.ledger, c.state in ('done', 'dead'))), true),
      'totals', (
        select jsonb_object_agg(n.name, image_sync.count_of(v_ledger, n.name))
        from unnest('{listed,images,not_images,recorded,inserted,moved,unmoved,collided,vanished,missing,to_sign,signed,withdrawn,failed,held,shown,orphaned,records,removed,restored,skipped,storage_calls,retries}'::text[]) as n (name)
      ) || jsonb_build_object(
        'opened', image_sync.count_of(v_ledger, 'shown') + image_sync.count_of(v_ledger, 'broken'),
        'rows_written', (
          select sum(image_sync.count_of(v_ledger, n.name))
          from unnest('{inserted,updated,linked,removed,restored}'::text[]) as n (name)
        ) + case
          when (
            select r.mode = 'sync'
            from image_sync.runs r
            where r.id = p_run
          ) then image_sync.count_of(v_ledger, 'moved')
          else 0
        end
      ),
      'orphaned_samples', image_sync.samples(p_run, 'orphaned'),
      'problems', (
        select coalesce(jsonb_agg(p.problem), '[]')
        from (
          select problem
          from image_sync.chunks d
          cross join lateral jsonb_array_elements(
            d.problems || case when d.state = 'dead' then jsonb_build_object('name', format('chunk %s', d.number)) || d.error else '[]' end
          ) as problem
          where d.run_id = p_run and (d.problems <> '[]' or d.state = 'dead')
          order by d.number limit 20
        ) as p
      )
    )
    from image_sync.chunks c
    where c.run_id = p_run
  );
end;
$$;

comment on function image_sync.summarize(uuid) is
  'What a run''s chunks add up to: chunks, invocations, whether the ledger balances in every chunk, totals, and up to 20 named problems.';

-- The run as GET answers it. Never a URL, a key or a lease.
create or replace function image_sync.run_document(p_run uuid)
returns jsonb language plpgsql stable set search_path = '' as $$
declare
  v_run image_sync.runs;
  v_summary jsonb;
  v_seconds numeric;
  v_done bigint;
  v_total bigint;
  v_rate numeric;
begin
  select r.*
  into v_run
  from image_sync.runs r
  where r.id = p_run;
  if not found then
    return null;
  end if;

  v_summary := coalesce(v_run.summary, image_sync.summarize(p_run));
  v_seconds := extract(epoch from coalesce(v_run.finished_at, now()) - v_run.started_at);
  v_done := (v_summary ->> 'done')::bigint;
  v_total := case when v_run.exhausted and v_run.finished_at is not null then v_done else greatest(v_run.total_estimate, v_done) end;
  v_rate := round(v_done / greatest(v_seconds, 0.001), 1);

  return jsonb_build_object(
    'id', v_run.id,
    'bucket_id', v_run.bucket_id,
    'mode', v_run.mode,
    'trigger', v_run.trigger,
    'options', v_run.options,
    'plan_id', v_run.plan_id,
    'state', coalesce(v_run.outcome, 'open'),
    'stop_reason', v_run.stop_reason,
    'started_at', v_run.started_at,
    'moved_at', v_run.moved_at,
    'idle', v_run.finished_at is null and image_sync.is_idle(v_run),
    'finished_at', v_run.finished_at,
    'duration_seconds', round(v_seconds, 3),
    'progress', jsonb_build_object(
      'done', v_done,
      'total_estimate', v_total,
      'percent', case
        when v_run.finished_at is not null and v_run.exhausted then 100
        when v_total > 0 then least(99, floor(100.0 * v_done / v_total))
        else 0
      end,
      'rate_per_second', v_rate,
      'eta_seconds', case
        when v_run.finished_at is not null then 0
        when v_rate > 0 then ceil((v_total - v_done) / v_rate)
      end
    ),
    'totals', v_summary -> 'totals',
    'chunks', v_summary -> 'chunks',
    'invocations', v_summary -> 'invocations',
    'balanced', v_summary -> 'balanced',
    'error', v_run.error,
    'problems', v_summary -> 'problems'
  ) || case
    -- What a dry run would remove: the list itself stays in its chunks.
    when v_run.mode = 'cleanup' and v_run.plan_id is null then jsonb_build_object('plan', jsonb_build_object(
      'count', v_summary #> '{totals,orphaned}', 'samples', v_summary -> 'orphaned_samples'
    ))
    else '{}'
  end;
end;
$$;

comment on function image_sync.run_document(uuid) is 'One run as JSON: identity, state, progress, totals, ledger, error and problems; null for an unknown id.';

-- How many objects the run can expect: what the last run of the bucket counted, else a count that gives up at 100,000 and then
-- trusts the statistics of the table.
create or replace function image_sync.estimate_total(p_bucket_id text)
returns bigint language plpgsql stable set search_path = '' as $$
declare
  v_total bigint;
begin
  select (r.summary #>> '{totals,listed}')::bigint
  into v_total
  from image_sync.runs r
  where r.bucket_id = p_bucket_id and r.mode in ('sync', 'analyze', 'verify') and r.outcome in ('succeeded', 'partial')
  order by r.started_at desc limit 1;
  if v_total > 0 then
    return v_total;
  end if;

  select count(*)
  into v_total
  from (
    select
    from storage.objects o
    where o.bucket_id = p_bucket_id
    order by o.name collate "C" limit 100000
  ) as counted;
  if v_total < 100000 then
    return v_total;
  end if;
  return greatest(
    v_total,
    (
      select c.reltuples::bigint
      from pg_catalog.pg_class c
      where c.oid = 'storage.objects'::regclass
    )
  );
end;
$$;

comment on function image_sync.estimate_total(text) is 'About how many objects the bucket holds, in a few milliseconds at any size; for progress alone.';

-- run lifecycle

-- How a run begins, moves and ends.

-- A problem that a caller can do something about: an expected condition, so a return value (docs: RFC 9457 in the API).
create or replace function image_sync.problem(p_status integer, p_code text, p_title text, p_detail text, p_numbers jsonb default '{}')
returns jsonb language sql immutable set search_path = '' as $$
  select jsonb_build_object('problem', p_numbers || jsonb_build_object('status', p_status, 'code', p_code, 'title', p_title, 'detail', p_detail))
$$;

comment on function image_sync.problem(integer, text, text, text, jsonb) is 'A refusal as the API answers it: HTTP status, stable code, title, detail with the way out, and the numbers behind it.';

create or replace function image_sync.unknown_run(p_run uuid)
returns jsonb language sql immutable set search_path = '' as $$
  select image_sync.problem(404, 'unknown_run', 'There is no such run', format('Cannot find run %s: it never was, or housekeeping pruned it.', p_run))
$$;

comment on function image_sync.unknown_run(uuid) is 'The refusal of a request about a run that does not exist.';

-- Opens a run, or finds the one that is open in this mode. p_run is made by the caller: repeating the call opens nothing twice.
create or replace function image_sync.open_run(
  p_run uuid,
  p_bucket_id text,
  p_mode text,
  p_trigger text,
  p_options jsonb,
  p_plan uuid,
  p_total bigint
)
returns image_sync.runs language plpgsql set search_path = '' as $$
declare
  v_run image_sync.runs;
begin
  insert into image_sync.runs (id, bucket_id, mode, trigger, options, plan_id, total_estimate, bucket_created_at)
  values (
    p_run, p_bucket_id, p_mode, p_trigger,
    p_options || case when p_mode = 'sync' and image_sync.renews_all(p_bucket_id) then '{"renew": "all"}'::jsonb else '{}' end,
    p_plan, p_total,
    (
      select b.created_at
      from storage.buckets b
      where b.id = p_bucket_id
    )
  )
  on conflict do nothing
  returning *
  into v_run;
  if v_run.id is null then
    -- This very call made before, else the run that is open in this mode.
    select r.*
    into v_run
    from image_sync.runs r
    where r.id = p_run
      or (r.bucket_id = p_bucket_id and r.mode = p_mode and r.finished_at is null)
    order by (r.id = p_run) desc limit 1;
  end if;
  return v_run;
end;
$$;

comment on function image_sync.open_run(uuid, text, text, text, jsonb, uuid, bigint) is
  'Opens a run with this id, or returns the one that has it, or the one that is open for the bucket and mode; a partial unique index decides.';

-- Whether the name of an object is one that Storage signs: of the characters that it accepts, and without the segments . and ..
-- that every URL parser removes. Objects of an older Storage may have other names.
create or replace function image_sync.is_signable(p_name text)
returns boolean language sql immutable set search_path = '' as $$
  select p_name ~ '^[A-Za-z0-9_/!.*''() &$@=;:+,?-]+$' and p_name !~ '(^|/)\.{1,2}(/|$)'
$$;

comment on function image_sync.is_signable(text) is 'Whether Storage signs an object of this name.';

-- How a run that came to its end turned out, by its chunks: outcome and stop_reason.
create or replace function image_sync.judge_run(p_run image_sync.runs, p_summary jsonb, out outcome text, out stop_reason text)
language plpgsql stable set search_path = '' as $$
declare
  v_totals record;
  v_chunks record;
begin
  select t.*
  into v_totals
  from jsonb_to_record(p_summary -> 'totals') as t (signed bigint, failed bigint, held bigint, unmoved bigint, restored bigint, skipped bigint);
  select
    coalesce(bool_or(c.ledger ? 'too_slow'), false) as too_slow,
    coalesce(bool_or(c.state = 'dead'), false) as dead,
    coalesce(bool_or(c.problems @> '[{"code": "record_refused"}]'), false) as refused,
    -- Storage is at fault where nothing could be signed, unless nothing was left to sign but names that can never be.
    coalesce(bool_or(c.ledger ? 'failed' and (
      c.state = 'dead'
      or c.problems @> '[{"code": "signing_failed"}]'
    )), false) as unsigned
  into v_chunks
  from image_sync.chunks c
  where c.run_id = p_run.id and (c.state = 'dead' or c.ledger ?| '{failed,too_slow}' or c.problems <> '[]');

  stop_reason := case
    when v_totals.signed = 0 and v_chunks.unsigned then 'signing_impossible'
    when p_run.mode = 'restore' and v_totals.skipped > 0 and v_totals.restored = 0 then 'nothing_restored'
    when v_chunks.dead then 'dead_chunks'
    when v_chunks.too_slow then 'database_timeout'
    when v_totals.failed + v_totals.unmoved > 0 then 'items_failed'
    when v_totals.held > 0 then 'row_locked'
    when v_chunks.refused then 'records_refused'
    when p_run.mode = 'restore' and v_totals.skipped > 0 then 'records_skipped'
    when not (p_summary ->> 'balanced')::boolean then 'unbalanced'
  end;
  outcome := case
    when stop_reason is null then 'succeeded'
    when stop_reason in ('signing_impossible', 'nothing_restored') then 'failed'
    else 'partial'
  end;
end;
$$;

comment on function image_sync.judge_run(image_sync.runs, jsonb) is
  'Outcome and stop reason of a run that came to its end. stop_reason: signing_impossible, nothing_restored (failed); dead_chunks, database_timeout, items_failed, row_locked, records_refused, records_skipped, unbalanced (partial); null (succeeded).';

-- Chunks are closed side by side, without the run's row lock: each close holds this key shared, and whoever ends the run holds it
-- alone. So what a close has stored is counted, and none is stored after the count.
create or replace function image_sync.closing_key(p_run uuid)
returns bigint language sql immutable set search_path = '' as $$
  select hashtextextended('image_sync.closing ' || p_run, 0)
$$;

comment on function image_sync.closing_key(uuid) is 'The advisory lock of a run: shared by those who close its chunks, alone for whoever ends it.';

-- Comes before the run's row lock, which those who are closing want next. A close takes as long as its statement may: the wait for it is
-- what is left of ours.
create or replace function image_sync.await_closes(p_run uuid)
returns void language plpgsql set search_path = '' set lock_timeout = '5s' as $$
begin
  perform pg_advisory_xact_lock(image_sync.closing_key(p_run));
end;
$$;

comment on function image_sync.await_closes(uuid) is
  'Waits until no chunk of the run is being closed, and keeps others from it until the transaction ends; raises lock_not_available after 5 s.';

-- Closes a run for good, unless a chunk of it is being closed: false then, and nothing changes. The caller holds the run's row lock.
-- Without p_outcome the chunks decide.
create or replace function image_sync.finish_run(p_run uuid, p_outcome text, p_stop_reason text, p_error jsonb, p_probe jsonb)
returns boolean language plpgsql set search_path = '' as $$
declare
  v_run image_sync.runs;
  v_summary jsonb;
  v_verdict record;
begin
  if not pg_try_advisory_xact_lock(image_sync.closing_key(p_run)) then
    return false;
  end if;
  perform image_sync.release_chunks(p_run, null);
  v_summary := image_sync.summarize(p_run);
  select r.*
  into v_run
  from image_sync.runs r
  where r.id = p_run;
  v_verdict := image_sync.judge_run(v_run, v_summary);

  update image_sync.runs r
  set
    finished_at = clock_timestamp(),
    moved_at = clock_timestamp(),
    outcome = coalesce(p_outcome, v_verdict.outcome),
    stop_reason = coalesce(p_stop_reason, v_verdict.stop_reason),
    error = coalesce(p_error, case
      -- Why a call could not be queued matters only where the run did not get through all the same.
      when p_outcome is null and image_sync.is_kick_problem(r.error) then null
      else r.error
    end, case
      when (v_summary #>> '{totals,held}')::bigint > 0 then jsonb_build_object(
        'code', 'row_locked',
        'title', 'Somebody else holds records',
        'detail', format('%s records were locked by other sessions and left as they are. The next sync settles them; if it does not, look for a session that stays idle in a transaction (pg_stat_activity).', v_summary #>> '{totals,held}')
      )
    end),
    summary = v_summary
  where r.id = p_run and r.finished_at is null
  returning *
  into v_run;

  -- A verify that could not reach the URLs has seen nothing of them: what the one before saw stands.
  if v_run.exhausted and v_run.mode in ('sync', 'analyze', 'verify') and (v_run.mode, v_run.stop_reason) is distinct from ('verify', 'unreachable') then
    update image_sync.runs r
    set report = image_sync.measure(v_run, p_probe) || case when v_run.mode = 'verify' then jsonb_build_object('verified', image_sync.measure_verified(v_run)) else '{}' end
    where r.id = v_run.id;
    perform image_sync.note_since(v_run);
  end if;
  return true;
end;
$$;

comment on function image_sync.finish_run(uuid, text, text, jsonb, jsonb) is
  'Closes an open run: releases its leases, keeps its totals and, for a sync or analyze that reached the end, what it measured. Outcome and stop reason follow from the chunks where none is given. False, and nothing changes, where a chunk of it is being closed.';

create or replace function image_sync.is_kick_problem(p_error jsonb)
returns boolean language sql immutable set search_path = '' as $$
  select coalesce(p_error ->> 'code' in ('function_unknown', 'call_not_queued'), false)
$$;

comment on function image_sync.is_kick_problem(jsonb) is 'Whether an error of a run says that the function could not be called.';

-- Why an open run does not move, as far as it is known.
create or replace function image_sync.standstill_reason(p_run image_sync.runs)
returns text language plpgsql stable set search_path = '' as $$
begin
  return coalesce(
    (
      select format('%s: %s', coalesce(p_run.error, open_chunk.error) ->> 'title', coalesce(p_run.error, open_chunk.error) ->> 'detail')
      from (select) as always
      left join lateral (
        select c.error
        from image_sync.chunks c
        where c.run_id = p_run.id and c.state in ('pending', 'leased') and c.error is not null
        order by c.number limit 1
      ) as open_chunk on true
      where coalesce(p_run.error, open_chunk.error) is not null
    ),
    'The function may not be deployed, or cannot reach the database.'
  );
end;
$$;

comment on function image_sync.standstill_reason(image_sync.runs) is 'In words: the last error of a run that does not move, or of its first open chunk.';

-- Takes the run's row lock, which makes walking and claiming one worker at a time, and gives up soon: a worker that has to wait
-- is told so instead of holding a connection.
create or replace function image_sync.lock_run(p_run uuid)
returns image_sync.runs language plpgsql set search_path = '' set lock_timeout = '400ms' as $$
declare
  v_run image_sync.runs;
begin
  select r.*
  into v_run
  from image_sync.runs r
  where r.id = p_run
  for update;
  return v_run;
exception
  when lock_not_available then
    return null;
end;
$$;

comment on function image_sync.lock_run(uuid) is 'Locks the run''s row and returns it; null after 400 ms without the lock.';

-- The bucket as Storage has it. A listing by a key without rights, or of a bucket that does not exist, is empty and proves
-- nothing; only storage.buckets says whether there is a bucket.
create or replace function image_sync.bucket_problem(p_run image_sync.runs)
returns jsonb language plpgsql stable set search_path = '' as $$
begin
  return (
    select case
      when b.id is null and coalesce(coalesce(plan.options, p_run.options) ->> 'bucket_is_gone' = 'true', false) then null
      when b.id is null then jsonb_build_object(
        'code', 'bucket_missing',
        'title', 'The bucket does not exist',
        'detail', format('Cannot list bucket %s: storage.buckets has no such id. Create it; or, if it is gone for good, archive its records: {"mode": "cleanup", "bucket_is_gone": true}.', p_run.bucket_id)
      )
      when b.created_at is distinct from p_run.bucket_created_at then jsonb_build_object(
        'code', 'bucket_recreated',
        'title', 'The bucket was deleted and made again',
        'detail', format('Bucket %s is not the one that run %s began with. Start a new run.', p_run.bucket_id, p_run.id)
      )
    end
    from (select) as always
    left join storage.buckets b on b.id = p_run.bucket_id
    left join image_sync.runs plan on plan.id = p_run.plan_id
    -- Putting records back needs no bucket.
    where p_run.mode <> 'restore'
  );
end;
$$;

comment on function image_sync.bucket_problem(image_sync.runs) is 'Why the run''s bucket cannot be walked: it is missing, or another one than at the beginning; null where it can.';

-- The next chunk of a run that applies a plan took too long: half as many records next time, at one record it is left alone and
-- named, once it has taken too long twice: between the call that the database ended and this one another worker may have got past it.
-- Returns how many records the next chunks may have. The caller holds the run's row lock.
create or replace function image_sync.interrupt_plan(p_run image_sync.runs, p_settings image_sync.settings, p_worker uuid, p_error jsonb)
returns integer language plpgsql set search_path = '' as $$
declare
  v_size constant integer := image_sync.chunk_size(p_run, p_settings);
  v_skipped image_sync.chunks;
begin
  if v_size > 1 or p_run.error ->> 'cursor' is distinct from p_run.cursor then
    return (v_size + 1) / 2;
  end if;
  v_skipped := image_sync.settle_chunk(p_run, p_settings, p_worker, p_error);
  update image_sync.runs r
  set cursor = coalesce(v_skipped.to_key, r.cursor), exhausted = v_skipped.to_key is null, moved_at = clock_timestamp()
  where r.id = p_run.id;
  return p_settings.chunk_size;
end;
$$;

comment on function image_sync.interrupt_plan(image_sync.runs, image_sync.settings, uuid, jsonb) is
  'Halves the chunks of a cleanup or restore whose last one took too long, or leaves the one record alone that does. Returns how many records the next chunks may have.';

-- Storage that refuses every call would otherwise be asked max_attempts times for every chunk of a large bucket.
create or replace function image_sync.too_many_failures(p_run image_sync.runs, p_settings image_sync.settings)
returns jsonb language plpgsql stable set search_path = '' as $$
begin
  return (
    select jsonb_build_object(
      'code', coalesce(max(last_failed.error ->> 'code'), 'too_many_failures'),
      'title', 'Too many chunks failed in a row',
      'detail', format('The last %s chunks that needed signing all failed. The last error: %s', count(*), image_sync.redact(max(last_failed.error ->> 'detail')))
    )
    from (
      select c.error, c.state
      from image_sync.chunks c
      where c.run_id = p_run.id and c.ledger ? 'to_sign' and (c.state in ('done', 'dead') or c.attempts > 0)
      order by c.closed_at desc nulls first limit 3 * p_settings.max_attempts
    ) as last_failed
    having count(*) >= 3 * p_settings.max_attempts
      and bool_and(last_failed.state <> 'done' and last_failed.error ->> 'code' <> 'lease_expired')
  );
end;
$$;

comment on function image_sync.too_many_failures(image_sync.runs, image_sync.settings) is
  'Why a run should stop before its end: its last 3 x max_attempts chunks to sign all failed at signing; null where it should go on.';

-- Random URLs for the live probe: records at different places of a few random chunks, so that the cost does not grow with the table.
create or replace function image_sync.pick_probe_targets(p_run image_sync.runs, p_settings image_sync.settings)
returns jsonb language plpgsql set search_path = '' as $$
declare
  v_url_base constant text := image_sync.url_base(p_settings);
begin
  return (
    with candidates as (
      -- Records with an object and a URL that works, among all of the range.
      select
        c.from_key,
        c.to_key,
        image_sync.count_of(c.ledger, 'records') as records,
        image_sync.count_of(c.ledger, 'records_signed') - image_sync.count_of(c.ledger, 'records_expired')
          - image_sync.count_of(c.ledger, 'orphaned') + image_sync.count_of(c.ledger, 'orphans_unsigned') + image_sync.count_of(c.ledger, 'orphans_expired') as usable
      from image_sync.chunks c
      where p_run.mode = 'sync' and c.run_id = p_run.id
    ), parts as (
      -- Those of a chunk, cut into as many parts as may be probed: one of each part, and no record is drawn twice.
      select c.from_key, c.to_key, c.usable = c.records as is_whole, c.usable * (part - 1) / parts as first_place, c.usable * part / parts as next_place
      from candidates c
      cross join least(c.usable, p_settings.probe_size) as parts
      cross join generate_series(1, parts) as part
      order by random() limit p_settings.probe_size
    ), spots as materialized (
      -- Not computed beside "order by random()" above: the planner would take the sort's value for it, always next to 0.
      select p.*, p.first_place + floor(random() * (p.next_place - p.first_place)) as place
      from parts p
    ), picked as (
      -- Distinct all the same: what was changed since its chunk was closed may lead two places to one file.
      select distinct p.file_name, p.signed_url
      from spots s
      cross join lateral (
        select w.file_name, w.signed_url
        from (
          select r.file_name, r.signed_url
          from public.part_images r
          where r.bucket_id = p_run.bucket_id
            and r.file_name collate "C" > s.from_key
            and r.file_name collate "C" <= coalesce(s.to_key, image_sync.last_key())
            and r.signed_url_expires_at > now()
          order by r.file_name collate "C"
          -- Where all can be probed, none that is passed over need be asked: passing them over alone costs less.
          offset case when s.is_whole then s.place else 0 end
        ) as w
        where image_sync.is_url_of(w.signed_url, v_url_base, w.file_name)
          and exists (
            select
            from image_sync.objects o
            where o.bucket_id = p_run.bucket_id
              and o.name collate "C" >= w.file_name
              and o.name collate "C" <= w.file_name
            order by o.name collate "C"
            offset 0
          )
        order by w.file_name collate "C"
        offset case when s.is_whole then 0 else s.place end
        limit 1
      ) as p
    )
    select coalesce(jsonb_agg(jsonb_build_object('name', chosen.file_name, 'url', chosen.signed_url)), '[]')
    from picked as chosen
  );
end;
$$;

comment on function image_sync.pick_probe_targets(image_sync.runs, image_sync.settings) is 'As many records of a sync that have an object as probe_size says, or as there are, chosen at random, as [{"name", "url"}]: for the worker''s eyes alone.';

-- answers

-- What answers about buckets share.

create or replace function image_sync.unknown_bucket(p_bucket text, p_attempt text)
returns jsonb language sql stable set search_path = '' as $$
  select image_sync.problem(
    404, 'unknown_bucket', 'The bucket has no settings',
    format('Cannot ' || p_attempt || ': image_sync.settings has no row for it.', p_bucket))
  where not exists (select from image_sync.settings s where s.bucket_id = p_bucket)
$$;

comment on function image_sync.unknown_bucket(text, text) is 'The refusal of a request about a bucket without settings, null where it has some. p_attempt: what was asked, with %s for the bucket.';

create or replace function image_sync.page(p_name text, p_items jsonb, p_key text, p_limit integer)
returns jsonb language sql immutable set search_path = '' as $$
  select jsonb_build_object(p_name, p_items, 'next', case when jsonb_array_length(p_items) = p_limit then p_items #> array['-1', p_key] end)
$$;

comment on function image_sync.page(text, jsonb, text, integer) is 'A page of p_limit items at most: {p_name: items, "next": the p_key of the last one, behind which the next page begins, or null}.';

-- rpc

-- What the function calls, by name, through the Data API. All are security invoker and executable by service_role alone, and all
-- can be repeated after a lost answer: supabase-js never retries a POST, so the worker does.

-- Opens a run in a mode, or finds the one that is open.
-- Returns {"run": document, "created": boolean} or {"problem": {...}}: unknown_bucket (404), conflicting_run (409), and for
-- cleanup and restore the guards.
create or replace function public.image_sync_start(p_run uuid, p_bucket text, p_mode text, p_options jsonb default '{}')
returns jsonb language plpgsql set search_path = '' set lock_timeout = '2s' as $$
declare
  v_run image_sync.runs;
  v_problem jsonb;
  v_plan uuid;
  v_total bigint;
begin
  if p_mode = 'cleanup' and coalesce((p_options ->> 'bucket_is_gone')::boolean, false) and not exists (
    select
    from storage.buckets b
    where b.id = p_bucket
  ) then
    -- Records of a bucket that is gone, and maybe of one that never had settings: their cleanup goes by the defaults.
    insert into image_sync.settings (bucket_id, nightly)
    select p_bucket, false
    where p_bucket !~ '[\u0001-\u001f\u007f-\u009f\u2028\u2029]'
      and exists (
        select
        from public.part_images p
        where p.bucket_id = p_bucket
        order by p.file_name collate "C"
        offset 0
      )
    on conflict do nothing;
  end if;
  if not exists (select from image_sync.settings s where s.bucket_id = p_bucket) then
    return image_sync.problem(
      404, 'unknown_bucket', 'The bucket has no settings',
      format('Cannot %s bucket %s: image_sync.settings has no row for it. Add one with: insert into image_sync.settings (bucket_id) values (%L);', p_mode, p_bucket, p_bucket)
    );
  end if;

  -- Starting is one at a time per bucket, so that what excludes each other cannot begin together.
  perform pg_advisory_xact_lock(hashtextextended('image_sync.start ' || p_bucket, 0));
  select r.*
  into v_run
  from image_sync.runs r
  where r.id = p_run
    or (r.bucket_id = p_bucket and r.mode = p_mode and r.finished_at is null)
  order by (r.id = p_run) desc limit 1;

  -- The same list confirmed twice is one run; another list has to wait.
  if v_run.id is null or (v_run.id <> p_run and v_run.plan_id is distinct from coalesce(p_options ->> 'confirm', p_options ->> 'restore')::uuid) then
    if p_mode in ('cleanup', 'restore') then
      select g.problem, g.plan, g.total
      into v_problem, v_plan, v_total
      from image_sync.check_guards(p_bucket, p_mode, p_options) as g;
      if v_problem is not null then
        return v_problem;
      end if;
    end if;
    v_run := image_sync.open_run(p_run, p_bucket, p_mode, 'request', p_options, v_plan, coalesce(v_total, image_sync.estimate_total(p_bucket)));
  end if;
  -- What a cleanup or a restore changed lies behind an analyze that is open already: it begins anew.
  if p_mode = 'analyze' and p_options ? 'after' and v_run.options -> 'after' is distinct from p_options -> 'after' then
    update image_sync.runs r
    set options = r.options || p_options, cursor = '', exhausted = false, stride = null, twins = null, twins_cursor = null, twin_keys = '{}'
    where r.id = v_run.id and r.finished_at is null;
    if found then
      delete from image_sync.chunks c
      where c.run_id = v_run.id;
    end if;
  end if;
  return jsonb_build_object('run', image_sync.run_document(v_run.id), 'created', v_run.id = p_run);
end;
$$;

comment on function public.image_sync_start(uuid, text, text, jsonb) is
  'Opens a run with the id that the caller made, or returns the run that is open in this mode (created: false). Problems: unknown_bucket, conflicting_run, and the guards of cleanup and restore.';

-- What a worker does next, by the rules of image_sync_advance. The caller holds the run's row lock.
create or replace function image_sync.next_work(p_run image_sync.runs, p_settings image_sync.settings, p_worker uuid, p_lease uuid)
returns jsonb language plpgsql set search_path = '' as $$
declare
  v_chunk image_sync.chunks;
  -- Until a verify may open more URLs.
  v_wait_ms constant integer := case when p_run.mode = 'verify' and p_run.paced_until > clock_timestamp() then ceil(1000 * extract(epoch from p_run.paced_until - clock_timestamp())) end;
begin
  -- This very call made before, its answer lost.
  select c.*
  into v_chunk
  from image_sync.chunks c
  where c.run_id is not distinct from p_run.id and c.lease_token = p_lease;
  if v_chunk.run_id is null then
    if v_wait_ms is not null then
      return jsonb_build_object('next', 'wait', 'wait_ms', v_wait_ms);
    end if;
    v_chunk := image_sync.claim_chunk(p_run);
    if v_chunk.run_id is not null then
      v_chunk := image_sync.lease_chunk(v_chunk, p_settings, p_worker, p_lease);
    elsif not p_run.exhausted then
      v_chunk := image_sync.walk(p_run, p_settings, p_worker, p_lease);
    end if;
    if v_chunk.run_id is null then
      return image_sync.last_work(p_run, p_settings);
    end if;
  elsif v_chunk.state <> 'leased' then
    return jsonb_build_object('next', 'again');
  end if;
  return image_sync.work_document(p_run, p_settings, v_chunk);
end;
$$;

comment on function image_sync.next_work(image_sync.runs, image_sync.settings, uuid, uuid) is
  'What image_sync_advance answers of the next chunk: sign, open, again, busy, wait, probe or stop. The caller holds the run''s row lock.';

-- How many lanes more are of use behind a chunk. All lanes of all runs are ten, and one for each worker: the Data API has ten sessions
-- (PostgREST's db-pool, by default), which the project's own requests want too, and beyond that lanes only wait for each other.
-- Buckets that begin together are counted by their runs: what they have leased nobody sees yet. A run that stands still takes none.
create or replace function image_sync.more_lanes(p_run uuid, p_chunk image_sync.chunks)
returns integer language plpgsql stable set search_path = '' as $$
begin
  return (
    select case when r.exhausted then 0 else greatest(least(
      greatest(ceil(1.0 * r.total_estimate / greatest(image_sync.count_of(p_chunk.ledger, 'listed'), 1)) - p_chunk.number, 1),
      10 - (
        select count(*)
        from image_sync.chunks c
        where c.state in ('pending', 'leased') and c.lease_expires_at > clock_timestamp()
      ),
      10 - (
        select count(*)
        from image_sync.runs o
        where o.finished_at is null and o.moved_at > clock_timestamp() - interval '1 minute'
      )
    ), 0) end
    from image_sync.runs r
    where r.id = p_run
  );
end;
$$;

comment on function image_sync.more_lanes(uuid, image_sync.chunks) is
  'How many lanes more a worker may start behind its chunk: about as many as chunks are left, and no more than ten of all runs together.';

-- A leased chunk as its worker gets it. One that was given up has nothing left to sign or to open, and is closed.
create or replace function image_sync.work_document(p_run image_sync.runs, p_settings image_sync.settings, p_chunk image_sync.chunks)
returns jsonb language plpgsql set search_path = '' as $$
declare
  v_names constant text[] := case when p_chunk.attempts < p_settings.max_attempts then p_chunk.to_do else '{}' end;
  v_chunk constant jsonb := jsonb_build_object(
    'number', p_chunk.number,
    'lease_ms', floor(1000 * extract(epoch from p_chunk.lease_expires_at - clock_timestamp())),
    'public_url', p_settings.public_url
  );
begin
  return case
    when p_run.mode = 'verify' then jsonb_build_object('next', 'open', 'chunk', v_chunk || jsonb_build_object(
      'targets', image_sync.lease_targets(p_run, p_settings, v_names),
      'rate', p_settings.verify_rate
    ))
    else jsonb_build_object('next', 'sign', 'chunk', v_chunk || jsonb_build_object(
      'names', v_names,
      'expires_in', extract(epoch from p_settings.signed_url_ttl)::integer,
      'more_lanes', image_sync.more_lanes(p_run.id, p_chunk)
    ))
  end;
end;
$$;

comment on function image_sync.work_document(image_sync.runs, image_sync.settings, image_sync.chunks) is 'The answer sign or open of image_sync_advance for a leased chunk.';

-- What is left where no chunk is to be had: to walk on, to wait for others, to count and to probe, or nothing.
create or replace function image_sync.last_work(p_run image_sync.runs, p_settings image_sync.settings)
returns jsonb language plpgsql set search_path = '' as $$
declare
  v_wait_ms integer;
  v_targets jsonb;
begin
  if not exists (select from image_sync.runs r where r.id = p_run.id and r.exhausted) then
    return jsonb_build_object('next', 'again');
  end if;

  -- What is due and was not to be had is held: by its late worker, which is about to close it, or by somebody who stays.
  select ceil(1000 * extract(epoch from min(case
    when coalesce(c.lease_expires_at, c.not_before) > clock_timestamp() then coalesce(c.lease_expires_at, c.not_before)
    else clock_timestamp() + interval '1 second'
  end) - clock_timestamp()))
  into v_wait_ms
  from image_sync.chunks c
  where c.run_id = p_run.id and c.state in ('pending', 'leased');
  if v_wait_ms is not null then
    return jsonb_build_object('next', 'wait', 'wait_ms', greatest(v_wait_ms, 50));
  end if;

  if p_run.mode = 'sync' and image_sync.settle_moves(p_run, p_settings) then
    return jsonb_build_object('next', 'again');
  end if;
  if p_run.mode in ('sync', 'analyze', 'verify') and not image_sync.count_twins(p_run) then
    return jsonb_build_object('next', 'again');
  end if;
  v_targets := image_sync.pick_probe_targets(p_run, p_settings);
  if jsonb_array_length(v_targets) > 0 then
    return jsonb_build_object('next', 'probe', 'targets', v_targets, 'public_url', p_settings.public_url);
  end if;
  return jsonb_build_object('next', case when image_sync.finish_run(p_run.id, null, null, null, null) then 'stop' else 'busy' end);
end;
$$;

comment on function image_sync.last_work(image_sync.runs, image_sync.settings) is
  'What image_sync_advance answers where no chunk can be leased: again, busy, wait, probe, or stop once it has finished the run. The caller holds the run''s row lock.';

-- The one call of a worker at work: closes the chunk just finished, if any, and leases the next. Two requests per chunk that
-- needs signing (this one and the signing), none per chunk that does not: one call walks over many of those.
--   p_lease    the token of the next chunk, made by the worker: repeating the call returns the same chunk; null: close only
--   p_closing  the token of the chunk just finished, p_number its number; p_names, p_paths, p_tokens and p_expires (seconds since 1970) are parallel,
--              p_failures is [{"name", "error"}], p_error says why the whole chunk failed
--              ("is_final": no other attempt would fare better)
--   p_around   what all URLs share, said once: a URL is p_around[1], its path (null: the name itself), p_around[2], its token
-- Returns {"closed": closed | more | already_closed | stale | null, "next": ..., ...} with next one of
--   more    what is closed is not all written yet: make the same call again
--   sign    {"chunk": {"number", "names", "expires_in" (s), "lease_ms", "public_url", "more_lanes"}}
--   again   the bounds of this call were reached, nothing is left to sign up to here: call again
--   busy    other workers are at the run's row, or close what the end of the run has to count: call again in a moment
--   wait    {"wait_ms"}: others hold what is left, or it waits for its next attempt
--   open    {"chunk": {"number", "targets": [{"name", "url"}], "lease_ms", "rate" (URLs a second), "public_url"}}: in a verify
--   probe   {"targets": [{"name", "url"}], "public_url"}: all is done; fetch these URLs and call image_sync_finish
--   stop    the run is finished
create or replace function public.image_sync_advance(
  p_run uuid,
  p_worker uuid,
  p_lease uuid default null,
  p_closing uuid default null,
  p_names text[] default '{}',
  p_around text[] default '{"",""}',
  p_paths text[] default '{}',
  p_tokens text[] default '{}',
  p_expires bigint[] default '{}',
  p_failures jsonb default '[]',
  p_error jsonb default null,
  p_storage_calls integer default 0,
  p_retries integer default 0,
  p_number integer default null
)
returns jsonb
language plpgsql
set search_path = ''
-- A range of keys is read by its index and in its order, whatever the statistics say. A plan that was made while a table was nearly
-- empty stays in its session's cache while a first night fills the table: it would read all of the table for every chunk. And as
-- the arguments decide nothing, a session plans each statement once instead of six times.
set enable_seqscan = 'off'
set enable_bitmapscan = 'off'
set enable_sort = 'off'
set enable_hashjoin = 'off'
set plan_cache_mode = 'force_generic_plan'
-- Whatever somebody else holds: no call waits for it long.
set lock_timeout = '400ms'
as $$
declare
  v_since constant timestamptz := clock_timestamp();
  v_run image_sync.runs;
  v_settings image_sync.settings;
  v_urls text[];
  v_closed text;
  v_error jsonb;
  -- Taken before the run is looked at: one that is open then stays so until this chunk is closed.
  v_may_close constant boolean := p_closing is null or pg_try_advisory_xact_lock_shared(image_sync.closing_key(p_run));
begin
  select r.*
  into v_run
  from image_sync.runs r
  where r.id = p_run;
  if v_run.id is null then
    raise exception 'Cannot advance run %: there is no such run', p_run
      using errcode = 'no_data_found', hint = 'Start one with image_sync_start.';
  end if;
  -- A worker that was under way when the migrations came does not know what it is answered: its run waits for the next function.
  if not image_sync.function_fits() then
    return jsonb_build_object('closed', null, 'next', 'stop');
  end if;
  select s.*
  into v_settings
  from image_sync.settings s
  where s.bucket_id = v_run.bucket_id;

  -- Closing touches this worker's chunk alone and comes before the run's lock: the expensive part runs side by side.
  if not v_may_close then
    return jsonb_build_object('closed', 'more', 'next', 'more');
  elsif p_closing is not null and v_settings.bucket_id is not null then
    v_urls := array(
      select p_around[1] || coalesce(s.path, s.name) || p_around[2] || s.token
      from unnest(p_names, p_paths, p_tokens) as s (name, path, token)
    );
    v_closed := image_sync.close_lease(
      v_run, v_settings, p_number, p_closing, p_names, v_urls, p_expires, p_failures,
      case when p_error is not null then image_sync.clean_fault(p_error) || jsonb_build_object('is_final', p_error -> 'is_final') end, p_storage_calls, p_retries
    );
    if v_closed = 'more' then
      return jsonb_build_object('closed', v_closed, 'next', 'more');
    end if;
  end if;

  -- A close that took long has the statement's time to itself: what would be listed now could undo it.
  if p_lease is null or clock_timestamp() > v_since + interval '1 second' then
    perform image_sync.note_progress(p_run, v_settings, clock_timestamp() - v_since) where v_closed = 'closed';
    return jsonb_build_object('closed', v_closed, 'next', 'again');
  end if;

  v_run := image_sync.lock_run(p_run);
  if v_run.id is null then
    return jsonb_build_object('closed', v_closed, 'next', 'busy');
  end if;
  if v_run.finished_at is not null then
    return jsonb_build_object('closed', v_closed, 'next', 'stop');
  end if;
  -- Making the next chunk notes it too.
  if v_closed = 'closed' and (v_run.exhausted or v_run.chunk_size is not null) then
    perform image_sync.note_progress(p_run, v_settings, clock_timestamp() - v_since);
    select r.*
    into v_run
    from image_sync.runs r
    where r.id = p_run;
  end if;

  v_error := case
    when v_settings.bucket_id is null then jsonb_build_object(
      'code', 'settings_missing', 'title', 'The bucket''s settings were removed', 'detail', format('image_sync.settings has no row for bucket %s any more.', v_run.bucket_id)
    )
    else coalesce(image_sync.bucket_problem(v_run), image_sync.too_many_failures(v_run, v_settings))
  end;
  if v_error is not null then
    return jsonb_build_object(
      'closed', v_closed,
      'next', case when image_sync.finish_run(p_run, 'failed', v_error ->> 'code', v_error, null) then 'stop' else 'busy' end
    );
  end if;

  return jsonb_build_object('closed', v_closed) || image_sync.next_work(v_run, v_settings, p_worker, p_lease);
end;
$$;

comment on function public.image_sync_advance(uuid, uuid, uuid, uuid, text[], text[], text[], text[], bigint[], jsonb, jsonb, integer, integer, integer) is
  'Closes the chunk that a worker finished and leases its next one, in one transaction; answers more, sign, open, again, busy, wait, probe or stop. Can be repeated with the same tokens. A late close with a token that is no longer the chunk''s changes nothing and answers closed: stale.';

-- A run moves when a chunk is made or closed, not when somebody looks at it. Closing does not wait for the run's row: whoever holds
-- it is moving the run.
create or replace function image_sync.note_progress(p_run uuid, p_settings image_sync.settings, p_took interval)
returns void language sql set search_path = '' as $$
  with free as materialized (
    select r.id
    from image_sync.runs r
    where r.id = p_run and r.finished_at is null
    for no key update skip locked
  )
  update image_sync.runs r
  set
    moved_at = clock_timestamp(),
    -- Where the database was too slow once, it is asked for more again.
    chunk_size = nullif(least(r.chunk_size * case when p_took < interval '1 second' then 4 else 1 end, p_settings.chunk_size), p_settings.chunk_size)
  from free
  where r.id = free.id
$$;

comment on function image_sync.note_progress(uuid, image_sync.settings, interval) is 'Notes that a chunk was closed in this time: the run has moved, and its writes may grow again.';

-- Counts an attempt that the database ended. What went wrong in a transaction that rolled back is written down in this one.
--   p_lease    the call that wanted a chunk under this token failed; or
--   p_closing  the call that wanted to close the chunk of this token failed
--   p_error    {"code", "title", "detail"}; after database_timeout less is tried at once, any other code lets it wait
-- Returns {"ended": whether the token was that of a chunk, or the run's next one, that was waiting for it, "more": whether the same close
-- is to be made again at once}.
create or replace function public.image_sync_end_attempt(
  p_run uuid,
  p_worker uuid,
  p_lease uuid default null,
  p_closing uuid default null,
  p_error jsonb default '{}',
  p_storage_calls integer default 0,
  p_retries integer default 0
)
returns jsonb language plpgsql set search_path = '' set lock_timeout = '2s' as $$
declare
  v_run image_sync.runs;
  v_settings image_sync.settings;
  v_chunk image_sync.chunks;
  v_error jsonb;
  v_ended text;
  v_size integer;
begin
  select r.*
  into v_run
  from image_sync.runs r
  where r.id = p_run
  for update;
  select s.*
  into v_settings
  from image_sync.settings s
  where s.bucket_id = v_run.bucket_id;
  if v_run.id is null or v_run.finished_at is not null or v_settings.bucket_id is null then
    return jsonb_build_object('ended', false, 'more', false);
  end if;

  v_error := image_sync.clean_fault(p_error);
  select c.*
  into v_chunk
  from image_sync.chunks c
  where c.run_id is not distinct from p_run and c.lease_token = coalesce(p_closing, p_lease) and c.state = 'leased'
  for update skip locked;
  if v_chunk.run_id is not null then
    v_ended := image_sync.interrupt_chunk(v_run, v_settings, v_chunk, v_error);
    -- A close that is made again brings them along.
    update image_sync.chunks c
    set ledger = image_sync.add_counts(c.ledger, jsonb_build_object('storage_calls', p_storage_calls, 'retries', p_retries))
    where c.run_id = p_run and c.number = v_chunk.number and v_ended = 'waits';
  elsif p_lease is not null and v_error ->> 'code' = 'database_timeout' and (v_run.plan_id is null or not v_run.exhausted) then
    v_ended := 'next';
    if v_run.plan_id is not null then
      v_size := image_sync.interrupt_plan(v_run, v_settings, p_worker, v_error);
      v_error := v_error || jsonb_build_object('cursor', v_run.cursor);
    elsif v_run.exhausted and v_run.chunk_size = 1 then
      perform image_sync.settle_moves(v_run, v_settings, v_error);
    end if;
    update image_sync.runs r
    set
      stride = case when v_run.exhausted then r.stride else greatest(coalesce(r.stride, v_settings.chunk_size) / 10, 1) end,
      chunk_size = case
        when v_size >= v_settings.chunk_size then null
        when v_size is not null then least(v_size, r.chunk_size)
        when v_run.exhausted then greatest(coalesce(r.chunk_size, v_settings.chunk_size) / 10, 1)
        else r.chunk_size
      end
    where r.id = p_run;
  end if;

  update image_sync.runs r
  set error = v_error
  where r.id = p_run;
  return jsonb_build_object('ended', v_ended is not null, 'more', coalesce(v_ended = 'more', false));
end;
$$;

comment on function public.image_sync_end_attempt(uuid, uuid, uuid, uuid, jsonb, integer, integer) is
  'Counts an attempt that the database ended by a lock or its statement timeout, in a transaction of its own, and keeps the error in the run: after a timeout less is tried at once, otherwise the chunk waits. Returns {"ended", "more"}: ended false where the token holds nothing any more.';

-- Finishes a run whose chunks are all closed with what probing gave, or fails it with p_error.
-- p_probe is {"checked", "ok", "failures": [{"name", "code", "status", "content_type", "error"}]}.
create or replace function public.image_sync_finish(p_run uuid, p_probe jsonb default null, p_error jsonb default null)
returns jsonb language plpgsql set search_path = '' set lock_timeout = '2s' as $$
declare
  v_run image_sync.runs;
begin
  perform image_sync.await_closes(p_run);
  select r.*
  into v_run
  from image_sync.runs r
  where r.id = p_run
  for update;
  if v_run.finished_at is null and p_error is not null then
    perform image_sync.finish_run(p_run, 'failed', p_error ->> 'code', image_sync.clean_fault(p_error), null);
  elsif v_run.finished_at is null and v_run.exhausted and not exists (
    select
    from image_sync.chunks c
    where c.run_id = p_run and c.state in ('pending', 'leased')
  ) then
    perform image_sync.finish_run(p_run, null, null, null, image_sync.tell_lost(v_run.bucket_id, p_probe));
  end if;
  return jsonb_build_object('run', image_sync.run_document(p_run));
end;
$$;

comment on function public.image_sync_finish(uuid, jsonb, jsonb) is
  'Closes a run whose chunks are all closed, with the result of the live probe; with p_error closes it as failed. Changes nothing in a run that is finished or has chunks left.';

-- A worker ends before the run does: releases the leases it holds and queues the next call of the function, in one transaction.
create or replace function public.image_sync_hand_off(p_run uuid, p_worker uuid, p_leases uuid[])
returns jsonb language plpgsql set search_path = '' set lock_timeout = '2s' as $$
declare
  v_run image_sync.runs;
  v_problem jsonb;
begin
  select r.*
  into v_run
  from image_sync.runs r
  where r.id = p_run
  for update;
  if v_run.id is null then
    return jsonb_build_object('kicked', false);
  end if;
  perform image_sync.release_chunks(p_run, p_leases);
  if v_run.finished_at is not null or v_run.handed_off_by = p_worker then
    return jsonb_build_object('kicked', false);
  end if;
  update image_sync.runs r
  set handed_off_by = p_worker
  where r.id = p_run;
  v_problem := image_sync.kick(p_run);
  return jsonb_build_object('kicked', v_problem is null);
end;
$$;

comment on function public.image_sync_hand_off(uuid, uuid, uuid[]) is
  'Releases the worker''s leases and queues a call of the function that goes on with the run; repeated by the same worker it queues nothing again. kicked: false where nothing was queued; why stands in the run''s error.';

-- Cancels an open run. What its workers still close afterwards is stale.
create or replace function public.image_sync_cancel(p_run uuid)
returns jsonb language plpgsql set search_path = '' set lock_timeout = '2s' as $$
declare
  v_run image_sync.runs;
begin
  perform image_sync.await_closes(p_run);
  select r.*
  into v_run
  from image_sync.runs r
  where r.id = p_run
  for update;
  if v_run.id is null then
    return image_sync.unknown_run(p_run);
  end if;
  if v_run.finished_at is null then
    perform image_sync.finish_run(p_run, 'cancelled', 'cancelled', null, null);
  elsif v_run.outcome <> 'cancelled' then
    return image_sync.problem(409, 'run_finished', 'The run is finished', format('Cannot cancel run %s: it ended as %s at %s.', p_run, v_run.outcome, v_run.finished_at));
  end if;
  return jsonb_build_object('run', image_sync.run_document(p_run));
end;
$$;

comment on function public.image_sync_cancel(uuid) is 'Cancels an open run. Problems: unknown_run (404), run_finished (409).';

-- One run, open or finished.
create or replace function public.image_sync_run(p_run uuid)
returns jsonb language sql stable set search_path = '' set lock_timeout = '1s' as $$
  select coalesce(
    (
      select jsonb_build_object('run', d.document)
      from (select image_sync.run_document(p_run) as document) as d
      where d.document is not null
    ),
    image_sync.unknown_run(p_run)
  )
$$;

comment on function public.image_sync_run(uuid) is 'One run with its progress or final report. Problem: unknown_run (404).';

-- schedule

-- The night: who calls the function, what happens when a call is lost, and what is thrown away afterwards.
-- A cron job that "succeeded" only queued a request, and pg_net neither retries nor guarantees delivery: the run's own row is
-- the truth, and the watchdog calls again for a run that does not move.

-- Queues one call of the function for an open run. Security definer, because service_role does not see pg_net on every project: it
-- takes an id that only selects among open runs and returns what was wrong.
-- The call carries no key. Every database role may read pg_net's queue, so what is sent is a token that is good for waking this
-- one run, once, while it is open; the run's row keeps its hash.
create or replace function image_sync.kick(p_run uuid)
returns jsonb language plpgsql security definer set search_path = '' set lock_timeout = '1s' as $$
declare
  v_url constant text := (select p.url from image_sync.project p);
  -- 256 bits out of three times 122 random ones.
  v_token constant bytea := sha256(convert_to(concat(gen_random_uuid(), gen_random_uuid(), gen_random_uuid()), 'UTF8'));
  v_kick_id bigint;
  v_problem jsonb;
begin
  if v_url is null then
    v_problem := jsonb_build_object(
      'code', 'function_unknown',
      'title', 'The function has not said where it lives',
      'detail', 'Cannot call the function: it announces its address with its first request. Deploy it and call it once: npx image-sync status'
    );
  else
    begin
      v_kick_id := net.http_post(
        url := v_url || '/functions/v1/image-sync',
        body := jsonb_build_object('run', p_run, 'token', encode(v_token, 'hex')),
        -- pg_net takes this one content type, to the letter.
        headers := '{"Content-Type": "application/json"}'::jsonb,
        timeout_milliseconds := 5000
      );
    exception
      when undefined_function or undefined_table or invalid_schema_name or insufficient_privilege or raise_exception then
        v_problem := jsonb_build_object(
          'code', 'call_not_queued',
          'title', 'The call of the function could not be queued',
          'detail', format('net.http_post failed: %s Enable the extension pg_net.', image_sync.redact(sqlerrm) || '.')
        );
    end;
  end if;
  update image_sync.runs r
  set
    kicked_at = case when v_problem is null then clock_timestamp() else r.kicked_at end,
    kick_id = coalesce(v_kick_id, r.kick_id),
    -- A call that comes after the next one is as good. A token that was used leaves a null: its call has arrived.
    wake_hashes = case when v_problem is null then array[sha256(v_token)] || r.wake_hashes[1:1] else r.wake_hashes end,
    error = case when v_problem is not null or image_sync.is_kick_problem(r.error) then v_problem else r.error end
  where r.id = p_run and r.finished_at is null;
  return v_problem;
end;
$$;

comment on function image_sync.kick(uuid) is 'Queues a call of the function (net.http_post, to the address that it announced) that goes on with an open run; the call carries a token that is good for that alone. Returns null, or why it could not.';

-- Who brings the token of a queued call may wake its run. Used up with that; one look-up by the run's id, whatever the token.
create or replace function public.image_sync_wake(p_run uuid, p_token text)
returns jsonb language plpgsql set search_path = '' set lock_timeout = '2s' as $$
declare
  v_hash constant bytea := case when p_token ~ '^[0-9a-f]{64}$' then sha256(decode(p_token, 'hex')) end;
begin
  update image_sync.runs r
  set wake_hashes = array_replace(r.wake_hashes, v_hash, null)
  where r.id = p_run and r.finished_at is null and v_hash = any (r.wake_hashes);
  if not found then
    return image_sync.problem(401, 'unauthorized', 'No valid token', 'The token is none of a call that was queued for this run and not used yet.');
  end if;
  return jsonb_build_object('run', image_sync.run_document(p_run));
end;
$$;

comment on function public.image_sync_wake(uuid, text) is 'The open run that a queued call''s token (64 hexadecimal digits) is for; the token is used up. Problem: unauthorized (401) for any other token, and for every token of a run that is finished.';

-- One bucket's night: its sync is opened, or the open one found, and the function called. A night that could not begin is in the
-- status table like any other.
create or replace function image_sync.start_night(p_bucket_id text)
returns void language plpgsql set search_path = '' as $$
declare
  v_run image_sync.runs;
  v_problem jsonb;
  v_code text;
begin
  v_run := image_sync.open_run(gen_random_uuid(), p_bucket_id, 'sync', 'schedule', '{}', null, image_sync.estimate_total(p_bucket_id));
  if v_run.moved_at < now() - interval '6 hours' then
    raise exception 'Run % stands still since % and could not be closed', v_run.id, v_run.moved_at
      using errcode = 'lock_not_available', hint = 'Somebody holds its row: look for a session that stays idle in a transaction.';
  end if;
  v_problem := image_sync.kick(v_run.id);
  if v_problem is not null then
    -- Not where somebody is at it all the same.
    perform image_sync.finish_run(v_run.id, 'failed', v_problem ->> 'code', v_problem, null);
  end if;
exception
  when others then
    v_code := case when image_sync.is_held(sqlstate) then 'row_locked' else 'night_failed' end;
    insert into image_sync.runs (bucket_id, mode, trigger, finished_at, outcome, stop_reason, error, summary)
    values (p_bucket_id, 'sync', 'schedule', clock_timestamp(), 'failed', v_code, jsonb_build_object(
      'code', v_code,
      'title', 'The night could not begin',
      'detail', format('Cannot open and call the nightly sync of bucket %s: %s (%s)', p_bucket_id, image_sync.redact(sqlerrm), sqlstate)
    ), image_sync.summarize(null));
end;
$$;

comment on function image_sync.start_night(text) is 'Opens the nightly sync of a bucket, or finds the open one, and queues the call of the function. What keeps it from that is a failed run, with the database''s words.';

-- The nightly job. A run that has not moved for six hours is closed first: one bad night never costs the next. Each run and each
-- bucket stands alone: what goes wrong with one costs no other anything.
create or replace function image_sync.run_nightly()
returns void language plpgsql set search_path = '' set lock_timeout = '2s' as $$
declare
  v_id uuid;
  v_run image_sync.runs;
begin
  begin
    perform image_sync.refresh_objects_view();
  exception
    when others then
      raise warning 'Cannot make the view image_sync.objects anew: % (%)', image_sync.redact(sqlerrm), sqlstate;
  end;
  for v_id in select r.id from image_sync.runs r where r.finished_at is null and r.moved_at < now() - interval '6 hours' loop
    begin
      select r.* into v_run from image_sync.runs r where r.id = v_id and r.finished_at is null for update;
      if found then
        perform image_sync.finish_run(v_id, 'failed', 'stalled', jsonb_build_object(
          'code', 'stalled',
          'title', 'The run stood still',
          'detail', format('Nothing moved since %s. %s', v_run.moved_at, image_sync.standstill_reason(v_run))
        ), null);
      end if;
    exception
      when others then
        -- Its bucket's night says so, and the next night tries again.
        raise warning 'Cannot close run %: % (%)', v_id, image_sync.redact(sqlerrm), sqlstate;
    end;
  end loop;
  perform image_sync.start_night(s.bucket_id) from image_sync.settings s where s.nightly order by s.bucket_id;
end;
$$;

comment on function image_sync.run_nightly() is 'Closes stalled runs, opens a sync for every bucket with nightly settings (or finds the open one) and queues the call of the function. A bucket that this cannot be done for has a failed run that says why.';

-- Whether nobody is at an open run although it has something to do: a worker is as long as a lease is alive, and there is nothing to
-- call for while all that is left waits for its next attempt.
create or replace function image_sync.is_idle(p_run image_sync.runs)
returns boolean language sql stable set search_path = '' as $$
  select not exists (
    select from image_sync.chunks c where c.run_id = p_run.id and c.state = 'leased' and c.lease_expires_at > now()
  ) and (
    not p_run.exhausted
    or not exists (select from image_sync.chunks c where c.run_id = p_run.id and c.state = 'pending' and c.not_before > now())
    or exists (
      select
      from image_sync.chunks c
      where c.run_id = p_run.id
        and c.state in ('pending', 'leased')
        and coalesce(c.lease_expires_at, c.not_before, '-infinity') <= now()
    )
  )
$$;

comment on function image_sync.is_idle(image_sync.runs) is 'Whether an open run holds no live lease and has something to do.';

-- The watchdog, every minute: while nothing is open it looks into an empty partial index and does no more.
-- It waits for no row, so that it can stand in nobody's way: a run that somebody works on at this moment needs no call. A run that
-- cannot be called costs no other one its call.
create or replace function image_sync.watchdog()
returns void language plpgsql set search_path = '' set lock_timeout = '2s' as $$
declare
  v_still uuid;
begin
  for v_still in
    select r.id
    from image_sync.runs r
    where r.finished_at is null
      and greatest(r.moved_at, r.kicked_at) < now() - interval '30 seconds'
      and image_sync.is_idle(r)
    for update skip locked
  loop
    begin
      perform image_sync.kick(v_still);
    exception
      when others then
        raise warning 'Cannot call the function for run %: % (%)', v_still, image_sync.redact(sqlerrm), sqlstate;
    end;
  end loop;
end;
$$;

comment on function image_sync.watchdog() is 'Queues a call of the function for every open run that has not moved for 30 s, holds no live lease and has something to do.';

-- History that nobody reads again, each bucket by itself: what cannot be pruned costs no other anything. The last run of each mode
-- stays, and so do a plan that another run refers to and a cleanup whose records can still be restored.
create or replace function image_sync.prune_history()
returns void language plpgsql set search_path = '' as $$
declare
  v_old record;
begin
  for v_old in
    select b.bucket_id, coalesce(s.keep_chunks, '14 days') as keep_chunks, coalesce(s.keep_runs, '90 days') as keep_runs
    from (select r.bucket_id from image_sync.runs r union select m.bucket_id from image_sync.moves m) as b
    left join image_sync.settings s on s.bucket_id = b.bucket_id
  loop
    begin
      delete from image_sync.chunks c
      using image_sync.runs r
      where r.id = c.run_id and r.bucket_id = v_old.bucket_id and r.finished_at < now() - v_old.keep_chunks;
      delete from image_sync.moves m where m.bucket_id = v_old.bucket_id and m.moved_at < now() - v_old.keep_runs;
      delete from image_sync.runs r
      where r.bucket_id = v_old.bucket_id
        and r.finished_at < now() - v_old.keep_runs
        and exists (select from image_sync.runs n where n.bucket_id = r.bucket_id and n.mode = r.mode and n.started_at > r.started_at)
        and not exists (select from image_sync.runs follower where follower.plan_id = r.id)
        and not exists (select from image_sync.archive a where a.run_id = r.id and a.restored_at is null);
    exception
      when others then
        raise warning 'Cannot prune the history of bucket %: % (%)', v_old.bucket_id, image_sync.redact(sqlerrm), sqlstate;
    end;
  end loop;
  -- pg_cron keeps a row per job run for ever; ours write 1,440 a day.
  delete from cron.job_run_details d
  using image_sync.scheduled_jobs() j
  where j.jobid = d.jobid and d.end_time < now() - interval '7 days';
  perform image_sync.refresh_objects_view();
end;
$$;

comment on function image_sync.prune_history() is 'Deletes chunks, runs and moves of every bucket past its keep_ settings, or their defaults where it has none, and week-old entries of our own jobs in cron.job_run_details.';

-- measurements

-- What grows with the bucket is measured by the runs, in their chunks; reading the report adds up nothing but a handful of rows,
-- whatever the size of the bucket.

-- Files of a run by extension: the 20 most frequent, the rest together.
create or replace function image_sync.measured_extensions(p_run uuid)
returns jsonb language plpgsql stable set search_path = '' set enable_seqscan = 'off' as $$
begin
  return (
    with extensions as (
      select
        coalesce(nullif(e.extension, ''), '(none)') as extension,
        sum(e.files::bigint) as files,
        row_number() over (order by sum(e.files::bigint) desc, e.extension) as place
      from image_sync.chunks c
      cross join lateral jsonb_each_text(c.facts -> 'by_extension') as e (extension, files)
      where c.run_id = p_run
      group by e.extension
    )
    select coalesce(jsonb_object_agg(shown.extension, shown.files), '{}')
    from (
      select case when x.place <= 20 then x.extension else 'other' end as extension, sum(x.files) as files
      from extensions x
      group by 1
    ) as shown
  );
end;
$$;

comment on function image_sync.measured_extensions(uuid) is 'How many files a run listed, by extension; those beyond the 20 most frequent as "other".';

-- What findings are made of: {"count", "samples"} by the name of what was counted.
create or replace function image_sync.measured_counts(p_run image_sync.runs, p_ledger jsonb)
returns jsonb language plpgsql stable set search_path = '' set enable_seqscan = 'off' as $$
begin
  return (
    with refused as (
      select
        coalesce(sum(jsonb_array_length(jsonb_path_query_array(c.problems, '$[*] ? (@.code == "url_refused")'))) filter (where c.problems <> '[]'), 0) as url_refused,
        coalesce(sum(jsonb_array_length(jsonb_path_query_array(c.problems, '$[*] ? (@.code == "unsignable_name")'))) filter (where c.problems <> '[]'), 0) as unsignable
      from image_sync.chunks c
      where c.run_id = p_run.id
    )
    select jsonb_object_agg(n.name, jsonb_build_object('count', n.count, 'samples', case
      when n.name = 'several_files' then jsonb_path_query_array(image_sync.twin_samples(p_run.bucket_id, p_run.twin_keys) || image_sync.samples(p_run.id, n.name), '$[0 to 19]')
      when n.code is null then image_sync.samples(p_run.id, n.name)
      else image_sync.problem_samples(p_run.id, n.code)
    end))
    from refused
    cross join lateral (values
      ('other_extensions', image_sync.count_of(p_ledger, 'not_images') - image_sync.count_of(p_ledger, 'excluded') - image_sync.count_of(p_ledger, 'empty_files'), null),
      ('excluded', image_sync.count_of(p_ledger, 'excluded'), null),
      ('empty_files', image_sync.count_of(p_ledger, 'empty_files'), null),
      ('several_files', image_sync.count_of(p_ledger, 'several_files') + coalesce(p_run.twins, 0), null),
      ('failed', greatest(image_sync.count_of(p_ledger, 'failed') - image_sync.count_of(p_ledger, 'too_slow') - refused.url_refused, 0), 'signing_failed'),
      ('unsignable', refused.unsignable, 'unsignable_name'),
      ('unmoved', image_sync.count_of(p_ledger, 'unmoved'), 'not_moved'),
      ('held', image_sync.count_of(p_ledger, 'held'), 'row_locked'),
      ('too_slow', image_sync.count_of(p_ledger, 'too_slow'), 'database_timeout'),
      ('url_refused', refused.url_refused, 'url_refused')
    ) as n (name, count, code)
  );
end;
$$;

comment on function image_sync.measured_counts(image_sync.runs, jsonb) is 'What a finished run counted beside the difference, each with up to 20 samples, for findings.';

-- What a finished sync or analyze measured, merged from its chunks: stored in runs.report.
create or replace function image_sync.measure(p_run image_sync.runs, p_probe jsonb)
returns jsonb
language plpgsql
stable
set search_path = ''
-- The chunks of one run, by their key, whatever the statistics said when this session planned it.
set enable_seqscan = 'off'
as $$
declare
  l constant jsonb := image_sync.run_ledger(p_run.id);
  v_images constant bigint := image_sync.count_of(l, 'images') - image_sync.count_of(l, 'vanished');
  v_moved constant bigint := image_sync.count_of(l, 'moved');
  v_is_sync constant boolean := p_run.mode = 'sync';
  v_recorded constant bigint := image_sync.count_of(l, 'recorded') + image_sync.count_of(l, 'inserted') + case when v_is_sync then v_moved else 0 end;
  v_records constant bigint := image_sync.count_of(l, 'records');
  v_signed constant bigint := image_sync.count_of(l, 'records_signed');
  v_expired constant bigint := image_sync.count_of(l, 'records_expired');
begin
  return image_sync.measured_counts(p_run, l) || jsonb_build_object(
    'measured_at', clock_timestamp(),
    'bucket', jsonb_build_object(
      'objects', image_sync.count_of(l, 'listed'), 'images', image_sync.count_of(l, 'images'), 'bytes', image_sync.count_of(l, 'bytes'),
      'by_extension', image_sync.measured_extensions(p_run.id)
    ),
    'records', jsonb_build_object(
      'total', v_records, 'signed', v_signed - v_expired, 'unsigned', v_records - v_signed, 'expired', v_expired,
      'soonest_expiry', (select min((c.facts ->> 'soonest_expiry')::timestamptz) from image_sync.chunks c where c.run_id = p_run.id)
    ),
    -- URLs by the day on which they die.
    'expiry', (
      select coalesce(jsonb_object_agg(d.day, d.urls), '{}')
      from (
        select e.day, sum(e.urls::bigint) as urls
        from image_sync.chunks c
        cross join lateral jsonb_each_text(c.facts -> 'expiry') as e (day, urls)
        where c.run_id = p_run.id
        group by e.day
      ) as d
    ),
    'difference', (
      select jsonb_object_agg(k.kind, jsonb_build_object('count', image_sync.count_of(l, k.kind), 'samples', image_sync.samples(p_run.id, k.kind)))
      from unnest('{missing,orphaned,collided}'::text[]) as k (kind)
    ) || jsonb_build_object('moved', case
      -- In an analyze: that would move. In a sync they did.
      when v_is_sync then '{"count": 0, "samples": []}' else jsonb_build_object('count', v_moved, 'samples', image_sync.samples(p_run.id, 'moved'))
    end),
    'moved_away', (
      select jsonb_build_object('count', coalesce(sum((c.facts #>> '{away,count}')::bigint), 0), 'files', jsonb_path_query_array(
        jsonb_path_query_array(coalesce(jsonb_agg(c.facts #> '{away,files}' order by c.number), '[]'), '$[*][*]'), '$[0 to 19]'
      ))
      from image_sync.chunks c
      where c.run_id = p_run.id and c.facts ? 'away'
    ),
    -- Rounded down: 1 means all of them.
    'coverage', jsonb_build_object(
      'recorded', case when v_images > 0 then trunc(v_recorded::numeric / v_images, 6) else 1 end,
      'signed', case when v_images > 0 then trunc(image_sync.count_of(l, 'images_signed')::numeric / v_images, 6) else 1 end
    ),
    'probe', coalesce(p_probe, '{"checked": 0, "ok": 0, "failures": []}'),
    'unsigned_with_object', v_records - v_signed - image_sync.count_of(l, 'orphans_unsigned'),
    'expired_with_object', v_expired - image_sync.count_of(l, 'orphans_expired'),
    -- Two look-ups by index: what has no name, and what has the empty one, which the walk begins behind.
    'unnamed', (select count(*) from public.part_images p where p.bucket_id = p_run.bucket_id and p.file_name is null)
      + (select count(*) from public.part_images p where p.bucket_id = p_run.bucket_id and p.file_name collate "C" = '')
  );
end;
$$;

comment on function image_sync.measure(image_sync.runs, jsonb) is
  'What a finished sync or analyze found: the sections bucket, records, difference, coverage and probe of the report, and the counts that findings need. No URL, no key.';

-- What a verify saw, for the report.
create or replace function image_sync.measure_verified(p_run image_sync.runs)
returns jsonb language plpgsql stable set search_path = '' as $$
declare
  v_ledger constant jsonb := image_sync.run_ledger(p_run.id);
begin
  return (
    select jsonb_build_object(
      'run', p_run.id,
      'at', clock_timestamp(),
      'checked', image_sync.count_of(v_ledger, 'shown') + image_sync.count_of(v_ledger, 'broken'),
      'ok', image_sync.count_of(v_ledger, 'shown'),
      -- Rejected URLs whose expiry was not forgotten.
      'kept', image_sync.count_of(v_ledger, 'rejected') - image_sync.count_of(v_ledger, 'updated'),
      'failures', (
        select coalesce(jsonb_object_agg(b.code, jsonb_build_object(
          'count', b.files,
          'samples', image_sync.problem_samples(p_run.id, b.code),
          'said', case when b.code = 'unreachable' then (
            select p.problem ->> 'detail'
            from image_sync.chunks h
            cross join lateral jsonb_array_elements(h.problems) as p (problem)
            where h.run_id = p_run.id and h.ledger ? 'broken' and p.problem ->> 'code' = 'unreachable'
            limit 1
          ) end
        )), '{}')
        from (
          select e.code, sum(e.files::bigint) as files
          from image_sync.chunks k
          cross join lateral jsonb_each_text(k.facts -> 'broken') as e (code, files)
          where k.run_id = p_run.id and k.ledger ? 'broken'
          group by e.code
        ) as b
      )
    )
  );
end;
$$;

comment on function image_sync.measure_verified(image_sync.runs) is
  'What a finished verify saw: {"run", "at", "checked", "ok", "kept", "failures": {reason: {"count", "samples", "said"}}}; kept: rejected URLs that keep their expiry; said: what answered in Storage''s place. Reasons: file_lost, file_gone, not_an_image, wrong_content_type, url_rejected, unreachable.';

-- live facts

-- What the report asks at the moment of reading, because it is cheap: the schedule and the bucket itself.

-- The values of one field of a cron expression: *, lists, ranges and steps of numbers, or of names, the first of which is p_low.
create or replace function image_sync.cron_field(p_field text, p_low integer, p_high integer, p_names text[] default '{}')
returns integer[] language plpgsql immutable set search_path = '' as $$
begin
  return (
    select array_agg(distinct v.value)
    from regexp_split_to_table(p_field, ',') as part
    cross join lateral regexp_matches(part, '^(?:(\*)|(\d{1,2}|[a-z]{3})(?:-(\d{1,2}|[a-z]{3}))?)(?:/(\d{1,2}))?$') as m
    cross join lateral (
      select
        case when m[1] = '*' then p_low when m[2] ~ '^\d' then m[2]::integer else array_position(p_names, m[2]) + p_low - 1 end as first,
        case when m[3] ~ '^\d' then m[3]::integer else array_position(p_names, m[3]) + p_low - 1 end as last
    ) as ends
    cross join lateral generate_series(
      ends.first,
      case when m[3] is not null then ends.last when m[1] = '*' or m[4] is not null then p_high else ends.first end,
      greatest(coalesce(m[4]::integer, 1), 1)
    ) as v (value)
    where v.value between p_low and p_high
  );
end;
$$;

comment on function image_sync.cron_field(text, integer, integer, text[]) is 'The values that a field of a cron expression (lower case) stands for; null where it is none of *, a, a-b, */n, a-b/n or a list of those.';

-- When a schedule of pg_cron is due next, in GMT as pg_cron has it: five fields with lists, ranges, steps, names of months and days and
-- $ for the last day of a month; @daily and its like; or a number of seconds. Source: pg_cron's documentation.
create or replace function image_sync.next_time(p_schedule text, p_after timestamptz)
returns timestamptz language plpgsql immutable set search_path = '' as $$
begin
  return (
    with spelled as (
      select coalesce(
        '{"@yearly": "0 0 1 1 *", "@annually": "0 0 1 1 *", "@monthly": "0 0 1 * *", "@weekly": "0 0 * * 0", "@daily": "0 0 * * *", "@midnight": "0 0 * * *", "@hourly": "0 * * * *"}'::jsonb ->> given.schedule,
        given.schedule
      ) as schedule
      from lower(btrim(p_schedule, E' \t\r\n')) as given (schedule)
    ), fields as (
      select regexp_split_to_array(spelled.schedule, '\s+') as f
      from spelled
    ), sets as (
      select
        image_sync.cron_field(f[1], 0, 59) as minutes,
        image_sync.cron_field(f[2], 0, 23) as hours,
        image_sync.cron_field(nullif(array_to_string(array_remove(string_to_array(f[3], ','), '$'), ','), ''), 1, 31) as month_days,
        '$' = any (string_to_array(f[3], ',')) as last_day,
        image_sync.cron_field(f[4], 1, 12, '{jan,feb,mar,apr,may,jun,jul,aug,sep,oct,nov,dec}') as months,
        -- Both 0 and 7 are Sunday.
        image_sync.cron_field(f[5], 0, 7, '{sun,mon,tue,wed,thu,fri,sat}') as week_days,
        f[3] like '*%' or f[5] like '*%' as any_day,
        -- Every month has such a day, or every week: two months tell. Else February 29th may be eight years away.
        case when f[4] = '*' and (f[3] = '*' or f[5] = '*') then 62 else 2922 end as days_ahead
      from fields
      where cardinality(f) = 5
    ), days as (
      -- Two days are enough: today's times may be over, those of the next day that matches are not.
      select d.day
      from sets
      cross join generate_series(0, sets.days_ahead) as n (days)
      cross join lateral (select date_trunc('day', p_after at time zone 'UTC') + make_interval(days => n.days) as day) as d
      cross join lateral (
        select
          coalesce(extract(day from d.day)::integer = any (sets.month_days), false)
            or (sets.last_day and extract(month from d.day + interval '1 day') <> extract(month from d.day)) as fits_month,
          extract(dow from d.day)::integer = any (sets.week_days) or extract(isodow from d.day)::integer = any (sets.week_days) as fits_week
      ) as fits
      where extract(month from d.day)::integer = any (sets.months)
        -- Where both kinds of day are restricted, either will do: cron's old rule.
        and case when sets.any_day then fits.fits_month and fits.fits_week else fits.fits_month or fits.fits_week end
      order by n.days limit 2
    )
    select coalesce(
      (
        select p_after + make_interval(secs => (regexp_match(spelled.schedule, '^(\d+) seconds?$'))[1]::integer)
        from spelled
      ),
      (
        select min(t.time)
        from days d
        cross join sets
        cross join lateral unnest(sets.hours) as h (hour)
        cross join lateral unnest(sets.minutes) as m (minute)
        cross join lateral (select (d.day + make_interval(hours => h.hour, mins => m.minute)) at time zone 'UTC' as time) as t
        where t.time > p_after
      )
    )
  );
end;
$$;

comment on function image_sync.next_time(text, timestamptz) is 'The next time that a schedule of pg_cron is due after a moment; null for what is none.';

-- A report that met one lock would meet it again for each thing and each bucket: it has waited enough.
create or replace function image_sync.wait_no_more()
returns void language plpgsql stable set search_path = '' as $$
begin
  perform set_config('lock_timeout', '1ms', true);
end;
$$;

comment on function image_sync.wait_no_more() is 'Makes the rest of the calling statement wait for no lock, up to the function that sets its own lock_timeout.';

-- The jobs that the schedule consists of, by what they do and whose they are: the name is the operator's.
create or replace function image_sync.scheduled_jobs()
returns table (name text, line text, jobid bigint, schedule text) language plpgsql stable security definer set search_path = '' as $$
begin
  return query
  select w.name, format('select cron.schedule(%L, %L, %L);', w.name, w.schedule, w.command), j.jobid, j.schedule
  from (values
    ('image-sync-nightly', '0 2 * * *', 'select image_sync.run_nightly()', 'run_nightly'),
    ('image-sync-watchdog', '* * * * *', 'select image_sync.watchdog()', 'watchdog'),
    ('image-sync-housekeeping', '30 3 * * *', 'select image_sync.prune_history()', 'prune_history')
  ) as w (name, schedule, command, calls)
  left join cron.job j
    on j.active
    and j.database = current_database()
    and j.username = (
      select pg_get_userbyid(n.nspowner)
      from pg_catalog.pg_namespace n
      where n.nspname = 'image_sync'
    )
    -- What is left of the command without its comments and texts calls it, however that is written.
    and regexp_replace(
      -- One after the other: side by side the longest match would win, from the first comment to the last.
      regexp_replace(regexp_replace(regexp_replace(j.command, '/\*.*?\*/', ' ', 'g'), '--[^\n]*', ' ', 'g'), '''[^'']*''', ' ', 'g'),
      '["\s]+', ' ', 'g'
    ) ~* format('\m(select|perform|call|from|execute)\M[^;]*\mimage_sync ?\. ?%s ?\( ?\)', w.calls);
end;
$$;

comment on function image_sync.scheduled_jobs() is
  'The jobs that the schedule needs, the line that makes each, and what there is in cron.job that does it: null where nothing does.';

-- What service_role cannot see: whether jobs exist, how they went, and how the calls of the function went. Takes
-- nothing, returns facts.
create or replace function image_sync.schedule_facts()
returns jsonb language plpgsql stable security definer set search_path = '' as $$
declare
  v_facts jsonb := '{}'::jsonb;
begin
  if to_regclass('cron.job') is not null then
    select jsonb_build_object(
      'missing_jobs', coalesce(jsonb_agg(distinct s.name) filter (where s.jobid is null), '[]'),
      'missing_lines', string_agg(distinct s.line, ' ') filter (where s.jobid is null),
      'next_run_at', min(image_sync.next_time(s.schedule, now())) filter (where s.name = 'image-sync-nightly'),
      'schedules', coalesce(jsonb_agg(s.schedule) filter (where s.name = 'image-sync-nightly' and s.schedule is not null), '[]'),
      'failed_jobs', coalesce(jsonb_agg(jsonb_build_object('name', s.name, 'message', image_sync.redact(d.return_message), 'at', d.start_time)) filter (where d.status = 'failed'), '[]')
    )
    into v_facts
    from image_sync.scheduled_jobs() s
    -- The last time only: pg_cron keeps a row for each, and other people's beside ours. What runs now has not failed.
    left join lateral (
      select r.status, r.return_message, r.start_time
      from cron.job_run_details r
      where r.jobid = s.jobid and r.status in ('succeeded', 'failed')
      order by r.runid desc limit 1
    ) as d on true;
  end if;
  v_facts := v_facts || jsonb_build_object('function_fits', image_sync.function_fits(), 'function_url', (
    select a.url
    from image_sync.project a
  ));
  if to_regclass('net._http_response') is not null then
    v_facts := v_facts || jsonb_build_object('calls', (
      -- The newest call of each bucket's open run, else of its last one; what succeeded needs no call. pg_net's ids begin again at 1
      -- after a crash: the answer is the one that came between the call and the end of its run, not just one of the same id.
      select coalesce(jsonb_object_agg(r.bucket_id, jsonb_build_object(
        'run_id', r.id,
        'kicked_at', r.kicked_at,
        'moved_at', r.moved_at,
        'is_open', r.finished_at is null,
        'answered', h.id is not null,
        -- The function may take up a run and still answer too late for pg_net.
        'arrived', cardinality(r.wake_hashes) > 0 and r.wake_hashes[1] is null,
        'status', h.status_code,
        'error', left(coalesce(h.error_msg, case when h.timed_out then 'timed out' end), 200)
      )), '{}')
      from (
        select distinct on (q.bucket_id) q.*
        from image_sync.runs q
        where q.mode = 'sync'
        order by q.bucket_id, (q.finished_at is null) desc, q.started_at desc
      ) as r
      left join net._http_response h
        on h.id = r.kick_id
        and h.created between r.kicked_at and coalesce(r.finished_at, 'infinity')
      where r.kick_id is not null and r.outcome is distinct from 'succeeded'
    ));
  end if;
  return v_facts;
exception
  when lock_not_available then
    perform image_sync.wait_no_more();
    return '{"missing_jobs": [], "schedules": [], "failed_jobs": []}'::jsonb || v_facts;
end;
$$;

comment on function image_sync.schedule_facts() is
  'Which of our cron jobs are missing (by name), where the function lives, which jobs failed the last time, when the nightly job is due next, and by bucket what the newest call of a run that has not succeeded was answered.';

-- The bucket at this moment. A permission that was lost is something to report, not the end of the report.
create or replace function image_sync.bucket_facts(p_bucket_id text)
returns jsonb
language plpgsql
stable
set search_path = ''
-- One look by an index in its order: without statistics a sort of the whole bucket looks cheaper.
set enable_sort = 'off'
as $$
begin
  return (
    select jsonb_build_object(
      'bucket_exists', b.id is not null,
      'bucket_public', b.public,
      -- One look by the index of names: in any other order that may be all files of all buckets.
      'has_objects', exists (
        select
        from image_sync.objects o
        where o.bucket_id = p_bucket_id
        order by o.name collate "C"
        offset 0
      )
    )
    from (select) as always
    left join storage.buckets b on b.id = p_bucket_id
  );
exception
  when insufficient_privilege then
    return jsonb_build_object('listing_refused', true);
  when lock_not_available then
    perform image_sync.wait_no_more();
    return jsonb_build_object('listing_locked', true);
end;
$$;

comment on function image_sync.bucket_facts(text) is
  'Whether the bucket exists, is public and holds a file; or that storage.objects or storage.buckets may not be read.';

-- The table at this moment. An adopted one may lack the grant for service_role, and somebody may hold it.
create or replace function image_sync.table_facts(p_bucket_id text)
returns jsonb
language plpgsql
stable
set search_path = ''
-- One look by an index in its order: without statistics a sort of the whole bucket looks cheaper.
set enable_sort = 'off'
as $$
begin
  return jsonb_build_object(
    'has_records', exists (
      select
      from public.part_images p
      where p.bucket_id = p_bucket_id
      order by p.file_name collate "C"
      offset 0
    ),
    'table_refused', not (
      select bool_and(has_table_privilege('public.part_images', needed.privilege))
      from unnest('{select,insert,update,delete}'::text[]) as needed (privilege)
    ),
    -- A right to the one column that matters is enough to read the URLs.
    'table_public', (
      select (has_table_privilege('anon', c.oid, 'select') or has_column_privilege('anon', c.oid, 'signed_url', 'select'))
        and (not c.relrowsecurity or exists (
          select
          from pg_catalog.pg_policies y
          where y.schemaname = 'public'
            and y.tablename = 'part_images'
            and y.cmd in ('SELECT', 'ALL')
            and y.roles && array['anon', 'public']::name[]
        ))
      from pg_catalog.pg_class c
      where c.oid = 'public.part_images'::regclass
    )
  );
exception
  when insufficient_privilege then
    return jsonb_build_object('table_refused', true);
  when lock_not_available then
    perform image_sync.wait_no_more();
    return jsonb_build_object('table_locked', true);
end;
$$;

comment on function image_sync.table_facts(text) is
  'Whether part_images holds records of the bucket, may be used by who asks, and is open to anon; or that it may not be read, or that somebody holds it locked.';

-- Records that no run looks at: of buckets without settings, or that do not exist. From one bucket to the next by the index, each
-- counted up to 10,000: reading them costs the same however many records there are.
create or replace function image_sync.stray_facts(p_bucket_id text)
returns jsonb language plpgsql stable set search_path = '' as $$
begin
  return (
    with recursive labels as (
      select min(p.bucket_id) as bucket_id, 1 as place
      from public.part_images p
      union all
      select
        (
          select min(p.bucket_id)
          from public.part_images p
          where p.bucket_id > l.bucket_id
        ),
        l.place + 1
      from labels l
      where l.bucket_id is not null and l.place < 1000
    ), strays as (
      select l.bucket_id, b.id is not null as bucket_exists, counted.records
      from labels l
      left join storage.buckets b on b.id = l.bucket_id
      left join image_sync.settings s on s.bucket_id = l.bucket_id
      cross join lateral (
        select count(*) as records
        from (
          select
          from public.part_images p
          where p.bucket_id = l.bucket_id
          order by p.file_name collate "C" limit 10000
        ) as few
      ) as counted
      where l.bucket_id is not null and (b.id is null or s.bucket_id is null)
        -- Its own report says so as bucket_missing.
        and l.bucket_id <> p_bucket_id
      order by l.bucket_id limit 20
    )
    select jsonb_build_object('strays', coalesce(jsonb_agg(jsonb_build_object('bucket_id', t.bucket_id, 'bucket_exists', t.bucket_exists, 'records', t.records)), '[]'))
    from strays t
  );
exception
  when insufficient_privilege then
    return jsonb_build_object('strays', jsonb_build_array());
  when lock_not_available then
    perform image_sync.wait_no_more();
    return jsonb_build_object('strays', jsonb_build_array());
end;
$$;

comment on function image_sync.stray_facts(text) is
  'The buckets, up to 20 and other than this one, whose records no run looks at because they have no settings or do not exist: bucket_id, bucket_exists, records (at most 10,000 are counted).';

-- An open run that has not moved for two minutes: by then a worker that died was replaced.
create or replace function image_sync.standing_run(p_bucket_id text)
returns jsonb language plpgsql stable set search_path = '' as $$
begin
  return (
    select jsonb_build_object('id', r.id, 'mode', r.mode, 'plan_id', r.plan_id, 'bucket_is_gone', case when r.plan_id is null then r.options -> 'bucket_is_gone' end, 'since', r.moved_at, 'reason', image_sync.standstill_reason(r))
    from image_sync.runs r
    where r.bucket_id = p_bucket_id and r.finished_at is null and r.moved_at < now() - interval '2 minutes'
    order by r.moved_at limit 1
  );
end;
$$;

comment on function image_sync.standing_run(text) is 'The open run of the bucket that stands still, since when and why; null where none does.';

-- readers

-- A reader as the API shows it is their row without the hash of the key.

-- Adds a reader by HTTPS.
--   p_key_hash  SHA-256 of the key, 64 hexadecimal digits
create or replace function public.image_sync_add_reader(p_name text, p_bucket text, p_key_hash text)
returns jsonb language plpgsql set search_path = '' as $$
declare
  v_problem jsonb := image_sync.unknown_bucket(p_bucket, 'add a reader of bucket %s');
  v_reader image_sync.readers;
begin
  if v_problem is null then
    insert into image_sync.readers (name, kind, bucket_id, key_hash)
    values (p_name, 'https', p_bucket, decode(p_key_hash, 'hex'))
    on conflict (name) do nothing
    returning * into v_reader;
    v_problem := case when not found then image_sync.problem(
      409, 'reader_exists', 'There is a reader of this name',
      format('Cannot add reader %s: there is one. A key cannot be shown again: take another name, or revoke that reader first.', p_name))
    end;
  end if;
  return coalesce(v_problem, jsonb_build_object('reader', to_jsonb(v_reader) - 'key_hash'));
end;
$$;

comment on function public.image_sync_add_reader(text, text, text) is 'Adds a reader by HTTPS with the SHA-256 of its key. Returns {"reader": {"name", "kind", "bucket_id", "created_at", "last_used_at"}}. Problems: unknown_bucket (404), reader_exists (409).';

create or replace function public.image_sync_readers(p_after text default '', p_limit integer default 100)
returns jsonb language sql stable set search_path = '' as $$
  select image_sync.page(
    'readers', coalesce(jsonb_agg(to_jsonb(q) - 'key_hash' order by q.name collate "C"), '[]'), 'name', least(greatest(coalesce(p_limit, 100), 1), 100))
  from (
    select r.*
    from image_sync.readers r
    where r.name collate "C" > coalesce(p_after, '')
    order by r.name collate "C" limit least(greatest(coalesce(p_limit, 100), 1), 100)
  ) as q
$$;

comment on function public.image_sync_readers(text, integer) is 'A page of the readers, by name behind p_after, 1 to 100 of them, each with its bucket and its last use. No key and no hash.';

-- A key is gone with its row, and with it every later request; what is being sent to somebody is sent to its end. A role can be
-- dropped by its owner alone, and without its row it would read the register of another bucket.
create or replace function public.image_sync_remove_reader(p_name text)
returns jsonb language plpgsql set search_path = '' set lock_timeout = '2s' as $$
declare
  v_reader image_sync.readers;
  v_revoked boolean;
begin
  select r.* into v_reader from image_sync.readers r where r.name = p_name for update;
  if not found then
    return image_sync.problem(404, 'unknown_reader', 'There is no such reader', format('Cannot revoke reader %s: there is none of this name.', p_name));
  end if;
  delete from image_sync.readers r
  where r.name = p_name and (r.kind = 'https' or not exists (select from pg_catalog.pg_roles a where a.rolname = r.name));
  v_revoked := found;
  return jsonb_build_object('reader', to_jsonb(v_reader) - 'key_hash', 'revoked', v_revoked);
end;
$$;

comment on function public.image_sync_remove_reader(text) is 'Takes a reader''s right away. revoked: false for a database role, which its owner has to drop. Problem: unknown_reader (404).';

-- Whose key it is. One look-up by the index of hashes, and a write once an hour at most, which waits for nobody.
create or replace function public.image_sync_open_register(p_key_hash text)
returns jsonb language plpgsql set search_path = '' as $$
declare
  v_reader image_sync.readers;
begin
  select r.* into v_reader from image_sync.readers r where r.key_hash = decode(p_key_hash, 'hex');
  if not found then
    return image_sync.problem(
      401, 'unauthorized', 'No valid key of a reader',
      'Send a reader''s key as the password of HTTP Basic, with any user name; image-sync reader add NAME --https makes one.');
  end if;
  if (v_reader.last_used_at < now() - interval '1 hour') is not false then
    update image_sync.readers r
    set last_used_at = now()
    from (select q.name from image_sync.readers q where q.name = v_reader.name for update skip locked) as free
    where r.name = free.name;
  end if;
  return jsonb_build_object('reader', to_jsonb(v_reader) - 'key_hash');
end;
$$;

comment on function public.image_sync_open_register(text) is 'The reader whose key has this SHA-256 (64 hexadecimal digits), and a note of its use, at most once an hour. Problem: unauthorized (401).';

-- Readers for whom URLs die before they look again: their sheet shows nothing until it is refreshed. One that has not been used
-- for a year has been given up.
create or replace function image_sync.reader_facts(p_settings image_sync.settings)
returns jsonb language sql stable set search_path = '' as $$
  select jsonb_build_object(
    'rare_readers', coalesce(jsonb_agg(format('%s: last used %s', r.name, to_char(r.last_used_at at time zone 'UTC', 'YYYY-MM-DD')) order by r.last_used_at, r.name), '[]'),
    'longest_absence_days', ceil(extract(epoch from now() - min(r.last_used_at)) / 86400)
  )
  from image_sync.readers r
  where r.bucket_id = p_settings.bucket_id
    and r.last_used_at < now() - p_settings.signed_url_ttl
    and r.last_used_at > now() - interval '360 days'
$$;

comment on function image_sync.reader_facts(image_sync.settings) is 'Readers of the bucket whose last use is longer ago than a URL lives (and less than 360 days), each in words, and the longest of these times in days.';

-- findings

-- What there is to look at, by code: how much of it, samples, and the numbers that its words need. The words, what mends it, and what
-- explains what away are a row of the function's findings.ts. p_facts is what image_sync.report_facts() gathers; a fact that is absent
-- finds nothing.

-- URLs that show no image, by reason: what the newest verify saw of all of them, and the probe of a newer sync of a few. A sync that
-- came after the verify signed anew what was rejected and counted what is gone; a file that is lost stays lost until it is looked at.
create or replace function image_sync.unseen(p_facts jsonb)
returns table (code text, files bigint, samples jsonb, none_shown boolean) language plpgsql stable set search_path = '' as $$
declare
  v_verified constant jsonb := p_facts -> 'verified';
  v_probe constant jsonb := p_facts #> '{measured,probe}';
  v_is_older constant boolean := coalesce((p_facts #>> '{verified,is_older}')::boolean, true);
  v_verify_shows_none constant boolean := coalesce((v_verified ->> 'ok')::bigint = 0 and (v_verified ->> 'checked')::bigint > 0, false);
  v_probe_shows_none constant boolean := coalesce(v_is_older and (v_probe ->> 'ok')::bigint = 0 and (v_probe ->> 'checked')::bigint > 0, false);
begin
  return query
  select
    reason.code,
    -- One at least where the verify ended there.
    greatest(by_verify.files, by_probe.files, unreached.files),
    case when by_verify.files >= by_probe.files then by_verify.samples else by_probe.samples end,
    reason.is_told and v_verify_shows_none or v_probe_shows_none or unreached.files > 0
  from (
    select c.code, not v_is_older or c.code in ('file_lost', 'not_an_image', 'wrong_content_type') as is_told
    from unnest('{file_lost,file_gone,not_an_image,wrong_content_type,url_rejected,unreachable}'::text[]) as c (code)
  ) as reason
  cross join lateral (
    select
      case when reason.is_told then coalesce((v_verified #>> array['failures', reason.code, 'count'])::bigint, 0) else 0 end as files,
      coalesce(v_verified #> array['failures', reason.code, 'samples'], '[]') as samples
  ) as by_verify
  cross join lateral (
    select count(p.failure) as files, coalesce(jsonb_agg(p.failure ->> 'name'), '[]') as samples
    from jsonb_array_elements(coalesce(v_probe -> 'failures', '[]')) as p (failure)
    where v_is_older and p.failure ->> 'code' = reason.code
  ) as by_probe
  cross join lateral (
    select (reason.code = 'unreachable' and p_facts ->> 'unreached' is not null)::integer as files
  ) as unreached;
end;
$$;

comment on function image_sync.unseen(jsonb) is
  'Of the facts of a report: how many URLs show no image, by reason, with samples, and whether none of those looked at showed one.';

-- What runs counted, and what readers see.
create or replace function image_sync.measured_findings(p_facts jsonb)
returns table (code text, count bigint, samples jsonb, numbers jsonb) language plpgsql stable set search_path = '' as $$
declare
  v_measured constant jsonb := p_facts -> 'measured';
begin
  return query
  select f.code, (v_measured #>> (f.path || '{count}'))::bigint, v_measured #> (f.path || '{samples}'), f.numbers
  from (values
    ('excluded_extensions', '{other_extensions}'::text[], jsonb_build_object('extensions', p_facts #> '{live,extensions}')),
    ('excluded_names', '{excluded}', null),
    ('empty_files', '{empty_files}', null),
    ('several_files', '{several_files}', null),
    ('unsignable_names', '{unsignable}', null),
    ('missing', '{difference,missing}', null),
    ('orphaned', '{difference,orphaned}', null),
    ('collided', '{difference,collided}', null),
    ('moved', '{difference,moved}', null),
    ('moved_away', '{moved_away}', jsonb_build_object('files', v_measured #> '{moved_away,files}', 'has_settings', exists (
      select
      from image_sync.settings s
      where s.bucket_id = v_measured #>> '{moved_away,files,0,bucket}'
    ))),
    ('not_moved', '{unmoved}', null),
    ('row_locked', '{held}', null),
    ('database_timeout', '{too_slow}', null),
    ('url_refused', '{url_refused}', null)
  ) as f (code, path, numbers)
  union all
  select u.code, u.files, u.samples, jsonb_build_object('none_shown', u.none_shown, 'said', case when u.code = 'unreachable' then coalesce(
    p_facts ->> 'unreached',
    jsonb_path_query_first(v_measured, '$.probe.failures[*] ? (@.code == "unreachable").error') #>> '{}',
    p_facts #>> '{verified,failures,unreachable,said}'
  ) end)
  from image_sync.unseen(p_facts) as u;
end;
$$;

comment on function image_sync.measured_findings(jsonb) is 'What runs counted and readers see, by the code of a finding, 0 and null included.';

-- What is true of the bucket, its rights, its URLs and its runs.
create or replace function image_sync.bucket_findings(p_facts jsonb)
returns table (code text, count bigint, samples jsonb, numbers jsonb) language plpgsql stable set search_path = '' as $$
declare
  v_live constant jsonb := p_facts -> 'live';
  v_measured constant jsonb := p_facts -> 'measured';
  v_sync constant jsonb := p_facts -> 'last_sync';
  v_listing constant jsonb := p_facts -> 'last_listing';
  v_expiry constant timestamptz := (v_measured #>> '{records,soonest_expiry}')::timestamptz;
  v_expired constant bigint := (v_measured ->> 'expired_with_object')::bigint;
begin
  return query
  select v.code, v.is_so::bigint, null::jsonb, v.numbers
  from (values
    ('bucket_missing', (not (v_live ->> 'bucket_exists')::boolean)::integer, null::jsonb),
    ('bucket_empty', ((v_live ->> 'bucket_exists')::boolean and not (v_live ->> 'has_objects')::boolean)::integer, jsonb_build_object('has_records', v_live -> 'has_records')),
    ('listing_incomplete', (v_listing ->> 'state' in ('failed', 'cancelled') and not (v_listing ->> 'reached_end')::boolean and coalesce(v_listing #>> '{error,code}', '') not in ('bucket_missing', 'function_unknown', 'unreachable'))::integer, null),
    ('bucket_public', (v_live ->> 'bucket_public')::boolean::integer, null),
    ('listing_failed', (v_live ->> 'listing_refused')::boolean::integer, null),
    ('table_refused', (v_live ->> 'table_refused')::boolean::integer, null),
    ('table_public', (v_live ->> 'table_public')::boolean::integer, null),
    ('unnamed_records', (v_measured ->> 'unnamed')::bigint, null),
    ('signing_failed', (v_sync ->> 'stop_reason' in ('signing_failed', 'signing_impossible', 'dead_chunks'))::integer, null),
    -- Those that the last run could not sign or write have findings of their own.
    ('unsigned', (v_measured ->> 'unsigned_with_object')::bigint - (
      select sum((v_measured #>> array[k.key, 'count'])::bigint)
      from unnest('{failed,held,too_slow,url_refused}'::text[]) as k (key)
    ), null),
    -- Nothing was measured since the first of them died: at least one has.
    ('expired', case when v_expiry <= now() then greatest(v_expired, 1) else v_expired end, null),
    -- function_unknown says it already.
    ('last_run_failed', (v_sync ->> 'state' = 'failed' and (v_sync #>> '{error,code}' is distinct from 'function_unknown' or p_facts #> '{schedule,function_url}' is distinct from 'null'))::integer, null)
  ) as v (code, is_so, numbers)
  union all
  values
    ('last_run_partial', (v_sync ->> 'state' = 'partial')::integer, v_measured #> '{failed,samples}', null),
    ('register_opened_rarely', jsonb_array_length(v_live -> 'rare_readers'), v_live -> 'rare_readers', jsonb_build_object('longest_absence_days', v_live -> 'longest_absence_days')),
    ('stray_records', (select sum((s.stray ->> 'records')::bigint)::bigint from jsonb_array_elements(v_live -> 'strays') as s (stray)), null, jsonb_build_object('strays', v_live -> 'strays')),
    ('run_stands_still', (v_live -> 'standing_run' <> 'null')::integer, null, jsonb_build_object('run', v_live -> 'standing_run'));
end;
$$;

comment on function image_sync.bucket_findings(jsonb) is 'What is true of a bucket, the rights, the URLs and the runs, by the code of a finding.';

-- Of the schedule: its jobs, the calls that it queues, and whether it comes in time.
create or replace function image_sync.schedule_findings(p_facts jsonb)
returns table (code text, count bigint, samples jsonb, numbers jsonb) language plpgsql stable set search_path = '' as $$
declare
  v_live constant jsonb := p_facts -> 'live';
  v_schedule constant jsonb := p_facts -> 'schedule';
  v_missing constant jsonb := coalesce(v_schedule -> 'missing_jobs', '["image-sync-housekeeping", "image-sync-nightly", "image-sync-watchdog"]');
  v_call constant jsonb := v_schedule -> 'calls' -> (p_facts ->> 'bucket_id');
  v_status constant integer := (v_call ->> 'status')::integer;
  v_answered constant boolean := (v_call ->> 'answered')::boolean;
  v_arrived constant boolean := (v_call ->> 'arrived')::boolean;
  v_nightly constant boolean := (v_live ->> 'nightly')::boolean;
  v_success constant timestamptz := (v_live ->> 'last_success_at')::timestamptz;
  v_expiry constant timestamptz := (p_facts #>> '{measured,records,soonest_expiry}')::timestamptz;
  v_failed constant jsonb := image_sync.standing_failures(p_facts);
begin
  return query
  values
    ('job_missing', jsonb_array_length(v_missing)::bigint, v_missing, jsonb_build_object('lines', v_schedule -> 'missing_lines')),
    ('job_failed', jsonb_array_length(v_failed), null::jsonb, jsonb_build_object('jobs', v_failed)),
    ('calls_unanswered', (
      (v_call ->> 'is_open')::boolean and not v_answered and not v_arrived
      and (v_call ->> 'moved_at')::timestamptz < now() - interval '2 minutes'
      and (v_call ->> 'kicked_at')::timestamptz < now() - interval '10 seconds'
    )::integer, null, jsonb_build_object('moved_at', v_call -> 'moved_at')),
    ('function_unknown', (v_schedule -> 'function_url' = 'null')::integer, null, null),
    ('function_outdated', (not (v_schedule ->> 'function_fits')::boolean)::integer, null, null),
    ('address_stale', (v_answered and v_status = 401)::integer, jsonb_build_array(v_schedule ->> 'function_url'), null),
    ('last_call_failed', (
      v_answered and coalesce(v_status not between 200 and 299 and v_status <> 401, not v_arrived) and (v_schedule ->> 'function_fits')::boolean
    )::integer, null, jsonb_build_object('status', v_status, 'error', v_call -> 'error', 'function_url', v_schedule -> 'function_url')),
    -- No sync is due between the moment from which the first URL may be renewed and its death.
    ('renewed_too_late', (
      v_nightly and v_expiry > now()
      and image_sync.next_night(p_facts, greatest(now(), v_expiry - (v_live ->> 'renew_before')::interval)) > v_expiry
    )::integer, null, jsonb_build_object('renew_before', v_live -> 'renew_before')),
    -- Two hours after the first night that should have come since. Without a schedule there is no such limit.
    ('no_recent_sync', (
      v_live -> 'last_success_at' = 'null' or coalesce(v_nightly and image_sync.next_night(p_facts, v_success) < now() - interval '2 hours', false)
    )::integer, null, null);
end;
$$;

comment on function image_sync.schedule_findings(jsonb) is 'What keeps the schedule from calling the function, or from coming in time, by the code of a finding.';

create or replace function image_sync.next_night(p_facts jsonb, p_after timestamptz)
returns timestamptz language sql stable set search_path = '' as $$
  select min(image_sync.next_time(s.schedule, p_after))
  from jsonb_array_elements_text(p_facts #> '{schedule,schedules}') as s (schedule)
$$;

comment on function image_sync.next_night(jsonb, timestamptz) is 'When the facts'' nightly job is due next after a moment; null without one.';

create or replace function image_sync.standing_failures(p_facts jsonb)
returns jsonb language sql stable set search_path = '' as $$
  select coalesce(jsonb_agg(j.job), '[]')
  from jsonb_array_elements(p_facts #> '{schedule,failed_jobs}') as j (job)
  where (j.job ->> 'name' = 'image-sync-nightly' and (p_facts #>> '{live,last_success_at}')::timestamptz > (j.job ->> 'at')::timestamptz) is not true
$$;

comment on function image_sync.standing_failures(jsonb) is 'The facts'' failed jobs but for a nightly one that a later success refutes.';

-- All that there is.
create or replace function image_sync.findings(p_facts jsonb)
returns table (code text, count bigint, samples jsonb, numbers jsonb)
-- Not in sql, which would plan all of them anew at each call: 15 ms to find in one. What it calls inherits the setting.
language plpgsql
stable
set search_path = ''
set plan_cache_mode = 'force_generic_plan'
as $$
begin
  return query
  select f.code, f.count, coalesce(f.samples, '[]'), jsonb_strip_nulls(coalesce(f.numbers, '{}'))
  from (
    select * from image_sync.measured_findings(p_facts)
    union all select * from image_sync.bucket_findings(p_facts)
    union all select * from image_sync.schedule_findings(p_facts)
  ) as f
  where f.count > 0
  order by f.code;
end;
$$;

comment on function image_sync.findings(jsonb) is
  'The findings of a report before their words: code, count, samples, and the numbers that the words need.';

-- since

-- Since when a finding stands. What runs measure is told by them: each keeps in its report, under "since", which findings it saw and
-- when the first of an unbroken line of runs saw them. What is asked at the moment of reading has the moment that its fact gives, or
-- none: where nobody can know, nothing is said.

-- Runs before version 1.1.0 kept no such thing: what they saw already, nobody knows since when, so the run after them notes it with
-- null. It is told once it has gone and come again.
create or replace function image_sync.note_since(p_run image_sync.runs)
returns void language plpgsql set search_path = '' as $$
begin
  update image_sync.runs r
  set report = r.report || jsonb_build_object('since', (
    select coalesce(jsonb_object_agg(f.code, case
      when before.since = 'null' then before.since
      else coalesce(before.since -> f.code, to_jsonb(p_run.finished_at))
    end), '{}')
    -- Without what is asked of the bucket, the table and the schedule: a run that ends waits for nobody.
    from image_sync.findings(image_sync.measured_facts(p_run.bucket_id) || '{"live": {}, "schedule": {"missing_jobs": []}}') as f
    left join (
      select coalesce(o.report -> 'since', 'null') as since
      from image_sync.runs o
      where o.bucket_id = p_run.bucket_id and o.report is not null and o.id <> p_run.id
      order by o.finished_at desc limit 1
    ) as before on true
  ))
  where r.id = p_run.id;
exception
  when others then
    -- A run that did its work does not fail over this; the next one then cannot tell either.
    return;
end;
$$;

comment on function image_sync.note_since(image_sync.runs) is
  'Keeps in the report of a run that measured, under since, the codes of the findings that it saw, each with the end of the first run of those in a row that saw it; null where that is not known.';

-- When the last syncs of a bucket began to end as the newest did, without a break: by the finding that says so. Syncs that went well
-- say nothing, and cost nothing.
create or replace function image_sync.failing_since(p_bucket_id text, p_last_sync jsonb)
returns jsonb language plpgsql stable set search_path = '' as $$
begin
  if coalesce(p_last_sync ->> 'state', 'succeeded') = 'succeeded' then
    return '{}'::jsonb;
  end if;
  return (
    select coalesce(jsonb_object_agg(t.code, t.since) filter (where t.since is not null), '{}')
    from (values
      ('last_run_failed', array['failed'], null),
      ('last_run_partial', array['partial'], null),
      ('signing_failed', null, array['signing_failed', 'signing_impossible', 'dead_chunks']),
      ('bucket_missing', null, array['bucket_missing']),
      ('listing_failed', null, array['listing_failed'])
    ) as e (code, outcomes, reasons)
    cross join lateral (
      select e.code, min(r.finished_at) as since
      from image_sync.runs r
      where r.bucket_id = p_bucket_id
        and r.mode = 'sync'
        and r.finished_at > coalesce((
          select max(o.finished_at)
          from image_sync.runs o
          where o.bucket_id = p_bucket_id
            and o.mode = 'sync'
            and o.finished_at is not null
            and coalesce(o.outcome <> all (e.outcomes), not coalesce(o.stop_reason = any (e.reasons), false))
        ), '-infinity')
    ) as t
  );
end;
$$;

comment on function image_sync.failing_since(text, jsonb) is
  'For the findings about how the last sync ended: the end of the first sync of those in a row that ended so. {code: time}; empty where it went well.';

-- Since when what the facts of a report say is so: {code: time}. A code that is not in it: nobody knows, or nothing is found.
create or replace function image_sync.since_of(p_facts jsonb)
returns jsonb language plpgsql stable set search_path = '' as $$
declare
  v_call constant jsonb := p_facts -> 'schedule' -> 'calls' -> (p_facts ->> 'bucket_id');
begin
  return coalesce(p_facts #> '{measured,since}', '{}')
    || image_sync.failing_since(p_facts ->> 'bucket_id', p_facts -> 'last_sync')
    || jsonb_strip_nulls(jsonb_build_object(
      'listing_incomplete', p_facts #> '{last_listing,finished_at}',
      'run_stands_still', p_facts #> '{live,standing_run,since}',
      'calls_unanswered', v_call -> 'moved_at',
      'last_call_failed', v_call -> 'kicked_at',
      'address_stale', v_call -> 'kicked_at',
      'job_failed', (
        select min((j.job ->> 'at')::timestamptz)
        from jsonb_array_elements(image_sync.standing_failures(p_facts)) as j (job)
      ),
      -- When the first night should have come that did not.
      'no_recent_sync', case when (p_facts #>> '{live,nightly}')::boolean then image_sync.next_night(p_facts, (p_facts #>> '{live,last_success_at}')::timestamptz) end,
      -- What a run counted, and what has died since then.
      'expired', case
        when (p_facts #>> '{measured,expired_with_object}')::bigint = 0 then p_facts #> '{measured,records,soonest_expiry}'
      end
    ));
end;
$$;

comment on function image_sync.since_of(jsonb) is
  'Of the facts of a report: since when each finding stands, as {code: time}, as far as runs or the facts themselves tell.';

-- report

-- The status report: what the last run measured, the last run of each mode, and the findings.

-- The last finished run in any of these modes, as a document.
create or replace function image_sync.last_run(p_bucket_id text, p_modes text[])
returns jsonb language plpgsql stable set search_path = '' as $$
begin
  return (
    select image_sync.run_document(r.id) || jsonb_build_object('reached_end', r.exhausted)
    from image_sync.runs r
    where r.bucket_id = p_bucket_id and r.mode = any (p_modes) and r.finished_at is not null
    order by r.finished_at desc limit 1
  );
end;
$$;

comment on function image_sync.last_run(text, text[]) is 'The last finished run of a bucket in one of the modes; null where there is none.';

-- What runs found out: nothing here asks how the bucket is at this moment.
create or replace function image_sync.measured_facts(p_bucket_id text)
returns jsonb language plpgsql stable set search_path = '' set plan_cache_mode = 'force_generic_plan' as $$
begin
  return (
    select jsonb_build_object(
      'bucket_id', p_bucket_id,
      -- The newest measurement, with the probe of the newest sync: an analyze fetches nothing.
      'measured', (
        select r.report || jsonb_build_object(
          'probe', (
            select s.report -> 'probe'
            from image_sync.runs s
            where s.bucket_id = p_bucket_id and s.mode = 'sync' and s.report is not null
            order by s.finished_at desc limit 1
          ),
          'moved_away', case
            when (r.report #> '{moved_away,count}')::bigint > 0 then image_sync.still_away(p_bucket_id, r.report -> 'moved_away')
          end
        )
        from image_sync.runs r
        where r.bucket_id = p_bucket_id and r.report is not null
        order by r.finished_at desc limit 1
      ),
      -- The newest look at every URL, and whether a sync came after it.
      'verified', (
        select r.report -> 'verified' || jsonb_build_object('is_older', exists (
          select
          from image_sync.runs s
          where s.bucket_id = p_bucket_id and s.mode = 'sync' and s.report is not null and s.finished_at > r.finished_at
        ))
        from image_sync.runs r
        where r.bucket_id = p_bucket_id and r.mode = 'verify' and r.report is not null
        order by r.finished_at desc limit 1
      ),
      -- What ended the last verify early, unless URLs were opened since.
      'unreached', (
        select r.error ->> 'detail'
        from (
          select l.*
          from image_sync.runs l
          where l.bucket_id = p_bucket_id
            and (l.mode = 'verify' and l.finished_at is not null or l.mode = 'sync' and (l.report #>> '{probe,ok}')::bigint > 0)
            and l.outcome <> 'cancelled'
          order by l.finished_at desc limit 1
        ) as r
        where r.mode = 'verify' and r.stop_reason = 'unreachable'
      ),
      'last_sync', image_sync.last_run(p_bucket_id, array['sync']),
      'last_listing', image_sync.last_run(p_bucket_id, array['sync', 'analyze', 'verify'])
    )
  );
end;
$$;

comment on function image_sync.measured_facts(text) is 'The part of a report''s facts that runs found out: the newest measurement, the newest verify, the last runs.';

-- Those, and what is true right now and cheap to ask.
create or replace function image_sync.report_facts(p_settings image_sync.settings)
returns jsonb language plpgsql stable set search_path = '' set plan_cache_mode = 'force_generic_plan' as $$
begin
  return image_sync.measured_facts(p_settings.bucket_id) || (
    select jsonb_build_object(
      'live', jsonb_build_object(
        'extensions', to_jsonb(p_settings.extensions),
        'nightly', p_settings.nightly,
        'renew_before', p_settings.renew_before,
        'standing_run', image_sync.standing_run(p_settings.bucket_id),
        'last_success_at', (
          select max(r.finished_at)
          from image_sync.runs r
          where r.bucket_id = p_settings.bucket_id and r.mode = 'sync'
            -- What fails for single files has a finding of its own and must not hide, night after night, that the rest went well.
            and (r.outcome = 'succeeded' or r.stop_reason in ('items_failed', 'row_locked', 'database_timeout', 'records_refused'))
        )
      ) || image_sync.bucket_facts(p_settings.bucket_id) || image_sync.table_facts(p_settings.bucket_id) || image_sync.stray_facts(p_settings.bucket_id) || image_sync.reader_facts(p_settings),
      'schedule', image_sync.schedule_facts()
    )
  );
end;
$$;

comment on function image_sync.report_facts(image_sync.settings) is 'What the report and its findings are made of: the last measurement, the last runs, the schedule, and what is cheap to ask now.';

-- Nothing is healthy while more than one image in a hundred has no working URL, or more than one record in a hundred shows nothing: by
-- the counts, or to a reader, by a verify and not by the few of a probe.
create or replace function image_sync.shows_enough(p_facts jsonb)
returns boolean language plpgsql stable set search_path = '' as $$
declare
  v_measured constant jsonb := coalesce(p_facts -> 'measured', '{}');
  v_away constant bigint := coalesce((v_measured #>> '{moved_away,count}')::bigint, 0);
begin
  return coalesce((v_measured #>> '{coverage,signed}')::numeric, 1) >= 0.99
    and 100 * (
      coalesce((v_measured #>> '{difference,orphaned,count}')::bigint, 0)
      + coalesce((v_measured ->> 'unsigned_with_object')::bigint, 0)
      + coalesce((v_measured ->> 'expired_with_object')::bigint, 0)
      + v_away
    ) <= coalesce((v_measured #>> '{records,total}')::bigint, 0) + v_away
    and coalesce((
      select 100 * sum(u.files) <= (p_facts #>> '{verified,checked}')::bigint
      from image_sync.unseen(p_facts) u
    ), true);
end;
$$;

comment on function image_sync.shows_enough(jsonb) is
  'Whether, by a measurement and the newest verify, at least 99 % of the images have a working URL and at most 1 % of the records show nothing.';

-- The status report, as far as nobody holds what it looks at: its caller says how long that is waited for.
create or replace function image_sync.report_of(p_bucket text)
returns jsonb language plpgsql stable set search_path = '' as $$
declare
  v_settings image_sync.settings;
  v_facts jsonb;
  v_measured jsonb;
  v_since jsonb;
  v_findings jsonb;
begin
  select s.*
  into v_settings
  from image_sync.settings s
  where s.bucket_id = p_bucket;
  if v_settings.bucket_id is null then
    return image_sync.problem(
      404, 'unknown_bucket', 'The bucket has no settings',
      format('Cannot report on bucket %s: image_sync.settings has no row for it.', p_bucket)
    );
  end if;

  v_facts := image_sync.report_facts(v_settings);
  v_measured := coalesce(v_facts -> 'measured', '{}');
  v_since := image_sync.since_of(v_facts);
  select coalesce(jsonb_agg(to_jsonb(f) || jsonb_strip_nulls(jsonb_build_object('since', v_since -> f.code))), '[]')
  into v_findings
  from image_sync.findings(v_facts) as f;

  return jsonb_build_object('report', jsonb_build_object(
    'generated_at', now(),
    'versions', jsonb_build_object('schema', image_sync.schema_version(), 'function', (
      select p.function_version
      from image_sync.project p
    )),
    'measured_at', v_measured -> 'measured_at',
    -- As far as counts tell: findings have their levels in the function.
    'healthy', image_sync.shows_enough(v_facts),
    'bucket', jsonb_build_object('id', p_bucket) || coalesce(v_measured -> 'bucket', '{"objects": null, "images": null, "bytes": null, "by_extension": {}}'),
    'records', coalesce(v_measured -> 'records', '{"total": null, "signed": null, "unsigned": null, "expired": null, "soonest_expiry": null}'),
    'difference', coalesce(v_measured -> 'difference', '{"missing": {"count": null, "samples": []}, "orphaned": {"count": null, "samples": []}, "collided": {"count": null, "samples": []}, "moved": {"count": null, "samples": []}}'),
    'coverage', coalesce(v_measured -> 'coverage', '{"recorded": null, "signed": null}'),
    'probe', coalesce(nullif(v_measured -> 'probe', 'null'), '{"checked": 0, "ok": 0, "failures": []}'),
    'verified', nullif(v_facts -> 'verified', 'null') - 'is_older',
    'open_run', (
      select image_sync.run_document(r.id)
      from image_sync.runs r
      where r.bucket_id = p_bucket and r.finished_at is null
      order by r.started_at desc limit 1
    ),
    'next_run_at', case when v_settings.nightly then v_facts #> '{schedule,next_run_at}' end,
    'last_runs', jsonb_build_object(
      'sync', v_facts -> 'last_sync',
      'analyze', image_sync.last_run(p_bucket, array['analyze']),
      'verify', image_sync.last_run(p_bucket, array['verify']),
      'cleanup', image_sync.last_run(p_bucket, array['cleanup']),
      'restore', image_sync.last_run(p_bucket, array['restore'])
    ),
    'findings', v_findings
  ));
end;
$$;

comment on function image_sync.report_of(text) is 'The status report of a bucket, as {"report"} or {"problem"}.';

create or replace function public.image_sync_report(p_bucket text)
returns jsonb
language plpgsql
stable
set search_path = ''
-- Whatever somebody holds: the report says what it can see.
set lock_timeout = '1s'
as $$
begin
  return image_sync.report_of(p_bucket);
end;
$$;

comment on function public.image_sync_report(text) is
  'The status report of a bucket: what the last run measured, the last run of each mode, the open run, the next one, and the findings, by their codes: the function has their words. Problem: unknown_bucket (404). Never contains a signed URL or a key.';

-- lists

-- Lists for the operator: the buckets that are kept in step, and the history of runs. Pages by keyset, each bounded.

-- Every bucket with settings, with its verdict.
-- Returns {"buckets": [{"bucket_id", "exists", "nightly", "healthy", "findings", "images", "coverage", "last_sync_at",
-- "last_sync_state", "open_run"}], "next": the p_after of the next page or null}.
create or replace function public.image_sync_buckets(p_after text default '', p_limit integer default 50)
returns jsonb language plpgsql stable set search_path = '' set lock_timeout = '1s' as $$
declare
  v_limit constant integer := least(greatest(coalesce(p_limit, 50), 1), 100);
begin
  return (
    select image_sync.page('buckets', coalesce(jsonb_agg(jsonb_build_object(
      'bucket_id', s.bucket_id,
      'exists', (r.facts #>> '{bucket_exists}')::boolean,
      'nightly', s.nightly,
      'healthy', r.report -> 'healthy',
      'findings', (
        select coalesce(jsonb_agg(f.finding || '{"samples": []}'), '[]')
        from jsonb_array_elements(r.report -> 'findings') as f (finding)
      ),
      'images', r.report #> '{bucket,images}',
      'coverage', r.report #> '{coverage,signed}',
      'last_sync_at', r.report #> '{last_runs,sync,finished_at}',
      'last_sync_state', r.report #> '{last_runs,sync,state}',
      'open_run', r.report #> '{open_run,id}'
    ) order by s.bucket_id collate "C"), '[]'), 'bucket_id', v_limit)
    from (
      select q.bucket_id, q.nightly
      from image_sync.settings q
      where q.bucket_id collate "C" > coalesce(p_after, '')
      order by q.bucket_id collate "C" limit v_limit
    ) as s
    cross join lateral (
      select image_sync.report_of(s.bucket_id) -> 'report' as report, image_sync.bucket_facts(s.bucket_id) as facts
      -- One report for each, not one for each of the columns above.
      offset 0
    ) as r
  );
end;
$$;

comment on function public.image_sync_buckets(text, integer) is 'A page of the buckets that have settings, in byte order behind p_after, 1 to 100 of them, each with its verdict.';

-- Gives a bucket settings, the defaults: the next night keeps it in step. Its files and records stay as they are.
create or replace function public.image_sync_add_bucket(p_bucket text)
returns jsonb language plpgsql set search_path = '' as $$
begin
  if not exists (select from storage.buckets b where b.id = p_bucket) then
    return image_sync.problem(
      409, 'bucket_missing', 'The bucket does not exist',
      format('Cannot keep bucket %s in step: storage.buckets has no such id. Create it under Storage first.', p_bucket));
  end if;
  insert into image_sync.settings (bucket_id) values (p_bucket) on conflict do nothing;
  return jsonb_build_object('bucket', jsonb_build_object('bucket_id', p_bucket, 'changed', found));
end;
$$;

comment on function public.image_sync_add_bucket(text) is 'Gives a bucket the default settings, so that it is kept in step. Returns {"bucket": {"bucket_id", "changed": false where it had some}}. Problem: bucket_missing (409).';

-- Takes a bucket's settings away: no run looks at it any more. Its files, records and history stay.
create or replace function public.image_sync_remove_bucket(p_bucket text)
returns jsonb language plpgsql set search_path = '' set lock_timeout = '2s' as $$
declare
  v_open uuid;
begin
  perform pg_advisory_xact_lock(hashtextextended('image_sync.start ' || p_bucket, 0));
  select r.id into v_open from image_sync.runs r where r.bucket_id = p_bucket and r.finished_at is null limit 1;
  if v_open is not null then
    return image_sync.problem(
      409, 'conflicting_run', 'A run of the bucket is open',
      format('Cannot remove bucket %s: run %s is open. Wait for its end, or cancel it with DELETE ?run=%2$s.', p_bucket, v_open),
      jsonb_build_object('open_run', v_open));
  end if;
  delete from image_sync.settings s where s.bucket_id = p_bucket;
  return coalesce(
    case when not found then image_sync.unknown_bucket(p_bucket, 'remove bucket %s') end,
    jsonb_build_object('bucket', jsonb_build_object('bucket_id', p_bucket, 'changed', true)));
end;
$$;

comment on function public.image_sync_remove_bucket(text) is 'Takes a bucket''s settings away, so that no run looks at it any more; files, records and history stay. Problems: unknown_bucket (404), conflicting_run (409).';

-- The history of runs, newest first.
--   p_bucket, p_mode, p_state  only those, null: all; p_state as a run document says it: open, succeeded, partial, failed, cancelled
--   p_after                    the last run of the page before
-- Returns {"runs": [document], "next": the p_after of the next page or null}.
create or replace function public.image_sync_runs(
  p_bucket text default null, p_mode text default null, p_state text default null, p_after uuid default null, p_limit integer default 20
)
returns jsonb language plpgsql stable set search_path = '' as $$
declare
  v_limit constant integer := least(greatest(coalesce(p_limit, 20), 1), 100);
begin
  if p_after is not null and not exists (select from image_sync.runs r where r.id = p_after) then
    return image_sync.unknown_run(p_after);
  end if;
  return (
    select image_sync.page('runs', coalesce(jsonb_agg(image_sync.run_document(q.id) order by q.started_at desc, q.id desc), '[]'), 'id', v_limit)
    from (
      select r.id, r.started_at
      from image_sync.runs r
      where (p_bucket is null or r.bucket_id = p_bucket)
        and (p_mode is null or r.mode = p_mode)
        and (p_state is null or coalesce(r.outcome, 'open') = p_state)
        and (p_after is null or (r.started_at, r.id) < (select a.started_at, a.id from image_sync.runs a where a.id = p_after))
      order by r.started_at desc, r.id desc limit v_limit
    ) as q
  );
end;
$$;

comment on function public.image_sync_runs(text, text, text, uuid, integer) is 'A page of the history of runs, newest first, 1 to 100 of them. Problem: unknown_run (404) for a p_after that housekeeping pruned.';

-- records

-- Files and records as a person looks through them: a page at a time, by name, in one state. Every page costs the same wherever it
-- begins and however rare what is looked for: it reads a bounded number of names, and where nothing was found it says where to go on.

-- The files and records of the keys from p_from to p_to, both included, that are in a state.
--   items     at most p_limit of them
--   last_key  how far was read; null: to the end
create or replace function image_sync.list_range(
  p_settings image_sync.settings, p_state text, p_from text, p_to text, p_size integer, p_limit integer, p_urls boolean,
  out items jsonb, out last_key text
)
language plpgsql stable set search_path = '' as $$
declare
  v_url_base constant text := image_sync.url_base(p_settings);
  v_renew_at constant timestamptz := now() + p_settings.renew_before;
  v_end constant text := image_sync.range_end(p_settings.bucket_id, p_from, p_size);
  v_is_end constant boolean := coalesce(v_end collate "C" >= p_to, true);
begin
  select
    coalesce(jsonb_agg(jsonb_strip_nulls(jsonb_build_object(
      'file_name', f.name,
      'part_number', f.part_number,
      'state', case when f.state = 'moved_away' then 'moved' else f.state end,
      'bytes', f.bytes,
      'usable_until', f.usable_until,
      'url', case when p_urls and f.usable_until is not null then f.signed_url end
    )) order by f.name collate "C"), '[]'),
    case when count(*) = p_limit then max(f.name collate "C") when not v_is_end then v_end end
  into items, last_key
  from (
    select c.*
    from image_sync.compare_range(p_settings.bucket_id, p_from, case when v_is_end then p_to else v_end end, v_renew_at, v_url_base, p_settings.extensions, p_settings.exclude) as c
    where p_state in ('all', c.state)
    order by c.name collate "C" limit p_limit
  ) as f;
end;
$$;

comment on function image_sync.list_range(image_sync.settings, text, text, text, integer, integer, boolean) is
  'At most p_limit files and records of a range of keys that are in a state, of p_size read from either side: items as image_sync_records returns them, and how far was read (null: to the end).';

-- The same of certain names.
create or replace function image_sync.list_names(p_settings image_sync.settings, p_state text, p_names text[], p_urls boolean)
returns jsonb language plpgsql stable set search_path = '' as $$
begin
  return (
    select coalesce(jsonb_agg(item.value order by n.place), '[]')
    from unnest(p_names) with ordinality as n (name, place)
    cross join lateral image_sync.list_range(p_settings, p_state, n.name, n.name, 1, 1, p_urls) as listed
    cross join lateral jsonb_array_elements(listed.items) as item
  );
end;
$$;

comment on function image_sync.list_names(image_sync.settings, text, text[], boolean) is 'What image_sync_records says of these names, in their order; without those that are in another state.';

-- Where to look for what is in a state: the chunks of the newest run that passed the bucket say in which ranges it was. Null where
-- the bucket is so small that all of it is looked at, or where no chunk is left.
create or replace function image_sync.guide_of(p_bucket_id text)
returns image_sync.runs language plpgsql stable set search_path = '' as $$
declare
  v_run image_sync.runs;
begin
  select r.*
  into v_run
  from image_sync.runs r
  where r.bucket_id = p_bucket_id
    and r.mode in ('sync', 'analyze', 'verify')
    and r.outcome in ('succeeded', 'partial')
    and exists (select from image_sync.chunks c where c.run_id = r.id)
  order by r.finished_at desc limit 1;
  if (v_run.summary #>> '{totals,listed}')::bigint + (v_run.summary #>> '{totals,orphaned}')::bigint <= 5000 then
    return null;
  end if;
  return v_run;
end;
$$;

comment on function image_sync.guide_of(text) is 'The newest run whose chunks say in which ranges of a large bucket something is to be found; null where all of it can be looked at.';

-- Ranges behind a key that hold something in a state, as a run's chunks noted it.
create or replace function image_sync.ranges_of(p_run image_sync.runs, p_settings image_sync.settings, p_state text, p_after text, p_limit integer)
returns table (from_key text, low text, to_key text) language plpgsql stable set search_path = '' as $$
begin
  return query
  select c.from_key, n.low, n.high
  from image_sync.chunks c
  -- Of few, all are named.
  cross join lateral (
    select case p_state
      when 'missing' then c.facts -> 'missing'
      when 'orphaned' then c.facts -> 'orphaned'
      when 'excluded' then c.facts -> 'excluded'
      when 'empty' then c.facts -> 'empty_files'
      when 'other' then c.facts -> 'other_extensions'
    end as names
  ) as s
  cross join lateral (
    select m.name, m.name
    from jsonb_array_elements_text(s.names) as m (name)
    where jsonb_array_length(s.names) < 20 and m.name collate "C" > p_after
    union all
    select '', coalesce(c.to_key, image_sync.last_key())
    where coalesce(jsonb_array_length(s.names) >= 20, true)
  ) as n (low, high)
  where c.run_id = p_run.id
    and c.from_key is not null
    and coalesce(c.to_key collate "C" > p_after, true)
    and case p_state
      when 'missing' then c.ledger ?| '{missing,collided,vanished,unmoved}'
      when 'unsigned' then image_sync.count_of(c.ledger, 'records') > image_sync.count_of(c.ledger, 'records_signed')
      when 'expired' then c.ledger ? 'records_expired' or (c.facts ->> 'soonest_expiry')::timestamptz <= now()
      when 'expiring' then (c.facts ->> 'soonest_expiry')::timestamptz < now() + p_settings.renew_before
      when 'orphaned' then c.ledger ? 'orphaned'
      when 'excluded' then c.ledger ? 'excluded'
      when 'empty' then c.ledger ? 'empty_files'
      when 'other' then image_sync.count_of(c.ledger, 'not_images') > image_sync.count_of(c.ledger, 'excluded') + image_sync.count_of(c.ledger, 'empty_files')
      when 'several' then c.ledger ? 'several_files'
      else true
    end
  order by c.from_key collate "C", n.low collate "C" limit p_limit;
end;
$$;

comment on function image_sync.ranges_of(image_sync.runs, image_sync.settings, text, text, integer) is 'The ranges behind a key in which the run found something in this state, from low on.';

-- A page of what is in a state. For 25 ms at most: what was read by then is the page, and the next one goes on behind it.
create or replace function image_sync.list_state(
  p_settings image_sync.settings, p_state text, p_search text, p_after text, p_limit integer, p_urls boolean,
  out items jsonb, out next text, out as_of timestamptz
)
language plpgsql stable set search_path = '' as $$
declare
  v_until constant timestamptz := clock_timestamp() + interval '25 milliseconds';
  v_guide constant image_sync.runs := case when p_state <> 'all' and p_search = '' then image_sync.guide_of(p_settings.bucket_id) end;
  v_size constant integer := case when p_state = 'all' then p_limit else 1000 end;
  v_from text;
  v_cursor text := p_after;
  v_range record;
  v_listed record;
begin
  items := '[]';
  as_of := v_guide.finished_at;
  for v_range in
    select r.from_key, r.low, r.to_key
    from image_sync.ranges_of(v_guide, p_settings, p_state, p_after, 20) r
    where v_guide.id is not null
    union all
    select p_after, p_search, p_search || image_sync.last_key()
    where v_guide.id is null
  loop
    v_cursor := greatest(v_cursor collate "C", v_range.from_key);
    loop
      -- As a variable: an argument in byte order would hand on that order to the bucket's id, and no index has that.
      v_from := greatest(image_sync.behind(v_cursor) collate "C", v_range.low);
      v_listed := image_sync.list_range(
        p_settings, p_state, v_from, v_range.to_key,
        v_size, p_limit - jsonb_array_length(items), p_urls
      );
      items := items || v_listed.items;
      v_cursor := coalesce(v_listed.last_key, v_range.to_key);
      next := v_cursor;
      if jsonb_array_length(items) = p_limit or clock_timestamp() > v_until then
        next := case when v_listed.last_key is null and (v_guide.id is null or v_range.to_key = image_sync.last_key()) then null else v_cursor end;
        return;
      end if;
      exit when v_listed.last_key is null;
    end loop;
  end loop;
  -- Ranges that were not looked at lie behind the last of twenty.
  if v_guide.id is null or not exists (
    select
    from image_sync.ranges_of(v_guide, p_settings, p_state, v_cursor, 1) r
    where greatest(r.from_key collate "C", r.low) >= v_cursor
  ) then
    next := null;
  end if;
end;
$$;

comment on function image_sync.list_state(image_sync.settings, text, text, text, integer, boolean) is
  'A page of image_sync_records: the items, where the next page begins (null: nowhere), and when the run that said where to look was finished.';

-- Files of a look-up key, with the pictures beside them that are left out by their extension; null where that is one file. A bounded
-- number of each.
create or replace function image_sync.files_of_twins(p_bucket_id text, p_key text)
returns text[] language plpgsql stable set search_path = '' as $$
begin
  return (
    with files as (
      select u.name
      from image_sync.files_of_key(p_bucket_id, p_key) u
    )
    select case when count(*) > 1 then (array_agg(f.name order by f.name collate "C"))[1:20] end
    from (
      select files.name
      from files
      union
      select b.name
      from files
      cross join lateral image_sync.files_beside(p_bucket_id, image_sync.stem_of(files.name)) as b
    ) as f
  );
end;
$$;

comment on function image_sync.files_of_twins(text, text) is 'Up to 20 files that whoever looks up this key may mean: those of its records and the pictures beside them; null where there is one.';

-- Files whose part number others have as well, by part number: p_after is a look-up key.
create or replace function image_sync.list_twins(
  p_settings image_sync.settings, p_guide image_sync.runs, p_until timestamptz, p_after text, p_limit integer, p_urls boolean,
  out items jsonb, out next text
)
language plpgsql stable set search_path = '' as $$
declare
  v_page constant integer := 2000;
  v_cursor text := p_after;
  v_keys text[];
  v_found record;
  v_key text;
begin
  items := '[]';
  if p_guide.twins = 0 then
    return;
  end if;
  if v_cursor = '' then
    -- Just before the first that the run found.
    v_cursor := coalesce(left(p_guide.twin_keys[1], -1), p_settings.bucket_id || '/');
  end if;
  loop
    select
      count(*) = v_page as is_full,
      max(k.key collate "C") as last_key,
      max(k.before collate "C") filter (where k.before <> k.key) as key_before,
      array_agg(distinct k.key collate "C") filter (where k.before = k.key) as twins
    into v_found
    from (
      select page.key, lag(page.key) over (order by page.key collate "C") as before
      from (
        select r.look_up_key as key
        from image_sync.records r
        where r.look_up_key collate "C" > v_cursor and r.look_up_key collate "C" < p_settings.bucket_id || '0'
        order by r.look_up_key collate "C" limit v_page
      ) as page
    ) as k;
    v_keys := array(
      select t.key
      from unnest(v_found.twins) as t (key)
      order by t.key collate "C"
    );
    foreach v_key in array v_keys loop
      v_cursor := v_key;
      items := items || image_sync.list_names(p_settings, 'all', image_sync.files_of_twins(p_settings.bucket_id, v_key), p_urls);
      if jsonb_array_length(items) >= p_limit or clock_timestamp() > p_until then
        next := v_cursor;
        return;
      end if;
    end loop;
    exit when not v_found.is_full;
    v_cursor := case when v_found.last_key <> all (v_keys) then v_found.key_before else v_found.last_key end;
    if clock_timestamp() > p_until then
      next := v_cursor;
      return;
    end if;
  end loop;
end;
$$;

comment on function image_sync.list_twins(image_sync.settings, image_sync.runs, timestamptz, text, integer, boolean) is
  'A page of the files whose part number other records have as well, as a look-up in a spreadsheet compares it, and of the pictures beside them; next is a look-up key.';

-- The image of which a picture that is left out by its extension is another file, with all such pictures beside it; null where there
-- is none, where list_twins has them, and for all of the pictures but the first, which stands for them.
create or replace function image_sync.files_with(p_settings image_sync.settings, p_picture text)
returns text[] language plpgsql stable set search_path = '' as $$
declare
  v_beside record;
begin
  select
    array_agg(b.name order by b.name collate "C") as names,
    min(b.name collate "C") filter (where b.extension <> all (p_settings.extensions)) as picture,
    min(b.name collate "C") filter (where b.extension = any (p_settings.extensions)) as image
  into v_beside
  from image_sync.files_beside(p_settings.bucket_id, image_sync.stem_of(p_picture)) b;
  if v_beside.image is null or v_beside.picture <> p_picture or exists (
    select
    from image_sync.records r
    where r.bucket_id = p_settings.bucket_id
      and r.file_name collate "C" = v_beside.image
      and (
        select count(*)
        from image_sync.files_of_key(p_settings.bucket_id, r.look_up_key)
      ) > 1
  ) then
    return null;
  end if;
  return v_beside.names[1:20];
end;
$$;

comment on function image_sync.files_with(image_sync.settings, text) is
  'An image and the pictures of its name that are left out by their extension, by the first of those; null where there is no such image, or records tell of it.';

-- Images beside which there is a picture that is left out by its extension: no record knows it. By name; p_after is the name of a
-- file. Of a large bucket the chunks say where there are such.
create or replace function image_sync.list_beside(
  p_settings image_sync.settings, p_guide image_sync.runs, p_until timestamptz, p_after text, p_limit integer, p_urls boolean,
  out items jsonb, out next text
)
language plpgsql stable set search_path = '' as $$
declare
  v_page constant integer := 1000;
  v_ranges constant integer := 20;
  v_seen integer := 0;
  v_cursor text := p_after;
  v_range record;
  v_read record;
  v_picture text;
begin
  items := '[]';
  for v_range in
    select r.from_key, r.to_key
    from image_sync.ranges_of(p_guide, p_settings, 'several', p_after, v_ranges) r
    where p_guide.id is not null
    union all
    select p_after, null
    where p_guide.id is null
  loop
    v_seen := v_seen + 1;
    v_cursor := greatest(v_cursor collate "C", v_range.from_key);
    loop
      select
        count(*) = v_page as is_full,
        max(n.name collate "C") as last_key,
        array_agg(n.name order by n.name collate "C") filter (
          where n.extension = any ('{jpg,jpeg,png,gif,webp,avif,bmp,tif,tiff,heic}')
            and n.extension <> all (p_settings.extensions)
            and not n.name like any (p_settings.exclude)
        ) as pictures
      into v_read
      from (
        select o.name, o.extension
        from image_sync.objects o
        where o.bucket_id = p_settings.bucket_id
          and o.name collate "C" > v_cursor
          and o.name collate "C" <= coalesce(v_range.to_key, image_sync.last_key())
        order by o.name collate "C" limit v_page
      ) as n;
      foreach v_picture in array coalesce(v_read.pictures, '{}') loop
        v_cursor := v_picture;
        items := items || image_sync.list_names(p_settings, 'all', image_sync.files_with(p_settings, v_picture), p_urls);
        if jsonb_array_length(items) >= p_limit or clock_timestamp() > p_until then
          next := v_cursor;
          return;
        end if;
      end loop;
      exit when not v_read.is_full;
      v_cursor := v_read.last_key;
      if clock_timestamp() > p_until then
        next := v_cursor;
        return;
      end if;
    end loop;
    v_cursor := coalesce(v_range.to_key, v_cursor);
  end loop;
  -- There may be more behind the last of twenty.
  next := case when v_seen = v_ranges then v_cursor end;
end;
$$;

comment on function image_sync.list_beside(image_sync.settings, image_sync.runs, timestamptz, text, integer, boolean) is
  'A page of the images beside which a picture of the same name is left out by its extension, each with those; next is the name of a file.';

-- Files of which a look-up finds one of several: first those that records tell of, then those that only names do. For 25 ms at most.
-- p_after is a look-up key, or, where it begins with a slash, behind that the name of a file: no look-up key begins so.
create or replace function image_sync.list_several(
  p_settings image_sync.settings, p_after text, p_limit integer, p_urls boolean,
  out items jsonb, out next text, out as_of timestamptz
)
language plpgsql stable set search_path = '' as $$
declare
  v_until constant timestamptz := clock_timestamp() + interval '25 milliseconds';
  v_guide constant image_sync.runs := image_sync.guide_of(p_settings.bucket_id);
  v_page record;
begin
  items := '[]';
  as_of := v_guide.finished_at;
  if not starts_with(p_after, '/') then
    v_page := image_sync.list_twins(p_settings, v_guide, v_until, p_after, p_limit, p_urls);
    items := v_page.items;
    next := v_page.next;
    if next is not null then
      return;
    end if;
  end if;
  v_page := image_sync.list_beside(
    p_settings, v_guide, v_until, case when starts_with(p_after, '/') then substr(p_after, 2) else '' end,
    greatest(p_limit - jsonb_array_length(items), 1), p_urls
  );
  items := items || v_page.items;
  next := '/' || v_page.next;
end;
$$;

comment on function image_sync.list_several(image_sync.settings, text, integer, boolean) is
  'A page of the files whose part number other files have as well: by their records, as a look-up in a spreadsheet compares it, and then by their names beside pictures that are left out.';

-- Files that the newest verify saw no image of.
create or replace function image_sync.list_broken(
  p_settings image_sync.settings, p_after text, p_limit integer, p_urls boolean,
  out items jsonb, out next text, out as_of timestamptz
)
language plpgsql stable set search_path = '' as $$
declare
  v_run image_sync.runs;
begin
  select r.*
  into v_run
  from image_sync.runs r
  where r.bucket_id = p_settings.bucket_id and r.mode = 'verify' and r.finished_at is not null
  order by r.started_at desc limit 1;
  as_of := v_run.finished_at;
  with ranges as (
    select c.problems
    from image_sync.chunks c
    where c.run_id = v_run.id and c.ledger ? 'broken' and coalesce(c.to_key collate "C" > p_after, true)
    order by c.from_key collate "C" limit p_limit + 1
  ), named as (
    select p.problem ->> 'name' as name, p.problem ->> 'code' as code, p.problem ->> 'detail' as detail
    from ranges
    cross join lateral jsonb_array_elements(ranges.problems) as p (problem)
    where p.problem ->> 'code' = any ('{file_lost,file_gone,not_an_image,wrong_content_type,url_rejected,unreachable}')
      and (p.problem ->> 'name') collate "C" > p_after
    order by (p.problem ->> 'name') collate "C" limit p_limit
  )
  select
    coalesce(jsonb_agg(item.value || jsonb_strip_nulls(jsonb_build_object('code', n.code, 'detail', n.detail)) order by n.name collate "C"), '[]'),
    case when count(*) = p_limit then max(n.name collate "C") end
  into items, next
  from named n
  cross join lateral jsonb_array_elements(image_sync.list_names(p_settings, 'all', array[n.name], p_urls)) as item;
end;
$$;

comment on function image_sync.list_broken(image_sync.settings, text, integer, boolean) is
  'A page of the files whose URL showed the newest verify no image, each with code and detail.';

-- Files and records of a bucket by name.
--   p_state   all, or one of missing, unsigned, expired, expiring, orphaned, excluded, other, empty, working; several: part numbers
--             that several files have; broken: what the newest verify saw no image of
--   p_search  only names that begin so, and records whose part number does, in any case
--   p_after   the next of the page before
--   p_urls    with the URLs that work: secrets, for a page that shows the pictures
-- Returns {"records": [{"file_name", "part_number", "state", "bytes", "usable_until", "url", "code", "detail"}], "next", "as_of",
-- "url_base"}. A page may be short, or empty, although there is a next one: it says how far was looked.
create or replace function public.image_sync_records(
  p_bucket text,
  p_state text default 'all',
  p_search text default '',
  p_after text default '',
  p_limit integer default 50,
  p_urls boolean default false
)
returns jsonb
language plpgsql
stable
set search_path = ''
set lock_timeout = '1s'
-- As image_sync_advance reads a range, and for the same reason.
set enable_seqscan = 'off'
set enable_bitmapscan = 'off'
set enable_sort = 'off'
set enable_hashjoin = 'off'
as $$
declare
  v_limit constant integer := least(greatest(coalesce(p_limit, 50), 1), 100);
  v_settings image_sync.settings;
  v_page record;
  v_items jsonb;
  v_names text[];
begin
  select s.*
  into v_settings
  from image_sync.settings s
  where s.bucket_id = p_bucket;
  if v_settings.bucket_id is null then
    return image_sync.problem(
      404, 'unknown_bucket', 'The bucket has no settings',
      format('Cannot list the records of bucket %s: image_sync.settings has no row for it.', p_bucket)
    );
  end if;
  if p_state = 'several' then
    v_page := image_sync.list_several(v_settings, p_after, v_limit, p_urls);
  elsif p_state = 'broken' then
    v_page := image_sync.list_broken(v_settings, p_after, v_limit, p_urls);
  else
    v_page := image_sync.list_state(v_settings, p_state, p_search, p_after, v_limit, p_urls);
  end if;
  v_items := v_page.items;
  if p_search <> '' and p_after = '' and p_state not in ('several', 'broken') then
    -- Part numbers that begin so under names that do not: in a folder, or changed by hand. They stand at the end of the first page.
    v_names := array(
      select k.file_name
      from (
        select r.file_name
        from image_sync.records r
        where r.look_up_key collate "C" >= p_bucket || '/' || lower(p_search)
          and r.look_up_key collate "C" < p_bucket || '/' || lower(p_search) || U&'\+10FFFF'
        order by r.look_up_key collate "C" limit 1000
      ) as k
      where not starts_with(k.file_name, p_search)
      limit v_limit
    );
    v_items := v_items || image_sync.list_names(v_settings, p_state, v_names, p_urls);
  end if;
  return jsonb_build_object(
    'records', v_items,
    'next', v_page.next,
    'as_of', v_page.as_of,
    'url_base', case when p_urls then image_sync.url_base(v_settings) end
  );
end;
$$;

comment on function public.image_sync_records(text, text, text, text, integer, boolean) is
  'A page of a bucket''s files and records by state and search, in byte order, 1 to 100 of them; URLs only where they are asked for. Problem: unknown_bucket (404).';

-- history

-- What runs measured, by day: when URLs die, how the nights went, how the bucket grew. Read from what runs kept, never by scanning.

-- URLs by the day (GMT) on which they die, as the newest measurement has it.
-- Returns {"expiry": {"measured_at", "renew_before_seconds", "next_run_at", "unsigned", "expired", "days": [{"day", "urls"}]}}.
create or replace function public.image_sync_expiry(p_bucket text)
returns jsonb language sql stable set search_path = '' as $$
  select coalesce(image_sync.unknown_bucket(p_bucket, 'tell when the URLs of bucket %s die'), (
    select jsonb_build_object('expiry', jsonb_build_object(
      'measured_at', m.report -> 'measured_at',
      'renew_before_seconds', extract(epoch from s.renew_before)::bigint,
      'next_run_at', case when s.nightly then image_sync.schedule_facts() -> 'next_run_at' end,
      'unsigned', m.report #> '{records,unsigned}',
      'expired', m.report #> '{records,expired}',
      'days', (
        select coalesce(jsonb_agg(jsonb_build_object('day', e.day, 'urls', e.urls::bigint) order by e.day), '[]')
        from jsonb_each_text(coalesce(m.report -> 'expiry', '{}')) as e (day, urls)
      )
    ))
    from image_sync.settings s
    left join lateral (
      select r.report
      from image_sync.runs r
      where r.bucket_id = p_bucket and r.mode in ('sync', 'analyze', 'verify') and r.report ? 'expiry'
      order by r.finished_at desc limit 1
    ) as m on true
    where s.bucket_id = p_bucket
  ))
$$;

comment on function public.image_sync_expiry(text) is 'How many URLs die on which day (GMT), as the chunks of the newest run noted it. Problem: unknown_bucket (404).';

-- The days of a bucket's history on which something ran, oldest first, days (GMT) up to p_days back.
-- Returns {"history": {"from", "to", "days": [{"day", "runs": {outcome: number}, "night", "seconds", "inserted", "signed", "failed",
-- "removed", "objects", "bytes", "images", "records"}]}}: night is how the day's last scheduled sync ended, the sizes are those of its
-- last measurement.
create or replace function public.image_sync_history(p_bucket text, p_days integer default 90)
returns jsonb language plpgsql stable set search_path = '' as $$
declare
  v_to constant date := (now() at time zone 'UTC')::date;
  v_from constant date := v_to - (least(greatest(coalesce(p_days, 90), 1), 366) - 1);
begin
  return coalesce(image_sync.unknown_bucket(p_bucket, 'show the history of bucket %s'), (
    with runs as (
      select r.id, r.mode, r.trigger, r.outcome, r.started_at, r.finished_at, r.report is not null as has_report, (r.started_at at time zone 'UTC')::date as day
      from image_sync.runs r
      where r.bucket_id = p_bucket
        and r.mode = any ('{sync,analyze,verify,cleanup,restore}')
        and r.started_at >= v_from::timestamp at time zone 'UTC'
        and r.finished_at is not null
      -- The newest, should somebody start one every minute.
      order by r.started_at desc limit 3000
    ), counted as (
      select q.day, jsonb_object_agg(q.outcome, q.number) as runs
      from (select r.day, r.outcome, count(*) as number from runs r group by r.day, r.outcome) as q
      group by q.day
    ), syncs as (
      select distinct on (r.day) r.* from runs r where r.mode = 'sync' order by r.day, (r.trigger = 'schedule') desc, r.started_at desc
    ), measured as (
      select distinct on (r.day) r.* from runs r where r.has_report and r.mode in ('sync', 'analyze') order by r.day, r.finished_at desc
    )
    select jsonb_build_object('history', jsonb_build_object('from', v_from, 'to', v_to, 'days', coalesce(jsonb_agg(jsonb_strip_nulls(jsonb_build_object(
      'day', c.day,
      'runs', c.runs,
      'night', case when s.trigger = 'schedule' then s.outcome end,
      'sync', s.outcome,
      'seconds', round(extract(epoch from s.finished_at - s.started_at), 1),
      'inserted', w.summary #> '{totals,inserted}',
      'signed', w.summary #> '{totals,signed}',
      'failed', w.summary #> '{totals,failed}',
      'objects', g.report #> '{bucket,objects}',
      'images', g.report #> '{bucket,images}',
      'bytes', g.report #> '{bucket,bytes}',
      'records', g.report #> '{records,total}'
    )) order by c.day), '[]')))
    from counted c
    left join syncs s on s.day = c.day
    left join image_sync.runs w on w.id = s.id
    left join measured m on m.day = c.day
    left join image_sync.runs g on g.id = m.id
  ));
end;
$$;

comment on function public.image_sync_history(text, integer) is 'The days (GMT) on which runs of a bucket ended, how they went and what they measured, up to 366 days back. Problem: unknown_bucket (404).';

-- settings form

-- The settings of a bucket as a form: every field with its value, what it means and what is allowed. Meaning and bounds are the
-- comments of the column and of its check, so that a refusal is said in the same words wherever somebody meets it.
comment on constraint settings_bucket_id_check on image_sync.settings is 'Not empty, without control characters.';
comment on constraint settings_extensions_check on image_sync.settings is 'At least one extension, in lower case, without dots, slashes and control characters.';
comment on constraint settings_exclude_check on image_sync.settings is 'Patterns of LIKE, none of them empty, without control characters.';
comment on constraint settings_signed_url_ttl_check on image_sync.settings is 'From 1 minute to 365 days.';
comment on constraint settings_renew_before_check on image_sync.settings is 'Not negative, and less than a URL lives: else it would be made anew every night.';
comment on constraint settings_chunk_size_check on image_sync.settings is 'From 1 to 1,000.';
comment on constraint settings_lease_duration_check on image_sync.settings is 'From 1 second to 10 minutes.';
comment on constraint settings_max_attempts_check on image_sync.settings is 'From 1 to 100.';
comment on constraint settings_retry_delay_check on image_sync.settings is 'Up to 1 hour.';
comment on constraint settings_max_delete_fraction_check on image_sync.settings is 'From 0 to 1: 0.1 is a tenth.';
comment on constraint settings_max_delete_count_check on image_sync.settings is '0 or more.';
comment on constraint settings_probe_size_check on image_sync.settings is 'From 0 to 100.';
comment on constraint settings_verify_rate_check on image_sync.settings is 'From 1 to 10,000.';
comment on constraint settings_public_url_check on image_sync.settings is 'Scheme and host without a path, such as https://files.example.com or http://192.0.2.1:8000.';
comment on constraint settings_keep_chunks_check on image_sync.settings is 'From 2 days to 100 years.';
comment on constraint settings_keep_runs_check on image_sync.settings is 'Not shorter than chunks are kept, up to 100 years.';

-- Returns {"settings": {"bucket_id", "fields": [{"name", "type", "value", "default", "meaning", "bounds"}]}}.
-- 7 days is 7 days, whatever the session thinks of intervals.
create or replace function public.image_sync_settings(p_bucket text)
returns jsonb language sql stable set search_path = '' set intervalstyle = 'postgres' as $$
  select coalesce(image_sync.unknown_bucket(p_bucket, 'show the settings of bucket %s'), (
    select jsonb_build_object('settings', jsonb_build_object('bucket_id', p_bucket, 'fields', jsonb_agg(jsonb_build_object(
      'name', a.attname,
      'type', format_type(a.atttypid, a.atttypmod),
      'value', to_jsonb(s) -> a.attname,
      'default', (regexp_match(pg_get_expr(d.adbin, d.adrelid), '^''?(.*?)''?(::[a-z\[\] ]+)?$'))[1],
      'meaning', col_description(a.attrelid, a.attnum),
      'bounds', obj_description(c.oid, 'pg_constraint')
    ) order by a.attnum)))
    from image_sync.settings s
    join pg_catalog.pg_attribute a on a.attrelid = 'image_sync.settings'::regclass and a.attnum > 0 and not a.attisdropped and a.attname <> 'bucket_id'
    left join pg_catalog.pg_attrdef d on (d.adrelid, d.adnum) = (a.attrelid, a.attnum)
    left join pg_catalog.pg_constraint c on (c.conrelid, c.conname) = (a.attrelid, format('settings_%s_check', a.attname)::name)
    where s.bucket_id = p_bucket
  ))
$$;

comment on function public.image_sync_settings(text) is 'The settings of a bucket, each with its type, value, default, meaning and bounds. Problem: unknown_bucket (404).';

-- Changes settings: all of p_changes {name: value}, or nothing. Returns what image_sync_settings returns.
create or replace function public.image_sync_change_settings(p_bucket text, p_changes jsonb)
returns jsonb language plpgsql set search_path = '' set lock_timeout = '2s' as $$
declare
  v_settings image_sync.settings;
  v_field text;
  v_type text;
  v_refusal text;
begin
  select s.* into v_settings from image_sync.settings s where s.bucket_id = p_bucket for update;
  if not found then
    return image_sync.unknown_bucket(p_bucket, 'change the settings of bucket %s');
  end if;
  for v_field, v_type in
    select k.key, format_type(a.atttypid, a.atttypmod)
    from jsonb_object_keys(p_changes) as k (key)
    left join pg_catalog.pg_attribute a
      on (a.attrelid, a.attname) = ('image_sync.settings'::regclass, k.key) and a.attname <> 'bucket_id' and a.attnum > 0 and not a.attisdropped
    order by k.key
  loop
    begin
      v_settings := jsonb_populate_record(v_settings, jsonb_build_object(v_field, p_changes -> v_field));
    exception
      when data_exception then
        v_refusal := format('Not a value of the type %s.', v_type);
    end;
    v_refusal := case when v_type is null then 'There is no such setting.' else v_refusal end;
    exit when v_refusal is not null;
  end loop;
  if v_refusal is null and p_changes <> '{}' then
    begin
      -- Those that are given, which are columns of the table: whatever a later version adds is among them.
      execute (
        select format('update image_sync.settings s set %s where s.bucket_id = $2', string_agg(format('%1$I = ($1).%1$I', k.key), ', '))
        from jsonb_object_keys(p_changes) as k (key)
      ) using v_settings, p_bucket;
    exception
      when check_violation then
        get stacked diagnostics v_field = constraint_name;
        v_refusal := coalesce(
          (select obj_description(c.oid, 'pg_constraint') from pg_catalog.pg_constraint c where c.conrelid = 'image_sync.settings'::regclass and c.conname = v_field),
          'The check ' || v_field || ' says no.');
        v_field := regexp_replace(v_field, '^settings_(.*)_check$', '\1');
      when not_null_violation then
        get stacked diagnostics v_field = column_name;
        v_refusal := 'It must have a value.';
    end;
  end if;
  return case when v_refusal is null then public.image_sync_settings(p_bucket) else image_sync.problem(
    400, 'invalid_setting', 'A setting is not allowed', format('Cannot change %s of bucket %s: %s', v_field, p_bucket, v_refusal),
    jsonb_build_object('errors', jsonb_build_array(jsonb_build_object('field', v_field, 'message', v_refusal)))) end;
end;
$$;

comment on function public.image_sync_change_settings(text, jsonb) is 'Changes settings of a bucket, all of those that are given or none. Problems: unknown_bucket (404), invalid_setting (400) with the field and, in the words of the database''s check, what is allowed.';

-- cleanup

-- Cleanup and restore, in the order in which they go: a plan, the guards, what a confirmed run does with a chunk of its plan (remove or
-- restore), and the archive. Nothing is removed that a person has not seen listed first: a cleanup without confirm makes a plan, the
-- names of orphaned records in its chunks; a confirmed one applies exactly that, and what it removes is in the archive, whole, until a
-- restore puts it back.

-- The next names of a run that applies a plan, in key order: of a cleanup those of its plan, of a restore what is archived still.
create or replace function image_sync.next_names(p_run image_sync.runs, p_size integer)
returns text[] language plpgsql stable set search_path = '' as $$
declare
  v_names text[] := '{}'::text[];
  v_number integer;
begin
  if p_run.mode = 'restore' then
    return array(
      select a.file_name
      from image_sync.archive a
      where a.run_id = p_run.plan_id and a.restored_at is null and a.file_name collate "C" > p_run.cursor
      order by a.file_name collate "C" limit p_size
    );
  end if;
  -- Chunk by chunk, because a plan may have a million names and a call wants the next thousand.
  for v_number in
    select c.number
    from image_sync.chunks c
    where c.run_id = p_run.plan_id and c.ledger ? 'orphaned' and coalesce(c.to_key collate "C" > p_run.cursor, true)
    order by c.from_key collate "C"
  loop
    v_names := v_names || array(
      select listed.name
      from image_sync.chunks c
      cross join lateral jsonb_array_elements_text(c.facts -> 'orphaned') as listed (name)
      where c.run_id = p_run.plan_id and c.number = v_number and listed.name collate "C" > p_run.cursor
      order by listed.name collate "C" limit p_size - cardinality(v_names)
    );
    exit when cardinality(v_names) >= p_size;
  end loop;
  return v_names;
end;
$$;

comment on function image_sync.next_names(image_sync.runs, integer) is 'At most p_size names of the run''s plan, those behind its cursor.';

-- The whole plan, page by page: names behind p_after in byte order, 1 to 1,000 of them.
-- Returns {"plan": {"run", "count", "names", "next"}}: next is the p_after of the next page, null at the end.
create or replace function public.image_sync_plan(p_run uuid, p_after text default '', p_limit integer default 1000)
returns jsonb language plpgsql stable set search_path = '' set lock_timeout = '1s' as $$
declare
  v_run image_sync.runs;
  v_names text[];
  v_limit constant integer := least(greatest(coalesce(p_limit, 1000), 1), 1000);
begin
  select r.* into v_run from image_sync.runs r where r.id = p_run;
  if v_run.id is null then
    return image_sync.unknown_run(p_run);
  elsif v_run.mode <> 'cleanup' or v_run.plan_id is not null then
    return image_sync.problem(
      404, 'unknown_plan', 'There is no such plan',
      format('Cannot list run %s: it is a %s, not the plan of a cleanup. Make one with {"mode": "cleanup"}.', p_run, v_run.mode));
  end if;
  -- Read as the run that applies it reads it.
  v_run.plan_id := v_run.id;
  v_run.cursor := coalesce(p_after, '');
  v_names := image_sync.next_names(v_run, v_limit);
  return jsonb_build_object('plan', jsonb_build_object(
    'run', p_run,
    'count', coalesce((v_run.summary #>> '{totals,orphaned}')::bigint, 0),
    'names', to_jsonb(v_names),
    'next', case when cardinality(v_names) = v_limit then v_names[v_limit] end
  ));
end;
$$;

comment on function public.image_sync_plan(uuid, text, integer) is 'A page of the names that a cleanup would remove, in key order. Problems: unknown_run, unknown_plan (404).';

-- The guards: what has to hold before the first record is removed or put back. Each refusal has its code, its numbers and the
-- way out; only too_many_records, too_large_fraction and bucket_empty can be overridden, by name.
create or replace function image_sync.check_guards(p_bucket_id text, p_mode text, p_options jsonb, out problem jsonb, out plan uuid, out total bigint)
language plpgsql set search_path = '' as $$
declare
  v_plan image_sync.runs;
begin
  plan := coalesce(p_options ->> 'confirm', p_options ->> 'restore')::uuid;
  select r.* into v_plan from image_sync.runs r where r.id = plan;
  -- The first that does not hold is said: the rest is not looked at.
  problem := coalesce(
    image_sync.guard_start(p_bucket_id, p_mode, p_options),
    case when plan is not null then image_sync.guard_plan(p_bucket_id, p_mode, plan, v_plan) end,
    case when plan is not null and p_mode = 'cleanup' then image_sync.guard_removal(v_plan, p_options) end
  );
  if p_mode = 'cleanup' then
    total := (v_plan.summary #>> '{totals,orphaned}')::bigint;
  elsif problem is null then
    -- For progress alone, so it is not counted to the end.
    total := (select count(*) from (select from image_sync.archive a where a.run_id = plan and a.restored_at is null limit 10000) as counted);
    if total = 10000 then
      total := greatest(total, (v_plan.summary #>> '{totals,removed}')::bigint);
    end if;
  end if;
end;
$$;

comment on function image_sync.check_guards(text, text, jsonb) is 'Why a cleanup or restore may not start, as a problem, or which plan it applies and how many records that names. Codes: conflicting_run, bucket_exists, table_has_children, unknown_plan, plan_of_another_bucket, nothing_to_restore, plan_not_finished, plan_already_applied, bucket_missing, bucket_recreated, plan_expired, bucket_empty, too_many_records, too_large_fraction.';

create or replace function image_sync.guard_start(p_bucket_id text, p_mode text, p_options jsonb)
returns jsonb language sql stable set search_path = '' as $$
  select case
    when o.id is not null then image_sync.problem(
      409, 'conflicting_run', 'Another run excludes this one',
      format('Cannot start a %s of bucket %s: the %s %s is open. Wait for its end, or cancel it with DELETE ?run=%4$s.', p_mode, p_bucket_id, o.mode, o.id),
      jsonb_build_object('open_run', o.id))
    when p_mode = 'cleanup' and (p_options ->> 'bucket_is_gone')::boolean and exists (select from storage.buckets b where b.id = p_bucket_id) then image_sync.problem(
      409, 'bucket_exists', 'The bucket is there',
      format('Cannot clean up bucket %s as one that is gone: storage.buckets has it. Start a cleanup that looks at its files: {"mode": "cleanup"}.', p_bucket_id))
    when p_mode = 'cleanup' and below.detach is not null then image_sync.problem(
      409, 'table_has_children', 'Other tables inherit from part_images',
      format('Cannot clean up bucket %s: other tables inherit from public.part_images, and the columns that they have of their own would not be archived. Run: %s', p_bucket_id, below.detach))
  end
  from (
    -- Rows of these tables are rows of ours too, without the columns that they have of their own.
    select string_agg(format('alter table %s no inherit public.part_images;', i.inhrelid::regclass), ' ' order by i.inhrelid::regclass::text) as detach
    from pg_catalog.pg_inherits i
    where i.inhparent = 'public.part_images'::regclass
  ) as below
  left join lateral (
    select r.id, r.mode
    from image_sync.runs r
    where r.bucket_id = p_bucket_id and r.mode in ('cleanup', 'restore') and r.finished_at is null
    limit 1
  ) as o on true
$$;

comment on function image_sync.guard_start(text, text, jsonb) is 'Why a cleanup or restore may not start with what is there already, as a problem, or null.';

-- Whether there is a whole plan of this bucket that nobody has applied; or, for a restore, something to put back: what the archive
-- holds, whatever became of the cleanup's own row. p_run is the run of that id, or null where there is none.
create or replace function image_sync.guard_plan(p_bucket_id text, p_mode text, p_plan uuid, p_run image_sync.runs)
returns jsonb language sql stable set search_path = '' as $$
  select case
    when p_mode = 'restore' and (q.bucket_id is null or p_run.mode <> 'cleanup' or p_run.id is not null and p_run.plan_id is null) then image_sync.problem(
      404, 'unknown_plan', 'There is no such plan',
      format('Cannot restore %s: it is not a cleanup that removed records. The archive says which are: select distinct run_id from image_sync.archive;', p_plan))
    when p_mode = 'cleanup' and (p_run.id is null or p_run.mode <> 'cleanup' or p_run.plan_id is not null) then image_sync.problem(
      404, 'unknown_plan', 'There is no such plan',
      format('Cannot confirm %s: it is not the plan of a cleanup. Make one with {"mode": "cleanup"} and confirm its id.', p_plan))
    when q.bucket_id <> p_bucket_id then image_sync.problem(
      409, 'plan_of_another_bucket', 'The plan is of another bucket',
      format('Cannot apply run %s to bucket %s: it is a run of bucket %s. Name that bucket.', p_plan, p_bucket_id, q.bucket_id),
      jsonb_build_object('plan_bucket', q.bucket_id))
    when p_mode = 'restore' and (
      p_run.id is not null and p_run.finished_at is null
      or not exists (select from image_sync.archive a where a.run_id = p_plan and a.restored_at is null)
    ) then image_sync.problem(
      409, 'nothing_to_restore', 'There is nothing to restore',
      format('Cannot restore cleanup %s: it is open, or the archive holds no record of it that is not back already. The archive says which are: select distinct run_id from image_sync.archive where restored_at is null;', p_plan))
    when p_mode = 'restore' then null
    when p_run.outcome is distinct from 'succeeded' then image_sync.problem(
      409, 'plan_not_finished', 'The plan is not complete',
      format('Cannot confirm plan %s: it is %s, not succeeded. Make a new one with {"mode": "cleanup"}.', p_plan, coalesce(p_run.outcome, 'open')))
    when q.applied_by is not null then image_sync.problem(
      409, 'plan_already_applied', 'The plan was applied already',
      format('Cannot confirm plan %s: run %s applied it. Make a new one with {"mode": "cleanup"} to see what is left.', p_plan, q.applied_by),
      jsonb_build_object('applied_by', q.applied_by))
  end
  from (
    select
      coalesce(p_run.bucket_id, (select a.bucket_id from image_sync.archive a where a.run_id = p_plan limit 1)) as bucket_id,
      (select r.id from image_sync.runs r where r.plan_id = p_plan and r.mode = 'cleanup' limit 1) as applied_by
  ) as q
$$;

comment on function image_sync.guard_plan(text, text, uuid, image_sync.runs) is 'Why a run is no plan that can be confirmed, or no cleanup that can be restored, for a bucket, as a problem, or null.';

-- Whether the bucket is still the one that the plan was made of, and the plan no longer, and no larger a part of the table, than the
-- settings or the request allow. The plan says whether the bucket was gone: its confirmation need not say it again.
create or replace function image_sync.guard_removal(p_plan image_sync.runs, p_options jsonb)
returns jsonb language plpgsql set search_path = '' as $$
declare
  v_is_gone constant boolean := coalesce((p_plan.options ->> 'bucket_is_gone')::boolean, false);
  v_total constant bigint := (p_plan.summary #>> '{totals,orphaned}')::bigint;
  v_records constant bigint := (p_plan.summary #>> '{totals,records}')::bigint;
  v_created_at constant timestamptz := (select b.created_at from storage.buckets b where b.id = p_plan.bucket_id);
  v_max image_sync.settings := (select s from image_sync.settings s where s.bucket_id = p_plan.bucket_id);
begin
  v_max := jsonb_populate_record(v_max, jsonb_strip_nulls(p_options));
  return case
    when not v_is_gone and not exists (select from storage.buckets b where b.id = p_plan.bucket_id) then image_sync.problem(
      409, 'bucket_missing', 'The bucket does not exist',
      format('Cannot clean up bucket %s: storage.buckets has no such id. Without a bucket every record looks orphaned. If it is gone for good: {"mode": "cleanup", "bucket_is_gone": true}.', p_plan.bucket_id))
    when v_created_at is distinct from p_plan.bucket_created_at then image_sync.problem(
      409, 'bucket_recreated', 'The bucket was deleted and made again',
      format('Cannot confirm plan %s: bucket %s was made at %s, after that plan. Make a new one with {"mode": "cleanup"}, look at it, and confirm that.', p_plan.id, p_plan.bucket_id, v_created_at),
      jsonb_build_object('bucket_created_at', v_created_at, 'plan_bucket_created_at', p_plan.bucket_created_at))
    when p_plan.finished_at < now() - interval '1 day' then image_sync.problem(
      409, 'plan_expired', 'The plan is older than a day',
      format('Cannot confirm plan %s: it ended at %s. Make a new one with {"mode": "cleanup"} and confirm that.', p_plan.id, p_plan.finished_at),
      jsonb_build_object('finished_at', p_plan.finished_at, 'max_age_hours', 24))
    when not v_is_gone
      and not coalesce((p_options ->> 'allow_empty_bucket')::boolean, false)
      and not exists (select from image_sync.objects o where o.bucket_id = p_plan.bucket_id order by o.name collate "C" offset 0) then image_sync.problem(
      409, 'bucket_empty', 'The bucket is empty',
      format('Cannot clean up bucket %s: it holds no file, so every record looks orphaned. If that is meant: {"mode": "cleanup", "confirm": "%s", "allow_empty_bucket": true, "max_delete_fraction": 1}.', p_plan.bucket_id, p_plan.id))
    when v_total > v_max.max_delete_count then image_sync.problem(
      409, 'too_many_records', 'The plan is longer than allowed',
      format('Cannot remove %s of %s records: at most %s are allowed (max_delete_count). If all of them should go: {"mode": "cleanup", "confirm": "%s", "max_delete_count": %1$s}.', v_total, v_records, v_max.max_delete_count, p_plan.id),
      jsonb_build_object('planned', v_total, 'records', v_records, 'max_delete_count', v_max.max_delete_count))
    -- Of a bucket that is gone every record is meant.
    when not v_is_gone and v_total > v_records * v_max.max_delete_fraction then image_sync.problem(
      409, 'too_large_fraction', 'The plan is too large a part of the table',
      format('Cannot remove %s of %s records (%s %%): at most %s %% are allowed (max_delete_fraction). If all of them should go: {"mode": "cleanup", "confirm": "%s", "max_delete_fraction": %s}.', v_total, v_records, round(100.0 * v_total / v_records, 1), round(100 * v_max.max_delete_fraction, 1), p_plan.id, round(least(ceil(10000.0 * v_total / v_records) / 10000, 1), 4)),
      jsonb_build_object('planned', v_total, 'records', v_records, 'fraction', round(1.0 * v_total / v_records, 4), 'max_delete_fraction', v_max.max_delete_fraction))
  end;
end;
$$;

comment on function image_sync.guard_removal(image_sync.runs, jsonb) is 'Why a plan may not be applied: its bucket is no longer what it says, or it names more records than may be removed; as a problem, or null.';

-- Which of these records other tables point to. Deleting one could take their rows with it (on delete cascade) or change them.
-- Compared as the foreign key compares, by its own operators and collation: to citext AB-1 is ab-1. A record's reference to itself
-- goes with it. Security definer, because service_role need not be able to read those tables; it says only which names are
-- referenced. A table of which it may not see every row is an error, not a table without references.
--   p_by_move  only by keys that a new name would empty (on update set null or set default)
create or replace function image_sync.referenced_names(p_bucket_id text, p_names text[], p_by_move boolean default false)
returns text[]
language plpgsql
-- Volatile: each call sees what is committed when it is made.
volatile
security definer
set search_path = ''
set row_security = 'off'
as $$
declare
  v_key record;
  v_names text[];
  v_referenced text[] := '{}'::text[];
begin
  for v_key in
    select
      c.conrelid::regclass as referencing_table,
      string_agg('p.' || k.comparison, ' and ') as matches,
      case when c.conrelid = c.confrelid then string_agg('r.' || k.comparison, ' and ') else 'false' end as refers_to_itself
    from pg_catalog.pg_constraint c
    cross join lateral (
      select format(
        '%I operator(%s) r.%I%s', ours.attname, f.operator::regoper, theirs.attname,
        case when ours.attcollation <> theirs.attcollation then ' collate ' || ours.attcollation::regcollation else '' end
      ) as comparison, ours.attname in ('bucket_id', 'file_name', 'part_number') as is_moved
      from unnest(c.conkey, c.confkey, c.conpfeqop) as f (theirs, ours, operator)
      join pg_catalog.pg_attribute theirs on (theirs.attrelid, theirs.attnum) = (c.conrelid, f.theirs)
      join pg_catalog.pg_attribute ours on (ours.attrelid, ours.attnum) = (c.confrelid, f.ours)
    ) as k
    where c.contype = 'f' and c.confrelid = 'public.part_images'::regclass
      -- A partition's copy of the key is its table's.
      and c.conparentid = 0
    group by c.oid, c.conrelid, c.confrelid, c.confupdtype
    having not p_by_move or c.confupdtype in ('n', 'd') and bool_or(k.is_moved)
  loop
    execute format(
      'select coalesce(array_agg(distinct p.file_name), ''{}'') from unnest($2) as n (name) cross join lateral (select q.* from public.part_images q where q.bucket_id = $1 and q.file_name collate "C" between n.name and n.name order by q.file_name collate "C" limit 1) as p join %s r on %s where (%s) is not true',
      v_key.referencing_table, v_key.matches, v_key.refers_to_itself
    )
    into v_names
    using p_bucket_id, p_names;
    v_referenced := v_referenced || v_names;
  end loop;
  return v_referenced;
end;
$$;

comment on function image_sync.referenced_names(text, text[], boolean) is 'Those of the given records that other rows refer to by a foreign key; with p_by_move, by one that a move would empty. Raises insufficient_privilege where a table that may refer to them cannot be seen whole.';

-- One look by the index of names, whatever the statistics say. Volatile: each sees what is committed by then.
create or replace function image_sync.has_file(p_bucket_id text, p_name text)
returns boolean language plpgsql set search_path = '' as $$
begin
  return exists (
    select
    from image_sync.objects o
    where o.bucket_id = p_bucket_id and o.name collate "C" between p_name and p_name
    order by o.name collate "C"
    offset 0
  );
end;
$$;

comment on function image_sync.has_file(text, text) is 'Whether the bucket holds a file of this name now.';

-- Removes what it may of a plan: first the rows are locked, then they are looked at, each look a statement of its own that sees what is
-- committed by then. So nobody can refer to a record, or change it, between the look and its removal: whoever tries waits for
-- this transaction and finds the record gone, and whoever was first holds a lock that makes us keep the record.
-- A file that is uploaded takes no lock that could be seen: it is looked for in the statement that deletes and once more after it.
create or replace function image_sync.remove_records(p_run image_sync.runs, p_names text[], out done text[], out problems jsonb)
language plpgsql set search_path = '' set lock_timeout = '400ms' as $$
declare
  v_locked constant text[] := array(
    select p.file_name
    from unnest(p_names) as n (name)
    cross join lateral (
      select q.file_name
      from only public.part_images q
      where q.bucket_id = p_run.bucket_id and q.file_name collate "C" between n.name and n.name
      order by q.file_name collate "C" limit 1
      for update skip locked
    ) as p
  );
  v_referenced text[] := '{}'::text[];
  -- Why none may go: what refers to them cannot be seen.
  v_unseen jsonb;
  v_write image_sync.write := jsonb_populate_record(null::image_sync.write, '{"written": [], "held": [], "refused": []}');
begin
  begin
    v_referenced := image_sync.referenced_names(p_run.bucket_id, v_locked);
  exception
    when lock_not_available or deadlock_detected then
      v_unseen := '{"code": "locked", "words": "Kept: a table that may refer to it is held by somebody else"}';
    when insufficient_privilege then
      v_unseen := jsonb_build_object('code', 'referenced', 'words', 'Kept: whether another table refers to it cannot be seen: ' || sqlerrm);
  end;
  if v_unseen is null then
    v_write := image_sync.write_rows('archive', p_run, array(
      select (l.name, null, null, null)::image_sync.item
      from unnest(v_locked) as l (name)
      where l.name <> all (v_referenced)
    ));
  end if;
  done := v_write.written;
  problems := image_sync.why_kept(
    p_run.bucket_id, array(select n.name from unnest(p_names) as n (name) where n.name <> all (done)), v_locked, v_unseen, v_referenced, v_write);
end;
$$;

comment on function image_sync.remove_records(image_sync.runs, text[]) is 'Locks the named records, looks at them, and moves those to the archive whose file is nowhere and that nothing refers to. Returns the names removed (done), and a problem for each of the others.';

-- Moves records that are orphaned at this moment to the archive, and looks once more for their files: a slow trigger leaves time for an
-- upload. Not those of a table that inherits from ours: they are more than our columns say.
create or replace function image_sync.write_archive(p_run image_sync.runs, p_items image_sync.item[])
returns text[] language plpgsql set search_path = '' as $$
declare
  v_removed text[];
begin
  with removed as (
    delete from only public.part_images p
    -- By their places, which stay: the caller holds the rows.
    where p.ctid = any (array(
      select r.ctid
      from unnest(p_items) as n
      -- A range and an order that only the index of names gives: one look for each, whatever the statistics say.
      cross join lateral (
        select q.ctid, q.bucket_id, q.file_name, q.object_id
        from only public.part_images q
        where q.bucket_id = p_run.bucket_id and q.file_name collate "C" between n.name and n.name
        order by q.file_name collate "C" limit 1
      ) as r
      where not image_sync.has_file(p_run.bucket_id, n.name)
        and not exists (select from image_sync.place_of(r.bucket_id, r.file_name, r.object_id))
    ))
    -- The row, also where its owner has a column p.
    returning p.file_name, to_jsonb(p.*) as record, image_sync.row_text(p.*) as row_text
  ), archived as (
    insert into image_sync.archive (bucket_id, file_name, record, row_text, row_columns, reason, run_id)
    select p_run.bucket_id, r.file_name, r.record, r.row_text, (select image_sync.column_names('public.part_images')), 'orphaned', p_run.id
    from removed r
    returning file_name
  )
  select coalesce(array_agg(a.file_name), '{}') into v_removed from archived a;
  perform image_sync.check_deferred();
  if exists (select from unnest(v_removed) as n (name) where image_sync.has_file(p_run.bucket_id, n.name)) then
    raise exception 'A file is in the bucket again'
      using errcode = 'ISB01', hint = 'Try the records one by one.';
  end if;
  return v_removed;
end;
$$;

comment on function image_sync.write_archive(image_sync.runs, image_sync.item[]) is 'Moves those of the named records whose file is nowhere to the archive and returns their names. Raises ISB01, and moves none, where the file of one came back meanwhile.';

create or replace function image_sync.why_kept(p_bucket_id text, p_names text[], p_locked text[], p_unseen jsonb, p_referenced text[], p_write image_sync.write)
returns jsonb language plpgsql set search_path = '' as $$
begin
  return (
    select coalesce(jsonb_agg(image_sync.item_problem(n.name, why.code, why.words) order by n.name collate "C"), '[]')
    from unnest(p_names) as n (name)
    left join jsonb_to_recordset(p_write.refused) as f (name text, sqlstate text, words text) on f.name = n.name
    left join lateral (
      select r.bucket_id, r.file_name, r.object_id, r.tableoid
      from public.part_images r
      where r.bucket_id = p_bucket_id and r.file_name collate "C" between n.name and n.name
      order by r.file_name collate "C" limit 1
    ) as p on true
    left join lateral image_sync.place_of(p.bucket_id, p.file_name, p.object_id) as w on true
    cross join lateral (
      select v.code, v.words
      from (values
        -- What its removal met, or else what is so now.
        (1, p_unseen ->> 'code', p_unseen ->> 'words', p_unseen is not null and n.name = any (p_locked)),
        (2, 'referenced', 'Kept: a row of another table refers to it', n.name = any (p_referenced) or f.sqlstate = '23503'),
        (3, 'locked', 'Kept: somebody else holds what its removal needs', n.name = any (p_write.held)),
        (4, 'refused_by_table', 'Kept: the table refused to delete it: ' || f.words, f.sqlstate <> 'ISB01'),
        (5, 'file_is_back', 'Kept: its file is in the bucket again', f.sqlstate = 'ISB01' or image_sync.has_file(p_bucket_id, n.name)),
        (6, 'record_is_gone', 'Skipped: the record was removed by somebody else', p.file_name is null),
        (7, 'refused_by_table', format('Kept: it is a row of %s, which inherits from this table', p.tableoid::regclass), p.tableoid <> 'public.part_images'::regclass),
        (8, 'locked', 'Kept: somebody else holds it', n.name <> all (p_locked)),
        (9, 'file_has_moved', 'Kept: its file has another name by now, and the next sync takes the record along', w.is_followed),
        (10, 'moved_away', format('Kept: its file is %s now', image_sync.place_in_words(p_bucket_id, w.bucket_id, w.name)), not w.is_followed),
        (11, 'refused_by_table', 'Kept: a trigger of the table refused to delete it', true)
      ) as v (place, code, words, applies)
      where v.applies
      order by v.place limit 1
    ) as why
  );
end;
$$;

comment on function image_sync.why_kept(text, text[], text[], jsonb, text[], image_sync.write) is 'A problem for each of these records that a cleanup kept: referenced, locked, refused_by_table, file_is_back, record_is_gone, file_has_moved or moved_away. p_unseen: {code, words} where none of those that were locked could be looked at.';

-- Puts archived records back: what the table does not take stays in the archive.
create or replace function image_sync.restore_records(p_run image_sync.runs, p_names text[], out done text[], out problems jsonb)
language plpgsql set search_path = '' as $$
declare
  v_write constant image_sync.write := image_sync.write_rows('restore', p_run, array(select (n.name, null, null, null)::image_sync.item from unnest(p_names) as n (name)));
begin
  done := v_write.written;
  problems := (
    select coalesce(jsonb_agg(image_sync.item_problem(n.name, 'not_restored', 'Skipped: ' || case
      when r.is_taken then 'its place was taken meanwhile by another record of the file, or of its id or part number. Compare the two, remove or change the one in the table, and restore again'
      when r.name is not null then 'the table refused it: ' || r.words
      when n.name = any (v_write.held) then 'somebody else holds its place. Restore again later'
      else 'a trigger of the table left it out. It is in the archive still; change the trigger, and restore again'
    end) order by n.name collate "C"), '[]')
    from unnest(p_names) as n (name)
    left join jsonb_to_recordset(v_write.refused) as r (name text, is_taken boolean, words text) on r.name = n.name
    where n.name <> all (done)
  );
end;
$$;

comment on function image_sync.restore_records(image_sync.runs, text[]) is 'Puts records of a cleanup run back from the archive. Returns the names of those that are back (done), and a problem not_restored for each of the others.';

-- The rows as they were, id, timestamps and the owner's columns included, as far as the table has them still.
create or replace function image_sync.write_restore(p_run image_sync.runs, p_items image_sync.item[])
returns text[] language plpgsql set search_path = '' as $$
declare
  v_names constant text[] := array(select i.name from unnest(p_items) as i);
  v_part record;
  v_back text[];
  v_written text[] := '{}'::text[];
begin
  -- Together what has the same columns: the table may have changed between two records.
  for v_part in
    select c.names as columns, c.fields, array_agg(a.id) as ids, array_agg(a.file_name) as names
    from image_sync.archive a
    cross join lateral (
      select string_agg(format('%I', c.attname), ', ' order by c.attnum) as names, string_agg(format('(kept.whole).%I', c.attname), ', ' order by c.attnum) as fields
      from pg_catalog.pg_attribute c
      where c.attrelid = 'public.part_images'::regclass and c.attnum > 0 and not c.attisdropped and c.attgenerated = '' and a.record ? c.attname
    ) as c
    where a.run_id = p_run.plan_id and a.restored_at is null and a.file_name collate "C" = any (v_names)
    group by c.names, c.fields
  loop
    execute format(
      'with back as (insert into public.part_images (%s) overriding system value select %s from (
        select case
          when a.row_text is null then jsonb_populate_record(null::public.part_images, a.record)
          else image_sync.row_of(a.row_text, a.row_columns, null::public.part_images)
        end as whole
        from image_sync.archive a
        where a.id = any ($1)
        offset 0
      ) as kept returning file_name)
      select coalesce(array_agg(back.file_name), ''{}'') from back', v_part.columns, v_part.fields
    ) into v_back using v_part.ids;
    -- Fewer came back than were put: a trigger left some out.
    v_written := v_written || case when cardinality(v_back) = cardinality(v_part.ids) then v_part.names else v_back end;
  end loop;
  if not v_written <@ v_names then
    raise exception 'Some were left out, and others have other names'
      using errcode = 'ISB02', hint = 'Try the records one by one.';
  end if;
  update image_sync.archive a
  set restored_at = now()
  where a.run_id = p_run.plan_id and a.restored_at is null and a.file_name collate "C" = any (v_written);
  return v_written;
end;
$$;

comment on function image_sync.write_restore(image_sync.runs, image_sync.item[]) is 'Inserts archived records again, whole, and returns the names of those that are back.';

-- Makes the next chunk of a run that applies a plan, a confirmed cleanup or a restore. Nothing is signed, so it is done at once. With
-- p_error it is one of the next record alone, which is left as it is, because the database cannot deal with it in its time.
create or replace function image_sync.settle_chunk(p_run image_sync.runs, p_settings image_sync.settings, p_worker uuid, p_error jsonb default null)
returns image_sync.chunks language plpgsql set search_path = '' as $$
declare
  v_size constant integer := case when p_error is null then image_sync.chunk_size(p_run, p_settings) else 1 end;
  v_names constant text[] := image_sync.next_names(p_run, v_size);
  v_done text[] := '{}'::text[];
  v_problems jsonb;
  v_chunk image_sync.chunks;
begin
  if p_error is not null then
    v_problems := (select coalesce(jsonb_agg(image_sync.item_problem(n.name, p_error ->> 'code', p_error ->> 'detail')), '[]') from unnest(v_names) as n (name));
  elsif p_run.mode = 'cleanup' then
    select r.done, r.problems into v_done, v_problems from image_sync.remove_records(p_run, v_names) as r;
  else
    select r.done, r.problems into v_done, v_problems from image_sync.restore_records(p_run, v_names) as r;
  end if;
  insert into image_sync.chunks (run_id, number, from_key, to_key, state, worker_id, ledger, problems, closed_at)
  select
    p_run.id, image_sync.next_number(p_run.id), p_run.cursor, case when cardinality(v_names) = v_size then v_names[v_size] end, 'done', p_worker,
    image_sync.add_counts(jsonb_build_object(case p_run.mode when 'cleanup' then 'removed' else 'restored' end, d.done, 'skipped', cardinality(v_names) - d.done), null),
    v_problems, clock_timestamp()
  from cardinality(v_done) as d (done)
  returning * into v_chunk;
  return v_chunk;
end;
$$;

comment on function image_sync.settle_chunk(image_sync.runs, image_sync.settings, uuid, jsonb) is 'Makes and closes the next chunk of a confirmed cleanup or a restore; what the plan names and cannot be settled is skipped and named. p_error: skips the next record, with that error. The caller holds the run''s row lock.';

-- The cleanups of a bucket that archived something, newest first.
-- Returns {"archives": [{"run", "archived_at", "removed", "restored"}]}. The archive outlives the history of runs: of a run that
-- housekeeping pruned the records are counted, up to 10,000.
create or replace function public.image_sync_archives(p_bucket text, p_limit integer default 50)
returns jsonb language sql stable set search_path = '' as $$
  -- From one run to the next in the index, however many records each of them archived.
  with recursive walk as (
    (select a.run_id from image_sync.archive a where a.run_id is not null order by a.run_id limit 1)
    union all
    select (select a.run_id from image_sync.archive a where a.run_id > w.run_id order by a.run_id limit 1)
    from walk w
    where w.run_id is not null
  ), archives as (
    select w.run_id, f.archived_at
    from (select walk.run_id from walk where walk.run_id is not null limit 500) as w
    cross join lateral (
      select a.bucket_id, a.archived_at
      from image_sync.archive a
      where a.run_id = w.run_id
      order by a.file_name collate "C" limit 1
    ) as f
    where f.bucket_id = p_bucket
    order by f.archived_at desc limit least(greatest(coalesce(p_limit, 50), 1), 100)
  )
  select jsonb_build_object('archives', coalesce(jsonb_agg(jsonb_build_object(
    'run', a.run_id,
    'archived_at', a.archived_at,
    'removed', coalesce((r.summary #>> '{totals,removed}')::bigint, (
      select count(*)
      from (select from image_sync.archive q where q.run_id = a.run_id limit 10000) as counted
    )),
    'restored', (
      select coalesce(sum((u.summary #>> '{totals,restored}')::bigint), 0)
      from image_sync.runs u
      where u.plan_id = a.run_id and u.mode = 'restore'
    )
  ) order by a.archived_at desc), '[]'))
  from archives a
  left join image_sync.runs r on r.id = a.run_id
$$;

comment on function public.image_sync_archives(text, integer) is 'The cleanups of a bucket that archived records, newest first, at most 100, with how many each removed and how many were put back since.';

-- The records that a cleanup archived, by name, 1 to 1,000 behind p_after. No URL.
-- Returns {"archived": {"run", "records": [{"file_name", "part_number", "restored_at"}], "next"}}.
create or replace function public.image_sync_archived(p_run uuid, p_after text default '', p_limit integer default 100)
returns jsonb language sql stable set search_path = '' as $$
  select jsonb_build_object('archived', jsonb_build_object('run', p_run) || image_sync.page(
    'records', coalesce(jsonb_agg(to_jsonb(q) order by q.file_name collate "C"), '[]'), 'file_name', least(greatest(coalesce(p_limit, 100), 1), 1000)))
  from (
    select a.file_name, a.record ->> 'part_number' as part_number, a.restored_at
    from image_sync.archive a
    where a.run_id = p_run and a.file_name collate "C" > coalesce(p_after, '')
    order by a.file_name collate "C" limit least(greatest(coalesce(p_limit, 100), 1), 1000)
  ) as q
$$;

comment on function public.image_sync_archived(uuid, text, integer) is 'A page of the records that a cleanup archived, in byte order, 1 to 1,000 of them, with when each was put back.';

-- file

create or replace function image_sync.place_in_words(p_bucket_id text, p_other_bucket_id text, p_name text)
returns text language sql immutable set search_path = '' as $$
  select p_name || case when p_other_bucket_id <> p_bucket_id then format(' (bucket %s)', p_other_bucket_id) else '' end
$$;

comment on function image_sync.place_in_words(text, text, text) is 'A name, with its bucket where that is another one.';

-- What the newest verify, or the probe of the newest sync, saw of a file that only another upload can mend; null where that was no
-- such thing, or the file was stored anew since.
create or replace function image_sync.unseen_file(p_bucket_id text, p_name text)
returns text language plpgsql stable set search_path = '' as $$
begin
  return (
    select f.failure ->> 'code'
    from (
      (
        select r.id, r.finished_at, r.mode, r.report
        from image_sync.runs r
        where r.bucket_id = p_bucket_id and r.mode = 'verify' and r.report is not null
        order by r.finished_at desc limit 1
      )
      union all
      (
        select r.id, r.finished_at, r.mode, r.report
        from image_sync.runs r
        where r.bucket_id = p_bucket_id and r.mode = 'sync' and r.report is not null
          -- A verify that ended later has opened all of them.
          and not exists (
            select
            from image_sync.runs later
            where later.bucket_id = p_bucket_id
              and later.mode = 'verify'
              and later.outcome = 'succeeded'
              and later.finished_at > r.finished_at
          )
        order by r.finished_at desc limit 1
      )
    ) as r
    cross join lateral (
      select e.failure
      from image_sync.chunks c
      cross join lateral jsonb_array_elements(c.problems) as e (failure)
      where r.mode = 'verify'
        and c.run_id = r.id
        and c.from_key collate "C" < p_name
        and coalesce(c.to_key, image_sync.last_key()) collate "C" >= p_name
      union all
      select e.failure
      from jsonb_array_elements(r.report #> '{probe,failures}') as e (failure)
      where r.mode = 'sync'
    ) as f
    where f.failure ->> 'name' = p_name
      and f.failure ->> 'code' in ('file_lost', 'not_an_image', 'wrong_content_type')
      and not exists (
        select
        from storage.objects o
        where o.bucket_id = p_bucket_id
          and o.name collate "C" >= p_name
          and o.name collate "C" <= p_name
          and o.updated_at > r.finished_at
        order by o.name collate "C"
        offset 0
      )
    order by r.finished_at desc limit 1
  );
end;
$$;

comment on function image_sync.unseen_file(text, text) is
  'Why a file showed no image when it was last opened, as far as only another upload mends that: file_lost, not_an_image or wrong_content_type; null otherwise.';

-- What the newest verify saw of a file: {"run", "at", "code"}, the code null where its URL showed an image. Null where nobody can tell:
-- the file was not opened, or a run of before 2.0 named only the first of many that showed none.
create or replace function image_sync.verified_file(p_bucket_id text, p_file text)
returns jsonb language plpgsql stable set search_path = '' as $$
begin
  return (
    select case
      when named.code is not null
        or c.state = 'done'
          and image_sync.count_of(c.ledger, 'broken') = named.all_named
          -- Whatever has a record now had one then, and was opened.
          and not c.ledger ? 'missing'
          and image_sync.count_of(c.ledger, 'to_open') = image_sync.count_of(c.ledger, 'records') - image_sync.count_of(c.ledger, 'orphaned')
          and exists (
            select
            from public.part_images p
            where p.bucket_id = p_bucket_id and p.file_name collate "C" = p_file
          )
          and exists (
            select
            from storage.objects o
            where o.bucket_id = p_bucket_id
              and o.name collate "C" >= p_file
              and o.name collate "C" <= p_file
              and o.updated_at < v.started_at
            order by o.name collate "C"
            offset 0
          )
        then jsonb_build_object('run', v.id, 'at', v.finished_at, 'code', named.code, 'detail', named.detail)
    end
    from (
      select r.id, r.started_at, r.finished_at
      from image_sync.runs r
      where r.bucket_id = p_bucket_id and r.mode = 'verify' and r.finished_at is not null
      order by r.started_at desc limit 1
    ) as v
    join image_sync.chunks c
      on c.run_id = v.id
      and c.from_key collate "C" < p_file
      and coalesce(c.to_key collate "C" >= p_file, true)
    cross join lateral (
      select
        max(p.problem ->> 'code') filter (where p.problem ->> 'name' = p_file) as code,
        max(p.problem ->> 'detail') filter (where p.problem ->> 'name' = p_file) as detail,
        count(*) as all_named
      from jsonb_array_elements(c.problems) as p (problem)
    ) as named
    limit 1
  );
end;
$$;

comment on function image_sync.verified_file(text, text) is 'What the newest verify of the bucket saw of a file; null where that cannot be told.';

-- Why this file is, or is not, in sync.
create or replace function public.image_sync_file(p_bucket text, p_file text)
returns jsonb language plpgsql stable set search_path = '' set lock_timeout = '1s' as $$
declare
  v_settings image_sync.settings;
  v_object record;
  v_record record;
  v_is_taken boolean;
  v_is_excluded boolean;
  v_is_wanted boolean;
  v_is_signable boolean := image_sync.is_signable(p_file);
  v_unseen text;
  -- Where the file of this name went, or came from, as "name" or "name (bucket x)".
  v_moves_to text;
  v_is_at text;
  v_lies_at text;
  v_comes_from text;
  v_went_to text;
  v_reasons jsonb := '[]'::jsonb;
begin
  select s.*
  into v_settings
  from image_sync.settings s
  where s.bucket_id = p_bucket;
  if v_settings.bucket_id is null then
    return image_sync.problem(
      404, 'unknown_bucket', 'The bucket has no settings',
      format('Cannot look up a file of bucket %s: image_sync.settings has no row for it.', p_bucket)
    );
  end if;

  select o.name, o.extension, o.bytes, o.id
  into v_object
  from image_sync.objects o
  where o.bucket_id = p_bucket and o.name collate "C" >= p_file and o.name collate "C" <= p_file
  -- An order that only the index of names gives.
  order by o.name collate "C" limit 1;
  select r.file_name, r.part_number, r.signed, r.expired, r.usable_until, r.object_id, r.look_up_key, r.signed and not image_sync.is_url_of(r.signed_url, image_sync.url_base(v_settings), r.file_name) as is_foreign
  into v_record
  from image_sync.records r
  where r.bucket_id = p_bucket and r.file_name collate "C" = p_file;

  if v_record.file_name is not null and v_object.id is distinct from v_record.object_id then
    select
      case when w.is_followed then image_sync.place_in_words(p_bucket, w.bucket_id, w.name) end,
      case when not w.is_followed then image_sync.place_in_words(p_bucket, w.bucket_id, w.name) end
    into v_moves_to, v_is_at
    from image_sync.place_of(p_bucket, p_file, v_record.object_id) as w;
    if v_moves_to is null and v_is_at is null then
      select image_sync.place_in_words(p_bucket, o.bucket_id, o.name)
      into v_lies_at
      from image_sync.objects o
      where o.id = v_record.object_id;
    end if;
  end if;
  if v_object.id is not null and v_record.file_name is null then
    select image_sync.place_in_words(p_bucket, p.bucket_id, p.file_name)
    into v_comes_from
    from public.part_images p
    cross join lateral image_sync.destination_of(p.bucket_id, p.file_name, p.object_id) as d
    where p.object_id = v_object.id
    limit 1;
  end if;
  if v_object.id is null and v_record.file_name is null then
    select image_sync.place_in_words(p_bucket, o.bucket_id, o.name)
    into v_went_to
    from (
      select m.object_id
      from image_sync.moves m
      where m.bucket_id = p_bucket and m.file_name collate "C" = p_file
      order by m.moved_at desc, m.id desc limit 1
    ) as newest
    join image_sync.objects o
      on o.id = newest.object_id;
  end if;

  v_unseen := case when v_object.name is not null and v_record.file_name is not null then image_sync.unseen_file(p_bucket, p_file) end;
  v_is_excluded := v_object.name is not null and v_record.file_name is null and v_object.name like any (v_settings.exclude);
  v_is_wanted := v_object.name is not null and v_record.file_name is null and v_object.extension = any (v_settings.extensions) and not v_is_excluded and v_object.bytes is distinct from 0;
  v_is_taken := v_object.name is not null and image_sync.part_number_is_unique() and image_sync.is_part_taken((image_sync.part_numbers_of(array[v_object.name]))[1]);

  select coalesce(jsonb_agg(jsonb_build_object('code', c.code, 'detail', c.detail)), '[]')
  into v_reasons
  from (values
    ('unknown_file', 'Neither the bucket nor the table knows this name. Names are case-sensitive and include their folders', v_object.name is null and v_record.file_name is null and v_went_to is null),
    ('moved', format('The file has another name now, and its record went along: %s', v_went_to), v_went_to is not null),
    ('moved', format('The file is %s now: the next sync takes the record along', v_moves_to), v_moves_to is not null),
    ('moved', format('The file was %s: the next sync brings its record along', v_comes_from), v_comes_from is not null and v_is_wanted),
    ('orphaned', 'There is a record, but no file of this name in the bucket' || coalesce(': its file is ' || v_lies_at || ' now, which has a record of its own', ''), v_object.name is null and v_record.file_name is not null and v_moves_to is null and v_is_at is null),
    ('moved_away', format('Its file is %s now, which no sync keeps in step: give that bucket settings, or rename the file to what is not left out, and the next sync takes the record along', v_is_at), v_object.name is null and v_is_at is not null),
    ('excluded_extension', format('Its extension is not among those that make an image (%s)', array_to_string(v_settings.extensions, ', ')), v_object.name is not null and v_record.file_name is null and v_object.extension <> all (v_settings.extensions) and not v_is_excluded),
    ('excluded', 'Its name matches a pattern of the setting exclude: hidden and system files are left out', v_is_excluded),
    ('empty', 'The file is empty (0 bytes) and shows nothing: upload it again', v_object.bytes = 0 and v_object.extension = any (v_settings.extensions) and not v_is_excluded),
    ('missing', 'The file has no record yet: the next sync inserts it', v_is_wanted and not v_is_taken and v_comes_from is null),
    ('collided', 'Another record has its part number, which has to be unique: rename one of the files', v_is_wanted and v_is_taken and v_comes_from is null),
    ('unsignable', 'Storage opens no URL of this name (non-ASCII characters, # % ~ ^ | [ ] { } < > quotes, tabs, a path segment . or ..): rename the file', v_object.name is not null and not v_is_signable),
    ('unsigned', 'The record has no URL yet: the next sync signs it', v_object.name is not null and v_record.file_name is not null and not v_record.signed and v_is_signable),
    ('foreign_url', 'The URL is of another file, or of another address than the one that readers use: the next sync signs it anew', v_object.name is not null and v_record.is_foreign and v_is_signable),
    ('expired', 'The URL has expired, or its expiry is unknown, or it was cut: the next sync signs it again', v_object.name is not null and v_record.expired and not v_record.is_foreign and v_is_signable),
    ('expiring', 'The URL works and is due for renewal: the next sync signs it again', v_object.name is not null and v_record.usable_until < now() + v_settings.renew_before and not v_record.is_foreign and v_is_signable),
    ('file_lost', 'When it was last opened, Storage had its row and no content: upload it again, then start a verify', v_unseen = 'file_lost' and v_object.bytes is distinct from 0),
    ('not_an_image', 'When it was last opened, it was no image, whatever its name says: upload the right file, then start a verify', v_unseen = 'not_an_image'),
    ('wrong_content_type', 'When it was last opened, it was an image under another content type: upload it again with its own, then start a verify', v_unseen = 'wrong_content_type')
  ) as c (code, detail, applies)
  where c.applies;

  return jsonb_build_object('file', jsonb_build_object(
    'bucket_id', p_bucket,
    'file_name', p_file,
    'in_sync', coalesce(v_object.name is not null and v_record.usable_until is not null and not v_record.is_foreign and v_object.bytes is distinct from 0 and v_is_signable and v_unseen is null, false),
    'object', case when v_object.name is not null then jsonb_build_object('extension', v_object.extension, 'bytes', v_object.bytes) end,
    'record', case when v_record.file_name is not null then jsonb_build_object('part_number', v_record.part_number, 'signed', v_record.signed, 'usable_until', v_record.usable_until) end,
    'reasons', v_reasons,
    -- Other files of its part number, as a spreadsheet compares it, and pictures of its name with another extension.
    'twins', (
      select coalesce(jsonb_agg(t.name order by t.name collate "C"), '[]')
      from (
        select k.name
        from image_sync.files_of_key(p_bucket, v_record.look_up_key) k
        union
        select b.name
        from image_sync.files_beside(p_bucket, image_sync.stem_of(p_file)) b
      ) as t
      where t.name <> p_file
    ),
    'verified', image_sync.verified_file(p_bucket, p_file)
  ));
end;
$$;

comment on function public.image_sync_file(text, text) is
  'Whether a file has a record with a URL that works, and if not, every reason: unknown_file, moved, moved_away, orphaned, excluded_extension, excluded, empty, missing, collided, unsignable, unsigned, foreign_url, expired, expiring, file_lost, not_an_image, wrong_content_type. Problem: unknown_bucket (404).';

-- register

-- The register: what a spreadsheet reads. What it shows is decided in image_sync.register_query() alone.

-- One row for each part of a bucket, with a URL that works: of this project, whole, not expired, of a file that is there and is not
-- empty. What a part is, is what the report counts as one: image_sync.records.look_up_key. Where several files stand for one part,
-- the one with the shortest part number is shown (the name itself rather than its copies), then the one with the shortest file name
-- (not in a folder), then the last in byte order (000001.jpg rather than 000001.JPG). The rule knows no dates: the same picture stays.
-- A view on views would look at tables with the rights of whoever reads it, and a function that a view calls is called with the
-- rights of its reader: a reader has none. So the query names tables and calls nothing of ours. The view of the readers is made of it,
-- and the pages of the function.
--   p_records  the rows of public.part_images that are looked at
create or replace function image_sync.register_query(p_records text default 'public.part_images')
returns text language sql immutable set search_path = '' as $$
select format($query$
  select distinct on (p.bucket_id, k.look_up_key)
    p.bucket_id,
    k.look_up_key,
    p.part_number::text as part_number,
    p.file_name::text as file_name,
    p.signed_url::text as signed_url,
    p.signed_url_expires_at
  from %s p
  cross join lateral (
    -- The expression of part_images_twins_idx, collation and all, so that a page is read from there.
    select
      (p.bucket_id || '/' || lower(
        case
          when p.part_number ~ '[_)\s]' then coalesce(nullif(regexp_replace(p.part_number, '^((copy of|kopie von|copie de|copia d[ei]) )+|( *\((\d+|([^()]+ )?(copy|kopie|copie|copia))\)|( -)? (copy|kopie|copie|copia)( \d+| \(\d+\))?|_jpe?g|_png)?\s*$', '', 'gi'), ''), p.part_number)
          else p.part_number
        end
      )) collate "C" as look_up_key
  ) as k
  -- Row by row, one look by key for each: whatever the statistics say, no other way can be taken, and none reads a bucket twice.
  cross join lateral (
    -- image_sync.url_base() of its bucket.
    select
      coalesce(
        coalesce(s.public_url, (select j.url from image_sync.project j)) || '/storage/v1/object/sign/'
        || case
          when s.bucket_id ~ '^[A-Za-z0-9_.-]+$' then s.bucket_id
          else (
            select string_agg(
              case
                when c.character ~ '[A-Za-z0-9_.!~*''()-]' then c.character
                else upper(regexp_replace(encode(convert_to(c.character, 'UTF8'), 'hex'), '(..)', '%%\1', 'g'))
              end, '' order by c.place)
            from regexp_split_to_table(s.bucket_id, '') with ordinality as c (character, place)
          )
        end
        || '/', '') as url_base
    from image_sync.settings s
    where s.bucket_id = p.bucket_id
    limit 1
  ) as base
  cross join lateral (
    -- The file of image_sync.objects; the columns that Storage may lack are found as they are there. A range and an order that only the
    -- index of names gives.
    select s.metadata -> 'size' as bytes
    from (select false as is_delete_marker, null::timestamptz as archived_at) as absent
    cross join lateral (
      select o.bucket_id, o.name, o.metadata, is_delete_marker as is_deleted, archived_at is not null as is_archived
      from storage.objects o
    ) as s
    where s.bucket_id = p.bucket_id
      and s.name collate "C" >= p.file_name
      and s.name collate "C" <= p.file_name
      and s.is_deleted is not true
      and not s.is_archived
    order by s.name collate "C" limit 1
  ) as file
  where p.part_number <> '' and p.signed_url_expires_at > now() and file.bytes is distinct from '0'
    -- As image_sync.is_url_of, but that of a name which a URL escapes the address alone is looked at.
    and starts_with(p.signed_url, base.url_base || case when base.url_base = '' or p.file_name ~ '[^A-Za-z0-9_./-]' then '' else p.file_name || '?' end)
    -- Whole, as in image_sync.records.
    and (
      length(split_part(split_part(p.signed_url, '?token=eyJ', 2), '.', 3)) in (43, 64, 86, 342, 512, 683)
      or strpos(p.signed_url, '?token=') > 0 and not starts_with('eyJ', left(split_part(p.signed_url, '?token=', 2), 3))
    )
  order by p.bucket_id, k.look_up_key, length(p.part_number), length(p.file_name), p.file_name collate "C" desc
$query$, p_records)
$$;

comment on function image_sync.register_query(text) is 'The query of the register of every bucket, of all records or of some: the one place that says what it shows. The view public.part_register and the pages of the register are made of it.';

-- Made when this file is applied, and again when storage.objects has gained a column that tells what is no file any more. With the
-- rights of its owner, so that a reader needs a right to this view and to nothing behind it; and nothing that a reader says of its rows
-- is asked before they are chosen.
create or replace function image_sync.make_register()
returns void language plpgsql set search_path = '' as $$
begin
  execute format(
    'create or replace view public.part_register with (security_barrier = on) as
    select r.part_number, r.file_name, r.signed_url, r.signed_url_expires_at
    from (%s) as r
    where r.bucket_id = coalesce(
      (select q.bucket_id from image_sync.readers q where q.kind = ''odbc'' and q.name = current_user),
      (select s.bucket_id from image_sync.settings s order by s.register desc, s.bucket_id = ''part-images'' desc, s.bucket_id collate "C" limit 1)
    )',
    image_sync.register_query()
  );
end;
$$;

comment on function image_sync.make_register() is 'Makes the view public.part_register, or makes it anew. Only its owner can.';

select image_sync.make_register();

comment on view public.part_register is 'For the spreadsheet: one row for each part of one bucket, with a URL that works. The bucket is that of the reader, for a role that image-sync reader add made; for anybody else the one whose settings say register. Which file is shown of several: image_sync.register_query().';
comment on column public.part_register.part_number is 'The part.';
comment on column public.part_register.file_name is 'The file that is shown of it.';
comment on column public.part_register.signed_url is 'A URL that shows the image without a key until signed_url_expires_at.';
comment on column public.part_register.signed_url_expires_at is 'When signed_url stops working.';

revoke all on public.part_register from public, anon, authenticated, service_role;
grant select on public.part_register to service_role;

-- A page of the register: shown, what the next records show, and those, whether they show anything or not. They bound it, and they are
-- read in the order of their index before anything else is looked at: so a page costs the same at the end of a million parts,
-- and where nobody has counted them yet.
--   $1  the bucket, $2 the key behind which it begins, $3 the key before which it ends, both with their bucket, $4 how many records
-- last is the key up to which was looked, without its bucket; null: to the end.
create or replace function image_sync.register_page_query()
returns text language sql stable set search_path = '' as $$
select format($query$
  with records as materialized (
    select r.bucket_id, r.look_up_key, r.part_number, r.file_name, r.signed_url, r.usable_until as signed_url_expires_at
    from image_sync.records r
    where r.bucket_id = $1 and r.look_up_key collate "C" > $2 and r.look_up_key collate "C" < $3
    order by r.look_up_key collate "C" limit $4
  ), looked as (
    select substr(max(r.look_up_key collate "C"), length($1) + 2) as last from records r having count(*) = $4
  ), shown as (%s)
$query$, image_sync.register_query('records'))
$$;

comment on function image_sync.register_page_query() is 'The beginning of a query of a page of the register: records, as many as $4 of the bucket $1 between the keys $2 and $3, looked, up to which key these are, and shown, what they show.';

-- What a page of the register holds, without the page: to tell whether anything has changed, and where the next page begins.
--   p_after  the key before it, without its bucket
-- Returns {"bucket_id", "rows": p_limit at most, "tag": another one for other rows, "last": the key up to which was looked, null: to the
-- end}. Of records that show nothing a page passes over 20,000 at most: it may be short, or empty, although more follow.
create or replace function public.image_sync_register_tag(p_bucket text default null, p_after text default '', p_limit integer default 20000)
returns jsonb language plpgsql stable set search_path = '' set lock_timeout = '1s'
set enable_seqscan = 'off' set enable_bitmapscan = 'off' set enable_sort = 'off' as $$
declare
  v_bucket constant text := (
    select s.bucket_id
    from image_sync.settings s
    where s.bucket_id = p_bucket or p_bucket is null
    order by s.register desc, s.bucket_id = 'part-images' desc, s.bucket_id collate "C" limit 1
  );
  v_limit constant integer := least(greatest(coalesce(p_limit, 20000), 1), 20000);
  v_page jsonb;
begin
  if v_bucket is null then
    return image_sync.unknown_bucket(coalesce(p_bucket, '(none)'), 'read the register of bucket %s');
  end if;
  execute image_sync.register_page_query() || $query$
    select jsonb_build_object(
      'bucket_id', $1,
      'rows', count(*),
      'tag', md5(concat_ws(' ', count(*), bit_xor(page.hash), sum(page.hash))),
      'last', case when count(*) = $5 then substr(max(page.look_up_key), length($1) + 2) else (select l.last from looked l) end
    )
    from (
      select
        s.look_up_key,
        hashtextextended(concat_ws(chr(31), s.part_number, s.file_name, s.signed_url, extract(epoch from s.signed_url_expires_at)), 0) as hash
      from shown s
      order by s.look_up_key limit $5
    ) as page
  $query$
  into v_page
  -- What follows the slash is a zero.
  using v_bucket, v_bucket || '/' || coalesce(p_after, ''), v_bucket || '0', greatest(v_limit, 5000), v_limit;
  return v_page;
end;
$$;

comment on function public.image_sync_register_tag(text, text, integer) is 'A tag of a page of the register, 1 to 20,000 rows behind p_after: {"bucket_id", "rows", "tag", "last"}. Without p_bucket it is that of public.part_register. Problem: unknown_bucket (404).';

-- A page of the register as lines of CSV (RFC 4180): every field in quotes, so that no other separator splits it. A text that a
-- spreadsheet would run begins with an apostrophe, unless p_raw: behind spaces and invisible characters a sign that begins a formula,
-- of full width too, or a tab or line break.
--   p_after, p_until  keys as image_sync_register_tag gives them; null: to the end
-- Returns {"csv", "last": the key up to which was looked, null: to the end}.
create or replace function public.image_sync_register(
  p_bucket text, p_after text default '', p_until text default null, p_raw boolean default false, p_limit integer default 5000
)
returns jsonb language plpgsql stable set search_path = '' set lock_timeout = '1s'
set enable_seqscan = 'off' set enable_bitmapscan = 'off' set enable_sort = 'off' as $$
declare
  v_runs constant text := case
    -- Matches nothing.
    when p_raw then '$.'
    else '^([\t\r\n]|[\u0001-\u0020\u007f-\u00a0\u00ad\u061c\u1680\u180e\u2000-\u200f\u2028-\u202f\u205f-\u206f\u3000\ufeff]*[=+@\uff1d\uff0b\uff0d\uff20-])'
  end;
  v_page jsonb;
begin
  execute image_sync.register_page_query() || $query$
    select jsonb_build_object(
      'csv', coalesce(string_agg(
        '"' || case when s.part_number ~ $5 then '''' else '' end || replace(s.part_number, '"', '""')
        || '","' || case when s.file_name ~ $5 then '''' else '' end || replace(s.file_name, '"', '""')
        || '","' || replace(s.signed_url, '"', '""')
        || '","' || to_char(s.signed_url_expires_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') || e'"\r\n',
        '' order by s.look_up_key
      ), ''),
      'last', (select l.last from looked l)
    )
    from shown s
  $query$
  into v_page
  using
    p_bucket, p_bucket || '/' || coalesce(p_after, ''), case when p_until is null then p_bucket || '0' else p_bucket || '/' || p_until || chr(1) end,
    least(greatest(coalesce(p_limit, 5000), 1), 5000), v_runs;
  return v_page;
end;
$$;

comment on function public.image_sync_register(text, text, text, boolean, integer) is 'A page of the register of a bucket as lines of CSV, what the next records show, 1 to 5,000 behind p_after and not behind p_until: {"csv", "last"}. What a spreadsheet would run begins with an apostrophe, unless p_raw.';

-- privileges

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
