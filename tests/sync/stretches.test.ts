import { randomUUID } from "node:crypto";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type BareStack, openBareStack } from "../reliability/support/bare_stack.ts";
import {
  advance,
  type Answer,
  createRows,
  endAttempt,
  findViolations,
  openAsWorker,
  signAll,
  start,
  workToEnd,
} from "../reliability/support/protocol.ts";

// A bucket of 60 chunks of 10 whose every picture has its record and its URL: what most nights find.
const CHUNK = 10;
const FILES = 600;
const name = (index: number) => `${String(index).padStart(4, "0")}.jpg`;

let db: BareStack;
beforeAll(async () => {
  db = await openBareStack();
});
afterAll(() => db?.close());

/** A bucket that was synced, and a run of the next night. */
async function nextNight(
  { mode = "sync", change }: { mode?: string; change?: (bucket: string) => Promise<unknown> } = {},
): Promise<{ bucket: string; run: string }> {
  const names = Array.from({ length: FILES }, (_, index) => name(index));
  const bucket = await createRows(db.admin, { names, settings: { chunk_size: CHUNK } });
  await workToEnd(db.worker, (await start(db.worker, bucket)).run);
  await change?.(bucket);
  return { bucket, run: (await start(db.worker, bucket, { mode })).run };
}

/** Leases a stretch as a lane does. */
async function leaseStretch(run: string): Promise<{ lease: string; worker: string }> {
  const [lease, worker] = [randomUUID(), randomUUID()];
  expect(await advance(db.worker, { run, worker, lease, closing: null })).toMatchObject({ next: "list" });
  return { lease, worker };
}

type Chunk = { number: number; from_key: string; to_key: string | null; state: string; listed: number };

const readChunks = (run: string) =>
  db.admin<Chunk[]>`
    select number, from_key, to_key, state, image_sync.count_of(ledger, 'listed')::integer as listed from image_sync.chunks where run_id = ${run} order by number`;

async function readTotals(run: string): Promise<Record<string, unknown>> {
  const [row] = await db.admin`select image_sync.run_document(${run}) as document`;
  return row?.["document"] as Record<string, unknown>;
}

async function remove(bucket: string, names: readonly string[]): Promise<void> {
  await db.admin.begin(async (transaction) => {
    await transaction`set local storage.allow_delete_query = 'true'`;
    await transaction`delete from storage.objects where bucket_id = ${bucket} and name in ${
      transaction([...names])
    }`;
  });
}

