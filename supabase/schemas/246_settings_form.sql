-- set
-- The settings of a bucket as a form: every field with its value, what it means and what is allowed. Meaning and bounds are the
-- comments of the column and of its check, so that a refusal is said in the same words wherever somebody meets it.
comment on constraint settings_bucket_id_check on image_sync.settings is 'Not empty, without control characters.';
comment on constraint settings_extensions_check on image_sync.settings is 'At least one extension, in lower case, without dots, slashes and control characters.';
comment on constraint settings_exclude_check on image_sync.settings is 'Patterns of LIKE, none of them empty, without control characters.';
comment on constraint settings_signed_url_ttl_check on image_sync.settings is 'From 1 minute to 365 days.';
comment on constraint settings_renew_before_check on image_sync.settings is 'Not negative, and less than a URL lives: else it would be made anew every night.';
comment on constraint settings_chunk_size_check on image_sync.settings is 'From 1 to 1,000.';
comment on constraint settings_lease_duration_check on image_sync.settings is 'From 1 second to 10 minutes.';
comment on constraint settings_max_attempts_check on image_sync.settings is 'From 1 to 100.';
comment on constraint settings_retry_delay_check on image_sync.settings is 'Up to 1 hour.';
comment on constraint settings_max_delete_fraction_check on image_sync.settings is 'From 0 to 1: 0.1 is a tenth.';
comment on constraint settings_max_delete_count_check on image_sync.settings is '0 or more.';
comment on constraint settings_probe_size_check on image_sync.settings is 'From 0 to 100.';
comment on constraint settings_verify_rate_check on image_sync.settings is 'From 1 to 10,000.';
comment on constraint settings_public_url_check on image_sync.settings is 'Scheme and host without a path, such as https://files.example.com or http://192.0.2.1:8000.';
comment on constraint settings_keep_chunks_check on image_sync.settings is 'From 2 days to 100 years.';
comment on constraint settings_keep_runs_check on image_sync.settings is 'Not shorter than chunks are kept, up to 100 years.';

create or replace function image_sync.settings_words(p_constraint name)
returns text
language plpgsql
stable
set search_path = ''
as $$
begin
  return (
    select obj_description(c.oid, 'pg_constraint')
    from pg_catalog.pg_constraint c
    where c.conrelid = 'image_sync.settings'::regclass
      and c.conname = p_constraint
  );
end;
$$;

comment on function image_sync.settings_words(name) is 'What a check of image_sync.settings allows, in words; null for what is none.';

-- Returns {"settings": {"bucket_id", "fields": [{"name", "type", "value", "default", "meaning", "bounds"}]}}.
create or replace function public.image_sync_settings(p_bucket text)
returns jsonb
language plpgsql
stable
set search_path = ''
-- 7 days is 7 days, whatever the session thinks of intervals.
set intervalstyle = 'postgres'
as $$
declare
  v_values jsonb;
begin
  select to_jsonb(s)
  into v_values
  from image_sync.settings s
  where s.bucket_id = p_bucket;
  if v_values is null then
    return image_sync.problem(
      404, 'unknown_bucket', 'The bucket has no settings',
      format('Cannot show the settings of bucket %s: image_sync.settings has no row for it.', p_bucket)
    );
  end if;
  return jsonb_build_object('settings', jsonb_build_object(
    'bucket_id', p_bucket,
    'fields', (
      select jsonb_agg(jsonb_build_object(
        'name', a.attname,
        'type', format_type(a.atttypid, a.atttypmod),
        'value', v_values -> a.attname,
        'default', (regexp_match(pg_get_expr(d.adbin, d.adrelid), '^''?(.*?)''?(::[a-z\[\] ]+)?$'))[1],
        'meaning', col_description(a.attrelid, a.attnum),
        'bounds', image_sync.settings_words(format('settings_%s_check', a.attname)::name)
      ) order by a.attnum)
      from pg_catalog.pg_attribute a
      left join pg_catalog.pg_attrdef d
        on d.adrelid = a.attrelid
        and d.adnum = a.attnum
      where a.attrelid = 'image_sync.settings'::regclass
        and a.attnum > 0
        and not a.attisdropped
        and a.attname <> 'bucket_id'
    )
  ));
