/**
 * The SQL that makes and drops a reader's database role. It is printed and not run: a secret key cannot make roles, and who owns the
 * database looks at it first. Each is one statement, so that it happens whole or not at all, whatever runs it.
 */
import { createHash, createHmac, pbkdf2Sync, randomBytes } from "node:crypto";

/** What a role's password is stored as (RFC 5803), so that the password itself stands in no editor's history. */
export function verifierOf(password: string, salt: Uint8Array = randomBytes(16), iterations = 4096): string {
  const salted = pbkdf2Sync(password, salt, iterations, 32, "sha256");
  const keyOf = (name: string) => createHmac("sha256", salted).update(name).digest();
  const storedKey = createHash("sha256").update(keyOf("Client Key")).digest("base64");
  const base64 = Buffer.from(salt).toString("base64");
  return `SCRAM-SHA-256$${iterations}:${base64}$${storedKey}:${keyOf("Server Key").toString("base64")}`;
}

/** A login role that reads the register of a bucket and nothing else. Names have no character that would need quoting twice. */
export function addRoleSql({ name, bucket, verifier }: {
  name: string;
  bucket: string;
  verifier: string;
}): string {
  const role = `"${name}"`;
  return `-- Makes the login role ${name}, which can read the register of one bucket and nothing else. Run it as postgres.
do $reader$
begin
  if not exists (select from image_sync.settings s where s.bucket_id = ${literal(bucket)}) then
    raise exception 'Cannot add a reader of this bucket: image_sync.settings has no row for it';
  end if;
  create role ${role} login noinherit connection limit 10 password '${verifier}';
  -- A workbook that asks for more than it should is ended, and holds nothing for long.
  alter role ${role} set statement_timeout = '60s';
  alter role ${role} set idle_in_transaction_session_timeout = '60s';
  alter role ${role} set default_transaction_read_only = on;
  -- Compiling what a server with jit on would compile takes longer than reading.
  alter role ${role} set jit = off;
  insert into image_sync.readers (name, kind, bucket_id) values ('${name}', 'odbc', ${literal(bucket)});
  grant usage on schema public to ${role};
  grant select on public.part_register to ${role};
  -- For workbooks with the old query. Without row level security a table shows every bucket: then the register alone.
  if (select c.relrowsecurity from pg_catalog.pg_class c where c.oid = 'public.part_images'::regclass) then
    grant select (part_number, file_name, signed_url, signed_url_expires_at) on public.part_images to ${role};
    create policy ${policyOf(name)} on public.part_images for select to ${role} using (bucket_id = ${
    literal(bucket)
  });
  end if;
end
$reader$;

-- What it can reach beyond that, because it is open to everybody: only its owner can close it. No row is best. The tables of pg_net
-- are such, on every project: what docs/security.md says of them.
select found.object, found.rights, found.owner
from (
  select format('%I.%I', n.nspname, c.relname) as object, string_agg(p.privilege, ', ' order by p.privilege) as rights, pg_get_userbyid(c.relowner) as owner
  from pg_catalog.pg_class c
  join pg_catalog.pg_namespace n
    on n.oid = c.relnamespace
  cross join unnest('{select,insert,update,delete}'::text[]) as p (privilege)
  where n.nspname !~ '^(pg_|information_schema$)'
    and c.relkind in ('r', 'p', 'v', 'm', 'f')
    and c.oid <> 'public.part_register'::regclass
    and has_schema_privilege('${name}', n.oid, 'usage')
    and has_table_privilege('${name}', c.oid, p.privilege)
  group by n.nspname, c.relname, c.relowner
  union all
  select f.oid::regprocedure::text, 'execute, with the rights of its owner', pg_get_userbyid(f.proowner)
  from pg_catalog.pg_proc f
  join pg_catalog.pg_namespace n
    on n.oid = f.pronamespace
  where n.nspname !~ '^(pg_|information_schema$)'
    and f.prosecdef
    and f.prorettype not in ('trigger'::regtype, 'event_trigger'::regtype)
    and has_schema_privilege('${name}', n.oid, 'usage')
    and has_function_privilege('${name}', f.oid, 'execute')
) as found
order by found.object;
`;
}

/** Takes the role away again; who is connected with it is disconnected. */
export function dropRoleSql(name: string): string {
  const role = `"${name}"`;
  return `-- Drops the login role ${name} and its rights. Run it as postgres.
do $reader$
begin
  if not exists (select from image_sync.readers r where r.name = '${name}' and r.kind = 'odbc') then
    raise exception 'Cannot drop role ${name}: it is no reader''s';
  end if;
  drop policy if exists ${policyOf(name)} on public.part_images;
  revoke all on public.part_register from ${role};
  revoke all (part_number, file_name, signed_url, signed_url_expires_at) on public.part_images from ${role};
  revoke usage on schema public from ${role};
  delete from image_sync.readers r where r.name = '${name}';
  perform pg_terminate_backend(a.pid) from pg_catalog.pg_stat_activity a where a.usename = '${name}';
  drop role ${role};
end
$reader$;
`;
}

function policyOf(name: string): string {
  return `"image-sync ${name}"`;
}

function literal(text: string): string {
  return `${text.includes("\\") ? "e" : ""}'${text.replaceAll("\\", "\\\\").replaceAll("'", "''")}'`;
}
