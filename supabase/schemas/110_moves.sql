-- set
-- Moves: a phase of its own behind the walk, which has met every record that is elsewhere than its file.

-- The records that follow their files to these names of a bucket, or from them. A part number that its owner changed stays.
create or replace function image_sync.find_moves(p_bucket_id text, p_names text[])
returns image_sync.move[] language sql
stable set search_path = '' set enable_hashjoin = 'off' set enable_mergejoin = 'off' set enable_seqscan = 'off' as $$
  with moved as materialized (
    select o.id
    from unnest(p_names) as n (name)
    cross join lateral (
      select x.id
      from image_sync.objects x
      where x.bucket_id = p_bucket_id and x.name collate "C" >= n.name and x.name collate "C" <= n.name
      order by x.name collate "C" limit 1
    ) as o
    union
    select r.object_id
    from unnest(p_names) as n (name)
    cross join lateral (
      select x.object_id
      from public.part_images x
      where x.bucket_id = p_bucket_id and x.file_name collate "C" >= n.name and x.file_name collate "C" <= n.name
      order by x.file_name collate "C" limit 1
    ) as r
  )
  select coalesce(array_agg((
    r.bucket_id, r.file_name, case when p.is_derived then r.part_number end, d.bucket_id, d.name, case when p.is_derived then p.new end, r.object_id
  )::image_sync.move order by r.bucket_id, r.file_name collate "C"), '{}')
  from moved
  cross join lateral (
    select x.bucket_id, x.file_name, x.part_number, x.object_id
    from public.part_images x
    where x.object_id = moved.id
    -- One look-up by index for each, whatever the planner believes of the table.
    offset 0
  ) as r
  cross join lateral image_sync.destination_of(r.bucket_id, r.file_name, r.object_id) as d
  cross join lateral (
    select n.numbers[2] as new, r.part_number = n.numbers[1] and n.numbers[1] <> n.numbers[2] as is_derived
    from (select image_sync.part_numbers_of(array[r.file_name, d.name]) as numbers offset 0) as n
  ) as p
$$;

comment on function image_sync.find_moves(text, text[]) is 'The moves that bring records to these names of a bucket or take them away from there.';

-- Who waits: whoever goes to a place where a record stays, or gets a part number that one keeps; and who waits for those.
--   p_goes  by position, which of the moves may be done
create or replace function image_sync.waiting_moves(p_moves image_sync.move[], p_goes boolean[])
returns integer[]
language sql
stable
set search_path = ''
-- A chain of n is n rounds: each has to be a look into a hash.
set enable_hashjoin = 'on'
set enable_nestloop = 'off'
set enable_mergejoin = 'off'
as $$
  with recursive move as materialized (
    select m.*, g.goes
    from unnest(p_moves) with ordinality as m (from_bucket, from_name, from_part, to_bucket, to_name, to_part, object_id, place)
    join unnest(p_goes) with ordinality as g (goes, place)
      on g.place = m.place
  ), edge as materialized (
    select m.place, h.place as ahead
    from move m
    join lateral (
      select p.bucket_id, p.file_name
      from public.part_images p
      where p.bucket_id = m.to_bucket and p.file_name collate "C" >= m.to_name and p.file_name collate "C" <= m.to_name
      order by p.file_name collate "C" limit 1
    ) as p
      on true
    left join move h
      on h.from_bucket = p.bucket_id
      and h.from_name = p.file_name
    where m.goes
    union all
    select m.place, h.place
    from move m
    join lateral (
      select p.bucket_id, p.file_name
      from public.part_images p
      where p.part_number = m.to_part and p.object_id is distinct from m.object_id
      limit 1
    ) as p
      on image_sync.part_number_is_unique()
    left join move h
      on h.from_bucket = p.bucket_id
      and h.from_name = p.file_name
      and h.to_part is not null
    where m.goes
    union all
    -- Of two that want the same part number one stays: rather one whose own nobody waits for.
    select r.place, -1
    from (
      select m.place, row_number() over (partition by m.to_part order by m.from_part in (select n.to_part from move n where n.goes and n.to_part <> '') desc nulls last, m.place) as rank
      from move m
      where m.goes and m.to_part is not null and image_sync.part_number_is_unique()
    ) as r
    where r.rank > 1
  ), waiting as (
    select e.place
    from edge e
    left join move h
      on h.place = e.ahead
    where h.goes is not true
    union
    select e.place
    from waiting w
    join edge e
      on e.ahead = w.place
  )
  select coalesce(array_agg(w.place::integer), '{}')
  from waiting w
