-- step 1.0.0
-- Files that were renamed or moved. Storage's own move and rename change the row of storage.objects in place: its id stays, which the
-- record remembers as object_id. So a record follows its file: same id, same created_at, same columns of its owner's, new name.
-- A copy and a delete give another id: one record too many and one too few, which nobody can tell from two files.

create table image_sync.moves (
  id bigint generated always as identity,
  bucket_id text not null,
  file_name text not null,
  object_id uuid not null,
  moved_at timestamptz not null default now(),
  constraint moves_pkey primary key (id)
);

create index moves_bucket_id_file_name_idx on image_sync.moves (bucket_id, file_name collate "C");

comment on table image_sync.moves is 'The names that records had before they followed their files. Pruned with the history of runs.';
comment on column image_sync.moves.id is 'The move.';
comment on column image_sync.moves.bucket_id is 'The bucket that the file was in.';
comment on column image_sync.moves.file_name is 'The name that it had there.';
comment on column image_sync.moves.object_id is 'The object: where it is now, storage.objects says.';
comment on column image_sync.moves.moved_at is 'When the record followed.';

alter table image_sync.moves enable row level security;
grant select, insert on image_sync.moves to service_role;

-- A record that follows its file from one place to another.
create type image_sync.move as (from_bucket text, from_name text, to_bucket text, to_name text, object_id uuid);

comment on type image_sync.move is 'A record''s old and new bucket and name, and the object that it follows.';

-- set
-- Where the file of a record lies, if a sync takes the record along: under another name or in another bucket that is kept in step, as an
-- image, where no record is known to be of it. No row where it does not.
create or replace function image_sync.destination_of(p_bucket_id text, p_file_name text, p_object_id uuid)
returns table (bucket_id text, name text)
language sql
stable
set search_path = ''
as $$
  select o.bucket_id, o.name
  from image_sync.objects o
  join image_sync.settings s
    on s.bucket_id = o.bucket_id
  where o.id = p_object_id
    and (o.bucket_id <> p_bucket_id or o.name collate "C" <> p_file_name)
    and o.extension = any (s.extensions)
    and o.bytes is distinct from 0
    and not (o.name like any (s.exclude))
    -- A record that its owner put where it is stays there.
    and not exists (
      select
      from public.part_images edited
      where edited.bucket_id = p_bucket_id
        and edited.file_name collate "C" = p_file_name
        and edited.object_name <> edited.file_name
    )
    -- The record of an object is the one at its name; of others that say they are, the first follows it.
    and not exists (
      select
      from public.part_images p
      where p.object_id = p_object_id
        and (
          p.bucket_id = o.bucket_id and p.file_name collate "C" = o.name
          or (p.bucket_id, p.file_name collate "C") < (p_bucket_id, p_file_name)
        )
    );
$$;

comment on function image_sync.destination_of(text, text, uuid) is 'The bucket and name to which a sync takes the record of this place along; no row where its file is at its place, gone, or left out.';

-- Where the file of a record is now, if that is elsewhere: storage.objects has it by its id, under whatever name, in whatever bucket. So
-- the record is no orphan, whether a sync takes it along or not. Where another record stands at that place, and stays, that one has the file.
create or replace function image_sync.place_of(p_bucket_id text, p_file_name text, p_object_id uuid)
returns table (bucket_id text, name text, is_followed boolean)
language sql
stable
set search_path = ''
as $$
  select o.bucket_id, o.name, d.name is not null
  from image_sync.objects o
  left join lateral image_sync.destination_of(p_bucket_id, p_file_name, p_object_id) as d
    on true
  where o.id = p_object_id
    and (o.bucket_id <> p_bucket_id or o.name collate "C" <> p_file_name)
    and (d.name is not null or not exists (
      select
      from public.part_images p
      where p.bucket_id = o.bucket_id
        and p.file_name collate "C" = o.name
    ));
$$;

comment on function image_sync.place_of(text, text, uuid) is 'The bucket and name at which the file of this record is now, and whether a sync takes the record along (is_followed); no row where it is at its place, gone, or another record''s.';

-- What is moved at once: names that were all shifted by one make a single chain of moves, each of which waits for the next, whatever
-- the size of the chunk. Of a chain that is longer each sync takes along the end that is not, and the records before it wait, with what
-- they know of their objects. Where the database was too slow for a chunk, the half of it may bring about half as many.
create or replace function image_sync.max_moves()
returns integer
language sql
stable
set search_path = ''
as $$
  select coalesce(nullif(current_setting('image_sync.max_moves', true), '')::integer, 5000)
$$;

