-- step 1.0.0
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

-- step 1.1.0
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
