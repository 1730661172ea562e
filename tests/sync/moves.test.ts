/** Files that are renamed or moved: their records go along. */
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from "vitest";
import {
  addObjects,
  codesOf,
  createBucket,
  imbalances,
  jpeg,
  type Lab,
  moveObjects,
  numberedNames,
  openLab,
  openRun,
  readLedgers,
  readRecords,
  readReport,
  removeObjects,
  runToEnd,
  upload,
  waitForEnd,
} from "./support/lab.ts";

let lab: Lab;

beforeAll(async () => void (lab = await openLab()));
afterAll(() => lab?.close());

type Row = Awaited<ReturnType<typeof readRecords>>[number];

/** A bucket of these files in step, with a column of its owner's that says which record is which. */
async function bucketOf(names: readonly string[], settings: Record<string, string | number> = {}) {
  const bucket = await createBucket(lab, { objects: names, settings });
  await runToEnd(lab, bucket);
  const before = new Map((await readRecords(lab, bucket)).map((record) => [record.file_name, record]));
  return { bucket, idOf: (name: string) => before.get(name)?.id };
}

async function sync(bucket: string) {
  const run = await runToEnd(lab, bucket);
  expect(imbalances(await readLedgers(lab, run.id))).toEqual([]);
  expect(run.balanced).toBe(true);
  return run;
}

const placesOf = (records: readonly Row[]) => Object.fromEntries(records.map((r) => [r.file_name, r.id]));

/** Every URL is of the name that its record has. */
function expectSigned(records: readonly Row[]): void {
  for (const { file_name, signed_url } of records) {
    const path = decodeURIComponent(new URL(signed_url ?? "http://none/").pathname);
    expect(path.endsWith(`/${file_name}`), `${file_name}: ${path}`).toBe(true);
  }
}

async function expectQuiet(bucket: string): Promise<void> {
  const run = await runToEnd(lab, bucket);
  expect(run).toMatchObject({ state: "succeeded", totals: { rows_written: 0, storage_calls: 0, moved: 0 } });
}

