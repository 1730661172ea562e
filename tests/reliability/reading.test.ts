/** What a run reads: each row a few times, however large the bucket, and whatever the database believes of its tables. */
import { randomUUID } from "node:crypto";
import { afterAll, beforeAll, expect, test } from "vitest";
import { type BareStack, openBareStack } from "./support/bare_stack.ts";
import { withMutation } from "./support/mutation.ts";
import { createRows, openAsWorker, start, workToEnd } from "./support/protocol.ts";
import { fileNames, poll } from "./support/scene.ts";

const size = 5_000;

let db: BareStack;
beforeAll(async () => {
  db = await openBareStack();
});
afterAll(() => db?.close());

/**
 * A first night whose statistics are of empty tables: the cheapest plans that they allow read all of a table. Sessions of its
 * own, because a plan stays in its session's cache.
 */
async function firstNight(): Promise<void> {
  await db.admin`truncate public.part_images`;
  await db.admin`truncate storage.objects`;
  await db.admin`vacuum analyze public.part_images`;
  await db.admin`vacuum analyze storage.objects`;
  const bucket = await createRows(db.admin, { names: fileNames(size), settings: { chunk_size: 100 } });
  const worker = openAsWorker(db.stack.adminDbUrl);
  const { run } = await start(worker, bucket);
  await worker`select pg_stat_force_next_flush()`;
  await worker`select 1`;
  await db.admin`select pg_stat_reset()`;
  await workToEnd(worker, run);
  // Sessions that end report at once what they read.
  await worker.end();
}

type Reads = { readonly by_scan: number; readonly by_index: number };

/** Rows read of each side, once the sessions have reported. */
async function readCounts(): Promise<readonly Reads[]> {
  let counts: readonly Reads[] = [];
  await poll(async () => {
    counts = await db.admin<Reads[]>`
      select seq_tup_read::integer as by_scan, coalesce(idx_tup_fetch, 0)::integer as by_index
      from pg_stat_all_tables
      where relid in ('public.part_images'::regclass, 'storage.objects'::regclass)`;
    // Records that are written are not read.
    return counts.some(({ by_scan, by_index }) => by_scan + by_index >= size);
  }, { what: "the sessions reported what they read" });
  return counts;
}

/**
 * A session that made its plans when there were a handful of rows, which each index seems to find as well as any other; then the
 * bucket grows. Every second file is a twin, so that each is looked up.
 */
async function grownBucket(): Promise<void> {
  await db.admin`truncate public.part_images`;
  await db.admin`truncate storage.objects`;
  const worker = openAsWorker(db.stack.adminDbUrl, 1);
  for (let round = 0; round < 6; round++) {
    const few = await createRows(db.admin, { names: fileNames(5) });
    await workToEnd(worker, (await start(worker, few)).run);
  }
  const names = fileNames(size / 2).flatMap((name) => [name, name.replace(".jpg", ".JPG")]);
  const bucket = await createRows(db.admin, { names, settings: { chunk_size: 100 } });
  const { run } = await start(worker, bucket);
  await worker`select pg_stat_force_next_flush()`;
  await worker`select 1`;
  await db.admin`select pg_stat_reset()`;
  await workToEnd(worker, run);
  await worker.end();
}

test("a bucket that has grown since a session made its plans is not read for each of its files", async () => {
  await grownBucket();
  for (const { by_scan, by_index } of await readCounts()) {
    expect(by_scan, "rows read by sequential scans").toBe(0);
    expect(by_index).toBeLessThan(10 * size);
  }
});

async function eachRowIsReadAFewTimes(): Promise<void> {
  await firstNight();
  for (const { by_scan, by_index } of await readCounts()) {
    expect(by_scan, "rows read by sequential scans").toBe(0);
    expect(by_index).toBeLessThan(4 * size);
  }
}

test(
  "a first night scans no table and reads each row a few times, though the statistics say that there is none",
  eachRowIsReadAFewTimes,
);

test("and is missed by that test when plans may follow the statistics", async () => {
  const alters = [
    "public.image_sync_advance",
    "image_sync.look",
    "image_sync.range_end",
    "image_sync.write_rows",
  ]
    .flatMap((name) =>
      ["enable_seqscan", "enable_bitmapscan"].map((setting) => [`alter function ${name}`, setting])
    );
  const mutation = {
    apply: alters.map(([alter, setting]) => `${alter} reset ${setting}`).join("; "),
    undo: alters.map(([alter, setting]) => `${alter} set ${setting} = 'off'`).join("; "),
  };
  expect(await withMutation(db.admin, mutation, eachRowIsReadAFewTimes)).not.toBeNull();
});

