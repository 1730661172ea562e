-- fresh
-- A run's range of keys, the lease on it, and the ledger of what was found and done in it.
create table image_sync.chunks (
  run_id uuid not null,
  number integer not null,
  from_key text not null,
  to_key text,
  state text not null,
  attempts integer not null default 0,
  interrupted integer not null default 0,
  is_stretch boolean not null default false,
  relist_size integer,
  lease_token uuid,
  past_leases uuid[] not null default '{}',
  lease_expires_at timestamptz,
  not_before timestamptz,
  worker_id uuid,
  to_insert text[] not null default '{}',
  to_insert_ids uuid[] not null default '{}',
  inserted_names text[] not null default '{}',
  moved_names text[] not null default '{}',
  departing text[] not null default '{}',
  ledger jsonb not null default '{}',
  facts jsonb not null default '{}',
  problems jsonb not null default '[]',
  error jsonb,
  closed_at timestamptz,
  constraint chunks_pkey primary key (run_id, number),
  constraint chunks_run_id_fkey foreign key (run_id) references image_sync.runs (id) on delete cascade,
  constraint chunks_state_check check (state in ('pending', 'leased', 'done', 'dead')),
  constraint chunks_relist_size_check check (relist_size > 0),
  constraint chunks_lease_check check (state <> 'leased' or (lease_token is not null and lease_expires_at is not null)),
  -- No object in two chunks: every range begins where another one ended.
  constraint chunks_run_id_from_key_key unique (from_key, run_id)
);

-- Each look of a working run is one at a few rows, however many thousand chunks it has. Plans are made when the table is empty and stay
-- in their sessions: to such a plan every index that begins with run_id is as good as any other, and leads through all chunks of
-- the run. So one index alone begins with it, the primary key; and a query that says "run_id is not distinct from" means so: no
-- index has what it says, and what it is meant for is left.
-- What is left to claim: a handful of rows.
create index chunks_open_idx on image_sync.chunks (number) where state in ('pending', 'leased');
-- The chunk of a lease.
create index chunks_lease_token_idx on image_sync.chunks (lease_token);
-- Chunks that were leased more than once: a handful.
create index chunks_past_leases_idx on image_sync.chunks (number) where past_leases <> '{}';
-- The last chunks that were signed, newest first: an order that only this index gives.
create index chunks_closed_idx on image_sync.chunks (run_id, closed_at desc nulls first) where ledger ? 'to_sign';

comment on table image_sync.chunks is 'A run''s range of keys with its lease and its ledger. Balanced: listed = images + not_images, images = recorded + inserted + moved + unmoved + collided + vanished + missing and, once done, to_sign = signed + withdrawn + failed + held and to_open = shown + broken.';
comment on column image_sync.chunks.run_id is 'The run that the chunk belongs to.';
comment on column image_sync.chunks.number is 'The chunk''s place in its run, from 1.';
comment on column image_sync.chunks.from_key is 'The range begins behind this key (byte order); empty: at the beginning.';
comment on column image_sync.chunks.to_key is 'The range ends with this key, included; null: at the end of the bucket.';
comment on column image_sync.chunks.state is 'pending, leased, done, or dead after too many attempts.';
comment on column image_sync.chunks.attempts is 'How many attempts have failed: reported by a worker, or ended by an expired lease.';
comment on column image_sync.chunks.interrupted is 'Those of the attempts that the database ended (a lock, the statement timeout): they do not make the chunk dead.';
comment on column image_sync.chunks.is_stretch is 'Many chunks in one that has still to be listed: its worker goes over them without the run''s lock.';
comment on column image_sync.chunks.relist_size is 'Still to be listed, at most so many names of it at once; what is beyond them becomes a chunk of its own. Null: it is listed.';
comment on column image_sync.chunks.lease_token is 'The token of the present or last lease; closing with another one changes nothing.';
comment on column image_sync.chunks.past_leases is 'Tokens of the leases that were taken over or released: none of them leases anything again.';
comment on column image_sync.chunks.lease_expires_at is 'From then on another worker may take the chunk over.';
comment on column image_sync.chunks.not_before is 'A pending chunk is not leased again before this time.';
comment on column image_sync.chunks.worker_id is 'The invocation that leased or walked the chunk last.';
comment on column image_sync.chunks.to_insert is 'Images whose record is inserted when the chunk is closed, together with its URL, or without one where an attempt fails.';
comment on column image_sync.chunks.inserted_names is 'Images whose record was inserted when the chunk was listed, until it is closed: so that a chunk that is listed again counts them as inserted.';
comment on column image_sync.chunks.to_insert_ids is 'The ids of the objects of to_insert, in the same order.';
comment on column image_sync.chunks.moved_names is 'Images whose record came along when the chunk was listed, until it is closed: so that a chunk that is listed again counts them as moved.';
comment on column image_sync.chunks.departing is 'Records of the range whose file lies elsewhere by now and that will follow it: they are counted there, not here.';
comment on column image_sync.chunks.ledger is 'What was counted in the range, by name; what is zero is left out.
Found: listed, bytes, images, not_images (of these excluded, empty_files), recorded, missing, moved, unmoved, moved_ahead, orphaned, several_files; records, records_signed, records_expired, images_signed, orphans_unsigned, orphans_expired.
Done: to_sign = signed + withdrawn + failed + held, inserted, updated, linked, collided, vanished; to_open = shown + broken (of these rejected); removed, restored, skipped; storage_calls, retries, listing_ms.';
comment on column image_sync.chunks.facts is 'What the report is merged from: objects by extension, URLs by the day on which they die, the soonest of those days, samples, and for a dry run the orphaned records'' names.';
comment on column image_sync.chunks.problems is 'Items that failed or were skipped: name, code, detail.';
comment on column image_sync.chunks.error is 'The last failure of the chunk as a whole.';
comment on column image_sync.chunks.closed_at is 'When the chunk became done or dead.';

