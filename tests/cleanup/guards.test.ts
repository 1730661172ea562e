/** The guards before the first record goes: each has its code, its numbers and its way out; only some can be overridden. */
import { afterAll, beforeAll, expect, test } from "vitest";
import { z } from "zod";
import type { Problem } from "../../supabase/functions/image-sync/contract.ts";
import {
  addObjects,
  createBucket,
  createSettings,
  type Lab,
  numberedNames,
  openLab,
  readProblem,
  removeObjects,
  runToEnd,
} from "../sync/support/lab.ts";
import {
  addRecords,
  apply,
  cancel,
  createTidyBucket,
  dryRun,
  goneNames,
  openWithoutWorker,
  readWhole,
  restore,
} from "./support/records.ts";

let lab: Lab;
beforeAll(async () => {
  lab = await openLab();
});
afterAll(() => lab?.close());

const overrides = { max_delete_count: 1_000_000, max_delete_fraction: 1, allow_empty_bucket: true };

const readRuns = (bucket: string) =>
  lab
    .sql`select id from image_sync.runs where bucket_id = ${bucket} and mode in ('cleanup', 'restore') order by id`;

/** The refusal of a request, which has to have changed nothing. */
async function refusal(bucket: string, body: Record<string, unknown>): Promise<Problem> {
  const before = await readWhole(lab, bucket);
  const runs = await readRuns(bucket);
  const response = await lab.call({ method: "POST", body: JSON.stringify({ bucket, ...body }) });
  const problem = await readProblem(response);
  expect(await readWhole(lab, bucket)).toEqual(before);
  expect(await readRuns(bucket)).toEqual(runs);
  // A sentence about this very bucket or run, not an empty form.
  expect(problem.detail).toMatch(/^Cannot /);
  return problem;
}

/** The request that a refusal writes out as the way to go on. */
function wayOut({ detail }: Problem): Record<string, unknown> {
  return z.record(z.string(), z.unknown()).parse(JSON.parse(/\{.*\}/.exec(detail)?.[0] ?? ""));
}

const confirm = (bucket: string, plan: string, more: Record<string, unknown> = {}) =>
  refusal(bucket, { mode: "cleanup", confirm: plan, ...more });

async function deleteBucket(bucket: string): Promise<void> {
  await lab.sql.begin(async (transaction) => {
    await transaction`select set_config('storage.allow_delete_query', 'true', true)`;
    await transaction`delete from storage.objects where bucket_id = ${bucket}`;
    await transaction`delete from storage.buckets where id = ${bucket}`;
  });
}

test("conflicting_run: an open cleanup excludes a restore and another cleanup, and names itself", async () => {
  const bucket = await createTidyBucket(lab, { orphans: goneNames(2) });
  const cleanup = await apply(lab, bucket, (await dryRun(lab, bucket)).id);
  const plan = await dryRun(lab, bucket);
  const open =
    (await lab.database.start({ run: crypto.randomUUID(), bucket, mode: "cleanup", options: {} })).run;
  const expected = { status: 409, code: "conflicting_run", open_run: open.id };
  expect(await refusal(bucket, { mode: "restore", restore: cleanup.id })).toMatchObject(expected);
  const problem = await confirm(bucket, plan.id, overrides);
  expect(problem).toMatchObject(expected);
  expect(problem.detail).toContain(`DELETE ?run=${open.id}`);
  await cancel(lab, open.id);
  expect((await restore(lab, bucket, cleanup.id)).state).toBe("succeeded");
});

test("conflicting_run: an open restore excludes a cleanup", async () => {
  const bucket = await createTidyBucket(lab, { orphans: goneNames(2) });
  const cleanup = await apply(lab, bucket, (await dryRun(lab, bucket)).id);
  const open = await openWithoutWorker(lab, bucket, "restore", cleanup.id);
  expect(await refusal(bucket, { mode: "cleanup" })).toMatchObject({
    code: "conflicting_run",
    open_run: open.id,
  });
  await cancel(lab, open.id);
});

test("unknown_plan: only a dry run of a cleanup can be confirmed, whatever is overridden", async () => {
  const bucket = await createTidyBucket(lab, { orphans: goneNames(1) });
  const sync = await runToEnd(lab, bucket);
  const plan = await dryRun(lab, bucket);
  const applied = await apply(lab, bucket, plan.id);
  for (const id of [crypto.randomUUID(), sync.id, applied.id]) {
    const problem = await confirm(bucket, id, overrides);
    expect(problem).toMatchObject({ status: 404, code: "unknown_plan" });
    expect(problem.detail).toContain(id);
    expect(problem.detail).toContain('{"mode": "cleanup"}');
  }
  for (const id of [crypto.randomUUID(), sync.id, plan.id]) {
    const problem = await refusal(bucket, { mode: "restore", restore: id });
    expect(problem).toMatchObject({ status: 404, code: "unknown_plan" });
    expect(problem.detail).toContain("image_sync.archive");
  }
});

