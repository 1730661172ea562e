/** How runs end beside others: what was counted is what was done. */
import { afterAll, beforeAll, expect, test } from "vitest";
import { apply, createTidyBucket, dryRun, goneNames, restore } from "../cleanup/support/records.ts";
import {
  createBucket,
  eventually,
  numberedNames,
  openRun,
  readReport,
  waitForEnd,
  wake,
} from "./support/lab.ts";
import { type LocalLab, openLocalLab, setLatency } from "./support/local_lab.ts";

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
  const signedRows = async () =>
    (await lab
      .sql`select count(signed_url)::integer as rows from public.part_images where bucket_id = ${bucket}`)[0]
      ?.["rows"];
  // Whoever is late changes nothing any more.
  await new Promise((resolve) => setTimeout(resolve, 500));
  expect(cancelled).toMatchObject({ state: "cancelled", balanced: true });
  expect(cancelled.totals.signed).toBeGreaterThan(100);
  expect(await signedRows()).toBe(cancelled.totals.signed);
});
