import postgres, { type ReservedSql, type Sql } from "postgres";
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from "vitest";
import type { Run } from "../../supabase/functions/image-sync/contract.ts";
import {
  codesOf,
  createBucket,
  imbalances,
  numberedNames,
  openRun,
  readLedgers,
  readRecords,
  readReport,
  waitForEnd,
  wake,
} from "../sync/support/lab.ts";
import { type LocalLab, openLocalLab, runJob } from "../sync/support/local_lab.ts";
import { endSessions } from "./support/scene.ts";

// Other sessions that hold what a sync needs, and triggers that take their time. The settings are the defaults: what is tried again
// is tried again as it would be in a project.
let lab: LocalLab;
/** As superuser. */
let admin: Sql;
beforeAll(async () => {
  lab = await openLocalLab();
  admin = postgres(lab.stack.adminDbUrl, { max: 6, onnotice: () => {} });
});
afterAll(async () => {
  await admin?.end({ timeout: 1 });
  await lab?.close();
});

/** Three minutes is the longest that a disturbance may cost. */
const patienceMs = 180_000;
const defaults = { retry_delay: "15 seconds" };
const createNight = (objects: readonly string[], settings: Record<string, string | number> = {}) =>
  createBucket(lab, { settings: { ...defaults, ...settings }, objects });

/** A session with an open transaction, rolled back at the end of the test if it is open still. */
async function openTransaction(): Promise<ReservedSql> {
  const session = await admin.reserve();
  await session`begin`;
  onTestFinished(async () => {
    await session`rollback`;
    session.release();
  });
  return session;
}

async function syncToEnd(bucket: string): Promise<Run> {
  const { id } = await openRun(lab, bucket);
  await wake(lab, id);
  return await waitForEnd(lab, id, patienceMs);
}

async function runMode(bucket: string, mode: "cleanup", options: Record<string, unknown>): Promise<Run> {
  const { run } = await lab.database.start({ run: crypto.randomUUID(), bucket, mode, options });
  await wake(lab, run.id);
  return await waitForEnd(lab, run.id, patienceMs);
}

async function unsignedNames(bucket: string): Promise<string[]> {
  return (await readRecords(lab, bucket)).filter(({ signed_url }) => signed_url === null).map((
    { file_name },
  ) => file_name);
}

async function expectBalance(run: Run): Promise<void> {
  expect(run.balanced).toBe(true);
  expect(imbalances(await readLedgers(lab, run.id))).toEqual([]);
}

async function expectRestIsSettledByTheNext(bucket: string, images: number): Promise<void> {
  expect(await syncToEnd(bucket)).toMatchObject({ state: "succeeded", error: null });
  expect(await unsignedNames(bucket)).toEqual([]);
  expect(await readRecords(lab, bucket)).toHaveLength(images);
  expect(codesOf(await readReport(lab, bucket))).not.toContain("row_locked");
}

/** Adds unsigned records for names. */
const addRecords = (bucket: string, names: readonly string[]) =>
  admin`insert into public.part_images (bucket_id, file_name, part_number)
    select ${bucket}, n, n from unnest(${[...names]}::text[]) as n`;

/** A trigger of the table's owner that takes its time with the rows of a bucket that `when` picks. */
async function addSlowTrigger(
  bucket: string,
  { event, seconds, when = "true" }: {
    event: "insert" | "update" | "delete";
    /** A number, or an expression of SQL. */
    seconds: number | string;
    when?: string;
  },
): Promise<void> {
  await admin.unsafe(`
    create function public.slow_${bucket.slice(-12)}() returns trigger language plpgsql as $$
    begin perform pg_sleep(${seconds}); return coalesce(new, old); end $$;
    create trigger "slow ${bucket}" before ${event} on public.part_images
      for each row when (${
    event === "delete" ? "old" : "new"
  }.bucket_id = '${bucket}' and ${when}) execute function public.slow_${bucket.slice(-12)}();`);
  onTestFinished(async () => {
    await admin.unsafe(`drop function public.slow_${bucket.slice(-12)}() cascade`);
  });
}

/** What the Data API's statements may take at most. */
async function limitStatements(limit: string): Promise<void> {
  await admin.unsafe(`alter role authenticator set statement_timeout = '${limit}'`);
  await endSessions(admin);
  onTestFinished(async () => {
    await admin`alter role authenticator set statement_timeout = '8s'`;
    await endSessions(admin);
  });
}