comment on function image_sync.max_moves() is 'How many records follow their files in one transaction at most; of a longer chain of names that wait for each other the next syncs move the rest.';

-- The records that follow their files, of those at the given places, with whoever stands in their way and follows its own file.
--   p_bucket_ids, p_names  places of records, in parallel
-- A record at the place that another one goes to makes room if its own file lies elsewhere; if that file is gone, it stays, gets
-- the file that was moved onto its name, and nobody follows into its place. Where part numbers are unique, the record that has the
-- one that another gets makes room in the same way, wherever it lies. Every look is one by index, so that a chain of n records costs
-- n looks, in whatever order the names are.
create or replace function image_sync.find_moves(p_bucket_ids text[], p_names text[])
returns image_sync.move[]
language plpgsql
stable
set search_path = ''
as $$
declare
  v_is_unique constant boolean := image_sync.part_number_is_unique();
  v_found record;
begin
  with recursive follower as (
    select p.bucket_id, p.file_name, p.object_id, d.bucket_id as to_bucket, d.name as to_name
    from unnest(p_bucket_ids, p_names) as place (bucket_id, name)
    cross join lateral (
      select r.bucket_id, r.file_name, r.object_id
      from public.part_images r
      where r.bucket_id = place.bucket_id
        and r.file_name collate "C" >= place.name
        and r.file_name collate "C" <= place.name
      order by r.file_name collate "C"
      limit 1
    ) as p
    cross join lateral image_sync.destination_of(p.bucket_id, p.file_name, p.object_id) as d
    union
    select p.bucket_id, p.file_name, p.object_id, d.bucket_id, d.name
    from follower f
    cross join lateral (
      (
        select r.bucket_id, r.file_name, r.object_id, true as has_place
        from public.part_images r
        where r.bucket_id = f.to_bucket
          and r.file_name collate "C" >= f.to_name
          and r.file_name collate "C" <= f.to_name
        order by r.file_name collate "C"
        limit 1
      )
      union all
      select r.bucket_id, r.file_name, r.object_id, false
      from public.part_images r
      where v_is_unique
        and r.part_number = (image_sync.part_numbers_of(array[f.to_name]))[1]
        and r.object_id <> f.object_id
    ) as p
    left join lateral image_sync.destination_of(p.bucket_id, p.file_name, p.object_id) as d
      on true
    where f.to_name is not null
      -- Who stays at a place keeps others out of it; who keeps a part number is the table's to tell of.
      and (p.has_place or d.name is not null)
  ), found as materialized (
    select f.*
    from follower f
    limit image_sync.max_moves() + 1
  ), staying as (
    select f.bucket_id, f.file_name
    from found f
    where f.to_name is null
    union
    -- Who wanted to go where one stays, stays.
    select p.bucket_id, p.file_name
    from staying s
    cross join lateral (
      select q.id
      from image_sync.objects q
      where q.bucket_id = s.bucket_id
        and q.name collate "C" >= s.file_name
        and q.name collate "C" <= s.file_name
      order by q.name collate "C"
      limit 1
    ) as o
    join public.part_images p
      on p.object_id = o.id
  )
  select
    count(*) as places,
    array_agg((f.bucket_id, f.file_name, f.to_bucket, f.to_name, f.object_id)::image_sync.move) filter (where not exists (
      select
      from staying s
      where s.bucket_id = f.bucket_id
        and s.file_name = f.file_name
    )) as moves
  into v_found
  from found f;
  return case when v_found.places <= image_sync.max_moves() then coalesce(v_found.moves, '{}') end;
end;
$$;

comment on function image_sync.find_moves(text[], text[]) is
  'The moves of the records at these places and of those that have to make room for them: all of them can be done together. Null where they are more than max_moves.';

-- Where the records are whose files are these objects, and who has the names that they go to, or the part numbers of new files.
create or replace function image_sync.find_followers(
  p_bucket_id text,
  p_names text[],
  p_ids uuid[],
  p_part_numbers text[],
  out moves image_sync.move[]
)
language plpgsql
stable
set search_path = ''
as $$
declare
  v_bucket_ids text[];
  v_names text[];