alter table image_sync.chunks enable row level security;
grant select, insert, update, delete on image_sync.chunks to service_role;

-- step 1.1.0
alter table image_sync.chunks
  drop constraint chunks_run_id_from_key_key,
  add constraint chunks_run_id_from_key_key unique (from_key, run_id),
  add column is_stretch boolean not null default false;
comment on column image_sync.chunks.is_stretch is 'Many chunks in one that has still to be listed: its worker goes over them without the run''s lock.';
drop index image_sync.chunks_open_idx;
create index chunks_open_idx on image_sync.chunks (number) where state in ('pending', 'leased');
create index chunks_lease_token_idx on image_sync.chunks (lease_token);
create index chunks_past_leases_idx on image_sync.chunks (number) where past_leases <> '{}';

-- step 2.0.0
-- Counters stand in one ledger, by name: a new one has no second place. Those that are zero are left out.
alter table image_sync.chunks add column ledger jsonb;
update image_sync.chunks c
set
  ledger = (
    select coalesce(jsonb_object_agg(e.key, e.value), '{}')
    from jsonb_each(to_jsonb(c)) as e
    where e.key = any ('{listed,bytes,images,not_images,excluded,empty_files,recorded,inserted,moved,unmoved,moved_ahead,collided,vanished,missing,images_signed,to_sign,signed,updated,withdrawn,failed,held,to_open,shown,broken,orphaned,removed,restored,skipped,linked,records,records_signed,records_expired,several_files,orphans_unsigned,orphans_expired,storage_calls,retries}')
      and e.value <> '0'
  ),
  facts = c.facts || jsonb_strip_nulls(jsonb_build_object('soonest_expiry', c.soonest_expiry));
alter table image_sync.chunks
  alter column ledger set default '{}',
  alter column ledger set not null,
  drop column listed, drop column bytes, drop column images, drop column not_images, drop column excluded, drop column empty_files,
  drop column recorded, drop column inserted, drop column moved, drop column unmoved, drop column moved_ahead, drop column collided,
  drop column vanished, drop column missing, drop column images_signed, drop column to_sign, drop column signed, drop column
  updated, drop column withdrawn, drop column failed, drop column held, drop column to_open, drop column shown, drop column broken,
  drop column orphaned, drop column removed, drop column restored, drop column skipped, drop column linked, drop column records,
  drop column records_signed, drop column records_expired, drop column several_files, drop column orphans_unsigned, drop column
  orphans_expired, drop column storage_calls, drop column retries, drop column soonest_expiry, drop column listing_took;
create index chunks_closed_idx on image_sync.chunks (run_id, closed_at desc nulls first) where ledger ? 'to_sign';

comment on column image_sync.chunks.ledger is 'What was counted in the range, by name; what is zero is left out.
Found: listed, bytes, images, not_images (of these excluded, empty_files), recorded, missing, moved, unmoved, moved_ahead, orphaned, several_files; records, records_signed, records_expired, images_signed, orphans_unsigned, orphans_expired.
Done: to_sign = signed + withdrawn + failed + held, inserted, updated, linked, collided, vanished; to_open = shown + broken (of these rejected); removed, restored, skipped; storage_calls, retries, listing_ms.';
comment on column image_sync.chunks.facts is 'What the report is merged from: objects by extension, URLs by the day on which they die, the soonest of those days, samples, and for a dry run the orphaned records'' names.';

-- set
-- A ledger is counters by name.

create or replace function image_sync.count_of(p_ledger jsonb, p_name text)
returns bigint
language sql
immutable
as $$
  select coalesce((p_ledger ->> p_name)::bigint, 0)
$$;

comment on function image_sync.count_of(jsonb, text) is 'A counter of a ledger; zero where it is left out. Inlined.';

create or replace function image_sync.add_counts(p_ledger jsonb, p_counts jsonb)
returns jsonb
language sql
immutable
set search_path = ''
as $$
  select coalesce(jsonb_object_agg(c.key, c.value), '{}')
  from (
    select e.key, sum(e.value::bigint) as value
    from (
      select *
      from jsonb_each_text(p_ledger)
      union all
      select *
      from jsonb_each_text(p_counts)
    ) as e
    group by 1
    having sum(e.value::bigint) <> 0
  ) as c
$$;

comment on function image_sync.add_counts(jsonb, jsonb) is 'The sums of two ledgers, counter by counter; null counts for nothing.';

-- How many names a chunk was about, whatever its run does.
create or replace function image_sync.names_of(p_ledger jsonb)
returns integer
language sql
immutable
set search_path = ''
as $$
  select greatest(
    image_sync.count_of(p_ledger, 'listed'),
    image_sync.count_of(p_ledger, 'records'),
    image_sync.count_of(p_ledger, 'removed') + image_sync.count_of(p_ledger, 'restored') + image_sync.count_of(p_ledger, 'skipped')
  )::integer
$$;

comment on function image_sync.names_of(jsonb) is 'How many objects, records or names of a plan a chunk''s ledger is about.';

-- The counter of what a worker does with a chunk's names.
create or replace function image_sync.work_of(p_mode text)
returns text
language sql
immutable
set search_path = ''
as $$
  select case p_mode when 'verify' then 'to_open' else 'to_sign' end
$$;

comment on function image_sync.work_of(text) is 'to_open in a verify, else to_sign.';

create or replace function image_sync.ms_since(p_since timestamptz)
returns integer
language sql
volatile
set search_path = ''
as $$
  select ceil(1000 * extract(epoch from clock_timestamp() - p_since))::integer
$$;

comment on function image_sync.ms_since(timestamptz) is 'Milliseconds since then, by the clock.';
