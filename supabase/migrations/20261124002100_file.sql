-- Why this file is, or is not, in sync.
create function public.image_sync_file(p_bucket text, p_file text)
returns jsonb
language plpgsql
stable
set search_path = ''
set lock_timeout = '1s'
as $$
declare
  v_settings image_sync.settings;
  v_object record;
  v_record record;
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

  select o.name, o.extension, o.bytes
  into v_object
  from image_sync.objects o
  where o.bucket_id = p_bucket
    and o.name collate "C" = p_file;
  select r.file_name, r.part_number, r.signed, r.expired, r.usable_until
  into v_record
  from image_sync.records r
  where r.bucket_id = p_bucket
    and r.file_name collate "C" = p_file;

  select coalesce(jsonb_agg(jsonb_build_object('code', c.code, 'detail', c.detail)), '[]')
  into v_reasons
  from (values
    ('unknown_file', 'Neither the bucket nor the table knows this name. Names are case-sensitive and include their folders', v_object.name is null and v_record.file_name is null),
    ('orphaned', 'There is a record, but no file of this name in the bucket', v_object.name is null and v_record.file_name is not null),
    ('excluded_extension', format('Its extension is not among those that make an image (%s)', array_to_string(v_settings.extensions, ', ')), v_object.name is not null and v_record.file_name is null and v_object.extension <> all (v_settings.extensions)),
    ('missing', 'The file has no record yet: the next sync inserts it', v_object.name is not null and v_record.file_name is null and v_object.extension = any (v_settings.extensions)),
    ('collided', 'Another record has its part number, which has to be unique: rename one of the files', v_object.name is not null and v_record.file_name is null and v_object.extension = any (v_settings.extensions) and image_sync.part_number_is_unique() and exists (
      select
      from public.part_images p
      where p.part_number = any (image_sync.part_numbers_of(array[v_object.name]))
    )),
    ('unsigned', 'The record has no URL yet: the next sync signs it', v_object.name is not null and v_record.file_name is not null and not v_record.signed),
    ('expired', 'The URL has expired, or its expiry is unknown: the next sync signs it again', v_object.name is not null and v_record.expired),
    ('expiring', 'The URL works and is due for renewal: the next sync signs it again', v_object.name is not null and v_record.usable_until < now() + v_settings.renew_before)
  ) as c (code, detail, applies)
  where c.applies;

  return jsonb_build_object('file', jsonb_build_object(
    'bucket_id', p_bucket,
    'file_name', p_file,
    'in_sync', coalesce(v_object.name is not null and v_record.usable_until is not null, false),
    'object', case when v_object.name is not null then jsonb_build_object('extension', v_object.extension, 'bytes', v_object.bytes) end,
    'record', case when v_record.file_name is not null then jsonb_build_object('part_number', v_record.part_number, 'signed', v_record.signed, 'usable_until', v_record.usable_until) end,
    'reasons', v_reasons
  ));
end;
$$;

comment on function public.image_sync_file(text, text) is
  'Whether a file has a record with a URL that works, and if not, every reason: unknown_file, orphaned, excluded_extension, missing, collided, unsigned, expired, expiring. Problem: unknown_bucket (404).';

revoke all on function public.image_sync_file(text, text) from public, anon, authenticated;
grant execute on function public.image_sync_file(text, text) to service_role;
