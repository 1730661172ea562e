-- set
-- Cleanup and restore. Nothing is removed that a person has not seen listed first: a dry run keeps its list in its chunks, a
-- confirmed run applies exactly that list, and what it removes stands whole in the archive until a restore brings it back.

-- The guards: what has to hold before the first record is removed or put back. Each refusal has its code, its numbers and the
-- way out; only too_many_records, too_large_fraction and bucket_empty can be overridden, by name.

-- Whether it excludes, or is excluded by, what is there already.
create or replace function image_sync.guard_start(p_bucket_id text, p_mode text, p_options jsonb)
returns jsonb
language plpgsql
set search_path = ''
as $$
declare
  v_open record;
begin
  select r.id, r.mode
  into v_open
  from image_sync.runs r
  where r.bucket_id = p_bucket_id
    and r.mode in ('cleanup', 'restore')
    and r.finished_at is null
  limit 1;
  if found then
    return image_sync.problem(
      409, 'conflicting_run', 'Another run excludes this one',
      format('Cannot start a %s of bucket %s: the %s %s is open. Wait for its end, or cancel it with DELETE ?run=%s.', p_mode, p_bucket_id, v_open.mode, v_open.id, v_open.id),
      jsonb_build_object('open_run', v_open.id)
    );
  end if;
  if p_mode = 'cleanup' and coalesce((p_options ->> 'bucket_is_gone')::boolean, false) and exists (
    select
    from storage.buckets b
    where b.id = p_bucket_id
  ) then
    return image_sync.problem(
      409, 'bucket_exists', 'The bucket is there',
      format('Cannot clean up bucket %s as one that is gone: storage.buckets has it. Start a cleanup that looks at its files: {"mode": "cleanup"}.', p_bucket_id)
    );
  end if;
  return null;
end;
$$;

comment on function image_sync.guard_start(text, text, jsonb) is 'Why a cleanup or restore may not start beside what is there already, as a problem, or null.';

create or replace function image_sync.plan_of_another_bucket(p_bucket_id text, p_plan uuid, p_plan_bucket text)
returns jsonb
language plpgsql
immutable
set search_path = ''
as $$
begin
  return image_sync.problem(
    409, 'plan_of_another_bucket', 'The list is of another bucket',
    format('Cannot apply run %s to bucket %s: it is a run of bucket %s. Name that bucket.', p_plan, p_bucket_id, p_plan_bucket),
    jsonb_build_object('plan_bucket', p_plan_bucket)
  );
end;
$$;

comment on function image_sync.plan_of_another_bucket(text, uuid, text) is 'The problem that a list is of another bucket than the one it should be applied to.';

-- Whether there is something to put back: what the archive holds, whatever became of the cleanup's own row.
create or replace function image_sync.guard_restore(p_bucket_id text, p_cleanup uuid, out problem jsonb, out total bigint)
language plpgsql
set search_path = ''
as $$
declare
  v_cleanup image_sync.runs;
  v_cleanup_bucket text;
  v_archived_in text;
