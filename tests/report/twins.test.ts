/** Several files for one part number, as whoever looks them up in a spreadsheet sees them: found by the first sync, wherever they lie. */
import type { TransactionSql } from "postgres";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import {
  createBucket,
  moveObjects,
  numberedNames,
  readReport,
  removeObjects,
  runToEnd,
} from "../sync/support/lab.ts";
import { type LocalLab, openLocalLab } from "../sync/support/local_lab.ts";

let lab: LocalLab;
beforeAll(async () => {
  lab = await openLocalLab();
});
afterAll(() => lab?.close());

/** What the report says of twins. */
async function twinsOf(bucket: string): Promise<readonly [number, readonly string[]]> {
  const finding = (await readReport(lab, bucket)).findings.find(({ code }) => code === "several_files");
  return [finding?.count ?? 0, finding?.samples ?? []];
}

describe("the first sync finds", () => {
  test.each<[string, readonly string[], string]>([
    ["other case", ["AB-100.jpg", "ab-100.jpg"], "AB-100: AB-100.jpg, ab-100.jpg"],
    ["a space at the end", ["AB-100.jpg", "AB-100 .jpg"], "AB-100: AB-100 .jpg, AB-100.jpg"],
    ["a copy that a browser made", ["000011.jpg", "000011 (1).jpg"], "000011: 000011 (1).jpg, 000011.jpg"],
    [
      "a copy that a file manager made",
      ["000011.jpg", "000011 - Copy.jpg"],
      "000011: 000011 - Copy.jpg, 000011.jpg",
    ],
    [
      "the second copy",
      ["000011.jpg", "000011 - Kopie (2).jpg"],
      "000011: 000011 - Kopie (2).jpg, 000011.jpg",
    ],
    ["a copy that a Mac made", ["000011.jpg", "000011 copy 2.jpg"], "000011: 000011 copy 2.jpg, 000011.jpg"],
    [
      "a copy that a German Mac made",
      ["000011.jpg", "000011 Kopie.jpg"],
      "000011: 000011 Kopie.jpg, 000011.jpg",
    ],
    [
      "a copy that Linux made",
      ["000011.jpg", "000011 (3rd copy).jpg"],
      "000011: 000011 (3rd copy).jpg, 000011.jpg",
    ],
    [
      "a copy that a cloud drive made",
      ["000011.jpg", "Copy of Copy of 000011.jpg"],
      "000011: 000011.jpg, Copy of Copy of 000011.jpg",
    ],
    [
      "a copy beside a picture that is left out",
      ["000011.jpg", "000011 copy.jpg", "000011.png"],
      "000011: 000011 copy.jpg, 000011.jpg, 000011.png",
    ],
    ["a converted one", ["000011.jpg", "000011_JPG.jpg"], "000011: 000011.jpg, 000011_JPG.jpg"],
    ["another extension", ["000011.jpg", "000011.jpeg"], "000011: 000011.jpeg, 000011.jpg"],
    ["a picture that is left out", ["000011.jpg", "000011.png"], "000011: 000011.jpg, 000011.png"],
    ["another folder", ["a/000011.jpg", "b/000011.jpg"], "000011: a/000011.jpg, b/000011.jpg"],
    ["copies in folders", ["z/x (1).jpg", "X.jpg"], "X: z/x (1).jpg, X.jpg"],
  ])("%s", async (_what, names, sample) => {
    // Chunks of two, and others between: twins need not lie side by side.
    const bucket = await createBucket(lab, {
      settings: { chunk_size: 2, probe_size: 0 },
      objects: [...numberedNames(9, 900), ...names],
    });
    await runToEnd(lab, bucket);
    expect(await twinsOf(bucket)).toEqual([1, [sample]]);
  });
});

// The pattern of copies stands in the view, its index, the register and a function: one look would be too slow as a call.
test("a part number has one key, whoever asks for it", async () => {
  const numbers = [
    ...["1", "A-1", "1 (1)", "1 - Copy", "1 copy 2", "1 (3rd copy)", "Copy of 1", "Copy of Copy of 1 (2)"],
    ...["1_JPG", "1 ", "(1)", "_png", " ", "1 closeup", "KOPIE VON 1", "1 - Kopie (2)", "copy"],
  ];
  const bucket = await createBucket(lab);
  await lab.sql`
    insert into public.part_images (bucket_id, file_name, part_number)
    select ${bucket}, n.place || '.jpg', n.part_number from unnest(${numbers}::text[]) with ordinality as n (part_number, place)`;
  const others = await lab.sql`
    select r.part_number, r.look_up_key, image_sync.look_up_part(r.part_number) as part
    from image_sync.records r
    where r.bucket_id = ${bucket} and r.look_up_key <> ${bucket} || '/' || image_sync.look_up_part(r.part_number)`;
  expect([...others]).toEqual([]);
  const [index] = await lab.sql<{ text: string }[]>`
    select pg_get_indexdef('public.part_images_twins_idx'::regclass) as text`;
  const [view] = await lab.sql<{ text: string }[]>`
    select pg_get_viewdef('image_sync.records'::regclass) || pg_get_viewdef('public.part_register'::regclass) as text`;
  const pattern = /'\^\(\(copy of.*?'::text/.exec(index?.text ?? "")?.[0] ?? "no pattern";
  expect(view?.text.split(pattern)).toHaveLength(3);
});

