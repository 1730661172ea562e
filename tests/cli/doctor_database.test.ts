/** `doctor` with a database URL: whatever differs from what was installed is named, object by object, and the SQL that it writes mends it. */
import { execFile } from "node:child_process";
import { access, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { promisify } from "node:util";
import postgres, { type Sql, type TransactionSql } from "postgres";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { z } from "zod";
import {
  compareCatalogues,
  type Drift,
  mendingSql,
  readCatalogue,
  readExpected,
} from "../../cli/catalogue/catalogue.ts";
import { denoPath, type LocalStack, projectDirectory, startLocalStack } from "../support/stack.ts";
import { runCommand } from "./support/run_command.ts";

const run = promisify(execFile);
const linkSchema = z.object({
  looked_at: z.string(),
  state: z.string(),
  found: z.string(),
  remedy: z.string().nullable(),
  drift: z.array(z.object({ kind: z.string(), name: z.string(), state: z.string() })).optional(),
});
const documentSchema = z.object({ links: z.array(linkSchema) });

let stack: LocalStack;
let sql: Sql;
let directory: string;
beforeAll(async () => {
  stack = await startLocalStack();
  sql = postgres(stack.dbUrl, { max: 1, onnotice: () => {} });
  directory = await mkdtemp(join(tmpdir(), "image-sync-doctor-"));
}, 90_000);
afterAll(async () => {
  await sql?.end({ timeout: 5 });
  await stack?.stop();
  if (directory !== undefined) await rm(directory, { recursive: true });
});

function doctor(args: readonly string[], env: Record<string, string> = {}) {
  return runCommand(["doctor", ...args], {
    directory,
    env: {
      SUPABASE_URL: stack.url,
      SUPABASE_SECRET_KEY: stack.secretKey,
      SUPABASE_DB_URL: stack.dbUrl,
      ...env,
    },
  });
}

/** The links `database` and `catalogue`. */
async function examine(args: readonly string[] = [], env: Record<string, string> = {}) {
  const { stdout } = await doctor(["--json", ...args], env);
  const { links } = documentSchema.parse(JSON.parse(stdout));
  return Object.fromEntries(links.map((link) => [link.looked_at, link]));
}

const driftOf = async () =>
  ((await examine())["catalogue"]?.drift ?? []).map(({ kind, name, state }) => [kind, name, state].join(" "));

/** Pastes the remedy: the project's CLI runs the file. */
async function mend(): Promise<void> {
  const { stdout } = await doctor(["--sql", "mend.sql"]);
  expect(stdout).toContain("Run: npx supabase db query --remote --file mend.sql");
  await run(join(projectDirectory, "node_modules/.bin/supabase"), [
    "db",
    "query",
    `--remote=${stack.dbUrl}`,
    "--yes",
    "--file",
    join(directory, "mend.sql"),
  ], { cwd: directory, env: { ...process.env, SUPABASE_TELEMETRY_DISABLED: "1", PGSSLMODE: "disable" } });
}

test("of a project that was just installed everything is as it was installed", async () => {
  const { database, catalogue } = await examine();
  expect(database).toMatchObject({
    state: "fine",
    found: expect.stringMatching(/^127\.0\.0\.1:\d+ can be read$/),
  });
  expect(catalogue).toMatchObject({ state: "fine", remedy: null });
  const { stdout } = await doctor([]);
  expect(stdout).toContain("✔ catalogue: ");
  expect(stdout).not.toContain("postgres:postgres");
});

/** A fault: the object is made anew from what the server prints of it, with other words in one place. */
function edited(name: string, printedBy: string, words: string, others: string): string {
  const [kind, head] = printedBy === "pg_get_viewdef"
    ? ["regclass", `'create or replace view ${name} with (security_invoker = on) as ' || `]
    : ["regprocedure", ""];
  return `do $edit$
    declare
      v_text text := ${printedBy}('${name}'::${kind});
    begin
      if strpos(v_text, $w$${words}$w$) = 0 then raise exception 'there is no ${name} of these words'; end if;
      execute ${head}replace(v_text, $w$${words}$w$, $w$${others}$w$);
    end $edit$`;
}
const editedView = (name: string, words: string, others: string) =>
  edited(name, "pg_get_viewdef", words, others);

// Each fault, and all that differs then.
const faults: readonly (readonly [what: string, fault: string, names: readonly string[]])[] = [
  [
    "a function that was edited by hand",
    "create or replace function image_sync.watchdog() returns void language plpgsql set search_path = '' as 'begin null; end;'",
    ["function image_sync.watchdog() changed"],
  ],
  [
    "a function that runs with other rights",
    "alter function image_sync.schedule_facts() security invoker",
    ["function image_sync.schedule_facts() changed"],
  ],
  [
    "a function whose names can be redirected",
    "alter function image_sync.next_time(text, timestamptz) reset search_path",
    ["function image_sync.next_time(text,timestamp with time zone) changed"],
  ],
  [
    "a function in standard SQL that answers something else",
    "create or replace function image_sync.redact(p_words text) returns text language sql immutable set search_path = '' return p_words",
    ["function image_sync.redact(text) changed"],
  ],
  [
    "a function that takes something else where it is given nothing",
    edited(
      "public.image_sync_register_tag(text, text, integer)",
      "pg_get_functiondef",
      "DEFAULT 20000",
      "DEFAULT 20001",
    ),
    ["function public.image_sync_register_tag(text,text,integer) changed"],
  ],
  ["a function that is gone", "drop function public.image_sync_cancel(uuid)", [
    "function public.image_sync_cancel(uuid) missing",
  ]],
  [
    "a second function of the same name",
    "create function public.image_sync_cancel(p_run text) returns jsonb language sql as 'select null::jsonb'",
    [
      "function public.image_sync_cancel(text) unexpected",
    ],
  ],
  ["a grant that is missing", "revoke insert on image_sync.runs from service_role", [
    "grant insert on table image_sync.runs to service_role missing",
  ]],
  [
    "a function that service_role may not call",
    "revoke execute on function public.image_sync_report(text) from service_role",
    ["grant execute on function public.image_sync_report(text) to service_role missing"],
  ],
  [
    "a right of everybody's",
    "grant select on image_sync.archive to anon; grant execute on function public.image_sync_report(text) to public",
    [
      "grant execute on function public.image_sync_report(text) to public unexpected",
      "grant select on table image_sync.archive to anon unexpected",
    ],
  ],
  ["an index that is missing", "drop index image_sync.runs_open_key", [
    "index image_sync.runs_open_key missing",
  ]],
  ["an index of the register", "drop index public.part_images_object_idx", [
    "index public.part_images_object_idx missing",
  ]],
  [
    "a constraint that is missing",
    "alter table image_sync.settings drop constraint settings_chunk_size_check",
    [
      "constraint image_sync.settings.settings_chunk_size_check missing",
    ],
  ],
  [
    "a constraint that allows something else",
    "alter table image_sync.settings drop constraint settings_max_attempts_check, add constraint settings_max_attempts_check check (max_attempts > 0)",
    ["constraint image_sync.settings.settings_max_attempts_check changed"],
  ],
  [
    "a constraint of the same words, taken together otherwise",
    `alter table image_sync.chunks drop constraint chunks_lease_check, add constraint chunks_lease_check
      check ((state <> 'leased' or lease_token is not null) and lease_expires_at is not null) not valid;
    alter table image_sync.chunks validate constraint chunks_lease_check`,
    ["constraint image_sync.chunks.chunks_lease_check changed"],
  ],
  [
    "a constraint that was not asked of the rows that are there",
    "alter table image_sync.runs drop constraint runs_chunk_size_check, add constraint runs_chunk_size_check check (chunk_size > 0) not valid",
    ["constraint image_sync.runs.runs_chunk_size_check changed"],
  ],
  [
    "a constraint of another's",
    "alter table image_sync.archive add constraint mine check (file_name <> 'x')",
    ["constraint image_sync.archive.mine unexpected"],
  ],
  [
    "a reference that keeps what it should delete",
    "alter table image_sync.chunks drop constraint chunks_run_id_fkey, add constraint chunks_run_id_fkey foreign key (run_id) references image_sync.runs (id)",
    ["constraint image_sync.chunks.chunks_run_id_fkey changed"],
  ],
  [
    "a key of other columns",
    "alter table image_sync.chunks drop constraint chunks_run_id_from_key_key, add constraint chunks_run_id_from_key_key unique (run_id, from_key)",
    ["constraint image_sync.chunks.chunks_run_id_from_key_key changed"],
  ],
  [
    "an index of other rows",
    "drop index image_sync.runs_open_key; create unique index runs_open_key on image_sync.runs (bucket_id, mode) where finished_at is not null and false",
    ["index image_sync.runs_open_key changed"],
  ],
  [
    "an index in another order",
    "drop index image_sync.archive_run_id_file_name_idx; create index archive_run_id_file_name_idx on image_sync.archive (run_id, file_name)",
    ["index image_sync.archive_run_id_file_name_idx changed"],
  ],
  [
    "an index of another expression",
    "drop index public.part_images_twins_idx; create index part_images_twins_idx on public.part_images ((bucket_id || '/' || lower(part_number)) collate \"C\") include (part_number, bucket_id)",
    ["index public.part_images_twins_idx changed"],
  ],
  [
    "a default that is another function's",
    "alter table image_sync.archive alter column archived_at set default clock_timestamp()",
    ["default image_sync.archive.archived_at changed"],
  ],
  [
    "a column that makes its values no more",
    "alter table image_sync.archive alter column id drop identity",
    ["column image_sync.archive.id changed"],
  ],
  ["a column that is missing", "alter table image_sync.settings drop column verify_rate cascade", [
    "column image_sync.settings.verify_rate missing",
    "constraint image_sync.settings.settings_verify_rate_check missing",
  ]],
  [
    "a column with another default that may be null",
    "alter table image_sync.settings alter column probe_size drop not null, alter column probe_size set default 0",
    ["default image_sync.settings.probe_size changed"],
  ],
  [
    "a column that may be null, or must not be from now on",
    `alter table image_sync.settings alter column retry_delay drop not null;
    do $since$ begin
      if current_setting('server_version_num')::integer >= 180000 then
        execute 'alter table image_sync.settings add constraint later not null retry_delay not valid';
      end if;
    end $since$`,
    ["default image_sync.settings.retry_delay changed"],
  ],
  ["a table that everybody's rights reach", "alter table image_sync.runs disable row level security", [
    "table image_sync.runs changed",
  ]],
  [
    "a trigger on one of our tables",
    "create function public.nosy() returns trigger language plpgsql as 'begin return new; end;'; create trigger nosy before update on image_sync.runs for each row execute function public.nosy()",
    ["trigger image_sync.runs.nosy unexpected"],
  ],
  ["a view that is gone", "drop view image_sync.records cascade", [
    "view image_sync.records missing",
  ]],
  [
    "a view of other values",
    editedView("image_sync.records", "43, 64", "43, 65"),
    ["view image_sync.records changed"],
  ],
  [
    "a view of the same words, of which one belongs to another table",
    editedView("public.part_register", "s.bucket_id = p.bucket_id", "s.bucket_id = s.bucket_id"),
    ["view public.part_register changed"],
  ],
  [
    "a view that shows one row of many",
    editedView(
      "public.part_register",
      "DISTINCT ON (p.bucket_id, k.look_up_key)",
      "DISTINCT ON (p.bucket_id)",
    ),
    ["view public.part_register changed"],
  ],
  [
    "a view of the files that shows what was deleted",
    editedView("image_sync.objects", "o.is_deleted IS NOT TRUE", "o.is_deleted IS NOT NULL"),
    ["view image_sync.objects changed"],
  ],
  [
    "a view that reads with its owner's rights",
    "alter view image_sync.objects reset (security_invoker)",
    ["view image_sync.objects changed"],
  ],
  [
    "a view with a column of another name",
    "alter view image_sync.records rename column file_name to name",
    ["view image_sync.records changed"],
  ],
  ["a job that is gone", "select cron.unschedule('image-sync-watchdog')", [
    "job select image_sync.watchdog() missing",
  ]],
  [
    "a job that does something else",
    "select cron.schedule('image-sync-nightly', '0 2 * * *', 'select 1')",
    ["job select image_sync.run_nightly() missing"],
  ],
];

/** Everything that is done in it is undone. */
async function inTransactionOf(url: string, act: (tx: TransactionSql) => Promise<void>): Promise<void> {
  const undone = new Error("undone");
  const connection = postgres(url, { max: 1, onnotice: () => {} });
  try {
    await connection.begin(async (tx) => {
      await tx.unsafe("set local search_path = ''");
      await act(tx);
      throw undone;
    });
  } catch (error) {
    if (error !== undone) throw error;
  } finally {
    await connection.end({ timeout: 5 });
  }
}

async function differences(tx: TransactionSql): Promise<Drift[]> {
  const query = (text: string) => tx.unsafe(text);
  return await compareCatalogues(await readExpected(), await readCatalogue(query), query);
}

/** The faults on one connection, what differs then, and whether the SQL between the two mends it. Everything is undone. */
async function inflict(
  fault: string,
  afterwards: (tx: TransactionSql) => Promise<void> = () => Promise.resolve(),
): Promise<{ drift: string[]; left: unknown[] }> {
  const found: { drift: string[]; left: unknown[] } = { drift: [], left: [] };
  await inTransactionOf(stack.dbUrl, async (tx) => {
    await tx.unsafe(fault).simple();
    const drift = await differences(tx);
    found.drift = drift.map(({ kind, name, state }) => `${kind} ${name} ${state}`);
    await tx.unsafe(await mendingSql(drift));
    found.left = await differences(tx);
    await afterwards(tx);
  });
  return found;
}

describe("named, and mended by the SQL that is written, is", () => {
  test.each(faults)("%s", async (_what, fault, names) => {
    const { drift, left } = await inflict(fault);
    expect(drift.filter((name) => !/^function .* missing$/.test(name) || names.includes(name))).toEqual(
      names,
    );
    expect(left).toEqual([]);
  });

  test("a type with all that hangs on it, and the right to the schema", async () => {
    const { drift, left } = await inflict(`
      drop table image_sync.moves cascade;
      drop type image_sync.look cascade;
      revoke usage on schema image_sync from service_role`);
    expect(drift).toEqual(expect.arrayContaining([
      "table image_sync.moves missing",
      "type image_sync.look missing",
      "grant usage on schema image_sync to service_role missing",
    ]));
    expect(left).toEqual([]);
  });
});

test("a register with other columns is mended, and who may read it may go on", async () => {
  const { drift, left } = await inflict(
    "create role office_of_shop nologin; grant select on public.part_register to office_of_shop; " +
      "alter view public.part_register rename column file_name to name",
    async (tx) => {
      expect(
        await tx`select has_table_privilege('office_of_shop', 'public.part_register', 'select') as reads`,
      )
        .toEqual([{ reads: true }]);
    },
  );
  expect(drift).toEqual(["view public.part_register changed"]);
  expect(left).toEqual([]);
});

test("where Storage has not got all of its columns the views are what they should be, and when it has they are made anew", async () => {
  const columns = "is_delete_marker archived_at is_versioned".split(" ");
  await inTransactionOf(stack.adminDbUrl, async (tx) => {
    for (const column of columns) {
      await tx.unsafe(`alter table storage.objects drop column if exists ${column} cascade`);
    }
    await tx`select image_sync.refresh_objects_view()`;
    await tx`select image_sync.make_register()`;
    await tx`grant select on image_sync.objects, public.part_register to service_role`;
    expect(await differences(tx)).toEqual([]);
    await tx`alter table storage.objects add column is_delete_marker boolean, add column archived_at timestamptz`;
    expect((await differences(tx)).map(({ name, state }) => `${name} ${state}`)).toEqual([
      "image_sync.objects changed",
      "public.part_register changed",
    ]);
    await tx.unsafe(await mendingSql(await differences(tx)));
    expect(await differences(tx)).toEqual([]);
  });
});

// Each release of Postgres prints in its own way; this way is none's.
test("how a server prints an expression or a view is no drift", async () => {
  const expected = await readExpected();
  const respelled = (query: string) =>
    query.replaceAll(
      /('(?:[^']|'')*'|"[^"]*")(?:::text(?!\[))?|([^'"]+)/g,
      (_match, literal: string | undefined, code: string | undefined) =>
        literal ?? (code ?? "").toLowerCase().replaceAll(/\s+/g, " ").replaceAll(") as ", ") ")
          .replaceAll(/([\w.]+) (?=>=|<>|>|~)/g, "(($1)) "),
    );
  const objects = expected.objects.map((object) =>
    object.query === null ? object : { ...object, query: respelled(object.query) }
  );
  expect(objects.filter(({ query }, place) => query !== expected.objects[place]?.query).length)
    .toBeGreaterThan(40);
  await inTransactionOf(stack.dbUrl, async (tx) => {
    const query = (text: string) => tx.unsafe(text);
    const found = await readCatalogue(query);
    expect(await compareCatalogues({ ...expected, objects }, found, query)).toEqual([]);
  });
});

