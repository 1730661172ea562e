-- set
-- A stretch: the next many chunks of a bucket in which little or nothing is to be done, leased as one. Most nights most of a bucket is
-- as it was. To read it takes longer than all else, and reading needs no lock: so whoever walks leases a stretch ahead of the cursor,
-- goes over it without the run's row lock beside other workers, and holds the lock only to store what was found: chunks that are done,
-- and chunks that have still to be listed, under the lock as any other.

-- A stretch costs two calls more: with fewer chunks to go it is quicker to walk over them in the call that is there.
create or replace function image_sync.shortest_stretch()
returns integer
language sql
stable
set search_path = ''
as $$
  select coalesce(nullif(current_setting('image_sync.shortest_stretch', true), '')::integer, 5)
$$;

comment on function image_sync.shortest_stretch() is 'How many chunks a stretch has at least.';

-- Leases the chunks behind the run's cursor as one: at most 25, and half of what is left, so that others find some too. Null columns
-- where they would be too few. The caller holds the run's row lock and moves the cursor to its to_key.
create or replace function image_sync.lease_stretch(
  p_run image_sync.runs,
  p_settings image_sync.settings,
  p_worker uuid,
  p_lease uuid
)
returns image_sync.chunks
language plpgsql
set search_path = ''
as $$
declare
  v_chunk image_sync.chunks := image_sync.new_chunk(p_run.id, p_run.cursor);
  v_size constant integer := image_sync.chunk_size(p_run, p_settings);
  v_chunks integer;
begin
  v_chunk.number := image_sync.next_number(p_run.id);
  v_chunks := least(25, (p_run.total_estimate / v_size - v_chunk.number) / 2);
  if p_run.plan_id is not null or p_run.mode = 'verify' or p_run.chunk_size is not null or coalesce(v_chunks < image_sync.shortest_stretch(), true) then
    return null;
  end if;
  -- Of the table itself: its index alone is read. Names that are no objects make a chunk or two less of it.
  select o.name
  into v_chunk.to_key
  from storage.objects o
  where o.bucket_id = p_run.bucket_id
    and o.name collate "C" > p_run.cursor
  order by o.name collate "C"
  offset v_chunks * v_size - 1
  limit 1;
  -- Numbers follow the keys: those of its other chunks are left free before its own.
  v_chunk.number := v_chunk.number + v_chunks - 1;
  v_chunk.is_stretch := true;
  v_chunk.state := 'leased';
  v_chunk.relist_size := v_size;
  v_chunk.lease_token := p_lease;
  v_chunk.lease_expires_at := clock_timestamp() + p_settings.lease_duration;
  v_chunk.worker_id := p_worker;
  insert into image_sync.chunks (run_id, number, from_key, to_key, is_stretch, state, relist_size, lease_token, lease_expires_at, worker_id)
  values (v_chunk.run_id, v_chunk.number, v_chunk.from_key, v_chunk.to_key, v_chunk.is_stretch, v_chunk.state, v_chunk.relist_size, v_chunk.lease_token, v_chunk.lease_expires_at, v_chunk.worker_id);
  return v_chunk;
end;
$$;

comment on function image_sync.lease_stretch(image_sync.runs, image_sync.settings, uuid, uuid) is
  'Leases the next chunks of a run, shortest_stretch to 25, as one chunk that has still to be listed; null columns where fewer are left, or the run does more than to go over them. The caller holds the run''s row lock.';

-- Goes over the stretch that a token holds, for 250 ms at most. Reads only, and under no lock: a chunk in which something is to be
-- written, signed or moved is left to be listed again. A stretch that the database ended before, or a worker left, is left to that
-- altogether, so that what ended it has a call of its own.
create or replace function image_sync.pass_stretch(p_run image_sync.runs, p_settings image_sync.settings, p_lease uuid)
returns image_sync.chunks[]
language plpgsql
set search_path = ''
as $$
declare
  v_until constant timestamptz := clock_timestamp() + interval '250 milliseconds';
  v_since timestamptz;
  v_stretch image_sync.chunks;
  v_compared image_sync.comparison;
  v_chunk image_sync.chunks;
  v_passed image_sync.chunks[] := array[]::image_sync.chunks[];
  v_from_key text;
