import { randomUUID } from "node:crypto";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type BareStack, openBareStack } from "./support/bare_stack.ts";
import { type Mutation, withMutation } from "./support/mutation.ts";
import {
  advance,
  type AdvanceRequest,
  createRows,
  findViolations,
  signAll,
  start,
  workToEnd,
} from "./support/protocol.ts";

// A check that cannot fail proves nothing: each scenario below holds as the engine is, and fails with one mechanism taken out.
let db: BareStack;
beforeAll(async () => {
  db = await openBareStack();
});
afterAll(() => db?.close());

type Setting = { readonly bucket: string; readonly run: string };

async function newRun(count = 4, chunkSize = 2): Promise<Setting> {
  const names = Array.from({ length: count }, (_, index) => `${index + 1}.jpg`);
  const bucket = await createRows(db.admin, { names, settings: { chunk_size: chunkSize } });
  const { run } = await start(db.worker, bucket);
  return { bucket, run };
}

async function lease(run: string): Promise<{ request: AdvanceRequest; names: string[]; number: number }> {
  const request = { run, worker: randomUUID(), lease: randomUUID(), closing: null };
  const answer = await advance(db.worker, request);
  return { request, names: answer.chunk?.names ?? [], number: answer.chunk?.number ?? 0 };
}

const expire = (run: string) =>
  db.admin`update image_sync.chunks set lease_expires_at = now() - interval '1 s' where run_id = ${run} and state = 'leased'`;

async function endsWell({ bucket, run }: Setting): Promise<void> {
  let patience = 40;
  await workToEnd(db.worker, run, {
    onWait: async () => {
      if (patience-- === 0) throw new Error("the run does not end");
      await expire(run);
    },
  });
  expect(await findViolations(db.admin, bucket)).toEqual([]);
  const [row] = await db.admin`select image_sync.run_document(${run}) as document`;
  expect(row?.["document"]).toMatchObject({ state: "succeeded", balanced: true });
}

const closeChunk =
  "image_sync.close_chunk(image_sync.runs, image_sync.settings, uuid, text[], text[], bigint[], jsonb, jsonb, integer, integer)";
const claimChunk = "image_sync.claim_chunk(image_sync.runs, image_sync.settings, uuid, uuid)";
const nextWork =
  "image_sync.next_work(image_sync.runs, image_sync.settings, uuid, uuid, image_sync.chunks[])";

async function lateWriterIsFenced(): Promise<void> {
  const setting = await newRun(2, 2);
  const late = await lease(setting.run);
  await expire(setting.run);
  const heir = await lease(setting.run);
  const closing = signAll(late.request.lease ?? "", late.names);
  expect((await advance(db.worker, { ...late.request, lease: null, closing })).closed).toBe("stale");
  const own = signAll(heir.request.lease ?? "", heir.names);
  expect((await advance(db.worker, { ...heir.request, lease: null, closing: own })).closed).toBe("closed");
  const urls = await db
    .admin`select signed_url from public.part_images where bucket_id = ${setting.bucket} order by file_name`;
  expect(urls.map((row) => row["signed_url"]).toSorted()).toEqual([...own.urls].toSorted());
}

async function deadWorkerIsReplaced(): Promise<void> {
  const setting = await newRun();
  await lease(setting.run);
  await endsWell(setting);
}

async function liveLeaseIsRespected(): Promise<void> {
  const setting = await newRun(2, 2);
  const first = await lease(setting.run);
  expect(first.number).toBe(1);
  expect((await lease(setting.run)).number).not.toBe(1);
}

async function repeatedCallLeasesOnce(): Promise<void> {
  const setting = await newRun();
  const { request, number } = await lease(setting.run);
  expect((await advance(db.worker, request)).chunk?.number).toBe(number);
}

async function repeatedCloseCountsOnce(): Promise<void> {
  const setting = await newRun(2, 2);
  const { request, names } = await lease(setting.run);
  const close = { ...request, lease: null, closing: signAll(request.lease ?? "", names) };
  expect((await advance(db.worker, close)).closed).toBe("closed");
  expect((await advance(db.worker, close)).closed).toBe("already_closed");
}

async function lateDuplicateClosesNothingElse(): Promise<void> {
  const setting = await newRun();
  const { request, names } = await lease(setting.run);
  await expire(setting.run);
  await lease(setting.run); // chunk 1, taken over
  await advance(db.worker, request); // the duplicate comes last and gets chunk 2
  await advance(db.worker, { ...request, lease: null, closing: signAll(request.lease ?? "", names) });
  await endsWell(setting);
}

async function insertedElsewhereMeanwhile(): Promise<void> {
  const setting = await newRun(2, 2);
  await db.admin`insert into public.part_images (bucket_id, file_name) values (${setting.bucket}, '1.jpg')`;
  const [row] = await db.worker`
    select i.inserted, image_sync.count_of((i.chunk).ledger, 'recorded')::integer as recorded
    from image_sync.insert_missing(
      ${setting.bucket},
      jsonb_populate_record(null::image_sync.chunks, '{
        "from_key": "", "to_insert": ["1.jpg", "2.jpg"], "ledger": {"missing": 2}, "facts": {}, "problems": []
      }')
    ) as i`;
  expect(row).toMatchObject({ inserted: ["2.jpg"], recorded: 1 });
}

