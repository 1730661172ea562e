-- step 1.0.0
-- Where the function lives. It says so itself, with its first authenticated request: so the database can tell URLs of this project
-- from others, and knows after a restore into another project that nobody has spoken yet.
create table image_sync.project (
  singleton boolean not null default true,
  url text not null,
  function_version text not null,
  announced_at timestamptz not null default now(),
  constraint project_pkey primary key (singleton),
  constraint project_singleton_check check (singleton),
  constraint project_url_check check (url ~ '^https?://[^/?#]+$')
);

comment on table image_sync.project is 'The project that the function announced: one row, or none before its first authenticated request.';
comment on column image_sync.project.singleton is 'There is one row at most.';
comment on column image_sync.project.url is 'SUPABASE_URL of the function: scheme and host.';
comment on column image_sync.project.function_version is 'The version of the function that announced itself last.';
comment on column image_sync.project.announced_at is 'When the row was last written: when something in it changed.';

alter table image_sync.project enable row level security;
grant select, insert, update, delete on image_sync.project to service_role;

-- step 2.0.0
-- An address is the beginning of every URL. Of the setting public_url what is one without its spaces and line breaks stays; without the
-- rest readers use the project's own, as the next sync signs. Of the project what is none goes: the function announces itself anew with
-- its next request.
do $$
declare
  v_address constant text := '^https?://((([A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?\.)*(?![0-9]+(:|$))[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)|((25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])\.){3}(25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])|\[[0-9A-Fa-f]{0,4}(:[0-9A-Fa-f]{0,4}){2,7}\])(:(6553[0-5]|655[0-2][0-9]|65[0-4][0-9]{2}|6[0-4][0-9]{3}|[1-5][0-9]{4}|[1-9][0-9]{0,3}))?$';
  v_other record;
begin
  alter table image_sync.settings drop constraint settings_public_url_check;
  alter table image_sync.project drop constraint project_url_check;
  delete from image_sync.project p where p.url !~ v_address;
  update image_sync.settings s
  set public_url = regexp_replace(s.public_url, '[\u0001-\u0020\u007f-\u00a0\u2028\u2029]', '', 'g')
  where s.public_url !~ v_address;
  for v_other in select s.bucket_id, s.public_url from image_sync.settings s where s.public_url !~ v_address loop
    raise warning 'The public_url of bucket % is no address and was set to null: %', v_other.bucket_id, v_other.public_url;
  end loop;
  update image_sync.settings s set public_url = null where s.public_url !~ v_address;
  execute format('alter table image_sync.settings add constraint settings_public_url_check check (public_url ~ %L)', v_address);
  execute format('alter table image_sync.project add constraint project_url_check check (url ~ %L)', v_address);
end;
$$;

-- set
-- Which version of the schema this is, as semantic versioning counts: the function refuses to work beside one that it does not fit.
create or replace function image_sync.schema_version()
returns text language sql immutable set search_path = '' as $$
  select '2.0.0'
$$;

comment on function image_sync.schema_version() is 'The version of the schema.';

-- Whether the function that announced itself last knows this schema, as semantic versioning counts; so does one that has not yet.
create or replace function image_sync.function_fits()
returns boolean language sql stable set search_path = '' as $$
  select not exists (
    select
    from image_sync.project p
    where p.function_version ~ '^\d+\.\d+\.\d+$'
      and split_part(p.function_version, '.', 1) <> split_part(image_sync.schema_version(), '.', 1)
  )
$$;

comment on function image_sync.function_fits() is 'False while a function of another major version is deployed: between a push and the deploy after it.';

-- A bucket's name as encodeURIComponent() writes it. Source: ECMA-262, 19.2.6.4.
create or replace function image_sync.encode_uri_component(p_text text)
returns text language sql immutable set search_path = '' as $$
  select string_agg(
    case
      when c.character ~ '[A-Za-z0-9_.!~*''()-]' then c.character
      else upper(regexp_replace(encode(convert_to(c.character, 'UTF8'), 'hex'), '(..)', '%\1', 'g'))
    end, '' order by c.place)
  from regexp_split_to_table(p_text, '') with ordinality as c (character, place)
$$;

comment on function image_sync.encode_uri_component(text) is 'The text with everything percent-encoded that JavaScript''s encodeURIComponent() encodes.';

-- What a signed URL of the bucket begins with: the address for readers, and the bucket's path.
create or replace function image_sync.url_base(p_settings image_sync.settings)
returns text language plpgsql stable set search_path = '' as $$
begin
  return coalesce(
    coalesce(p_settings.public_url, (select p.url from image_sync.project p)) || '/storage/v1/object/sign/'
    || case
      when p_settings.bucket_id ~ '^[A-Za-z0-9_.-]+$' then p_settings.bucket_id
      else image_sync.encode_uri_component(p_settings.bucket_id)
    end
    || '/', '');
end;
$$;

comment on function image_sync.url_base(image_sync.settings) is 'What every signed URL of the bucket begins with; empty, so that every text begins with it, where no address is known.';

-- Whether a URL is that of a file below an address, and not of another one. The common names are the same in a URL: few are encoded.
create or replace function image_sync.is_url_of(p_url text, p_url_base text, p_name text)
returns boolean language sql immutable as $$
  select p_url_base = ''
    or starts_with(p_url, p_url_base || p_name || '?')
    or p_name ~ '[^A-Za-z0-9_./-]' and starts_with(p_url, p_url_base || replace(image_sync.encode_uri_component(p_name), '%2F', '/') || '?')
$$;

comment on function image_sync.is_url_of(text, text, text) is 'Whether a signed URL begins with what image_sync.url_base gave and is of this object; true where no address is known. Inlined.';

-- Written only where it differs, so that a thousand isolates cost a look each.
create or replace function public.image_sync_announce(p_url text, p_version text)
returns jsonb language plpgsql set search_path = '' set lock_timeout = '1s' as $$
declare
  v_changed boolean := false;
begin
  if not exists (select from image_sync.project p where p.url = p_url and p.function_version = p_version) then
    insert into image_sync.project as p (url, function_version)
    values (p_url, p_version)
    on conflict (singleton) do update
    set url = excluded.url, function_version = excluded.function_version, announced_at = now()
    where (p.url, p.function_version) is distinct from (excluded.url, excluded.function_version);
    v_changed := found;
  end if;
  return jsonb_build_object('changed', v_changed, 'schema_version', image_sync.schema_version());
exception
  when check_violation or not_null_violation then
    raise exception 'Cannot announce %: it is not an address', p_url
      using errcode = 'invalid_parameter_value', hint = 'Send scheme and host, as in https://ref.supabase.co.';
end;
$$;

comment on function public.image_sync_announce(text, text) is 'The function says where it lives (scheme and host) and which version it is. Returns {"changed", "schema_version"}. Raises invalid_parameter_value for anything but an http address.';
