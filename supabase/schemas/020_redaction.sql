-- set
-- Words that come from elsewhere (a trigger's message, an answer of Storage) may quote a whole row, signed URL and all. They are
-- redacted before they are stored, here as in the function's log.ts.
create or replace function image_sync.redact(p_words text)
returns text
language sql
immutable
set search_path = ''
as $$
  select left(
    regexp_replace(
      regexp_replace(
        regexp_replace(p_words, 'token=[^\s"''&]+', 'token=[redacted]', 'g'),
        'eyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+', '[redacted]', 'g'
      ),
      '(sb_secret|sb_publishable|\misr)_[A-Za-z0-9_-]+', '\1_[redacted]', 'g'
    ),
    500
  )
$$;

comment on function image_sync.redact(text) is
  'Words of foreign origin, fit to be stored: without tokens of signed URLs, JWTs and keys, at most 500 characters.';
