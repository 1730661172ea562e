import { afterAll, beforeAll, describe, expect, test } from "vitest";
import {
  codesOf,
  createBucket,
  createSettings,
  imbalances,
  type Lab,
  numberedNames,
  openLab,
  readLedgers,
  readRecords,
  readReport,
  runToEnd,
} from "./support/lab.ts";

let lab: Lab;
beforeAll(async () => {
  lab = await openLab();
});
afterAll(() => lab?.close());

describe("a sync of a bucket", () => {
  test.each([
    { objects: 0, chunkSize: 7, chunks: 1 },
    { objects: 1, chunkSize: 7, chunks: 1 },
    { objects: 6, chunkSize: 7, chunks: 1 },
    // A full chunk does not know that nothing follows: the last one is empty.
    { objects: 7, chunkSize: 7, chunks: 2 },
    { objects: 8, chunkSize: 7, chunks: 2 },
    { objects: 14, chunkSize: 7, chunks: 3 },
    { objects: 3, chunkSize: 1, chunks: 4 },
    { objects: 1000, chunkSize: 1000, chunks: 2 },
    { objects: 1001, chunkSize: 1000, chunks: 2 },
  ])(
    "of $objects objects in chunks of $chunkSize records and signs each of them once",
    async ({ objects, chunkSize, chunks }) => {
      const names = numberedNames(objects);
      const bucket = await createBucket(lab, { settings: { chunk_size: chunkSize }, objects: names });
      const run = await runToEnd(lab, bucket);
      expect(run).toMatchObject({
        state: "succeeded",
        balanced: true,
        chunks,
        error: null,
        totals: {
          listed: objects,
          images: objects,
          recorded: 0,
          inserted: objects,
          signed: objects,
          failed: 0,
          orphaned: 0,
        },
        progress: { done: objects, percent: 100, eta_seconds: 0 },
      });
      const ledgers = await readLedgers(lab, run.id);
      expect(ledgers).toHaveLength(chunks);
      expect(imbalances(ledgers)).toEqual([]);
      const records = await readRecords(lab, bucket);
      expect(records.map(({ file_name }) => file_name)).toEqual(names);
      expect(records.filter(({ signed_url }) => signed_url === null)).toEqual([]);
    },
  );

  test("that is empty succeeds, touches no record and is reported", async () => {
    const bucket = await createBucket(lab);
    await lab.sql`insert into public.part_images (bucket_id, file_name) values (${bucket}, 'old.jpg')`;
    const before = await readRecords(lab, bucket);
    expect(await runToEnd(lab, bucket)).toMatchObject({
      state: "succeeded",
      totals: { listed: 0, orphaned: 1, rows_written: 0 },
    });
    expect(await readRecords(lab, bucket)).toEqual(before);
    const report = await readReport(lab, bucket);
    expect(codesOf(report)).toEqual(expect.arrayContaining(["bucket_empty", "orphaned"]));
    expect(report.healthy).toBe(false);
  });

  test("that does not exist fails with the reason, touches no record and is reported", async () => {
    const bucket = `bucket-${crypto.randomUUID()}`;
    await createSettings(lab, bucket);
    await lab.sql`insert into public.part_images (bucket_id, file_name) values (${bucket}, 'old.jpg')`;
    const before = await readRecords(lab, bucket);
    expect(await runToEnd(lab, bucket)).toMatchObject({
      state: "failed",
      stop_reason: "bucket_missing",
      error: { code: "bucket_missing", detail: expect.stringContaining(bucket) },
      totals: { listed: 0 },
    });
    expect(await readRecords(lab, bucket)).toEqual(before);
    const report = await readReport(lab, bucket);
    expect(codesOf(report)).toContain("bucket_missing");
    expect(report.healthy).toBe(false);
  });

  test("counts other files by extension and leaves them alone", async () => {
    const objects = [
      "1.jpg",
      "2.JPG",
      "3.jpeg",
      "4.Jpeg",
      "5.png",
      "6",
      "7.pdf",
      "folder.jpg/8",
      "jpg",
      ".jpg",
    ];
    const bucket = await createBucket(lab, { objects });
    expect(await runToEnd(lab, bucket)).toMatchObject({
      state: "succeeded",
      totals: { listed: 10, images: 4, not_images: 6, inserted: 4, signed: 4 },
    });
    const records = await readRecords(lab, bucket);
    expect(records.map(({ file_name }) => file_name)).toEqual(["1.jpg", "2.JPG", "3.jpeg", "4.Jpeg"]);
    const report = await readReport(lab, bucket);
    expect(report.bucket).toMatchObject({
      objects: 10,
      images: 4,
      by_extension: { jpg: 3, jpeg: 2, png: 1, pdf: 1 },
    });
    expect(codesOf(report)).toContain("excluded_extensions");
  });

  test("keeps and signs a record that exists for another extension", async () => {
    const bucket = await createBucket(lab, { objects: ["a.jpg", "b.png", "c.png"] });
    await lab
      .sql`insert into public.part_images (bucket_id, file_name, part_number) values (${bucket}, 'b.png', 'b')`;
    expect(await runToEnd(lab, bucket)).toMatchObject({
      state: "succeeded",
      totals: { inserted: 1, signed: 2, orphaned: 0 },
    });
    const records = await readRecords(lab, bucket);
    expect(records.map(({ file_name, signed_url }) => [file_name, signed_url !== null])).toEqual([[
      "a.jpg",
      true,
    ], ["b.png", true]]);
  });
});
