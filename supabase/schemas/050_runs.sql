-- step 1.0.0
-- The status table: a row per pass over a bucket, with its report.
create table image_sync.runs (
  id uuid not null default gen_random_uuid(),
  bucket_id text not null,
  mode text not null,
  trigger text not null,
  options jsonb not null default '{}',
  plan_id uuid,
  cursor text not null default '',
  exhausted boolean not null default false,
  total_estimate bigint,
  chunk_size integer,
  bucket_created_at timestamptz,
  started_at timestamptz not null default now(),
  moved_at timestamptz not null default now(),
  kicked_at timestamptz,
  kick_id bigint,
  wake_hashes bytea[] not null default '{}',
  handed_off_by uuid,
  paced_until timestamptz,
  twins bigint,
  twins_cursor text,
  twin_keys text[] not null default '{}',
  finished_at timestamptz,
  outcome text,
  stop_reason text,
  error jsonb,
  summary jsonb,
  report jsonb,
  constraint runs_pkey primary key (id),
  constraint runs_mode_check check (mode in ('sync', 'analyze', 'verify', 'cleanup', 'restore')),
  constraint runs_trigger_check check (trigger in ('schedule', 'request')),
  constraint runs_outcome_check check (outcome in ('succeeded', 'partial', 'failed', 'cancelled')),
  constraint runs_chunk_size_check check (chunk_size > 0),
  constraint runs_finished_check check ((finished_at is null) = (outcome is null))
);

-- "At most one open run per bucket and mode" is this index, not a promise.
create unique index runs_open_key on image_sync.runs (bucket_id, mode) where finished_at is null;
-- The last run of each mode, and the history that housekeeping prunes.
create index runs_bucket_id_mode_started_at_idx on image_sync.runs (bucket_id, mode, started_at desc);
create index runs_plan_id_idx on image_sync.runs (plan_id);

comment on table image_sync.runs is 'The status table: one row per pass over a bucket in one mode. Open while finished_at is null.';
comment on column image_sync.runs.id is 'The run; made by whoever starts it, so that starting can be repeated.';
comment on column image_sync.runs.bucket_id is 'The bucket that it passes over. No foreign key to settings: history outlives them.';
comment on column image_sync.runs.mode is 'sync, analyze, cleanup (a dry run unless plan_id is set) or restore.';
comment on column image_sync.runs.trigger is 'schedule: the nightly job; request: a POST.';
comment on column image_sync.runs.options is 'What the request asked for beyond the mode, as it was sent.';
comment on column image_sync.runs.plan_id is 'cleanup: the dry run whose list is applied. restore: the cleanup run that is undone; no foreign key, because the archive may outlive that run.';
comment on column image_sync.runs.cursor is 'The key up to which chunks have been made; the next chunk begins behind it (byte order).';
comment on column image_sync.runs.exhausted is 'True once the last chunk of the bucket has been made.';
comment on column image_sync.runs.total_estimate is 'How many objects (restore and an applied cleanup: records) were expected when the run began; for progress alone.';
comment on column image_sync.runs.chunk_size is 'At most so many names in the next chunk, where that is less than the setting: chunks that the database could not do within its statement timeout were halved.';
comment on column image_sync.runs.bucket_created_at is 'created_at of the bucket when the run began: a bucket deleted and made again is another bucket.';
comment on column image_sync.runs.started_at is 'When the run was opened.';
comment on column image_sync.runs.kicked_at is 'When a call of the function was last queued for the run.';
comment on column image_sync.runs.kick_id is 'That call''s id in net._http_response.';
comment on column image_sync.runs.wake_hashes is 'SHA-256 of the tokens of the last two queued calls that were not used yet: who brings one may wake this run, and nothing else.';
comment on column image_sync.runs.handed_off_by is 'The worker that last handed the run off, so that a repeated hand-off queues no second call.';
comment on column image_sync.runs.twins is 'Look-up keys that several records of the bucket have, counted at the run''s end; null before.';
comment on column image_sync.runs.twins_cursor is 'Where that count stands; null before it and at its end.';
comment on column image_sync.runs.twin_keys is 'The first 20 of those keys.';
comment on column image_sync.runs.paced_until is 'A verify leases no chunk before this time: what it leased last takes so long at the setting''s rate.';
comment on column image_sync.runs.finished_at is 'When the run was closed; null while it is open.';
comment on column image_sync.runs.outcome is 'succeeded, partial (some items failed), failed (could not do its work) or cancelled; null while open.';
comment on column image_sync.runs.stop_reason is 'In one word why the run ended as it did, where it did not simply reach its end.';
comment on column image_sync.runs.error is 'What went wrong for the run as a whole, or the last attempt that the database ended: code, title, detail.';
comment on column image_sync.runs.summary is 'The totals of its chunks, kept when the run finished because chunks are pruned.';
comment on column image_sync.runs.report is 'What the run measured of bucket and table: the source of the status report (sync and analyze).';

alter table image_sync.runs enable row level security;
grant select, insert, update, delete on image_sync.runs to service_role;

-- step 2.0.0
alter table image_sync.runs add column stride integer;
comment on column image_sync.runs.stride is 'How many names the walk looks at next at once; null: as many as a chunk may have.';
comment on column image_sync.runs.chunk_size is 'At most so many rows in one write, where that is less than the setting: as many as the database did within its statement timeout.';
comment on column image_sync.runs.moved_at is 'When a chunk of the run was last made or closed. Looking at the run or handing it on is no progress.';
comment on column image_sync.runs.wake_hashes is 'SHA-256 of the tokens of the last two queued calls, newest first, null for one that was used: who brings one may wake this run, and nothing else.';
