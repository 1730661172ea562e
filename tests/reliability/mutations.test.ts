import { randomUUID } from "node:crypto";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type BareStack, openBareStack } from "./support/bare_stack.ts";
import { type Mutation, withMutation } from "./support/mutation.ts";
import {
  advance,
  type AdvanceRequest,
  type Chunk,
  type Closing,
  createRows,
  failed,
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

async function lease(run: string): Promise<{ request: AdvanceRequest & { lease: string }; chunk: Chunk }> {
  const request = { run, worker: randomUUID(), lease: randomUUID(), closing: null };
  const { chunk } = await advance(db.worker, request);
  return { request, chunk: chunk ?? { number: 0, names: [] } };
}

type Leased = Awaited<ReturnType<typeof lease>>;

const closeOf = ({ request, chunk }: Leased): AdvanceRequest & { closing: Closing } => ({
  ...request,
  lease: null,
  closing: signAll(request.lease, chunk),
});

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

const closeLease =
  "image_sync.close_lease(image_sync.runs, image_sync.settings, integer, uuid, text[], text[], bigint[], jsonb, jsonb, integer, integer)";
const closeChunk =
  "image_sync.close_chunk(image_sync.runs, image_sync.settings, image_sync.chunks, text[], text[], bigint[], jsonb, jsonb)";
const accountFor =
  "image_sync.account_for(image_sync.runs, image_sync.settings, image_sync.chunks, image_sync.item[], image_sync.write, jsonb, boolean)";
const claimChunk = "image_sync.claim_chunk(image_sync.runs)";
const leaseChunk = "image_sync.lease_chunk(image_sync.chunks, image_sync.settings, uuid, uuid)";
const nextWork = "image_sync.next_work(image_sync.runs, image_sync.settings, uuid, uuid)";
const workDocument = "image_sync.work_document(image_sync.runs, image_sync.settings, image_sync.chunks)";
const writeStore = "image_sync.write_store(image_sync.runs, image_sync.item[])";

async function lateWriterIsFenced(): Promise<void> {
  const setting = await newRun(2, 2);
  const late = await lease(setting.run);
  await expire(setting.run);
  const heir = await lease(setting.run);
  expect((await advance(db.worker, closeOf(late))).closed).toBe("stale");
  const own = closeOf(heir);
  expect((await advance(db.worker, own)).closed).toBe("closed");
  const urls = await db
    .admin`select signed_url from public.part_images where bucket_id = ${setting.bucket} order by file_name`;
  expect(urls.map((row) => row["signed_url"]).toSorted()).toEqual([...own.closing.urls].toSorted());
}

async function deadWorkerIsReplaced(): Promise<void> {
  const setting = await newRun();
  await lease(setting.run);
  await endsWell(setting);
}

async function liveLeaseIsRespected(): Promise<void> {
  const setting = await newRun(2, 2);
  const first = await lease(setting.run);
  expect(first.chunk.number).toBe(1);
  expect((await lease(setting.run)).chunk.number).not.toBe(1);
}

async function repeatedCallLeasesOnce(): Promise<void> {
  const setting = await newRun();
  const { request, chunk } = await lease(setting.run);
  expect((await advance(db.worker, request)).chunk?.number).toBe(chunk.number);
}

async function repeatedCloseCountsOnce(): Promise<void> {
  const setting = await newRun(2, 2);
  const close = closeOf(await lease(setting.run));
  expect((await advance(db.worker, close)).closed).toBe("closed");
  expect((await advance(db.worker, close)).closed).toBe("already_closed");
}

async function lateDuplicateClosesNothingElse(): Promise<void> {
  const setting = await newRun();
  const late = await lease(setting.run);
  await expire(setting.run);
  await lease(setting.run); // chunk 1, taken over
  await advance(db.worker, late.request); // the duplicate comes last and gets chunk 2
  await advance(db.worker, closeOf(late));
  await endsWell(setting);
}

async function closeWaitsForItsChunk(): Promise<void> {
  const setting = await newRun(2, 2);
  const close = closeOf(await lease(setting.run));
  await db.admin.begin(async (transaction) => {
    await transaction`select from image_sync.chunks where run_id = ${setting.run} for update`;
    expect(await advance(db.worker, close)).toMatchObject({ closed: "more", next: "more" });
    const [row] = await transaction`
      select count(*)::integer as records from public.part_images where bucket_id = ${setting.bucket}`;
    expect(row).toEqual({ records: 0 });
  });
  expect((await advance(db.worker, close)).closed).toBe("closed");
  await endsWell(setting);
}

async function insertedElsewhereMeanwhile(): Promise<void> {
  const setting = await newRun(2, 2);
  const close = closeOf(await lease(setting.run));
  await db.admin.begin(async (transaction) => {
    await transaction`
      insert into public.part_images (bucket_id, file_name) values (${setting.bucket}, '1.jpg')`;
    expect((await advance(db.worker, close)).closed).toBe("closed");
  });
  await workToEnd(db.worker, setting.run);
  await endsWell({ ...setting, run: (await start(db.worker, setting.bucket)).run });
}

async function chunkThatFailsTooOftenIsGivenUp(): Promise<void> {
  const setting = await newRun(2, 2);
  await db.admin`update image_sync.settings set max_attempts = 1 where bucket_id = ${setting.bucket}`;
  const { closing, ...request } = closeOf(await lease(setting.run));
  await advance(db.worker, { ...request, closing: failed(closing) });
  const heir = await lease(setting.run);
  expect(heir.chunk.names).toEqual([]);
  expect((await advance(db.worker, closeOf(heir))).closed).toBe("closed");
  await workToEnd(db.worker, setting.run);
  const [row] = await db.admin`
    select image_sync.run_document(${setting.run}) as document, (
      select jsonb_agg(p.signed_url) from public.part_images p where p.bucket_id = ${setting.bucket}
    ) as urls`;
  expect(row).toMatchObject({
    document: { balanced: true, totals: { inserted: 2, signed: 0, failed: 2, missing: 0 } },
    urls: [null, null],
  });
  const [chunk] = await db.admin`
    select state, error ->> 'code' as code from image_sync.chunks where run_id = ${setting.run} and number = 1`;
  expect(chunk).toEqual({ state: "dead", code: "signing_failed" });
}

async function chunkThatKillsItsWorkersIsLeft(): Promise<void> {
  const setting = await newRun(2, 2);
  await db.admin`update image_sync.settings set max_attempts = 1 where bucket_id = ${setting.bucket}`;
  for (let died = 0; died < 4; died++) {
    await lease(setting.run);
    await expire(setting.run);
  }
  expect((await advance(db.worker, closeOf(await lease(setting.run)))).closed).toBe("closed");
  await workToEnd(db.worker, setting.run);
  const [row] = await db.admin`select image_sync.run_document(${setting.run}) as document`;
  expect(row?.["document"]).toMatchObject({
    balanced: true,
    totals: { inserted: 0, failed: 2, missing: 2, collided: 0 },
  });
}

async function recordThatWaitsFollowsItsFile(): Promise<void> {
  const setting = await newRun(1, 2);
  await endsWell(setting);
  const { bucket } = setting;
  await db.admin`update public.part_images set signed_url = null where bucket_id = ${bucket}`;
  const next = { bucket, run: (await start(db.worker, bucket)).run };
  const close = closeOf(await lease(next.run));
  await db.admin`update storage.objects set name = 'moved.jpg' where bucket_id = ${bucket}`;
  await db.admin`insert into storage.objects (bucket_id, name) values (${bucket}, '1.jpg')`;
  const [before] = await db.admin`select id from public.part_images where bucket_id = ${bucket}`;
  await advance(db.worker, close);
  await workToEnd(db.worker, next.run);
  await endsWell({ bucket, run: (await start(db.worker, bucket)).run });
  const [after] = await db.admin`
    select id from public.part_images where bucket_id = ${bucket} and file_name = 'moved.jpg'`;
  expect(after).toEqual(before);
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
  const close = closeOf(await lease(setting.run));
  await db.worker`select public.image_sync_cancel(${setting.run})`;
  expect((await advance(db.worker, close)).closed).toBe("stale");
  const leased = await db.admin`
    select from image_sync.chunks where run_id = ${setting.run} and lease_expires_at is not null`;
  expect(leased).toHaveLength(0);
}

/** Somebody holds the chunk's row while its run is cancelled: its lease cannot be released. */
async function cancelledRunIsClosedForGood(): Promise<void> {
  const setting = await newRun(2, 2);
  const close = closeOf(await lease(setting.run));
  await db.admin.begin(async (session) => {
    await session`select from image_sync.chunks where run_id = ${setting.run} for update`;
    await db.worker`select public.image_sync_cancel(${setting.run})`;
  });
  expect((await advance(db.worker, close)).closed).toBe("stale");
}

/** A close whose transaction is open still when its run is ended in another one. */
async function closeAndEndMeet(end: (run: string) => Promise<unknown>): Promise<Record<string, unknown>> {
  const setting = await newRun(2, 2);
  const close = closeOf(await lease(setting.run));
  let ending: Promise<unknown> = Promise.resolve();
  await db.worker.begin(async (session) => {
    // It does without the run's row, as beside another worker, or that row alone would make them wait for each other.
    await db.admin.begin(async (other) => {
      await other`select from image_sync.runs where id = ${setting.run} for update`;
      await advance(session, close);
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
    await db.admin`update image_sync.runs set moved_at = now() - interval '7 hours' where id = ${run}`;
    await db.admin`select image_sync.run_nightly()`;
  };
  expect(await closeAndEndMeet(stall)).toMatchObject({ state: "open", totals: { signed: 2 }, rows: 2 });
}

async function lostNameIsNoticed(): Promise<void> {
  const setting = await newRun(2, 2);
  const { request, chunk } = await lease(setting.run);
  await advance(db.worker, closeOf({ request, chunk: { ...chunk, names: chunk.names.slice(1) } }));
  await workToEnd(db.worker, setting.run);
  const [row] = await db.admin`select image_sync.run_document(${setting.run}) as document`;
  expect(row?.["document"]).toMatchObject({
    state: "partial",
    balanced: true,
    totals: { signed: 1, failed: 1 },
    problems: [{ name: "1.jpg" }],
  });
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
      signature: closeLease,
      from: "v_chunk.lease_token is distinct from p_token or ",
      to: "",
    },
  },
  {
    mechanism: "the new token of each lease",
    holds: lateWriterIsFenced,
    mutation: {
      signature: leaseChunk,
      from: "lease_token = p_lease",
      to: "lease_token = coalesce(c.lease_token, p_lease)",
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
    mutation: { signature: nextWork, from: "c.lease_token = p_lease", to: "false" },
  },
  {
    mechanism: "the recognition of a repeated close",
    holds: repeatedCloseCountsOnce,
    mutation: {
      signature: closeLease,
      from: "elsif v_chunk.state <> 'leased' then",
      to: "elsif false then",
    },
  },
  {
    mechanism: "the number of the chunk that a close is for",
    holds: lateDuplicateClosesNothingElse,
    mutation: {
      signature: closeLease,
      from: "image_sync.lock_chunk(p_run.id, p_number)",
      to:
        "image_sync.lock_chunk(p_run.id, (select c.number from image_sync.chunks c where c.run_id = p_run.id and c.lease_token = p_token))",
    },
  },
  {
    mechanism: "the lock on the chunk that is closed",
    holds: closeWaitsForItsChunk,
    mutation: { signature: "image_sync.lock_chunk(uuid, integer)", from: "for update;", to: ";" },
  },
  {
    mechanism: "the end of the attempts at a chunk",
    holds: chunkThatFailsTooOftenIsGivenUp,
    mutation: {
      signature: workDocument,
      from: "case when p_chunk.attempts < p_settings.max_attempts then p_chunk.to_do else '{}' end",
      to: "p_chunk.to_do",
    },
  },
  {
    mechanism: "the records of a chunk that is given up",
    holds: chunkThatFailsTooOftenIsGivenUp,
    mutation: {
      signature: closeChunk,
      from: "if p_chunk.attempts < p_settings.max_attempts + 3 then",
      to: "if p_chunk.attempts < p_settings.max_attempts then",
    },
  },
  {
    mechanism: "the end of what kills its workers",
    holds: chunkThatKillsItsWorkersIsLeft,
    mutation: {
      signature: closeChunk,
      from: "if p_chunk.attempts < p_settings.max_attempts + 3 then",
      to: "if true then",
    },
  },
  {
    mechanism: "the link of a record that waits for its file",
    holds: recordThatWaitsFollowsItsFile,
    mutation: {
      signature: writeStore,
      from: "object_id = case when w.is_leaving then p.object_id else w.object_id end",
      to: "object_id = w.object_id",
    },
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
    mutation: {
      signature: closeLease,
      from: "p_run.finished_at is not null and v_chunk.state = 'leased' or ",
      to: "",
    },
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
    mechanism: "the failure of a name that nothing was said of",
    holds: lostNameIsNoticed,
    mutation: {
      signature: accountFor,
      from: "when p_is_given_up or e.is_record then 'failed'",
      to: "when p_is_given_up then 'failed'",
    },
  },
  {
    mechanism: "the count of images that are not settled yet",
    holds: deadWorkerIsReplaced,
    mutation: {
      signature: accountFor,
      from: "'unsettled', -cardinality(p_write.inserted)",
      to: "'unsettled', 0",
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
