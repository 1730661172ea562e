-- Cleanup and restore. Nothing is removed that a person has not seen listed first: a dry run keeps its list in its chunks, a
-- confirmed run applies exactly that list, and what it removes stands whole in the archive until a restore brings it back.

-- The guards: what has to hold before the first record is removed or put back. Each refusal has its code, its numbers and the
-- way out; only too_many_records, too_large_fraction and bucket_empty can be overridden, by name.
create function image_sync.check_guards(
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
  v_settings image_sync.settings;
  v_plan image_sync.runs;
  v_bucket record;
  v_records bigint;
  v_applied uuid;
  v_max_count bigint;
  v_max_fraction numeric;
begin
  plan := coalesce(p_options ->> 'confirm', p_options ->> 'restore')::uuid;

  select jsonb_build_object('id', r.id, 'mode', r.mode)
  into problem
  from image_sync.runs r
  where r.bucket_id = p_bucket_id
    and r.mode in ('cleanup', 'restore')
    and r.finished_at is null
  limit 1;
  if problem is not null then
    problem := image_sync.problem(
      409, 'conflicting_run', 'Another run excludes this one',
      format('Cannot start a %s of bucket %s: the %s %s is open. Wait for its end, or cancel it with DELETE ?run=%s.', p_mode, p_bucket_id, problem ->> 'mode', problem ->> 'id', problem ->> 'id'),
      jsonb_build_object('open_run', problem ->> 'id')
    );
    return;
  end if;
  if plan is null then
    return;
  end if;

  select r.*
  into v_plan
  from image_sync.runs r
  where r.id = plan;
  if v_plan.id is null or v_plan.mode <> 'cleanup' or (v_plan.plan_id is null) <> (p_mode = 'cleanup') then
    problem := image_sync.problem(
      404, 'unknown_plan', 'There is no such list',
      case
        when p_mode = 'cleanup' then format('Cannot confirm %s: it is not a dry run of a cleanup. Start one with {"mode": "cleanup"} and confirm its id.', plan)
        else format('Cannot restore %s: it is not a cleanup that removed records. The archive says which are: select distinct run_id from image_sync.archive;', plan)
      end
    );
    return;
  end if;
  if v_plan.bucket_id <> p_bucket_id then
    problem := image_sync.problem(
      409, 'plan_of_another_bucket', 'The list is of another bucket',
      format('Cannot apply run %s to bucket %s: it is a run of bucket %s. Name that bucket.', plan, p_bucket_id, v_plan.bucket_id),
      jsonb_build_object('plan_bucket', v_plan.bucket_id)
    );
    return;
  end if;

  if p_mode = 'restore' then
    select count(*)
    into total
    from image_sync.archive a
    where a.run_id = plan
      and a.restored_at is null;
    if v_plan.finished_at is null or total = 0 then
      problem := image_sync.problem(
        409, 'nothing_to_restore', 'There is nothing to restore',
        format('Cannot restore cleanup %s: it is open, or the archive holds no record of it that is not back already. The archive says which are: select distinct run_id from image_sync.archive where restored_at is null;', plan)
      );
    end if;
    return;
  end if;

  if v_plan.outcome is distinct from 'succeeded' then
    problem := image_sync.problem(
      409, 'plan_not_finished', 'The list is not complete',
      format('Cannot confirm dry run %s: it is %s, not succeeded. Start a new one with {"mode": "cleanup"}.', plan, coalesce(v_plan.outcome, 'open'))
    );
    return;
  end if;
  select r.id
  into v_applied
  from image_sync.runs r
  where r.plan_id = v_plan.id
    and r.mode = 'cleanup';
  if found then
    problem := image_sync.problem(
      409, 'plan_already_applied', 'The list was applied already',
      format('Cannot confirm dry run %s: run %s applied it. Start a new one with {"mode": "cleanup"} to see what is left.', plan, v_applied),
      jsonb_build_object('applied_by', v_applied)
    );
    return;
  end if;

  select b.id, b.created_at
  into v_bucket
  from storage.buckets b
  where b.id = p_bucket_id;
  if v_bucket.id is null then
    problem := image_sync.problem(
      409, 'bucket_missing', 'The bucket does not exist',
      format('Cannot clean up bucket %s: storage.buckets has no such id. Without a bucket every record looks orphaned.', p_bucket_id)
    );
    return;
  end if;
  if v_bucket.created_at is distinct from v_plan.bucket_created_at then
    problem := image_sync.problem(
      409, 'bucket_recreated', 'The bucket was deleted and made again',
      format('Cannot confirm dry run %s: bucket %s was made at %s, after that list. Start a new one with {"mode": "cleanup"}, look at it, and confirm that.', plan, p_bucket_id, v_bucket.created_at),
      jsonb_build_object('bucket_created_at', v_bucket.created_at, 'plan_bucket_created_at', v_plan.bucket_created_at)
    );
    return;
  end if;
  if v_plan.finished_at < now() - interval '1 day' then
    problem := image_sync.problem(
      409, 'plan_expired', 'The list is older than a day',
      format('Cannot confirm dry run %s: it ended at %s. Start a new one with {"mode": "cleanup"} and confirm that.', plan, v_plan.finished_at),
      jsonb_build_object('finished_at', v_plan.finished_at, 'max_age_hours', 24)
    );
    return;
  end if;
  if not coalesce((p_options ->> 'allow_empty_bucket')::boolean, false) and not exists (
    select
    from image_sync.objects o
    where o.bucket_id = p_bucket_id
  ) then
    problem := image_sync.problem(
      409, 'bucket_empty', 'The bucket is empty',
      format('Cannot clean up bucket %s: it holds no file, so every record looks orphaned. If that is meant: {"mode": "cleanup", "confirm": "%s", "allow_empty_bucket": true, "max_delete_fraction": 1}.', p_bucket_id, plan)
    );
    return;
  end if;

  select s.*
  into v_settings
  from image_sync.settings s
  where s.bucket_id = p_bucket_id;
  total := (v_plan.summary #>> '{totals,orphaned}')::bigint;
  v_records := (v_plan.summary #>> '{totals,records}')::bigint;
  v_max_count := coalesce((p_options ->> 'max_delete_count')::bigint, v_settings.max_delete_count);
  v_max_fraction := coalesce((p_options ->> 'max_delete_fraction')::numeric, v_settings.max_delete_fraction);
  if total > v_max_count then
    problem := image_sync.problem(
      409, 'too_many_records', 'The list is longer than allowed',
      format('Cannot remove %s of %s records: at most %s are allowed (max_delete_count). If all of them should go: {"mode": "cleanup", "confirm": "%s", "max_delete_count": %s}.', total, v_records, v_max_count, plan, total),
      jsonb_build_object('planned', total, 'records', v_records, 'max_delete_count', v_max_count)
    );
  elsif total > v_records * v_max_fraction then
    problem := image_sync.problem(
      409, 'too_large_fraction', 'The list is too large a part of the table',
      format('Cannot remove %s of %s records (%s %%): at most %s %% are allowed (max_delete_fraction). If all of them should go: {"mode": "cleanup", "confirm": "%s", "max_delete_fraction": %s}.', total, v_records, round(100.0 * total / v_records, 1), round(100 * v_max_fraction, 1), plan, round(least(ceil(10000.0 * total / v_records) / 10000, 1), 4)),
      jsonb_build_object('planned', total, 'records', v_records, 'fraction', round(1.0 * total / v_records, 4), 'max_delete_fraction', v_max_fraction)
    );
  end if;
end;
$$;

comment on function image_sync.check_guards(text, text, jsonb) is
  'Why a cleanup or restore may not start, as a problem, or which plan it applies and how many records that names. Codes: conflicting_run, unknown_plan, plan_of_another_bucket, nothing_to_restore, plan_not_finished, plan_already_applied, bucket_missing, bucket_recreated, plan_expired, bucket_empty, too_many_records, too_large_fraction.';

-- Which of these records other tables point to. Deleting one could take their rows with it (on delete cascade) or change them.
-- Security definer, because service_role need not be able to read those tables; it says only which names are referenced.
create function image_sync.referenced_names(p_bucket_id text, p_names text[])
returns text[]
language plpgsql
stable
security definer
set search_path = ''
as $$
declare
  v_key record;
  v_names text[];
  v_referenced text[] := '{}'::text[];
begin
  for v_key in
    select
      c.conrelid::regclass as referencing_table,
      string_agg(format('t.%I = p.%I', child.attname, parent.attname), ' and ') as condition
    from pg_catalog.pg_constraint c
    cross join lateral unnest(c.conkey, c.confkey) as k (child, parent)
    join pg_catalog.pg_attribute child
      on child.attrelid = c.conrelid
      and child.attnum = k.child
    join pg_catalog.pg_attribute parent
      on parent.attrelid = c.confrelid
      and parent.attnum = k.parent
    where c.contype = 'f'
      and c.confrelid = 'public.part_images'::regclass
    group by c.oid, c.conrelid
  loop
    execute format(
      'select coalesce(array_agg(p.file_name), ''{}'') from public.part_images p where p.bucket_id = $1 and p.file_name collate "C" = any ($2) and exists (select from %s t where %s)',
      v_key.referencing_table, v_key.condition
    )
    into v_names
    using p_bucket_id, p_names;
    v_referenced := v_referenced || v_names;
  end loop;
  return v_referenced;
end;
$$;

comment on function image_sync.referenced_names(text, text[]) is 'Those of the given records that rows of other tables refer to by a foreign key.';

-- Moves records that are orphaned at this moment to the archive, in one statement: nothing can come between check and move.
create function image_sync.archive_orphans(p_run image_sync.runs, p_names text[])
returns text[]
language sql
set search_path = ''
begin atomic
  with removed as (
    delete from public.part_images p
    where p.bucket_id = p_run.bucket_id
      and p.file_name collate "C" = any (p_names)
      and not exists (
        select
        from image_sync.objects o
        where o.bucket_id = p_run.bucket_id
          and o.name collate "C" = p.file_name
      )
    returning p.file_name, to_jsonb(p) as record
  ), archived as (
    insert into image_sync.archive (bucket_id, file_name, record, reason, run_id)
    select p_run.bucket_id, removed.file_name, removed.record, 'orphaned', p_run.id
    from removed
    returning file_name
  )
  select coalesce(array_agg(archived.file_name), '{}')
  from archived;
end;

comment on function image_sync.archive_orphans(image_sync.runs, text[]) is 'Moves those of the named records that have no object to the archive and returns their names.';

-- Applies the list of one chunk of a plan.
create function image_sync.apply_plan_chunk(p_run image_sync.runs, out chunk image_sync.chunks)
language plpgsql
set search_path = ''
as $$
declare
  v_listed text[];
  v_referenced text[];
  v_removed text[] := '{}'::text[];
  v_name text;
begin
  select
    c.from_key,
    c.to_key,
    array(select jsonb_array_elements_text(c.facts -> 'orphaned'))
  into chunk.from_key, chunk.to_key, v_listed
  from image_sync.chunks c
  where c.run_id = p_run.plan_id
    and c.from_key collate "C" >= p_run.cursor
    and c.orphaned > 0
  order by c.number
  limit 1;
  if not found then
    chunk.from_key := p_run.cursor;
    v_listed := '{}';
  end if;

  v_referenced := image_sync.referenced_names(p_run.bucket_id, v_listed);
  begin
    v_removed := image_sync.archive_orphans(p_run, array(
      select n.name
      from unnest(v_listed) as n (name)
      where n.name <> all (v_referenced)
    ));
  exception
    -- A reference that came meanwhile, or a trigger of the table's owner that says no: find out which, so that the others go.
    when integrity_constraint_violation or raise_exception then
      v_removed := '{}';
      foreach v_name in array v_listed loop
        continue when v_name = any (v_referenced);
        begin
          v_removed := v_removed || image_sync.archive_orphans(p_run, array[v_name]);
        exception
          when integrity_constraint_violation then
            v_referenced := v_referenced || v_name;
          when raise_exception then
            null;
        end;
      end loop;
  end;

  chunk.removed := cardinality(v_removed);
  select count(*), coalesce(jsonb_agg(jsonb_build_object('name', rest.name, 'code', rest.code, 'detail', w.words)), '[]')
  into chunk.skipped, chunk.problems
  from (
    select
      n.name,
      case
        when n.name = any (v_referenced) then 'referenced'
        when exists (
          select
          from image_sync.objects o
          where o.bucket_id = p_run.bucket_id
            and o.name collate "C" = n.name
        ) then 'file_is_back'
        when not exists (
          select
          from public.part_images p
          where p.bucket_id = p_run.bucket_id
            and p.file_name collate "C" = n.name
        ) then 'record_is_gone'
        else 'refused_by_table'
      end as code
    from unnest(v_listed) as n (name)
    where n.name <> all (v_removed)
  ) as rest
  join (values
    ('referenced', 'Kept: a row of another table refers to it'),
    ('file_is_back', 'Kept: its file is in the bucket again'),
    ('record_is_gone', 'Skipped: the record was removed by somebody else'),
    ('refused_by_table', 'Kept: a trigger of the table refused to delete it')
  ) as w (code, words) on w.code = rest.code;
end;
$$;

comment on function image_sync.apply_plan_chunk(image_sync.runs) is
  'Moves what one chunk of the confirmed list names, and is still orphaned, to the archive. Everything else on the list is skipped and named with the reason.';

-- Puts one archived record back, id, timestamps and the owner's columns included. Null where it is back, else why it is not.
create function image_sync.restore_record(p_record jsonb)
returns text
language plpgsql
set search_path = ''
as $$
declare
  v_columns text;
  v_restored integer;
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
    'insert into public.part_images (%1$s) overriding system value select %1$s from jsonb_populate_record(null::public.part_images, $1) on conflict do nothing',
    v_columns
  )
  using p_record;
  get diagnostics v_restored = row_count;
  return case when v_restored = 0 then 'Skipped: its place was taken meanwhile' end;
exception
  when integrity_constraint_violation or data_exception or raise_exception then
    return format('Skipped: the table refused it: %s', sqlerrm);
end;
$$;

comment on function image_sync.restore_record(jsonb) is 'Inserts an archived row again, whole. Returns null, or in words why the table did not take it.';

-- Restores the next chunk_size records of a cleanup run, in key order.
create function image_sync.restore_chunk(p_run image_sync.runs, p_settings image_sync.settings, out chunk image_sync.chunks)
language plpgsql
set search_path = ''
as $$
declare
  v_archived record;
  v_refusal text;
  v_taken integer := 0;
begin
  chunk.from_key := p_run.cursor;
  chunk.restored := 0;
  chunk.skipped := 0;
  chunk.problems := '[]';
  for v_archived in
    select a.id, a.file_name, a.record
    from image_sync.archive a
    where a.run_id = p_run.plan_id
      and a.restored_at is null
      and a.file_name collate "C" > p_run.cursor
    order by a.file_name collate "C"
    limit p_settings.chunk_size
  loop
    v_taken := v_taken + 1;
    v_refusal := image_sync.restore_record(v_archived.record);
    if v_refusal is null then
      update image_sync.archive a
      set restored_at = now()
      where a.id = v_archived.id;
      chunk.restored := chunk.restored + 1;
    else
      chunk.skipped := chunk.skipped + 1;
      chunk.problems := chunk.problems || jsonb_build_object('name', v_archived.file_name, 'code', 'not_restored', 'detail', v_refusal);
    end if;
    chunk.to_key := v_archived.file_name;
  end loop;
  if v_taken < p_settings.chunk_size then
    chunk.to_key := null;
  end if;
end;
$$;

comment on function image_sync.restore_chunk(image_sync.runs, image_sync.settings) is
  'Puts the next records of a cleanup run back from the archive; one whose place was taken meanwhile is skipped and named.';

-- Makes the next chunk of a run that applies a plan: a confirmed cleanup or a restore. Nothing is signed, so it is done at once.
create function image_sync.settle_chunk(p_run image_sync.runs, p_settings image_sync.settings, p_worker uuid)
returns image_sync.chunks
language plpgsql
set search_path = ''
as $$
declare
  v_chunk image_sync.chunks;
begin
  if p_run.mode = 'cleanup' then
    v_chunk := image_sync.apply_plan_chunk(p_run);
  else
    v_chunk := image_sync.restore_chunk(p_run, p_settings);
  end if;
  insert into image_sync.chunks (run_id, number, from_key, to_key, state, worker_id, removed, restored, skipped, problems, closed_at)
  values (
    p_run.id, image_sync.next_number(p_run.id), v_chunk.from_key, v_chunk.to_key, 'done', p_worker,
    coalesce(v_chunk.removed, 0), coalesce(v_chunk.restored, 0), coalesce(v_chunk.skipped, 0), v_chunk.problems, clock_timestamp()
  )
  returning *
  into v_chunk;
  return v_chunk;
end;
$$;

comment on function image_sync.settle_chunk(image_sync.runs, image_sync.settings, uuid) is 'Makes and closes the next chunk of a confirmed cleanup or a restore.';

revoke all on function
  image_sync.check_guards(text, text, jsonb),
  image_sync.referenced_names(text, text[]),
  image_sync.archive_orphans(image_sync.runs, text[]),
  image_sync.apply_plan_chunk(image_sync.runs),
  image_sync.restore_record(jsonb),
  image_sync.restore_chunk(image_sync.runs, image_sync.settings),
  image_sync.settle_chunk(image_sync.runs, image_sync.settings, uuid)
from public;
grant execute on function
  image_sync.check_guards(text, text, jsonb),
  image_sync.referenced_names(text, text[]),
  image_sync.archive_orphans(image_sync.runs, text[]),
  image_sync.apply_plan_chunk(image_sync.runs),
  image_sync.restore_record(jsonb),
  image_sync.restore_chunk(image_sync.runs, image_sync.settings),
  image_sync.settle_chunk(image_sync.runs, image_sync.settings, uuid)
to service_role;
