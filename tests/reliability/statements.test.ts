import { randomUUID } from "node:crypto";
import postgres, { type Sql, type TransactionSql } from "postgres";
import { afterAll, beforeAll, expect, test } from "vitest";
import { type BareStack, openBareStack } from "./support/bare_stack.ts";
import {
  advance,
  type AdvanceRequest,
  createRows,
  findViolations,
  signAll,
  start,
  workToEnd,
} from "./support/protocol.ts";
import { poll } from "./support/scene.ts";

let db: BareStack;
beforeAll(async () => {
  db = await openBareStack();
});
afterAll(() => db?.close());

const names = ["1.jpg", "2.jpg", "3.jpg", "4.jpg", "5.jpg"];

/** A call of advance that closes chunk 1 and would make chunk 2. */
async function closingCall(): Promise<{ bucket: string; request: AdvanceRequest }> {
  const bucket = await createRows(db.admin, { names, settings: { chunk_size: 2 } });
  // Of the first chunk one file has a record already, the other one has none.
  await db
    .admin`insert into public.part_images (bucket_id, file_name, part_number) values (${bucket}, '2.jpg', '2')`;
  const { run } = await start(db.worker, bucket);
  const worker = randomUUID();
  const lease = randomUUID();
  const first = await advance(db.worker, { run, worker, lease, closing: null });
  const closing = signAll(lease, first.chunk ?? { number: 0, names: [] });
  return { bucket, request: { run, worker, lease: randomUUID(), closing } };
}

// Everything that a call may change.
async function snapshot(sql: Sql, bucket: string): Promise<unknown> {
  const [row] = await sql`
    select
      (select jsonb_agg(p order by p.file_name) from public.part_images p where p.bucket_id = ${bucket}) as records,
      (select jsonb_agg(r) from image_sync.runs r where r.bucket_id = ${bucket}) as runs,
      (
        select jsonb_agg(c order by c.number)
        from image_sync.chunks c
        join image_sync.runs r on r.id = c.run_id
        where r.bucket_id = ${bucket}
      ) as chunks`;
  return row;
}

/** Makes the call in a session of its own, and ends that session once it waits for a lock that `block` holds. */
async function endWhileWaiting(
  request: AdvanceRequest,
  block: (transaction: TransactionSql) => Promise<unknown>,
): Promise<void> {
  const name = `victim-${randomUUID()}`;
  const victim = postgres(db.stack.adminDbUrl, {
    max: 1,
    connection: { role: "service_role", application_name: name },
  });
  await victim`select 1`;
  await db.admin.begin(async (transaction) => {
    await block(transaction);
    const call = advance(victim, request).then(() => "answered", () => "ended");
    await poll(async () => {
      const ended = await db.admin`
        select pg_terminate_backend(pid)
        from pg_stat_activity
        where application_name = ${name} and wait_event_type = 'Lock'`;
      return ended.length > 0;
    }, { what: "the call waited for the lock" });
    expect(await call).toBe("ended");
  });
  await victim.end({ timeout: 0 }).catch(() => {});
}

const stages: readonly {
  readonly stage: string;
  readonly block: (sql: TransactionSql, run: string, bucket: string) => Promise<unknown>;
}[] = [
  {
    stage: "locks the chunk that it closes",
    block: (sql, run) => sql`select from image_sync.chunks where run_id = ${run} and number = 1 for update`,
  },
  {
    stage: "inserts the missing records",
    block: (sql, _run, bucket) =>
      sql`insert into public.part_images (bucket_id, file_name, part_number) values (${bucket}, '1.jpg', '1')`,
  },
  {
    stage: "stores the URLs",
    block: (sql, _run, bucket) =>
      sql`select from public.part_images where bucket_id = ${bucket} and file_name = '2.jpg' for update`,
  },
  {
    stage: "locks the run, its chunk closed",
    block: (sql, run) => sql`select from image_sync.runs where id = ${run} for update`,
  },
  {
    stage: "stores the next chunk",
    block: (sql, run) =>
      sql`insert into image_sync.chunks (run_id, number, from_key, state) values (${run}, 2, 'elsewhere', 'done')`,
  },
];

test.each(stages)(
  "an advance whose session ends while it $stage has changed nothing, and can be repeated",
  async ({ block }) => {
    const { bucket, request } = await closingCall();
    const before = await snapshot(db.admin, bucket);
    const rollback = new Error("undo what blocked");
    await db.admin.begin(async (transaction) => {
      // The blocker's own changes are undone, whatever comes.
      await endWhileWaiting(request, () => block(transaction, request.run, bucket));
      throw rollback;
    }).catch((error: unknown) => {
      if (error !== rollback) throw error;
    });
    expect(await snapshot(db.admin, bucket)).toEqual(before);
    expect(await advance(db.worker, request)).toMatchObject({
      closed: "closed",
      next: "sign",
      chunk: { number: 2 },
    });
    expect(await advance(db.worker, request)).toMatchObject({
      closed: "already_closed",
      next: "sign",
      chunk: { number: 2 },
    });
    await db.worker`select public.image_sync_hand_off(${request.run}, ${request.worker}, ${
      db.worker.array([request.lease ?? ""])
    }::uuid[])`;
    await workToEnd(db.worker, request.run);
    expect(await findViolations(db.admin, bucket)).toEqual([]);
  },
);

test("a worker that finds the run's row taken closes its chunk, is told so, and blocks nobody", async () => {
  const { bucket, request } = await closingCall();
  await db.admin.begin(async (transaction) => {
    await transaction`select from image_sync.runs where id = ${request.run} for update`;
    expect(await advance(db.worker, request)).toMatchObject({ closed: "closed", next: "busy" });
  });
  expect(await advance(db.worker, request)).toMatchObject({ closed: "already_closed", next: "sign" });
  await db.worker`select public.image_sync_cancel(${request.run})`;
  const { run } = await start(db.worker, bucket);
  await workToEnd(db.worker, run);
  expect(await findViolations(db.admin, bucket)).toEqual([]);
});

test("a chunk whose lease expired is taken over and its late writer is fenced off", async () => {
  const { bucket, request } = await closingCall();
  await db
    .admin`update image_sync.chunks set lease_expires_at = now() - interval '1 s' where run_id = ${request.run}`;
  const heir = { run: request.run, worker: randomUUID(), lease: randomUUID(), closing: null };
  const taken = await advance(db.worker, heir);
  expect(taken).toMatchObject({ next: "sign", chunk: { number: 1 } });
  expect(await advance(db.worker, { ...request, lease: null })).toMatchObject({ closed: "stale" });
  const closing = signAll(heir.lease, taken.chunk ?? { number: 0, names: [] });
  expect(await advance(db.worker, { ...heir, lease: null, closing })).toMatchObject({ closed: "closed" });
  const records = await db
    .admin`select signed_url from public.part_images where bucket_id = ${bucket} and signed_url is not null order by file_name`;
  expect(records.map((row) => row["signed_url"])).toEqual(closing.urls);
});
