-- Part numbers that several image files stand for: other extension or case of it (a.jpg, a.JPG, a.png), a copy named a_JPG.jpg,
-- or a file of that name in another folder. A group is counted in the chunk of its first file, by key order: the same group
-- never twice, and none is lost at the edge of a chunk.
--   p_names  the image files of a chunk, of whatever image extension
-- One neighbour look-up by index per file would double the cost of an unchanged chunk, so only a stem that stands twice in the
-- chunk, or at its edges, or with a copy's ending, is looked up.
create function image_sync.find_several_files(p_bucket_id text, p_names text[], out part_numbers integer, out samples text[])
language plpgsql
stable
set search_path = ''
as $$
begin
  with files as (
    select
      f.name,
      left(f.name, -(length(split_part(f.name, '.', -1)) + 1)) as stem,
      f.place in (1, cardinality(p_names)) as at_edge
    from unnest(p_names) with ordinality as f (name, place)
  ), suspects as (
    select s.stem
    from files s
    group by s.stem
    having count(*) > 1 or bool_or(s.at_edge)
    union
    select regexp_replace(c.stem, '_(jpe?g|png)$', '', 'i')
    from files c
    -- Hardly any name has that underscore: what follows is not computed for the others.
    where strpos(right(c.stem, 5), '_') > 0
      and c.stem ~* '_(jpe?g|png)$'
  ), found as (
    select s.stem, array_agg(o.name order by o.name collate "C") as names
    from suspects s
    cross join lateral (
      -- Between "stem." and "stem/", as far as a look is bounded, and copies named "stem_JPG.jpg" and the like.
      select n.name
      from (
        select o.name, o.extension
        from image_sync.objects o
        where o.bucket_id = p_bucket_id
          and o.name collate "C" >= s.stem || '.'
          and o.name collate "C" < s.stem || '/'
        order by o.name collate "C"
        limit 100
      ) as n
      where n.extension = any ('{jpg,jpeg,png,gif,webp,avif,bmp,tif,tiff,heic}')
        and left(n.name, -(length(n.extension) + 1)) = s.stem
      union all
      -- Ranges again: an order that only the index gives is what keeps a planner from another index, which would read the bucket.
      select twin.name
      from (values ('_JP', '_JQ'), ('_PN', '_PO'), ('_jp', '_jq'), ('_pn', '_po')) as copy (low, high)
      cross join lateral (
        select o.name
        from image_sync.objects o
        where o.bucket_id = p_bucket_id
          and o.name collate "C" >= s.stem || copy.low
          and o.name collate "C" < s.stem || copy.high
        order by o.name collate "C"
        limit 100
      ) as twin
      where substr(twin.name, length(s.stem) + 1) ~ '^_(JPG|JPEG|PNG|jpg|jpeg|png)\.(jpg|jpeg|png|JPG|JPEG|PNG)$'
    ) as o
    group by s.stem
    having count(*) > 1
    union all
    -- The same file name in several folders, as far as records know of it; counted where the first that lies in a folder is. One
    -- look-up for each part number, by part_images_part_number_bucket_id_idx: another bucket's records of it are not read.
    select
      '/' || twins.part_number,
      twins.names
    from (
      select regexp_replace(f.stem, '^.*/', '') as part_number
      from files f
      where strpos(f.name, '/') > 0
      group by 1
    ) as parts
    cross join lateral (
      select
        parts.part_number,
        array_agg(p.file_name order by (strpos(p.file_name, '/') = 0), p.file_name collate "C") as names,
        count(distinct regexp_replace(p.file_name, '[^/]*$', '')) as folders,
        min(p.file_name collate "C") filter (where strpos(p.file_name, '/') > 0) as first_name
      from (
        select p.file_name
        from public.part_images p
        where p.part_number = parts.part_number
          and p.bucket_id = p_bucket_id
        limit 20
      ) as p
    ) as twins
    where twins.folders > 1
      and exists (
        select
        from files f
        where f.name = twins.first_name
      )
  )
  select
    count(*)::integer,
    (array_agg(regexp_replace(f.stem, '^.*/', '') || ': ' || array_to_string(f.names, ', ') order by f.stem collate "C"))[1:20]
  into part_numbers, samples
  from found f
  where f.names[1] = any (p_names);
end;
$$;

comment on function image_sync.find_several_files(text, text[]) is
  'Part numbers with several image files whose first file is among the given names, and up to 20 of them as "part number: files".';

revoke all on function
  image_sync.find_several_files(text, text[])
from public;
grant execute on function
  image_sync.find_several_files(text, text[])
to service_role;
