-- set
-- The walk: from the first name of a bucket to the last, in ranges that are looked at once. A chunk is what is to be done.

create or replace function image_sync.next_number(p_run uuid)
returns integer language plpgsql stable set search_path = '' as $$
begin
  return 1 + coalesce(
    (
      select c.number
      from image_sync.chunks c
      where c.run_id = p_run
      order by c.number desc limit 1
    ), 0);
end;
$$;

comment on function image_sync.next_number(uuid) is 'The number of a run''s next chunk. The caller holds the run''s row lock.';

create or replace function image_sync.chunk_size(p_run image_sync.runs, p_settings image_sync.settings)
returns integer language plpgsql immutable set search_path = '' as $$
begin
  return least(
    case when p_run.plan_id is not null then p_run.chunk_size end,
    p_settings.chunk_size,
    -- What is opened has to be opened within a lease, several times over.
    case when p_run.mode = 'verify' then greatest(least(200, p_settings.verify_rate * extract(epoch from p_settings.lease_duration) / 4), 1)::integer end
  );
end;
$$;

comment on function image_sync.chunk_size(image_sync.runs, image_sync.settings) is 'How many names may need something in one chunk of the run.';

-- Stores what a look found as the run's next chunk: to be worked on, or done where nothing is to be done.
--   p_moved  names of it whose record came along
create or replace function image_sync.store_chunk(
  p_run image_sync.runs, p_from_key text, p_to_key text, p_look image_sync.look, p_moved text[] default '{}', p_problems jsonb default '[]', p_lease_duration interval default null, p_worker uuid default null, p_lease uuid default null
)
returns image_sync.chunks language plpgsql set search_path = '' as $$
declare
  v_is_done constant boolean := p_look.to_do = '{}' and p_look.to_link = '{}';
  v_moved constant integer := case when p_moved = '{}' then 0 else (select count(*) from unnest(p_look.to_do) as n (name) where n.name in (select m.name from unnest(p_moved) as m (name))) end;
  v_chunk image_sync.chunks;
begin
  insert into image_sync.chunks (run_id, number, from_key, to_key, state, worker_id, lease_token, lease_expires_at, to_do, to_do_ids, to_link, to_move, ledger, facts, problems, closed_at)
  values (
    p_run.id, image_sync.next_number(p_run.id), p_from_key, p_to_key, case when v_is_done then 'done' when p_lease is not null then 'leased' else 'pending' end, p_worker,
    case when not v_is_done then p_lease end, case when not v_is_done then clock_timestamp() + p_lease_duration end,
    p_look.to_do, p_look.to_do_ids, p_look.to_link, p_look.to_move,
    case when v_moved > 0 then image_sync.add_counts(p_look.ledger, jsonb_build_object('moved', v_moved, 'unsettled', -v_moved)) else p_look.ledger end,
    p_look.facts,
    case when p_run.mode = 'cleanup' and p_look.facts ? 'away' then (
      select jsonb_agg(image_sync.item_problem(f.name, 'moved_away', format('Left out: its file is %s now', image_sync.place_in_words(p_run.bucket_id, f.bucket, f."to"))))
      from jsonb_to_recordset(p_look.facts #> '{away,files}') as f (name text, bucket text, "to" text)
    ) else p_problems end,
    case when v_is_done then clock_timestamp() end
  )
  returning *
  into v_chunk;
  return v_chunk;
end;
$$;

comment on function image_sync.store_chunk(image_sync.runs, text, text, image_sync.look, text[], jsonb, interval, uuid, uuid) is
  'Stores a chunk of what a look found and returns it: done, leased where there is a token, or pending. The caller holds the run''s row lock.';

-- Goes on behind the run's cursor until there is something to be done, or 250 ms are over: they keep every call far from the API's
-- limits, and others waiting for the lock no longer than that. A range is as long as what the last ones found promises, 25 chunks' worth
-- of names at most; one that holds more than a chunk may have is looked at again in part, and one of a chunk's names never does.
create or replace function image_sync.walk(p_run image_sync.runs, p_settings image_sync.settings, p_worker uuid, p_lease uuid)
returns image_sync.chunks language plpgsql set search_path = '' as $$
declare
  v_until constant timestamptz := clock_timestamp() + interval '250 milliseconds';
  v_size constant integer := image_sync.chunk_size(p_run, p_settings);
  v_stride integer := coalesce(p_run.stride, v_size);
  v_run image_sync.runs := p_run;
  v_since timestamptz;
  v_to_key text;
  v_look image_sync.look;
  v_chunk image_sync.chunks;
begin
  loop
    v_since := clock_timestamp();
    if v_run.plan_id is not null then
      v_chunk := image_sync.settle_chunk(v_run, p_settings, p_worker);
    else
      v_to_key := image_sync.range_end(v_run.bucket_id, image_sync.behind(v_run.cursor), v_stride);
      v_look := image_sync.look(v_run, p_settings, v_run.mode, image_sync.behind(v_run.cursor), coalesce(v_to_key, image_sync.last_key()));
      if v_look.found > v_size and v_stride > v_size then
        v_stride := v_size;
        continue;
      end if;
      v_look.ledger := v_look.ledger || jsonb_build_object('listing_ms', ceil(1000 * extract(epoch from clock_timestamp() - v_since))::integer);
      v_chunk := image_sync.store_chunk(v_run, v_run.cursor, v_to_key, v_look, p_lease_duration => p_settings.lease_duration, p_worker => p_worker, p_lease => p_lease);
      v_stride := greatest(1, least(
        v_stride * case when clock_timestamp() > v_since + interval '150 milliseconds' then 1 else 5 end,
        case when v_look.found > 0 then greatest(0.8 * v_size * v_stride / v_look.found, v_size) end,
        25 * p_settings.chunk_size
      ))::integer;
    end if;
    v_run.exhausted := v_chunk.to_key is null;
    v_run.cursor := coalesce(v_chunk.to_key, v_run.cursor);
    exit when v_run.exhausted or v_chunk.state = 'leased' or clock_timestamp() >= v_until or v_run.chunk_size is not null;
  end loop;
  update image_sync.runs r
  set
    cursor = v_run.cursor, exhausted = v_run.exhausted, stride = v_stride, moved_at = clock_timestamp(),
    -- Where the database was too slow once, it is asked for more again.
    chunk_size = nullif(least(r.chunk_size * case when v_run.plan_id is not null and clock_timestamp() < v_since + interval '1 second' then 2 else 1 end, p_settings.chunk_size), p_settings.chunk_size)
  where r.id = v_run.id;
  return case when v_chunk.state = 'leased' then v_chunk end;
end;
$$;

comment on function image_sync.walk(image_sync.runs, image_sync.settings, uuid, uuid) is
  'Makes chunks from the cursor on until one needs something (it is returned, leased with the token), the bucket ends or 250 ms are over. The caller holds the run''s row lock.';
