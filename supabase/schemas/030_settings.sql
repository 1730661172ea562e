-- step 1.0.0
-- One row per bucket that is kept in step. A bucket without a row is unknown to every request.
create table image_sync.settings (
  bucket_id text not null,
  extensions text[] not null default '{jpg,jpeg}',
  exclude text[] not null default '{.%,%/.%,__MACOSX/%,%/__MACOSX/%,@eaDir/%,%/@eaDir/%,Thumbs.db,%/Thumbs.db,desktop.ini,%/desktop.ini}',
  signed_url_ttl interval not null default '7 days',
  renew_before interval not null default '2 days',
  chunk_size integer not null default 1000,
  lease_duration interval not null default '60 seconds',
  max_attempts integer not null default 5,
  retry_delay interval not null default '15 seconds',
  max_delete_fraction numeric not null default 0.10,
  max_delete_count integer not null default 1000,
  probe_size integer not null default 10,
  verify_rate integer not null default 200,
  nightly boolean not null default true,
  public_url text,
  keep_chunks interval not null default '14 days',
  keep_runs interval not null default '90 days',
  constraint settings_pkey primary key (bucket_id),
  constraint settings_public_url_check check (public_url ~ '^https?://[^/?#]+$'),
  -- Storage signs at most 1,000 paths a call, and a chunk is signed with as few calls as can be.
  constraint settings_chunk_size_check check (chunk_size between 1 and 1000),
  constraint settings_max_attempts_check check (max_attempts between 1 and 100),
  constraint settings_max_delete_fraction_check check (max_delete_fraction between 0 and 1),
  constraint settings_max_delete_count_check check (max_delete_count >= 0),
  constraint settings_probe_size_check check (probe_size between 0 and 100),
  constraint settings_verify_rate_check check (verify_rate between 1 and 10000)
);

comment on table image_sync.settings is 'How each bucket is kept in step: one row per bucket. Change a row with an update; the next run follows it.';
comment on column image_sync.settings.bucket_id is 'The storage bucket, storage.buckets.id.';
comment on column image_sync.settings.extensions is 'Extensions, in lower case and without the dot, that make an object an image; compared without regard to case.';
comment on column image_sync.settings.signed_url_ttl is 'How long a new signed URL lives.';
comment on column image_sync.settings.renew_before is 'A URL that would expire within this time is signed again; two days let it survive two failed nights.';
comment on column image_sync.settings.chunk_size is 'At most so many objects (and so many records) in one chunk, 1 to 1,000.';
comment on column image_sync.settings.lease_duration is 'How long a worker owns a chunk before another may take it over.';
comment on column image_sync.settings.max_attempts is 'After so many failed attempts a chunk is dead and its run is partial at best.';
comment on column image_sync.settings.retry_delay is 'A failed chunk waits this long, doubled with each further attempt.';
comment on column image_sync.settings.max_delete_fraction is 'Cleanup refuses to remove more than this fraction of the bucket''s records.';
comment on column image_sync.settings.max_delete_count is 'Cleanup refuses to remove more than this number of records.';
comment on column image_sync.settings.probe_size is 'How many random signed URLs every sync fetches to see that they work.';
comment on column image_sync.settings.verify_rate is 'At most so many URLs a second are opened by a verify, by all of its workers together.';
comment on column image_sync.settings.nightly is 'Whether the nightly job syncs this bucket.';
comment on column image_sync.settings.public_url is 'Scheme and host under which readers reach the project, where that is not the SUPABASE_URL of the function (a custom domain, a local stack). Null: SUPABASE_URL.';
comment on column image_sync.settings.keep_chunks is 'Chunks of finished runs are pruned after this time.';
comment on column image_sync.settings.keep_runs is 'Finished runs are pruned after this time; the last run of each mode always stays.';

alter table image_sync.settings enable row level security;
grant select, insert, update, delete on image_sync.settings to service_role;

insert into image_sync.settings (bucket_id) values ('part-images');

-- step 1.1.0
alter table image_sync.settings
  add column register boolean not null default false,
  -- In like _ is any character: MYMACOSX/ is a folder like any other. And the bins of Windows and of network drives are none.
  alter column exclude set default '{.%,%/.%,"\\_\\_MACOSX/%","%/\\_\\_MACOSX/%",@eaDir/%,%/@eaDir/%,#recycle/%,%/#recycle/%,$RECYCLE.BIN/%,%/$RECYCLE.BIN/%,"System Volume Information/%","%/System Volume Information/%",Thumbs.db,%/Thumbs.db,desktop.ini,%/desktop.ini}';

update image_sync.settings s set register = true where s.bucket_id = 'part-images';
update image_sync.settings s
set exclude = default
where s.exclude = '{.%,%/.%,__MACOSX/%,%/__MACOSX/%,@eaDir/%,%/@eaDir/%,Thumbs.db,%/Thumbs.db,desktop.ini,%/desktop.ini}';

