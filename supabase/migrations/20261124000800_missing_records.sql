-- Records that the table lacks.

-- Whether the table may refuse a record that has a file name of its own: by a constraint, a unique index, a trigger or a column of
-- its owner's. Ours has nothing of the kind.
create function image_sync.may_refuse_records()
returns boolean
language sql
stable
set search_path = ''
begin atomic
  select
    exists (
      select
      from pg_catalog.pg_constraint c
      where c.conrelid = 'public.part_images'::regclass
        and c.contype not in ('p', 'u', 'n')
    )
    or exists (
      select
      from pg_catalog.pg_trigger t
      where t.tgrelid = 'public.part_images'::regclass
        and not t.tgisinternal
        -- On insert. Source: pg_trigger.h, TRIGGER_TYPE_INSERT.
        and t.tgtype & 4 = 4
        and t.tgenabled <> 'D'
    )
    or exists (
      select
      from pg_catalog.pg_index i
      where i.indrelid = 'public.part_images'::regclass
        and i.indisunique
        and i.indexrelid is distinct from to_regclass('public.part_images_bucket_id_file_name_key')
        -- A key of which every row has its own.
        and not exists (
          select
          from pg_catalog.pg_attribute a
          where a.attrelid = i.indrelid
            and a.attnum = i.indkey[0]
            and a.attname = 'id'
            and i.indnkeyatts = 1
        )
    )
    or exists (
      select
      from pg_catalog.pg_attribute a
      where a.attrelid = 'public.part_images'::regclass
        and a.attnum > 0
        and not a.attisdropped
        and a.attnotnull
        and not a.atthasdef
        and a.attidentity = ''
        and a.attname not in ('bucket_id', 'file_name', 'part_number')
    );
end;

comment on function image_sync.may_refuse_records() is
  'True where a constraint, unique index, trigger or column of the table''s owner may refuse a record. Then records are inserted when they are listed, so that what is refused is not signed every night.';

-- A chunk after its missing records were inserted.
create type image_sync.insertion as (chunk image_sync.chunks, inserted text[], signed integer);

comment on type image_sync.insertion is 'A chunk as it is after its missing records were inserted (not stored yet), their names, and how many of them have a URL.';

-- Inserts the records that a chunk lacks (its to_insert), with their URLs where there are any, and accounts for every one of them.
-- p_names, p_urls and p_expires (seconds since 1970) are parallel; a file that is not among them gets a record without a URL.
create function image_sync.insert_missing(
  p_bucket_id text,
  p_chunk image_sync.chunks,
  p_names text[] default '{}',
  p_urls text[] default '{}',
  p_expires bigint[] default '{}'
)
returns image_sync.insertion
language plpgsql
set search_path = ''
as $$
declare
  v_chunk image_sync.chunks := p_chunk;
  v_inserted text[] := '{}'::text[];
  v_signed integer := 0;
  v_missing record;
  v_rest record;
  v_problems jsonb := '[]'::jsonb;
  -- Said of both sides wherever they are looked up by name, so that a plan that reads more than one name reads this chunk at most.
  v_last_key constant text := coalesce(p_chunk.to_key, image_sync.last_key());
