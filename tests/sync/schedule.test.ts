import postgres from "postgres";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { Run } from "../../supabase/functions/image-sync/contract.ts";
import { NOTHING_SIGNED } from "../../supabase/functions/image-sync/database.ts";
import {
  codesOf,
  createBucket,
  imbalances,
  numberedNames,
  openRun,
  readLedgers,
  readReport,
  runToEnd,
  waitForEnd,
  wake,
} from "./support/lab.ts";
import { counting, type LocalLab, openLocalLab, runJob, setLatency } from "./support/local_lab.ts";

let lab: LocalLab;
beforeAll(async () => {
  // A budget so small that a run of some size needs several invocations.
  lab = await openLocalLab(["--function-env", "IMAGE_SYNC_WALL_MS=400"]);
  await lab.sql`update image_sync.settings set nightly = false`;
});
afterAll(() => lab?.close());

const lastRun = async (bucket: string): Promise<Run> => {
  const [row] = await lab.sql<{ id: string }[]>`
    select id from image_sync.runs where bucket_id = ${bucket} order by started_at desc limit 1`;
  if (row === undefined) throw new Error(`Bucket ${bucket} has no run`);
  return await lab.database.readRun(row.id);
};

/** The calls of the function that were queued for a run and not sent yet, or sent: pg_net keeps the answers. */
const kicksOf = async (run: string) => {
  const [row] = await lab.sql`select kick_id, kicked_at from image_sync.runs where id = ${run}`;
  return row;
};

/** Runs the nightly job for one bucket alone. */
async function runNight(bucket: string): Promise<void> {
  await lab.sql`update image_sync.settings set nightly = bucket_id = ${bucket}`;
  await runJob(lab, "image-sync-nightly");
  await lab.sql`update image_sync.settings set nightly = false`;
}

/** Runs something while the database does not know where the function lives. */
async function unannounced(act: () => Promise<void>): Promise<void> {
  const [project] = await lab.sql`delete from image_sync.project returning *`;
  if (project === undefined) throw new Error("The function had not announced itself");
  try {
    await act();
  } finally {
    await lab.sql`insert into image_sync.project ${lab.sql(project)} on conflict do nothing`;
  }
}

describe("the nightly job", () => {
  test("opens a run of its own trigger and has the function finish it", async () => {
    const bucket = await createBucket(lab, { objects: numberedNames(20) });
    await runNight(bucket);
    const run = await waitForEnd(lab, (await lastRun(bucket)).id);
    expect(run).toMatchObject({ state: "succeeded", trigger: "schedule", totals: { signed: 20 } });
    expect((await readReport(lab, bucket)).healthy).toBe(true);
  });

  test("leaves buckets alone whose settings say so", async () => {
    const [one, other] = [await createBucket(lab), await createBucket(lab)];
    await runNight(one);
    await waitForEnd(lab, (await lastRun(one)).id);
    expect(await lab.sql`select from image_sync.runs where bucket_id = ${other}`).toHaveLength(0);
  });

  test("says in the run's error that the function has not said where it lives", async () => {
    const bucket = await createBucket(lab, { objects: numberedNames(3) });
    await unannounced(async () => {
      await runNight(bucket);
      expect(await lastRun(bucket)).toMatchObject({
        state: "failed",
        trigger: "schedule",
        stop_reason: "function_unknown",
        error: { code: "function_unknown", detail: expect.stringContaining("npx image-sync status") },
      });
      const report = await readReport(lab, bucket);
      expect(report.healthy).toBe(false);
      expect(codesOf(report)).toContain("function_unknown");
    });
    await runNight(bucket);
    expect(await waitForEnd(lab, (await lastRun(bucket)).id)).toMatchObject({
      state: "succeeded",
      totals: { signed: 3 },
    });
  });

  test("joins the run that is open instead of a second one", async () => {
    const bucket = await createBucket(lab, { objects: numberedNames(5) });
    const open = await openRun(lab, bucket);
    await runNight(bucket);
    expect(await waitForEnd(lab, open.id)).toMatchObject({ state: "succeeded", trigger: "request" });
    expect(await lab.sql`select from image_sync.runs where bucket_id = ${bucket}`).toHaveLength(1);
  });

  test("closes a run that has not moved for six hours and starts its own", async () => {
    const bucket = await createBucket(lab, { objects: numberedNames(5) });
    const stalled = await openRun(lab, bucket);
    await lab
      .sql`update image_sync.runs set moved_at = now() - interval '6 hours 1 second' where id = ${stalled.id}`;
    await runNight(bucket);
    expect(await lab.database.readRun(stalled.id)).toMatchObject({
      state: "failed",
      stop_reason: "stalled",
      error: { code: "stalled" },
    });
    const next = await lastRun(bucket);
    expect(next.id).not.toBe(stalled.id);
    expect(await waitForEnd(lab, next.id)).toMatchObject({ state: "succeeded", totals: { signed: 5 } });
  });
});