describe("what somebody else holds costs itself alone", { timeout: 400_000 }, () => {
  test("an insert of one key of 6,000 that is not committed", async () => {
    const bucket = await createNight(numberedNames(6_000));
    const session = await openTransaction();
    await session`insert into public.part_images (bucket_id, file_name) values (${bucket}, '000500.jpg')`;
    const run = await syncToEnd(bucket);
    expect(run).toMatchObject({
      state: "partial",
      stop_reason: "row_locked",
      error: { code: "row_locked" },
      totals: { inserted: 5_999, signed: 5_999, held: 1, missing: 1, failed: 0 },
      problems: [{ name: "000500.jpg", code: "row_locked" }],
    });
    await expectBalance(run);
    expect(await unsignedNames(bucket)).toEqual([]);
    const report = await readReport(lab, bucket);
    expect(report.findings).toMatchObject([{ code: "row_locked", count: 1, samples: ["000500.jpg"] }]);
    await session`commit`;
    await expectRestIsSettledByTheNext(bucket, 6_000);
  });

  test("a record that is locked", async () => {
    const bucket = await createNight(numberedNames(1_500));
    await addRecords(bucket, numberedNames(1_500));
    const session = await openTransaction();
    await session`select from public.part_images where bucket_id = ${bucket} and file_name = '000007.jpg' for update`;
    const run = await syncToEnd(bucket);
    expect(run).toMatchObject({
      state: "partial",
      stop_reason: "row_locked",
      totals: { signed: 1_499, held: 1, failed: 0 },
      problems: [{ name: "000007.jpg", code: "row_locked" }],
    });
    await expectBalance(run);
    expect(await unsignedNames(bucket)).toEqual(["000007.jpg"]);
    await session`rollback`;
    await expectRestIsSettledByTheNext(bucket, 1_500);
  });

  test("an update of the whole table that runs beside", async () => {
    const bucket = await createNight(numberedNames(2_000));
    await addRecords(bucket, numberedNames(1_200));
    const session = await openTransaction();
    await session`update public.part_images set url = 'x' where bucket_id = ${bucket}`;
    const run = await syncToEnd(bucket);
    expect(run).toMatchObject({
      state: "partial",
      totals: { inserted: 800, signed: 800, held: 1_200, failed: 0 },
    });
    await expectBalance(run);
    expect(run.problems).toHaveLength(20);
    await session`commit`;
    await expectRestIsSettledByTheNext(bucket, 2_000);
  });

  test("the whole table, for a quarter of a minute: the run waits for it, and says so meanwhile", async () => {
    const bucket = await createNight(numberedNames(1_500));
    const session = await openTransaction();
    await session`lock table public.part_images in access exclusive mode`;
    const { id } = await openRun(lab, bucket);
    await wake(lab, id);
    await new Promise((resolve) => setTimeout(resolve, 15_000));
    expect(await lab.database.readRun(id)).toMatchObject({ state: "open", error: { code: "row_locked" } });
    expect(codesOf(await readReport(lab, bucket))).not.toContain("signing_failed");
    await session`commit`;
    await runJob(lab, "image-sync-watchdog");
    const run = await waitForEnd(lab, id, patienceMs);
    expect(run).toMatchObject({ state: "succeeded", totals: { inserted: 1_500, signed: 1_500 } });
    await expectBalance(run);
  });

  // As create index and lock table hold it: it can be read, and no row of it is held by itself.
  test.each(["share", "share row exclusive", "exclusive"])(
    "the whole table in mode %s: nothing is left out for it",
    async (mode) => {
      const bucket = await createNight(numberedNames(1_200), { retry_delay: "1 second" });
      const renewed = await createNight(numberedNames(50), { retry_delay: "1 second" });
      await syncToEnd(renewed);
      await addRecords(renewed, ["gone.jpg"]);
      const plan = await runMode(renewed, "cleanup", {});
      const session = await openTransaction();
      await session.unsafe(`lock table public.part_images in ${mode} mode`);
      const { id } = await openRun(lab, bucket);
      await wake(lab, id);
      const cleanup = await lab.database.start({
        run: crypto.randomUUID(),
        bucket: renewed,
        mode: "cleanup",
        options: { confirm: plan.id },
      });
      await wake(lab, cleanup.run.id);
      await new Promise((resolve) => setTimeout(resolve, 6_000));
      for (const run of [id, cleanup.run.id]) {
        expect(await lab.database.readRun(run)).toMatchObject({
          state: "open",
          error: { code: "row_locked" },
        });
      }
      await session`commit`;
      const run = await waitForEnd(lab, id, patienceMs);
      expect(run).toMatchObject({ state: "succeeded", totals: { inserted: 1_200, signed: 1_200, held: 0 } });
      await expectBalance(run);
      expect(await waitForEnd(lab, cleanup.run.id, patienceMs)).toMatchObject({
        state: "succeeded",
        totals: { removed: 1, skipped: 0 },
      });
    },
  );

  test("the record of a name that has to lose its URL", async () => {
    const bucket = await createNight([...numberedNames(30), "ümlaut.jpg"]);
    await syncToEnd(bucket);
    await admin`
      update public.part_images set signed_url = 'https://elsewhere.example/x' where bucket_id = ${bucket}`;
    const session = await openTransaction();
    await session`select from public.part_images where bucket_id = ${bucket} and file_name = 'ümlaut.jpg' for update`;
    expect(await syncToEnd(bucket)).toMatchObject({ totals: { signed: 30, failed: 1 } });
    await session`commit`;
    await syncToEnd(bucket);
    expect(await unsignedNames(bucket)).toEqual(["ümlaut.jpg"]);
  });

  test("the row of a chunk: all others are signed meanwhile, and it when its row is free", async () => {
    const bucket = await createNight(numberedNames(3_000));
    const { id } = await openRun(lab, bucket);
    const lease = crypto.randomUUID();
    // A worker that died with the chunk in hand, and a session that looks at its row and stays.
    await lab.database.advance({ run: id, worker: crypto.randomUUID(), lease, closing: null });
    const session = await openTransaction();
    await wake(lab, id);
    await session`select from image_sync.chunks where run_id = ${id} and number = 1 for update`;
    await new Promise((resolve) => setTimeout(resolve, 10_000));
    const records = await readRecords(lab, bucket);
    expect(records.filter(({ file_name }) => file_name > "001000.jpg")).toHaveLength(2_000);
    await session`rollback`;
    await admin`update image_sync.chunks set lease_expires_at = now() where run_id = ${id} and state = 'leased'`;
    await admin`update image_sync.runs set kicked_at = null, moved_at = now() - interval '1 minute' where id = ${id}`;
    await runJob(lab, "image-sync-watchdog");
    const run = await waitForEnd(lab, id, patienceMs);
    expect(run.state).toBe("succeeded");
    await expectBalance(run);
    expect(await unsignedNames(bucket)).toEqual([]);
    expect(await readRecords(lab, bucket)).toHaveLength(3_000);
  });

  test("the row of the run itself: nothing dies of it, and the run goes on afterwards", async () => {
    const bucket = await createNight(numberedNames(3_000));
    const { id } = await openRun(lab, bucket);
    const session = await openTransaction();
    await session`select from image_sync.runs where id = ${id} for update`;
    await wake(lab, id);
    await new Promise((resolve) => setTimeout(resolve, 10_000));
    expect(await lab.database.readRun(id)).toMatchObject({ state: "open", totals: { listed: 0 } });
    await session`rollback`;
    await wake(lab, id);
    expect(await waitForEnd(lab, id, patienceMs)).toMatchObject({
      state: "succeeded",
      totals: { signed: 3_000 },
    });
    expect(lab.stack.log.join("\n")).not.toContain("Uncaught");
  });
});

