/** Cleanup and restore: exactly the listed records go, whole, and come back as they were. */
import { afterAll, beforeAll, expect, onTestFinished, test } from "vitest";
import {
  addObjects,
  type Lab,
  numberedNames,
  openLab,
  readRecords,
  removeObjects,
  waitForEnd,
  wake,
} from "../sync/support/lab.ts";
import {
  addRecords,
  apply,
  cancel,
  createTidyBucket,
  dryRun,
  goneNames,
  namesByCode,
  openWithoutWorker,
  readArchive,
  readWhole,
  restore,
  slowDown,
  stepOnce,
} from "./support/records.ts";

let lab: Lab;
beforeAll(async () => {
  lab = await openLab();
  // The table's owner has columns of their own, one of them computed, and an identity.
  await lab.sql.unsafe(`
    alter table public.part_images
      add column shelf text default 'A1',
      add column tags jsonb default '{"colour": "red", "sizes": [1, 2.50]}',
      add column weight numeric(12, 3) default 1.500,
      add column label text generated always as (upper(part_number)) stored,
      add column position bigint generated always as identity`);
});
afterAll(async () => {
  await lab?.sql.unsafe(`
    alter table public.part_images
      drop column shelf, drop column tags, drop column weight, drop column label, drop column position`);
  await lab?.close();
});

const without = (all: Readonly<Record<string, string>>, names: readonly string[]) =>
  Object.fromEntries(Object.entries(all).filter(([name]) => !names.includes(name)));
const only = (all: Readonly<Record<string, string>>, names: readonly string[]) =>
  Object.fromEntries(Object.entries(all).filter(([name]) => names.includes(name)));

test("a dry run lists what would go and changes nothing", async () => {
  const gone = goneNames(30);
  const bucket = await createTidyBucket(lab, { settings: { chunk_size: 7 }, orphans: gone });
  const before = await readRecords(lab, bucket);
  const run = await dryRun(lab, bucket);
  expect(run).toMatchObject({
    state: "succeeded",
    plan_id: null,
    balanced: true,
    plan: { count: 30, samples: gone.slice(0, 20) },
    totals: { listed: 100, records: 130, orphaned: 30, removed: 0, rows_written: 0, storage_calls: 0 },
  });
  expect(await readRecords(lab, bucket)).toEqual(before);
  expect(await readArchive(lab, run.id)).toEqual({});
});

test("an applied cleanup moves exactly the listed records, whole, to the archive, and the report counts anew", async () => {
  const gone = goneNames(10);
  const bucket = await createTidyBucket(lab, { settings: { chunk_size: 7 }, orphans: gone });
  const before = await readWhole(lab, bucket);
  const plan = await dryRun(lab, bucket);
  const run = await apply(lab, bucket, plan.id);
  expect(run).toMatchObject({
    state: "succeeded",
    plan_id: plan.id,
    problems: [],
    totals: { removed: 10, skipped: 0, rows_written: 10, storage_calls: 0 },
  });
  expect(await readWhole(lab, bucket)).toEqual(without(before, gone));
  expect(await readArchive(lab, run.id)).toEqual(only(before, gone));
  await expect.poll(async () => (await lab.database.readReport(bucket)).difference.orphaned.count, {
    timeout: 30_000,
  }).toBe(0);
});

test("restore gives back the same rows: ids, timestamps and the owner's columns included", async () => {
  const gone = goneNames(10);
  const bucket = await createTidyBucket(lab, { settings: { chunk_size: 3 }, orphans: gone });
  await lab.sql`
    update public.part_images
    set shelf = null, tags = '["é", null]', weight = 0.001, created_at = created_at - interval '1 microsecond'
    where bucket_id = ${bucket} and file_name = ${gone[0] ?? ""}`;
  const before = await readWhole(lab, bucket);
  const cleanup = await apply(lab, bucket, (await dryRun(lab, bucket)).id);
  const run = await restore(lab, bucket, cleanup.id);
  expect(run).toMatchObject({
    state: "succeeded",
    plan_id: cleanup.id,
    problems: [],
    totals: { restored: 10, skipped: 0, rows_written: 10 },
  });
  expect(await readWhole(lab, bucket)).toEqual(before);
  const [archive] = await lab.sql`
    select count(*)::integer as all_of_them, count(restored_at)::integer as back
    from image_sync.archive where run_id = ${cleanup.id}`;
  expect(archive).toEqual({ all_of_them: 10, back: 10 });
});

test("an orphan whose file comes back between list and confirmation stays and is named", async () => {
  const gone = goneNames(5);
  const bucket = await createTidyBucket(lab, { orphans: gone });
  const before = await readWhole(lab, bucket);
  const plan = await dryRun(lab, bucket);
  await addObjects(lab, bucket, ["gone-02.jpg", "gone-04.jpg"]);
  const run = await apply(lab, bucket, plan.id);
  expect(run.totals).toMatchObject({ removed: 3, skipped: 2 });
  expect(namesByCode(run)).toEqual({ file_is_back: ["gone-02.jpg", "gone-04.jpg"] });
  expect(await readWhole(lab, bucket)).toEqual(
    without(before, ["gone-01.jpg", "gone-03.jpg", "gone-05.jpg"]),
  );
});

