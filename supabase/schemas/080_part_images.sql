-- step 1.0.0
-- public.part_images: the table that the register reads. Created where there is none; adopted where one exists, with every row,
-- column, constraint, grant, policy and trigger of its owner. The names and types of its first six columns are a contract with
-- its readers: select part_number, file_name, signed_url from part_images where signed_url is not null order by part_number.
-- How it is adopted, and what stands in the way, is in 010_adoption.sql.
do $$
begin
  if to_regclass('public.part_images') is null then
    create table public.part_images (
      id uuid not null,
      constraint part_images_pkey primary key (id)
    );
    alter table public.part_images enable row level security;
    -- Older projects grant everything on a new table of public to everybody, by default privileges.
    revoke all on public.part_images from public, anon, authenticated, service_role;
    grant select, insert, update, delete on public.part_images to service_role;
  end if;
end;
$$;

insert into image_sync.archive (bucket_id, file_name, record, reason)
select a.bucket_id, a.file_name, a.record, 'duplicate'
from image_sync.adopt_part_images() a;

do $$
declare
  v_comment record;
begin
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
      ('object_id', 'The object of Storage that the record is of, whatever that is called by now: so the record follows it when it is renamed or moved. Null: not known yet.'),
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

-- Nothing is adopted twice.
drop function
  image_sync.rehearse_adoption(),
  image_sync.adopt_part_images(),
  image_sync.index_records(),
  image_sync.label_records(text),
  image_sync.take_columns(text[], text, text),
  image_sync.columns_to_take(),
  image_sync.remove_duplicates(text),
  image_sync.settle_unnamed(),
  image_sync.prepare_columns(),
  image_sync.check_references(text),
  image_sync.key_expression(),
  image_sync.reference_condition(),
  image_sync.duplicates_expression(text),
  image_sync.file_expression(text),
  image_sync.bucket_of_unlabelled(),
  image_sync.check_names(),
  image_sync.check_dependants(),
  image_sync.columns_to_convert(),
  image_sync.check_column_rules(),
  image_sync.check_column_types(),
  image_sync.check_table_rights(),
  image_sync.check_table_kind(),
  image_sync.refuse_adoption(text, text, text),
  image_sync.column_type(text);

-- step 1.1.0
-- Every insert writes both indexes. A thousand random ids in a tree of a million cost three times what they cost in a hash; a part
-- number is matched with the pattern of copies only where it has a character that a copy's has.
do $$
declare
  v_index record;
begin
  for v_index in
    select *
    from (values
      ('part_images_object_idx', 'CREATE INDEX part_images_object_idx ON public.part_images USING hash (object_id)'),
      ('part_images_twins_idx', 'CREATE INDEX part_images_twins_idx ON public.part_images USING btree ((((bucket_id || ''/''::text) || lower( CASE WHEN (part_number ~ ''[_)\s]''::text) THEN COALESCE(NULLIF(regexp_replace(part_number, ''^((copy of|kopie von|copie de|copia d[ei]) )+|( *\((\d+|([^()]+ )?(copy|kopie|copie|copia))\)|( -)? (copy|kopie|copie|copia)( \d+| \(\d+\))?|_jpe?g|_png)?\s*$''::text, ''''::text, ''gi''::text), ''''::text), part_number) ELSE part_number END))) COLLATE "C") INCLUDE (part_number, bucket_id)')
    ) as i (name, definition)
  loop
    if to_regclass('public.' || v_index.name) is null then
      execute v_index.definition;
    -- A table that was ours before has them; their definition is printed over several lines.
    elsif regexp_replace(pg_get_indexdef(to_regclass('public.' || v_index.name)), '\s+', ' ', 'g') is distinct from v_index.definition then
      raise exception 'Cannot index public.part_images: the name %, which one of its indexes needs, is taken by something else', v_index.name
        using errcode = 'duplicate_object', hint = format('Run: alter table public.%I rename to %I;', v_index.name, v_index.name || '_old');
    end if;
  end loop;
end;
$$;
drop index if exists public.part_images_object_id_idx, public.part_images_look_up_key_idx;