$$;

comment on function image_sync.waiting_moves(image_sync.move[], boolean[]) is
  'The positions of those moves that cannot be done because a record stays at their place, keeps their part number, or waits itself.';

-- Steps aside, under a name and a part number that nobody has. By their places, here and below: the caller holds the rows.
create or replace function image_sync.park(p_moves image_sync.move[])
returns integer language sql set search_path = '' as $$
  with parked as (
    update public.part_images p
    set file_name = '.moving/' || m.object_id, part_number = case when m.to_part is null then p.part_number else '.moving/' || m.object_id end
    from unnest(p_moves) as m
    cross join lateral (
      select q.ctid
      from public.part_images q
      where q.bucket_id = m.from_bucket
        and q.file_name collate "C" >= m.from_name
        and q.file_name collate "C" <= m.from_name
      order by q.file_name collate "C" limit 1
    ) as r
    where p.ctid = r.ctid and p.object_id = m.object_id
    returning 1
  )
  select count(*)::integer
  from parked
$$;

comment on function image_sync.park(image_sync.move[]) is 'Gives records names of their own until they are placed. Returns how many.';

-- The old URL is of the old name and opens nothing any more: it is taken away here and made anew where the new name lies.
create or replace function image_sync.place(p_moves image_sync.move[], p_is_parked boolean)
returns integer language sql set search_path = '' as $$
  with placed as (
    update public.part_images p
    set bucket_id = m.to_bucket, file_name = m.to_name, object_name = m.to_name, part_number = coalesce(m.to_part, p.part_number), signed_url = image_sync.no_url(), signed_url_expires_at = null
    from (
      select n.*, case when p_is_parked then '.moving/' || n.object_id else n.from_name end as name
      from unnest(p_moves) as n
    ) as m
    cross join lateral (
      select q.ctid
      from public.part_images q
      where q.bucket_id = m.from_bucket and q.file_name collate "C" >= m.name and q.file_name collate "C" <= m.name
      order by q.file_name collate "C" limit 1
    ) as r
    where p.ctid = r.ctid and p.object_id = m.object_id
    returning 1
  )
  select count(*)::integer
  from placed
$$;

comment on function image_sync.place(image_sync.move[], boolean) is 'Gives records their new places, from where they are parked or from their old ones. Returns how many.';

-- Moves records, all or none. Those in whose places, or part numbers, others come step aside first.
create or replace function image_sync.move_together(p_moves image_sync.move[])
returns void language plpgsql set search_path = '' set enable_seqscan = 'off' set enable_hashjoin = 'off' set enable_mergejoin = 'off' as $$
declare
  v_aside image_sync.move[];
  v_straight image_sync.move[];
begin
  select
    coalesce(array_agg(m::image_sync.move) filter (where a.steps_aside), '{}'),
    coalesce(array_agg(m::image_sync.move) filter (where not a.steps_aside), '{}')
  into v_aside, v_straight
  from unnest(p_moves) as m
  cross join lateral (
    select (m.from_bucket, m.from_name) in (select t.to_bucket, t.to_name from unnest(p_moves) as t)
      or coalesce(m.from_part, '') in (select t.to_part from unnest(p_moves) as t where t.to_part <> '') as steps_aside
    offset 0
  ) as a;
  if image_sync.park(v_aside) + image_sync.place(v_straight, false) + image_sync.place(v_aside, true) <> cardinality(p_moves) + cardinality(v_aside) then
    raise exception 'a trigger of the table keeps a record where it is'
      using errcode = 'triggered_action_exception';
  end if;
  perform image_sync.check_deferred();
end;
$$;

comment on function image_sync.move_together(image_sync.move[]) is 'Gives each record its new place, without a URL. Raises what the table raises, and has moved none then.';

-- Which of these moves the table refuses: each is parked, then each is placed, and all of it is undone.
create or replace function image_sync.refused_moves(p_moves image_sync.move[])
returns text[] language plpgsql set search_path = '' set enable_seqscan = 'off' as $$
declare
  v_since constant timestamptz := clock_timestamp();
  v_words text[] := array_fill(null::text, array[cardinality(p_moves)]);
