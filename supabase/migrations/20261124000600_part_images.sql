-- public.part_images: the table that the register reads. Created where there is none; adopted where one exists, with every row,
-- column, constraint, grant, policy and trigger of its owner. The names and types of its first six columns are a contract with
-- its readers: select part_number, file_name, signed_url from part_images where signed_url is not null order by part_number.
do $$
declare
  v_column record;
begin
  if to_regclass('public.part_images') is null then
    create table public.part_images (
      id uuid not null,
      constraint part_images_pkey primary key (id)
    );
    alter table public.part_images enable row level security;
    -- Projects made before 30 October 2026 grant everything on a new table to everybody, by their default privileges.
    revoke all on public.part_images from public, anon, authenticated;
    grant select, insert, update, delete on public.part_images to service_role;
    return;
  end if;
  -- A driver that reports varchar as 255 characters cuts a URL there. Source: psqlODBC, MaxVarcharSize.
  for v_column in
    select a.attname
    from pg_catalog.pg_attribute a
    where a.attrelid = 'public.part_images'::regclass
      and a.attname in ('part_number', 'file_name', 'url', 'signed_url', 'bucket_id')
      and not a.attisdropped
      and a.atttypid <> 'text'::regtype
  loop
    execute format('alter table public.part_images alter column %I type text', v_column.attname);
  end loop;
end;
$$;

alter table public.part_images
  add column if not exists part_number text,
  add column if not exists file_name text,
  add column if not exists url text,
  add column if not exists signed_url text,
  add column if not exists created_at timestamptz default now(),
  add column if not exists bucket_id text not null default 'part-images',
  add column if not exists signed_url_expires_at timestamptz;

-- Inserts name neither id nor created_at, so that an owner's own defaults win; where there is none, these serve.
do $$
declare
  v_column record;
begin
  for v_column in
    select a.attname, d.expression
    from pg_catalog.pg_attribute a
    join (values
      ('id', 'uuid'::regtype, 'gen_random_uuid()'),
      ('created_at', 'timestamptz'::regtype, 'now()'),
      ('created_at', 'timestamp'::regtype, 'now()'),
      ('bucket_id', 'text'::regtype, quote_literal('part-images'))
    ) as d (column_name, column_type, expression)
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

-- A record belongs to a bucket: where its owner's column says none, to the one that it says of new rows.
update public.part_images
set bucket_id = default
where bucket_id is null
  or bucket_id = '';

alter table public.part_images alter column bucket_id set not null;

-- Of several rows of one file the one stays that rows of other tables refer to, else the oldest: the original. It takes what it lacks
-- from the others, which move to the archive, whole, as they were. Nothing that refers to anything is touched. The table's own
-- triggers fire, as for any change.
do $$
declare
  v_key record;
  v_fills text;
  v_moved bigint;
  v_deleted bigint;