test("all of that at once is mended by one file, which the project's own CLI takes", async () => {
  // One of each object.
  const objects = faults.map(([, , names]) => names.join(" ").replace(/ \w+$/, ""));
  const some = faults.filter((_fault, place) => objects.indexOf(objects[place] ?? "") === place);
  for (const [, fault] of some) await sql.unsafe(fault).simple();
  expect(await driftOf()).toEqual(expect.arrayContaining(some.flatMap(([, , names]) => names)));
  await mend();
  expect(await driftOf()).toEqual([]);
  expect((await doctor([])).stdout).toMatch(/✔ catalogue/);
}, 60_000);

describe("what its owner may do with the project is no drift", () => {
  test("columns, grants, indexes, policies and triggers of the register, another time for the night, a role of one's own", async () => {
    await sql.unsafe(`
      create role reader_of_shop nologin;
      grant select on public.part_images, image_sync.runs to reader_of_shop;
      grant usage on schema image_sync to reader_of_shop;
      alter table public.part_images add column price numeric default 0;
      create index part_images_price_idx on public.part_images (price);
      create policy everybody on public.part_images for select to anon using (true);
      create policy readers on image_sync.runs for select to reader_of_shop using (true);
      select cron.unschedule('image-sync-nightly');
      select cron.schedule('image-sync-at-three', '0 3 * * *', 'select image_sync.run_nightly()');
      create function image_sync.shops_own() returns integer language sql as 'select 1';
      revoke all on function image_sync.shops_own() from public`).simple();
    expect(await driftOf()).toEqual([]);
  });
});

