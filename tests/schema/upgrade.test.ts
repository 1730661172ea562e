/** What a project has that has used a release of 1.x for a while, and what it has once it went on to this version. */
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import type { Row, TransactionSql } from "postgres";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { migrationOf, readSchema } from "../../cli/project/schema.ts";
import { VERSION } from "../../supabase/functions/image-sync/version.ts";
import { projectDirectory } from "../support/stack.ts";
import { type EmptyDatabase, inTransaction, openEmptyDatabase } from "./support/adoption.ts";
import { readOurCatalogue } from "./support/catalogue.ts";

const released = (version: string) =>
  readFile(join(projectDirectory, `tests/schema/fixtures/releases/${version}.sql`), "utf8");
const schema = await readSchema();
const ADDRESS = "https://files.example.com/storage/v1/object/sign/part-images/";
const TABLES = [
  "public.part_images",
  ...["settings", "project", "runs", "archive"].map((name) => `image_sync.${name}`),
];

// The shop's own table, with a column, a trigger, a policy and a grant of its own, and a file that has two rows.
const OF_THE_SHOP = `
  create role office;
  grant office to current_user;
  create table public.part_images (
    id uuid primary key default gen_random_uuid(), part_number text, file_name text, url text, signed_url text,
    created_at timestamp default now(), note text
  );
  alter table public.part_images enable row level security;
  create policy of_the_shop on public.part_images for select to office using (true);
  grant select on public.part_images to office;
  create function public.of_the_shop() returns trigger language plpgsql as $$ begin new.note := coalesce(new.note, 'new'); return new; end; $$;
  create trigger of_the_shop before insert on public.part_images for each row execute function public.of_the_shop();
  insert into public.part_images (part_number, file_name, note, created_at) values
    ('000001', '000001.jpg', 'of old', '2024-02-29'), ('000001', '000001.jpg', 'twice', '2024-03-01'), ('000002', '000002.jpg', 'of old', '2024-02-29'),
    ('gone', 'gone.jpg', 'file is lost', '2024-02-29');
  insert into storage.buckets (id, name) values ('part-images', 'part-images'), ('second', 'second') on conflict do nothing;
  insert into storage.objects (bucket_id, name, metadata)
  select 'part-images', lpad(n::text, 6, '0') || '.jpg', '{"size": 1}' from generate_series(1, 20) as n;`;

// Another time for a job is its owner's choice, as a reader's grant is.
const CHOICES =
  "select cron.schedule('image-sync-nightly', '30 4 * * *', 'select image_sync.run_nightly()');";
const READERS = `
  grant select on public.part_register to office;
  insert into image_sync.readers (name, kind, bucket_id, key_hash) values
    ('office', 'odbc', 'part-images', null), ('excel', 'https', 'part-images', sha256('key'))`;

const SETTINGS = {
  extensions: ["jpg", "png"],
  exclude: ["thumbs/%"],
  signed_url_ttl: "9 days",
  renew_before: "3 days",
  chunk_size: 5,
  lease_duration: "00:02:00",
  max_attempts: 9,
  retry_delay: "00:00:20",
  max_delete_fraction: 0.5,
  max_delete_count: 77,
  probe_size: 0,
  verify_rate: 50,
  nightly: false,
  public_url: "https://files.example.com",
  keep_chunks: "20 days",
  keep_runs: "100 days",
};

type Chunk = { readonly number: number; readonly names: readonly string[] };
type Answer = { readonly next: string; readonly chunk?: Chunk };

/** Opens a run. */
async function begin(tx: TransactionSql, mode: string, options: object = {}): Promise<string> {
  const run = crypto.randomUUID();
  const [row] = await tx`select image_sync_start(${run}, 'part-images', ${mode}, ${
    tx.json(options as never)
  }) as answer`;
  expect(row?.["answer"]).toMatchObject({ created: true });
  return run;
}

