-- set
create or replace function image_sync.place_in_words(p_bucket_id text, p_other_bucket_id text, p_name text)
returns text language sql immutable set search_path = '' as $$
  select p_name || case when p_other_bucket_id <> p_bucket_id then format(' (bucket %s)', p_other_bucket_id) else '' end
$$;

comment on function image_sync.place_in_words(text, text, text) is 'A name, with its bucket where that is another one.';

-- What the newest verify, or the probe of the newest sync, saw of a file that only another upload can mend; null where that was no
-- such thing, or the file was stored anew since.
create or replace function image_sync.unseen_file(p_bucket_id text, p_name text)
returns text language plpgsql stable set search_path = '' as $$
begin
  return (
    select f.failure ->> 'code'
    from (
      (
        select r.id, r.finished_at, r.mode, r.report
        from image_sync.runs r
        where r.bucket_id = p_bucket_id and r.mode = 'verify' and r.report is not null
        order by r.finished_at desc limit 1
      )
      union all
      (
        select r.id, r.finished_at, r.mode, r.report
        from image_sync.runs r
        where r.bucket_id = p_bucket_id and r.mode = 'sync' and r.report is not null
          -- A verify that ended later has opened all of them.
          and not exists (
            select
            from image_sync.runs later
            where later.bucket_id = p_bucket_id
              and later.mode = 'verify'
              and later.outcome = 'succeeded'
              and later.finished_at > r.finished_at
          )
        order by r.finished_at desc limit 1
      )
    ) as r
    cross join lateral (
      select e.failure
      from image_sync.chunks c
      cross join lateral jsonb_array_elements(c.problems) as e (failure)
      where r.mode = 'verify'
        and c.run_id = r.id
        and c.from_key collate "C" < p_name
        and coalesce(c.to_key, image_sync.last_key()) collate "C" >= p_name
      union all
      select e.failure
      from jsonb_array_elements(r.report #> '{probe,failures}') as e (failure)
      where r.mode = 'sync'
    ) as f
    where f.failure ->> 'name' = p_name
      and f.failure ->> 'code' in ('file_lost', 'not_an_image', 'wrong_content_type')
      and not exists (
        select
        from storage.objects o
        where o.bucket_id = p_bucket_id
          and o.name collate "C" >= p_name
          and o.name collate "C" <= p_name
          and o.updated_at > r.finished_at
        order by o.name collate "C"
        offset 0
      )
    order by r.finished_at desc limit 1
  );
end;
$$;

comment on function image_sync.unseen_file(text, text) is
  'Why a file showed no image when it was last opened, as far as only another upload mends that: file_lost, not_an_image or wrong_content_type; null otherwise.';

-- What the newest verify saw of a file: {"run", "at", "code"}, the code null where its URL showed an image. Null where nobody can tell:
-- the file was not opened, or a run of before 2.0 named only the first of many that showed none.
create or replace function image_sync.verified_file(p_bucket_id text, p_file text)
returns jsonb language plpgsql stable set search_path = '' as $$
begin
  return (
    select case
      when named.code is not null
        or c.state = 'done'
          and image_sync.count_of(c.ledger, 'broken') = named.all_named
          -- Whatever has a record now had one then, and was opened.
          and not c.ledger ? 'missing'
          and image_sync.count_of(c.ledger, 'to_open') = image_sync.count_of(c.ledger, 'records') - image_sync.count_of(c.ledger, 'orphaned')
          and exists (
            select
            from public.part_images p
            where p.bucket_id = p_bucket_id and p.file_name collate "C" = p_file
          )
          and exists (
            select
            from storage.objects o
            where o.bucket_id = p_bucket_id
              and o.name collate "C" >= p_file
              and o.name collate "C" <= p_file
              and o.updated_at < v.started_at
            order by o.name collate "C"
            offset 0
          )
        then jsonb_build_object('run', v.id, 'at', v.finished_at, 'code', named.code, 'detail', named.detail)
    end
    from (
      select r.id, r.started_at, r.finished_at
      from image_sync.runs r
      where r.bucket_id = p_bucket_id and r.mode = 'verify' and r.finished_at is not null
      order by r.started_at desc limit 1
    ) as v
    join image_sync.chunks c
      on c.run_id = v.id
      and c.from_key collate "C" < p_file
      and coalesce(c.to_key collate "C" >= p_file, true)
    cross join lateral (
      select
        max(p.problem ->> 'code') filter (where p.problem ->> 'name' = p_file) as code,
        max(p.problem ->> 'detail') filter (where p.problem ->> 'name' = p_file) as detail,
        count(*) as all_named
      from jsonb_array_elements(c.problems) as p (problem)
    ) as named
    limit 1
  );
end;
$$;

comment on function image_sync.verified_file(text, text) is 'What the newest verify of the bucket saw of a file; null where that cannot be told.';

-- Why this file is, or is not, in sync.
create or replace function public.image_sync_file(p_bucket text, p_file text)
returns jsonb language plpgsql stable set search_path = '' set lock_timeout = '1s' as $$
declare
  v_settings image_sync.settings;
  v_object record;
  v_record record;
  v_is_taken boolean;
  v_is_excluded boolean;
  v_is_wanted boolean;
  v_is_signable boolean := image_sync.is_signable(p_file);
  v_unseen text;
  -- Where the file of this name went, or came from, as "name" or "name (bucket x)".
  v_moves_to text;
  v_is_at text;
  v_lies_at text;
  v_comes_from text;
  v_went_to text;
  v_reasons jsonb := '[]'::jsonb;
begin
  select s.*
  into v_settings
  from image_sync.settings s
  where s.bucket_id = p_bucket;
  if v_settings.bucket_id is null then
    return image_sync.problem(
      404, 'unknown_bucket', 'The bucket has no settings',
      format('Cannot look up a file of bucket %s: image_sync.settings has no row for it.', p_bucket)
    );
  end if;

  select o.name, o.extension, o.bytes, o.id
  into v_object
  from image_sync.objects o
  where o.bucket_id = p_bucket and o.name collate "C" >= p_file and o.name collate "C" <= p_file
  -- An order that only the index of names gives.
  order by o.name collate "C" limit 1;
  select r.file_name, r.part_number, r.signed, r.expired, r.usable_until, r.object_id, r.look_up_key, r.signed and not image_sync.is_url_of(r.signed_url, image_sync.url_base(v_settings), r.file_name) as is_foreign
  into v_record
  from image_sync.records r
  where r.bucket_id = p_bucket and r.file_name collate "C" = p_file;

  if v_record.file_name is not null and v_object.id is distinct from v_record.object_id then
    select
      case when w.is_followed then image_sync.place_in_words(p_bucket, w.bucket_id, w.name) end,
      case when not w.is_followed then image_sync.place_in_words(p_bucket, w.bucket_id, w.name) end
    into v_moves_to, v_is_at
    from image_sync.place_of(p_bucket, p_file, v_record.object_id) as w;
    if v_moves_to is null and v_is_at is null then
      select image_sync.place_in_words(p_bucket, o.bucket_id, o.name)
      into v_lies_at
      from image_sync.objects o
      where o.id = v_record.object_id;
    end if;
  end if;
  if v_object.id is not null and v_record.file_name is null then
    select image_sync.place_in_words(p_bucket, p.bucket_id, p.file_name)
    into v_comes_from
    from public.part_images p
    cross join lateral image_sync.destination_of(p.bucket_id, p.file_name, p.object_id) as d
    where p.object_id = v_object.id
    limit 1;
  end if;
  if v_object.id is null and v_record.file_name is null then
    select image_sync.place_in_words(p_bucket, o.bucket_id, o.name)
    into v_went_to
    from (
      select m.object_id
      from image_sync.moves m
      where m.bucket_id = p_bucket and m.file_name collate "C" = p_file
      order by m.moved_at desc, m.id desc limit 1
    ) as newest
    join image_sync.objects o
      on o.id = newest.object_id;
  end if;

  v_unseen := case when v_object.name is not null and v_record.file_name is not null then image_sync.unseen_file(p_bucket, p_file) end;
  v_is_excluded := v_object.name is not null and v_record.file_name is null and v_object.name like any (v_settings.exclude);
  v_is_wanted := v_object.name is not null and v_record.file_name is null and v_object.extension = any (v_settings.extensions) and not v_is_excluded and v_object.bytes is distinct from 0;
  v_is_taken := v_object.name is not null and image_sync.part_number_is_unique() and image_sync.is_part_taken((image_sync.part_numbers_of(array[v_object.name]))[1]);

  select coalesce(jsonb_agg(jsonb_build_object('code', c.code, 'detail', c.detail)), '[]')
  into v_reasons
  from (values
    ('unknown_file', 'Neither the bucket nor the table knows this name. Names are case-sensitive and include their folders', v_object.name is null and v_record.file_name is null and v_went_to is null),
    ('moved', format('The file has another name now, and its record went along: %s', v_went_to), v_went_to is not null),
    ('moved', format('The file is %s now: the next sync takes the record along', v_moves_to), v_moves_to is not null),
    ('moved', format('The file was %s: the next sync brings its record along', v_comes_from), v_comes_from is not null and v_is_wanted),
    ('orphaned', 'There is a record, but no file of this name in the bucket' || coalesce(': its file is ' || v_lies_at || ' now, which has a record of its own', ''), v_object.name is null and v_record.file_name is not null and v_moves_to is null and v_is_at is null),
    ('moved_away', format('Its file is %s now, which no sync keeps in step: give that bucket settings, or rename the file to what is not left out, and the next sync takes the record along', v_is_at), v_object.name is null and v_is_at is not null),
    ('excluded_extension', format('Its extension is not among those that make an image (%s)', array_to_string(v_settings.extensions, ', ')), v_object.name is not null and v_record.file_name is null and v_object.extension <> all (v_settings.extensions) and not v_is_excluded),
    ('excluded', 'Its name matches a pattern of the setting exclude: hidden and system files are left out', v_is_excluded),
    ('empty', 'The file is empty (0 bytes) and shows nothing: upload it again', v_object.bytes = 0 and v_object.extension = any (v_settings.extensions) and not v_is_excluded),
    ('missing', 'The file has no record yet: the next sync inserts it', v_is_wanted and not v_is_taken and v_comes_from is null),
    ('collided', 'Another record has its part number, which has to be unique: rename one of the files', v_is_wanted and v_is_taken and v_comes_from is null),
    ('unsignable', 'Storage opens no URL of this name (non-ASCII characters, # % ~ ^ | [ ] { } < > quotes, tabs, a path segment . or ..): rename the file', v_object.name is not null and not v_is_signable),
    ('unsigned', 'The record has no URL yet: the next sync signs it', v_object.name is not null and v_record.file_name is not null and not v_record.signed and v_is_signable),
    ('foreign_url', 'The URL is of another file, or of another address than the one that readers use: the next sync signs it anew', v_object.name is not null and v_record.is_foreign and v_is_signable),
    ('expired', 'The URL has expired, or its expiry is unknown, or it was cut: the next sync signs it again', v_object.name is not null and v_record.expired and not v_record.is_foreign and v_is_signable),
    ('expiring', 'The URL works and is due for renewal: the next sync signs it again', v_object.name is not null and v_record.usable_until < now() + v_settings.renew_before and not v_record.is_foreign and v_is_signable),
    ('file_lost', 'When it was last opened, Storage had its row and no content: upload it again, then start a verify', v_unseen = 'file_lost' and v_object.bytes is distinct from 0),
    ('not_an_image', 'When it was last opened, it was no image, whatever its name says: upload the right file, then start a verify', v_unseen = 'not_an_image'),
    ('wrong_content_type', 'When it was last opened, it was an image under another content type: upload it again with its own, then start a verify', v_unseen = 'wrong_content_type')
  ) as c (code, detail, applies)
  where c.applies;

  return jsonb_build_object('file', jsonb_build_object(
    'bucket_id', p_bucket,
    'file_name', p_file,
    'in_sync', coalesce(v_object.name is not null and v_record.usable_until is not null and not v_record.is_foreign and v_object.bytes is distinct from 0 and v_is_signable and v_unseen is null, false),
    'object', case when v_object.name is not null then jsonb_build_object('extension', v_object.extension, 'bytes', v_object.bytes) end,
    'record', case when v_record.file_name is not null then jsonb_build_object('part_number', v_record.part_number, 'signed', v_record.signed, 'usable_until', v_record.usable_until) end,
    'reasons', v_reasons,
    -- Other files of its part number, as a spreadsheet compares it, and pictures of its name with another extension.
    'twins', (
      select coalesce(jsonb_agg(t.name order by t.name collate "C"), '[]')
      from (
        select k.name
        from image_sync.files_of_key(p_bucket, v_record.look_up_key) k
        union
        select b.name
        from image_sync.files_beside(p_bucket, image_sync.stem_of(p_file)) b
      ) as t
      where t.name <> p_file
    ),
    'verified', image_sync.verified_file(p_bucket, p_file)
  ));
end;
$$;

comment on function public.image_sync_file(text, text) is
  'Whether a file has a record with a URL that works, and if not, every reason: unknown_file, moved, moved_away, orphaned, excluded_extension, excluded, empty, missing, collided, unsignable, unsigned, foreign_url, expired, expiring, file_lost, not_an_image, wrong_content_type. Problem: unknown_bucket (404).';
