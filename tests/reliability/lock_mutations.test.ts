import { randomUUID } from "node:crypto";
import type { ReservedSql } from "postgres";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type BareStack, openBareStack } from "./support/bare_stack.ts";
import { type Mutation, withMutation } from "./support/mutation.ts";
import {
  advance,
  type Answer,
  type Closing,
  createRows,
  endAttempt,
  findViolations,
  signAll,
  start,
  workToEnd,
} from "./support/protocol.ts";

// What the engine does about locks and time, each scenario with the mechanism and without it (mutations.test.ts has the others).
let db: BareStack;
beforeAll(async () => {
  db = await openBareStack();
});
afterAll(() => db?.close());

async function newRun(names: readonly string[], settings: Record<string, number | string | boolean> = {}) {
  const bucket = await createRows(db.admin, { names, settings });
  const { run } = await start(db.worker, bucket);
  return { bucket, run };
}

async function lease(run: string) {
  const request = { run, worker: randomUUID(), lease: randomUUID(), closing: null };
  const { chunk } = await advance(db.worker, request);
  if (chunk === undefined) throw new Error(`There is no chunk to lease in run ${run}`);
  return { request, chunk };
}

const names = Array.from({ length: 6 }, (_, index) => `${index + 1}.jpg`);

/** Lets `act` run beside an open transaction; fails where it waits for it. */
async function beside(
  hold: (session: ReservedSql) => Promise<unknown>,
  act: () => Promise<unknown>,
): Promise<void> {
  const session = await db.admin.reserve();
  try {
    await session`begin`;
    await hold(session);
    const acting = act();
    acting.catch(() => {}); // where it is given up, what becomes of it afterwards is of no interest
    await Promise.race([
      acting,
      new Promise((_, reject) => setTimeout(reject, 4_000, new Error("still waiting after 4 s"))),
    ]);
  } finally {
    await session`rollback`;
    session.release();
  }
}

async function documentOf(run: string) {
  const [row] = await db.admin`select image_sync.run_document(${run}) as document`;
  return row?.["document"];
}

async function heldInsertCostsItself(): Promise<void> {
  const { bucket, run } = await newRun(names);
  await beside(
    (session) => session`insert into public.part_images (bucket_id, file_name) values (${bucket}, '3.jpg')`,
    () => workToEnd(db.worker, run),
  );
  expect(await documentOf(run)).toMatchObject({
    state: "partial",
    stop_reason: "row_locked",
    balanced: true,
    totals: { inserted: 5, signed: 5, held: 1 },
  });
}

async function heldRecordCostsItself(): Promise<void> {
  const { bucket, run } = await newRun(names);
  await db.admin`
    insert into public.part_images (bucket_id, file_name)
    select ${bucket}, n from unnest(${db.admin.array(names)}::text[]) as n`;
  await beside(
    (session) =>
      session`select from public.part_images where bucket_id = ${bucket} and file_name = '3.jpg' for update`,
    () => workToEnd(db.worker, run),
  );
  expect(await documentOf(run)).toMatchObject({
    state: "partial",
    stop_reason: "row_locked",
    balanced: true,
    totals: { signed: 5, held: 1 },
  });
}

async function heldChunkIsClosedLater(): Promise<void> {
  const { bucket, run } = await newRun(names);
  const { request, chunk } = await lease(run);
  const closing = signAll(request.lease, chunk);
  await beside(
    (session) => session`select from image_sync.chunks where run_id = ${run} for update`,
    async () => {
      expect((await advance(db.worker, { ...request, lease: null, closing })).closed).toBe("more");
    },
  );
  await workToEnd(db.worker, run, { onWait: () => Promise.reject(new Error("somebody holds the chunk")) })
    .catch(() => {});
  expect((await advance(db.worker, { ...request, lease: null, closing })).closed).toBe("closed");
  const [row] = await db.admin`
    select count(signed_url)::integer as signed from public.part_images where bucket_id = ${bucket}`;
  expect(row).toEqual({ signed: 6 });
}

