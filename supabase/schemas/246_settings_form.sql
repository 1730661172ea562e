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

-- Returns {"settings": {"bucket_id", "fields": [{"name", "type", "value", "default", "meaning", "bounds"}]}}.
-- 7 days is 7 days, whatever the session thinks of intervals.
create or replace function public.image_sync_settings(p_bucket text)
returns jsonb language sql stable set search_path = '' set intervalstyle = 'postgres' as $$
  select coalesce(image_sync.unknown_bucket(p_bucket, 'show the settings of bucket %s'), (
    select jsonb_build_object('settings', jsonb_build_object('bucket_id', p_bucket, 'fields', jsonb_agg(jsonb_build_object(
      'name', a.attname,
      'type', format_type(a.atttypid, a.atttypmod),
      'value', to_jsonb(s) -> a.attname,
      'default', (regexp_match(pg_get_expr(d.adbin, d.adrelid), '^''?(.*?)''?(::[a-z\[\] ]+)?$'))[1],
      'meaning', col_description(a.attrelid, a.attnum),
      'bounds', obj_description(c.oid, 'pg_constraint')
    ) order by a.attnum)))
    from image_sync.settings s
    join pg_catalog.pg_attribute a on a.attrelid = 'image_sync.settings'::regclass and a.attnum > 0 and not a.attisdropped and a.attname <> 'bucket_id'
    left join pg_catalog.pg_attrdef d on (d.adrelid, d.adnum) = (a.attrelid, a.attnum)
    left join pg_catalog.pg_constraint c on (c.conrelid, c.conname) = (a.attrelid, format('settings_%s_check', a.attname)::name)
    where s.bucket_id = p_bucket
  ))
$$;

comment on function public.image_sync_settings(text) is 'The settings of a bucket, each with its type, value, default, meaning and bounds. Problem: unknown_bucket (404).';

-- Changes settings: all of p_changes {name: value}, or nothing. Returns what image_sync_settings returns.
create or replace function public.image_sync_change_settings(p_bucket text, p_changes jsonb)
returns jsonb language plpgsql set search_path = '' set lock_timeout = '2s' as $$
declare
  v_settings image_sync.settings;
  v_field text;
  v_type text;
  v_refusal text;
begin
  select s.* into v_settings from image_sync.settings s where s.bucket_id = p_bucket for update;
  if not found then
    return image_sync.unknown_bucket(p_bucket, 'change the settings of bucket %s');
  end if;
  for v_field, v_type in
    select k.key, format_type(a.atttypid, a.atttypmod)
    from jsonb_object_keys(p_changes) as k (key)
    left join pg_catalog.pg_attribute a
      on (a.attrelid, a.attname) = ('image_sync.settings'::regclass, k.key) and a.attname <> 'bucket_id' and a.attnum > 0 and not a.attisdropped
    order by k.key
  loop
    begin
      v_settings := jsonb_populate_record(v_settings, jsonb_build_object(v_field, p_changes -> v_field));
    exception
      when data_exception then
        v_refusal := format('Not a value of the type %s.', v_type);
    end;
    v_refusal := case when v_type is null then 'There is no such setting.' else v_refusal end;
    exit when v_refusal is not null;
  end loop;
  if v_refusal is null and p_changes <> '{}' then
    begin
      -- Those that are given, which are columns of the table: whatever a later version adds is among them.
      execute (
        select format('update image_sync.settings s set %s where s.bucket_id = $2', string_agg(format('%1$I = ($1).%1$I', k.key), ', '))
        from jsonb_object_keys(p_changes) as k (key)
      ) using v_settings, p_bucket;
    exception
      when check_violation then
        get stacked diagnostics v_field = constraint_name;
        v_refusal := coalesce(
          (select obj_description(c.oid, 'pg_constraint') from pg_catalog.pg_constraint c where c.conrelid = 'image_sync.settings'::regclass and c.conname = v_field),
          'The check ' || v_field || ' says no.');
        v_field := regexp_replace(v_field, '^settings_(.*)_check$', '\1');
      when not_null_violation then
        get stacked diagnostics v_field = column_name;
        v_refusal := 'It must have a value.';
    end;
  end if;
  return case when v_refusal is null then public.image_sync_settings(p_bucket) else image_sync.problem(
    400, 'invalid_setting', 'A setting is not allowed', format('Cannot change %s of bucket %s: %s', v_field, p_bucket, v_refusal),
    jsonb_build_object('errors', jsonb_build_array(jsonb_build_object('field', v_field, 'message', v_refusal)))) end;
end;
$$;

comment on function public.image_sync_change_settings(text, jsonb) is 'Changes settings of a bucket, all of those that are given or none. Problems: unknown_bucket (404), invalid_setting (400) with the field and, in the words of the database''s check, what is allowed.';
