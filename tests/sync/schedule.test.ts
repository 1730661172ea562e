import postgres from "postgres";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { createClient } from "../../cli/client.ts";
import { watch } from "../../cli/watch.ts";
import type { Mode, Run } from "../../supabase/functions/image-sync/contract.ts";
import { NOTHING_SIGNED } from "../../supabase/functions/image-sync/database.ts";
import { createLooks } from "../../window/looks.ts";
import {
  codesOf,
  createBucket,
  eventually,
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
/** As superuser. */
let admin: postgres.Sql;
beforeAll(async () => {
  // A budget so small that a run of some size needs several invocations.
  lab = await openLocalLab(["--function-env", "IMAGE_SYNC_WALL_MS=400"]);
  await lab.sql`update image_sync.settings set nightly = false`;
  admin = postgres(lab.stack.adminDbUrl, { max: 1, onnotice: () => {} });
});
afterAll(async () => {
  await admin?.end({ timeout: 5 });
  await lab?.close();
});

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

describe("what is said of the last call", () => {
  const calls = ["address_stale", "calls_unanswered", "last_call_failed"];
  const saidOf = async (bucket: string) =>
    codesOf(await readReport(lab, bucket)).filter((code) => calls.includes(code));
  /** An open run that stands still since three minutes and was called two minutes ago. */
  const openCalled = async (bucket: string, kickId: number): Promise<Run> => {
    const run = await openRun(lab, bucket);
    await lab.sql`
      update image_sync.runs
      set kick_id = ${kickId}, kicked_at = now() - interval '2 minutes', moved_at = now() - interval '3 minutes'
      where id = ${run.id}`;
    return run;
  };
  const answer = (id: number, minutesAgo: number, status: number | null) =>
    admin`
      insert into net._http_response (id, status_code, timed_out, error_msg, created)
      values (
        ${id}, ${status}, ${status === null}, ${status === null ? "Timeout of 5000 ms reached" : null},
        now() - make_interval(secs => ${60 * minutesAgo})
      )`;

  test.each([[404], [503], [401], [null]])("is no answer that was made before it: %s", async (status) => {
    const bucket = await createBucket(lab, { objects: numberedNames(2) });
    const id = 800_000 + (status ?? 0);
    const run = await openCalled(bucket, id);
    await answer(id, 3, status);
    expect(await saidOf(bucket)).toEqual(["calls_unanswered"]);
    await answer(id, 1.9, status);
    expect(await saidOf(bucket)).toEqual([status === 401 ? "address_stale" : "last_call_failed"]);
    await lab.database.cancel(run.id);
    // Of that call it says the same when its run has ended.
    expect(await saidOf(bucket)).toEqual([status === 401 ? "address_stale" : "last_call_failed"]);
  });

  test("is no answer to a webhook of the project's own that has its id after a crash", async () => {
    const bucket = await createBucket(lab, { objects: numberedNames(2) });
    const run = await openCalled(bucket, 3);
    await lab.database.cancel(run.id);
    // What a crash does to unlogged tables and their sequence.
    await admin`truncate net.http_request_queue, net._http_response`;
    await admin`alter sequence net.http_request_queue_id_seq restart`;
    await admin`select net.http_get(${`${lab.stack.url}/functions/v1/no-such-function`}) from generate_series(1, 3)`;
    await eventually(async () => {
      const [webhook] = await admin`select status_code from net._http_response where id = 3`;
      return webhook;
    }, "three webhooks to be answered");
    expect(await admin`select from net._http_response where id = 3 and status_code = 200`).toHaveLength(0);
    expect(await saidOf(bucket)).toEqual([]);
  });

  test("is no fault where it was answered too late and its run went on all the same", async () => {
    const bucket = await createBucket(lab, { objects: [...numberedNames(3), "ümlaut.jpg"] });
    await runNight(bucket);
    const run = await waitForEnd(lab, (await lastRun(bucket)).id);
    expect(run).toMatchObject({ state: "partial", totals: { signed: 3 } });
    const late = async () =>
      await admin`
        update net._http_response h
        set status_code = null, timed_out = true, error_msg = 'Timeout of 5000 ms reached'
        from image_sync.runs r
        where r.id = ${run.id} and h.id = r.kick_id
        returning h.id`;
    await eventually(async () => (await late()).length > 0 || undefined, "the call to be answered");
    expect(await saidOf(bucket)).toEqual([]);
    // Had its token never arrived, nobody would have answered at that address.
    await lab.sql`update image_sync.runs set wake_hashes = array[sha256('another')] where id = ${run.id}`;
    expect(await saidOf(bucket)).toEqual(["last_call_failed"]);
  });

  test("is a fault where the function took it up and refused", async () => {
    const bucket = await createBucket(lab, { objects: numberedNames(2) });
    const run = await openCalled(bucket, 810_000);
    await lab
      .sql`update image_sync.runs set wake_hashes = array[null, sha256('before')] where id = ${run.id}`;
    // Nobody is missed whose token has arrived.
    expect(await saidOf(bucket)).toEqual([]);
    await answer(810_000, 1.9, 503);
    expect(await saidOf(bucket)).toEqual(["last_call_failed"]);
    await lab.database.cancel(run.id);
  });
});

describe("while no call arrives", () => {
  /** Where calls get lost, as when pg_net stands still. */
  const losingCalls = async <T>(act: () => Promise<T>): Promise<T> => {
    await admin.unsafe(`
      create function net.test_lose() returns trigger language plpgsql as 'begin return null; end';
      create trigger test_lose before insert on net.http_request_queue for each row execute function net.test_lose();`);
    await setLatency(lab, 60);
    try {
      return await act();
    } finally {
      await setLatency(lab, 0);
      await admin.unsafe("drop function net.test_lose cascade");
    }
  };
  /** The commands' client, and the runs that it woke. */
  const begin = () => {
    const woken: string[] = [];
    const connection = { url: lab.stack.url, key: lab.stack.secretKey, source: "the test" };
    const client = createClient(connection, { timeout: 30_000 });
    const wake = (id: string) => {
      woken.push(id);
      return client.wake(id);
    };
    return { client: { ...client, wake }, woken };
  };
  const progress = { update: () => {}, lose: () => {}, stop: () => {} };

  test.each<[Mode, number]>([["sync", 100], ["verify", 30]])(
    "who waits for a %s wakes it where it was handed off",
    async (mode, count) => {
      const bucket = await createBucket(lab, {
        settings: { chunk_size: 10 },
        objects: numberedNames(count),
      });
      if (mode === "verify") await runToEnd(lab, bucket);
      const { client, woken } = begin();
      const run = await losingCalls(async () => {
        const { run } = await client.start({ mode, bucket });
        return await watch(run, { client, progress, signal: new AbortController().signal });
      });
      expect(run).toMatchObject({ state: "succeeded", balanced: true, totals: { listed: count } });
      expect(new Set(woken)).toEqual(new Set([run.id]));
    },
    120_000,
  );

  test("an open page of the window does the same", async () => {
    const bucket = await createBucket(lab, { settings: { chunk_size: 10 }, objects: numberedNames(100) });
    const { client, woken } = begin();
    const looks = createLooks(client);
    const run = await losingCalls(async () => {
      const { run } = await client.start({ bucket });
      looks.watch(bucket, () => {});
      return await waitForEnd(lab, run.id);
    }).finally(() => looks.stop());
    expect(run).toMatchObject({ state: "succeeded", totals: { signed: 100 } });
    expect(new Set(woken)).toEqual(new Set([run.id]));
  }, 120_000);

  test("a run says whether somebody is at it, and whether it has something to do", async () => {
    const bucket = await createBucket(lab, {
      settings: { retry_delay: "1 hour" },
      objects: numberedNames(5),
    });
    const { id } = await openRun(lab, bucket);
    const isIdle = async () => (await lab.database.readRun(id)).idle;
    expect(await isIdle()).toBe(true);
    const [worker, lease] = [crypto.randomUUID(), crypto.randomUUID()];
    await lab.database.advance({ run: id, worker, lease, closing: null });
    expect(await isIdle()).toBe(false);
    const error = { code: "signing_failed", title: "Signing failed", detail: "Storage is away" };
    const closing = { lease, number: 1, ...NOTHING_SIGNED, error, storageCalls: 1, retries: 0 };
    await lab.database.advance({ run: id, worker, lease: null, closing });
    // It waits for its next attempt.
    expect(await isIdle()).toBe(false);
    await lab.sql`update image_sync.chunks set not_before = now() where run_id = ${id}`;
    expect(await isIdle()).toBe(true);
    await lab.database.cancel(id);
    expect(await isIdle()).toBe(false);
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
      number: 1,
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
    const closing = { lease: first, number: 1, ...NOTHING_SIGNED, error, storageCalls: 1, retries: 0 };
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
      { id: runs[3], chunks: 2 },
    ]);
    // The totals of a run outlive its chunks.
    expect(await lab.database.readRun(runs[2] ?? "")).toMatchObject({
      chunks: 2,
      totals: { listed: 4 },
      balanced: true,
    });
    expect(codesOf(await readReport(lab, bucket))).toEqual([]);
  });

  test("of one bucket that cannot be pruned costs no other one its own", async () => {
    const buckets = [await createBucket(lab), await createBucket(lab), await createBucket(lab)];
    for (const bucket of buckets) {
      await runToEnd(lab, bucket);
      await lab.sql`
        update image_sync.runs set started_at = now() - interval '100 days', finished_at = now() - interval '100 days'
        where bucket_id = ${bucket}`;
      await runToEnd(lab, bucket);
    }
    // A column of before, without its check: years that leave the calendar. And somebody's own trigger.
    await lab.sql`alter table image_sync.settings drop constraint settings_keep_runs_check`;
    await lab.sql`update image_sync.settings set keep_runs = '10000 years' where bucket_id = ${
      buckets[0] ?? ""
    }`;
    await lab.sql.unsafe(`
      create function public.test_refuse_prune() returns trigger language plpgsql as $$ begin raise exception 'not these'; end $$;
      create trigger test_refuse_prune before delete on image_sync.runs
        for each row when (old.bucket_id = '${buckets[1]}') execute function public.test_refuse_prune();`);
    await runJob(lab, "image-sync-housekeeping");
    const left = await lab.sql<{ bucket_id: string }[]>`
      select bucket_id from image_sync.runs where finished_at < now() - interval '99 days' and bucket_id = any (${buckets})`;
    expect(left.map(({ bucket_id }) => bucket_id).toSorted()).toEqual(buckets.slice(0, 2).toSorted());
    await lab.sql.unsafe(`
      drop function public.test_refuse_prune cascade;
      update image_sync.settings set keep_runs = '90 days';
      alter table image_sync.settings add constraint settings_keep_runs_check check (keep_runs >= keep_chunks);`);
  });

  test("prunes week-old entries of our own jobs and of no other", async () => {
    await lab.sql`select cron.schedule('image-sync-tests-neighbour', '0 0 1 1 *', 'select 1')`;
    // The server alone writes its history.
    await admin`
      insert into cron.job_run_details (jobid, runid, username, status, start_time, end_time)
      select j.jobid, 900000 + row_number() over (), j.username, 'succeeded', now() - n.age, now() - n.age
      from cron.job j
      cross join (values (interval '8 days'), (interval '6 days')) as n (age)
      where j.jobname in ('image-sync-watchdog', 'image-sync-tests-neighbour')`;
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
