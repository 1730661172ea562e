/** How runs end beside others: what was counted is what was done. */
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from "vitest";
import type { Closing } from "../../supabase/functions/image-sync/database.ts";
import { apply, createTidyBucket, dryRun, goneNames, restore } from "../cleanup/support/records.ts";
import {
  createBucket,
  eventually,
  numberedNames,
  openRun,
  readProblem,
  readRecords,
  readReport,
  waitForEnd,
  wake,
} from "./support/lab.ts";
import { type LocalLab, openLocalLab, runJob, setLatency } from "./support/local_lab.ts";

let lab: LocalLab;
beforeAll(async () => void (lab = await openLocalLab()));
afterAll(() => lab?.close());

test("an analyze that is open looks once more at what a restore brings back", async () => {
  const bucket = await createTidyBucket(lab, {
    images: 30,
    orphans: goneNames(20),
    settings: { max_delete_fraction: 1 },
  });
  const cleanup = await apply(lab, bucket, (await dryRun(lab, bucket)).id);
  await eventually(
    async () => (await readReport(lab, bucket)).difference.orphaned.count === 0 || undefined,
    "the report to know of the cleanup",
  );
  const { run: analyze } = await lab.database.start({
    run: crypto.randomUUID(),
    bucket,
    mode: "analyze",
    options: {},
  });
  // It has passed all names.
  await lab.sql`update image_sync.runs set cursor = 'zzz' where id = ${analyze.id}`;
  await restore(lab, bucket, cleanup.id);
  expect(await waitForEnd(lab, analyze.id)).toMatchObject({ state: "succeeded", totals: { orphaned: 20 } });
  expect((await readReport(lab, bucket)).difference.orphaned.count).toBe(20);
});

test("a cancelled run counts what its workers closed meanwhile", async () => {
  const bucket = await createBucket(lab, { settings: { chunk_size: 20 }, objects: numberedNames(2_000) });
  const run = await openRun(lab, bucket);
  await setLatency(lab, 30);
  await wake(lab, run.id);
  await eventually(async () => {
    const [row] = await lab
      .sql`select count(*)::integer as done from image_sync.chunks where run_id = ${run.id} and state = 'done'`;
    return row?.["done"] >= 8 || undefined;
  }, "some chunks to be closed");
  const cancelled = await lab.database.cancel(run.id);
  await setLatency(lab, 0);
  // Whoever is late changes nothing any more.
  await new Promise((resolve) => setTimeout(resolve, 500));
  expect(cancelled).toMatchObject({ state: "cancelled", balanced: true });
  expect(cancelled.totals.signed).toBeGreaterThan(100);
  expect(await signedRows(bucket)).toBe(cancelled.totals.signed);
});

/** How many records of a bucket have a URL. */
async function signedRows(bucket: string): Promise<number> {
  return (await readRecords(lab, bucket)).filter(({ signed_url }) => signed_url !== null).length;
}

/** Leases the next chunk of a run; returns what a worker closes it with. */
async function leaseChunk(run: string): Promise<Closing> {
  const lease = crypto.randomUUID();
  const answer = await lab.database.advance({ run, worker: crypto.randomUUID(), lease, closing: null });
  if (answer.next !== "sign") throw new Error(`There is nothing to sign: ${JSON.stringify(answer)}`);
  const { names, expiresIn } = answer.chunk;
  const expires = Math.floor(Date.now() / 1000) + expiresIn;
  return {
    lease,
    number: answer.chunk.number,
    base: "http://ends/",
    names,
    paths: names,
    tokens: names.map(() => "header.payload.signature"),
    expires: names.map(() => expires),
    failures: [],
    error: null,
    storageCalls: 1,
    retries: 0,
  };
}

const advanceWith = (run: string, closing: Closing | null, lease: string | null = null) =>
  lab.database.advance({ run, worker: crypto.randomUUID(), lease, closing });

/** Makes whoever writes this record take its time, until `free` is called: a trigger of the table's owner that is slow. */
async function slowRecord(bucket: string, name: string): Promise<{ reached(): Promise<void>; free(): void }> {
  const id = bucket.slice(-12);
  const key = Number.parseInt(id.slice(0, 7), 16);
  await lab.sql.unsafe(`
    create function public.slow_${id}() returns trigger language plpgsql as $$
    begin
      while exists (select from pg_locks l where l.locktype = 'advisory' and l.objid = ${key}) loop
        perform pg_sleep(0.02);
      end loop;
      return new;
    end $$;
    create trigger slow_${id} before insert on public.part_images
      for each row when (new.bucket_id = '${bucket}' and new.file_name = '${name}') execute function public.slow_${id}();`);
  onTestFinished(async () => void await lab.sql.unsafe(`drop function public.slow_${id}() cascade`));
  const session = await lab.sql.reserve();
  await session`select pg_advisory_lock(${key})`;
  let isHeld = true;
  const free = () => {
    if (isHeld) void session`select pg_advisory_unlock(${key})`.then(() => session.release());
    isHeld = false;
  };
  onTestFinished(free);
  return {
    free,
    reached: async () =>
      void await eventually(
        async () =>
          (await lab.sql`select from pg_stat_activity where wait_event = 'PgSleep'`).length > 0 || undefined,
        "a close to write the slow record",
      ),
  };
}

