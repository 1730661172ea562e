/** Into a shop's project with a history of its own, through the real CLI: no step fails, and nothing of the shop's changes. */
import { execFile } from "node:child_process";
import { access, copyFile, mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import process from "node:process";
import { promisify } from "node:util";
import postgres, { type Sql } from "postgres";
import { afterAll, beforeAll, expect, test } from "vitest";
import { runCommand } from "../cli/support/run_command.ts";
import { readOurCatalogue } from "../schema/support/catalogue.ts";
import { type LocalStack, projectDirectory, startLocalStack } from "../support/stack.ts";

let stack: LocalStack;
let sql: Sql;
let directory: string;
let neverHadUs: readonly unknown[] = [];
beforeAll(async () => {
  stack = await startLocalStack(["--no-migrate", "--no-function"]);
  sql = postgres(stack.dbUrl, { max: 1, onnotice: () => {} });
  directory = await mkdtemp(join(tmpdir(), "image-sync-shop-"));
  const files: Record<string, string> = {
    "supabase/config.toml": 'project_id = "shop"\n\n[db]\nmajor_version = 17\n',
    "supabase/functions/checkout/index.ts": "export default { fetch: () => new Response('ok') };\n",
    "supabase/migrations/20250101000000_parts.sql": `
      create table public.parts (number text primary key);
      create table public.part_images (
        id uuid primary key default gen_random_uuid(), part_number text, file_name text, url text, signed_url text,
        created_at timestamp default now());
      insert into public.part_images (part_number, file_name) values ('000001', '000001.jpg');`,
    "supabase/migrations/20250301000000_jobs.sql": `
      select cron.schedule('image-sync-of-the-shop', '5 4 * * *', 'select 1');
      select vault.create_secret('https://shop.example.com', 'project_url');`,
  };
  for (let month = 4; month <= 13; month++) {
    const stamp = `20${month > 12 ? 99 : 25}${String(Math.min(month, 12)).padStart(2, "0")}01000000`;
    files[`supabase/migrations/${stamp}_step_${month}.sql`] = `create table public.step_${month} ();`;
  }
  for (const [path, text] of Object.entries(files)) {
    await mkdir(dirname(join(directory, path)), { recursive: true });
    await writeFile(join(directory, path), text);
  }
}, 120_000);
afterAll(async () => {
  await sql?.end({ timeout: 5 });
  await stack?.stop();
  if (directory !== undefined) await rm(directory, { recursive: true });
});

const supabase = (...args: string[]) => supabaseOf(directory, stack, ...args);

/** The real CLI in a repository, on the database of a stack. */
async function supabaseOf(repository: string, { dbUrl }: LocalStack, ...args: string[]): Promise<string> {
  const path = join(projectDirectory, "node_modules/.bin/supabase");
  const env = { ...process.env, SUPABASE_TELEMETRY_DISABLED: "1", PGSSLMODE: "disable" };
  const run = promisify(execFile)(path, [
    ...args,
    `--remote=${dbUrl}`,
    "--yes",
    `--workdir=${repository}`,
  ], { env });
  const { stdout, stderr } = await run.catch((error) => {
    throw new Error(`${error.message}\n${error.stdout}\n${error.stderr}`);
  });
  return stdout + stderr;
}

const theirs = async () => ({
  tables: await sql`
    select c.relname from pg_catalog.pg_class c
    where c.relnamespace = 'public'::regnamespace and c.relkind = 'r' order by 1`,
  jobs: await sql`select jobname, schedule, command from cron.job where jobname = 'image-sync-of-the-shop'`,
  secrets: await sql`select name from vault.secrets order by 1`,
  rows: await sql`select id, part_number, file_name, created_at from public.part_images`,
});

test("init and one push install it beside the shop's own history, and the shop pushes on", async () => {
  await supabase("db", "push");
  const before = await theirs();
  neverHadUs = await catalogue();
  expect(before.tables).toHaveLength(12);
  expect(await runCommand(["init", "--yes"], { directory })).toMatchObject({ status: 0 });
  await supabase("db", "push");
  expect(await theirs()).toEqual(before);
  expect(await sql`select image_sync.schema_version() as version`).toHaveLength(1);
  expect(await sql`select jobname from cron.job where jobname <> 'image-sync-of-the-shop' order by 1`)
    .toEqual([
      { jobname: "image-sync-housekeeping" },
      { jobname: "image-sync-nightly" },
      { jobname: "image-sync-watchdog" },
    ]);
  // The shop goes on: with a migration of today, which is older than its own one of 2099.
  await writeFile(
    join(directory, "supabase/migrations/20261201000000_today.sql"),
    "create table public.today ();",
  );
  await supabase("db", "push", "--include-all");
  expect(await supabase("db", "push")).toMatch(/up to date/i);
  expect(await sql`select to_regclass('public.today') is not null as is_there`).toEqual([{ is_there: true }]);
}, 240_000);

const catalogue = () =>
  sql`
    select 'schema ' || n.nspname as thing from pg_catalog.pg_namespace n where n.nspname !~ '^pg_'
    union all select 'function ' || p.oid::regprocedure from pg_catalog.pg_proc p where p.pronamespace = 'public'::regnamespace
    union all select 'table ' || c.oid::regclass from pg_catalog.pg_class c where c.relnamespace = 'public'::regnamespace and c.relkind = 'r'
    union all select 'job ' || j.jobname from cron.job j
    union all select 'secret ' || s.name from vault.secrets s
    order by 1`;

test("a repository that installed the first release goes on to this one with one push", async () => {
  const other = await startLocalStack(["--no-migrate", "--no-function"]);
  const otherSql = postgres(other.dbUrl, { max: 1, onnotice: () => {} });
  const fresh = await startLocalStack(["--no-function"]);
  const freshSql = postgres(fresh.dbUrl, { max: 1, onnotice: () => {} });
  const shop = await mkdtemp(join(tmpdir(), "image-sync-shop-"));
  try {
    await mkdir(join(shop, "supabase"));
    await writeFile(join(shop, "supabase/config.toml"), 'project_id = "shop"\n');
    expect(await runCommand(["init", "--yes"], { directory: shop })).toMatchObject({ status: 0 });
    const manifestPath = join(shop, "supabase/functions/image-sync/image-sync.json");
    const manifest = JSON.parse(await readFile(manifestPath, "utf8"));
    const [first] = JSON.parse(
      await readFile(join(projectDirectory, "tests/schema/fixtures/releases/releases.json"), "utf8"),
    );
    await writeFile(manifestPath, JSON.stringify({ ...manifest, version: first.version }));
    await copyFile(
      join(projectDirectory, "tests/schema/fixtures/releases", `${first.version}.sql`),
      join(shop, "supabase", manifest.migration),
    );
    await supabaseOf(shop, other, "db", "push");
    expect(await otherSql`select image_sync.schema_version() as version`).toEqual([{
      version: first.version,
    }]);
    await otherSql`insert into public.part_images (file_name, part_number) values ('1.jpg', '1')`;
    expect(await runCommand(["upgrade", "--yes"], { directory: shop })).toMatchObject({ status: 0 });
    await supabaseOf(shop, other, "db", "push");
    expect(await otherSql`select file_name from public.part_images`).toEqual([{ file_name: "1.jpg" }]);
    expect(await readOurCatalogue(otherSql)).toEqual(await readOurCatalogue(freshSql));
  } finally {
    await Promise.all([otherSql, freshSql].map((each) => each.end({ timeout: 5 })));
    await Promise.all([other, fresh].map((each) => each.stop()));
    await rm(shop, { recursive: true });
  }
}, 240_000);

test("the way back leaves the project as it was, and the table with its rows", async () => {
  const before = await theirs();
  expect(await runCommand(["uninstall", "--yes"], { directory })).toMatchObject({ status: 0 });
  await supabase("db", "push");
  const rows = await theirs();
  expect(rows).toEqual(before);
  const left = await catalogue();
  expect(left.filter((row) => JSON.stringify(row) !== '{"thing":"table today"}')).toEqual(neverHadUs);
  expect(await readFile(join(directory, "supabase/config.toml"), "utf8")).toBe(
    'project_id = "shop"\n\n[db]\nmajor_version = 17\n',
  );
  await expect(access(join(directory, "supabase/functions/image-sync/index.ts"))).rejects.toThrow("ENOENT");
  expect(await runCommand(["uninstall", "--yes"], { directory })).toMatchObject({ status: 2 });
  // And in again.
  expect(await runCommand(["init", "--yes"], { directory })).toMatchObject({ status: 0 });
  await supabase("db", "push");
  expect(await sql`select to_regclass('image_sync.runs') is not null as is_there`).toEqual([{
    is_there: true,
  }]);
}, 240_000);