describe("an invocation whose budget is used up", () => {
  test("hands the run off through the database, again and again, until it is done", async () => {
    const bucket = await createBucket(lab, { settings: { chunk_size: 10 }, objects: numberedNames(400) });
    const open = await openRun(lab, bucket);
    await setLatency(lab, 60);
    const { result: run, counts } = await counting(lab, async () => {
      await wake(lab, open.id);
      return await waitForEnd(lab, open.id);
    }).finally(() => setLatency(lab, 0));
    expect(run).toMatchObject({
      state: "succeeded",
      balanced: true,
      error: null,
      totals: { listed: 400, inserted: 400, signed: 400 },
    });
    expect(run.invocations).toBeGreaterThan(1);
    expect(counts.function).toBeGreaterThan(1);
    expect(counts.rpc["image_sync_hand_off"]).toBeGreaterThanOrEqual(run.invocations - 1);
    const ledgers = await readLedgers(lab, run.id);
    expect(imbalances(ledgers)).toEqual([]);
    const [attempts] = await lab
      .sql`select sum(attempts)::integer as failed from image_sync.chunks where run_id = ${run.id}`;
    expect(attempts).toEqual({ failed: 0 });
  }, 120_000);

  test("says in the run's error why nothing could be queued, and a later call goes on", async () => {
    const bucket = await createBucket(lab, { objects: numberedNames(3) });
    const { id } = await openRun(lab, bucket);
    await unannounced(async () => {
      expect(await lab.database.handOff({ run: id, worker: crypto.randomUUID(), leases: [] })).toBe(false);
      expect(await lab.database.readRun(id)).toMatchObject({
        state: "open",
        error: { code: "function_unknown" },
      });
    });
    expect(await runToEnd(lab, bucket)).toMatchObject({ id, state: "succeeded", error: null });
  });
});

describe("the watchdog", () => {
  const longAgo = async (run: string) => {
    await lab
      .sql`update image_sync.runs set moved_at = now() - interval '31 seconds', kicked_at = null where id = ${run}`;
  };

  test("calls the function for a run that stands still", async () => {
    const bucket = await createBucket(lab, { objects: numberedNames(5) });
    const { id } = await openRun(lab, bucket);
    await longAgo(id);
    await runJob(lab, "image-sync-watchdog");
    expect(await waitForEnd(lab, id)).toMatchObject({ state: "succeeded", totals: { signed: 5 } });
  });

  test("lets a run alone that moved or was called a moment ago, holds a live lease, or waits for its next attempt", async () => {
    const moving = await openRun(lab, await createBucket(lab, { objects: numberedNames(5) }));
    await lab
      .sql`update image_sync.runs set moved_at = now() + interval '10 seconds' where id = ${moving.id}`;

    const called = await openRun(lab, await createBucket(lab, { objects: numberedNames(5) }));
    await longAgo(called.id);
    await lab.sql`update image_sync.runs set kicked_at = now() where id = ${called.id}`;

    const leased = await openRun(lab, await createBucket(lab, { objects: numberedNames(5) }));
    const lease = crypto.randomUUID();
    await lab.database.advance({ run: leased.id, worker: crypto.randomUUID(), lease, closing: null });
    await longAgo(leased.id);

    const waiting = await openRun(
      lab,
      await createBucket(lab, { settings: { retry_delay: "1 hour" }, objects: numberedNames(5) }),
    );
    await lab.database.advance({ run: waiting.id, worker: crypto.randomUUID(), lease, closing: null });
    const error = { code: "signing_failed", title: "Signing failed", detail: "Storage is away" };
    const closing = {
      lease,
      ...NOTHING_SIGNED,
      error,
      storageCalls: 1,
      retries: 0,
    };
    await lab.database.advance({ run: waiting.id, worker: crypto.randomUUID(), lease: null, closing });
    await longAgo(waiting.id);

    const runs = [moving, called, leased, waiting];
    const before = await Promise.all(runs.map(({ id }) => kicksOf(id)));
    await runJob(lab, "image-sync-watchdog");
    expect(await Promise.all(runs.map(({ id }) => kicksOf(id)))).toEqual(before);
    for (const { id } of runs) await lab.database.cancel(id);
  });

  test("calls for a chunk that is due, however long another one waits", async () => {
    const settings = { chunk_size: 1, retry_delay: "1 hour" };
    const { id } = await openRun(lab, await createBucket(lab, { settings, objects: numberedNames(2) }));
    const [first, second] = [crypto.randomUUID(), crypto.randomUUID()];
    const worker = crypto.randomUUID();
    for (const lease of [first, second]) {
      await lab.database.advance({ run: id, worker, lease, closing: null });
    }
    const error = { code: "signing_failed", title: "Signing failed", detail: "Storage is away" };
    const closing = { lease: first, ...NOTHING_SIGNED, error, storageCalls: 1, retries: 0 };
    await lab.database.advance({ run: id, worker, lease: crypto.randomUUID(), closing });
    await longAgo(id);
    const [{ exhausted } = { exhausted: false }] = await lab.sql<{ exhausted: boolean }[]>`
      select exhausted from image_sync.runs where id = ${id}`;
    expect(exhausted).toBe(true);

    // The second chunk's worker is gone.
    await lab.sql`
      update image_sync.chunks set lease_expires_at = now() - interval '1 second' where run_id = ${id} and lease_token = ${second}`;
    const before = await kicksOf(id);
    await runJob(lab, "image-sync-watchdog");
    expect(await kicksOf(id)).not.toEqual(before);
    await lab.database.cancel(id);
  });
});

