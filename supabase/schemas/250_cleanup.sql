-- set
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