test("plan_of_another_bucket: a list goes for the bucket that it was made of, whatever is overridden", async () => {
  const bucket = await createTidyBucket(lab, { orphans: goneNames(1) });
  const other = await createTidyBucket(lab, { orphans: goneNames(1) });
  const plan = await dryRun(lab, other);
  expect(await confirm(bucket, plan.id, overrides)).toMatchObject({
    status: 409,
    code: "plan_of_another_bucket",
    plan_bucket: other,
  });
  const applied = await apply(lab, other, plan.id);
  expect(await refusal(bucket, { mode: "restore", restore: applied.id })).toMatchObject({
    code: "plan_of_another_bucket",
    plan_bucket: other,
  });
});

test("nothing_to_restore: a cleanup that removed nothing, or is back already", async () => {
  const bucket = await createTidyBucket(lab, { orphans: goneNames(1) });
  const plan = await dryRun(lab, bucket);
  await addObjects(lab, bucket, goneNames(1));
  const idle = await apply(lab, bucket, plan.id);
  expect(await refusal(bucket, { mode: "restore", restore: idle.id })).toMatchObject({
    status: 409,
    code: "nothing_to_restore",
  });
  await removeObjects(lab, bucket, goneNames(1));
  const cleanup = await apply(lab, bucket, (await dryRun(lab, bucket)).id);
  await restore(lab, bucket, cleanup.id);
  expect(await refusal(bucket, { mode: "restore", restore: cleanup.id })).toMatchObject({
    code: "nothing_to_restore",
  });
});

test("plan_not_finished: a list that was cancelled is not the whole list", async () => {
  const bucket = await createTidyBucket(lab, { orphans: goneNames(1) });
  const open =
    (await lab.database.start({ run: crypto.randomUUID(), bucket, mode: "cleanup", options: {} })).run;
  await cancel(lab, open.id);
  const problem = await confirm(bucket, open.id, overrides);
  expect(problem).toMatchObject({ status: 409, code: "plan_not_finished" });
  expect(problem.detail).toContain("cancelled");
});

test("plan_already_applied: a list is applied once, whatever is overridden", async () => {
  const bucket = await createTidyBucket(lab, { orphans: goneNames(1) });
  const plan = await dryRun(lab, bucket);
  const applied = await apply(lab, bucket, plan.id);
  await addRecords(lab, bucket, goneNames(1));
  expect(await confirm(bucket, plan.id, overrides)).toMatchObject({
    status: 409,
    code: "plan_already_applied",
    applied_by: applied.id,
  });
});

test("bucket_missing: without a bucket every record looks orphaned, whatever is overridden", async () => {
  const bucket = await createTidyBucket(lab, { orphans: goneNames(1) });
  const plan = await dryRun(lab, bucket);
  await deleteBucket(bucket);
  expect(await confirm(bucket, plan.id, overrides)).toMatchObject({ status: 409, code: "bucket_missing" });
});

test("a dry run of a bucket that does not exist fails and makes no list", async () => {
  const bucket = `bucket-${crypto.randomUUID()}`;
  await createSettings(lab, bucket);
  await addRecords(lab, bucket, goneNames(3));
  const run = await dryRun(lab, bucket);
  expect(run).toMatchObject({ state: "failed", error: { code: "bucket_missing" } });
  expect((await confirm(bucket, run.id, overrides)).code).toBe("plan_not_finished");
});

test("bucket_recreated: a bucket deleted and made again refuses until a new list is confirmed", async () => {
  const bucket = await createTidyBucket(lab, { orphans: goneNames(1) });
  const plan = await dryRun(lab, bucket);
  await deleteBucket(bucket);
  await lab.sql`insert into storage.buckets (id, name, public) values (${bucket}, ${bucket}, false)`;
  await addObjects(lab, bucket, numberedNames(100));
  const problem = await confirm(bucket, plan.id, overrides);
  expect(problem).toMatchObject({ status: 409, code: "bucket_recreated" });
  expect(Date.parse(String(problem["bucket_created_at"]))).toBeGreaterThan(
    Date.parse(String(problem["plan_bucket_created_at"])),
  );
  const anew = await dryRun(lab, bucket);
  expect((await apply(lab, bucket, anew.id)).totals).toMatchObject({ removed: 1 });
});

test("plan_expired: a list is good for a day", async () => {
  const bucket = await createTidyBucket(lab, { orphans: goneNames(1) });
  const plan = await dryRun(lab, bucket);
  await lab.sql`update image_sync.runs set finished_at = now() - interval '25 hours' where id = ${plan.id}`;
  expect(await confirm(bucket, plan.id, overrides)).toMatchObject({
    status: 409,
    code: "plan_expired",
    max_age_hours: 24,
  });
  await lab.sql`update image_sync.runs set finished_at = now() - interval '23 hours' where id = ${plan.id}`;
  expect((await apply(lab, bucket, plan.id)).totals).toMatchObject({ removed: 1 });
});