/** Works on a run as the function of its version does: all of it, or a few calls. */
async function work(tx: TransactionSql, run: string, calls = 100): Promise<void> {
  // Releases of before know a chunk by its lease alone.
  const [known] = await tx`
    select 'p_number' = any (p.proargnames) as number from pg_proc p where p.proname = 'image_sync_advance'`;
  let leased: Chunk & { readonly lease: string } | undefined;
  for (let call = 0; call < calls; call++) {
    const lease = crypto.randomUUID();
    const names = [...leased?.names ?? []];
    const [row] = await tx<{ answer: Answer }[]>`
      select image_sync_advance(
        p_run => ${run}, p_worker => ${run}, p_lease => ${lease}, p_closing => ${leased?.lease ?? null},
        p_names => ${names}, p_around => ${[ADDRESS, "?token="]}, p_paths => ${names.map(() => null)},
        p_tokens => ${names.map(() => `eyJ.eyJ.${"a".repeat(43)}`)},
        p_expires => ${names.map(() => Math.round(Date.now() / 1000) + 8 * 86_400)}
        ${known?.["number"] === true ? tx`, p_number => ${leased?.number ?? null}` : tx``}
      ) as answer`;
    const answer = row?.answer;
    // Not all of it is written yet: the same again.
    if (answer?.next === "more") continue;
    leased = answer?.next === "sign" && answer.chunk !== undefined ? { lease, ...answer.chunk } : undefined;
    if (answer?.next === "stop") return;
    if (answer?.next === "probe") return void await tx`select image_sync_finish(${run})`;
  }
}

/** The rows of a table; of the runs those that have ended, as the open one goes on in its own way. */
async function rowsOf(tx: TransactionSql, table: string): Promise<Row[]> {
  return (await tx.unsafe(
    `select to_jsonb(t) as row from ${table} as t where to_jsonb(t) -> 'finished_at' is distinct from 'null' order by to_jsonb(t)::text collate "C"`,
  ))
    .map((row) => row["row"]);
}

/** Only what both know: columns come and go. */
function common(one: readonly Row[], other: readonly Row[]): [readonly Row[], readonly Row[]] {
  const known = Object.keys(one[0] ?? {}).filter((name) => name in (other[0] ?? {}));
  const pick = (rows: readonly Row[]) =>
    rows.map((row) => Object.fromEntries(known.map((name) => [name, row[name]])))
      .toSorted((a, b) => JSON.stringify(a) < JSON.stringify(b) ? -1 : 1);
  return [pick(one), pick(other)];
}

let db: EmptyDatabase;
beforeAll(async () => {
  db = await openEmptyDatabase();
}, 90_000);
afterAll(() => db?.close());