begin
  select array_agg(p.bucket_id), array_agg(p.file_name)
  into v_bucket_ids, v_names
  from (
    select p.bucket_id, p.file_name
    from unnest(p_ids) as o (id)
    cross join lateral (
      select r.bucket_id, r.file_name
      from public.part_images r
      where r.object_id = o.id
      -- One look-up by index for each, whatever the planner believes of the table.
      offset 0
    ) as p
    union
    -- The record at a name whose file is another one: its own may lie elsewhere.
    select p.bucket_id, p.file_name
    from unnest(p_names) as n (name)
    cross join lateral (
      -- A range and an order that only the index of the key gives: no other one reads the bucket for it.
      select r.bucket_id, r.file_name, r.object_id
      from public.part_images r
      where r.bucket_id = p_bucket_id
        and r.file_name collate "C" >= n.name
        and r.file_name collate "C" <= n.name
      order by r.file_name collate "C"
      limit 1
    ) as p
    where p.object_id is not null
    union
    select p.bucket_id, p.file_name
    from unnest(p_part_numbers) as n (part_number)
    cross join lateral (
      select r.bucket_id, r.file_name, r.object_id
      from public.part_images r
      where r.part_number = n.part_number
      -- As above; and where there are none, nothing is looked at.
      offset 0
    ) as p
    where p.object_id is not null
  ) as p;
  moves := case when v_names is null then '{}' else image_sync.find_moves(v_bucket_ids, v_names) end;
end;
$$;

comment on function image_sync.find_followers(text, text[], uuid[], text[]) is
  'The moves that bring the records of these objects to their names, and those that make room there. p_ids: objects whose record has another name, or none; p_names: those of their names that have a record; p_part_numbers: unique ones that the others get. Null where they are more than max_moves.';

-- A key of another table that is declared "on update set null" or "set default" would lose what it refers to, without a word.
create or replace function image_sync.keep_references(p_moves image_sync.move[])
returns void
language plpgsql
set search_path = ''
as $$
begin
  if exists (
    select
    from unnest(p_moves) as m
    group by m.from_bucket
    having image_sync.referenced_names(m.from_bucket, array_agg(m.from_name), p_by_move => true) <> '{}'
  ) then
    raise exception 'a row of another table refers to it, and would lose the reference (on update set null or set default)'
      using errcode = 'foreign_key_violation', hint = 'Declare the key "on update cascade", and sync again.';
  end if;
exception
  when insufficient_privilege then
    raise exception 'whether another table refers to it cannot be seen: %', sqlerrm
      using errcode = 'foreign_key_violation', hint = 'Let the owner of our functions read that table.';
end;
$$;

comment on function image_sync.keep_references(image_sync.move[]) is
  'Raises foreign_key_violation where a row of another table refers to one of these records by a key that a move would empty.';

-- Moves records, all or none. The old URL is of the old name and opens nothing any more: it is taken away here and made anew where the
-- new name lies. A part number that its owner changed by hand stays as it is.
create or replace function image_sync.move_together(p_moves image_sync.move[])
returns image_sync.move[]
language plpgsql
set search_path = ''
as $$
declare
  v_is_unique constant boolean := image_sync.part_number_is_unique();
  v_names text[];
  v_old_numbers text[];
  v_new_numbers text[];
  v_parked bigint[];
  v_placed bigint[];
  v_done image_sync.move[];
begin
  perform image_sync.keep_references(p_moves);
  select
    array_agg(m.from_name order by m.place),
    image_sync.part_numbers_of(array_agg(m.from_name order by m.place)),
    image_sync.part_numbers_of(array_agg(m.to_name order by m.place))
  into v_names, v_old_numbers, v_new_numbers
  from unnest(p_moves) with ordinality as m (from_bucket, from_name, to_bucket, to_name, object_id, place);

  -- Records that change places, or part numbers that have to be unique, step aside first: no two may have one, not even for a moment.
  with aside as (
    update public.part_images p
    set
      file_name = '.moving/' || m.place || '/' || m.object_id,
      part_number = case when p.part_number = v_old_numbers[m.place] and v_old_numbers[m.place] <> v_new_numbers[m.place] then '.moving/' || m.place || '/' || m.object_id else p.part_number end
    from unnest(p_moves) with ordinality as m (from_bucket, from_name, to_bucket, to_name, object_id, place)
    where p.bucket_id = m.from_bucket
      and p.file_name collate "C" = m.from_name
      and p.object_id = m.object_id
      and (
        (m.from_bucket, m.from_name) in (
          select other.to_bucket, other.to_name
          from unnest(p_moves) as other
        )
        or v_is_unique
        and p.part_number = v_old_numbers[m.place]
        and v_old_numbers[m.place] <> v_new_numbers[m.place]
        and p.part_number in (
          select other.number
          from unnest(v_new_numbers) as other (number)
        )
      )
    returning p.file_name, m.place
  )
  select array_agg(coalesce(aside.file_name, n.name) order by n.place), array_agg(aside.place) filter (where aside.place is not null)
  into v_names, v_parked
  from unnest(v_names) with ordinality as n (name, place)
  left join aside
    on aside.place = n.place;

  with moved as (
    update public.part_images p
    set
      bucket_id = m.to_bucket,
      file_name = m.to_name,
      object_name = m.to_name,
      part_number = case when p.part_number in (v_old_numbers[m.place], '.moving/' || m.place || '/' || m.object_id) then v_new_numbers[m.place] else p.part_number end,
      signed_url = (select image_sync.no_url()),
      signed_url_expires_at = null
    from unnest(p_moves) with ordinality as m (from_bucket, from_name, to_bucket, to_name, object_id, place)
    where p.bucket_id = m.from_bucket
      and p.file_name collate "C" = v_names[m.place]
      and p.object_id = m.object_id
    returning m.place, (m.from_bucket, m.from_name, m.to_bucket, m.to_name, m.object_id)::image_sync.move as move
  ), noted as (
    insert into image_sync.moves (bucket_id, file_name, object_id)
    select (moved.move).from_bucket, (moved.move).from_name, (moved.move).object_id
    from moved
  )
  select coalesce(array_agg(moved.move), '{}'), array_agg(moved.place)
  into v_done, v_placed
  from moved;
  -- Who stepped aside and did not arrive would stay there, under a name and a part number of ours.
  if not coalesce(v_parked <@ v_placed, v_parked is null) then
    raise exception 'a trigger of the table keeps it from its new place'
      using errcode = 'triggered_action_exception', hint = 'Look for triggers that return null or the old row.';
  end if;
  perform image_sync.check_deferred();
  return v_done;
