-- set
-- Verifying: every URL of a bucket is opened as a reader does. The bucket is walked and counted as in an analyze; a chunk that holds
-- URLs is leased to a worker that opens them, no faster than settings.verify_rate over all workers of the run.

-- Takes the time that so many URLs cost at the setting's rate, and returns them with their names. The caller holds the run's row lock.
create or replace function image_sync.lease_targets(p_run image_sync.runs, p_settings image_sync.settings, p_names text[])
returns jsonb language plpgsql set search_path = '' as $$
begin
  update image_sync.runs r
  set paced_until = clock_timestamp() + make_interval(secs => cardinality(p_names)::double precision / p_settings.verify_rate)
  where r.id = p_run.id;
  return (
    select coalesce(jsonb_agg(jsonb_build_object('name', p.file_name, 'url', p.signed_url)), '[]')
    from public.part_images p
    where p.bucket_id = p_run.bucket_id and p.file_name collate "C" = any (p_names)
      -- In order: no more than their range is read.
      and p.file_name collate "C" >= p_names[1]
      and p.file_name collate "C" <= p_names[cardinality(p_names)]
  );
end;
$$;

comment on function image_sync.lease_targets(image_sync.runs, image_sync.settings, text[]) is
  'The URLs of these names as [{"name", "url"}], for the worker''s eyes alone; the run''s next chunk waits until they can have been opened at settings.verify_rate.';

-- A token that Storage says is dead (InvalidJWT; no other answer brings a URL along) is signed anew by the next sync, once its expiry is
-- forgotten. Where the run has seen no image yet it is rather the key than these files: then nothing is forgotten, and the next sync
-- renews all (image_sync.renews_all). A row that somebody holds is not waited for,
-- and a table that refuses keeps what it has: the verify says of each all the same what was to be seen.
create or replace function image_sync.forget_rejected(p_run image_sync.runs, p_chunk image_sync.chunks, p_failures jsonb)
returns integer language plpgsql set search_path = '' set lock_timeout = '400ms' as $$
declare
  v_forgotten integer;
begin
  if not p_chunk.ledger ? 'shown' and not exists (
    select
    from image_sync.chunks c
    where c.run_id = p_run.id and c.ledger ? 'shown'
  ) then
    return 0;
  end if;
  with free as materialized (
    select p.bucket_id, p.file_name
    from jsonb_to_recordset(p_failures) as e (name text, url text)
    join public.part_images p
      on p.bucket_id = p_run.bucket_id
      and p.file_name collate "C" = e.name
      and p.file_name collate "C" > p_chunk.from_key
      and p.file_name collate "C" <= coalesce(p_chunk.to_key, image_sync.last_key())
      and p.signed_url = e.url
    for update of p skip locked
  ), forgotten as (
    update public.part_images p
    set signed_url_expires_at = null
    from free f
    where p.bucket_id = f.bucket_id
      -- By the index of names, in its order: any other comparison reads the bucket once for each URL.
      and p.file_name collate "C" = f.file_name
      and p.file_name collate "C" > p_chunk.from_key
      and p.file_name collate "C" <= coalesce(p_chunk.to_key, image_sync.last_key())
    returning 1
  )
  select count(*)
  into v_forgotten
  from forgotten;
  perform image_sync.check_deferred();
  return v_forgotten;
exception
  when others then
    if not image_sync.is_held(sqlstate) and not image_sync.is_refusal(sqlstate) then
      raise;
    end if;
    return 0;
end;
$$;

comment on function image_sync.forget_rejected(image_sync.runs, image_sync.chunks, jsonb) is
  'Forgets the expiry of the chunk''s records whose URL came along as dead, where the run has seen an image, unless they have got another one meanwhile, are held, or the table refuses. Returns how many.';

-- Closes a chunk of a verify.
--   p_shown     the names whose URL showed an image
--   p_failures  [{"name", "code", "error", "url"}], the URL only where Storage said that its token is dead
create or replace function image_sync.close_verified(p_run image_sync.runs, p_chunk image_sync.chunks, p_shown text[], p_failures jsonb, p_is_given_up boolean)
returns text language plpgsql set search_path = '' as $$
declare
  v_chunk image_sync.chunks := p_chunk;
  v_failures jsonb;
  v_counts jsonb;
  v_forgotten integer;