describe("housekeeping", () => {
  test("prunes old chunks and runs, and keeps the last run of each mode, open ones and what is young", async () => {
    const bucket = await createBucket(lab, { settings: { chunk_size: 2 }, objects: numberedNames(4) });
    const age = async (run: Run, days: number) => {
      await lab.sql`
        update image_sync.runs
        set started_at = started_at - make_interval(days => ${days}), finished_at = finished_at - make_interval(days => ${days})
        where id = ${run.id}`;
    };
    const runs = [];
    for (const days of [100, 95, 20, 1]) {
      const run = await runToEnd(lab, bucket);
      await age(run, days);
      runs.push(run.id);
    }
    const analyze = await runToEnd(lab, bucket, { mode: "analyze" });
    await age(analyze, 200);
    await runJob(lab, "image-sync-housekeeping");
    const left = await lab.sql<{ id: string; chunks: number }[]>`
      select r.id, (select count(*)::integer from image_sync.chunks c where c.run_id = r.id) as chunks
      from image_sync.runs r where r.bucket_id = ${bucket} order by r.started_at`;
    expect(left).toEqual([
      { id: analyze.id, chunks: 0 },
      { id: runs[2], chunks: 0 },
      { id: runs[3], chunks: 3 },
    ]);
    // The totals of a run outlive its chunks.
    expect(await lab.database.readRun(runs[2] ?? "")).toMatchObject({
      chunks: 3,
      totals: { listed: 4 },
      balanced: true,
    });
    expect(codesOf(await readReport(lab, bucket))).toEqual([]);
  });

  test("prunes week-old entries of our own jobs and of no other", async () => {
    await lab.sql`select cron.schedule('image-sync-tests-neighbour', '0 0 1 1 *', 'select 1')`;
    // The server alone writes its history.
    const admin = postgres(lab.stack.adminDbUrl, { max: 1, onnotice: () => {} });
    await admin`
      insert into cron.job_run_details (jobid, runid, username, status, start_time, end_time)
      select j.jobid, 900000 + row_number() over (), j.username, 'succeeded', now() - n.age, now() - n.age
      from cron.job j
      cross join (values (interval '8 days'), (interval '6 days')) as n (age)
      where j.jobname in ('image-sync-watchdog', 'image-sync-tests-neighbour')`;
    await admin.end();
    await runJob(lab, "image-sync-housekeeping");
    const left = await lab.sql`
      select j.jobname, round(extract(epoch from now() - d.end_time) / 86400)::integer as days
      from cron.job_run_details d join cron.job j using (jobid)
      where d.runid > 900000 order by 1, 2`;
    expect(left).toEqual([
      { jobname: "image-sync-tests-neighbour", days: 6 },
      { jobname: "image-sync-tests-neighbour", days: 8 },
      { jobname: "image-sync-watchdog", days: 6 },
    ]);
  });
});
