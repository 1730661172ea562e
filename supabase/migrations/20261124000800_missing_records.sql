-- Records that the table lacks.

-- Inserts the records that are missing and accounts for every one of them.
-- p_names are at most chunk_size images without a record.
create function image_sync.insert_missing(
  p_bucket_id text,
  p_names text[],
  out inserted text[],
  out recorded integer,
  out collided integer,
  out vanished integer,
  out collided_samples text[],
  out problems jsonb
)
language plpgsql
set search_path = ''
as $$
declare
  v_missing record;
begin
  inserted := '{}';
  problems := '[]';
  begin
    with added as (
      insert into public.part_images (bucket_id, file_name, part_number)
      select p_bucket_id, m.name, image_sync.part_number_of(m.name)
      from unnest(p_names) as m (name)
      order by m.name collate "C"
      on conflict do nothing
      returning file_name
    )
    select coalesce(array_agg(added.file_name), '{}')
    into inserted
    from added;
  exception
    -- A constraint or a trigger of the table's owner refuses a row: find out which, so that the others get in.
    when integrity_constraint_violation or data_exception or raise_exception or program_limit_exceeded then
      for v_missing in
        select m.name
        from unnest(p_names) as m (name)
        order by m.name collate "C"
      loop
        begin
          insert into public.part_images (bucket_id, file_name, part_number)
          values (p_bucket_id, v_missing.name, image_sync.part_number_of(v_missing.name))
          on conflict do nothing;
          if found then
            inserted := inserted || v_missing.name;
          end if;
        exception
          when integrity_constraint_violation or data_exception or raise_exception or program_limit_exceeded then
            problems := problems || jsonb_build_object('name', v_missing.name, 'code', 'record_refused', 'detail', sqlerrm);
        end;
      end loop;
  end;

  select
    count(*) filter (where rest.is_recorded),
    count(*) filter (where not rest.is_recorded and not rest.is_object),
    count(*) filter (where not rest.is_recorded and rest.is_object),
    (array_agg(rest.name order by rest.name collate "C") filter (where not rest.is_recorded and rest.is_object))[1:20]
  into recorded, vanished, collided, collided_samples
  from (
    select
      m.name,
      exists (
        select
        from public.part_images p
        where p.bucket_id = p_bucket_id
          and p.file_name collate "C" = m.name
      ) as is_recorded,
      exists (
        select
        from image_sync.objects o
        where o.bucket_id = p_bucket_id
          and o.name collate "C" = m.name
      ) as is_object
    from unnest(p_names) as m (name)
    where cardinality(inserted) < cardinality(p_names)
      and m.name <> all (inserted)
  ) as rest;
end;
$$;

comment on function image_sync.insert_missing(text, text[]) is
  'Inserts a record for each of the given images and accounts for the rest: recorded by somebody else meanwhile, vanished from the bucket, or collided with what the table demands.';

-- Whether two records of one part number are impossible, by a unique index of the table's owner.
create function image_sync.part_number_is_unique()
returns boolean
language sql
stable
set search_path = ''
return exists (
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
);

comment on function image_sync.part_number_is_unique() is 'True where the table''s owner made part_number unique.';

revoke all on function
  image_sync.insert_missing(text, text[]),
  image_sync.part_number_is_unique()
from public;
grant execute on function
  image_sync.insert_missing(text, text[]),
  image_sync.part_number_is_unique()
to service_role;