end;
$$;

comment on function image_sync.move_together(image_sync.move[]) is
  'Gives each record its new place, without a URL, and returns the moves that were done; a record that is not at its old place any more is passed over. Raises what the table raises, and has moved none then.';

-- Moves records together, or says why it did not.
create or replace function image_sync.try_moves(p_moves image_sync.move[], out moved image_sync.move[], out refusal text)
language plpgsql
set search_path = ''
as $$
begin
  moved := image_sync.move_together(p_moves);
exception
  when others then
    moved := '{}';
    if image_sync.is_held(sqlstate) then
      perform image_sync.need_table();
      refusal := 'somebody else holds it. The next run settles it';
    elsif image_sync.is_refusal(sqlstate) then
      refusal := 'the table refused to change it: ' || sqlerrm;
    else
      raise;
    end if;
end;
$$;

comment on function image_sync.try_moves(image_sync.move[]) is
  'What move_together returns; or, where a record is held or refused, no move and the refusal in words. Raises what is no matter of a record.';

-- Who waits for whom: who goes to the place that the other one leaves or, where part numbers are unique, gets the one that the other one
-- gives up. A part number that its owner changed by hand is neither given up nor made anew.
create or replace function image_sync.find_waiting(p_moves image_sync.move[], out waits_for jsonb, out waiters jsonb, out in_order integer[])
language plpgsql
stable
set search_path = ''
-- Thousands of moves are joined with themselves: by their hashes, however many the planner believes there are.
set enable_nestloop = 'off'
as $$
declare
  v_is_unique constant boolean := image_sync.part_number_is_unique();
  v_old_numbers constant text[] := image_sync.part_numbers_of(array(select m.from_name from unnest(p_moves) as m));
  v_new_numbers constant text[] := image_sync.part_numbers_of(array(select m.to_name from unnest(p_moves) as m));
  v_waits integer[];
  v_next integer := 1;
  v_place integer;
begin
  with move as materialized (
    select
      m.place,
      m.from_bucket,
      m.from_name,
      m.to_bucket,
      m.to_name,
      case when p.part_number = n.old_number and n.old_number <> n.new_number then n.old_number end as old_number,
      case when p.part_number = n.old_number and n.old_number <> n.new_number then n.new_number end as new_number
    from unnest(p_moves) with ordinality as m (from_bucket, from_name, to_bucket, to_name, object_id, place)
    join unnest(v_old_numbers, v_new_numbers) with ordinality as n (old_number, new_number, place)
      on n.place = m.place
    cross join lateral (
      select r.bucket_id, r.file_name, r.part_number
      from public.part_images r
      where r.object_id = m.object_id
      -- One look-up by index for each, whatever the planner believes of the table.
      offset 0
    ) as p
    where p.bucket_id = m.from_bucket
      and p.file_name collate "C" = m.from_name
  ), waiting as materialized (
    select m.place, ahead.place as ahead
    from move m
    join move ahead
      on ahead.from_bucket = m.to_bucket
      and ahead.from_name = m.to_name
    union
    select m.place, ahead.place
    from move m
    join move ahead
      on ahead.old_number = m.new_number
    where v_is_unique
  )
  select
    (
      select coalesce(jsonb_object_agg(w.place, w.ahead), '{}')
      from (
        select waiting.place, jsonb_agg(waiting.ahead) as ahead
        from waiting
        group by waiting.place
      ) as w
    ),
    (
      select coalesce(jsonb_object_agg(w.ahead, w.places), '{}')
      from (
        select waiting.ahead, jsonb_agg(waiting.place) as places
        from waiting
        group by waiting.ahead
      ) as w
    )
  into waits_for, waiters;

  v_waits := array(
    select coalesce(jsonb_array_length(waits_for -> m.place::text), 0)
    from generate_subscripts(p_moves, 1) as m (place)
    order by m.place
  );
  in_order := array_positions(v_waits, 0);
  while v_next <= cardinality(in_order) loop
    for v_place in select jsonb_array_elements_text(waiters -> in_order[v_next]::text)::integer loop
      v_waits[v_place] := v_waits[v_place] - 1;
      if v_waits[v_place] = 0 then
        in_order := in_order || v_place;
      end if;
    end loop;
    v_next := v_next + 1;
  end loop;
