/** Nothing depends on what the statistics know: a bucket that is new is read as fast as one that was analyzed. */
import postgres, { type Sql, type TransactionSql } from "postgres";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type BareStack, openBareStack } from "./support/bare_stack.ts";
import { openAsWorker, start, workToEnd } from "./support/protocol.ts";

/** Of each of five buckets that were there first, and of the new ones. */
const known = 15_000;
const fresh = 6_000;
const empty = 20;
/** Of each file of the bucket, by all calls of one run. */
const mostRowsOfRun = 10;
/** No call reads more than a few rows for each file of its own bucket (Postgres 15 four, 17 three): all buckets together have twenty times as many. */
const mostRows = 4.5 * fresh;
const mostMs = 4000;

let db: BareStack;
beforeAll(async () => {
  db = await openBareStack();
  const { admin } = db;
  await admin`insert into image_sync.project (url, function_version) values ('http://127.0.0.1:1', 'test')`;
  for (const table of ["storage.objects", "public.part_images", "image_sync.chunks", "image_sync.runs"]) {
    await admin.unsafe(`alter table ${table} set (autovacuum_enabled = off)`);
  }
}, 120_000);
afterAll(() => db?.close());

/** A bucket with settings, and rows for its files; with records and URLs, as after a sync. */
async function load(bucket: string, files: number, records: "with records" | "without records") {
  const { admin } = db;
  await admin`insert into storage.buckets (id, name) values (${bucket}, ${bucket})`;
  await admin`insert into image_sync.settings (bucket_id, nightly, probe_size) values (${bucket}, false, 0)`;
  await admin`
    insert into storage.objects (bucket_id, name, metadata)
    select ${bucket}, lpad(n::text, 6, '0') || '.jpg', '{"size": 1000}'
    from generate_series(1, ${files}::integer) as n`;
  if (records === "without records") return;
  await admin`
    with base as materialized (
      select image_sync.url_base(s) as url from image_sync.settings s where s.bucket_id = ${bucket}
    )
    insert into public.part_images (bucket_id, file_name, part_number, object_id, signed_url, signed_url_expires_at)
    select o.bucket_id, o.name, left(o.name, 6), o.id, base.url || o.name || '?token=of-another-kind', now() + interval '5 days'
    from base
    join storage.objects o on o.bucket_id = ${bucket}`;
}

/** What a session has read so far, in rows of tables and entries of indexes. */
async function rowsRead(sql: Sql | TransactionSql): Promise<number> {
  const [row] = await sql<{ rows: number }[]>`
    select sum(greatest(pg_stat_get_xact_tuples_returned(c.oid), pg_stat_get_xact_tuples_fetched(c.oid)))::float as rows
    from pg_catalog.pg_class c
    where c.relnamespace = any ('{storage,public,image_sync}'::regnamespace[])
      and c.relkind in ('r', 'i')`;
  return row?.rows ?? NaN;
}

const statesOfFiles = [
  "all",
  "missing",
  "unsigned",
  "expired",
  "expiring",
  "orphaned",
  "excluded",
  "other",
  "empty",
  "working",
  "several",
  "broken",
];

/** Every read that the function makes of a bucket. */
function readsOf(bucket: string, plan: string): readonly string[] {
  return [
    `public.image_sync_report('${bucket}')`,
    `public.image_sync_register_tag('${bucket}')`,
    `public.image_sync_register_tag('${bucket}', '005500', 1)`,
    `public.image_sync_register('${bucket}')`,
    `public.image_sync_register('${bucket}', '005500')`,
    `public.image_sync_file('${bucket}', '012345.jpg')`,
    `public.image_sync_file('${bucket}', 'nothing.jpg')`,
    `public.image_sync_expiry('${bucket}')`,
    `public.image_sync_history('${bucket}')`,
    `public.image_sync_settings('${bucket}')`,
    `public.image_sync_archives('${bucket}')`,
    `public.image_sync_runs('${bucket}')`,
    `public.image_sync_plan('${plan}', '005500.jpg')`,
    `public.image_sync_run('${plan}')`,
    ...statesOfFiles.map((state) => `public.image_sync_records('${bucket}', '${state}')`),
    ...statesOfFiles.map((state) => `public.image_sync_records('${bucket}', '${state}', '', '005500.jpg')`),
    `public.image_sync_records('${bucket}', 'all', '0123')`,
    `public.image_sync_records('${bucket}', 'missing', '0123')`,
  ];
}