describe.each([
  { version: "1.0.0", past: ["1.0.0"], readers: "", tables: TABLES, register: "public.part_images" },
  {
    version: "1.1.0",
    past: ["1.0.0", "1.1.0"],
    readers: READERS,
    tables: [...TABLES, "image_sync.readers"],
    register: "public.part_register",
  },
])("an installation of $version that was used", ({ version, past, readers, tables, register }) => {
  const before: Record<string, Row[]> = {};
  const after: Record<string, Row[]> = {};
  let [upgraded, fresh]: readonly (readonly string[])[] = [];
  const read: unknown[] = [];
  let [ended, moved, restored]: readonly Row[] = [];

  beforeAll(async () => {
    const look = async (tx: TransactionSql, seen: Record<string, Row[]>) => {
      for (const table of tables) seen[table] = await rowsOf(tx, table);
      await tx`set local role office`;
      read.push(await tx.unsafe(`select part_number, signed_url from ${register} order by 1`));
      await tx`reset role`;
    };
    await inTransaction(db.sql, OF_THE_SHOP, async (tx) => {
      for (const each of past) await tx.unsafe(await released(each)).simple();
      await tx`select image_sync_announce('https://shop.supabase.co', ${version})`;
      await tx`update image_sync.settings set ${tx(SETTINGS)} where bucket_id = 'part-images'`;
      await tx`insert into image_sync.settings (bucket_id, exclude) values ('second', '{}')`;
      await tx.unsafe(CHOICES + readers).simple();
      await work(tx, await begin(tx, "sync"));
      // A file is renamed, and its record follows; a cleanup removes the one whose file is lost.
      await tx`update storage.objects set name = 'renamed.jpg' where name = '000005.jpg'`;
      await work(tx, await begin(tx, "sync"));
      const list = await begin(tx, "cleanup");
      await work(tx, list);
      const cleanup = await begin(tx, "cleanup", { confirm: list });
      await work(tx, cleanup);
      // And now a night that is at work.
      await tx`insert into storage.objects (bucket_id, name, metadata) select 'part-images', 'new-' || n || '.jpg', '{"size": 1}' from generate_series(1, 12) as n`;
      await tx`update storage.objects set name = 'renamed-again.jpg' where name = '000006.jpg'`;
      const [mover] = await tx`select id, part_number from public.part_images where file_name = '000006.jpg'`;
      const open = await begin(tx, "sync");
      await work(tx, open, 3);
      await look(tx, before);

      await tx.unsafe(migrationOf(schema, { from: version, to: VERSION })).simple();
      await look(tx, after);
      upgraded = await readOurCatalogue(tx);
      // The function is deployed, and what the one of before had leased is free.
      await tx`select image_sync_announce('https://shop.supabase.co', ${VERSION})`;
      await tx`update image_sync.chunks set lease_expires_at = now() where state = 'leased'`;
      await work(tx, open);
      [ended] = await tx`select image_sync_run(${open}) #> '{run}' as run`;
      await work(tx, await begin(tx, "sync"));
      [moved] = await tx`select file_name, signed_url, ${
        mover?.["part_number"]
      } as was from public.part_images where id = ${mover?.["id"]}`;
      await work(tx, await begin(tx, "restore", { restore: cleanup }));
      [restored] =
        await tx`select file_name, note, created_at::text from public.part_images where file_name = 'gone.jpg'`;
    });
    await inTransaction(db.sql, OF_THE_SHOP, async (tx) => {
      await tx.unsafe(migrationOf(schema, { from: null, to: VERSION })).simple();
      await tx.unsafe(CHOICES + readers).simple();
      fresh = await readOurCatalogue(tx);
    });
  }, 120_000);

  test.each(tables)("keeps every row of %s", (table) => {
    const [was, is] = common(before[table] ?? [], after[table] ?? []);
    expect(Object.keys(was[0] ?? {}).length).toBeGreaterThan(3);
    expect(is).toEqual(was);
  });

  test("keeps what was changed of the settings", () => {
    const settings = after["image_sync.settings"]?.find((row) => row["bucket_id"] === "part-images") ?? {};
    expect(settings).toMatchObject(
      Object.fromEntries(Object.entries(SETTINGS).filter(([name]) => name in settings)),
    );
  });

  test("has the catalogue of a first installation, with the shop's own choices", () => {
    expect(upgraded?.some((thing) => thing.includes("30 4 * * *"))).toBe(true);
    expect(upgraded).toEqual(fresh);
  });

  test("shows its readers what they saw", () => {
    expect(read[0]).toContainEqual({ part_number: "000001", signed_url: expect.stringContaining(ADDRESS) });
    expect(read[1]).toEqual(read[0]);
  });

  test("has its open run brought to its end", () => {
    expect(ended?.["run"]).toMatchObject({ state: "succeeded", totals: { listed: 32 } });
  });

  test("has its renamed file's record follow, with all that it is", () => {
    expect(moved).toMatchObject({
      file_name: "renamed-again.jpg",
      signed_url: expect.stringContaining(ADDRESS),
    });
  });

  test("has what a cleanup removed put back whole", () => {
    expect(restored).toEqual({
      file_name: "gone.jpg",
      note: "file is lost",
      created_at: "2024-02-29 00:00:00",
    });
  });
});