end;
$$;

comment on function image_sync.find_waiting(image_sync.move[]) is
  'Of moves, by their positions from 1: waits_for, those that each one has to wait for ({"1": [2]}); waiters, those that wait for each one ({"2": [1]}); in_order, those that wait neither in a ring nor for one, each after those that it waits for ({2,1}).';

-- Follows a row of waiting moves to its end.
create or replace function image_sync.follow_waiting(p_waiting jsonb, p_place integer)
returns integer[]
language plpgsql
immutable
set search_path = ''
as $$
begin
  return array(
    with recursive reached (place) as (
      select p_place
      union
      select next.place::integer
      from reached r
      cross join lateral jsonb_array_elements_text(p_waiting -> r.place::text) as next (place)
    )
    select r.place
    from reached r
  );
end;
$$;

comment on function image_sync.follow_waiting(jsonb, integer) is
  'The move at this position first, and then all that can be reached from it: with waits_for of find_waiting those without which it cannot be done, with waiters those that cannot be done without it.';

-- Moves records; what is held or refused costs itself alone, and those that wait for its place or its part number.
-- Who waits for nobody comes first, then those who waited for these. Of a group that fails, half is tried, down to the one that it is
-- about: a chain of thousands costs some tens of attempts, in whatever order its names are. Whoever is left then waits in a ring, or for
-- one, and goes together with those that it waits for. Of two that want the same part number one stays: which one is not asked before,
-- because a ring may need the other one to be closed.
create or replace function image_sync.move_records(p_moves image_sync.move[], out moved image_sync.move[], out problems jsonb)
language plpgsql
set search_path = ''
set lock_timeout = '400ms'
as $$
declare
  v_since constant timestamptz := clock_timestamp();
  v_keeps_waiting constant text := 'its place or its part number is taken by a record that could not be moved';
  v_count constant integer := cardinality(p_moves);
  v_moves image_sync.move[] := p_moves;
  v_attempt record;
  v_waiting record;
  v_is_left boolean[] := array_fill(true, array[v_count]);
  v_reasons text[] := array_fill(v_keeps_waiting, array[v_count]);
  v_next integer := 1;
  v_size integer := (v_count + 1) / 2;
  v_group integer[];
  v_place integer;
begin
  problems := '[]';
  select t.moved, t.refusal
  into v_attempt
  from image_sync.try_moves(p_moves) as t;
  moved := v_attempt.moved;
  if v_attempt.refusal is null then
    return;
  end if;

  select w.waits_for, w.waiters, w.in_order
  into v_waiting
  from image_sync.find_waiting(p_moves) as w;
  while array_position(v_is_left, true) is not null loop
    v_group := array(
      select g.place
      from unnest(case
        when v_next <= cardinality(v_waiting.in_order) then v_waiting.in_order[v_next:v_next + v_size - 1]
        else image_sync.follow_waiting(v_waiting.waits_for, array_position(v_is_left, true))
      end) with ordinality as g (place, rank)
      where v_is_left[g.place]
      order by g.rank
    );
    perform set_config('lock_timeout', image_sync.row_patience(v_since), true);
    select t.moved, t.refusal
    into v_attempt
    from image_sync.try_moves(array(
      select v_moves[g.place]
      from unnest(v_group) as g (place)
    )) as t;
    if v_attempt.refusal is null then
      moved := moved || v_attempt.moved;
      foreach v_place in array v_group loop
        v_is_left[v_place] := false;
        v_reasons[v_place] := null;
      end loop;
      v_next := v_next + v_size;
      v_size := least(v_size * 2, v_count);
    elsif cardinality(v_group) > 1 and v_next <= cardinality(v_waiting.in_order) then
      v_size := (v_size + 1) / 2;
    else
      v_reasons[v_group[1]] := case when cardinality(v_group) > 1 then format('of %s records that can only move together one stays: ', cardinality(v_group)) else '' end || v_attempt.refusal;
      foreach v_place in array image_sync.follow_waiting(v_waiting.waiters, v_group[1]) loop
        v_is_left[v_place] := false;
      end loop;
      v_next := v_next + v_size;
    end if;
  end loop;

  -- Those with a cause of their own come first: only some are named.
  select coalesce(
    jsonb_agg(
      image_sync.item_problem(m.to_name, 'not_moved', format('Its record is that of %s still: %s', m.from_name, v_reasons[m.place]))
      order by v_reasons[m.place] = v_keeps_waiting, m.place
    ),
    '[]'
  )
  into problems
  from unnest(p_moves) with ordinality as m (from_bucket, from_name, to_bucket, to_name, object_id, place)
  where v_reasons[m.place] is not null;