begin
  create temporary table adopted_duplicates on commit drop as
  select p.ctid as row_id, p.bucket_id, p.file_name, p.created_at, to_jsonb(p) as record, false as is_referenced, 0::bigint as place
  from public.part_images p
  join (
    select q.bucket_id, q.file_name
    from public.part_images q
    where q.file_name is not null
    group by q.bucket_id, q.file_name
    having count(*) > 1
  ) as several
    on several.bucket_id = p.bucket_id
    and several.file_name = p.file_name;
  if not exists (
    select
    from pg_temp.adopted_duplicates
  ) then
    return;
  end if;

  for v_key in
    select
      c.conrelid::regclass as referencing_table,
      (
        select string_agg(format('t.%I = p.%I', child.attname, parent.attname), ' and ')
        from unnest(c.conkey, c.confkey) as k (child, parent)
        join pg_catalog.pg_attribute child on child.attrelid = c.conrelid and child.attnum = k.child
        join pg_catalog.pg_attribute parent on parent.attrelid = c.confrelid and parent.attnum = k.parent
      ) as condition
    from pg_catalog.pg_constraint c
    where c.contype = 'f'
      and c.confrelid = 'public.part_images'::regclass
      and c.conparentid = 0
  loop
    execute format(
      'update pg_temp.adopted_duplicates d set is_referenced = true from public.part_images p join %s t on %s where p.ctid = d.row_id',
      v_key.referencing_table, v_key.condition
    );
  end loop;
  if exists (
    select
    from pg_temp.adopted_duplicates d
    where d.is_referenced
    group by d.bucket_id, d.file_name
    having count(*) > 1
  ) then
    raise exception 'Cannot adopt public.part_images: since it was checked, rows of other tables came to refer to more than one row of the same file'
      using errcode = 'integrity_constraint_violation',
        hint = 'Run the migration again while nobody writes to them.';
  end if;
  update pg_temp.adopted_duplicates d
  set place = ranked.place
  from (
    select
      r.row_id,
      row_number() over (partition by r.bucket_id, r.file_name order by r.is_referenced desc, r.created_at nulls last, r.row_id) as place
    from pg_temp.adopted_duplicates r
  ) as ranked
  where ranked.row_id = d.row_id;

  insert into image_sync.archive (bucket_id, file_name, record, reason)
  select d.bucket_id, d.file_name, d.record, 'duplicate'
  from pg_temp.adopted_duplicates d
  where d.place > 1;
  get diagnostics v_moved = row_count;
  delete from public.part_images p
  using pg_temp.adopted_duplicates d
  where p.ctid = d.row_id
    and d.place > 1;
  get diagnostics v_deleted = row_count;
  if v_deleted <> v_moved then
    raise exception 'Cannot adopt public.part_images: a trigger kept % of % duplicates from being moved to the archive', v_moved - v_deleted, v_moved
      using errcode = 'triggered_action_exception',
        hint = 'Disable it for the migration: alter table public.part_images disable trigger ...;';
  end if;

  -- A URL and its expiry belong together: a row without a URL lends neither, and one with a URL keeps both.
  select string_agg(
    case
      when a.attname in ('signed_url', 'signed_url_expires_at') then format('%1$I = case when coalesce(p.signed_url, %2$L) = %2$L then l.%1$I else p.%1$I end', a.attname, '')
      else format('%1$I = coalesce(p.%1$I, l.%1$I)', a.attname)
    end, ', ')
  into v_fills
  from pg_catalog.pg_attribute a
  where a.attrelid = 'public.part_images'::regclass
    and a.attnum > 0
    and not a.attisdropped
    and a.attgenerated = ''
    and a.attidentity = ''
    and a.attname not in ('id', 'bucket_id', 'file_name');
  execute format(
    $fill$
    with lent as (
      -- The first row with a URL lends it, whatever its expiry; every other column comes from the first row that has it.
      select distinct on (d.bucket_id, d.file_name, v.key) d.bucket_id, d.file_name, v.key, v.value
      from pg_temp.adopted_duplicates d
      cross join lateral jsonb_each(d.record) as v
      where d.place > 1
        and case
          when v.key in ('signed_url', 'signed_url_expires_at') then coalesce(d.record ->> 'signed_url', '') <> ''
          else v.value <> 'null'
        end
      order by d.bucket_id, d.file_name, v.key, d.place
    ), lacking as (
      select k.row_id, jsonb_object_agg(lent.key, lent.value) as record
      from pg_temp.adopted_duplicates k
      join lent
        on lent.bucket_id = k.bucket_id
        and lent.file_name = k.file_name
      where k.place = 1
      group by k.row_id
    )
    update public.part_images p
    set %s
    from lacking
    cross join lateral jsonb_populate_record(null::public.part_images, lacking.record) as l
    where p.ctid = lacking.row_id
    $fill$, v_fills
  );
end;
$$;

-- The key of a record, in the order in which chunks walk. Byte order, as storage.objects' own keyset index has it.
create unique index if not exists part_images_bucket_id_file_name_key on public.part_images (bucket_id, file_name collate "C");

do $$
declare
  v_comment record;
begin
  -- Several files for one part number of a bucket, and the register's own look-ups. An owner's unique constraint on the part number does
  -- the same; an index on it alone would read every other bucket's records of it.
  if not exists (
    select
    from pg_catalog.pg_index i
    join pg_catalog.pg_attribute a
      on a.attrelid = i.indrelid
      and a.attnum = i.indkey[0]
    where i.indrelid = 'public.part_images'::regclass
      and i.indpred is null
      and a.attname = 'part_number'
      and (
        i.indisunique and i.indnkeyatts = 1
        or (
          select b.attname
          from pg_catalog.pg_attribute b
          where b.attrelid = i.indrelid
            and b.attnum = i.indkey[1]
        ) = 'bucket_id'
      )
  ) then
    create index part_images_part_number_bucket_id_idx on public.part_images (part_number, bucket_id);
  end if;

  -- An owner's own words stay.
  if obj_description('public.part_images'::regclass, 'pg_class') is null then
    comment on table public.part_images is 'One row per image of a storage bucket with a signed URL that works. Kept in step by image-sync.';
  end if;
  for v_comment in
    select a.attname, c.words
    from pg_catalog.pg_attribute a
    join (values
      ('id', 'The record.'),
      ('part_number', 'The file name without folders and extension.'),
      ('file_name', 'The object''s name in its bucket, folders included. Together with bucket_id the record''s key.'),
      ('url', 'Deprecated: image-sync neither reads nor writes it.'),
      ('signed_url', 'A URL that shows the image without a key until signed_url_expires_at.'),
      ('created_at', 'When the record was made.'),
      ('bucket_id', 'The storage bucket of the file.'),
      ('signed_url_expires_at', 'When signed_url stops working; never later than its token says. Null: not known, so the URL is made anew.')
    ) as c (column_name, words)
      on c.column_name = a.attname
    where a.attrelid = 'public.part_images'::regclass
      and col_description(a.attrelid, a.attnum) is null
  loop
    execute format('comment on column public.part_images.%I is %L', v_comment.attname, v_comment.words);
  end loop;
end;
$$;
