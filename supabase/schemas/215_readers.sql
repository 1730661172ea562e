-- step 1.1.0
-- Readers: who may read the register and nothing else. One by ODBC is a database role of the same name, which the SQL of
-- "image-sync reader add NAME --odbc" makes together with its row here. One by HTTPS has a key of 256 random bits, of which only the
-- SHA-256 is kept: with that many bits a plain hash is enough, and one look-up by its index tells a key from a guess.
create table image_sync.readers (
  name text not null,
  kind text not null,
  bucket_id text not null,
  key_hash bytea,
  created_at timestamptz not null default now(),
  last_used_at timestamptz,
  constraint readers_pkey primary key (name),
  constraint readers_name_check check (name ~ '^[a-z][a-z0-9_-]{0,47}$'),
  constraint readers_kind_check check (kind in ('odbc', 'https')),
  constraint readers_bucket_id_check check (bucket_id <> ''),
  constraint readers_key_hash_check check ((kind = 'https') = (key_hash is not null)),
  constraint readers_key_hash_length_check check (octet_length(key_hash) = 32),
  constraint readers_key_hash_key unique (key_hash)
);

comment on table image_sync.readers is 'Who may read the register of a bucket and nothing else: a database role for ODBC, or a key for register.csv.';
comment on column image_sync.readers.name is 'The reader; of an ODBC reader it is the database role.';
comment on column image_sync.readers.kind is 'odbc or https.';
comment on column image_sync.readers.bucket_id is 'The bucket whose register they read.';
comment on column image_sync.readers.key_hash is 'SHA-256 of an HTTPS reader''s key; the key itself is shown once and kept nowhere.';
comment on column image_sync.readers.created_at is 'When the reader was added.';
comment on column image_sync.readers.last_used_at is 'When the key was last used, to the hour; null: not yet, or an ODBC reader, whose reading the database does not tell.';

alter table image_sync.readers enable row level security;
grant select, insert, update, delete on image_sync.readers to service_role;

-- set
-- A reader as the API shows it is their row without the hash of the key.

-- Adds a reader by HTTPS.
--   p_key_hash  SHA-256 of the key, 64 hexadecimal digits
create or replace function public.image_sync_add_reader(p_name text, p_bucket text, p_key_hash text)
returns jsonb language plpgsql set search_path = '' as $$
declare
  v_problem jsonb := image_sync.unknown_bucket(p_bucket, 'add a reader of bucket %s');
  v_reader image_sync.readers;
begin
  if v_problem is null then
    insert into image_sync.readers (name, kind, bucket_id, key_hash)
    values (p_name, 'https', p_bucket, decode(p_key_hash, 'hex'))
    on conflict (name) do nothing
    returning * into v_reader;
    v_problem := case when not found then image_sync.problem(
      409, 'reader_exists', 'There is a reader of this name',
      format('Cannot add reader %s: there is one. A key cannot be shown again: take another name, or revoke that reader first.', p_name))
    end;
  end if;
  return coalesce(v_problem, jsonb_build_object('reader', to_jsonb(v_reader) - 'key_hash'));
end;
$$;

comment on function public.image_sync_add_reader(text, text, text) is 'Adds a reader by HTTPS with the SHA-256 of its key. Returns {"reader": {"name", "kind", "bucket_id", "created_at", "last_used_at"}}. Problems: unknown_bucket (404), reader_exists (409).';

create or replace function public.image_sync_readers(p_after text default '', p_limit integer default 100)
returns jsonb language sql stable set search_path = '' as $$
  select image_sync.page(
    'readers', coalesce(jsonb_agg(to_jsonb(q) - 'key_hash' order by q.name collate "C"), '[]'), 'name', least(greatest(coalesce(p_limit, 100), 1), 100))
  from (
    select r.*
    from image_sync.readers r
    where r.name collate "C" > coalesce(p_after, '')
    order by r.name collate "C" limit least(greatest(coalesce(p_limit, 100), 1), 100)
  ) as q
$$;

comment on function public.image_sync_readers(text, integer) is 'A page of the readers, by name behind p_after, 1 to 100 of them, each with its bucket and its last use. No key and no hash.';

-- A key is gone with its row, and with it every later request; what is being sent to somebody is sent to its end. A role can be
-- dropped by its owner alone, and without its row it would read the register of another bucket.
create or replace function public.image_sync_remove_reader(p_name text)
returns jsonb language plpgsql set search_path = '' set lock_timeout = '2s' as $$
declare
  v_reader image_sync.readers;
  v_revoked boolean;
begin
  select r.* into v_reader from image_sync.readers r where r.name = p_name for update;
  if not found then
    return image_sync.problem(404, 'unknown_reader', 'There is no such reader', format('Cannot revoke reader %s: there is none of this name.', p_name));
  end if;
  delete from image_sync.readers r
  where r.name = p_name and (r.kind = 'https' or not exists (select from pg_catalog.pg_roles a where a.rolname = r.name));
  v_revoked := found;
  return jsonb_build_object('reader', to_jsonb(v_reader) - 'key_hash', 'revoked', v_revoked);
end;
$$;

comment on function public.image_sync_remove_reader(text) is 'Takes a reader''s right away. revoked: false for a database role, which its owner has to drop. Problem: unknown_reader (404).';

-- Whose key it is. One look-up by the index of hashes, and a write once an hour at most, which waits for nobody.
create or replace function public.image_sync_open_register(p_key_hash text)
returns jsonb language plpgsql set search_path = '' as $$
declare
  v_reader image_sync.readers;
begin
  select r.* into v_reader from image_sync.readers r where r.key_hash = decode(p_key_hash, 'hex');
  if not found then
    return image_sync.problem(
      401, 'unauthorized', 'No valid key of a reader',
      'Send a reader''s key as the password of HTTP Basic, with any user name; image-sync reader add NAME --https makes one.');
  end if;
  if (v_reader.last_used_at < now() - interval '1 hour') is not false then
    update image_sync.readers r
    set last_used_at = now()
    from (select q.name from image_sync.readers q where q.name = v_reader.name for update skip locked) as free
    where r.name = free.name;
  end if;
  return jsonb_build_object('reader', to_jsonb(v_reader) - 'key_hash');
end;
$$;

comment on function public.image_sync_open_register(text) is 'The reader whose key has this SHA-256 (64 hexadecimal digits), and a note of its use, at most once an hour. Problem: unauthorized (401).';

-- Readers for whom URLs die before they look again: their sheet shows nothing until it is refreshed. One that has not been used
-- for a year has been given up.
create or replace function image_sync.reader_facts(p_settings image_sync.settings)
returns jsonb language sql stable set search_path = '' as $$
  select jsonb_build_object(
    'rare_readers', coalesce(jsonb_agg(format('%s: last used %s', r.name, to_char(r.last_used_at at time zone 'UTC', 'YYYY-MM-DD')) order by r.last_used_at, r.name), '[]'),
    'longest_absence_days', ceil(extract(epoch from now() - min(r.last_used_at)) / 86400)
  )
  from image_sync.readers r
  where r.bucket_id = p_settings.bucket_id
    and r.last_used_at < now() - p_settings.signed_url_ttl
    and r.last_used_at > now() - interval '360 days'
$$;

comment on function image_sync.reader_facts(image_sync.settings) is 'Readers of the bucket whose last use is longer ago than a URL lives (and less than 360 days), each in words, and the longest of these times in days.';
