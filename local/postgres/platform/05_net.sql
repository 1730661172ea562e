-- pg_net: requests queued in a transaction, sent by a worker after its commit (local/net/http_queue.ts).
-- As in the real extension everybody may read and write its tables, and a crash forgets them and begins their ids at 1 again. The
-- real one lets everybody call its functions too; here postgres alone may, so that code which needs more says so.

create schema net;

create domain net.http_method as text check (value ilike 'get' or value ilike 'post' or value ilike 'delete');

create unlogged sequence net.http_request_queue_id_seq;

create unlogged table net.http_request_queue (
  id bigint not null default nextval('net.http_request_queue_id_seq'),
  method net.http_method not null,
  url text not null,
  headers jsonb,
  body bytea,
  timeout_milliseconds integer not null
);

create unlogged table net._http_response (
  id bigint,
  status_code integer,
  content_type text,
  headers jsonb,
  content text,
  timed_out boolean,
  error_msg text,
  created timestamptz not null default now()
);
create index _http_response_created_idx on net._http_response (created);

create function net._wake() returns trigger
language plpgsql set search_path = ''
as $$
begin
  notify net_wake; -- heard at commit, which is when the request may be sent
  return null;
end
$$;

create trigger wake_worker after insert on net.http_request_queue
for each statement execute function net._wake();

create function net._urlencode(value text) returns text
language sql immutable strict set search_path = ''
as $$
  select coalesce(string_agg(
    case
      when chr(byte) ~ '[A-Za-z0-9_.~-]' then chr(byte)
      else '%' || upper(lpad(to_hex(byte), 2, '0'))
    end, '' order by position), '')
  from (
    select get_byte(convert_to(value, 'utf8'), position) as byte, position
    from generate_series(0, octet_length(value) - 1) as position
  ) as bytes
$$;

create function net._url_with_params(url text, params jsonb) returns text
language sql immutable set search_path = ''
as $$
  select url || coalesce(
    case when position('?' in url) > 0 then '&' else '?' end
      || string_agg(net._urlencode(key) || '=' || net._urlencode(value), '&'),
    ''
  )
  from jsonb_each_text(params)
$$;

create function net.http_get(
  url text,
  params jsonb default '{}'::jsonb,
  headers jsonb default '{}'::jsonb,
  timeout_milliseconds integer default 5000
) returns bigint
language sql strict set search_path = ''
as $$
  insert into net.http_request_queue (method, url, headers, timeout_milliseconds)
  values ('GET', net._url_with_params(url, params), headers, timeout_milliseconds)
  returning id
$$;

create function net.http_post(
  url text,
  body jsonb default '{}'::jsonb,
  params jsonb default '{}'::jsonb,
  headers jsonb default '{"Content-Type": "application/json"}'::jsonb,
  timeout_milliseconds integer default 5000
) returns bigint
language plpgsql set search_path = ''
as $$
declare
  request_id bigint;
  content_type text := (
    select h.value from jsonb_each_text(coalesce(headers, '{}'::jsonb)) as h
    where lower(h.key) = 'content-type' limit 1
  );
begin
  if content_type is null then
    headers := coalesce(headers, '{}'::jsonb) || '{"Content-Type": "application/json"}'::jsonb;
  elsif content_type <> 'application/json' then
    raise exception 'Content-Type header must be "application/json"';
  end if;
  if body is null then
    raise exception 'body must not be null';
  end if;

  insert into net.http_request_queue (method, url, headers, body, timeout_milliseconds)
  values (
    'POST', net._url_with_params(url, params), headers, convert_to(body::text, 'utf8'), timeout_milliseconds
  )
  returning id into request_id;
  return request_id;
end
$$;

revoke all on all functions in schema net from public;
grant usage on schema net to public;
grant all on all tables in schema net to public;
grant all on all sequences in schema net to public;
grant execute on all functions in schema net to postgres;
