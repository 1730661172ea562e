-- step 1.0.0
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

-- step 2.0.0
-- JSON has no word for some of what a row may hold: an hstore, the lower bound of an array, a key that a json has twice.
alter table image_sync.archive
  add column row_text text,
  add column row_columns text[];

comment on column image_sync.archive.record is 'The whole row as to_jsonb() gave it, columns of its owner included: to read, and to restore what has no row_text.';
comment on column image_sync.archive.row_text is 'The whole row in its own text form, from which it is restored; null where it was archived before 2.0.0 or not by a cleanup.';
comment on column image_sync.archive.row_columns is 'The columns that row_text has, in their order.';