describe("what the database cannot do in its time is done in tenths", { timeout: 400_000 }, () => {
  test("a trigger that takes 9 ms a row", async () => {
    const bucket = await createNight(numberedNames(1_500));
    await addSlowTrigger(bucket, { event: "insert", seconds: 0.009 });
    const run = await syncToEnd(bucket);
    expect(run).toMatchObject({
      state: "succeeded",
      totals: { inserted: 1_500, signed: 1_500, failed: 0 },
      error: { code: "database_timeout" },
    });
    await expectBalance(run);
    // Each URL was made once, in however many parts it was stored.
    expect(run.totals.storage_calls).toBe(2);
    const [remembered] = await admin`select chunk_size from image_sync.runs where id = ${run.id}`;
    // A tenth; four times that once it took less than a second.
    expect([100, 400]).toContain(remembered?.["chunk_size"]);
    const [counted] = await admin`
      select sum(attempts)::integer as attempts, count(*) filter (where state = 'dead')::integer as dead
      from image_sync.chunks where run_id = ${run.id}`;
    expect(counted).toEqual({ attempts: 0, dead: 0 });
  });

  test("a trigger on updates, and statements of 2 s at most", async () => {
    await limitStatements("2s");
    const bucket = await createNight(numberedNames(700));
    await addRecords(bucket, numberedNames(700));
    await addSlowTrigger(bucket, { event: "update", seconds: 0.005 });
    const run = await syncToEnd(bucket);
    expect(run).toMatchObject({
      state: "succeeded",
      totals: { recorded: 700, inserted: 0, signed: 700, failed: 0 },
      error: { code: "database_timeout" },
    });
    await expectBalance(run);
    expect(await unsignedNames(bucket)).toEqual([]);
  });

  test("one row that takes for ever is given up and named, the others are done", async () => {
    await limitStatements("1s");
    const bucket = await createNight(numberedNames(2_500));
    await addSlowTrigger(bucket, { event: "insert", seconds: 20, when: "new.file_name = '000700.jpg'" });
    const run = await syncToEnd(bucket);
    expect(run).toMatchObject({
      state: "partial",
      stop_reason: "database_timeout",
      totals: { listed: 2_500, inserted: 2_499, signed: 2_499, missing: 1, failed: 1 },
      problems: expect.arrayContaining([
        expect.objectContaining({ name: "000700.jpg", code: "database_timeout" }),
      ]),
    });
    expect(run.balanced).toBe(true);
    const report = await readReport(lab, bucket);
    expect(report.findings).toMatchObject([{
      code: "database_timeout",
      count: 1,
      samples: ["000700.jpg"],
    }]);
    expect(JSON.stringify(report)).not.toContain("Storage");
  });

  test("a cleanup whose records take 6 ms each and one of them for ever", async () => {
    await limitStatements("1s");
    const gone = numberedNames(400, 5_001);
    const bucket = await createNight(numberedNames(4_000));
    await addRecords(bucket, [...numberedNames(4_000), ...gone]);
    await addSlowTrigger(bucket, {
      event: "delete",
      seconds: "case old.file_name when '005123.jpg' then 20 else 0.006 end",
    });
    const plan = await runMode(bucket, "cleanup", {});
    const cleanup = await runMode(bucket, "cleanup", { confirm: plan.id });
    expect(cleanup).toMatchObject({
      state: "succeeded",
      error: { code: "database_timeout" },
      totals: { removed: 399, skipped: 1 },
      problems: [{ name: "005123.jpg", code: "database_timeout" }],
    });
    expect(await readRecords(lab, bucket)).toHaveLength(4_001);
  });

  test("statements of 2 s at most are no disturbance to a table without such triggers", async () => {
    await limitStatements("2s");
    const bucket = await createNight(numberedNames(6_000));
    expect(await syncToEnd(bucket)).toMatchObject({
      state: "succeeded",
      error: null,
      chunks: 7, // the last one is empty
      totals: { signed: 6_000 },
    });
  });

  test("a row that an update of the owner's refuses costs itself alone", async () => {
    const bucket = await createNight(numberedNames(1_200));
    await addRecords(bucket, numberedNames(1_200));
    await admin.unsafe(`
      create function public.refuse_one() returns trigger language plpgsql as $$
      begin raise exception 'row refused: %', new; end $$;
      create trigger refuse_one before update on public.part_images
        for each row when (new.bucket_id = '${bucket}' and new.file_name = '000123.jpg') execute function public.refuse_one();`);
    onTestFinished(async () => {
      await admin.unsafe("drop function public.refuse_one() cascade");
    });
    const run = await syncToEnd(bucket);
    expect(run).toMatchObject({
      state: "partial",
      totals: { signed: 1_199, failed: 1 },
      problems: [{ name: "000123.jpg", code: "url_refused" }],
    });
    await expectBalance(run);
    expect(JSON.stringify(run)).not.toMatch(/eyJ|token=(?!\[redacted\])/);
    const [stored] = await admin`
      select jsonb_agg(c.problems)::text || r.summary::text || coalesce(r.report::text, '') as words
      from image_sync.runs r join image_sync.chunks c on c.run_id = r.id where r.id = ${run.id} group by r.id`;
    expect(stored?.["words"]).not.toMatch(/eyJ|token=(?!\[redacted\])/);
  });
});

