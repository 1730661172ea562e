/** The register over ODBC, read by Debian's psqlODBC: what a reader's role gets whole, and what it does not get. */
import { access } from "node:fs/promises";
import postgres, { type Sql } from "postgres";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { addRoleSql, dropRoleSql, verifierOf } from "../../cli/reader_sql.ts";
import { startLocalStack } from "../support/stack.ts";
import { createBucket, createLab } from "../sync/support/lab.ts";
import type { LocalLab } from "../sync/support/local_lab.ts";
import { hasOdbc, type OdbcAnswer, readCsv, readOdbc, requiresOdbc } from "./support/readers.ts";
import { createMixedBucket, createRegister, hostileNumbers } from "./support/scene.ts";

const isInstalled = await hasOdbc();
const debianPostgres = "/usr/lib/postgresql/15/bin";
const hasDebianPostgres = await access("/usr/share/postgresql/15/extension/pg_cron.control")
  .then(() => true, () => false);
const stacks: readonly [string, readonly string[]][] = [
  ["the embedded Postgres", []],
  ...hasDebianPostgres || requiresOdbc
    ? [["Debian's Postgres with the real pg_cron", ["--postgres", debianPostgres]] as const]
    : [],
].map(([name, args]) => [name as string, args as readonly string[]]);

/** The query of the contract, as the sheets of before have it, and that of the view. */
const oldQuery =
  "select part_number, file_name, signed_url from part_images where signed_url is not null order by part_number";
const query =
  "select part_number, file_name, signed_url, signed_url_expires_at from part_register order by part_number";

const rowsOf = (answer: OdbcAnswer | undefined) => {
  if (answer === undefined || "error" in answer) throw new Error(`Refused: ${answer?.message}`);
  return answer.rows;
};

