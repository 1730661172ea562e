/** Adoption tried in one transaction each, so that a hundred tables can go through the migrations on one stack. */
import postgres, { type Sql, type TransactionSql } from "postgres";
import { expect } from "vitest";
import { migrationOf, readSchema } from "../../../cli/project/schema.ts";
import { VERSION } from "../../../supabase/functions/image-sync/version.ts";
import { startLocalStack } from "../../support/stack.ts";

/** A database without our schema, as role postgres. */
export type EmptyDatabase = { readonly sql: Sql; close(): Promise<void> };

export async function openEmptyDatabase(): Promise<EmptyDatabase> {
  const stack = await startLocalStack(["--no-migrate", "--no-function"]);
  const sql = postgres(stack.dbUrl, { max: 2, onnotice: () => {} });
  return {
    sql,
    close: async () => {
      await sql.end({ timeout: 1 });
      await stack.stop();
    },
  };
}

const schema = await readSchema();
const migration = migrationOf(schema, { from: null, to: VERSION });

/** The SQL of a noun of the schema. */
export function readNoun(noun: string): string {
  const parts = schema.filter(({ file }) => file.replace(/^\d+_|\.sql$/g, "") === noun);
  if (parts.length === 0) throw new Error(`Cannot read the noun ${noun}: there is none`);
  return parts.map(({ text }) => text).join("\n\n");
}

/** Installs the schema as one migration; `change` may break something in it. */
export async function applyMigration(
  tx: TransactionSql,
  change: (text: string) => string = (text) => text,
): Promise<void> {
  await tx.unsafe(change(migration)).simple();
}

/** Runs `act` on a database that has been through `before`, and undoes everything. */
export async function inTransaction(
  sql: Sql,
  before: string,
  act: (tx: TransactionSql) => Promise<void>,
): Promise<void> {
  const undone = new Error("undone");
  await sql.begin(async (tx) => {
    await tx.unsafe(before).simple();
    await act(tx);
    throw undone;
  }).catch((error: unknown) => {
    if (error !== undone) throw error;
  });
}

/** What a refusal says: all of it is in the message, which is what the CLI prints. */
export type Refusal = { readonly code: string; readonly message: string };

/** Applies the migration and expects it to refuse; the database is as before then. */
export async function expectRefusal(tx: TransactionSql): Promise<Refusal> {
  const before = await readCatalogue(tx);
  const error: unknown = await tx.savepoint((inner) => inner.unsafe(migration).simple())
    .then(() => null, (reason: unknown) => reason);
  expect(await readCatalogue(tx)).toEqual(before);
  if (!(error instanceof postgres.PostgresError)) throw new Error(`Expected a refusal, got ${String(error)}`);
  expect([error.message, error.hint]).toEqual([
    expect.stringMatching(/^Cannot (adopt public\.part_images|install image-sync): .+\n.+/),
    "Nothing has been changed: run the migration again afterwards.",
  ]);
  return { code: error.code, message: error.message };
}

/** The statements of a refusal: what follows a colon in its second line, to the last semicolon. */
export function statementOf(message: string): string {
  const statement = /\n.*?: ((?:alter|create|select|grant|drop) .*;)/s.exec(message)?.[1];
  if (statement === undefined) throw new Error(`Cannot find a statement in: ${message}`);
  return statement;
}

/** Everything that a migration could leave behind, rows of the user's tables included. Where there is no relation cron.job, there is no job. */
export async function readCatalogue(tx: Sql | TransactionSql): Promise<unknown> {
  const [catalogue] = await tx.unsafe(`
    select
      (select jsonb_agg(n.nspname order by 1) from pg_namespace n where n.nspname !~ '^pg_(toast_)?temp|^supabase_migrations') as schemas,
      (select jsonb_agg(e.extname order by 1) from pg_extension e) as extensions,
      (select jsonb_agg(format('%s %s %s %s', c.oid, c.oid::regclass, c.relkind, c.relacl) order by c.oid) from pg_class c
        where c.relnamespace::regnamespace::text !~ '^pg_|^supabase_migrations') as relations,
      (select jsonb_agg(format('%s %s %s %s %s %s', a.attrelid, a.attname, a.atttypid::regtype, a.atttypmod, a.attnotnull, pg_get_expr(d.adbin, d.adrelid)) order by a.attrelid, a.attnum)
        from pg_attribute a join pg_class c on c.oid = a.attrelid left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
        where c.relnamespace::regnamespace::text !~ '^pg_|^supabase_migrations') as columns,
      (select jsonb_agg(p.oid::regprocedure::text order by p.oid) from pg_proc p where p.pronamespace::regnamespace::text !~ '^pg_c') as functions,
      (select jsonb_agg(format('%s %s', c.conname, pg_get_constraintdef(c.oid)) order by c.oid) from pg_constraint c where c.connamespace::regnamespace::text !~ '^supabase_migrations') as constraints,
      (select jsonb_agg(format('%s %s', t.oid, t.tgname) order by t.oid) from pg_trigger t) as triggers,
      (select jsonb_agg(query_to_xml(format('select * from %s as t order by t::text', c.oid::regclass), true, false, '')::text order by c.oid) from pg_class c
        where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p')) as rows`);
  return catalogue;
}