describe("a chunk that is being closed while its run is ended", () => {
  const gone = { code: "storage_gone", title: "Storage is gone", detail: "It does not answer" };
  const ends: readonly {
    readonly end: string;
    readonly act: (run: string, bucket: string) => Promise<unknown>;
    readonly state: string;
  }[] = [
    { end: "by a cancel", act: (run) => lab.database.cancel(run), state: "cancelled" },
    {
      end: "by a worker that gives up",
      act: (run) => lab.database.finish({ run, probe: null, error: gone }),
      state: "failed",
    },
    {
      end: "by a worker that finds the bucket gone",
      act: async (run, bucket) => {
        await lab.sql`update storage.buckets set created_at = now() where id = ${bucket}`;
        return await advanceWith(run, null, crypto.randomUUID());
      },
      state: "failed",
    },
    {
      end: "by a night that finds it standing still",
      act: async (run) => {
        await lab.sql`update image_sync.runs set moved_at = now() - interval '7 hours' where id = ${run}`;
        await runJob(lab, "image-sync-nightly");
      },
      state: "failed",
    },
  ];
  test.each(ends)("counts, where it is ended $end", async ({ act, state }) => {
    const bucket = await createBucket(lab, { settings: { chunk_size: 5 }, objects: numberedNames(20) });
    const { id } = await openRun(lab, bucket);
    const [first, second] = [await leaseChunk(id), await leaseChunk(id)];
    const slow = await slowRecord(bucket, "000008.jpg");
    const closing = advanceWith(id, second);
    await slow.reached();
    const ending = act(id, bucket);
    // Longer than any call waits for a row; an end that need not wait is over by then.
    await Promise.race([ending, new Promise((resolve) => setTimeout(resolve, 2_500))]);
    const late = await advanceWith(id, first);
    slow.free();
    await Promise.all([closing, ending]);
    const run = await eventually(async () => {
      const seen = await lab.database.readRun(id);
      if (seen.state !== "open") return seen;
      await act(id, bucket);
      return undefined;
    }, "the run to be ended");
    expect(run).toMatchObject({ state, balanced: true });
    expect(run.totals.signed).toBe(late.closed === "closed" ? 10 : 5);
    expect(await signedRows(bucket)).toBe(run.totals.signed);
    expect((await lab.database.readRun(id)).totals).toEqual(run.totals);
  });

  test("is waited for as long as a call may take; the cancel is refused then, and can be repeated", async () => {
    const bucket = await createBucket(lab, { settings: { chunk_size: 5 }, objects: numberedNames(20) });
    const { id } = await openRun(lab, bucket);
    const chunk = await leaseChunk(id);
    const slow = await slowRecord(bucket, "000003.jpg");
    const closing = advanceWith(id, chunk);
    await slow.reached();
    const refused = await lab.call({ method: "DELETE", query: `?run=${id}` });
    expect(await readProblem(refused)).toMatchObject({ status: 503, code: "row_locked" });
    expect(await lab.database.readRun(id)).toMatchObject({ state: "open" });
    slow.free();
    expect((await closing).closed).toBe("closed");
    expect(await lab.database.cancel(id)).toMatchObject({ state: "cancelled", totals: { signed: 5 } });
    expect(await signedRows(bucket)).toBe(5);
  });
});

test("a chunk whose row somebody held while its run was cancelled is not closed afterwards", async () => {
  const bucket = await createBucket(lab, { settings: { chunk_size: 5 }, objects: numberedNames(20) });
  const { id } = await openRun(lab, bucket);
  const [first, second] = [await leaseChunk(id), await leaseChunk(id)];
  const session = await lab.sql.reserve();
  await session`begin`;
  await session`select from image_sync.chunks where run_id = ${id} and number = 2 for update`;
  const cancelled = await lab.database.cancel(id);
  expect(cancelled).toMatchObject({ state: "cancelled", totals: { signed: 0 } });
  expect(await advanceWith(id, first)).toMatchObject({ closed: "stale" });
  expect(await advanceWith(id, second)).toMatchObject({ closed: "stale" });
  await session`commit`;
  session.release();
  expect(await advanceWith(id, second)).toMatchObject({ closed: "stale" });
  expect(await signedRows(bucket)).toBe(0);
});