describe("a night in which nothing changed", () => {
  test("is passed over in stretches: every chunk as if it had been walked over alone", async () => {
    const { bucket, run } = await nextNight();
    const calls = await workToEnd(db.worker, run);
    expect(calls).toBeLessThan(20);
    const chunks = await readChunks(run);
    expect(chunks.map(({ listed }) => listed)).toEqual([...Array(60).fill(CHUNK), 0]);
    expect(chunks.map(({ number }) => number)).toEqual(chunks.map((_, index) => index + 1));
    expect(chunks.map(({ from_key }) => from_key)).toEqual([
      "",
      ...chunks.slice(1).map((_, index) => chunks[index]?.to_key),
    ]);
    expect(await readTotals(run)).toMatchObject({
      state: "succeeded",
      balanced: true,
      totals: { listed: FILES, recorded: FILES, rows_written: 0, to_sign: 0 },
    });
    expect(await findViolations(db.admin, bucket)).toEqual([]);
  });

  test("is passed over by several workers side by side: none waits for the other's stretch", async () => {
    const { run } = await nextNight();
    await leaseStretch(run);
    await leaseStretch(run);
    await leaseStretch(run);
    expect((await readChunks(run)).filter(({ state }) => state === "leased")).toHaveLength(3);
  });

  test("while one goes over a stretch, the run's row is free", async () => {
    const { bucket, run } = await nextNight();
    const { lease, worker } = await leaseStretch(run);
    await db.admin.begin(async (holder) => {
      await holder`select from image_sync.runs where id = ${run} for update`;
      const [row] = await db.worker`
        select cardinality(image_sync.pass_stretch(r, s, ${lease})) as passed
        from image_sync.runs r join image_sync.settings s using (bucket_id) where r.id = ${run}`;
      expect(row?.["passed"]).toBe(25);
      expect(await advance(db.worker, { run, worker, lease, closing: null })).toMatchObject({ next: "busy" });
    });
    // The lease is the worker's still: nothing is lost but the time.
    expect(await advance(db.worker, { run, worker, lease, closing: null })).toMatchObject({ next: "again" });
    await workToEnd(db.worker, run);
    expect(await findViolations(db.admin, bucket)).toEqual([]);
  });

  test.each(["analyze", "cleanup"])("%s passes over it too", async (mode) => {
    const { bucket, run } = await nextNight({
      mode,
      change: (bucket) => remove(bucket, [name(77), name(333)]),
    });
    await workToEnd(db.worker, run);
    expect(await readTotals(run)).toMatchObject({
      state: "succeeded",
      totals: { listed: FILES - 2, orphaned: 2 },
    });
    const [row] = await db.admin`
      select count(*)::integer as records from public.part_images where bucket_id = ${bucket}`;
    expect(row?.["records"]).toBe(FILES);
  });

  test("a bucket of few chunks is walked over in one call", async () => {
    const bucket = await createRows(db.admin, {
      names: Array.from({ length: 90 }, (_, index) => name(index)),
      settings: { chunk_size: CHUNK },
    });
    await workToEnd(db.worker, (await start(db.worker, bucket)).run);
    // It walks, and there is nothing left.
    expect(await workToEnd(db.worker, (await start(db.worker, bucket)).run)).toBe(1);
  });
});

describe("what a stretch meets", () => {
  const changes: readonly [string, (bucket: string) => Promise<unknown>, Record<string, number>][] = [
    [
      "a file that was uploaded",
      (bucket) =>
        db.admin`insert into storage.objects (bucket_id, name) values (${bucket}, '0123a.jpg'), (${bucket}, '0599a.jpg')`,
      { listed: FILES + 2, inserted: 2, signed: 2 },
    ],
    [
      "a URL that is about to die",
      (bucket) =>
        db.admin`
          update public.part_images set signed_url_expires_at = now() + interval '1 h'
          where bucket_id = ${bucket} and file_name in (${name(5)}, ${name(155)}, ${name(156)}, ${
          name(598)
        })`,
      { recorded: FILES, signed: 4 },
    ],
    [
      "a record whose file is gone",
      (bucket) => remove(bucket, [name(111), name(400)]),
      { listed: FILES - 2, orphaned: 2, signed: 0 },
    ],
    [
      "a file that was renamed, forwards and backwards",
      (bucket) =>
        db.admin`
          update storage.objects set name = case name when ${name(120)} then '0480a.jpg' else '0130a.jpg' end
          where bucket_id = ${bucket} and name in (${name(120)}, ${name(500)})`,
      { moved: 2, orphaned: 0, inserted: 0, signed: 2 },
    ],
    [
      "two files that changed places, in two stretches",
      async (bucket) => {
        await db.admin`update storage.objects set name = 'aside' where bucket_id = ${bucket} and name = ${
          name(150)
        }`;
        await db.admin`update storage.objects set name = ${
          name(150)
        } where bucket_id = ${bucket} and name = ${name(450)}`;
        await db.admin`update storage.objects set name = ${
          name(450)
        } where bucket_id = ${bucket} and name = 'aside'`;
      },
      { moved: 2, orphaned: 0, inserted: 0 },
    ],
    [
      "a record that does not know its object yet",
      (bucket) =>
        db.admin`update public.part_images set object_id = null where bucket_id = ${bucket} and file_name = ${
          name(222)
        }`,
      { rows_written: 1, signed: 0 },
    ],
    [
      "a file that is no image",
      (bucket) => db.admin`insert into storage.objects (bucket_id, name) values (${bucket}, '0200.pdf')`,
      { listed: FILES + 1, not_images: 1, signed: 0 },
    ],
    [
      "many more records than files",
      (bucket) =>
        db.admin`
          insert into public.part_images (bucket_id, file_name, part_number)
          select ${bucket}, '0200-' || lpad(i::text, 4, '0') || '.jpg', i::text from generate_series(1, 700) as i`,
      { listed: FILES, orphaned: 700, signed: 0 },
    ],
  ];

  test.each(changes)("%s", async (_, change, totals) => {
    const { bucket, run } = await nextNight({ change });
    await workToEnd(db.worker, run);
    expect(await readTotals(run)).toMatchObject({ state: "succeeded", balanced: true, totals });
    expect(await findViolations(db.admin, bucket)).toEqual([]);
  });

  test.each(changes)("%s, while four workers are at it", async (_, change, totals) => {
    const { bucket, run } = await nextNight({ change });
    const workers = Array.from({ length: 4 }, () => openAsWorker(db.stack.adminDbUrl, 1));
    await Promise.all(workers.map((worker) => workToEnd(worker, run)));
    await Promise.all(workers.map((worker) => worker.end()));
    expect(await readTotals(run)).toMatchObject({ state: "succeeded", balanced: true, totals });
    expect(await findViolations(db.admin, bucket)).toEqual([]);
  });

  test("two files that changed places are both counted where the later of their stretches is listed first", async () => {
    const swap = changes.find(([what]) => what === "two files that changed places, in two stretches")?.[1];
    const { bucket, run } = await nextNight({ change: swap ?? (() => Promise.resolve()) });
    // Whoever has the first one is gone, which shows when all others are done.
    const { lease } = await leaseStretch(run);
    const onWait = async () => {
      await db.admin`
        update image_sync.chunks set lease_expires_at = clock_timestamp() - interval '1 second' where lease_token = ${lease}`;
    };
    await workToEnd(db.worker, run, { onWait });
    expect(await readTotals(run)).toMatchObject({
      state: "succeeded",
      balanced: true,
      totals: { listed: FILES, moved: 2, recorded: FILES - 2, inserted: 0, orphaned: 0 },
    });
    expect(await findViolations(db.admin, bucket)).toEqual([]);
  });
});