test("a database that is told of by another project's function is named", async () => {
  await sql`update image_sync.project set url = 'https://abcdefghijklmnopqrst.supabase.co'`;
  const { database } = await examine();
  expect(database).toMatchObject({ state: "broken", found: expect.stringContaining("abcdefghijklmnopqrst") });
  // Whoever asks for a run has the function announce itself again.
  await sql`delete from image_sync.project`;
});

test.each([
  ["of a wrong form", "http://127.0.0.1:1/postgres", /not of the form postgresql:/],
  ["where nobody answers", "postgresql://postgres:secret@127.0.0.1:1/postgres", /the connection was refused/],
])("a database URL %s is said, without its password, and the rest is looked at", async (_what, url, says) => {
  const { stdout } = await doctor(["--json", "--db-url", url]);
  const { links } = documentSchema.parse(JSON.parse(stdout));
  const states = Object.fromEntries(links.map(({ looked_at, state }) => [looked_at, state]));
  expect(links.find(({ looked_at }) => looked_at === "database")?.found).toMatch(says);
  expect(states).toMatchObject({ function: "fine", database: "broken", catalogue: "unknown" });
  expect(stdout).not.toContain("secret@");
});

test("SQL is not written where nothing was looked at, or nothing differs", async () => {
  expect(await doctor(["--sql", "nothing.sql"], { SUPABASE_DB_URL: "" })).toMatchObject({
    status: 2,
    stderr: expect.stringContaining("--db-url"),
  });
  await doctor(["--sql", "nothing.sql"]);
  await expect(access(join(directory, "nothing.sql"))).rejects.toThrow("ENOENT");
});

test("a database without the schema gets the way in", async () => {
  const empty = await startLocalStack(["--no-migrate", "--no-function"]);
  try {
    expect((await examine(["--db-url", empty.dbUrl]))["catalogue"]).toMatchObject({
      state: "broken",
      remedy: "Run: npx image-sync init\nRun: npx supabase db push --remote",
    });
  } finally {
    await empty.stop();
  }
});

test("the expectation is what the migrations make", async () => {
  await expect(run(denoPath, ["run", "-A", "local/catalogue.ts", "--check"], { cwd: projectDirectory }))
    .resolves
    .toMatchObject({ stderr: "" });
}, 60_000);
