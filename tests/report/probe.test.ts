/** Which files the live probe opens. */
import { afterAll, beforeAll, expect, test } from "vitest";
import {
  createBucket,
  type Lab,
  numberedNames,
  openLab,
  readReport,
  removeObjects,
  runToEnd,
} from "../sync/support/lab.ts";

let lab: Lab;
beforeAll(async () => {
  lab = await openLab();
});
afterAll(() => lab?.close());

/** The names of the files that the last sync opened: these have a row and no bytes, and each opened one is named. */
async function probed(bucket: string): Promise<readonly string[]> {
  const { probe } = await readReport(lab, bucket);
  expect(probe).toMatchObject({ checked: probe.failures.length, ok: 0 });
  return probe.failures.map(({ name }) => name);
}

test.each([
  ["as many as there are", 3, 10, 1000, 3],
  ["each of them where there are as many as asked for", 10, 10, 1000, 10],
  ["as many as asked for of more", 40, 10, 1000, 10],
  ["of many chunks of one file each", 25, 10, 1, 10],
  ["of uneven chunks", 17, 16, 5, 16],
  ["a single one", 20, 1, 7, 1],
])("the probe opens different files, %s", async (_, files, probe_size, chunk_size, opened) => {
  const bucket = await createBucket(lab, {
    objects: numberedNames(files),
    settings: { probe_size, chunk_size },
  });
  await runToEnd(lab, bucket);
  const names = await probed(bucket);
  expect([names.length, new Set(names).size]).toEqual([opened, opened]);
});

test.each([1000, 8, 3])(
  "records without a file are neither probed nor in the way, in chunks of %i",
  async (chunk_size) => {
    const all = numberedNames(40);
    const bucket = await createBucket(lab, { objects: all, settings: { probe_size: 12, chunk_size } });
    await runToEnd(lab, bucket);
    // The first fifteen in a row, and every second one of the others but a few.
    const gone = all.filter((_, place) => place < 15 || (place % 2 === 0 && place < 31));
    const left = all.filter((name) => !gone.includes(name));
    await removeObjects(lab, bucket, gone);
    await runToEnd(lab, bucket);
    const names = await probed(bucket);
    expect([names.length, new Set(names).size]).toEqual([12, 12]);
    expect(left).toEqual(expect.arrayContaining([...names]));
  },
);
