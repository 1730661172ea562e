-- set
-- What answers about buckets share.

create or replace function image_sync.unknown_bucket(p_bucket text, p_attempt text)
returns jsonb language sql stable set search_path = '' as $$
  select image_sync.problem(
    404, 'unknown_bucket', 'The bucket has no settings',
    format('Cannot ' || p_attempt || ': image_sync.settings has no row for it.', p_bucket))
  where not exists (select from image_sync.settings s where s.bucket_id = p_bucket)
$$;

comment on function image_sync.unknown_bucket(text, text) is 'The refusal of a request about a bucket without settings, null where it has some. p_attempt: what was asked, with %s for the bucket.';

create or replace function image_sync.page(p_name text, p_items jsonb, p_key text, p_limit integer)
returns jsonb language sql immutable set search_path = '' as $$
  select jsonb_build_object(p_name, p_items, 'next', case when jsonb_array_length(p_items) = p_limit then p_items #> array['-1', p_key] end)
$$;

comment on function image_sync.page(text, jsonb, text, integer) is 'A page of p_limit items at most: {p_name: items, "next": the p_key of the last one, behind which the next page begins, or null}.';
