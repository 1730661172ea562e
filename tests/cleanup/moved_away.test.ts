/** A record whose file is somewhere, under whatever name and in whatever bucket, is no orphan: a cleanup leaves it out and names it. */
import { afterAll, beforeAll, beforeEach, expect, onTestFinished, test } from "vitest";
import { recordListSchema } from "../../supabase/functions/image-sync/contract.ts";
import {
  codesOf,
  createBucket,
  type Lab,
  moveObjects,
  numberedNames,
  openLab,
  readRecords,
  readReport,
  removeObjects,
  runToEnd,
} from "../sync/support/lab.ts";
import { apply, dryRun, namesByCode, openWithoutWorker, stepOnce } from "./support/records.ts";

let lab: Lab;
beforeAll(async () => {
  lab = await openLab();
});
afterAll(() => lab?.close());
beforeEach(async () => {
  await lab.sql`delete from public.part_images`;
});

/** A bucket whose records know their objects. */
async function syncedBucket(count = 20): Promise<string> {
  const bucket = await createBucket(lab, { objects: numberedNames(count) });
  await runToEnd(lab, bucket);
  return bucket;
}

/** A bucket that no run looks at. */
async function foreignBucket(): Promise<string> {
  const bucket = `foreign-${crypto.randomUUID()}`;
  await lab.sql`insert into storage.buckets (id, name) values (${bucket}, ${bucket})`;
  onTestFinished(async () => {
    await lab.sql`delete from image_sync.settings where bucket_id = ${bucket}`;
    await lab.sql.begin(async (transaction) => {
      await transaction`select set_config('storage.allow_delete_query', 'true', true)`;
      await transaction`delete from storage.objects where bucket_id = ${bucket}`;
      await transaction`delete from storage.buckets where id = ${bucket}`;
    });
  });
  return bucket;
}

const idOf = async (bucket: string, name: string) =>
  (await readRecords(lab, bucket)).find(({ file_name }) => file_name === name)?.id;

test("in a bucket without settings: left out of the list and named, and it follows once that bucket has settings", async () => {
  const bucket = await syncedBucket();
  const foreign = await foreignBucket();
  const id = await idOf(bucket, "000001.jpg");
  await moveObjects(lab, bucket, { "000001.jpg": "shelf/1.jpg" }, foreign);
  await removeObjects(lab, bucket, ["000002.jpg"]);

  const plan = await dryRun(lab, bucket);
  expect(plan.plan).toEqual({ count: 1, samples: ["000002.jpg"] });
  expect(plan.problems).toEqual([{
    name: "000001.jpg",
    code: "moved_away",
    detail: `Left out: its file is shelf/1.jpg (bucket ${foreign}) now`,
  }]);
  const cleanup = await apply(lab, bucket, plan.id);
  expect(cleanup.totals).toMatchObject({ removed: 1, skipped: 0 });
  expect(await idOf(bucket, "000001.jpg")).toBe(id);

  await runToEnd(lab, bucket, { mode: "analyze" });
  const finding = (await readReport(lab, bucket)).findings.find(({ code }) => code === "moved_away");
  expect(finding).toMatchObject({ count: 1, samples: [`000001.jpg → shelf/1.jpg (bucket ${foreign})`] });
  expect(finding?.remediation).toContain("Give it settings");
  // The remedy, to the letter: SQL first, and what is printed then.
  await lab.sql.unsafe(String(finding?.action && "sql" in finding.action ? finding.action.sql : ""));
  const next = (await readReport(lab, bucket)).findings.find(({ code }) => code === "moved_away");
  expect(next?.action).toMatchObject({ request: { mode: "sync", bucket: foreign } });
  await runToEnd(lab, foreign);
  expect(await idOf(foreign, "shelf/1.jpg")).toBe(id);
  expect(codesOf(await readReport(lab, bucket))).not.toContain("moved_away");
});

test("under a name that is left out, and as an empty file: no orphan either, and it follows once it may", async () => {
  const bucket = await syncedBucket();
  const ids = [
    await idOf(bucket, "000001.jpg"),
    await idOf(bucket, "000002.jpg"),
    await idOf(bucket, "000003.jpg"),
  ];
  await moveObjects(lab, bucket, {
    "000001.jpg": "1.txt",
    "000002.jpg": "__MACOSX/2.jpg",
    "000003.jpg": "3.jpg",
  });
  await lab
    .sql`update storage.objects set metadata = '{"size": 0}' where bucket_id = ${bucket} and name = '3.jpg'`;
  const plan = await dryRun(lab, bucket);
  expect(plan.plan).toEqual({ count: 0, samples: [] });
  expect(namesByCode(plan)).toEqual({ moved_away: ["000001.jpg", "000002.jpg", "000003.jpg"] });
  await runToEnd(lab, bucket);
  const { findings } = await readReport(lab, bucket);
  expect(findings.find(({ code }) => code === "moved_away")).toMatchObject({
    count: 3,
    samples: ["000001.jpg → 1.txt", "000002.jpg → __MACOSX/2.jpg", "000003.jpg → 3.jpg"],
    remediation: expect.stringContaining("left out"),
  });
  expect(findings.map(({ code }) => code)).not.toContain("orphaned");
  await moveObjects(lab, bucket, { "1.txt": "1.jpg", "__MACOSX/2.jpg": "2.jpg" });
  await lab
    .sql`update storage.objects set metadata = '{"size": 9}' where bucket_id = ${bucket} and name = '3.jpg'`;
  expect(await runToEnd(lab, bucket)).toMatchObject({ totals: { moved: 3, orphaned: 0, inserted: 0 } });
  expect([await idOf(bucket, "1.jpg"), await idOf(bucket, "2.jpg"), await idOf(bucket, "3.jpg")]).toEqual(
    ids,
  );
  expect(codesOf(await readReport(lab, bucket))).not.toContain("moved_away");
});

