-- The private home of image-sync. It is not among the schemas that the Data API exposes, and only service_role may enter it:
-- since 30 October 2026 the platform grants nothing by itself, so every migration here says what it grants.
create extension if not exists pg_cron with schema pg_catalog;
create extension if not exists pg_net with schema extensions;

create schema image_sync;

comment on schema image_sync is
  'Keeps storage buckets and public.part_images in step: settings, runs (the status table), chunks, archive, and the functions behind public.image_sync_*. Private: service_role alone.';

revoke all on schema image_sync from public;
grant usage on schema image_sync to service_role;

-- Words that come from elsewhere (a trigger's message, an answer of Storage) may quote a whole row, signed URL and all. They are
-- redacted before they are stored, here as in the function's log.ts.
create function image_sync.redact(p_words text)
returns text
language sql
immutable
set search_path = ''
return left(
  regexp_replace(
    regexp_replace(
      regexp_replace(p_words, 'token=[^\s"''&]+', 'token=[redacted]', 'g'),
      'eyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+', '[redacted]', 'g'
    ),
    'sb_(secret|publishable)_[A-Za-z0-9_-]+', 'sb_\1_[redacted]', 'g'
  ),
  500
);

comment on function image_sync.redact(text) is
  'Words of foreign origin, fit to be stored: without tokens of signed URLs, JWTs and keys, at most 500 characters.';

revoke all on function image_sync.redact(text) from public;
grant execute on function image_sync.redact(text) to service_role;