describe("a stretch that is not gone over to its end", () => {
  test("is another worker's once the lease has run out", async () => {
    const { bucket, run } = await nextNight();
    await leaseStretch(run);
    await workToEnd(db.worker, run, {
      onWait: async () =>
        void await db.admin`
          update image_sync.chunks set lease_expires_at = now() - interval '1 s' where run_id = ${run} and state = 'leased'`,
    });
    expect(await readTotals(run)).toMatchObject({
      state: "succeeded",
      totals: { listed: FILES, to_sign: 0 },
    });
    expect(await findViolations(db.admin, bucket)).toEqual([]);
  });

  test("is given back by a worker that ends, and costs no attempt", async () => {
    const { bucket, run } = await nextNight();
    const { lease, worker } = await leaseStretch(run);
    await db.worker`select public.image_sync_hand_off(${run}, ${worker}, array[${lease}::uuid])`;
    await workToEnd(db.worker, run);
    const [row] = await db
      .admin`select max(attempts) as attempts from image_sync.chunks where run_id = ${run}`;
    expect(row?.["attempts"]).toBe(0);
    expect(await findViolations(db.admin, bucket)).toEqual([]);
  });

  test.each(["database_timeout", "row_locked"] as const)(
    "that the database ended (%s) is listed in parts of its own",
    async (code) => {
      const { bucket, run } = await nextNight();
      const { lease, worker } = await leaseStretch(run);
      await endAttempt(db.worker, { run, worker, lease, closing: null, code });
      await db.admin`update image_sync.chunks set not_before = null where run_id = ${run}`;
      await workToEnd(db.worker, run);
      expect(await readTotals(run)).toMatchObject({
        state: "succeeded",
        balanced: true,
        totals: { listed: FILES, to_sign: 0 },
      });
      expect(await findViolations(db.admin, bucket)).toEqual([]);
    },
  );

  test("whose call arrives twice, even at once, is stored once", async () => {
    const { bucket, run } = await nextNight();
    const { lease, worker } = await leaseStretch(run);
    const call = () => advance(db.worker, { run, worker, lease, closing: null });
    const answers: Answer[] = await Promise.all([call(), call(), call()]);
    expect(answers.map(({ next }) => next)).toEqual(["again", "again", "again"]);
    await workToEnd(db.worker, run);
    expect(await readTotals(run)).toMatchObject({ totals: { listed: FILES } });
    expect(await findViolations(db.admin, bucket)).toEqual([]);
  });

  test("of a run that was cancelled meanwhile stores nothing", async () => {
    const { run } = await nextNight();
    const { lease, worker } = await leaseStretch(run);
    await db.worker`select public.image_sync_cancel(${run})`;
    const before = await readChunks(run);
    expect(await advance(db.worker, { run, worker, lease, closing: null })).toMatchObject({ next: "stop" });
    expect(await readChunks(run)).toEqual(before);
  });

  test("whose lease went to another worker changes nothing of that one's", async () => {
    const { bucket, run } = await nextNight();
    const { lease, worker } = await leaseStretch(run);
    await db
      .admin`update image_sync.chunks set lease_expires_at = now() - interval '1 s' where run_id = ${run} and state = 'leased'`;
    const other = await leaseStretch(run);
    const held = await readChunks(run);
    expect(await advance(db.worker, { run, worker, lease, closing: null })).toMatchObject({ next: "again" });
    expect(await readChunks(run)).toEqual(held);
    expect(await advance(db.worker, { run, ...other, closing: null })).toMatchObject({ next: "again" });
    await workToEnd(db.worker, run);
    expect(await findViolations(db.admin, bucket)).toEqual([]);
  });

  test("leaves the chunks in which something is to be done to be listed under the lock", async () => {
    const due = [name(155), name(258)];
    const { bucket, run } = await nextNight({
      change: (bucket) =>
        db.admin`
          update public.part_images set signed_url = null
          where bucket_id = ${bucket} and file_name in ${db.admin(due)}`,
    });
    const { lease, worker } = await leaseStretch(run);
    const call = () => advance(db.worker, { run, worker, lease, closing: null });
    // The last chunk of the stretch is one of them: it stays under the lease.
    expect(await call()).toMatchObject({ next: "list" });
    const chunks = await readChunks(run);
    expect(chunks.filter(({ state }) => state === "done")).toHaveLength(24);
    expect(chunks.filter(({ state }) => state !== "done")).toMatchObject([
      { number: 16, state: "pending", from_key: name(149), to_key: name(159) },
      { number: 26, state: "leased", from_key: name(249), to_key: name(259) },
    ]);
    expect(await call()).toMatchObject({ next: "sign", chunk: { names: [name(258)] } });
    await advance(db.worker, { run, worker, lease: null, closing: signAll(lease, [name(258)]) });
    await workToEnd(db.worker, run);
    expect(await readTotals(run)).toMatchObject({ state: "succeeded", totals: { listed: FILES, signed: 2 } });
    expect(await findViolations(db.admin, bucket)).toEqual([]);
  });

  test("where every other chunk needs something, costs a call for each of those and none for the rest", async () => {
    const { bucket, run } = await nextNight({
      change: (bucket) =>
        db.admin`
          update public.part_images set signed_url = null
          where bucket_id = ${bucket} and right(file_name, 5) = '5.jpg' and substr(file_name, 3, 1)::integer % 2 = 1`,
    });
    const signing = 30;
    const calls = await workToEnd(db.worker, run);
    expect(calls).toBeLessThan(3 * signing + 20);
    expect(await readTotals(run)).toMatchObject({ state: "succeeded", totals: { signed: signing } });
    expect(await findViolations(db.admin, bucket)).toEqual([]);
  });
});