-- A pattern of like that ends with a lone escape character is an error whatever it is matched with: it would end every run.
update image_sync.settings s
set exclude = array(
  select case when p.pattern ~ '(^|[^\\])(\\\\)*\\$' then p.pattern || '\' else p.pattern end
  from unnest(s.exclude) with ordinality as p (pattern, place)
  order by p.place
)
where array_to_string(s.exclude, E'\n') ~ '\\';

comment on column image_sync.settings.exclude is 'Patterns of LIKE (% any text, _ any character, \ before either for itself); an object whose whole name matches one of them, and that has no record, is left out. Hidden and system files and bins of the common systems by default; add thumbs/% to leave a folder out.';
comment on column image_sync.settings.register is 'Whether public.part_register shows this bucket. Where none says so, or several do, it is part-images, else the first by name.';

-- step 2.0.0
-- What a setting may hold is checked where it is set. An interval is compared by its sum, and added to a time part by part: years that days
-- take back again would leave the calendar. The history of a hundred years is what nobody prunes.
update image_sync.settings s
set keep_chunks = least(s.keep_chunks, interval '100 years'), keep_runs = least(s.keep_runs, interval '100 years')
where s.keep_runs > interval '100 years';

do $$
declare
  v_check record;
begin
  execute coalesce((
    select 'alter table image_sync.settings ' || string_agg(format('drop constraint %I', c.conname), ', ')
    from pg_catalog.pg_constraint c
    where c.conrelid = 'image_sync.settings'::regclass
      and c.conname ~ '^settings_(bucket_id|extensions|exclude|signed_url_ttl|renew_before|lease_duration|retry_delay|keep_chunks|keep_runs)_check$'
  ), '');
  for v_check in
    select c.name, c.bounds, format('abs(extract(year from %1$s)) <= 100 and abs(extract(day from %1$s)) <= 36600', c.name) as parts
    from (values
      ('signed_url_ttl', 'between interval ''1 minute'' and interval ''365 days'''),
      -- A URL that is due for renewal as soon as it is made would be made again every night.
      ('renew_before', '>= interval ''0'' and renew_before < signed_url_ttl'),
      ('lease_duration', 'between interval ''1 second'' and interval ''10 minutes'''),
      ('retry_delay', 'between interval ''0'' and interval ''1 hour'''),
      -- A plan is good for a day and an open run for hours: their chunks must outlive them.
      ('keep_chunks', 'between interval ''2 days'' and interval ''100 years'''),
      ('keep_runs', 'between keep_chunks and interval ''100 years''')
    ) as c (name, bounds)
  loop
    execute format('update image_sync.settings set %1$s = justify_interval(%1$s) where not (%2$s)', v_check.name, v_check.parts);
    execute format('alter table image_sync.settings add constraint settings_%1$s_check check (%1$s %2$s and %3$s)', v_check.name, v_check.bounds, v_check.parts);
  end loop;
end;
$$;

-- Control characters: no name that Storage opens has one, and whoever pastes one does not see it. In a pattern _ is any character.
update image_sync.settings s
set
  extensions = coalesce(nullif(array(
    select regexp_replace(e.extension, '[\u0001-\u001f\u007f-\u009f\u2028\u2029]', '', 'g')
    from unnest(s.extensions) with ordinality as e (extension, place)
    -- None is files without an extension, which nobody meant.
    where e.extension !~ '^[\u0001-\u001f\u007f-\u009f\u2028\u2029]+$'
    order by e.place
  ), '{}'), '{jpg,jpeg}'),
  exclude = array(
    select regexp_replace(p.pattern, '\\?[\u0001-\u001f\u007f-\u009f\u2028\u2029]', '_', 'g')
    from unnest(s.exclude) with ordinality as p (pattern, place)
    order by p.place
  )
where array_to_string(s.extensions || s.exclude, '') ~ '[\u0001-\u001f\u007f-\u009f\u2028\u2029]';

delete from image_sync.settings s where s.bucket_id ~ '[\u0001-\u001f\u007f-\u009f\u2028\u2029]';

alter table image_sync.settings
  add constraint settings_bucket_id_check check (bucket_id <> '' and bucket_id !~ '[\u0001-\u001f\u007f-\u009f\u2028\u2029]'),
  add constraint settings_extensions_check check (
    cardinality(extensions) > 0
    and array_position(extensions, null) is null
    and array_to_string(extensions, '') = lower(array_to_string(extensions, ''))
    and array_to_string(extensions, ' ') !~ '[./\u0001-\u001f\u007f-\u009f\u2028\u2029]'
  ),
  add constraint settings_exclude_check check (
    array_position(exclude, null) is null
    and array_position(exclude, '') is null
    -- One pattern a line.
    and array_to_string(exclude, E'\n') !~ '(^|[^\\])(\\\\)*\\(\n|$)'
    and array_to_string(exclude, '') !~ '[\u0001-\u001f\u007f-\u009f\u2028\u2029]'
  );