async function nightAndRequestOpenOneRun(): Promise<void> {
  const { bucket } = await newRun();
  await db.admin`select image_sync.open_run(${randomUUID()}, ${bucket}, 'sync', 'schedule', '{}', null, 0)`;
  const [row] = await db
    .admin`select count(*)::int as open from image_sync.runs where bucket_id = ${bucket} and finished_at is null`;
  expect(row).toEqual({ open: 1 });
}

async function cancelledRunTakesNoMore(): Promise<void> {
  const setting = await newRun(2, 2);
  const { request, names } = await lease(setting.run);
  await db.worker`select public.image_sync_cancel(${setting.run})`;
  const closing = signAll(request.lease ?? "", names);
  expect((await advance(db.worker, { ...request, lease: null, closing })).closed).toBe("stale");
  const leased = await db.admin`
    select from image_sync.chunks where run_id = ${setting.run} and lease_expires_at is not null`;
  expect(leased).toHaveLength(0);
}

/** Somebody holds the chunk's row while its run is cancelled: its lease cannot be released. */
async function cancelledRunIsClosedForGood(): Promise<void> {
  const setting = await newRun(2, 2);
  const { request, names } = await lease(setting.run);
  await db.admin.begin(async (session) => {
    await session`select from image_sync.chunks where run_id = ${setting.run} for update`;
    await db.worker`select public.image_sync_cancel(${setting.run})`;
  });
  const closing = signAll(request.lease ?? "", names);
  expect((await advance(db.worker, { ...request, lease: null, closing })).closed).toBe("stale");
}

/** A close whose transaction is open still when its run is ended in another one. */
async function closeAndEndMeet(end: (run: string) => Promise<unknown>): Promise<Record<string, unknown>> {
  const setting = await newRun(2, 2);
  const { request, names } = await lease(setting.run);
  const closing = signAll(request.lease ?? "", names);
  let ending: Promise<unknown> = Promise.resolve();
  await db.worker.begin(async (session) => {
    // It does without the run's row, as beside another worker, or that row alone would make them wait for each other.
    await db.admin.begin(async (other) => {
      await other`select from image_sync.runs where id = ${setting.run} for update`;
      await advance(session, { ...request, lease: null, closing });
    });
    ending = end(setting.run);
    ending.catch(() => {});
    await Promise.race([ending, new Promise((resolve) => setTimeout(resolve, 300))]);
  });
  await ending;
  const [row] = await db.admin`
    select image_sync.run_document(${setting.run}) as document, (
      select count(signed_url)::integer from public.part_images where bucket_id = ${setting.bucket}
    ) as rows`;
  return { ...row?.["document"], rows: row?.["rows"] };
}

async function cancelCountsWhatIsBeingClosed(): Promise<void> {
  const cancel = (run: string) => db.worker`select public.image_sync_cancel(${run})`;
  expect(await closeAndEndMeet(cancel)).toMatchObject({ state: "cancelled", totals: { signed: 2 }, rows: 2 });
}

async function noRunEndsBesideAClose(): Promise<void> {
  const stall = async (run: string) => {
    await db.admin`select image_sync.close_stalled(${run})`;
  };
  expect(await closeAndEndMeet(stall)).toMatchObject({ state: "open", totals: { signed: 2 }, rows: 2 });
}

async function lostNameIsNoticed(): Promise<void> {
  const setting = await newRun(2, 2);
  const { request, names } = await lease(setting.run);
  await advance(db.worker, {
    ...request,
    lease: null,
    closing: signAll(request.lease ?? "", names.slice(1)),
  });
  await workToEnd(db.worker, setting.run);
  const [row] = await db.admin`select image_sync.run_document(${setting.run}) as document`;
  expect(row?.["document"]).toMatchObject({ state: "partial", balanced: false });
}

async function guardHolds(): Promise<void> {
  const setting = await newRun(2, 2);
  await endsWell(setting);
  await db
    .admin`insert into public.part_images (bucket_id, file_name) select ${setting.bucket}, 'gone-' || n from generate_series(1, 8) as n`;
  const plan = await start(db.worker, setting.bucket, { mode: "cleanup" });
  await workToEnd(db.worker, plan.run);
  const applied = await start(db.worker, setting.bucket, { mode: "cleanup", options: { confirm: plan.run } });
  expect(applied.problem).toBe("too_large_fraction");
}

async function busyRunIsToldSo(): Promise<void> {
  const setting = await newRun();
  await db.admin.begin(async (transaction) => {
    await transaction`select from image_sync.runs where id = ${setting.run} for update`;
    const answer = await Promise.race([
      advance(db.worker, { run: setting.run, worker: randomUUID(), lease: randomUUID(), closing: null }),
      new Promise((resolve) => setTimeout(resolve, 2_000, "still waiting")),
    ]);
    expect(answer).toMatchObject({ next: "busy" });
  });
}