begin
  select c.*
  into v_stretch
  from image_sync.chunks c
  where c.run_id is not distinct from p_run.id
    and c.lease_token = p_lease
    and c.is_stretch
    and c.relist_size is not null
    and c.state = 'leased'
    and c.attempts = 0;
  if not found then
    return v_passed;
  end if;
  v_from_key := v_stretch.from_key;
  loop
    v_since := clock_timestamp();
    v_compared := image_sync.compare(p_run, p_settings, image_sync.new_chunk(p_run.id, v_from_key), v_stretch.to_key, v_stretch.relist_size);
    v_chunk := v_compared.chunk;
    if image_sync.is_settled(p_run, v_compared) then
      v_chunk.state := 'done';
      v_chunk.worker_id := v_stretch.worker_id;
      v_chunk.closed_at := clock_timestamp();
      v_chunk.ledger := v_chunk.ledger || jsonb_build_object('listing_ms', image_sync.ms_since(v_since));
    else
      v_chunk := image_sync.unlisted_chunk(p_run.id, v_from_key, (v_compared.chunk).to_key, v_stretch.relist_size);
    end if;
    v_passed := v_passed || v_chunk;
    v_from_key := v_chunk.to_key;
    exit when v_from_key is not distinct from v_stretch.to_key or clock_timestamp() >= v_until;
  end loop;
  return v_passed;
end;
$$;

comment on function image_sync.pass_stretch(image_sync.runs, image_sync.settings, uuid) is
  'The chunks at the beginning of a leased stretch as they would be stored: done where nothing is to be done, else still to be listed. Empty where the token holds no stretch. Writes nothing.';

create or replace function image_sync.is_settled(p_run image_sync.runs, p_compared image_sync.comparison)
returns boolean
language plpgsql
immutable
set search_path = ''
as $$
begin
  return p_compared.moves = '{}'
    and (p_compared.chunk).departing = '{}'
    and not (p_compared.chunk).ledger ? 'unmoved'
    and (
      p_run.mode <> 'sync'
      or p_compared.names = '{}' and (p_compared.chunk).to_insert = '{}' and not p_compared.has_unlinked
    );
end;
$$;

comment on function image_sync.is_settled(image_sync.runs, image_sync.comparison) is
  'Whether a run has nothing to write, to sign or to move in a range that was compared.';

-- Stores the chunks that a stretch was found to have in place of the part of it that they were. The last of a stretch that was gone
-- over as a whole takes its place, and its lease where it has still to be listed. The caller holds the run's row lock.
create or replace function image_sync.settle_stretch(
  p_run image_sync.runs,
  p_settings image_sync.settings,
  p_stretch image_sync.chunks,
  p_passed image_sync.chunks[]
)
returns image_sync.chunks
language plpgsql
set search_path = ''
as $$
declare
  v_stretch image_sync.chunks := p_stretch;
  v_passed image_sync.chunks[] := p_passed;
  v_last constant integer := cardinality(p_passed);
  v_number integer;
begin
  select c.number
  into v_number
  from image_sync.chunks c
  where c.run_id = p_run.id
    and c.number < p_stretch.number
  order by c.number desc
  limit 1;
  v_number := coalesce(v_number, 0);
  for place in 1..v_last loop
    -- More chunks than numbers were left for: records without objects lie between.
    v_number := case when v_number + 1 < p_stretch.number or v_number > p_stretch.number then v_number + 1 else image_sync.next_number(p_run.id) end;
    v_passed[place].number := v_number;
  end loop;

  if v_passed[v_last].to_key is not distinct from p_stretch.to_key then
    v_stretch := v_passed[v_last];
    v_stretch.number := p_stretch.number;
    v_stretch.lease_token := p_stretch.lease_token;
    v_stretch.past_leases := p_stretch.past_leases;
    if v_stretch.state = 'pending' then
      v_stretch.state := 'leased';
      v_stretch.lease_expires_at := clock_timestamp() + p_settings.lease_duration;
      v_stretch.worker_id := p_stretch.worker_id;
    end if;
    v_passed[v_last] := v_stretch;
    delete from image_sync.chunks c
    where c.run_id = p_run.id
      and c.number = p_stretch.number;
  else
    v_stretch.from_key := v_passed[v_last].to_key;
    v_stretch.lease_expires_at := clock_timestamp() + p_settings.lease_duration;
    update image_sync.chunks c
    set from_key = v_stretch.from_key, lease_expires_at = v_stretch.lease_expires_at
    where c.run_id = p_run.id
      and c.number = p_stretch.number;
  end if;
  insert into image_sync.chunks
  select p.*
  from unnest(v_passed) as p;
  return v_stretch;
end;
$$;

comment on function image_sync.settle_stretch(image_sync.runs, image_sync.settings, image_sync.chunks, image_sync.chunks[]) is
  'Stores the chunks that a stretch was found to have and shortens it by them. Returns what its lease holds then: the rest of it, or its last chunk. The caller holds the run''s row lock.';
