import { randomUUID } from "node:crypto";
import { afterAll, beforeAll, expect, test } from "vitest";
import { type BareStack, openBareStack } from "./support/bare_stack.ts";
import { createRows, findViolations, start, workToEnd } from "./support/protocol.ts";

let db: BareStack;
beforeAll(async () => {
  db = await openBareStack();
});
afterAll(async () => {
  await db?.close();
});

async function deadlocks(): Promise<number> {
  // Sessions report what they counted when they have been idle for a moment; this asks for it now.
  await db.admin`select pg_stat_force_next_flush()`;
  const [row] = await db.admin<{ deadlocks: number }[]>`
    select deadlocks::int as deadlocks from pg_stat_database where datname = current_database()`;
  return row?.deadlocks ?? -1;
}

const numbered = (count: number) =>
  Array.from({ length: count }, (_, index) => `${String(index + 1).padStart(6, "0")}.jpg`);

async function documentOf(run: string): Promise<unknown> {
  const [row] = await db.admin`select image_sync.run_document(${run}) as document`;
  return row?.["document"];
}

test(
  "8 workers share a run of 50,000 objects: each object is in one chunk, each chunk is closed once, none waits in a circle",
  { timeout: 180_000 },
  async () => {
    const bucket = await createRows(db.admin, { names: numbered(50_000), settings: { chunk_size: 500 } });
    const { run } = await start(db.worker, bucket);
    let closed = 0;
    const onAnswer = (_: unknown, answer: { closed: string | null }) => {
      if (answer.closed === "closed") closed++;
    };
    await Promise.all(Array.from({ length: 8 }, () => workToEnd(db.worker, run, { onAnswer })));
    expect(await documentOf(run)).toMatchObject({
      state: "succeeded",
      balanced: true,
      chunks: 101,
      totals: { listed: 50_000, inserted: 50_000, signed: 50_000, failed: 0 },
    });
    expect(closed).toBe(100);
    expect(await findViolations(db.admin, bucket)).toEqual([]);
    expect(await deadlocks()).toBe(0);
  },
);

test(
  "starts, workers, kicks, hand-offs, cancels and cleanups at the same time leave one truth and no deadlock",
  { timeout: 120_000 },
  async () => {
    const bucket = await createRows(db.admin, {
      names: numbered(400),
      settings: { chunk_size: 7, max_delete_fraction: 1 },
    });
    await db
      .admin`insert into public.part_images (bucket_id, file_name) select ${bucket}, 'gone-' || n || '.jpg' from generate_series(1, 40) as n`;
    const until = Date.now() + 8_000;
    const forAWhile = async (act: () => Promise<unknown>) => {
      let acts = 0;
      for (; Date.now() < until; acts++) await act();
      return acts;
    };
    const work = async () => await workToEnd(db.worker, (await start(db.worker, bucket)).run);
    const clean = async () => {
      const plan = await start(db.worker, bucket, { mode: "cleanup" });
      if (plan.run === "") return;
      await workToEnd(db.worker, plan.run);
      const applied = await start(db.worker, bucket, { mode: "cleanup", options: { confirm: plan.run } });
      if (applied.run !== "") await workToEnd(db.worker, applied.run);
    };
    const acts = await Promise.all([
      forAWhile(work),
      forAWhile(work),
      forAWhile(work),
      forAWhile(async () => {
        const { run } = await start(db.worker, bucket);
        await db.worker`select public.image_sync_hand_off(${run}, ${randomUUID()}, '{}')`;
      }),
      forAWhile(async () => {
        await new Promise((resolve) => setTimeout(resolve, 300));
        await db
          .worker`select public.image_sync_cancel(id) from image_sync.runs where bucket_id = ${bucket} and finished_at is null and mode = 'sync'`;
      }),
      forAWhile(async () => {
        await db
          .admin`update image_sync.runs set moved_at = now() - interval '1 hour', kicked_at = null where bucket_id = ${bucket} and finished_at is null and id not in (select id from image_sync.runs where finished_at is null for update skip locked)`;
        await db.admin`select image_sync.watchdog()`;
      }),
      forAWhile(clean),
    ]);
    expect(Math.min(...acts)).toBeGreaterThan(0);
    for (const mode of ["sync", "cleanup"]) {
      await workToEnd(db.worker, (await start(db.worker, bucket, { mode })).run);
    }
    expect(await findViolations(db.admin, bucket)).toEqual([]);
    const [left] = await db
      .admin`select count(*)::int as records, count(*) filter (where file_name like 'gone-%')::int as gone from public.part_images where bucket_id = ${bucket}`;
    expect(left).toEqual({ records: 400, gone: 0 });
    expect(await deadlocks()).toBe(0);
  },
);