begin
  for v_step in 1..2 loop
    for v_place in 1..cardinality(p_moves) loop
      continue when v_words[v_place] is not null;
      perform set_config('lock_timeout', image_sync.row_patience(v_since), true);
      begin
        if v_step = 1 and image_sync.park(p_moves[v_place:v_place]) = 0 or v_step = 2 and image_sync.place(p_moves[v_place:v_place], true) = 0 then
          raise exception 'a trigger of the table keeps it where it is'
            using errcode = 'triggered_action_exception';
        end if;
        perform image_sync.check_deferred();
      exception
        when others then
          if image_sync.is_held(sqlstate) then
            v_words[v_place] := 'somebody else holds it. The next run settles it';
          elsif image_sync.is_refusal(sqlstate) then
            v_words[v_place] := 'the table refused to change it: ' || sqlerrm;
          else
            raise;
          end if;
      end;
    end loop;
  end loop;
  raise exception 'Tried' using errcode = 'ISB04';
exception
  when sqlstate 'ISB04' then
    return v_words;
end;
$$;

comment on function image_sync.refused_moves(image_sync.move[]) is 'By position, why each of these moves cannot be done by itself, in words; null where it can. Changes nothing.';

-- Who stays because somebody holds the record, or because a row of another table refers to it by a key that a move would empty (on update
-- set null, set default): by position, in words.
create or replace function image_sync.staying_moves(p_moves image_sync.move[])
returns text[] language plpgsql set search_path = '' as $$
declare
  v_free text[];
  v_referenced text[];
  v_words text := 'a row of another table refers to it, and would lose the reference (on update set null or set default). Declare the key "on update cascade", and sync again';
begin
  v_free := array(
    select p.bucket_id || '/' || p.file_name
    from unnest(p_moves) as m
    cross join lateral (
      select q.bucket_id, q.file_name
      from public.part_images q
      where q.bucket_id = m.from_bucket
        and q.file_name collate "C" >= m.from_name
        and q.file_name collate "C" <= m.from_name
      order by q.file_name collate "C" limit 1
      for update skip locked
    ) as p
  );
  begin
    v_referenced := array(
      select b.from_bucket || '/' || r.name
      from (select m.from_bucket, array_agg(m.from_name) as names from unnest(p_moves) as m group by m.from_bucket) as b
      cross join lateral unnest(image_sync.referenced_names(b.from_bucket, b.names, p_by_move => true)) as r (name)
    );
  exception
    when insufficient_privilege then
      v_words := format('whether another table refers to it cannot be seen: %s. Let the owner of our functions read that table', sqlerrm);
      v_referenced := v_free;
    when lock_not_available or deadlock_detected then
      v_words := 'a table that may refer to it is held by somebody else. The next run settles it';
      v_referenced := v_free;
  end;
  return array(
    select case
      when m.from_bucket || '/' || m.from_name not in (select f.place from unnest(v_free) as f (place)) then 'somebody else holds it. The next run settles it'
      when m.from_bucket || '/' || m.from_name in (select r.place from unnest(v_referenced) as r (place)) then v_words
    end
    from unnest(p_moves) with ordinality as m (from_bucket, from_name, from_part, to_bucket, to_name, to_part, object_id, place)
    order by m.place
  );
end;
$$;

comment on function image_sync.staying_moves(image_sync.move[]) is 'Locks the records of these moves; by position, why one stays, in words, null where nothing is known against it.';

-- Moves records; who is held, referred to or refused stays, is named, and so do those that wait for his place or his part number.
create or replace function image_sync.move_records(p_moves image_sync.move[], out moved image_sync.move[], out problems jsonb)
language plpgsql set search_path = '' set lock_timeout = '400ms' as $$
declare
  v_waits constant text := 'its new place or part number is not free yet. The next sync goes on';
  v_words text[];
  v_tried text[];
  v_place integer;
