/** Records of a bucket that is gone: named in every report, archived by a cleanup that says so, and by no other. */
import { afterAll, beforeAll, expect, test } from "vitest";
import { codesOf, createBucket, numberedNames, readReport, runToEnd } from "../sync/support/lab.ts";
import { type LocalLab, openLocalLab } from "../sync/support/local_lab.ts";

let lab: LocalLab;
beforeAll(async () => {
  lab = await openLocalLab();
});
afterAll(() => lab?.close());

/** Records of a bucket that never was. */
async function strayRecords(count: number): Promise<string> {
  const bucket = `gone-${crypto.randomUUID()}`;
  await lab.sql`
    insert into public.part_images (bucket_id, file_name)
    select ${bucket}, n from unnest(${numberedNames(count)}::text[]) as n`;
  return bucket;
}

const post = async (body: Record<string, unknown>) => {
  const response = await lab.call({
    method: "POST",
    headers: { apikey: lab.stack.secretKey, prefer: "wait=60" },
    body: JSON.stringify(body),
  });
  return await response.json();
};
const left = async (bucket: string) =>
  (await lab.sql`select from public.part_images where bucket_id = ${bucket}`).length;

test("are a finding in the report of every other bucket, with how many and why", async () => {
  const bucket = await createBucket(lab, { objects: numberedNames(2) });
  await runToEnd(lab, bucket);
  const gone = await strayRecords(3);
  const unknown = await createBucket(lab, { objects: [] });
  await lab.sql`delete from image_sync.settings where bucket_id = ${unknown}`;
  await lab.sql`insert into public.part_images (bucket_id, file_name) values (${unknown}, 'a.jpg')`;
  const report = await readReport(lab, bucket);
  expect(report.findings).toMatchObject([{ code: "stray_records", count: 4 }]);
  expect(report.findings[0]?.samples).toEqual(
    expect.arrayContaining([
      `${gone}: 3 records, the bucket does not exist`,
      `${unknown}: 1 record, a bucket without settings`,
    ]),
  );
  await lab.sql`delete from public.part_images where bucket_id in (${gone}, ${unknown})`;
  expect(codesOf(await readReport(lab, bucket))).toEqual([]);
});

test("go to the archive once their list is confirmed, all of them, and can be restored", async () => {
  const bucket = await strayRecords(25);
  const list = await post({ mode: "cleanup", bucket, bucket_is_gone: true });
  expect(list).toMatchObject({ state: "succeeded", plan: { count: 25 } });
  expect(await left(bucket)).toBe(25);
  const cleanup = await post({ mode: "cleanup", bucket, confirm: list.id });
  expect(cleanup).toMatchObject({ state: "succeeded", totals: { removed: 25, skipped: 0 } });
  expect(await left(bucket)).toBe(0);
  const restore = await post({ mode: "restore", bucket, restore: cleanup.id });
  expect(restore).toMatchObject({ state: "succeeded", totals: { restored: 25 } });
  expect(await left(bucket)).toBe(25);
  // The night does not look for a bucket that is gone.
  expect(await lab.sql`select nightly from image_sync.settings where bucket_id = ${bucket}`).toEqual([
    { nightly: false },
  ]);
});

test("are safe while the bucket exists, at the list and at its confirmation", async () => {
  const bucket = await createBucket(lab, { objects: numberedNames(3) });
  await runToEnd(lab, bucket);
  expect(await post({ mode: "cleanup", bucket, bucket_is_gone: true })).toMatchObject({
    status: 409,
    code: "bucket_exists",
  });
  const back = await strayRecords(3);
  const list = await post({ mode: "cleanup", bucket: back, bucket_is_gone: true });
  await lab.sql`insert into storage.buckets (id, name, public) values (${back}, ${back}, false)`;
  const refused = await post({ mode: "cleanup", bucket: back, confirm: list.id });
  expect(refused).toMatchObject({ status: 409, code: "bucket_recreated" });
  expect(await left(back)).toBe(3);
});

test("are still guarded by their number, and by nothing where no one says that the bucket is gone", async () => {
  const bucket = await strayRecords(3);
  expect(await post({ mode: "cleanup", bucket })).toMatchObject({ status: 404, code: "unknown_bucket" });
  const list = await post({ mode: "cleanup", bucket, bucket_is_gone: true });
  await lab.sql`update image_sync.settings set max_delete_count = 2 where bucket_id = ${bucket}`;
  expect(await post({ mode: "cleanup", bucket, confirm: list.id })).toMatchObject({
    status: 409,
    code: "too_many_records",
  });
  const plain = await post({ mode: "cleanup", bucket });
  expect(plain).toMatchObject({ state: "failed", stop_reason: "bucket_missing" });
  expect(await left(bucket)).toBe(3);
});

test("of a bucket without records and without settings there is nothing to begin", async () => {
  expect(await post({ mode: "cleanup", bucket: "never-was", bucket_is_gone: true })).toMatchObject({
    status: 404,
    code: "unknown_bucket",
  });
  expect(await post({ mode: "sync", bucket_is_gone: true })).toMatchObject({
    status: 400,
    code: "invalid_body",
  });
});
