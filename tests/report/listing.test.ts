/** No file is lost at the edge of a page: a run lists to the very end, whatever the names and the size of a page. */
import { afterAll, beforeAll, expect, test } from "vitest";
import {
  createBucket,
  imbalances,
  type Lab,
  openLab,
  readLedgers,
  readRecords,
  runToEnd,
} from "../sync/support/lab.ts";

let lab: Lab;
beforeAll(async () => {
  lab = await openLab();
});
afterAll(() => lab?.close());

/** 3,000 files of one folder; around every hundredth there are case twins of it and names that extend it. */
function trickyNames(): string[] {
  return Array.from({ length: 3000 }, (_, index) => {
    const stem = `folder/${String(index + 1).padStart(6, "0")}`;
    if ((index + 1) % 100 > 0) return [`${stem}.jpg`];
    // What extends a name comes right behind it with a space, !, + or - before the dot, and before the slash of a folder.
    const extended = [" (1)", "!", "+", "-2", ".jpg", ".jpg (1)", "/inside", "_JPG", "="].map((end) =>
      `${stem}.jpg${end}.jpg`
    );
    return [`${stem}.jpg`, `${stem}.JPG`, `${stem}.Jpeg`, ...extended, `${stem}.jpg/000001.jpg`];
  }).flat();
}

test.each([1000, 999, 100])(
  "more than 1,000 files of one folder, twins and extensions at every page edge: all are found at %i a page",
  async (pageSize) => {
    const names = trickyNames();
    const bucket = await createBucket(lab, { settings: { chunk_size: pageSize }, objects: names });
    const analyzed = await runToEnd(lab, bucket, { mode: "analyze" });
    expect(analyzed.totals).toMatchObject({
      listed: names.length,
      images: names.length,
      missing: names.length,
    });

    const run = await runToEnd(lab, bucket);
    expect(run).toMatchObject({
      state: "succeeded",
      balanced: true,
      totals: { listed: names.length, inserted: names.length, signed: names.length, failed: 0, orphaned: 0 },
    });
    expect(imbalances(await readLedgers(lab, run.id))).toEqual([]);
    const records = await readRecords(lab, bucket);
    expect(new Set(records.map(({ file_name }) => file_name))).toEqual(new Set(names));
    expect(records.filter(({ signed_url }) => signed_url === null)).toEqual([]);
  },
  120_000,
);