describe.each([1, 2, 1000])("with chunks of %i", (chunk_size) => {
  test.each([
    ["to a folder behind", { "photos/1.jpg": "queer/1.jpg", "photos/2.jpg": "queer/2.jpg" }],
    ["to a folder before", { "photos/1.jpg": "a/1.jpg", "photos/2.jpg": "a/2.jpg" }],
    ["by case alone", { "photos/1.jpg": "photos/1.JPG", "x.jpg": "X.jpg" }],
    ["so that two change places", { "a.jpg": "b.jpg", "b.jpg": "a.jpg" }],
    ["in a ring of three", { "a.jpg": "x.jpg", "x.jpg": "photos/1.jpg", "photos/1.jpg": "a.jpg" }],
    ["in a chain forwards", { "a.jpg": "b.jpg", "b.jpg": "x.jpg", "x.jpg": "z.jpg" }],
    ["in a chain backwards", { "x.jpg": "b.jpg", "b.jpg": "a.jpg", "a.jpg": "0.jpg" }],
  ])("records go along: %s", async (_, moves: Record<string, string>) => {
    const names = ["a.jpg", "b.jpg", "photos/1.jpg", "photos/2.jpg", "x.jpg"];
    const { bucket, idOf } = await bucketOf(names, { chunk_size });
    const created = await lab.sql<{ id: string; created_at: Date }[]>`
      select id, created_at from public.part_images where bucket_id = ${bucket} order by id`;
    await moveObjects(lab, bucket, moves);

    const analyzed = await runToEnd(lab, bucket, { mode: "analyze" });
    const count = Object.keys(moves).length;
    expect(analyzed).toMatchObject({
      balanced: true,
      totals: { moved: count, missing: 0, orphaned: 0, rows_written: 0 },
    });
    expect(codesOf(await readReport(lab, bucket))).toContain("moved");

    const run = await sync(bucket);
    expect(run).toMatchObject({
      state: "succeeded",
      totals: { moved: count, inserted: 0, orphaned: 0, records: names.length },
    });
    const records = await readRecords(lab, bucket);
    expect(placesOf(records)).toEqual(
      Object.fromEntries(names.map((name) => [moves[name] ?? name, idOf(name)])),
    );
    expectSigned(records);
    for (const { file_name, part_number } of records) {
      expect(part_number).toBe(file_name.replace(/^.*\//, "").replace(/\.\w+$/, ""));
    }
    expect(
      await lab.sql`select id, created_at from public.part_images where bucket_id = ${bucket} order by id`,
    ).toEqual(created);
    expect(codesOf(await readReport(lab, bucket))).not.toContain("orphaned");
    await expectQuiet(bucket);
  });
});

test.each([1, 2, 1000])(
  "a name whose record moved away and that has a new file is signed once, in chunks of %i",
  async (chunk_size) => {
    const { bucket } = await bucketOf(["a.jpg", "m.jpg", "z.jpg"], { chunk_size });
    // All of them need a URL.
    await lab
      .sql`update public.part_images set signed_url = null, signed_url_expires_at = null where bucket_id = ${bucket}`;
    await moveObjects(lab, bucket, { "a.jpg": "b.jpg", "m.jpg": "0.jpg" });
    await addObjects(lab, bucket, ["a.jpg", "m.jpg"]);
    expect(await sync(bucket)).toMatchObject({
      state: "succeeded",
      totals: { moved: 2, inserted: 2, to_sign: 5, signed: 5, withdrawn: 0 },
    });
    expectSigned(await readRecords(lab, bucket));
    await expectQuiet(bucket);
  },
);

test.each([1, 2, 1000])(
  "records that stay learn their objects in one night, in chunks of %i",
  async (chunk_size) => {
    // Files that are left out have records, as after a change of the settings; two of them change places with an image.
    const { bucket, idOf } = await bucketOf(["a.jpg", "b.png", "m.png", "z.jpg"], {
      chunk_size,
      extensions: "{jpg,png}",
    });
    await lab.sql`update image_sync.settings set extensions = '{jpg}' where bucket_id = ${bucket}`;
    await moveObjects(lab, bucket, {
      "a.jpg": "b.png",
      "b.png": "a.jpg",
      "z.jpg": "m.png",
      "m.png": "z.jpg",
    });
    expect(await sync(bucket)).toMatchObject({ state: "succeeded", totals: { moved: 0, inserted: 0 } });
    const records = await readRecords(lab, bucket);
    expect(placesOf(records)).toEqual(
      Object.fromEntries(["a.jpg", "b.png", "m.png", "z.jpg"].map((name) => [name, idOf(name)])),
    );
    await expectQuiet(bucket);
  },
);

test("all files of a folder, with part numbers that have to be unique", async () => {
  await lab.sql`delete from public.part_images`;
  const names = numberedNames(2500).map((name) => `photos/${name}`);
  const { bucket } = await bucketOf(names);
  await lab.sql`alter table public.part_images add constraint test_moves_unique unique (part_number)`;
  try {
    await moveObjects(lab, bucket, Object.fromEntries(names.map((n) => [n, n.replace("photos", "parts")])));
    const run = await sync(bucket);
    expect(run).toMatchObject({ state: "succeeded", totals: { moved: 2500, inserted: 0, collided: 0 } });
    const report = await readReport(lab, bucket);
    expect(report.coverage).toEqual({ recorded: 1, signed: 1 });

    // Names that all go one further: each has to wait for the next.
    const shifted = names.map((n) => n.replace("photos", "parts"));
    await moveObjects(
      lab,
      bucket,
      Object.fromEntries(shifted.map((n, i) => [n, `parts/${numberedNames(1, i + 2)[0]}`])),
    );
    expect(await sync(bucket)).toMatchObject({
      state: "succeeded",
      totals: { moved: 2500, inserted: 0, collided: 0 },
    });
    const records = await readRecords(lab, bucket);
    expect(records.map((r) => r.part_number)).toEqual(
      numberedNames(2500, 2).map((n) => n.replace(".jpg", "")),
    );
    expectSigned(records);

    // Two that change places, under a unique part number.
    await moveObjects(lab, bucket, {
      "parts/000002.jpg": "parts/000003.jpg",
      "parts/000003.jpg": "parts/000002.jpg",
    });
    expect(await sync(bucket)).toMatchObject({ state: "succeeded", totals: { moved: 2 } });
    await expectQuiet(bucket);
  } finally {
    await lab.sql`alter table public.part_images drop constraint test_moves_unique`;
  }
});

describe.each([1, 2, 1000])("with part numbers that have to be unique, and chunks of %i", (chunk_size) => {
  beforeAll(async () => {
    await lab.sql`delete from public.part_images`;
    await lab.sql`alter table public.part_images add constraint test_moves_unique unique (part_number)`;
  });
  afterAll(() => lab.sql`alter table public.part_images drop constraint test_moves_unique`);

  test.each([
    ["two folders exchange", { "x/1.jpg": "x/2.jpg", "y/2.jpg": "y/1.jpg" }],
    ["go round three folders", { "x/1.jpg": "x/2.jpg", "y/2.jpg": "y/3.jpg", "z/3.jpg": "z/1.jpg" }],
    ["go one further, forwards", { "x/1.jpg": "x/2.jpg", "y/2.jpg": "y/3.jpg", "z/3.jpg": "z/9.jpg" }],
    ["go one further, backwards", { "z/3.jpg": "z/2.jpg", "y/2.jpg": "a/1.jpg", "x/1.jpg": "a/0.jpg" }],
    ["and places change together", { "x/1.jpg": "y/2.jpg", "y/2.jpg": "z/1.jpg", "z/3.jpg": "q/4.jpg" }],
    ["are taken over across extensions", { "x/1.jpg": "x/2.JPEG", "y/2.jpg": "y/1.jpeg" }],
  ])("part numbers %s", async (_, moves: Record<string, string>) => {
    await lab.sql`delete from public.part_images`;
    const names = ["x/1.jpg", "y/2.jpg", "z/3.jpg"];
    const { bucket, idOf } = await bucketOf(names, { chunk_size });
    await moveObjects(lab, bucket, moves);
    const count = Object.keys(moves).length;
    expect(await runToEnd(lab, bucket, { mode: "analyze" })).toMatchObject({
      balanced: true,
      totals: { moved: count, missing: 0, orphaned: 0, collided: 0 },
    });
    expect(await sync(bucket)).toMatchObject({
      state: "succeeded",
      totals: { moved: count, unmoved: 0, inserted: 0, collided: 0, orphaned: 0, records: 3 },
    });
    const records = await readRecords(lab, bucket);
    expect(placesOf(records)).toEqual(
      Object.fromEntries(names.map((name) => [moves[name] ?? name, idOf(name)])),
    );
    for (const { file_name, part_number } of records) {
      expect(part_number).toBe(file_name.replace(/^.*\//, "").replace(/\.\w+$/, ""));
    }
    expectSigned(records);
    await expectQuiet(bucket);
  });

  test.each(["a/1.jpg", "x/1.jpg", "z/1.jpg"])(
    "a new file gets the part number of one that moved away: %s",
    async (name) => {
      await lab.sql`delete from public.part_images`;
      for (const to of ["a/2.jpg", "x/2.jpg", "z/2.jpg"]) {
        const { bucket, idOf } = await bucketOf(["x/1.jpg"], { chunk_size });
        await moveObjects(lab, bucket, { "x/1.jpg": to });
        await addObjects(lab, bucket, [name]);
        expect(await runToEnd(lab, bucket, { mode: "analyze" })).toMatchObject({
          balanced: true,
          totals: { moved: 1, missing: 1, collided: 0, orphaned: 0 },
        });
        // Under the name that it had, the record is what there is to tell of.
        const code = name === "x/1.jpg" ? "moved" : "missing";
        expect((await lab.database.readFile(bucket, name)).reasons).toMatchObject([{ code }]);
        expect(await sync(bucket)).toMatchObject({
          state: "succeeded",
          totals: { moved: 1, inserted: 1, collided: 0, orphaned: 0, records: 2 },
        });
        const records = await readRecords(lab, bucket);
        expect(placesOf(records)).toMatchObject({ [to]: idOf("x/1.jpg") });
        expect(Object.fromEntries(records.map((r) => [r.file_name, r.part_number]))).toEqual({
          [to]: "2",
          [name]: "1",
        });
        expectSigned(records);
        await expectQuiet(bucket);
        await lab.sql`delete from public.part_images`;
      }
    },
  );

  test("a new file does not get the part number of one that moved and keeps it", async () => {
    await lab.sql`delete from public.part_images`;
    const { bucket, idOf } = await bucketOf(["x/1.jpg"], { chunk_size });
    await moveObjects(lab, bucket, { "x/1.jpg": "y/1.jpg" });
    await addObjects(lab, bucket, ["a/1.jpg"]);
    expect(await runToEnd(lab, bucket, { mode: "analyze" })).toMatchObject({
      balanced: true,
      totals: { moved: 1, missing: 0, collided: 1 },
    });
    const { reasons } = await lab.database.readFile(bucket, "a/1.jpg");
    expect(reasons).toMatchObject([{ code: "collided" }]);
    expect(await sync(bucket)).toMatchObject({ totals: { moved: 1, inserted: 0, collided: 1 } });
    expect(placesOf(await readRecords(lab, bucket))).toEqual({ "y/1.jpg": idOf("x/1.jpg") });
  });

  test.each(["a/1.jpg", "z/1.jpg"])(
    "a file at a name whose record took its part number along is not signed: to %s",
    async (to) => {
      await lab.sql`delete from public.part_images`;
      const { bucket, idOf } = await bucketOf(["x/1.jpg"], { chunk_size });
      await lab.sql`update public.part_images set signed_url = null, signed_url_expires_at = null`;
      await moveObjects(lab, bucket, { "x/1.jpg": to });
      await addObjects(lab, bucket, ["x/1.jpg"]);
      const run = await sync(bucket);
      expect(run).toMatchObject({ totals: { moved: 1, inserted: 0, collided: 1, signed: 1 } });
      // In a chunk of its own it may be met while the other one is being closed: who is held is signed, and then found to be taken.
      if (chunk_size > 1) expect(run.totals).toMatchObject({ to_sign: 1, withdrawn: 0 });
      expect(placesOf(await readRecords(lab, bucket))).toEqual({ [to]: idOf("x/1.jpg") });
      expect(await sync(bucket)).toMatchObject({ totals: { rows_written: 0, storage_calls: 0 } });
    },
  );

  test(
    "whatever names files exchange in whatever folders, one sync takes all of their records along",
    async () => {
      const folders = ["a", "m/n", "z"];
      const places = fc.uniqueArray(fc.integer({ min: 1, max: 12 }), { minLength: 2, maxLength: 8 }).chain((
        numbers,
      ) =>
        fc.record({
          from: fc.constant(numbers),
          to: fc.shuffledSubarray(Array.from({ length: 12 }, (_, index) => index + 1), {
            minLength: numbers.length,
            maxLength: numbers.length,
          }),
          folders: fc.array(fc.tuple(fc.constantFrom(...folders), fc.constantFrom(...folders)), {
            minLength: numbers.length,
            maxLength: numbers.length,
          }),
        })
      );
      await fc.assert(
        fc.asyncProperty(places, async ({ from, to, folders }) => {
          await lab.sql`delete from public.part_images`;
          const place = (index: number, side: 0 | 1) =>
            `${folders[index]?.[side]}/${(side === 0 ? from : to)[index]}.jpg`;
          const names = from.map((_, index) => place(index, 0));
          const { bucket, idOf } = await bucketOf(names, { chunk_size });
          const moves = Object.fromEntries(names.map((name, index) => [name, place(index, 1)]));
          await moveObjects(lab, bucket, moves);
          const moved = names.filter((name) => moves[name] !== name).length;
          expect(await sync(bucket)).toMatchObject({
            state: "succeeded",
            totals: { moved, unmoved: 0, inserted: 0, collided: 0, orphaned: 0 },
          });
          const records = await readRecords(lab, bucket);
          expect(placesOf(records)).toEqual(
            Object.fromEntries(names.map((name) => [moves[name], idOf(name)])),
          );
          expect(records.map((r) => `${r.part_number}.jpg`)).toEqual(
            records.map((r) => r.file_name.split("/").at(-1)),
          );
          expectSigned(records);
        }),
        { numRuns: 15 },
      );
    },
    60_000,
  );

  test("an exchange goes on beside a move whose part number is taken for good, which is named", async () => {
    await lab.sql`delete from public.part_images`;
    const { bucket, idOf } = await bucketOf(["u/7.jpg", "v/8.jpg", "x/1.jpg", "y/2.jpg"], { chunk_size });
    await moveObjects(lab, bucket, { "x/1.jpg": "x/2.jpg", "y/2.jpg": "y/1.jpg", "u/7.jpg": "u/8.jpg" });
    const run = await sync(bucket);
    expect(run).toMatchObject({ state: "partial", totals: { moved: 2, unmoved: 1, inserted: 0 } });
    expect(run.problems).toMatchObject([{ name: "u/8.jpg", code: "not_moved" }]);
    expect(placesOf(await readRecords(lab, bucket))).toEqual({
      "u/7.jpg": idOf("u/7.jpg"),
      "v/8.jpg": idOf("v/8.jpg"),
      "x/2.jpg": idOf("x/1.jpg"),
      "y/1.jpg": idOf("y/2.jpg"),
    });
  });

  test.each([
    ["a third file wants one of them", { "c/0.jpg": "a/1.jpg", "a/1.jpg": "c/0.jpg" }, "c/0.jpg"],
    ["a file comes from another folder", { "a/1.jpg": "z/0.jpg" }, "z/0.jpg"],
    ["a file comes from before", { "a/1.jpg": "A/2.jpg" }, "A/2.jpg"],
  ])("two exchange their part numbers although %s", async (_, others: Record<string, string>, waiting) => {
    await lab.sql`delete from public.part_images`;
    const { bucket, idOf } = await bucketOf(["a/0.jpg", "a/1.jpg", "c/2.jpg"], { chunk_size });
    // It gets no record: its part number is taken.
    await addObjects(lab, bucket, ["c/0.jpg"]);
    await moveObjects(lab, bucket, { ...others, "a/0.jpg": "c/2.jpg", "c/2.jpg": "a/0.jpg" });
    const run = await sync(bucket);
    expect(run).toMatchObject({ state: "partial", totals: { moved: 2, unmoved: 1, inserted: 0 } });
    expect(new Set(run.problems.map(({ name, code }) => `${code} ${name}`))).toEqual(
      new Set([`not_moved ${waiting}`]),
    );
    expect(placesOf(await readRecords(lab, bucket))).toEqual({
      "c/2.jpg": idOf("a/0.jpg"),
      "a/0.jpg": idOf("c/2.jpg"),
      "a/1.jpg": idOf("a/1.jpg"),
    });
  });
});

test("a part number that its owner changed stays, one that was the old name's is made anew", async () => {
  const { bucket, idOf } = await bucketOf(["a.jpg", "b.jpg", "c.jpg"]);
  await lab.sql`update public.part_images set part_number = 'AB-100' where id = ${idOf("a.jpg") ?? null}`;
  await lab.sql`update public.part_images set part_number = null where id = ${idOf("c.jpg") ?? null}`;
  await moveObjects(lab, bucket, { "a.jpg": "x/1.jpg", "b.jpg": "x/2.jpg", "c.jpg": "x/3.jpg" });
  await sync(bucket);
  expect((await readRecords(lab, bucket)).map((r) => r.part_number)).toEqual(["AB-100", "2", null]);
});

test("to another bucket that is kept in step, and to one that is not", async () => {
  const { bucket, idOf } = await bucketOf(["a.jpg", "b.jpg", "c.jpg"]);
  const other = await createBucket(lab, { objects: ["other.jpg"] });
  const foreign = `foreign-${crypto.randomUUID()}`;
  await lab.sql`insert into storage.buckets (id, name) values (${foreign}, ${foreign})`;
  await moveObjects(lab, bucket, { "a.jpg": "a.jpg" }, other);
  await moveObjects(lab, bucket, { "b.jpg": "b.jpg" }, foreign);
  const analyzed = await runToEnd(lab, bucket, { mode: "analyze" });
  expect(analyzed.totals).toMatchObject({ orphaned: 0, records: 1 });
  const file = await lab.database.readFile(bucket, "a.jpg");
  expect(file.reasons).toMatchObject([{ code: "moved", detail: expect.stringContaining(other) }]);

  expect(await sync(other)).toMatchObject({ totals: { moved: 1, inserted: 1 } });
  const records = await readRecords(lab, other);
  expect(placesOf(records)["a.jpg"]).toBe(idOf("a.jpg"));
  expectSigned(records);
  expect(await sync(bucket)).toMatchObject({ totals: { orphaned: 0, records: 1 } });
  expect((await lab.database.readFile(bucket, "b.jpg")).reasons).toMatchObject([
    { code: "moved_away", detail: expect.stringContaining(foreign) },
  ]);
  expect((await lab.database.readFile(bucket, "a.jpg")).reasons).toMatchObject([
    { code: "moved", detail: expect.stringContaining(`a.jpg (bucket ${other})`) },
  ]);
  await removeObjects(lab, foreign, ["b.jpg"]);
  await lab.sql`select set_config('storage.allow_delete_query', 'true', false)`;
  await lab.sql`delete from storage.buckets where id = ${foreign}`.catch(() => {});
});

test("what is renamed to something left out keeps its record, which says so", async () => {
  const { bucket, idOf } = await bucketOf(["a.jpg", "b.jpg", "c.jpg"]);
  await moveObjects(lab, bucket, { "a.jpg": "a.txt", "b.jpg": "__MACOSX/b.jpg" });
  expect(await sync(bucket)).toMatchObject({ totals: { moved: 0, orphaned: 0, records: 1, inserted: 0 } });
  expect(placesOf(await readRecords(lab, bucket))["a.jpg"]).toBe(idOf("a.jpg"));
  expect((await lab.database.readFile(bucket, "a.jpg")).reasons).toMatchObject([
    { code: "moved_away", detail: expect.stringContaining("a.txt") },
  ]);
  // And back: nothing was lost.
  await moveObjects(lab, bucket, { "a.txt": "a.jpg", "__MACOSX/b.jpg": "b2.jpg" });
  expect(await sync(bucket)).toMatchObject({ totals: { moved: 1, orphaned: 0, inserted: 0 } });
  const records = await readRecords(lab, bucket);
  expect(placesOf(records)).toEqual({
    "a.jpg": idOf("a.jpg"),
    "b2.jpg": idOf("b.jpg"),
    "c.jpg": idOf("c.jpg"),
  });
  expectSigned(records);
});

test("onto a name that has a record: the one that is there gets the file, the other is orphaned", async () => {
  const { bucket, idOf } = await bucketOf(["a.jpg", "b.jpg"]);
  await removeObjects(lab, bucket, ["b.jpg"]);
  await moveObjects(lab, bucket, { "a.jpg": "b.jpg" });
  expect(await sync(bucket)).toMatchObject({ totals: { moved: 0, orphaned: 1, inserted: 0, records: 2 } });
  expect(placesOf(await readRecords(lab, bucket))).toEqual({
    "a.jpg": idOf("a.jpg"),
    "b.jpg": idOf("b.jpg"),
  });
  expect((await lab.database.readFile(bucket, "a.jpg")).reasons).toMatchObject([
    { code: "orphaned", detail: expect.stringContaining("b.jpg") },
  ]);
  await expectQuiet(bucket);
  const plan = await runToEnd(lab, bucket, { mode: "cleanup" });
  expect(plan.plan).toMatchObject({ count: 1, samples: ["a.jpg"] });
});

test("a new file under the old name is a new image", async () => {
  for (const to of ["0.jpg", "z.jpg"]) {
    const { bucket, idOf } = await bucketOf(["m.jpg", "n.jpg"], { chunk_size: 1 });
    await moveObjects(lab, bucket, { "m.jpg": to });
    await addObjects(lab, bucket, ["m.jpg"]);
    expect(await sync(bucket)).toMatchObject({ totals: { moved: 1, inserted: 1, orphaned: 0 } });
    const records = await readRecords(lab, bucket);
    expect(placesOf(records)).toMatchObject({ [to]: idOf("m.jpg"), "n.jpg": idOf("n.jpg") });
    expect(records).toHaveLength(3);
    expectSigned(records);
    await expectQuiet(bucket);
  }
});

test("deleted and uploaded anew, or copied and deleted: another object", async () => {
  const { bucket, idOf } = await bucketOf(["a.jpg", "b.jpg"]);
  await removeObjects(lab, bucket, ["a.jpg", "b.jpg"]);
  await addObjects(lab, bucket, ["a.jpg", "copy of b.jpg"]);
  expect(await sync(bucket)).toMatchObject({ totals: { moved: 0, inserted: 1, orphaned: 1, recorded: 1 } });
  expect(placesOf(await readRecords(lab, bucket))["a.jpg"]).toBe(idOf("a.jpg"));
  const { findings } = await readReport(lab, bucket);
  expect(findings.find(({ code }) => code === "orphaned")?.remediation).toMatch(/as many files came as went/);
  // What was uploaded anew is followed from now on.
  await moveObjects(lab, bucket, { "a.jpg": "c.jpg" });
  expect(await sync(bucket)).toMatchObject({ totals: { moved: 1, inserted: 0 } });
});

test("records of before learn their objects once", async () => {
  const { bucket } = await bucketOf(numberedNames(30), { chunk_size: 7 });
  await lab.sql`update public.part_images set object_id = null where bucket_id = ${bucket}`;
  await runToEnd(lab, bucket, { mode: "analyze" });
  expect(await sync(bucket)).toMatchObject({ totals: { rows_written: 30, storage_calls: 0, moved: 0 } });
  await expectQuiet(bucket);
  const [{ linked } = { linked: 0 }] = await lab.sql<{ linked: number }[]>`
    select count(*)::integer as linked
    from public.part_images p join storage.objects o on o.id = p.object_id and o.name = p.file_name and o.bucket_id = p.bucket_id
    where p.bucket_id = ${bucket}`;
  expect(linked).toBe(30);
});

test("two files that changed places do so whatever another one's record is refused", async () => {
  const { bucket, idOf } = await bucketOf(["a.jpg", "b.jpg", "c.jpg"]);
  await moveObjects(lab, bucket, { "a.jpg": "b.jpg", "b.jpg": "a.jpg", "c.jpg": "x/c.jpg" });
  await lab.sql.unsafe(`
    create or replace function public.test_refuse_move() returns trigger language plpgsql as $$
    begin raise exception 'c stays'; end $$;
    create trigger "test refuses ${bucket}" before update of file_name on public.part_images
      for each row when (old.bucket_id = '${bucket}' and old.file_name = 'c.jpg') execute function public.test_refuse_move();`);
  try {
    expect(await sync(bucket)).toMatchObject({ state: "partial", totals: { moved: 2, unmoved: 1 } });
  } finally {
    await lab.sql.unsafe(
      `drop trigger "test refuses ${bucket}" on public.part_images; drop function public.test_refuse_move()`,
    );
  }
  expect(placesOf(await readRecords(lab, bucket))).toEqual({
    "a.jpg": idOf("b.jpg"),
    "b.jpg": idOf("a.jpg"),
    "c.jpg": idOf("c.jpg"),
  });
});

test("a record that somebody holds, or that the table refuses, stays and is named; the others go along", async () => {
  const { bucket, idOf } = await bucketOf(["a.jpg", "b.jpg", "c.jpg", "d.jpg"]);
  await moveObjects(lab, bucket, { "a.jpg": "x/a.jpg", "b.jpg": "x/b.jpg", "c.jpg": "x/c.jpg" });
  await lab.sql.unsafe(`
    create or replace function public.test_refuse_move() returns trigger language plpgsql as $$
    begin raise exception 'b stays'; end $$;
    create trigger "test refuses ${bucket}" before update of file_name on public.part_images
      for each row when (old.bucket_id = '${bucket}' and old.file_name = 'b.jpg') execute function public.test_refuse_move();`);
  const holder = await lab.sql.reserve();
  try {
    await holder`begin`;
    await holder`select from public.part_images where id = ${idOf("a.jpg") ?? null} for update`;
    const run = await sync(bucket);
    expect(run).toMatchObject({
      state: "partial",
      stop_reason: "items_failed",
      totals: { moved: 1, unmoved: 2, inserted: 0 },
    });
    expect(run.problems).toEqual(expect.arrayContaining([
      expect.objectContaining({ name: "x/a.jpg", code: "not_moved", detail: expect.stringMatching(/holds/) }),
      expect.objectContaining({
        name: "x/b.jpg",
        code: "not_moved",
        detail: expect.stringMatching(/b stays/),
      }),
    ]));
  } finally {
    await holder`rollback`;
    holder.release();
    await lab.sql.unsafe(
      `drop trigger "test refuses ${bucket}" on public.part_images; drop function public.test_refuse_move()`,
    );
  }
  expect(codesOf(await readReport(lab, bucket))).toContain("not_moved");
  expect(await sync(bucket)).toMatchObject({ state: "succeeded", totals: { moved: 2, inserted: 0 } });
  expect(placesOf(await readRecords(lab, bucket))).toEqual({
    "d.jpg": idOf("d.jpg"),
    "x/a.jpg": idOf("a.jpg"),
    "x/b.jpg": idOf("b.jpg"),
    "x/c.jpg": idOf("c.jpg"),
  });
});

test("an exchange that the table refuses is named each night with what it said; another one goes on", async () => {
  const { bucket, idOf } = await bucketOf(["a.jpg", "b.jpg", "c.jpg", "d.jpg"]);
  await moveObjects(lab, bucket, { "a.jpg": "b.jpg", "b.jpg": "a.jpg", "c.jpg": "d.jpg", "d.jpg": "c.jpg" });
  await lab.sql.unsafe(`
    create or replace function public.test_refuse_move() returns trigger language plpgsql as $$
    begin raise exception 'a stays'; end $$;
    create trigger "test refuses ${bucket}" before update of file_name on public.part_images
      for each row when (old.bucket_id = '${bucket}' and old.file_name = 'a.jpg') execute function public.test_refuse_move();`);
  try {
    for (const moved of [2, 0]) {
      const run = await sync(bucket);
      expect(run).toMatchObject({ state: "partial", totals: { moved, unmoved: 2, inserted: 0 } });
      expect(run.problems.map(({ name }) => name).toSorted()).toEqual(["a.jpg", "b.jpg"]);
      expect(run.problems[0]?.detail).toMatch(
        /^Its record is that of .* still: the table refused to change it: a stays$/,
      );
      expect(codesOf(await readReport(lab, bucket))).toContain("not_moved");
    }
  } finally {
    await lab.sql.unsafe(
      `drop trigger "test refuses ${bucket}" on public.part_images; drop function public.test_refuse_move()`,
    );
  }
  expect(await sync(bucket)).toMatchObject({ state: "succeeded", totals: { moved: 2, inserted: 0 } });
  expect(placesOf(await readRecords(lab, bucket))).toEqual({
    "a.jpg": idOf("b.jpg"),
    "b.jpg": idOf("a.jpg"),
    "c.jpg": idOf("d.jpg"),
    "d.jpg": idOf("c.jpg"),
  });
});

test("of two exchanges and a ring the one goes on whose records nobody holds", async () => {
  const { bucket, idOf } = await bucketOf(numberedNames(7));
  const [a = "", b = "", c = "", d = "", e = "", f = "", g = ""] = numberedNames(7);
  await moveObjects(lab, bucket, { [a]: b, [b]: a, [c]: d, [d]: c, [e]: f, [f]: g, [g]: e });
  const holder = await lab.sql.reserve();
  try {
    await holder`begin`;
    await holder`select from public.part_images where id in ${
      lab.sql([idOf(b) ?? "", idOf(f) ?? ""])
    } for update`;
    expect(await sync(bucket)).toMatchObject({
      state: "partial",
      totals: { moved: 2, unmoved: 5, inserted: 0 },
    });
    expect(placesOf(await readRecords(lab, bucket))).toMatchObject({
      [c]: idOf(d),
      [d]: idOf(c),
      [b]: idOf(b),
    });
  } finally {
    await holder`rollback`;
    holder.release();
  }
  expect(await sync(bucket)).toMatchObject({ state: "succeeded", totals: { moved: 5, inserted: 0 } });
  expectSigned(await readRecords(lab, bucket));
  await expectQuiet(bucket);
});

test("a chain of thousands stops at a record that somebody holds, and says which", async () => {
  const names = numberedNames(2500);
  const { bucket, idOf } = await bucketOf(names);
  const next = (place: number) => numberedNames(1, place + 2)[0] ?? "";
  await moveObjects(lab, bucket, Object.fromEntries(names.map((name, place) => [name, next(place)])));
  const holder = await lab.sql.reserve();
  try {
    await holder`begin`;
    await holder`select from public.part_images where id = ${idOf(names[1500] ?? "") ?? null} for update`;
    const run = await sync(bucket);
    expect(run).toMatchObject({ state: "partial", totals: { moved: 999, unmoved: 1501, inserted: 0 } });
    expect(run.problems).toEqual(expect.arrayContaining([
      expect.objectContaining({ name: next(1500), detail: expect.stringMatching(/somebody else holds/) }),
    ]));
  } finally {
    await holder`rollback`;
    holder.release();
  }
  expect((await sync(bucket)).totals.moved).toBe(1501);
  expect(placesOf(await readRecords(lab, bucket))).toEqual(
    Object.fromEntries(names.map((name, place) => [next(place), idOf(name)])),
  );
});

test("a chain that is too long for one transaction: its end goes first, and no record is taken for another's", async () => {
  const [{ definition } = { definition: undefined }] = await lab.sql<{ definition: string }[]>`
    select pg_get_functiondef('image_sync.max_moves()'::regprocedure) as definition`;
  await lab.sql.unsafe(
    "create or replace function image_sync.max_moves() returns integer language sql stable set search_path = '' return 20",
  );
  onTestFinished(async () => {
    await lab.sql.unsafe(definition ?? "");
  });
  const names = numberedNames(50);
  const { bucket, idOf } = await bucketOf(names, { chunk_size: 10 });
  // Every file gets the name of the next one.
  await moveObjects(
    lab,
    bucket,
    Object.fromEntries(names.map((name, place) => [name, numberedNames(1, place + 2)[0] ?? ""])),
  );
  const first = await sync(bucket);
  expect(first).toMatchObject({ stop_reason: "items_failed", totals: { inserted: 0 } });
  expect(first.problems[0]).toMatchObject({
    code: "not_moved",
    detail: expect.stringContaining("not free yet"),
  });
  const report = await readReport(lab, bucket);
  expect(codesOf(report)).toContain("not_moved");
  let moved = first.totals.moved ?? 0;
  for (let nights = 0; nights < 5 && moved < 50; nights++) moved += (await sync(bucket)).totals.moved ?? 0;
  expect(moved).toBe(50);
  const records = await readRecords(lab, bucket);
  expect(placesOf(records)).toEqual(
    Object.fromEntries(names.map((name, place) => [numberedNames(1, place + 2)[0], idOf(name)])),
  );
  expectSigned(records);
  await expectQuiet(bucket);
});

test.each([false, true])(
  "four workers, and one that dies in between, with unique part numbers: %s",
  async (isUnique) => {
    if (isUnique) {
      await lab.sql`delete from public.part_images`;
      await lab.sql`alter table public.part_images add constraint test_moves_unique unique (part_number)`;
      onTestFinished(async () =>
        void (await lab.sql`alter table public.part_images drop constraint test_moves_unique`)
      );
    }
    const names = numberedNames(400);
    const { bucket, idOf } = await bucketOf(names, { chunk_size: 20, lease_duration: "2 seconds" });
    // To two folders, and each four of them exchange their part numbers.
    const moves = Object.fromEntries(
      names.map((name, place) => [
        name,
        `${place % 2 ? "a" : "z"}/${names[place - place % 4 + (place + 1) % 4]}`,
      ]),
    );
    await moveObjects(lab, bucket, moves);
    const run = await openRun(lab, bucket);
    // A worker that takes three chunks and is never heard of again.
    await lab.database.advance({
      run: run.id,
      worker: crypto.randomUUID(),
      lease: crypto.randomUUID(),
      closing: null,
    });
    await Promise.all(
      [1, 2, 3, 4].map(() => lab.call({ method: "POST", query: "", body: JSON.stringify({ bucket }) })),
    );
    const ended = await waitForEnd(lab, run.id, 60_000);
    expect(ended).toMatchObject({
      balanced: true,
      state: "succeeded",
      totals: { moved: 400, inserted: 0, orphaned: 0 },
    });
    const records = await readRecords(lab, bucket);
    expect(placesOf(records)).toEqual(Object.fromEntries(names.map((name) => [moves[name], idOf(name)])));
    expect(records.filter((r) => `${r.part_number}.jpg` !== r.file_name.slice(2))).toEqual([]);
    expectSigned(records);
  },
);

test("a cleanup that was confirmed keeps the record of a file that was moved meanwhile", async () => {
  const { bucket, idOf } = await bucketOf(numberedNames(20));
  const [object] = await lab.sql<{ id: string }[]>`
    select id from storage.objects where bucket_id = ${bucket} and name = '000001.jpg'`;
  await removeObjects(lab, bucket, ["000001.jpg"]);
  const plan = await runToEnd(lab, bucket, { mode: "cleanup" });
  expect(plan.plan).toMatchObject({ count: 1 });
  // The object that it was is back, elsewhere.
  await lab.sql`
    insert into storage.objects (id, bucket_id, name, metadata)
    values (${object?.id ?? null}, ${bucket}, 'found/000001.jpg', '{"size": 1000}')`;
  const applied = await runToEnd(lab, bucket, { mode: "cleanup", confirm: plan.id });
  expect(applied).toMatchObject({
    totals: { removed: 0, skipped: 1 },
    problems: [{ code: "file_has_moved" }],
  });
  await sync(bucket);
  expect(placesOf(await readRecords(lab, bucket))["found/000001.jpg"]).toBe(idOf("000001.jpg"));
});

test("through Storage's own move, with a file that can be looked at", async () => {
  const bucket = await createBucket(lab);
  await upload(lab, bucket, "photos/a.jpg", jpeg);
  await runToEnd(lab, bucket);
  const [before] = await readRecords(lab, bucket);
  const { error } = await lab.supabase.storage.from(bucket).move("photos/a.jpg", "parts/a.jpg");
  expect(error).toBeNull();
  lab.buckets.get(bucket)?.push("parts/a.jpg");
  expect((await fetch(before?.signed_url ?? "")).status).toBe(400);
  const run = await sync(bucket);
  expect(run).toMatchObject({ totals: { moved: 1, signed: 1 } });
  const [after] = await readRecords(lab, bucket);
  expect(after).toMatchObject({ id: before?.id, file_name: "parts/a.jpg" });
  const shown = await fetch(after?.signed_url ?? "");
  expect([shown.status, new Uint8Array(await shown.arrayBuffer())]).toEqual([200, jpeg]);
});