describe("a run that stands still", () => {
  test("is a finding within three minutes, with the reason, and gone when it moves", async () => {
    const bucket = await createNight(numberedNames(10));
    const { id } = await openRun(lab, bucket);
    const failedLease = { run: id, worker: crypto.randomUUID(), lease: crypto.randomUUID() };
    await lab.database.endAttempt({
      ...failedLease,
      closing: null,
      error: { code: "row_locked", title: "Somebody holds the table", detail: "An attempt waited in vain" },
      storageCalls: 0,
      retries: 0,
    });
    await admin`update image_sync.runs set moved_at = now() - interval '121 seconds' where id = ${id}`;
    const report = await readReport(lab, bucket);
    expect(report.healthy).toBe(false);
    expect(report.findings.find(({ code }) => code === "run_stands_still")?.remediation).toContain(
      "An attempt waited in vain",
    );
    await wake(lab, id);
    await waitForEnd(lab, id);
    expect(codesOf(await readReport(lab, bucket))).toEqual([]);
  });

  test("does not move by being looked at, handed on or woken", async () => {
    const bucket = await createNight(numberedNames(10));
    const { id } = await openRun(lab, bucket);
    const lease = crypto.randomUUID();
    await lab.database.advance({ run: id, worker: crypto.randomUUID(), lease, closing: null });
    await admin`update image_sync.runs set moved_at = '2026-01-01' where id = ${id}`;
    await lab.database.readRun(id);
    const claim = { run: id, worker: crypto.randomUUID(), lease: crypto.randomUUID(), closing: null };
    await admin`update image_sync.chunks set lease_expires_at = now() where run_id = ${id}`;
    expect(await lab.database.advance(claim)).toMatchObject({ next: "sign" });
    await admin`update image_sync.runs set trigger = trigger where id = ${id}`;
    const [moved] =
      await admin`select moved_at = '2026-01-01' as stands from image_sync.runs where id = ${id}`;
    expect(moved).toEqual({ stands: true });
    await lab.database.cancel(id);
  });
});