begin
  -- The object tells whether a file that Storage does not find was deleted or lost; one that was deleted meanwhile shows nothing to
  -- nobody, and is an orphan from now on.
  with seen as (
    select e.name, e.code, e.error, o.name is not null as has_object
    from jsonb_to_recordset(p_failures) as e (name text, code text, error text)
    left join image_sync.objects o
      on o.bucket_id = p_run.bucket_id
      and o.name collate "C" = e.name
      and o.name collate "C" > v_chunk.from_key
      and o.name collate "C" <= coalesce(v_chunk.to_key, image_sync.last_key())
  ), told as (
    select s.name, case when s.code = 'file_gone' and s.has_object then 'file_lost' when s.has_object then s.code else 'file_gone' end as code, s.error
    from seen s
  )
  -- All of them are named: a chunk of a verify has 200 files at most.
  select
    coalesce(jsonb_agg(image_sync.item_problem(t.name, t.code, t.error) order by t.code, t.name collate "C"), '[]'),
    coalesce(
      (
        select jsonb_object_agg(k.code, k.files)
        from (
          select told.code, count(*) as files
          from told
          group by told.code
        ) as k
      ), '{}')
  into v_failures, v_counts
  from told t;

  v_chunk.ledger := image_sync.add_counts(v_chunk.ledger, jsonb_build_object('shown', cardinality(p_shown)));
  v_forgotten := image_sync.forget_rejected(p_run, v_chunk, p_failures);

  update image_sync.chunks c
  set
    state = case when p_is_given_up then 'dead' else 'done' end,
    to_do = '{}',
    to_do_ids = '{}',
    ledger = image_sync.add_counts(p_chunk.ledger, jsonb_build_object(
      'to_open', case when p_is_given_up then 0 else cardinality(p_shown) + jsonb_array_length(p_failures) - image_sync.count_of(c.ledger, 'to_open') end,
      'shown', cardinality(p_shown),
      'broken', case when p_is_given_up then image_sync.count_of(c.ledger, 'to_open') else jsonb_array_length(p_failures) end,
      'rejected', v_counts -> 'url_rejected',
      'updated', v_forgotten,
      'records_expired', v_forgotten,
      -- What Storage rejects is no working URL, forgotten or not.
      'images_signed', -least(coalesce((v_counts ->> 'url_rejected')::integer, 0), image_sync.count_of(c.ledger, 'images_signed'))
    )),
    facts = c.facts || jsonb_build_object('broken', v_counts),
    problems = c.problems || v_failures,
    lease_expires_at = null,
    error = case when p_is_given_up then c.error end,
    closed_at = clock_timestamp()
  where c.run_id = v_chunk.run_id and c.number = v_chunk.number;
  return 'closed';
end;
$$;

comment on function image_sync.close_verified(image_sync.runs, image_sync.chunks, text[], jsonb, boolean) is
  'Closes a leased chunk whose URLs were opened: counts what showed an image and what did not, by reason, and makes the next sync sign anew what has a dead token. Returns closed.';

-- A file that Storage does not find is lost where its object is there, and deleted where it is not: the words of S3 and of Storage
-- tell that in some versions only.
create or replace function image_sync.tell_lost(p_bucket_id text, p_probe jsonb)
returns jsonb language sql stable set search_path = '' as $$
  select case
    when jsonb_path_exists(p_probe, '$.failures[*] ? (@.code == "file_gone" || @.code == "file_lost")') then p_probe || jsonb_build_object('failures', (
      select jsonb_agg(
        case
          when p.failure ->> 'code' not in ('file_gone', 'file_lost') then p.failure
          when exists (
            select
            from image_sync.objects o
            where o.bucket_id = p_bucket_id
              and o.name collate "C" >= p.failure ->> 'name'
              and o.name collate "C" <= p.failure ->> 'name'
            order by o.name collate "C"
            offset 0
          ) then p.failure || '{"code": "file_lost"}'
          else p.failure || '{"code": "file_gone"}'
        end
      )
      from jsonb_array_elements(p_probe -> 'failures') as p (failure)
    ))
    else p_probe
  end
$$;

comment on function image_sync.tell_lost(text, jsonb) is 'What a probe gave, with file_lost where the object of a file that Storage does not find is there, else file_gone.';

-- Where a look at the URLs saw a rejected one and could not forget it, the next sync renews all: after a rotation of the URL-signing key
-- that is what mends them. By the newest look: a verify, or the probe of a sync; a sync that has renewed all is one too.
create or replace function image_sync.renews_all(p_bucket_id text)
returns boolean language plpgsql stable set search_path = '' as $$
begin
  return coalesce(
    (
      select case look.mode
        when 'verify' then (look.report #>> '{verified,kept}')::bigint > 0
        else jsonb_path_exists(look.report, '$.probe ? (@.ok == 0 && @.checked > 0)')
          and not jsonb_path_exists(look.report, '$.probe.failures[*] ? (@.code != "url_rejected")')
      end
      from image_sync.runs look
      where look.bucket_id = p_bucket_id
        and look.finished_at is not null
        and look.report is not null
        and (
          look.mode = 'verify'
          or look.mode = 'sync' and (
            (look.report #>> '{probe,checked}')::bigint > 0
            or look.outcome <> 'failed' and look.options ->> 'renew' = 'all'
          )
        )
      order by look.finished_at desc limit 1
    ), false);
end;
$$;

comment on function image_sync.renews_all(text) is
  'Whether the next sync of a bucket renews all URLs: the newest look at them saw rejected ones that keep their expiry.';