const cases: readonly {
  readonly mechanism: string;
  readonly holds: () => Promise<void>;
  readonly mutation: Mutation;
}[] = [
  {
    mechanism: "the comparison of the fencing token",
    holds: lateWriterIsFenced,
    mutation: {
      signature: closeChunk,
      from: "and c.lease_token = p_token\n  for update skip locked",
      to: "and c.state = 'leased'\n  for update skip locked",
    },
  },
  {
    mechanism: "the end of a lease that ran out",
    holds: deadWorkerIsReplaced,
    mutation: { signature: claimChunk, from: "c.lease_expires_at <= clock_timestamp()", to: "false" },
  },
  {
    mechanism: "the respect for a lease that has not",
    holds: liveLeaseIsRespected,
    mutation: { signature: claimChunk, from: "c.lease_expires_at <= clock_timestamp()", to: "true" },
  },
  {
    mechanism: "the recognition of a repeated call",
    holds: repeatedCallLeasesOnce,
    mutation: { signature: nextWork, from: "held.lease_token = p_lease", to: "false" },
  },
  {
    mechanism: "the recognition of a repeated close",
    holds: repeatedCloseCountsOnce,
    mutation: {
      signature: closeChunk,
      from: "if v_chunk.state is distinct from 'leased' or",
      to: "if v_chunk.state is null or",
    },
  },
  {
    mechanism: "the memory of a chunk's past leases",
    holds: lateDuplicateClosesNothingElse,
    mutation: { signature: nextWork, from: "p_lease = any (passed.past_leases)", to: "false" },
  },
  {
    mechanism: "the key of a record",
    holds: insertedElsewhereMeanwhile,
    mutation: {
      apply: "drop index public.part_images_bucket_id_file_name_key",
      undo: `
        delete from public.part_images p using public.part_images q
        where p.bucket_id = q.bucket_id and p.file_name = q.file_name and p.id < q.id;
        create unique index part_images_bucket_id_file_name_key on public.part_images (bucket_id, file_name collate "C")`,
    },
  },
  {
    mechanism: "the index of open runs",
    holds: nightAndRequestOpenOneRun,
    mutation: {
      apply: "drop index image_sync.runs_open_key",
      undo: `
        update image_sync.runs set finished_at = now(), outcome = 'failed' where finished_at is null;
        create unique index runs_open_key on image_sync.runs (bucket_id, mode) where finished_at is null`,
    },
  },
  {
    mechanism: "the release of a cancelled run's leases",
    holds: cancelledRunTakesNoMore,
    mutation: {
      signature: "image_sync.finish_run(uuid, text, text, jsonb, jsonb)",
      from: "perform image_sync.release_chunks(p_run, null);",
      to: "",
    },
  },
  {
    mechanism: "the look at the run before a chunk is closed",
    holds: cancelledRunIsClosedForGood,
    mutation: { signature: closeChunk, from: "or p_run.finished_at is not null", to: "" },
  },
  {
    mechanism: "the wait of a cancel for what is being closed",
    holds: cancelCountsWhatIsBeingClosed,
    mutation: {
      signature: "image_sync.await_closes(uuid)",
      from: "perform pg_advisory_xact_lock(image_sync.closing_key(p_run));",
      to: "",
    },
  },
  {
    mechanism: "the end of a run by one who is alone at it",
    holds: noRunEndsBesideAClose,
    mutation: {
      signature: "image_sync.finish_run(uuid, text, text, jsonb, jsonb)",
      from: "not pg_try_advisory_xact_lock(image_sync.closing_key(p_run))",
      to: "false",
    },
  },
  {
    mechanism: "the count of what is owed still",
    holds: lostNameIsNoticed,
    mutation: {
      signature:
        "image_sync.account_for_names(image_sync.runs, image_sync.settings, image_sync.signing, text[], jsonb)",
      from: "if v_to_sign <> image_sync.count_of(v_chunk.ledger, 'to_sign') then",
      to: "if false then",
    },
  },
  {
    mechanism: "the guard of the fraction",
    holds: guardHolds,
    mutation: {
      signature: "image_sync.guard_removal(image_sync.runs, jsonb)",
      from: "v_total > v_records * v_max.max_delete_fraction",
      to: "false",
    },
  },
  {
    mechanism: "the limit on waiting for the run's row",
    holds: busyRunIsToldSo,
    mutation: {
      signature: "image_sync.lock_run(uuid)",
      from: "SET lock_timeout TO '400ms'",
      to: "SET lock_timeout TO '20s'",
    },
  },
];

describe.each(cases)("$mechanism", ({ holds, mutation }) => {
  test("does what its scenario asks for", () => holds());
  test("is missed by its scenario when it is gone", async () => {
    expect(await withMutation(db.admin, mutation, holds)).not.toBeNull();
  });
});