end;
$$;

comment on function image_sync.move_records(image_sync.move[]) is
  'Moves records together, or where one is held or refused each by itself as its new place and part number become free. Returns the moves that were done and a problem not_moved for each of the others.';

-- Of the moves that a chunk did, those to names that have still to be listed: behind the walk, or in chunks that wait for it, which with
-- stretches may lie before this one. Whoever lists them finds a record that is there.
create or replace function image_sync.count_ahead(p_bucket_id text, p_chunk image_sync.chunks, p_moved image_sync.move[])
returns integer
language plpgsql
stable
set search_path = ''
as $$
begin
  return (
    select count(*)
    from unnest(p_moved) as m
    cross join (
      select r.exhausted, greatest(r.cursor collate "C", p_chunk.to_key collate "C") as listed_to
      from image_sync.runs r
      where r.id = p_chunk.run_id
    ) as walk
    where m.to_bucket = p_bucket_id
      and not (m.to_name collate "C" > p_chunk.from_key and coalesce(m.to_name collate "C" <= p_chunk.to_key, true))
      and (
        not walk.exhausted and p_chunk.to_key is not null and m.to_name collate "C" > walk.listed_to
        or exists (
          select
          from image_sync.chunks c
          where c.run_id is not distinct from p_chunk.run_id
            and c.state in ('pending', 'leased')
            and c.relist_size is not null
            and c.from_key collate "C" < m.to_name
            and coalesce(c.to_key collate "C" >= m.to_name, true)
        )
      )
  );
end;
$$;

comment on function image_sync.count_ahead(text, image_sync.chunks, image_sync.move[]) is
  'How many of these moves went to names of the bucket, outside the chunk, that its run has still to list.';

-- Moves records to files of a chunk, and accounts for those that could not be moved.
create or replace function image_sync.settle_moves(p_bucket_id text, p_chunk image_sync.chunks, p_moves image_sync.move[])
returns image_sync.chunks
language plpgsql
set search_path = ''
as $$
declare
  v_chunk image_sync.chunks := p_chunk;
  v_movement record;
  v_waiting image_sync.move[];
  v_unmoved text[];
  v_kept integer;
  v_missing integer;