/** A worker whose every close of more than `fits` rows times out. Returns how many chunks it had to sign. */
async function workWithSlowDatabase(run: string, fits: number): Promise<number> {
  const worker = randomUUID();
  let closing: Closing | null = null;
  let signed = 0;
  for (let calls = 0; calls < 200; calls++) {
    const [slice] = await db.admin<{ rows: number }[]>`
      select least(c.write_size, cardinality(c.to_do)) as rows
      from image_sync.chunks c where c.run_id = ${run} and c.number = ${closing?.number ?? 0}`;
    if (closing !== null && (slice?.rows ?? 0) > fits) {
      const attempt = { run, worker, lease: null, closing: closing.lease, code: "database_timeout" } as const;
      if (!await endAttempt(db.worker, attempt)) closing = null;
      continue;
    }
    const lease: string = randomUUID();
    const answer: Answer = await advance(db.worker, { run, worker, lease, closing });
    if (answer.next === "stop") return signed;
    if (answer.next === "more") continue;
    closing = null;
    if (answer.next !== "sign" || answer.chunk === undefined) continue;
    closing = signAll(lease, answer.chunk);
    signed++;
  }
  throw new Error("the run does not end");
}

async function slowChunkIsWrittenInTenths(): Promise<void> {
  const { bucket, run } = await newRun(names, { max_attempts: 1 });
  // The same lease, the same URLs.
  expect(await workWithSlowDatabase(run, 2)).toBe(1);
  expect(await documentOf(run)).toMatchObject({
    state: "succeeded",
    balanced: true,
    totals: { listed: 6, inserted: 6, signed: 6 },
    error: { code: "database_timeout" },
  });
  expect(await findViolations(db.admin, bucket)).toEqual([]);
}

async function slowNameIsGivenUp(): Promise<void> {
  const { run } = await newRun(names);
  await workWithSlowDatabase(run, 0);
  expect(await documentOf(run)).toMatchObject({
    state: "partial",
    stop_reason: "database_timeout",
    balanced: true,
    totals: { listed: 6, failed: 6 },
  });
}

async function lockKillsNoChunk(): Promise<void> {
  const { bucket, run } = await newRun(names, { max_attempts: 1 });
  for (let tried = 0; tried < 5; tried++) {
    const lease = randomUUID();
    const answer = await advance(db.worker, { run, worker: randomUUID(), lease, closing: null });
    expect(answer.next).toBe("sign");
    await endAttempt(db.worker, {
      run,
      worker: randomUUID(),
      lease: null,
      closing: lease,
      code: "row_locked",
    });
  }
  await workToEnd(db.worker, run);
  expect(await documentOf(run)).toMatchObject({ state: "succeeded", totals: { signed: 6 } });
  expect(await findViolations(db.admin, bucket)).toEqual([]);
}

async function lookingIsNoProgress(): Promise<void> {
  const { run } = await newRun(names);
  await advance(db.worker, { run, worker: randomUUID(), lease: randomUUID(), closing: null });
  await db.admin`update image_sync.runs set moved_at = '2026-01-01' where id = ${run}`;
  await db.admin`update image_sync.chunks set lease_expires_at = now() where run_id = ${run}`;
  expect((await advance(db.worker, { run, worker: randomUUID(), lease: randomUUID(), closing: null })).next)
    .toBe(
      "sign",
    );
  await db.worker`select public.image_sync_hand_off(${run}, ${randomUUID()}, null)`;
  const [row] = await db
    .admin`select moved_at = '2026-01-01' as stands from image_sync.runs where id = ${run}`;
  expect(row).toEqual({ stands: true });
}

async function closingIsProgress(): Promise<void> {
  const { run } = await newRun(names);
  const { request, chunk } = await lease(run);
  await db.admin`update image_sync.runs set moved_at = '2026-01-01' where id = ${run}`;
  await advance(db.worker, { ...request, lease: null, closing: signAll(request.lease, chunk) });
  const [row] = await db
    .admin`select moved_at > '2026-01-01' as moved from image_sync.runs where id = ${run}`;
  expect(row).toEqual({ moved: true });
}