test("objects uploaded, deleted and renamed while a sync runs are settled by the next one", {
  timeout: 120_000,
}, async () => {
  const { admin, worker } = db;
  const bucket = await createRows(admin, { names: numbered(3_000), settings: { chunk_size: 50 } });
  const { run } = await start(worker, bucket);
  let isRunning = true;
  const meddle = async () => {
    for (let step = 0; isRunning; step++) {
      const name = `${String(1 + (step * 7919) % 3_000).padStart(6, "0")}.jpg`;
      await admin`insert into storage.objects (bucket_id, name) values (${bucket}, ${`${name}.new.jpg`}) on conflict do nothing`;
      await admin`update storage.objects set name = 'renamed-' || name where bucket_id = ${bucket} and name = ${name}`;
      await admin.begin(async (transaction) => {
        await transaction`set local storage.allow_delete_query = 'true'`;
        await transaction`delete from storage.objects where bucket_id = ${bucket} and name = ${
          name.replace("1", "2")
        }`;
      });
    }
  };
  const meddling = meddle();
  await Promise.all(Array.from({ length: 3 }, () => workToEnd(worker, run)));
  isRunning = false;
  await meddling;
  expect(await documentOf(run)).toMatchObject({ state: "succeeded", balanced: true });
  const next = await start(worker, bucket);
  await workToEnd(worker, next.run);
  expect(await documentOf(next.run)).toMatchObject({ state: "succeeded", balanced: true });
  const fresh = await start(worker, bucket, { mode: "analyze" });
  await workToEnd(worker, fresh.run);
  expect(await documentOf(fresh.run)).toMatchObject({ state: "succeeded", totals: { missing: 0 } });
  expect(await findViolations(admin, bucket)).toEqual([]);
  expect(await deadlocks()).toBe(0);
});

test("two operators who confirm one plan start one cleanup", async () => {
  const bucket = await createRows(db.admin, { names: numbered(20) });
  await workToEnd(db.worker, (await start(db.worker, bucket)).run);
  await db.admin`insert into public.part_images (bucket_id, file_name) values (${bucket}, 'gone.jpg')`;
  const plan = await start(db.worker, bucket, { mode: "cleanup" });
  await workToEnd(db.worker, plan.run);
  const confirm = () => start(db.worker, bucket, { mode: "cleanup", options: { confirm: plan.run } });
  const answers = await Promise.all(Array.from({ length: 6 }, confirm));
  const [cleanup] = answers.filter(({ created }) => created);
  expect(answers.filter(({ created }) => created)).toHaveLength(1);
  expect(new Set(answers.map(({ run }) => run))).toEqual(new Set([cleanup?.run]));
  await Promise.all([1, 2, 3].map(() => workToEnd(db.worker, cleanup?.run ?? "")));
  expect(await documentOf(cleanup?.run ?? "")).toMatchObject({ state: "succeeded", totals: { removed: 1 } });
  expect((await confirm()).problem).toBe("plan_already_applied");
  const [archived] = await db
    .admin`select count(*)::int as copies from image_sync.archive where bucket_id = ${bucket}`;
  expect(archived).toEqual({ copies: 1 });
});