begin
  select m.moved, m.problems
  into v_movement
  from image_sync.move_records(p_moves) as m;
  v_chunk.moved_names := v_chunk.moved_names || array(
    select m.to_name
    from unnest(v_movement.moved) as m
    where m.to_bucket = p_bucket_id
      and m.to_name collate "C" > v_chunk.from_key
      and m.to_name collate "C" <= coalesce(v_chunk.to_key, image_sync.last_key())
  );
  v_chunk.ledger := image_sync.add_counts(v_chunk.ledger, jsonb_build_object('moved_ahead', image_sync.count_ahead(p_bucket_id, v_chunk, v_movement.moved)));
  if cardinality(v_movement.moved) = cardinality(p_moves) then
    return v_chunk;
  end if;

  -- Where the name has a record after all, and not one that waits itself, that one keeps it; where it has none, no other is inserted
  -- beside the one that is to come.
  v_waiting := array(
    select m
    from unnest(p_moves) as m
    except
    select m
    from unnest(v_movement.moved) as m
  );
  v_unmoved := array(
    select m.to_name
    from unnest(v_waiting) as m
    where m.to_bucket = p_bucket_id
      and m.to_name collate "C" > v_chunk.from_key
      and m.to_name collate "C" <= coalesce(v_chunk.to_key, image_sync.last_key())
  );
  v_kept := image_sync.count_recorded(p_bucket_id, v_chunk, array(
    select u.name
    from unnest(v_unmoved) as u (name)
    except
    select m.from_name
    from unnest(v_waiting) as m
    where m.from_bucket = p_bucket_id
  ));
  v_chunk.problems := v_chunk.problems || image_sync.first_items(v_movement.problems);
  -- A record that was to make room and did not is there still: its file is no missing one.
  select coalesce(array_agg(i.name order by i.place), '{}'), coalesce(array_agg(i.id order by i.place), '{}')
  into v_chunk.to_insert, v_chunk.to_insert_ids
  from unnest(v_chunk.to_insert, v_chunk.to_insert_ids) with ordinality as i (name, id, place)
  where not exists (
    select
    from public.part_images p
    where p.bucket_id = p_bucket_id
      and p.file_name collate "C" = i.name
  );
  v_missing := cardinality(v_chunk.to_insert) - image_sync.count_of(v_chunk.ledger, 'missing');
  v_chunk.ledger := image_sync.add_counts(v_chunk.ledger, jsonb_build_object(
    'recorded', v_kept - v_missing,
    'moved', -cardinality(v_unmoved),
    'unmoved', cardinality(v_unmoved) - v_kept,
    'missing', v_missing
  ));
  return v_chunk;
end;
$$;

comment on function image_sync.settle_moves(text, image_sync.chunks, image_sync.move[]) is
  'Moves records and returns the chunk (not stored) with what came of it: moved_names, and what was counted as moved and was not.';

-- How many of the names, as far as they lie in the chunk's range, have a record and an object.
create or replace function image_sync.count_recorded(p_bucket_id text, p_chunk image_sync.chunks, p_names text[])
returns integer
language plpgsql
stable
set search_path = ''
as $$
begin
  return (
    select count(*)
    from unnest(p_names) as i (name)
    where i.name collate "C" > p_chunk.from_key
      and i.name collate "C" <= coalesce(p_chunk.to_key, image_sync.last_key())
      and exists (
        select
        from public.part_images p
        where p.bucket_id = p_bucket_id
          and p.file_name collate "C" = i.name
      )
      and exists (
        select
        from image_sync.objects o
        where o.bucket_id = p_bucket_id
          and o.name collate "C" = i.name
      )
  );
end;
$$;

comment on function image_sync.count_recorded(text, image_sync.chunks, text[]) is 'How many of the names lie in the chunk''s range and have a record and an object.';

-- Of files that were moved away: those whose records are where they were, because no sync has taken them along.
create or replace function image_sync.still_away(p_bucket_id text, p_away jsonb)
returns jsonb
language plpgsql
stable
set search_path = ''
as $$
begin
  return (
    select jsonb_build_object(
      'count', case when count(*) > 0 then (p_away -> 'count')::bigint else 0 end,
      'files', coalesce(jsonb_agg(f.file || jsonb_build_object('is_followed', w.is_followed) order by f.place), '[]')
    )
    from jsonb_array_elements(p_away -> 'files') with ordinality as f (file, place)
    join public.part_images p
      on p.bucket_id = p_bucket_id
      and p.file_name collate "C" = f.file ->> 'name'
    cross join lateral image_sync.place_of(p.bucket_id, p.file_name, p.object_id) as w
    where w.bucket_id <> p_bucket_id or not w.is_followed
  );
exception
  when insufficient_privilege then
    return p_away;
  when lock_not_available then
    perform image_sync.wait_no_more();
    return p_away;
end;
$$;

comment on function image_sync.still_away(text, jsonb) is 'What a run measured of files that were moved away ({"count", "files": [{"name", "bucket", "to"}]}), as far as it is still so, with is_followed, whether a sync of that bucket takes the record along: count 0 where none of those named is.';

-- Where the files of these records are, as far as that is elsewhere.
create or replace function image_sync.places_of(p_bucket_id text, p_names text[])
returns table (file_name text, bucket_id text, name text, is_followed boolean)
language plpgsql
stable
set search_path = ''
as $$
begin
  return query
  select p.file_name, w.bucket_id, w.name, w.is_followed
  from unnest(p_names) as n (name)
  cross join lateral (
    -- A range and an order that only the index of the key gives: no other one reads the bucket for it.
    select r.bucket_id, r.file_name, r.object_id
    from public.part_images r
    where r.bucket_id = p_bucket_id
      and r.file_name collate "C" >= n.name
      and r.file_name collate "C" <= n.name
    order by r.file_name collate "C"
    limit 1
  ) as p
  cross join lateral image_sync.place_of(p.bucket_id, p.file_name, p.object_id) as w;