test("bucket_empty: a bucket emptied by accident refuses, even with the other guards raised", async () => {
  const bucket = await createTidyBucket(lab, { images: 20 });
  await removeObjects(lab, bucket, numberedNames(20));
  const plan = await dryRun(lab, bucket);
  expect(plan.plan?.count).toBe(20);
  const { allow_empty_bucket: _, ...others } = overrides;
  const problem = await confirm(bucket, plan.id, others);
  expect(problem).toMatchObject({ status: 409, code: "bucket_empty" });
  // The way out, as it is written there, is a request that works.
  const request = wayOut(problem);
  expect(request).toMatchObject({ mode: "cleanup", confirm: plan.id, allow_empty_bucket: true });
  expect((await runToEnd(lab, bucket, request)).totals).toMatchObject({
    removed: 20,
  });
});

test("bucket_empty: a folder's placeholder is no file", async () => {
  const bucket = await createTidyBucket(lab, { images: 2 });
  await addObjects(lab, bucket, ["folder/.emptyFolderPlaceholder"]);
  await removeObjects(lab, bucket, numberedNames(2));
  const plan = await dryRun(lab, bucket);
  expect((await confirm(bucket, plan.id, { max_delete_fraction: 1 })).code).toBe("bucket_empty");
});

test("too_large_fraction: 11 % orphans refuse at the default 10 %, with the numbers and a request that works", async () => {
  const bucket = await createTidyBucket(lab, { images: 89, orphans: goneNames(11) });
  const plan = await dryRun(lab, bucket);
  const problem = await confirm(bucket, plan.id, { max_delete_count: 1_000_000 });
  expect(problem).toMatchObject({
    status: 409,
    code: "too_large_fraction",
    planned: 11,
    records: 100,
    fraction: 0.11,
    max_delete_fraction: 0.1,
  });
  expect(problem.detail).toContain("11 of 100 records (11.0 %)");
  const almost = await confirm(bucket, plan.id, { max_delete_fraction: 0.1099 });
  expect(almost).toMatchObject({ code: "too_large_fraction", max_delete_fraction: 0.1099 });
  const request = wayOut(problem);
  expect(request).toEqual({ mode: "cleanup", confirm: plan.id, max_delete_fraction: 0.11 });
  expect((await runToEnd(lab, bucket, request)).totals).toMatchObject({
    removed: 11,
  });
});

test("10 % orphans pass at the default 10 %", async () => {
  const bucket = await createTidyBucket(lab, { images: 90, orphans: goneNames(10) });
  expect((await apply(lab, bucket, (await dryRun(lab, bucket)).id)).totals).toMatchObject({ removed: 10 });
});

test("too_many_records: more than max_delete_count refuse, and raising it by name lets them go", async () => {
  const bucket = await createTidyBucket(lab, {
    settings: { max_delete_count: 3, max_delete_fraction: 1 },
    images: 5,
    orphans: goneNames(4),
  });
  const plan = await dryRun(lab, bucket);
  const problem = await confirm(bucket, plan.id);
  expect(problem).toMatchObject({
    status: 409,
    code: "too_many_records",
    planned: 4,
    records: 9,
    max_delete_count: 3,
  });
  const request = wayOut(problem);
  expect(request).toEqual({ mode: "cleanup", confirm: plan.id, max_delete_count: 4 });
  expect((await runToEnd(lab, bucket, request)).totals).toMatchObject({
    removed: 4,
  });
});

test("a request can be stricter than the settings", async () => {
  const bucket = await createTidyBucket(lab, { orphans: goneNames(2) });
  const plan = await dryRun(lab, bucket);
  expect((await confirm(bucket, plan.id, { max_delete_count: 1 })).code).toBe("too_many_records");
  expect((await confirm(bucket, plan.id, { max_delete_fraction: 0 })).code).toBe("too_large_fraction");
});

test("a bucket that is deleted while a cleanup waits loses no record", async () => {
  const bucket = await createTidyBucket(lab, { orphans: goneNames(2) });
  const plan = await dryRun(lab, bucket);
  const { id } = await openWithoutWorker(lab, bucket, "cleanup", plan.id);
  const before = await readWhole(lab, bucket);
  await deleteBucket(bucket);
  const run = await apply(lab, bucket, plan.id);
  expect(run).toMatchObject({
    id,
    state: "failed",
    error: { code: "bucket_missing" },
    totals: { removed: 0 },
  });
  expect(await readWhole(lab, bucket)).toEqual(before);
});

test("a dry run that finds an empty bucket with no records has nothing to confirm", async () => {
  const bucket = await createBucket(lab);
  const run = await dryRun(lab, bucket);
  expect(run).toMatchObject({ state: "succeeded", plan: { count: 0 } });
});