describe.runIf(isInstalled || requiresOdbc).each(stacks)("on %s", (_, args) => {
  let lab: LocalLab;
  let admin: Sql;
  beforeAll(async () => {
    if (!isInstalled) {
      throw new Error("Cannot read over ODBC: install Debian's unixodbc, odbc-postgresql and python3-pyodbc");
    }
    const stack = await startLocalStack(args);
    lab = { ...createLab({ ...stack, stack }), stack };
    admin = postgres(stack.adminDbUrl, { max: 1, onnotice: () => {} });
    // As the real extension does it.
    await admin`grant usage on schema net to public`;
    await admin`grant all on all tables in schema net to public`;
  });
  afterAll(async () => {
    await admin?.end();
    await lab?.close();
  });

  const addRole = async (bucket: string, name = `reader-${crypto.randomUUID().slice(0, 8)}`) => {
    const found = await lab.sql.unsafe(addRoleSql({ name, bucket, verifier: verifierOf("secret") })).simple();
    return { name, reachable: found.at(-1) as unknown as { object: string; owner: string }[] };
  };
  const ask = (role: string, ...queries: string[]) => readOdbc({ dbUrl: lab.stack.dbUrl, role, queries });

  test("4,000 rows with URLs of 400 characters and names of every kind arrive whole", async () => {
    const numbers = [
      ...hostileNumbers,
      ...Array.from({ length: 4000 - hostileNumbers.length }, (_, n) => `Nr ${n}`),
    ];
    const bucket = await createRegister(lab, numbers);
    const { name } = await addRole(bucket);
    const [view, table] = await ask(name, query, oldQuery);
    const expected = await lab.sql`
      select part_number, file_name, signed_url from public.part_images where bucket_id = ${bucket}`;
    const sorted = (rows: readonly (readonly (string | null)[])[]) =>
      rows.map((row) => JSON.stringify(row.slice(0, 3))).toSorted();
    expect(rowsOf(view)).toHaveLength(4000);
    expect(new Set(rowsOf(view).map(([, , url]) => url?.length))).toEqual(new Set([400]));
    expect(sorted(rowsOf(view))).toEqual(sorted(expected.map((row) => Object.values(row))));
    expect(sorted(rowsOf(table))).toEqual(sorted(rowsOf(view)));
    const wanted = numbers.filter((_, place) => place % 4 === 0);
    const found = new Map(rowsOf(view).map(([part, , url]) => [part, url]));
    for (const row of expected) {
      if (wanted.includes(row["part_number"])) expect(found.get(row["part_number"])).toBe(row["signed_url"]);
    }
  }, 60_000);

  test("what it shows is what register.csv shows, and each URL opens its image", async () => {
    const { bucket, shown } = await createMixedBucket(lab);
    await createMixedBucket(lab);
    const { name } = await addRole(bucket);
    const [answer] = await ask(name, query);
    const rows = rowsOf(answer);
    expect(rows.map(([, file]) => file).toSorted()).toEqual([...shown].toSorted());
    for (const [, , url] of rows) expect((await fetch(url ?? "")).status).toBe(200);
    const response = await fetch(`${lab.stack.url}/functions/v1/image-sync/register.csv?bucket=${bucket}`, {
      headers: { apikey: lab.stack.secretKey },
    });
    const [, ...csv] = await readCsv(new Uint8Array(await response.arrayBuffer()));
    expect(csv.map((row) => row.slice(0, 3)).toSorted()).toEqual(
      rows.map((row) => row.slice(0, 3)).toSorted(),
    );
  }, 60_000);

  test("a second bucket changes nothing, and each role sees its own", async () => {
    const [one, other] = [await createRegister(lab, ["one"]), await createRegister(lab, ["other"])];
    const roles = [await addRole(one), await addRole(other)];
    const seen = await Promise.all(roles.map(({ name }) => ask(name, query, oldQuery)));
    expect(seen.map((answers) => answers.map((answer) => rowsOf(answer).map(([part]) => part)))).toEqual([
      [["one"], ["one"]],
      [["other"], ["other"]],
    ]);
  });

  test("of all that the catalogue holds a role can use the register and what is open to everybody alone", async () => {
    const { name, reachable } = await addRole(await createBucket(lab));
    expect(reachable.map(({ object, owner }) => [object, owner])).toEqual([
      ["net._http_response", "supabase_admin"],
      ["net.http_request_queue", "supabase_admin"],
    ]);
    const rights = await admin<{ object: string; columns: string[] | null; rights: string[] }[]>`
      select
        format('%I.%I', n.nspname, c.relname) as object,
        array(
          select a.attname::text from pg_attribute a
          where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped and has_column_privilege(${name}, c.oid, a.attnum, 'select')
          order by 1
        ) as columns,
        array(
          select p from unnest('{insert,update,delete,truncate,references,trigger}'::text[]) as p
          where has_table_privilege(${name}, c.oid, p) or has_any_column_privilege(${name}, c.oid, case when p in ('insert', 'update', 'references') then p else 'update' end)
        ) as rights
      from pg_class c join pg_namespace n on n.oid = c.relnamespace
      where n.nspname !~ '^(pg_|information_schema$)' and n.nspname <> 'net'
        and c.relkind in ('r', 'p', 'v', 'm', 'f')
        and has_schema_privilege(${name}, n.oid, 'usage')
        and has_any_column_privilege(${name}, c.oid, 'select,insert,update,references')
      order by 1`;
    const contract = ["file_name", "part_number", "signed_url", "signed_url_expires_at"];
    expect([...rights]).toEqual([
      { object: "public.part_images", columns: contract, rights: [] },
      { object: "public.part_register", columns: contract, rights: [] },
    ]);
    const [schemas] = await admin`
      select
        array(select n.nspname::text from pg_namespace n where n.nspname !~ '^pg_' and has_schema_privilege(${name}, n.oid, 'usage') order by 1) as usage,
        array(select n.nspname::text from pg_namespace n where has_schema_privilege(${name}, n.oid, 'create') and n.nspname !~ '^pg_') as creates,
        array(select p.oid::regprocedure::text from pg_proc p join pg_namespace n on n.oid = p.pronamespace
          where n.nspname !~ '^(pg_|information_schema$)' and has_schema_privilege(${name}, n.oid, 'usage') and has_function_privilege(${name}, p.oid, 'execute')) as functions,
        (select format('%s %s %s %s %s', r.rolsuper, r.rolcreaterole, r.rolcreatedb, r.rolbypassrls, r.rolreplication) from pg_roles r where r.rolname = ${name}) as attributes,
        array(select m.roleid::regrole::text from pg_auth_members m where m.member = ${name}::regrole) as memberships`;
    expect(schemas).toEqual({
      usage: ["information_schema", "net", "public"],
      creates: [],
      functions: [],
      attributes: "f f f f f",
      memberships: [],
    });
  });

  test("a role that tries is refused", async () => {
    const { name } = await addRole(await createRegister(lab, ["1"]));
    const refused = [
      "select * from part_images",
      "select id from part_images",
      "select * from image_sync.readers",
      "select * from image_sync.settings",
      "select * from storage.objects",
      "select * from cron.job",
      "select * from cron.job_run_details",
      "select cron.schedule('x', '* * * * *', 'select 1')",
      "select * from vault.decrypted_secrets",
      "select net.http_post('http://127.0.0.1:1')",
      "select public.image_sync_report('part-images')",
      "select public.image_sync_register('part-images')",
      "update part_images set signed_url = ''",
      "delete from part_images",
      "set role postgres",
      "set role service_role",
      "set session authorization postgres",
      "create table public.mine (id integer)",
      "create schema mine",
      "create role mine",
      "copy (select 1) to program 'id'",
      "select pg_read_file('/etc/passwd')",
    ];
    const answers = await ask(name, ...refused, query);
    expect(rowsOf(answers.at(-1))).toHaveLength(1);
    const allowed = refused.filter((_, place) => !("error" in (answers[place] ?? {})));
    expect(allowed).toEqual([]);
  });

  test("nothing that a role asks of the rows is asked of those that it may not see", async () => {
    await createRegister(lab, ["hidden"]);
    const { name } = await addRole(await createRegister(lab, ["shown"]));
    const reader = postgres(lab.stack.dbUrl.replace("postgres:", `${name}:`), { max: 1, onnotice: () => {} });
    try {
      await reader`set default_transaction_read_only = off`;
      await reader`
        create function pg_temp.peek(part text) returns boolean language plpgsql cost 0.0001
        as $$ begin raise notice '%', part; if part like 'hidden%' then raise exception 'seen: %', part; end if; return true; end $$`;
      expect(await reader`select part_number from part_register where pg_temp.peek(part_number)`).toEqual([
        { part_number: "shown" },
      ]);
      expect(await reader`select part_number from part_images where pg_temp.peek(part_number)`).toEqual([
        { part_number: "shown" },
      ]);
    } finally {
      await reader.end();
    }
  });

  test("a revoked role is gone with its rights, and whoever is connected with it is disconnected", async () => {
    const bucket = await createRegister(lab, ["1"]);
    const { name } = await addRole(bucket);
    const reader = postgres(lab.stack.dbUrl.replace("postgres:", `${name}:`), { max: 1, onnotice: () => {} });
    expect(await reader`select part_number from part_register`).toHaveLength(1);
    await lab.sql.unsafe(dropRoleSql(name)).simple();
    await expect(reader`select part_number from part_register`).rejects.toBeTruthy();
    await reader.end({ timeout: 1 });
    expect(await lab.sql`select from pg_roles where rolname = ${name}`).toEqual([]);
    expect(await lab.sql`select from pg_policies where tablename = 'part_images'and ${name} = any (roles)`)
      .toEqual([]);
    expect(await lab.sql`select from image_sync.readers where name = ${name}`).toEqual([]);
    // The name is free again.
    await addRole(bucket, name);
  });

  test("a role that is no reader's is not dropped, and none is made of a bucket that is not kept in step", async () => {
    await expect(lab.sql.unsafe(dropRoleSql("postgres")).simple()).rejects.toThrow(/it is no reader's/);
    await expect(addRole("no such bucket")).rejects.toThrow(/image_sync\.settings has no row/);
  });

  test("where the table has no row level security the role gets the register alone", async () => {
    const bucket = await createRegister(lab, ["1"]);
    await lab.sql`alter table public.part_images disable row level security`;
    try {
      const { name } = await addRole(bucket);
      const [view, table] = await ask(name, query, oldQuery);
      expect(rowsOf(view)).toHaveLength(1);
      expect(table).toMatchObject({ error: "42501" });
    } finally {
      await lab.sql`alter table public.part_images enable row level security`;
    }
  });

  test("its password is stored as Postgres itself would store it", async () => {
    await admin`create role made_by_postgres password 'Grüße, 1!'`;
    const [row] = await admin<{ rolpassword: string }[]>`
      select rolpassword from pg_authid where rolname = 'made_by_postgres'`;
    const [, iterations, salt] = /^SCRAM-SHA-256\$(\d+):([^$]+)\$/.exec(row?.rolpassword ?? "") ?? [];
    expect(verifierOf("Grüße, 1!", Buffer.from(salt ?? "", "base64"), Number(iterations))).toBe(
      row?.rolpassword,
    );
    const { name } = await addRole(await createBucket(lab));
    const [stored] = await admin<
      { rolpassword: string }[]
    >`select rolpassword from pg_authid where rolname = ${name}`;
    expect(stored?.rolpassword).toMatch(/^SCRAM-SHA-256\$4096:/);
  });
});

test.runIf(!isInstalled && !requiresOdbc)(
  "reading over ODBC needs Debian's unixodbc, odbc-postgresql and python3-pyodbc, which are not installed",
  () => {
    expect(isInstalled).toBe(false);
  },
);