test("an orphan that appears after the list stays", async () => {
  const bucket = await createTidyBucket(lab, { orphans: goneNames(2) });
  const plan = await dryRun(lab, bucket);
  await removeObjects(lab, bucket, numberedNames(3));
  await addRecords(lab, bucket, ["late.jpg"]);
  const run = await apply(lab, bucket, plan.id);
  expect(run.totals).toMatchObject({ removed: 2, skipped: 0 });
  const left = Object.keys(await readWhole(lab, bucket)).sort();
  expect(left).toEqual([...numberedNames(100), "late.jpg"]);
});

test("a listed record that somebody else removed is named, and the rest go", async () => {
  const bucket = await createTidyBucket(lab, { orphans: goneNames(3) });
  const plan = await dryRun(lab, bucket);
  await lab.sql`delete from public.part_images where bucket_id = ${bucket} and file_name = 'gone-02.jpg'`;
  const run = await apply(lab, bucket, plan.id);
  expect(run).toMatchObject({ state: "succeeded", totals: { removed: 2, skipped: 1 } });
  expect(namesByCode(run)).toEqual({ record_is_gone: ["gone-02.jpg"] });
});

test.each(["", "on delete cascade", "on delete set null"])(
  "a record that another table refers to is kept and named, and so is the row that refers to it (%s)",
  async (rule) => {
    const bucket = await createTidyBucket(lab, { orphans: goneNames(4) });
    // service_role may not even read it.
    await lab.sql.unsafe(
      `create table public.orders (image_id uuid references public.part_images (id) ${rule})`,
    );
    onTestFinished(async () => {
      await lab.sql`drop table public.orders`;
    });
    await lab.sql`
      insert into public.orders
      select id from public.part_images where bucket_id = ${bucket} and file_name = 'gone-03.jpg'`;
    const run = await apply(lab, bucket, (await dryRun(lab, bucket)).id);
    expect(run).toMatchObject({ state: "succeeded", totals: { removed: 3, skipped: 1 } });
    expect(namesByCode(run)).toEqual({ referenced: ["gone-03.jpg"] });
    const [{ referring = 0 } = {}] = await lab.sql<{ referring: number }[]>`
      select count(*)::integer as referring
      from public.orders o
      join public.part_images p on p.id = o.image_id
      where p.file_name = 'gone-03.jpg'`;
    expect(referring).toBe(1);
  },
);

test("a record that a trigger of the table protects is kept and named, and the rest go", async () => {
  const bucket = await createTidyBucket(lab, { orphans: goneNames(4) });
  await lab.sql.unsafe(`
    create function public.test_protect() returns trigger language plpgsql set search_path = '' as $$
    begin
      raise exception 'This one is dear to us';
    end $$;
    create trigger test_protect before delete on public.part_images
      for each row when (old.bucket_id = '${bucket}' and old.file_name = 'gone-01.jpg') execute function public.test_protect();`);
  onTestFinished(async () => {
    await lab.sql`drop function public.test_protect cascade`;
  });
  const run = await apply(lab, bucket, (await dryRun(lab, bucket)).id);
  expect(run.totals).toMatchObject({ removed: 3, skipped: 1 });
  expect(namesByCode(run)).toEqual({ refused_by_table: ["gone-01.jpg"] });
});

test("records of other buckets, and records without a file name, are never on the list", async () => {
  const other = await createTidyBucket(lab, { images: 1, orphans: goneNames(3) });
  const bucket = await createTidyBucket(lab, { images: 50 });
  await lab.sql`insert into public.part_images (bucket_id, part_number) values (${bucket}, 'nameless')`;
  const run = await dryRun(lab, bucket);
  expect(run.plan).toEqual({ count: 0, samples: [] });
  expect(Object.keys(await readWhole(lab, other))).toHaveLength(4);
});

test("a cleanup whose worker dies half-way is gone on with, and each record goes once", async () => {
  const gone = goneNames(8);
  const bucket = await createTidyBucket(lab, { settings: { chunk_size: 2 }, images: 80, orphans: gone });
  const before = await readWhole(lab, bucket);
  const plan = await dryRun(lab, bucket);
  onTestFinished(await slowDown(lab, bucket));
  const { id } = await openWithoutWorker(lab, bucket, "cleanup", plan.id);
  await stepOnce(lab, id);
  const halfway = await lab.database.readRun(id);
  expect(halfway.state).toBe("open");
  expect(halfway.totals["removed"]).toBeGreaterThan(0);
  expect(halfway.totals["removed"]).toBeLessThan(8);

  expect((await wake(lab, id)).status).toBe(202);
  expect(await waitForEnd(lab, id)).toMatchObject({ state: "succeeded", totals: { removed: 8, skipped: 0 } });
  expect(await readArchive(lab, id)).toEqual(only(before, gone));
});