test("moved after the list was confirmed: each is kept and named by what becomes of it", async () => {
  const bucket = await syncedBucket(40);
  const foreign = await foreignBucket();
  const gone = numberedNames(3);
  const objects = await lab.sql<{ id: string; name: string }[]>`
    select id, name from storage.objects where bucket_id = ${bucket} and name = any (${gone}) order by name`;
  await removeObjects(lab, bucket, gone);
  const plan = await dryRun(lab, bucket);
  expect(plan.plan).toMatchObject({ count: 3 });
  const { id } = await openWithoutWorker(lab, bucket, "cleanup", plan.id);
  // As a backup brings them back: the objects that they were, elsewhere.
  for (const [at, [to, name]] of [[foreign, "1.jpg"], [bucket, "2.txt"], [bucket, "3.jpg"]].entries()) {
    await lab.sql`
      insert into storage.objects (id, bucket_id, name, metadata)
      values (${objects[at]?.id ?? null}, ${to ?? ""}, ${name ?? ""}, '{"size": 9}')`;
  }
  await stepOnce(lab, id);
  const run = await lab.database.readRun(id);
  expect(run.totals).toMatchObject({ removed: 0, skipped: 3 });
  expect(namesByCode(run)).toEqual({
    moved_away: ["000001.jpg", "000002.jpg"],
    file_has_moved: ["000003.jpg"],
  });
});

test("its file has another record where it is now: that one keeps it, and this one is an orphan", async () => {
  const bucket = await syncedBucket();
  const foreign = await foreignBucket();
  await moveObjects(lab, bucket, { "000001.jpg": "1.jpg" }, foreign);
  await lab.sql`insert into public.part_images (bucket_id, file_name) values (${foreign}, '1.jpg')`;
  const plan = await dryRun(lab, bucket);
  expect(plan).toMatchObject({ plan: { count: 1, samples: ["000001.jpg"] }, problems: [] });
  expect((await apply(lab, bucket, plan.id)).totals).toMatchObject({ removed: 1 });
});

test("its file is gone there too: an orphan again; and so is a record that never knew its file", async () => {
  const bucket = await syncedBucket();
  const foreign = await foreignBucket();
  await moveObjects(lab, bucket, { "000001.jpg": "1.jpg", "000002.jpg": "2.jpg" }, foreign);
  expect((await dryRun(lab, bucket)).plan).toMatchObject({ count: 0 });
  await removeObjects(lab, foreign, ["1.jpg"]);
  await lab.sql`update public.part_images set object_id = null where file_name = '000002.jpg'`;
  const plan = await dryRun(lab, bucket);
  expect(plan).toMatchObject({ plan: { count: 2, samples: ["000001.jpg", "000002.jpg"] }, problems: [] });
});

test("of a bucket that is gone: records whose files were moved elsewhere first stay", async () => {
  const bucket = await syncedBucket(3);
  const foreign = await foreignBucket();
  await moveObjects(lab, bucket, { "000002.jpg": "2.jpg" }, foreign);
  await removeObjects(lab, bucket, numberedNames(3));
  await lab.sql.begin(async (transaction) => {
    await transaction`select set_config('storage.allow_delete_query', 'true', true)`;
    await transaction`delete from storage.buckets where id = ${bucket}`;
  });
  const plan = await runToEnd(lab, bucket, { mode: "cleanup", bucket_is_gone: true });
  expect(plan.plan).toEqual({ count: 2, samples: ["000001.jpg", "000003.jpg"] });
  expect(namesByCode(plan)).toEqual({ moved_away: ["000002.jpg"] });
  await apply(lab, bucket, plan.id);
  expect((await readRecords(lab, bucket)).map(({ file_name }) => file_name)).toEqual(["000002.jpg"]);
});

test("a list of pictures shows it as moved, and its file says where it is", async () => {
  const bucket = await syncedBucket(3);
  const foreign = await foreignBucket();
  await moveObjects(lab, bucket, { "000001.jpg": "1.jpg" }, foreign);
  await removeObjects(lab, bucket, ["000002.jpg"]);
  const states = async (state: string) => {
    const response = await lab.call({ query: `/records?bucket=${bucket}&state=${state}` });
    return recordListSchema.parse(await response.json()).records.map((item) =>
      `${item.file_name} ${item.state}`
    );
  };
  expect(await states("all")).toEqual([
    "000001.jpg moved",
    "000002.jpg orphaned",
    expect.stringMatching(/^000003/),
  ]);
  expect(await states("orphaned")).toEqual(["000002.jpg orphaned"]);
  const { reasons } = await lab.database.readFile(bucket, "000001.jpg");
  expect(reasons).toMatchObject([{
    code: "moved_away",
    detail: expect.stringContaining(`1.jpg (bucket ${foreign})`),
  }]);
  const plan = await dryRun(lab, bucket);
  const shown = await lab.call({ query: `?run=${plan.id}`, headers: { accept: "text/plain" } });
  expect(await shown.text()).toContain("000001.jpg: moved_away, Left out");
});