begin
  select r.*
  into v_cleanup
  from image_sync.runs r
  where r.id = p_cleanup;
  select a.bucket_id
  into v_archived_in
  from image_sync.archive a
  where a.run_id = p_cleanup
  limit 1;
  v_cleanup_bucket := coalesce(v_cleanup.bucket_id, v_archived_in);
  -- For progress alone, so it is not counted to the end.
  select count(*)
  into total
  from (
    select
    from image_sync.archive a
    where a.run_id = p_cleanup
      and a.restored_at is null
    limit 10000
  ) as counted;
  if total = 10000 then
    total := greatest(total, (v_cleanup.summary #>> '{totals,removed}')::bigint);
  end if;
  if (v_cleanup.id is null and v_archived_in is null) or v_cleanup.mode <> 'cleanup' or (v_cleanup.id is not null and v_cleanup.plan_id is null) then
    problem := image_sync.problem(
      404, 'unknown_plan', 'There is no such list',
      format('Cannot restore %s: it is not a cleanup that removed records. The archive says which are: select distinct run_id from image_sync.archive;', p_cleanup)
    );
  elsif v_cleanup_bucket <> p_bucket_id then
    problem := image_sync.plan_of_another_bucket(p_bucket_id, p_cleanup, v_cleanup_bucket);
  elsif (v_cleanup.id is not null and v_cleanup.finished_at is null) or total = 0 then
    problem := image_sync.problem(
      409, 'nothing_to_restore', 'There is nothing to restore',
      format('Cannot restore cleanup %s: it is open, or the archive holds no record of it that is not back already. The archive says which are: select distinct run_id from image_sync.archive where restored_at is null;', p_cleanup)
    );
  end if;
end;
$$;

comment on function image_sync.guard_restore(text, uuid) is 'Why a cleanup cannot be restored, as a problem, or null; and about how many of its records are in the archive still.';

-- Whether the list is a whole one of this bucket that nobody has applied. p_run is the run of that id, or null where there is none.
create or replace function image_sync.guard_plan(p_bucket_id text, p_plan uuid, p_run image_sync.runs)
returns jsonb
language plpgsql
set search_path = ''
as $$
declare
  v_applied uuid;
begin
  if p_run.id is null or p_run.mode <> 'cleanup' or p_run.plan_id is not null then
    return image_sync.problem(
      404, 'unknown_plan', 'There is no such list',
      format('Cannot confirm %s: it is not a dry run of a cleanup. Start one with {"mode": "cleanup"} and confirm its id.', p_plan)
    );
  elsif p_run.bucket_id <> p_bucket_id then
    return image_sync.plan_of_another_bucket(p_bucket_id, p_plan, p_run.bucket_id);
  elsif p_run.outcome is distinct from 'succeeded' then
    return image_sync.problem(
      409, 'plan_not_finished', 'The list is not complete',
      format('Cannot confirm dry run %s: it is %s, not succeeded. Start a new one with {"mode": "cleanup"}.', p_plan, coalesce(p_run.outcome, 'open'))
    );
  end if;
  select r.id
  into v_applied
  from image_sync.runs r
  where r.plan_id = p_plan
    and r.mode = 'cleanup';
  if found then
    return image_sync.problem(
      409, 'plan_already_applied', 'The list was applied already',
      format('Cannot confirm dry run %s: run %s applied it. Start a new one with {"mode": "cleanup"} to see what is left.', p_plan, v_applied),
      jsonb_build_object('applied_by', v_applied)
    );
  end if;
  return null;
end;
$$;

comment on function image_sync.guard_plan(text, uuid, image_sync.runs) is 'Why a run is no list that can be confirmed for a bucket, as a problem, or null.';

-- Whether the bucket is still the one that the list was made of. The list says whether that was one that is gone; whoever confirms
-- it need not say it again.
create or replace function image_sync.guard_bucket(p_plan image_sync.runs, p_options jsonb)
returns jsonb
language plpgsql
set search_path = ''
as $$
declare
  v_is_gone constant boolean := coalesce((p_plan.options ->> 'bucket_is_gone')::boolean, false);
  v_bucket record;
begin
  select b.id, b.created_at
  into v_bucket
  from storage.buckets b
  where b.id = p_plan.bucket_id;
  if v_bucket.id is null and not v_is_gone then
    return image_sync.problem(
      409, 'bucket_missing', 'The bucket does not exist',
      format('Cannot clean up bucket %s: storage.buckets has no such id. Without a bucket every record looks orphaned. If it is gone for good: {"mode": "cleanup", "bucket_is_gone": true}.', p_plan.bucket_id)
    );
  elsif v_bucket.created_at is distinct from p_plan.bucket_created_at then
    return image_sync.problem(
      409, 'bucket_recreated', 'The bucket was deleted and made again',
      format('Cannot confirm dry run %s: bucket %s was made at %s, after that list. Start a new one with {"mode": "cleanup"}, look at it, and confirm that.', p_plan.id, p_plan.bucket_id, v_bucket.created_at),
      jsonb_build_object('bucket_created_at', v_bucket.created_at, 'plan_bucket_created_at', p_plan.bucket_created_at)
    );
  elsif p_plan.finished_at < now() - interval '1 day' then
    return image_sync.problem(
      409, 'plan_expired', 'The list is older than a day',
      format('Cannot confirm dry run %s: it ended at %s. Start a new one with {"mode": "cleanup"} and confirm that.', p_plan.id, p_plan.finished_at),
      jsonb_build_object('finished_at', p_plan.finished_at, 'max_age_hours', 24)
    );
  elsif not v_is_gone and not coalesce((p_options ->> 'allow_empty_bucket')::boolean, false) and not exists (
    select
    from image_sync.objects o
    where o.bucket_id = p_plan.bucket_id
    order by o.name collate "C"
    offset 0
  ) then
    return image_sync.problem(
      409, 'bucket_empty', 'The bucket is empty',
      format('Cannot clean up bucket %s: it holds no file, so every record looks orphaned. If that is meant: {"mode": "cleanup", "confirm": "%s", "allow_empty_bucket": true, "max_delete_fraction": 1}.', p_plan.bucket_id, p_plan.id)
    );
  end if;
  return null;
end;
$$;

comment on function image_sync.guard_bucket(image_sync.runs, jsonb) is 'Why the bucket is no longer what a list of it says, as a problem, or null.';

-- Whether the list is no longer, and no larger a part of the table, than the settings or the request allow.
create or replace function image_sync.guard_amount(p_plan image_sync.runs, p_options jsonb)
returns jsonb
language plpgsql
set search_path = ''
as $$
declare
  v_settings image_sync.settings;
  v_total constant bigint := (p_plan.summary #>> '{totals,orphaned}')::bigint;
  v_records constant bigint := (p_plan.summary #>> '{totals,records}')::bigint;
  v_max_count bigint;
  v_max_fraction numeric;
begin
  select s.*
  into v_settings
  from image_sync.settings s
  where s.bucket_id = p_plan.bucket_id;
  v_max_count := coalesce((p_options ->> 'max_delete_count')::bigint, v_settings.max_delete_count);
  v_max_fraction := coalesce((p_options ->> 'max_delete_fraction')::numeric, v_settings.max_delete_fraction);
  if v_total > v_max_count then
    return image_sync.problem(
      409, 'too_many_records', 'The list is longer than allowed',
      format('Cannot remove %s of %s records: at most %s are allowed (max_delete_count). If all of them should go: {"mode": "cleanup", "confirm": "%s", "max_delete_count": %s}.', v_total, v_records, v_max_count, p_plan.id, v_total),
      jsonb_build_object('planned', v_total, 'records', v_records, 'max_delete_count', v_max_count)
    );
  -- Of a bucket that is gone every record is meant.
  elsif not coalesce((p_plan.options ->> 'bucket_is_gone')::boolean, false) and v_total > v_records * v_max_fraction then
    return image_sync.problem(
      409, 'too_large_fraction', 'The list is too large a part of the table',
      format('Cannot remove %s of %s records (%s %%): at most %s %% are allowed (max_delete_fraction). If all of them should go: {"mode": "cleanup", "confirm": "%s", "max_delete_fraction": %s}.', v_total, v_records, round(100.0 * v_total / v_records, 1), round(100 * v_max_fraction, 1), p_plan.id, round(least(ceil(10000.0 * v_total / v_records) / 10000, 1), 4)),
      jsonb_build_object('planned', v_total, 'records', v_records, 'fraction', round(1.0 * v_total / v_records, 4), 'max_delete_fraction', v_max_fraction)
    );
  end if;
  return null;
end;
$$;

comment on function image_sync.guard_amount(image_sync.runs, jsonb) is 'Why a list names more records than may be removed, as a problem with the numbers, or null.';

create or replace function image_sync.check_guards(
  p_bucket_id text,
  p_mode text,
  p_options jsonb,
  out problem jsonb,
  out plan uuid,
  out total bigint
)
language plpgsql
set search_path = ''
as $$
declare
  v_plan image_sync.runs;
begin
  plan := coalesce(p_options ->> 'confirm', p_options ->> 'restore')::uuid;
  problem := image_sync.guard_start(p_bucket_id, p_mode, p_options);
  if problem is not null or plan is null then
    return;
  end if;
  if p_mode = 'restore' then
    select g.problem, g.total
    into problem, total
    from image_sync.guard_restore(p_bucket_id, plan) as g;
    return;
  end if;
  select r.*
  into v_plan
  from image_sync.runs r
  where r.id = plan;
  -- The first that does not hold is told: the rest is not looked at.
  problem := coalesce(
    image_sync.guard_plan(p_bucket_id, plan, v_plan),
    image_sync.guard_bucket(v_plan, p_options),
    image_sync.guard_amount(v_plan, p_options)
  );
  total := (v_plan.summary #>> '{totals,orphaned}')::bigint;
end;
$$;

comment on function image_sync.check_guards(text, text, jsonb) is
  'Why a cleanup or restore may not start, as a problem, or which plan it applies and how many records that names. Codes: conflicting_run, bucket_exists, unknown_plan, plan_of_another_bucket, nothing_to_restore, plan_not_finished, plan_already_applied, bucket_missing, bucket_recreated, plan_expired, bucket_empty, too_many_records, too_large_fraction.';

-- Which of these records other tables point to. Deleting one could take their rows with it (on delete cascade) or change them.
-- Compared as the foreign key compares, by its own operators and collation: to citext AB-1 is ab-1. A record's reference to itself
-- goes with it. Security definer, because service_role need not be able to read those tables; it says only which names are
-- referenced. A table of which it may not see every row is an error, not a table without references.
create or replace function image_sync.referenced_names(p_bucket_id text, p_names text[])
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
        '%I operator(%I.%s) r.%I%s', ours.attname, n.nspname, o.oprname, theirs.attname,
        case when ours.attcollation <> theirs.attcollation then ' collate ' || ours.attcollation::regcollation else '' end
      ) as comparison
      from unnest(c.conkey, c.confkey, c.conpfeqop) as f (theirs, ours, operator)
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
    where c.contype = 'f'
      and c.confrelid = 'public.part_images'::regclass
      -- A partition's copy of the key is its table's.
      and c.conparentid = 0
    group by c.oid, c.conrelid, c.confrelid
  loop
    execute format(
      'select coalesce(array_agg(distinct p.file_name), ''{}'') from unnest($2) as n (name) cross join lateral (select q.* from public.part_images q where q.bucket_id = $1 and q.file_name collate "C" >= n.name and q.file_name collate "C" <= n.name order by q.file_name collate "C" limit 1) as p join %s r on %s where (%s) is not true',
      v_key.referencing_table, v_key.matches, v_key.refers_to_itself
    )
    into v_names
    using p_bucket_id, p_names;
    v_referenced := v_referenced || v_names;
  end loop;
  return v_referenced;
end;
$$;

comment on function image_sync.referenced_names(text, text[]) is 'Those of the given records that other rows refer to by a foreign key. Raises insufficient_privilege where a table that may refer to them cannot be seen whole.';

-- Moves records that are orphaned at this moment to the archive, in one statement: nothing can come between check and move.
create or replace function image_sync.archive_orphans(p_run image_sync.runs, p_names text[])
returns text[]
language sql
set search_path = ''
as $$
  with removed as (
    -- By their places, which stay: the caller holds the rows.
    delete from public.part_images p
    where p.ctid = any (array(
      select r.ctid
      from unnest(p_names) as n (name)
      -- A range and an order that only the index of names gives, here and below: one look for each, whatever the statistics say.
      cross join lateral (
        select q.ctid, q.bucket_id, q.file_name, q.object_id
        from public.part_images q
        where q.bucket_id = p_run.bucket_id
          and q.file_name collate "C" >= n.name
          and q.file_name collate "C" <= n.name
        order by q.file_name collate "C"
        limit 1
      ) as r
      where not exists (
          select
          from image_sync.objects o
          where o.bucket_id = p_run.bucket_id
            and o.name collate "C" >= n.name
            and o.name collate "C" <= n.name
          order by o.name collate "C"
          offset 0
        )
        -- Its file has another name by now: a sync takes the record along.
        and not exists (
          select
          from image_sync.destination_of(r.bucket_id, r.file_name, r.object_id)
        )
    ))
    -- The row, also where its owner has a column p.
    returning p.file_name, to_jsonb(p.*) as record
  ), archived as (
    insert into image_sync.archive (bucket_id, file_name, record, reason, run_id)
    select p_run.bucket_id, removed.file_name, removed.record, 'orphaned', p_run.id
    from removed
    returning file_name
  )
  select coalesce(array_agg(archived.file_name), '{}')
  from archived;
$$;

comment on function image_sync.archive_orphans(image_sync.runs, text[]) is 'Moves those of the named records that have no object to the archive and returns their names.';

-- The next names of a confirmed list, in key order.
create or replace function image_sync.listed_names(p_run image_sync.runs, p_size integer)
returns text[]
language plpgsql
stable
set search_path = ''
as $$
declare
  v_names text[] := array[]::text[];
  v_number integer;
begin
  -- Chunk by chunk, because a list may have a million names and a call wants the next thousand.
  for v_number in
    select c.number
    from image_sync.chunks c
    where c.run_id = p_run.plan_id
      and c.ledger ? 'orphaned'
      and coalesce(c.to_key collate "C" > p_run.cursor, true)
    order by c.from_key collate "C"
  loop
    v_names := v_names || array(
      select listed.name
      from image_sync.chunks c
      cross join lateral jsonb_array_elements_text(c.facts -> 'orphaned') as listed (name)
      where c.run_id = p_run.plan_id
        and c.number = v_number
        and listed.name collate "C" > p_run.cursor
      order by listed.name collate "C"
      limit p_size - cardinality(v_names)
    );
    exit when cardinality(v_names) >= p_size;
  end loop;
  return v_names;
end;
$$;

comment on function image_sync.listed_names(image_sync.runs, integer) is 'At most p_size names of the run''s plan, those behind its cursor.';

-- Moves orphaned records to the archive, and looks once more for their files afterwards: a slow trigger leaves time for an upload.
create or replace function image_sync.archive_checked(p_run image_sync.runs, p_names text[])
returns text[]
language plpgsql
set search_path = ''
as $$
declare
  v_removed text[] := image_sync.archive_orphans(p_run, p_names);
begin
  perform image_sync.check_deferred();
  if exists (
    select
    from unnest(v_removed) as n (name)
    cross join lateral (
      select
      from image_sync.objects o
      where o.bucket_id = p_run.bucket_id
        and o.name collate "C" >= n.name
        and o.name collate "C" <= n.name
      order by o.name collate "C"
      limit 1
    ) as back
  ) then
    raise exception 'A file is in the bucket again'
      using errcode = 'ISB01', hint = 'Try the records one by one.';
  end if;
  return v_removed;
end;
$$;

comment on function image_sync.archive_checked(image_sync.runs, text[]) is
  'Moves those of the named records that have no object to the archive and returns their names. Raises ISB01, and moves none, where the file of one came back meanwhile.';

-- Removes records one by one: what is refused or held costs itself alone. The caller holds their row locks.
create or replace function image_sync.archive_one_by_one(p_run image_sync.runs, p_names text[], out removed text[], out problems jsonb)
language plpgsql
set search_path = ''
as $$
declare
  v_since constant timestamptz := clock_timestamp();
  v_name text;
begin
  removed := '{}';
  problems := '[]';
  foreach v_name in array p_names loop
    -- The row is ours; a trigger of the table's owner, or a table that refers to it, may want others.
    perform set_config('lock_timeout', image_sync.row_patience(v_since), true);
    begin
      removed := removed || image_sync.archive_checked(p_run, array[v_name]);
    exception
      when others then
        if image_sync.is_held(sqlstate) then
          problems := problems || image_sync.item_problem(v_name, 'locked', 'Kept: somebody else holds what its removal needs');
        elsif sqlstate = 'ISB01' then
          problems := problems || image_sync.item_problem(v_name, 'file_is_back', 'Kept: its file is in the bucket again');
        elsif sqlstate = '23503' then
          problems := problems || image_sync.item_problem(v_name, 'referenced', 'Kept: a row of another table refers to it');
        elsif image_sync.is_refusal(sqlstate) or sqlstate = '42501' then
          problems := problems || image_sync.item_problem(v_name, 'refused_by_table', 'Kept: the table refused to delete it: ' || sqlerrm);
        else
          raise;
        end if;
    end;
  end loop;
end;
$$;

comment on function image_sync.archive_one_by_one(image_sync.runs, text[]) is
  'Moves each of the named records that have no object to the archive by itself. Returns the names removed, and the problems of those that were refused or held.';

-- Removes what it may of a list: first the rows are locked, then they are looked at, each look a statement of its own that sees what is
-- committed by then. So nobody can refer to a record, or change it, between the look and its removal: whoever tries waits for
-- this transaction and finds the record gone, and whoever was first holds a lock that makes us keep the record.
-- A file that is uploaded takes no lock that could be seen: it is looked for in the statement that deletes and once more after it.
create or replace function image_sync.remove_records(p_run image_sync.runs, p_names text[], out removed text[], out problems jsonb)
language plpgsql
set search_path = ''
set lock_timeout = '400ms'
as $$
declare
  v_locked text[];
  v_referenced text[];
  v_free text[];
  v_rest record;
begin
  removed := '{}';
  v_locked := array(
    select p.file_name
    from unnest(p_names) as n (name)
    cross join lateral (
      select q.file_name
      from public.part_images q
      where q.bucket_id = p_run.bucket_id
        and q.file_name collate "C" >= n.name
        and q.file_name collate "C" <= n.name
      order by q.file_name collate "C"
      limit 1
      for update skip locked
    ) as p
  );
  begin
    v_referenced := image_sync.referenced_names(p_run.bucket_id, v_locked);
  exception
    when lock_not_available or deadlock_detected then
      -- A table that refers to ours is held: nobody knows what it refers to.
      problems := (
        select coalesce(jsonb_agg(image_sync.item_problem(l.name, 'locked', 'Kept: a table that may refer to it is held by somebody else')), '[]')
        from unnest(v_locked) as l (name)
      );
      return;
    when insufficient_privilege then
      problems := (
        select coalesce(jsonb_agg(image_sync.item_problem(l.name, 'referenced', 'Kept: whether another table refers to it cannot be seen: ' || sqlerrm)), '[]')
        from unnest(v_locked) as l (name)
      );
      return;
  end;
  problems := (
    select coalesce(jsonb_agg(image_sync.item_problem(r.name, 'referenced', 'Kept: a row of another table refers to it')), '[]')
    from unnest(v_referenced) as r (name)
  );
  v_free := array(
    select l.name
    from unnest(v_locked) as l (name)
    where l.name <> all (v_referenced)
  );
  begin
    removed := image_sync.archive_checked(p_run, v_free);
  exception
    when others then
      if not image_sync.is_held(sqlstate) and not image_sync.is_refusal(sqlstate) and sqlstate <> '42501' then
        raise;
      elsif image_sync.is_held(sqlstate) then
        perform image_sync.need_table();
      end if;
      v_rest := image_sync.archive_one_by_one(p_run, v_free);
      removed := v_rest.removed;
      problems := problems || v_rest.problems;
  end;
end;
$$;

comment on function image_sync.remove_records(image_sync.runs, text[]) is
  'Locks the named records, looks at them, and moves those to the archive that have no file and that nothing refers to. Returns the names removed, and problems: referenced, locked, file_is_back, refused_by_table.';

-- Why a record of the list that is still to be accounted for was kept.
create or replace function image_sync.skip_reason(p_bucket_id text, p_name text)
returns jsonb
language plpgsql
set search_path = ''
as $$
begin
  return case
    when exists (
      select
      from image_sync.objects o
      where o.bucket_id = p_bucket_id
        and o.name collate "C" >= p_name
        and o.name collate "C" <= p_name
      order by o.name collate "C"
      offset 0
    ) then image_sync.item_problem(p_name, 'file_is_back', 'Kept: its file is in the bucket again')
    when not exists (
      select
      from public.part_images p
      where p.bucket_id = p_bucket_id
        and p.file_name collate "C" = p_name
    ) then image_sync.item_problem(p_name, 'record_is_gone', 'Skipped: the record was removed by somebody else')
    when not exists (
      select
      from public.part_images p
      where p.bucket_id = p_bucket_id
        and p.file_name collate "C" = p_name
      for update skip locked
    ) then image_sync.item_problem(p_name, 'locked', 'Kept: somebody else holds it')
    when exists (
      select
      from public.part_images p
      cross join lateral image_sync.destination_of(p.bucket_id, p.file_name, p.object_id) as d
      where p.bucket_id = p_bucket_id
        and p.file_name collate "C" = p_name
    ) then image_sync.item_problem(p_name, 'file_has_moved', 'Kept: its file has another name by now, and the next sync takes the record along')
    else image_sync.item_problem(p_name, 'refused_by_table', 'Kept: a trigger of the table refused to delete it')
  end;
end;
$$;

comment on function image_sync.skip_reason(text, text) is 'Why a listed record was not removed, as a problem: file_is_back, record_is_gone, locked, file_has_moved or refused_by_table.';

-- Applies the next part of the confirmed list.
create or replace function image_sync.apply_plan_chunk(p_run image_sync.runs, p_settings image_sync.settings, out chunk image_sync.chunks)
language plpgsql
set search_path = ''
as $$
declare
  v_size constant integer := image_sync.chunk_size(p_run, p_settings);
  v_listed constant text[] := image_sync.listed_names(p_run, v_size);
  v_removal record;
begin
  v_removal := image_sync.remove_records(p_run, v_listed);
  chunk.from_key := p_run.cursor;
  chunk.to_key := case when cardinality(v_listed) = v_size then v_listed[v_size] end;
  chunk.ledger := jsonb_build_object('removed', cardinality(v_removal.removed), 'skipped', cardinality(v_listed) - cardinality(v_removal.removed));
  chunk.problems := v_removal.problems || (
    select coalesce(jsonb_agg(image_sync.skip_reason(p_run.bucket_id, l.name)), '[]')
    from unnest(v_listed) as l (name)
    where l.name <> all (v_removal.removed)
      and not exists (
        select
        from jsonb_to_recordset(v_removal.problems) as known (name text)
        where known.name = l.name
      )
  );
end;
$$;

comment on function image_sync.apply_plan_chunk(image_sync.runs, image_sync.settings) is
  'Moves what the next part of the confirmed list names, and is still orphaned, to the archive. Everything else on the list is skipped and named with the reason.';

-- Puts one archived record back, id, timestamps and the owner's columns included. Null where it is back, else why it is not.
create or replace function image_sync.restore_record(p_record jsonb)
returns text
language plpgsql
set search_path = ''
as $$
declare
  v_columns text;
  v_schema text;
  v_table text;
begin
  select string_agg(format('%I', a.attname), ', ')
  into v_columns
  from pg_catalog.pg_attribute a
  where a.attrelid = 'public.part_images'::regclass
    and a.attnum > 0
    and not a.attisdropped
    and a.attgenerated = ''
    and p_record ? a.attname;
  execute format(
    'insert into public.part_images (%1$s) overriding system value select %1$s from jsonb_populate_record(null::public.part_images, $1)',
    v_columns
  )
  using p_record;
  perform image_sync.check_deferred();
  return null;
exception
  -- Not "on conflict do nothing": that refuses every row of a table with a deferrable key.
  when others then
    get stacked diagnostics v_schema = schema_name, v_table = table_name;
    if image_sync.is_taken(sqlstate, v_schema, v_table) then
      return 'Skipped: its place was taken meanwhile by another record of the file, or of its id or part number. Compare the two, remove or change the one in the table, and restore again';
    elsif image_sync.is_held(sqlstate) then
      perform image_sync.need_table();
      return 'Skipped: somebody else holds its place. Restore again later';
    elsif image_sync.is_refusal(sqlstate) then
      return image_sync.redact(format('Skipped: the table refused it: %s', sqlerrm));
    end if;
    raise;
end;
$$;

comment on function image_sync.restore_record(jsonb) is 'Inserts an archived row again, whole. Returns null, or in words why the table did not take it.';

-- Restores the next records of a cleanup run, in key order.
create or replace function image_sync.restore_chunk(p_run image_sync.runs, p_settings image_sync.settings, out chunk image_sync.chunks)
language plpgsql
set search_path = ''
set lock_timeout = '400ms'
as $$
declare
  v_since constant timestamptz := clock_timestamp();
  v_size constant integer := image_sync.chunk_size(p_run, p_settings);
  v_archived record;
  v_refusal text;
  v_taken integer := 0;
begin
  chunk.from_key := p_run.cursor;
  chunk.ledger := '{}';
  chunk.problems := '[]';
  for v_archived in
    select a.id, a.file_name, a.record
    from image_sync.archive a
    where a.run_id = p_run.plan_id
      and a.restored_at is null
      and a.file_name collate "C" > p_run.cursor
    order by a.file_name collate "C"
    limit v_size
  loop
    v_taken := v_taken + 1;
    perform set_config('lock_timeout', image_sync.row_patience(v_since), true);
    v_refusal := image_sync.restore_record(v_archived.record);
    if v_refusal is null then
      update image_sync.archive a
      set restored_at = now()
      where a.id = v_archived.id;
      chunk.ledger := image_sync.add_counts(chunk.ledger, '{"restored": 1}');
    else
      chunk.ledger := image_sync.add_counts(chunk.ledger, '{"skipped": 1}');
      chunk.problems := chunk.problems || image_sync.item_problem(v_archived.file_name, 'not_restored', v_refusal);
    end if;
    chunk.to_key := v_archived.file_name;
  end loop;
  if v_taken < v_size then
    chunk.to_key := null;
  end if;
end;
$$;

comment on function image_sync.restore_chunk(image_sync.runs, image_sync.settings) is
  'Puts the next records of a cleanup run back from the archive; one whose place was taken meanwhile, or that the table refuses, is skipped and named.';

-- Stores a chunk of a run that applies a plan. Nothing is signed, so it is done at once.
create or replace function image_sync.add_settled_chunk(p_run image_sync.runs, p_worker uuid, p_chunk image_sync.chunks)
returns image_sync.chunks
language plpgsql
set search_path = ''
as $$
declare
  v_chunk image_sync.chunks;
begin
  insert into image_sync.chunks (run_id, number, from_key, to_key, state, worker_id, ledger, problems, closed_at)
  values (
    p_run.id, image_sync.next_number(p_run.id), p_chunk.from_key, p_chunk.to_key, 'done', p_worker,
    image_sync.add_counts(p_chunk.ledger, null), p_chunk.problems, clock_timestamp()
  )
  returning *
  into v_chunk;
  return v_chunk;
end;
$$;

comment on function image_sync.add_settled_chunk(image_sync.runs, uuid, image_sync.chunks) is 'Stores a done chunk of a confirmed cleanup or a restore. The caller holds the run''s row lock.';

-- Makes the next chunk of a run that applies a plan: a confirmed cleanup or a restore.
create or replace function image_sync.settle_chunk(p_run image_sync.runs, p_settings image_sync.settings, p_worker uuid)
returns image_sync.chunks
language plpgsql
set search_path = ''
as $$
begin
  return image_sync.add_settled_chunk(p_run, p_worker, case
    when p_run.mode = 'cleanup' then image_sync.apply_plan_chunk(p_run, p_settings)
    else image_sync.restore_chunk(p_run, p_settings)
  end);
end;
$$;

comment on function image_sync.settle_chunk(image_sync.runs, image_sync.settings, uuid) is 'Makes and closes the next chunk of a confirmed cleanup or a restore.';

-- Leaves the next record of a plan as it is, because the database cannot deal with it in its time.
create or replace function image_sync.skip_next(p_run image_sync.runs, p_worker uuid, p_error jsonb)
returns image_sync.chunks
language plpgsql
set search_path = ''
as $$
declare
  v_chunk image_sync.chunks;
begin
  v_chunk.from_key := p_run.cursor;
  v_chunk.to_key := case
    when p_run.mode = 'cleanup' then (image_sync.listed_names(p_run, 1))[1]
    else (
      select a.file_name
      from image_sync.archive a
      where a.run_id = p_run.plan_id
        and a.restored_at is null
        and a.file_name collate "C" > p_run.cursor
      order by a.file_name collate "C"
      limit 1
    )
  end;
  v_chunk.ledger := jsonb_build_object('skipped', case when v_chunk.to_key is null then 0 else 1 end);
  v_chunk.problems := case
    when v_chunk.to_key is null then '[]'
    else jsonb_build_array(image_sync.item_problem(v_chunk.to_key, p_error ->> 'code', p_error ->> 'detail'))
  end;
  return image_sync.add_settled_chunk(p_run, p_worker, v_chunk);
end;
$$;

comment on function image_sync.skip_next(image_sync.runs, uuid, jsonb) is
  'Makes and closes a chunk of just the next record of a cleanup''s list or a restore, which is skipped and named with the database''s error.';

-- The whole list of a dry run, page by page: nothing is removed that nobody could see listed first.
--   p_after  names behind this one in byte order; p_limit  at most so many, 1 to 1,000
-- Returns {"plan": {"run", "count", "names", "next"}}: next is the p_after of the next page, null at the end.
create or replace function public.image_sync_plan(p_run uuid, p_after text default '', p_limit integer default 1000)
returns jsonb
language plpgsql
stable
set search_path = ''
set lock_timeout = '1s'
as $$
declare
  v_run image_sync.runs;
  v_names text[];
  v_limit constant integer := least(greatest(coalesce(p_limit, 1000), 1), 1000);
begin
  select r.*
  into v_run
  from image_sync.runs r
  where r.id = p_run;
  if v_run.id is null then
    return image_sync.unknown_run(p_run);
  elsif v_run.mode <> 'cleanup' or v_run.plan_id is not null then
    return image_sync.problem(
      404, 'unknown_plan', 'There is no such list',
      format('Cannot list run %s: it is a %s, not a dry run of a cleanup. Start one with {"mode": "cleanup"}.', p_run, v_run.mode)
    );
  end if;
  -- Read as the run that applies it reads it.
  v_run.plan_id := v_run.id;
  v_run.cursor := coalesce(p_after, '');
  v_names := image_sync.listed_names(v_run, v_limit);
  return jsonb_build_object('plan', jsonb_build_object(
    'run', p_run,
    'count', coalesce((v_run.summary #>> '{totals,orphaned}')::bigint, 0),
    'names', to_jsonb(v_names),
    'next', case when cardinality(v_names) = v_limit then v_names[v_limit] end
  ));
end;
$$;

comment on function public.image_sync_plan(uuid, text, integer) is
  'A page of the names that a dry run of a cleanup listed, in key order. Problems: unknown_run, unknown_plan (404).';