async function aBadBucketCostsNoOtherItsNight(): Promise<void> {
  await db.admin`update image_sync.settings set nightly = false`;
  const held = await newRun(names, { nightly: true });
  const good = await createRows(db.admin, { names, settings: { nightly: true } });
  await beside(
    (session) => session`select from image_sync.runs where id = ${held.run} for update`,
    () => db.admin`select image_sync.run_nightly()`,
  );
  const nights = await db.admin`
    select bucket_id = ${good} as good, error ->> 'code' as code
    from image_sync.runs where trigger = 'schedule' and bucket_id in (${good}, ${held.bucket})`;
  expect([...nights].toSorted((one) => one["good"] ? -1 : 1)).toMatchObject([
    { good: true },
    { good: false, code: "row_locked" },
  ]);
}

async function aForeignUrlIsSignedAnew(): Promise<void> {
  const { bucket, run } = await newRun(names);
  await workToEnd(db.worker, run);
  await db.worker`select public.image_sync_announce('https://project.example', image_sync.schema_version())`;
  try {
    await db.admin`
      update public.part_images
      set signed_url = case file_name when '3.jpg' then 'https://elsewhere.example' else 'https://project.example' end
        || '/storage/v1/object/sign/' || bucket_id || '/' || file_name || '?token=x'
      where bucket_id = ${bucket}`;
    const next = await start(db.worker, bucket);
    const answer = await advance(db.worker, {
      run: next.run,
      worker: randomUUID(),
      lease: randomUUID(),
      closing: null,
    });
    expect(answer.chunk?.names).toEqual(["3.jpg"]);
    await db.worker`select public.image_sync_cancel(${next.run})`;
  } finally {
    await db.admin`delete from image_sync.project`;
  }
}

/** A lock on the whole table, as create index has it, which lets everybody read. */
async function heldTableLeavesNothingOut(): Promise<void> {
  const { run } = await newRun(names);
  const { request, chunk } = await lease(run);
  await beside(
    (session) => session`lock table public.part_images in share mode`,
    async () => {
      const closing = { ...request, lease: null, closing: signAll(request.lease, chunk) };
      const words = advance(db.worker, closing).then(() => "answered", (error: Error) => error.message);
      expect(await words).toContain("lock timeout");
    },
  );
}

async function deferredRuleCostsItsRow(): Promise<void> {
  await db.admin.unsafe(
    "alter table public.part_images add constraint test_part_number unique (bucket_id, part_number) deferrable initially deferred",
  );
  try {
    const { run } = await newRun([...names, "twin/3.jpg"]);
    await workToEnd(db.worker, run);
    expect(await documentOf(run)).toMatchObject({ totals: { inserted: 6, collided: 1 } });
  } finally {
    await db.admin.unsafe("alter table public.part_images drop constraint test_part_number");
  }
}

const writeRows = "image_sync.write_rows(text, image_sync.runs, image_sync.item[], timestamptz)";
const accountFor =
  "image_sync.account_for(image_sync.runs, image_sync.settings, image_sync.chunks, image_sync.item[], image_sync.write, jsonb, boolean)";
const lockTimeout = (signature: string): Mutation => ({
  signature,
  from: "SET lock_timeout TO '400ms'",
  to: "SET lock_timeout TO '20s'",
});
const interruptChunk =
  "image_sync.interrupt_chunk(image_sync.runs, image_sync.settings, image_sync.chunks, jsonb)";
const rpcAdvance =
  "public.image_sync_advance(uuid, uuid, uuid, uuid, text[], text[], text[], text[], bigint[], jsonb, jsonb, integer, integer, integer)";

