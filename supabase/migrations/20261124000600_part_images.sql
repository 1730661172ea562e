-- public.part_images: the table that the register reads. Created where there is none; adopted where one exists, with every row,
-- column, constraint, grant, policy and trigger of its owner. The names and types of its first six columns are a contract with
-- its readers: select part_number, file_name, signed_url from part_images where signed_url is not null order by part_number.
do $$
declare
  v_adopted boolean := to_regclass('public.part_images') is not null;
  v_column text;
begin
  if v_adopted then
    if not exists (
      select
      from pg_catalog.pg_class c
      where c.oid = to_regclass('public.part_images')
        and c.relkind in ('r', 'p')
    ) then
      raise exception 'Cannot adopt public.part_images: it is not a table'
        using errcode = 'wrong_object_type',
          hint = 'Rename the view or foreign table of that name, then run the migration again.';
    end if;
    foreach v_column in array array['part_number', 'file_name', 'url', 'signed_url'] loop
      if exists (
        select
        from pg_catalog.pg_attribute a
        where a.attrelid = to_regclass('public.part_images')
          and a.attname = v_column
          and not a.attisdropped
          and a.atttypid <> 'text'::regtype
          and (a.atttypid, a.atttypmod) is distinct from ('varchar'::regtype::oid, -1)
      ) then
        raise exception 'Cannot adopt public.part_images: column % is not of type text', v_column
          using errcode = 'datatype_mismatch',
            hint = format('Run: alter table public.part_images alter column %I type text; then run the migration again.', v_column);
      end if;
    end loop;
  else
    create table public.part_images (
      id uuid not null,
      constraint part_images_pkey primary key (id)
    );
    alter table public.part_images enable row level security;
    grant select, insert, update, delete on public.part_images to service_role;
  end if;
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
    join (values ('id', 'uuid'::regtype, 'gen_random_uuid()'), ('created_at', 'timestamptz'::regtype, 'now()'), ('created_at', 'timestamp'::regtype, 'now()'))
      as d (column_name, column_type, expression)
      on d.column_name = a.attname
      and d.column_type = a.atttypid
    where a.attrelid = 'public.part_images'::regclass
      and not a.atthasdef
  loop
    execute format('alter table public.part_images alter column %I set default %s', v_column.attname, v_column.expression);
  end loop;
end;
$$;

-- Of several rows of one file the one with a URL stays, then the oldest, then the one stored first; the others move to the archive.
with ranked as (
  select
    p.ctid as row_id,
    row_number() over (
      partition by p.bucket_id, p.file_name
      order by (nullif(p.signed_url, '') is null), p.created_at nulls last, p.ctid
    ) as place
  from public.part_images p
  where p.file_name is not null
), removed as (
  delete from public.part_images p
  using ranked r
  where p.ctid = r.row_id
    and r.place > 1
  returning p.bucket_id, p.file_name, to_jsonb(p) as record
)
insert into image_sync.archive (bucket_id, file_name, record, reason)
select removed.bucket_id, removed.file_name, removed.record, 'duplicate'
from removed;

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