end;
$$;

comment on function image_sync.places_of(text, text[]) is 'Of these records of the bucket those whose files are elsewhere, as image_sync.place_of says.';

-- Records of a range whose files lie elsewhere, but where another record stays: they have nowhere to follow to, and stay too.
create or replace function image_sync.names_staying(p_bucket_id text, p_from_key text, p_last_key text)
returns text[]
language plpgsql
stable
set search_path = ''
as $$
declare
  v_names constant text[] := array(
    select p.file_name
    from public.part_images p
    cross join lateral (
      select o.id
      from image_sync.objects o
      where o.bucket_id = p_bucket_id
        and o.name collate "C" = p.file_name
      -- One look-up by index for each, whatever the planner believes of the table.
      offset 0
    ) as o
    cross join lateral image_sync.destination_of(p.bucket_id, p.file_name, p.object_id) as d
    where p.bucket_id = p_bucket_id
      and p.file_name collate "C" > p_from_key
      and p.file_name collate "C" <= p_last_key
      and p.object_id <> o.id
  );
  v_moves image_sync.move[];
begin
  if v_names = '{}' then
    return v_names;
  end if;
  v_moves := image_sync.find_moves(array_fill(p_bucket_id, array[cardinality(v_names)]), v_names);
  return array(
    select n.name
    from unnest(v_names) as n (name)
    where v_moves is not null
      and n.name not in (
        select m.from_name
        from unnest(v_moves) as m
        where m.from_bucket = p_bucket_id
      )
  );
end;
$$;

comment on function image_sync.names_staying(text, text, text) is 'The records of a range of keys that stay at a name with another file than their own, because their own lies where another record stays.';

-- Tells the records of a chunk which object they are of. It can wait: what is held or refused is left out.
-- Nor is one that should follow its file and could not: what it knows of it is all that anybody knows.
create or replace function image_sync.link_records(p_bucket_id text, p_chunk image_sync.chunks, p_moves image_sync.move[])
returns integer
language plpgsql
set search_path = ''
set lock_timeout = '400ms'
as $$
declare
  v_last_key constant text := coalesce(p_chunk.to_key, image_sync.last_key());
  v_staying constant text[] := image_sync.names_staying(p_bucket_id, p_chunk.from_key, v_last_key);
  v_linked integer;
begin
  with unlinked as materialized (
    select p.file_name, o.id
    from public.part_images p
    join image_sync.objects o
      on o.name collate "C" = p.file_name
      and o.bucket_id = p_bucket_id
      and o.name collate "C" > p_chunk.from_key
      and o.name collate "C" <= v_last_key
    where p.bucket_id = p_bucket_id
      and p.file_name collate "C" > p_chunk.from_key
      and p.file_name collate "C" <= v_last_key
      and o.id is distinct from p.object_id
      and p.file_name not in (
        select m.from_name
        from unnest(p_moves) as m
        where m.from_bucket = p_bucket_id
      )
      and (
        p.file_name = any (v_staying)
        or not exists (
          select
          from image_sync.destination_of(p.bucket_id, p.file_name, p.object_id)
        )
      )
    for no key update of p skip locked
  )
  update public.part_images p
  set object_id = u.id, object_name = u.file_name
  from unlinked u
  where p.bucket_id = p_bucket_id
    and p.file_name collate "C" = u.file_name
    and p.file_name collate "C" > p_chunk.from_key
    and p.file_name collate "C" <= v_last_key;
  get diagnostics v_linked = row_count;
  perform image_sync.check_deferred();
  return v_linked;
exception
  when others then
    if not image_sync.is_held(sqlstate) and not image_sync.is_refusal(sqlstate) then
      raise;
    end if;
    return 0;
end;
$$;

comment on function image_sync.link_records(text, image_sync.chunks, image_sync.move[]) is 'Writes the id of its object into each record of the chunk''s range that has none or another one, and returns how many; records that somebody holds are left out, and all of them where the table refuses one.';

-- step 2.0.0
-- Without it nobody could tell a file that was renamed from a record whose file_name its owner changed: both are elsewhere than their
-- object. Null in a record that was linked before this was remembered.
alter table public.part_images add column if not exists object_name text;
comment on column public.part_images.object_name is 'The name that the object had when the record was linked to it; where file_name is another one, the record''s owner chose it.';

-- step 1.1.0
-- The comparison of a chunk finds them itself, with where they went.
drop function if exists image_sync.departing_names(text, text[]);
-- It takes the part numbers of new files too.
drop function if exists image_sync.find_followers(text, text[], uuid[]);