test("a cancelled cleanup keeps what is left, and what it removed can be restored", async () => {
  const gone = goneNames(8);
  const bucket = await createTidyBucket(lab, { settings: { chunk_size: 2 }, images: 80, orphans: gone });
  const before = await readWhole(lab, bucket);
  const plan = await dryRun(lab, bucket);
  onTestFinished(await slowDown(lab, bucket));
  const { id } = await openWithoutWorker(lab, bucket, "cleanup", plan.id);
  await stepOnce(lab, id);
  const cancelled = await cancel(lab, id);
  expect(cancelled).toMatchObject({ state: "cancelled", stop_reason: "cancelled" });
  const removed = Object.keys(await readArchive(lab, id));
  expect(removed.length).toBeGreaterThan(0);
  expect(removed.length).toBeLessThan(8);
  await wake(lab, id);
  expect(await readWhole(lab, bucket)).toEqual(without(before, removed));

  expect(await restore(lab, bucket, id)).toMatchObject({
    state: "succeeded",
    totals: { restored: removed.length },
  });
  expect(await readWhole(lab, bucket)).toEqual(before);
});

test("a restore that was cancelled half-way is finished by the next one", async () => {
  const gone = goneNames(8);
  const bucket = await createTidyBucket(lab, { settings: { chunk_size: 2 }, images: 80, orphans: gone });
  const before = await readWhole(lab, bucket);
  const cleanup = await apply(lab, bucket, (await dryRun(lab, bucket)).id);
  onTestFinished(await slowDown(lab, bucket));
  const { id } = await openWithoutWorker(lab, bucket, "restore", cleanup.id);
  await stepOnce(lab, id);
  const cancelled = await cancel(lab, id);
  expect(cancelled.state).toBe("cancelled");
  const back = cancelled.totals["restored"] ?? 0;
  expect(back).toBeGreaterThan(0);
  expect(back).toBeLessThan(8);

  const second = await restore(lab, bucket, cleanup.id);
  expect(second.totals).toMatchObject({ restored: 8 - back, skipped: 0 });
  expect(await readWhole(lab, bucket)).toEqual(before);
});

test("confirming again while the cleanup is open joins it instead of starting another", async () => {
  const bucket = await createTidyBucket(lab, {
    settings: { chunk_size: 2 },
    images: 80,
    orphans: goneNames(4),
  });
  const plan = await dryRun(lab, bucket);
  onTestFinished(await slowDown(lab, bucket));
  const { id } = await openWithoutWorker(lab, bucket, "cleanup", plan.id);
  const again = await apply(lab, bucket, plan.id);
  expect(again).toMatchObject({ id, state: "succeeded", created: false, totals: { removed: 4 } });
});

test("restore skips and names records whose place was taken, and takes them once the place is free", async () => {
  const gone = goneNames(4);
  const bucket = await createTidyBucket(lab, { orphans: gone });
  const before = await readWhole(lab, bucket);
  const cleanup = await apply(lab, bucket, (await dryRun(lab, bucket)).id);
  await addRecords(lab, bucket, ["gone-02.jpg"]);
  await lab.sql`
    insert into public.part_images (id, bucket_id, file_name)
    select (record ->> 'id')::uuid, bucket_id, 'usurper.jpg'
    from image_sync.archive where run_id = ${cleanup.id} and file_name = 'gone-03.jpg'`;

  const run = await restore(lab, bucket, cleanup.id);
  expect(run.totals).toMatchObject({ restored: 2, skipped: 2 });
  expect(namesByCode(run)).toEqual({ not_restored: ["gone-02.jpg", "gone-03.jpg"] });
  const after = await readWhole(lab, bucket);
  expect(only(after, ["gone-01.jpg", "gone-04.jpg"])).toEqual(only(before, ["gone-01.jpg", "gone-04.jpg"]));
  expect(after["gone-02.jpg"]).not.toBe(before["gone-02.jpg"]);

  await lab.sql`
    delete from public.part_images where bucket_id = ${bucket} and file_name in ('gone-02.jpg', 'usurper.jpg')`;
  expect((await restore(lab, bucket, cleanup.id)).totals).toMatchObject({ restored: 2, skipped: 0 });
  expect(await readWhole(lab, bucket)).toEqual(before);
});

test("a column that its owner dropped meanwhile does not keep records from coming back", async () => {
  await lab.sql`alter table public.part_images add column passing text default 'by'`;
  const gone = goneNames(2);
  const bucket = await createTidyBucket(lab, { orphans: gone });
  const cleanup = await apply(lab, bucket, (await dryRun(lab, bucket)).id);
  await lab.sql`alter table public.part_images drop column passing`;
  expect((await restore(lab, bucket, cleanup.id)).totals).toMatchObject({ restored: 2, skipped: 0 });
  expect(Object.keys(await readWhole(lab, bucket))).toHaveLength(102);
});
