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

-- step 2.0.0
-- Without it nobody could tell a file that was renamed from a record whose file_name its owner changed: both are elsewhere than their
-- object. Null in a record that was linked before this was remembered.
alter table public.part_images add column if not exists object_name text;
comment on column public.part_images.object_name is 'The name that the object had when the record was linked to it; where file_name is another one, the record''s owner chose it.';

-- A record that follows its file from one place to another.
create type image_sync.move as (from_bucket text, from_name text, from_part text, to_bucket text, to_name text, to_part text, object_id uuid);

comment on type image_sync.move is 'A record''s old and new bucket, name and part number (null: that stays), and the object that it follows.';

-- set
-- Whether two records of one part number are impossible, by a unique index of the table's owner.
create or replace function image_sync.part_number_is_unique()
returns boolean language sql stable set search_path = '' as $$
  select exists (
    select
    from pg_catalog.pg_index i
    join pg_catalog.pg_attribute a
      on a.attrelid = i.indrelid
      and a.attnum = i.indkey[0]
    where i.indrelid = 'public.part_images'::regclass
      and i.indisunique
      and i.indnkeyatts = 1
      and i.indpred is null
      and a.attname = 'part_number'
  )
$$;

comment on function image_sync.part_number_is_unique() is 'True where the table''s owner made part_number unique.';

-- A file that a record may follow: an image of a bucket that is kept in step, at whose name there is not its own record already.
create or replace function image_sync.followed_file(p_object_id uuid)
returns table (bucket_id text, name text) language sql stable as $$
  select o.bucket_id, o.name
  from image_sync.objects o
  join image_sync.settings s
    on s.bucket_id = o.bucket_id
  where o.id = p_object_id
    and o.extension = any (s.extensions)
    and o.bytes is distinct from 0
    and not (o.name like any (s.exclude))
    and not exists (
      select
      from public.part_images p
      where p.object_id = p_object_id and p.bucket_id = o.bucket_id and p.file_name collate "C" = o.name
    )
$$;

comment on function image_sync.followed_file(uuid) is 'Where this object is, if it is an image of a bucket that is kept in step and no record there is of it; else no row. Inlined.';

-- Where the file of a record lies, if a sync takes the record along. Not one that its owner put where it is; of several records of one
-- object the first; and not where another one stays: one that its owner put there, or whose own file is nowhere to follow.
create or replace function image_sync.destination_of(p_bucket_id text, p_file_name text, p_object_id uuid)
returns table (bucket_id text, name text) language plpgsql stable set search_path = '' as $$
begin
  -- Few ask: inlined, each statement that may have to would carry the plan of it.
  return query
  select f.bucket_id, f.name
  from image_sync.followed_file(p_object_id) as f
  where (f.bucket_id <> p_bucket_id or f.name collate "C" <> p_file_name)
    and not exists (
      select
      from public.part_images p
      where p.object_id = p_object_id
        and (
          (p.bucket_id, p.file_name collate "C") < (p_bucket_id, p_file_name)
          or p.bucket_id = p_bucket_id and p.file_name collate "C" = p_file_name and p.object_name <> p.file_name
        )
    )
    and not exists (
      select
      from public.part_images p
      where p.bucket_id = f.bucket_id
        and p.file_name collate "C" = f.name
        and (p.object_name <> p.file_name or not exists (select from image_sync.followed_file(p.object_id)))
    );
end;
$$;

comment on function image_sync.destination_of(text, text, uuid) is 'The bucket and name to which a sync takes the record of this place along; no row where its file is at its place, gone, or left out.';

-- A filter of the few that it is asked of: as a join, a planner that knows nothing of the table asks it of all.
create or replace function image_sync.is_leaving(p_bucket_id text, p_file_name text, p_object_id uuid)
returns boolean language plpgsql stable set search_path = '' as $$
begin
  return exists (select from image_sync.destination_of(p_bucket_id, p_file_name, p_object_id));
end;
$$;

comment on function image_sync.is_leaving(text, text, uuid) is 'Whether a sync takes the record of this place along to where its file is.';

-- Where the file of a record is now, if that is elsewhere: storage.objects has it by its id, under whatever name, in whatever bucket. So
-- the record is no orphan, whether a sync takes it along or not. Where another record stands at that place, and stays, that one has the file.
create or replace function image_sync.place_of(p_bucket_id text, p_file_name text, p_object_id uuid)
returns table (bucket_id text, name text, is_followed boolean) language sql stable set search_path = '' as $$
  select o.bucket_id, o.name, d.name is not null
  from image_sync.objects o
  left join lateral image_sync.destination_of(p_bucket_id, p_file_name, p_object_id) as d
    on true
  where o.id = p_object_id
    and (o.bucket_id <> p_bucket_id or o.name collate "C" <> p_file_name)
    and (d.name is not null or not exists (
      select
      from public.part_images p
      where p.bucket_id = o.bucket_id and p.file_name collate "C" = o.name
    ));
$$;

comment on function image_sync.place_of(text, text, uuid) is 'The bucket and name at which the file of this record is now, and whether a sync takes the record along (is_followed); no row where it is at its place, gone, or another record''s.';

-- Where the files of these records are, as far as that is elsewhere.
create or replace function image_sync.places_of(p_bucket_id text, p_names text[])
returns table (file_name text, bucket_id text, name text, is_followed boolean) language plpgsql stable set search_path = '' as $$
begin
  return query
  select p.file_name, w.bucket_id, w.name, w.is_followed
  from unnest(p_names) as n (name)
  cross join lateral (
    -- A range and an order that only the index of the key gives: no other one reads the bucket for it.
    select r.bucket_id, r.file_name, r.object_id
    from public.part_images r
    where r.bucket_id = p_bucket_id and r.file_name collate "C" >= n.name and r.file_name collate "C" <= n.name
    order by r.file_name collate "C" limit 1
  ) as p
  cross join lateral image_sync.place_of(p.bucket_id, p.file_name, p.object_id) as w;
end;
$$;

comment on function image_sync.places_of(text, text[]) is 'Of these records of the bucket those whose files are elsewhere, as image_sync.place_of says.';

-- Of files that were moved away: those whose records are where they were, because no sync has taken them along.
create or replace function image_sync.still_away(p_bucket_id text, p_away jsonb)
returns jsonb language plpgsql stable set search_path = '' as $$
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

-- Whether a record has this part number, and keeps it: one that follows its file to another one gives it up.
create or replace function image_sync.is_part_taken(p_part_number text)
returns boolean language sql stable set search_path = '' as $$
  select exists (
    select
    from public.part_images p
    where p.part_number = p_part_number
      and not exists (
        select
        from image_sync.destination_of(p.bucket_id, p.file_name, p.object_id) as d
        where image_sync.part_numbers_of(array[p.file_name]) = array[p_part_number]
          and image_sync.part_numbers_of(array[d.name]) <> array[p_part_number]
      )
  )
$$;

comment on function image_sync.is_part_taken(text) is 'Whether a record has this part number and does not give it up by following its file.';