const cases: readonly {
  readonly mechanism: string;
  readonly holds: () => Promise<void>;
  readonly mutation: Mutation;
}[] = [
  {
    mechanism: "the limit on waiting for an insert of somebody else",
    holds: heldInsertCostsItself,
    mutation: lockTimeout(writeRows),
  },
  {
    mechanism: "the limit on waiting for a record of somebody else",
    holds: heldRecordCostsItself,
    mutation: lockTimeout(writeRows),
  },
  {
    mechanism: "the look for records that somebody holds, without waiting",
    holds: heldRecordCostsItself,
    mutation: {
      signature: "image_sync.held_names(text, text[])",
      from: "for update skip locked",
      to: "for update",
    },
  },
  {
    mechanism: "the short patience with a row that is tried by itself",
    holds: heldInsertCostsItself,
    mutation: { signature: "image_sync.row_patience(timestamptz)", from: "'20ms'", to: "'20s'" },
  },
  {
    mechanism: "the count of what somebody holds",
    holds: heldInsertCostsItself,
    mutation: { signature: accountFor, from: "when e.is_held then 'held' ", to: "" },
  },
  {
    mechanism: "the difference between a held row and a refused one",
    holds: heldInsertCostsItself,
    mutation: { signature: "image_sync.is_held(text)", from: "'55P03'", to: "'00000'" },
  },
  {
    mechanism: "the limit on waiting for a chunk that somebody holds",
    holds: heldChunkIsClosedLater,
    mutation: lockTimeout("image_sync.lock_chunk(uuid, integer)"),
  },
  {
    mechanism: "writing in tenths what took too long",
    holds: slowChunkIsWrittenInTenths,
    mutation: {
      signature: interruptChunk,
      from: "greatest(v_size / 10, 1)",
      to: "v_size",
    },
  },
  {
    mechanism: "giving up one name that takes too long",
    holds: slowNameIsGivenUp,
    mutation: { signature: interruptChunk, from: "case when v_size <= 1 then", to: "case when false then" },
  },
  {
    mechanism: "the patience with attempts that a lock ended",
    holds: lockKillsNoChunk,
    mutation: {
      signature: interruptChunk,
      from: "set state = 'pending', not_before",
      to: "set state = 'pending', attempts = c.attempts + 1, not_before",
    },
  },
  {
    mechanism: "the stillness of a run that is only looked at",
    holds: lookingIsNoProgress,
    mutation: {
      signature: "image_sync.claim_chunk(image_sync.runs)",
      from: "return v_chunk;",
      to: "update image_sync.runs r set moved_at = now() where r.id = p_run.id; return v_chunk;",
    },
  },
  {
    mechanism: "the progress that closing a chunk is",
    holds: closingIsProgress,
    mutation: {
      signature: "image_sync.note_progress(uuid, image_sync.settings, interval)",
      from: "moved_at = clock_timestamp(),",
      to: "",
    },
  },
  {
    mechanism: "a night of its own for each bucket",
    holds: aBadBucketCostsNoOtherItsNight,
    mutation: {
      signature: "image_sync.start_night(text)",
      from: "when others then",
      to: "when others then raise;",
    },
  },
  {
    mechanism: "the look at a URL's address",
    holds: aForeignUrlIsSignedAnew,
    mutation: {
      signature: "image_sync.url_base(image_sync.settings)",
      from: "image_sync.project p",
      to: "image_sync.project p where false",
    },
  },
  {
    mechanism: "the difference between a held table and held rows",
    holds: heldTableLeavesNothingOut,
    mutation: {
      signature: "image_sync.need_table()",
      from: "lock table public.part_images in row exclusive mode;",
      to: "",
    },
  },
  {
    mechanism: "asking at once what is deferred",
    holds: deferredRuleCostsItsRow,
    mutation: { signature: "image_sync.check_deferred()", from: "set constraints all immediate;", to: "" },
  },
  {
    mechanism: "the limit on waiting of every other statement of an advance",
    holds: async () => {
      const { run } = await newRun(names);
      await beside(
        (session) => session`lock table public.part_images in access exclusive mode`,
        async () => {
          const request = { run, worker: randomUUID(), lease: randomUUID(), closing: null };
          const words = advance(db.worker, request).then(() => "answered", (error: Error) => error.message);
          expect(await words).toContain("lock timeout");
        },
      );
    },
    mutation: lockTimeout(rpcAdvance),
  },
];

describe.each(cases)("$mechanism", ({ holds, mutation }) => {
  test("does what its scenario asks for", () => holds());
  test("is missed by its scenario when it is gone", async () => {
    expect(await withMutation(db.admin, mutation, holds)).not.toBeNull();
  });
});
