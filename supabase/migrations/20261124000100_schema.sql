-- The private home of image-sync. It is not among the schemas that the Data API exposes, and only service_role may enter it:
-- since 30 October 2026 the platform grants nothing by itself, so every migration here says what it grants.
create extension if not exists pg_cron with schema pg_catalog;
create extension if not exists pg_net with schema extensions;

create schema image_sync;

comment on schema image_sync is
  'Keeps storage buckets and public.part_images in step: settings, runs (the status table), chunks, archive, and the functions behind public.image_sync_*. Private: service_role alone.';

revoke all on schema image_sync from public;
grant usage on schema image_sync to service_role;