begin
  if v_chunk.to_insert = '{}' then
    return (v_chunk, v_inserted, v_signed)::image_sync.insertion;
  end if;

  begin
    with added as (
      insert into public.part_images (bucket_id, file_name, part_number, signed_url, signed_url_expires_at)
      select p_bucket_id, m.name, m.part_number, s.url, to_timestamp(s.expires)
      from unnest(v_chunk.to_insert, image_sync.part_numbers_of(v_chunk.to_insert)) as m (name, part_number)
      left join unnest(p_names, p_urls, p_expires) as s (name, url, expires) on s.name = m.name
      -- What was signed a moment ago was there; anything else may be gone since it was listed.
      where s.name is not null or exists (
        select
        from image_sync.objects o
        where o.bucket_id = p_bucket_id
          and o.name collate "C" = m.name
          and o.name collate "C" > v_chunk.from_key
          and o.name collate "C" <= v_last_key
      )
      order by m.name collate "C"
      returning file_name, signed_url
    )
    select coalesce(array_agg(added.file_name), '{}'), count(added.signed_url)
    into v_inserted, v_signed
    from added;
  exception
    -- A constraint or a trigger of the table's owner refuses a row, or somebody else inserted one meanwhile: find out which, so that
    -- the others get in. Their URLs are stored like those of any record. Saying on conflict above would make every row cost a
    -- quarter more: its indexes are read before they are written, and it is confirmed in the log.
    when integrity_constraint_violation or data_exception or raise_exception or program_limit_exceeded then
      for v_missing in
        select m.name, m.part_number
        from unnest(v_chunk.to_insert, image_sync.part_numbers_of(v_chunk.to_insert)) as m (name, part_number)
        where exists (
          select
          from image_sync.objects o
          where o.bucket_id = p_bucket_id
            and o.name collate "C" = m.name
            and o.name collate "C" > v_chunk.from_key
            and o.name collate "C" <= v_last_key
        )
        order by m.name collate "C"
      loop
        begin
          insert into public.part_images (bucket_id, file_name, part_number)
          values (p_bucket_id, v_missing.name, v_missing.part_number)
          on conflict do nothing;
          if found then
            v_inserted := v_inserted || v_missing.name;
          end if;
        exception
          when integrity_constraint_violation or data_exception or raise_exception or program_limit_exceeded then
            v_problems := v_problems || jsonb_build_object('name', v_missing.name, 'code', 'record_refused', 'detail', sqlerrm);
        end;
      end loop;
  end;

  select
    count(*) filter (where rest.is_recorded) as recorded,
    count(*) filter (where not rest.is_recorded and not rest.is_object) as vanished,
    count(*) filter (where not rest.is_recorded and rest.is_object) as collided,
    (array_agg(rest.name order by rest.name collate "C") filter (where not rest.is_recorded and rest.is_object))[1:20] as samples
  into v_rest
  from (
    select
      m.name,
      exists (
        select
        from public.part_images p
        where p.bucket_id = p_bucket_id
          and p.file_name collate "C" = m.name
          and p.file_name collate "C" > v_chunk.from_key
          and p.file_name collate "C" <= v_last_key
      ) as is_recorded,
      exists (
        select
        from image_sync.objects o
        where o.bucket_id = p_bucket_id
          and o.name collate "C" = m.name
          and o.name collate "C" > v_chunk.from_key
          and o.name collate "C" <= v_last_key
      ) as is_object
    from unnest(v_chunk.to_insert) as m (name)
    where cardinality(v_inserted) < cardinality(v_chunk.to_insert)
      and m.name <> all (v_inserted)
  ) as rest;

  v_chunk.inserted := v_chunk.inserted + cardinality(v_inserted);
  v_chunk.recorded := v_chunk.recorded + v_rest.recorded;
  v_chunk.vanished := v_chunk.vanished + v_rest.vanished;
  v_chunk.collided := v_chunk.collided + v_rest.collided;
  v_chunk.records := v_chunk.records + cardinality(v_inserted) + v_rest.recorded;
  v_chunk.missing := 0;
  v_chunk.to_insert := '{}';
  v_chunk.problems := v_chunk.problems || v_problems;
  if v_rest.samples is not null then
    v_chunk.facts := v_chunk.facts || jsonb_build_object('collided', v_rest.samples);
  end if;
  return (v_chunk, v_inserted, v_signed)::image_sync.insertion;
end;
$$;

comment on function image_sync.insert_missing(text, image_sync.chunks, text[], text[], bigint[]) is
  'Inserts a record for each image of the chunk''s to_insert and accounts for the rest: recorded by somebody else meanwhile, vanished from the bucket, or collided with what the table demands. Returns the chunk as it is afterwards (the caller stores it), the names inserted, and how many of them with a URL.';

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
  image_sync.may_refuse_records(),
  image_sync.insert_missing(text, image_sync.chunks, text[], text[], bigint[]),
  image_sync.part_number_is_unique()
from public;
grant execute on function
  image_sync.may_refuse_records(),
  image_sync.insert_missing(text, image_sync.chunks, text[], text[], bigint[]),
  image_sync.part_number_is_unique()
to service_role;
