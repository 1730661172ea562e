-- fresh
-- A run's range of keys, the lease on it, and the ledger of what was found and done in it.
create table image_sync.chunks (
  run_id uuid not null,
  number integer not null,
  from_key text,
  to_key text,
  state text not null,
  attempts integer not null default 0,
  lease_token uuid,
  lease_expires_at timestamptz,
  not_before timestamptz,
  worker_id uuid,
  ledger jsonb not null default '{}',
  facts jsonb not null default '{}',
  problems jsonb not null default '[]',
  error jsonb,
  closed_at timestamptz,
  to_do text[] not null default '{}',
  to_do_ids uuid[] not null default '{}',
  to_link text[] not null default '{}',
  to_move text[] not null default '{}',
  write_size integer,
  constraint chunks_pkey primary key (run_id, number),
  constraint chunks_run_id_fkey foreign key (run_id) references image_sync.runs (id) on delete cascade,
  constraint chunks_state_check check (state in ('pending', 'leased', 'done', 'dead')),
  constraint chunks_write_size_check check (write_size > 0),
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
-- Where records and their files have still to meet.
create index chunks_to_move_idx on image_sync.chunks (number) where to_move <> '{}';
-- The last chunks that were signed, newest first: an order that only this index gives.
create index chunks_closed_idx on image_sync.chunks (run_id, closed_at desc nulls first) where ledger ? 'to_sign';

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
drop type if exists image_sync.chunk_to_sign, image_sync.comparison, image_sync.listing, image_sync.insertion, image_sync.signing, image_sync.move cascade;

-- An open run that lists its bucket begins anew: what its chunks still had to do is said in other words now.
delete from image_sync.chunks c
using image_sync.runs r
where r.id = c.run_id
  and r.finished_at is null
  and r.plan_id is null;
update image_sync.runs r
set cursor = '', exhausted = false, chunk_size = null, twins = null, twins_cursor = null, twin_keys = '{}'
where r.finished_at is null
  and r.plan_id is null;

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
  orphans_expired, drop column storage_calls, drop column retries, drop column soonest_expiry, drop column listing_took,
  drop column interrupted, drop column is_stretch, drop column relist_size, drop column past_leases, drop column to_insert, drop column
  to_insert_ids, drop column inserted_names, drop column moved_names, drop column departing,
  alter column from_key drop not null,
  add column to_do text[] not null default '{}', add column to_do_ids uuid[] not null default '{}', add column to_link text[] not null default '{}', add column to_move text[] not null default '{}',
  add column write_size integer, add constraint chunks_write_size_check check (write_size > 0);
create index chunks_to_move_idx on image_sync.chunks (number) where to_move <> '{}';
create index chunks_closed_idx on image_sync.chunks (run_id, closed_at desc nulls first) where ledger ? 'to_sign';

-- set
comment on table image_sync.chunks is 'A run''s range of keys with its lease and its ledger. Balanced: listed = images + not_images, images = recorded + inserted + moved + unmoved + collided + vanished + missing + unsettled and, once done, to_sign = signed + withdrawn + failed + held and to_open = shown + broken.';
comment on column image_sync.chunks.run_id is 'The run that the chunk belongs to.';
comment on column image_sync.chunks.number is 'The chunk''s place in its run, from 1.';
comment on column image_sync.chunks.from_key is 'The range begins behind this key (byte order); empty: at the beginning. Null: names from anywhere, to which records were moved.';
comment on column image_sync.chunks.to_key is 'The range ends with this key, included; null: at the end of the bucket.';
comment on column image_sync.chunks.state is 'pending, leased, done, or dead after too many attempts.';
comment on column image_sync.chunks.attempts is 'How many attempts have failed: reported by a worker, or ended by an expired lease. What the database ended counts for nothing.';
comment on column image_sync.chunks.lease_token is 'The token of the present or last lease; closing with another one changes nothing.';
comment on column image_sync.chunks.lease_expires_at is 'From then on another worker may take the chunk over.';
comment on column image_sync.chunks.not_before is 'A pending chunk is not leased again before this time.';
comment on column image_sync.chunks.worker_id is 'The invocation that leased or walked the chunk last.';
comment on column image_sync.chunks.to_do is 'Names that still need a URL; in a verify those whose URL is to be opened.';
comment on column image_sync.chunks.to_do_ids is 'The objects of to_do, in the same order, where the name had no record when it was looked at; null where it had one.';
comment on column image_sync.chunks.to_link is 'Names whose record does not know its object yet.';
comment on column image_sync.chunks.to_move is 'Names at which a record and its file have to meet first; taken out once that was tried.';
comment on column image_sync.chunks.write_size is 'As many rows at once as the database does in time; null: all.';
comment on column image_sync.chunks.ledger is 'What was counted in the range, by name; what is zero is left out.
Found: listed, bytes, images, not_images (of these excluded, empty_files), recorded, missing, moved, unmoved, unsettled, orphaned, several_files; records, records_signed, records_expired, images_signed, orphans_unsigned, orphans_expired.
Done: to_sign = signed + withdrawn + failed + held, inserted, updated, linked, collided, vanished; to_open = shown + broken (of these rejected); removed, restored, skipped; storage_calls, retries, listing_ms.';
comment on column image_sync.chunks.facts is 'What the report is merged from: objects by extension, URLs by the day on which they die, the soonest of those days, samples, and for a dry run the orphaned records'' names.';
comment on column image_sync.chunks.problems is 'Items that failed or were skipped: name, code, detail.';
comment on column image_sync.chunks.error is 'The last failure of the chunk as a whole.';
comment on column image_sync.chunks.closed_at is 'When the chunk became done or dead.';

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