/** Calls each of them seven times in one session: from the sixth call on it has a plan for all buckets. */
async function expectFewRows(reads: readonly string[]): Promise<void> {
  const session = postgres(db.stack.adminDbUrl, {
    max: 1,
    onnotice: () => {},
    connection: { role: "service_role", statement_timeout: mostMs },
  });
  const beyond: string[] = [];
  try {
    for (const read of reads) {
      for (let call = 1; call <= 7; call++) {
        const rows = await session.begin(async (transaction) => {
          const before = await rowsRead(transaction);
          await transaction.unsafe(`select ${read}`);
          return await rowsRead(transaction) - before;
        }).catch((error: Error) => `${error.message}`);
        if (typeof rows === "number" && rows <= mostRows) continue;
        beyond.push(`call ${call} of ${read}: ${rows}`);
        break;
      }
    }
  } finally {
    await session.end();
  }
  expect(beyond).toEqual([]);
}

/** Works a run to its end in a session whose statements may not take long: it reads few rows for each file of its bucket. */
async function expectLinearRun(
  bucket: string,
  mode: string,
  options: Record<string, string | number> = {},
): Promise<string> {
  const session = openAsWorker(db.stack.adminDbUrl, 1);
  try {
    await session.unsafe(`set statement_timeout = ${mostMs}`);
    const { run, problem } = await start(session, bucket, { mode, options });
    expect(problem).toBeNull();
    const rows = await session.begin(async (transaction) => {
      const before = await rowsRead(transaction);
      await workToEnd(transaction, run);
      return await rowsRead(transaction) - before;
    });
    expect([bucket, mode, Math.floor(rows / fresh / mostRowsOfRun)]).toEqual([bucket, mode, 0]);
    return run;
  } finally {
    await session.end();
  }
}

const scenes: readonly { readonly statistics: string; readonly make: (scene: string) => Promise<void> }[] = [
  {
    statistics: "of one file each",
    make: async () => {
      for (const bucket of ["one-1", "one-2", "one-3"]) await load(bucket, 1, "with records");
      await db.admin`analyze`;
      for (const n of [1, 2, 3, 4, 5]) await load(`known-${n}`, known, "with records");
      await db.admin`
        with buckets as (
          insert into storage.buckets (id, name)
          select 'empty-' || n, 'empty-' || n from generate_series(1, ${empty}::integer) as n
          returning id
        )
        insert into image_sync.settings (bucket_id, nightly) select id, false from buckets`;
    },
  },
  {
    statistics: "of other buckets",
    make: async () => {
      await db.admin`analyze`;
    },
  },
  {
    statistics: "of nothing",
    make: async () => {
      await db.admin`delete from pg_catalog.pg_statistic`;
      await db.admin`
        update pg_catalog.pg_class set reltuples = -1, relpages = 0 where relnamespace = any ('{storage,public,image_sync}'::regnamespace[])`;
    },
  },
];

describe.each(scenes)("with statistics $statistics", ({ make, statistics }) => {
  const scene = String(scenes.findIndex((one) => one.statistics === statistics));
  beforeAll(async () => {
    await make(scene);
    await load(`synced-${scene}`, fresh, "with records");
    await load(`bare-${scene}`, fresh, "without records");
  }, 120_000);

  test("no read of a new bucket or an empty one looks at more than that bucket", async () => {
    const { run } = await start(db.worker, `synced-${scene}`, { mode: "cleanup" });
    await workToEnd(db.worker, run);
    const buckets = [`synced-${scene}`, `bare-${scene}`, "empty-7"];
    await expectFewRows([
      ...buckets.flatMap((bucket) => readsOf(bucket, run)),
      "public.image_sync_buckets()",
      "public.image_sync_readers()",
    ]);
  }, 300_000);

  test("a run of a new bucket reads each file a few times, whatever it does", async () => {
    for (const mode of ["analyze", "sync", "sync", "verify"]) await expectLinearRun(`bare-${scene}`, mode);
    const bucket = `synced-${scene}`;
    await db.admin.begin(async (sql) => {
      await sql`select set_config('storage.allow_delete_query', 'true', true)`;
      await sql`delete from storage.objects where bucket_id = ${bucket} and name > '005'`;
    });
    const plan = await expectLinearRun(bucket, "cleanup");
    const raised = { max_delete_count: fresh, max_delete_fraction: 1 };
    const cleanup = await expectLinearRun(bucket, "cleanup", { confirm: plan, ...raised });
    await expectLinearRun(bucket, "restore", { restore: cleanup });
  }, 300_000);
});