end;
$$;

comment on function public.image_sync_settings(text) is
  'The settings of a bucket, each with its type, value, default, meaning and bounds. Problem: unknown_bucket (404).';

create or replace function image_sync.setting_refused(p_bucket text, p_field text, p_message text)
returns jsonb
language sql
immutable
set search_path = ''
as $$
  select image_sync.problem(
    400, 'invalid_setting', 'A setting is not allowed',
    format('Cannot change %s of bucket %s: %s', p_field, p_bucket, p_message),
    jsonb_build_object('errors', jsonb_build_array(jsonb_build_object('field', p_field, 'message', p_message)))
  )
$$;

comment on function image_sync.setting_refused(text, text, text) is 'The problem for a setting that cannot be changed so, with the field that it is about.';

-- Changes settings: all of p_changes {name: value}, or nothing. Returns what image_sync_settings returns.
create or replace function public.image_sync_change_settings(p_bucket text, p_changes jsonb)
returns jsonb
language plpgsql
set search_path = ''
set lock_timeout = '2s'
as $$
declare
  v_settings image_sync.settings;
  v_field text;
  v_constraint text;
begin
  select s.*
  into v_settings
  from image_sync.settings s
  where s.bucket_id = p_bucket
  for update;
  if v_settings.bucket_id is null then
    return image_sync.problem(
      404, 'unknown_bucket', 'The bucket has no settings',
      format('Cannot change the settings of bucket %s: image_sync.settings has no row for it.', p_bucket)
    );
  end if;
  if p_changes = '{}' then
    return public.image_sync_settings(p_bucket);
  end if;
  for v_field in
    select k.key
    from jsonb_object_keys(p_changes) as k (key)
    order by k.key
  loop
    if v_field = 'bucket_id' or not exists (
      select
      from pg_catalog.pg_attribute a
      where a.attrelid = 'image_sync.settings'::regclass
        and a.attname = v_field
        and a.attnum > 0
        and not a.attisdropped
    ) then
      return image_sync.setting_refused(p_bucket, v_field, 'There is no such setting.');
    end if;
    begin
      v_settings := jsonb_populate_record(v_settings, jsonb_build_object(v_field, p_changes -> v_field));
    exception
      when data_exception then
        return image_sync.setting_refused(p_bucket, v_field, format('Not a value of the type %s.', (
          select format_type(a.atttypid, a.atttypmod)
          from pg_catalog.pg_attribute a
          where a.attrelid = 'image_sync.settings'::regclass
            and a.attname = v_field
        )));
    end;
  end loop;
  begin
    -- Those that are given, which are columns of the table: whatever a later version adds is among them.
    execute (
      select format('update image_sync.settings s set %s where s.bucket_id = $2', string_agg(format('%1$I = ($1).%1$I', k.key), ', '))
      from jsonb_object_keys(p_changes) as k (key)
    )
    using v_settings, p_bucket;
  exception
    when check_violation then
      get stacked diagnostics v_constraint = constraint_name;
      return image_sync.setting_refused(
        p_bucket, regexp_replace(v_constraint, '^settings_(.*)_check$', '\1'),
        coalesce(image_sync.settings_words(v_constraint::name), 'The check ' || v_constraint || ' says no.')
      );
    when not_null_violation then
      get stacked diagnostics v_field = column_name;
      return image_sync.setting_refused(p_bucket, v_field, 'It must have a value.');
  end;
  return public.image_sync_settings(p_bucket);
end;
$$;

comment on function public.image_sync_change_settings(text, jsonb) is
  'Changes settings of a bucket, all of those that are given or none. Problems: unknown_bucket (404), invalid_setting (400) with the field and, in the words of the database''s check, what is allowed.';