begin
  v_words := image_sync.staying_moves(p_moves);
  for v_attempt in 1..4 loop
    foreach v_place in array image_sync.waiting_moves(p_moves, array(select w.words is null from unnest(v_words) with ordinality as w (words, place) order by w.place)) loop
      v_words[v_place] := v_waits;
    end loop;
    moved := array(select p_moves[w.place] from unnest(v_words) with ordinality as w (words, place) where w.words is null order by w.place);
    begin
      perform image_sync.move_together(moved) where moved <> '{}';
      exit;
    exception
      when others then
        if not image_sync.is_held(sqlstate) and not image_sync.is_refusal(sqlstate) then
          raise;
        elsif image_sync.is_held(sqlstate) then
          perform image_sync.need_table();
        end if;
        v_tried := case when v_attempt < 4 then image_sync.refused_moves(moved) end;
        -- None of them alone: then all of them.
        if coalesce(array_length(array_remove(v_tried, null), 1), 0) = 0 then
          v_tried := array_fill('the table refused to change it: ' || sqlerrm, array[cardinality(moved)]);
        end if;
    end;
    v_words := array(
      select coalesce(w.words, v_tried[(count(*) filter (where w.words is null) over (order by w.place))])
      from unnest(v_words) with ordinality as w (words, place)
      order by w.place
    );
    moved := '{}';
  end loop;
  insert into image_sync.moves (bucket_id, file_name, object_id)
  select m.from_bucket, m.from_name, m.object_id
  from unnest(moved) as m;
  -- Those with a cause of their own come first: only some are named.
  problems := (
    select coalesce(jsonb_agg(
      image_sync.item_problem(p_moves[w.place].to_name, 'not_moved', format('Its record is that of %s still: %s', p_moves[w.place].from_name, w.words))
      order by w.words = v_waits, w.place
    ), '[]')
    from unnest(v_words) with ordinality as w (words, place)
    where w.words is not null
  );
end;
$$;

comment on function image_sync.move_records(image_sync.move[]) is 'Moves records, as many as can be. Returns the moves that were done and a problem not_moved for each of the others.';

-- How many names are settled in one transaction.
create or replace function image_sync.max_moves()
returns integer language sql stable set search_path = '' as $$
  select coalesce(nullif(current_setting('image_sync.max_moves', true), '')::integer, 5000)
$$;

comment on function image_sync.max_moves() is 'How many names at which records and files have to meet are settled in one transaction; of a longer chain of names that wait for each other the next syncs move the rest.';

-- The walk is through and has noted where records and their files have to meet: the next of those names are settled, and only they are
-- looked at again. The caller holds the run's row lock. Returns whether there were any.
--   p_error  the database was too slow for a single name: it is left as it is, and named
create or replace function image_sync.settle_moves(p_run image_sync.runs, p_settings image_sync.settings, p_error jsonb default null)
returns boolean language plpgsql set search_path = '' as $$
declare
  v_most constant integer := case when p_error is null then ceil(image_sync.max_moves() * least(1.0 * p_run.chunk_size / p_settings.chunk_size, 1)) else 1 end;
  v_names text[];
  v_movement record;
  v_look image_sync.look;
  v_part text[];
begin
  with noted as materialized (
    select c.number, n.name
    from image_sync.chunks c
    cross join lateral unnest(c.to_move) as n (name)
    where c.run_id is not distinct from p_run.id and c.to_move <> '{}'
    order by c.number, n.name collate "C" limit v_most
  ), taken as (
    update image_sync.chunks c
    set to_move = array(select n.name from unnest(c.to_move) as n (name) where n.name not in (select t.name from noted t))
    where c.run_id = p_run.id and c.number in (select t.number from noted t)
  )
  select array_agg(t.name order by t.name collate "C")
  into v_names
  from noted t;
  if v_names is null then
    return false;
  end if;
  if p_error is null then
    v_movement := image_sync.move_records(image_sync.find_moves(p_run.bucket_id, v_names));
  else
    select '{}'::image_sync.move[] as moved, jsonb_agg(image_sync.item_problem(n.name, p_error ->> 'code', p_error ->> 'detail')) as problems
    into v_movement
    from unnest(v_names) as n (name);
  end if;
  for v_part in
    select array_agg(n.name order by n.name collate "C")
    from unnest(v_names) with ordinality as n (name, place)
    group by (n.place - 1) / p_settings.chunk_size
    order by 1
  loop
    v_look := image_sync.look(p_run, p_settings, 'again', null, null, v_part);
    perform image_sync.store_chunk(p_run, null, null, v_look, array(
      select m.to_name
      from unnest(v_movement.moved) as m
      where m.to_bucket = p_run.bucket_id
    ), image_sync.first_items(v_movement.problems));
    v_movement.problems := '[]';
  end loop;
  update image_sync.runs r
  set moved_at = clock_timestamp()
  where r.id = p_run.id;
  return true;
end;
$$;

comment on function image_sync.settle_moves(image_sync.runs, image_sync.settings, jsonb) is
  'Moves records to the next names that the walk noted, max_moves of them or as many as the database does in time, and makes chunks of what is to be done there then. False where none is left. The caller holds the run''s row lock.';