/** Files of one name in a folder each, as PART/front.jpg in two buckets are. */
const inFolders = (prefix: string): string[] =>
  Array.from({ length: size }, (_, index) => `${prefix}${String(index).padStart(6, "0")}/front.jpg`);

async function otherBucketsAreNotRead(): Promise<void> {
  await db.admin`truncate public.part_images`;
  await db.admin`truncate storage.objects`;
  const firstWorker = openAsWorker(db.stack.adminDbUrl);
  const first = await createRows(db.admin, { names: inFolders("a"), settings: { chunk_size: 500 } });
  await workToEnd(firstWorker, (await start(firstWorker, first)).run);
  await firstWorker.end();
  await readCounts();
  await db.admin`vacuum analyze public.part_images`;
  const second = await createRows(db.admin, { names: inFolders("b"), settings: { chunk_size: 500 } });
  const worker = openAsWorker(db.stack.adminDbUrl);
  const { run } = await start(worker, second);
  await worker`select pg_stat_force_next_flush()`;
  await worker`select 1`;
  await db.admin`select pg_stat_reset()`;
  await workToEnd(worker, run);
  await worker.end();
  for (const { by_scan, by_index } of await readCounts()) {
    expect(by_scan, "rows read by sequential scans").toBe(0);
    expect(by_index).toBeLessThan(4 * size);
  }
}

test("a verify in which every URL but one is rejected reads its chunks, not the bucket", async () => {
  await db.admin`truncate public.part_images`;
  await db.admin`truncate storage.objects`;
  const names = fileNames(size);
  const bucket = await createRows(db.admin, { names });
  await workToEnd(db.worker, (await start(db.worker, bucket)).run);
  const { run } = await start(db.worker, bucket, { mode: "verify" });
  // What lies before a chunk costs nothing either.
  await db.admin`update image_sync.runs set cursor = ${names.sort()[size - 300] ?? ""} where id = ${run}`;
  const lease = randomUUID();
  const [row] = await db
    .worker`select public.image_sync_advance(${run}, ${randomUUID()}, ${lease}) as answer`;
  const { number, targets } = (row?.["answer"] as {
    chunk: { number: number; targets: { name: string; url: string }[] };
  }).chunk;
  const [shown, ...rejected] = targets;
  const failures = rejected.map((target) => ({ ...target, code: "url_rejected", error: "HTTP 400" }));
  const read = await db.worker.begin(async (sql) => {
    await sql`
      select public.image_sync_advance(${run}, ${randomUUID()}, null, ${lease}, p_names => ${[
      shown?.name ?? "",
    ]}, p_failures => ${sql.json(failures)}, p_number => ${number})`;
    // What this transaction has read.
    const [counts] = await sql<{ rows: number }[]>`
      select (seq_tup_read + idx_tup_fetch)::integer as rows from pg_stat_xact_all_tables where relid = 'public.part_images'::regclass`;
    return counts?.rows;
  });
  const [forgotten] = await db.admin<{ count: number }[]>`
    select count(*)::integer as count from public.part_images where signed_url_expires_at is null`;
  expect(forgotten?.count).toBe(rejected.length);
  // At most the chunk, for each of its names.
  expect(targets.length).toBe(200);
  expect(read).toBeLessThan(targets.length * targets.length);
});

test("a bucket whose files are named as another one's reads nothing of that", otherBucketsAreNotRead);

test("and is missed by that test when a chunk's records are looked for in all buckets", async () => {
  const mutation = {
    signature: "image_sync.compare_range(text, text, text, timestamptz, text, text[], text[])",
    from:
      `where x.bucket_id = p_bucket_id and x.file_name collate "C" >= p_from and x.file_name collate "C" <= p_to`,
    // Neither is what an index begins with.
    to: `where x.bucket_id || '' = p_bucket_id and x.file_name >= p_from and x.file_name <= p_to`,
  };
  expect(await withMutation(db.admin, mutation, otherBucketsAreNotRead)).toMatch(/rows read|less than/);
});