test("what only looks alike is none", async () => {
  const bucket = await createBucket(lab, {
    settings: { probe_size: 0 },
    objects: [
      "000011.jpg",
      "000011 (a).jpg",
      "000011-1.jpg",
      "00001.jpg",
      "000011 Copyright.jpg",
      "000011copy.jpg",
      "000011 (copyright).jpg",
      "A copy of 000011.jpg",
      "copy.jpg",
      "- Copy.jpg",
      "(1).jpg",
      "(2).jpg",
    ],
  });
  await runToEnd(lab, bucket);
  expect(await twinsOf(bucket)).toEqual([0, []]);
});

test("what only begins like a copy hides no picture that is left out, and a copy is not counted twice", async () => {
  const bucket = await createBucket(lab, {
    settings: { probe_size: 0 },
    objects: [
      ...["1.jpg", "1.png", "1 closeup.jpg", "1 (front).jpg", "1 - copyright.txt"],
      ...["2.jpg", "2.png", "Copy of 2.jpg"],
      ...["f/3.jpg", "f/3.png", "f/3 copy.jpg"],
    ],
  });
  await runToEnd(lab, bucket);
  expect(await twinsOf(bucket)).toEqual([3, [
    "2: 2.jpg, 2.png, Copy of 2.jpg",
    "3: f/3 copy.jpg, f/3.jpg, f/3.png",
    "1: 1.jpg, 1.png",
  ]]);
});

test("each group is counted once, however large and however many, and other buckets' are not", async () => {
  const groups = Array.from({ length: 30 }, (_, place) => String(place).padStart(3, "0"));
  const names = groups.flatMap((name) => [`${name}.jpg`, `${name} (1).jpg`, `f/${name}.jpg`]);
  const many = Array.from({ length: 2500 }, (_, place) => `${String(place)}/same.jpg`);
  const settings = { probe_size: 0 };
  const bucket = await createBucket(lab, { settings, objects: [...names, ...many] });
  const other = await createBucket(lab, { settings, objects: ["000.jpg", "same.jpg"] });
  await runToEnd(lab, bucket);
  await runToEnd(lab, other);
  const [count, samples] = await twinsOf(bucket);
  expect(count).toBe(31);
  expect(samples).toHaveLength(20);
  expect(samples[0]).toBe("000: f/000.jpg, 000 (1).jpg, 000.jpg");
  expect(await twinsOf(other)).toEqual([0, []]);
});

// Its walk reads 2,000 keys at a time.
test.each([1998, 1999, 2000])(
  "a group behind %i others is counted once, wherever a page ends",
  async (others) => {
    const objects = [...numberedNames(others), "z.jpg", "z (1).jpg", "z (2).jpg", "zz.jpg"];
    const bucket = await createBucket(lab, { settings: { probe_size: 0 }, objects });
    await runToEnd(lab, bucket);
    expect(await twinsOf(bucket)).toEqual([1, ["z: z (1).jpg, z (2).jpg, z.jpg"]]);
  },
);

test("the files of a part number are found by index, whatever order their key comes in", async () => {
  const names = numberedNames(20_000);
  const bucket = await createBucket(lab, { objects: [...names, "000007 (1).jpg"] });
  await lab.sql`
    insert into public.part_images (bucket_id, file_name, part_number)
    select ${bucket}, n.name, left(n.name, -4) from unnest(${[
    ...names,
    "000007 (1).jpg",
  ]}::text[]) as n (name)`;
  await lab.sql`analyze storage.objects, public.part_images`;
  const look = (sql: TransactionSql) =>
    sql`
    explain (analyze, buffers, format json)
    select * from image_sync.files_of_key(${bucket}, (${bucket} || '/000007') collate "C")`;
  // The first look of a session reads the catalogue as well.
  const [row] = await lab.sql.begin(async (sql) => (await look(sql), await look(sql)));
  const [{ Plan: plan }] = row?.["QUERY PLAN"] as [{ Plan: Record<string, number> }];
  expect(plan["Actual Rows"]).toBe(2);
  // The whole index of names has more than a hundred.
  expect((plan["Shared Hit Blocks"] ?? NaN) + (plan["Shared Read Blocks"] ?? NaN)).toBeLessThan(60);
}, 60_000);

test("a part number that its owner gave counts, and twins that are gone are gone from the report", async () => {
  const bucket = await createBucket(lab, { settings: { probe_size: 0 }, objects: numberedNames(3) });
  await runToEnd(lab, bucket);
  await lab.sql`
    update public.part_images set part_number = '000002 ' where bucket_id = ${bucket} and file_name = '000001.jpg'`;
  await runToEnd(lab, bucket, { mode: "analyze" });
  expect(await twinsOf(bucket)).toEqual([1, ["000002: 000001.jpg, 000002.jpg"]]);
  await lab
    .sql`update public.part_images set part_number = '1' where bucket_id = ${bucket} and file_name = '000001.jpg'`;
  await moveObjects(lab, bucket, { "000003.jpg": "000002 (1).jpg" });
  await runToEnd(lab, bucket);
  expect(await twinsOf(bucket)).toEqual([1, ["000002: 000002 (1).jpg, 000002.jpg"]]);
  await removeObjects(lab, bucket, ["000002 (1).jpg"]);
  await lab.sql`delete from public.part_images where bucket_id = ${bucket} and file_name = '000002 (1).jpg'`;
  await runToEnd(lab, bucket);
  expect(await twinsOf(bucket)).toEqual([0, []]);
});

test("an analyze before the first sync names those that it sees", async () => {
  const bucket = await createBucket(lab, { objects: ["a.jpg", "A.jpg", "b.jpg"] });
  await runToEnd(lab, bucket, { mode: "analyze" });
  expect(await twinsOf(bucket)).toEqual([1, ["a: A.jpg, a.jpg"]]);
});