describe("20 buckets in one night, one of them missing, one held, one with a trigger that raises", () => {
  test("17 succeed, and three have a run that says why", { timeout: 200_000 }, async () => {
    await admin`update image_sync.settings set nightly = false`;
    const buckets: string[] = [];
    for (let made = 0; made < 20; made++) {
      buckets.push(await createNight(numberedNames(50), { nightly: true } as never));
    }
    const [missing = "", held = "", refusing = "", ...good] = buckets;
    await admin.begin(async (transaction) => {
      await transaction`select set_config('storage.allow_delete_query', 'true', true)`;
      await transaction`delete from storage.objects where bucket_id = ${missing}`;
      await transaction`delete from storage.buckets where id = ${missing}`;
    });
    const stalled = await openRun(lab, held);
    await admin`update image_sync.runs set moved_at = now() - interval '7 hours' where id = ${stalled.id}`;
    await admin.unsafe(`
      create function public.refuse_all() returns trigger language plpgsql as $$ begin raise exception 'no'; end $$;
      create trigger refuse_all before insert on public.part_images
        for each row when (new.bucket_id = '${refusing}') execute function public.refuse_all();`);
    onTestFinished(async () => {
      await admin.unsafe("drop function public.refuse_all() cascade");
    });
    const session = await openTransaction();
    await session`select from image_sync.runs where id = ${stalled.id} for update`;
    await runJob(lab, "image-sync-nightly");
    const states: Record<string, string> = {};
    for (const bucket of buckets) {
      const [run] = await admin<{ id: string }[]>`
        select id from image_sync.runs
        where bucket_id = ${bucket} and trigger = 'schedule' order by started_at desc limit 1`;
      const ended = await waitForEnd(lab, run?.id ?? "");
      states[bucket] = `${ended.state} ${ended.stop_reason}`;
    }
    expect(good.map((bucket) => states[bucket])).toEqual(good.map(() => "succeeded null"));
    expect([missing, held, refusing].map((bucket) => states[bucket])).toEqual([
      "failed bucket_missing",
      "failed row_locked",
      "partial records_refused",
    ]);
    await session`rollback`;
  });

  test("an address that cannot be read is written down for each of them", async () => {
    await admin`update image_sync.settings set nightly = false`;
    const bucket = await createBucket(lab, { settings: { nightly: true }, objects: numberedNames(3) });
    await admin`alter table image_sync.project rename to kept_project`;
    await admin`create view image_sync.project as select ('x' || 1 / (random() * 0)::integer) as url`;
    onTestFinished(async () => {
      await admin`drop view if exists image_sync.project`;
      await admin`alter table image_sync.kept_project rename to project`;
    });
    await runJob(lab, "image-sync-nightly");
    const [run] =
      await admin`select outcome, error ->> 'code' as code from image_sync.runs where bucket_id = ${bucket}`;
    expect(run).toEqual({ outcome: "failed", code: "night_failed" });
  });
});
