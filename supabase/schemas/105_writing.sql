-- step 2.0.0
-- A name with what is to stand in its record.
create type image_sync.item as (name text, url text, expires_at timestamptz);

comment on type image_sync.item is 'A record to be written: its file name and, where a kind of write has use for them, its URL and when that dies.';

-- What became of items.
create type image_sync.write as (written text[], held text[], refused jsonb);

comment on type image_sync.write is 'What became of records that were to be written: the names of those that really were, of those that somebody else holds, and [{"name", "sqlstate", "is_taken", "words"}] for each that the table refuses. A name that is in none of them was left out, by a trigger or by the statement itself.';

-- set
-- The one way in which rows of public.part_images are written, whatever the kind.

-- Whose records somebody else holds: asked without waiting. The others are locked from then on.
create or replace function image_sync.held_names(p_bucket_id text, p_names text[])
returns text[]
language sql
set search_path = ''
as $$
  with free as materialized (
    select p.file_name
    from unnest(p_names) as n (name)
    cross join lateral (
      select q.file_name
      from public.part_images q
      where q.bucket_id = p_bucket_id
        and q.file_name collate "C" >= n.name
        and q.file_name collate "C" <= n.name
      order by q.file_name collate "C"
      limit 1
      for update skip locked
    ) as p
  )
  select coalesce(array_agg(p.file_name), '{}')
  from unnest(p_names) as n (name)
  cross join lateral (
    select q.file_name
    from public.part_images q
    where q.bucket_id = p_bucket_id
      and q.file_name collate "C" >= n.name
      and q.file_name collate "C" <= n.name
    order by q.file_name collate "C"
    limit 1
  ) as p
  where p.file_name not in (
    select f.file_name
    from free f
  );
$$;

comment on function image_sync.held_names(text, text[]) is 'Those of these records of the bucket that somebody else holds; locks the others.';

-- The ladder that every write goes up: together; where somebody holds rows, without those; where one is refused, by halves, down to the
-- row that it is about. A thousand rows with a bad one cost about twice a thousand good ones.
-- Each kind is one statement over any number of items that returns the names which were really written: a trigger may return null.
create or replace function image_sync.write_rows(p_kind text, p_run image_sync.runs, p_items image_sync.item[], p_since timestamptz default null)
returns image_sync.write
language plpgsql
set search_path = ''
-- Given back when the function ends: halves set it for themselves.
set lock_timeout = '400ms'
as $$
declare
  v_size constant integer := cardinality(p_items);
  v_middle constant integer := v_size / 2;
  v_write image_sync.write := ('{}', '{}', '[]')::image_sync.write;
  v_half image_sync.write;
  v_held text[] := '{}'::text[];
  v_schema text;
  v_table text;
begin
  if v_size = 0 then
    return v_write;
  end if;
  perform set_config('lock_timeout', image_sync.row_patience(p_since), true)
  where p_since is not null;
  begin
    v_write.written := case p_kind
      when 'archive' then image_sync.write_archive(p_run, p_items)
      when 'restore' then image_sync.write_restore(p_run, p_items)
    end;
    perform image_sync.check_deferred();
    return v_write;
  exception
    when others then
      get stacked diagnostics v_schema = schema_name, v_table = table_name;
      -- A right that is missing may be one that a trigger of the table's owner lacks for this row.
      if not image_sync.is_held(sqlstate) and not image_sync.is_refusal(sqlstate) and sqlstate <> '42501' then
        raise;
      elsif image_sync.is_held(sqlstate) and p_since is null then
        perform image_sync.need_table();
        v_held := image_sync.held_names(p_run.bucket_id, array(
          select i.name
          from unnest(p_items) as i
        ));
      elsif image_sync.is_held(sqlstate) and v_size = 1 then
        return ('{}', array[p_items[1].name], '[]')::image_sync.write;
      elsif v_size = 1 then
        return ('{}', '{}', jsonb_build_array(jsonb_build_object(
          'name', p_items[1].name, 'sqlstate', sqlstate, 'is_taken', image_sync.is_taken(sqlstate, v_schema, v_table), 'words', sqlerrm
        )))::image_sync.write;
      end if;
  end;

  v_write := ('{}', v_held, '[]')::image_sync.write;
  for v_half in
    select w.*
    from (values
      (case when v_held <> '{}' then array(select i from unnest(p_items) as i where i.name <> all (v_held)) else p_items[:v_middle] end),
      (case when v_held <> '{}' then '{}' else p_items[v_middle + 1:] end)
    ) as part (items)
    cross join lateral image_sync.write_rows(p_kind, p_run, part.items, coalesce(p_since, clock_timestamp())) as w
  loop
    v_write := (v_write.written || v_half.written, v_write.held || v_half.held, v_write.refused || v_half.refused)::image_sync.write;
  end loop;
  return v_write;
end;
$$;

comment on function image_sync.write_rows(text, image_sync.runs, image_sync.item[], timestamptz) is
  'Writes records of a kind (archive, restore) for a run: all of them, or as many as nobody holds and the table takes. p_since: when the first attempt failed. Raises what is no matter of a row.';

-- Rows that a restore gives back as they were: a row's own text form, which keeps what JSON has no word for (hstore, the lower bound of an
-- array, a key that a json has twice), in a form that reads the same under any setting of the session.
create or replace function image_sync.row_text(p_row anyelement)
returns text
language sql
stable
set search_path = ''
set datestyle = 'ISO, YMD'
set intervalstyle = 'postgres'
set extra_float_digits = 1
set lc_monetary = 'C'
as $$
  select p_row::text
$$;

comment on function image_sync.row_text(anyelement) is 'The text form of a row, as image_sync.row_of reads it.';

create or replace function image_sync.column_names(p_table regclass)
returns text[]
language sql
stable
set search_path = ''
as $$
  select array_agg(a.attname::text order by a.attnum)
  from pg_catalog.pg_attribute a
  where a.attrelid = p_table
    and a.attnum > 0
    and not a.attisdropped
$$;

comment on function image_sync.column_names(regclass) is 'The columns of a table, in the order of its text form.';

-- Columns may have come, gone or changed places since the text was made: it is read by their names.
create or replace function image_sync.row_of(p_text text, p_columns text[], p_like anyelement)
returns anyelement
language plpgsql
stable
set search_path = ''
set datestyle = 'ISO, YMD'
set intervalstyle = 'postgres'
set lc_monetary = 'C'
as $$
declare
  v_row p_like%type;
begin
  execute format('select (read.whole).* from (select %L::%s as whole offset 0) as read', (
    select '(' || string_agg(coalesce(f.value, ''), ',' order by now.place) || ')'
    from unnest(image_sync.column_names((
      select t.typrelid
      from pg_catalog.pg_type t
      where t.oid = pg_typeof(p_like)
    ))) with ordinality as now (name, place)
    left join unnest(p_columns) with ordinality as c (name, place)
      on c.name = now.name
    left join (
      -- A field is nothing, which is null; or in quotes, with quotes and backslashes twice; or has neither quote nor comma.
      select m.field[1] as value, m.place
      from regexp_matches(substr(p_text, 2, length(p_text) - 2) || ',', '("(?:[^"]|"")*"|[^",]*),', 'g') with ordinality as m (field, place)
    ) as f
      on f.place = c.place
  ), pg_typeof(p_like))
  into v_row;
  return v_row;
end;
$$;

comment on function image_sync.row_of(text, text[], anyelement) is 'The row of p_like''s type that image_sync.row_text wrote, of a table that had these columns; null in columns that it did not have.';
