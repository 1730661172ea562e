/** What the owner of the table does with its rows, and what other tables and triggers make of ours. */
import { afterAll, beforeAll, expect, onTestFinished, test } from "vitest";
import {
  codesOf,
  createBucket,
  type Lab,
  moveObjects,
  openLab,
  readRecords,
  readReport,
  runToEnd,
} from "./support/lab.ts";

let lab: Lab;
beforeAll(async () => void (lab = await openLab()));
afterAll(() => lab?.close());

/** A bucket of these files in step, and the id of each file's record. */
async function bucketOf(names: readonly string[]) {
  const bucket = await createBucket(lab, { objects: names });
  await runToEnd(lab, bucket);
  return { bucket, ids: await placesOf(bucket) };
}

const placesOf = async (bucket: string) =>
  Object.fromEntries((await readRecords(lab, bucket)).map(({ file_name, id }) => [file_name, id]));

async function expectOwnUrls(bucket: string): Promise<void> {
  for (const { file_name, signed_url } of await readRecords(lab, bucket)) {
    const path = decodeURIComponent(new URL(signed_url ?? "http://none/").pathname);
    expect(path).toBe(`/storage/v1/object/sign/${bucket}/${file_name}`);
  }
}

async function expectQuiet(bucket: string): Promise<void> {
  expect(await runToEnd(lab, bucket)).toMatchObject({
    state: "succeeded",
    totals: { rows_written: 0, storage_calls: 0 },
  });
}

/** Adds these objects of the table's owner, and takes them away again. */
async function withObjects(create: string, drop: string): Promise<void> {
  await lab.sql.unsafe(create);
  onTestFinished(async () => void await lab.sql.unsafe(drop));
}

const rename = (bucket: string, from: string, to: string) =>
  lab
    .sql`update public.part_images set file_name = ${to} where bucket_id = ${bucket} and file_name = ${from}`;

test("two records that their owner swaps stay where they were put, each with a URL of the file that it names", async () => {
  const { bucket, ids } = await bucketOf(["a.jpg", "b.jpg", "c.jpg"]);
  await rename(bucket, "a.jpg", "aside.jpg");
  await rename(bucket, "b.jpg", "a.jpg");
  await rename(bucket, "aside.jpg", "b.jpg");
  expect(await runToEnd(lab, bucket)).toMatchObject({ state: "succeeded", totals: { moved: 0, signed: 2 } });
  expect(await placesOf(bucket)).toEqual({
    "a.jpg": ids["b.jpg"],
    "b.jpg": ids["a.jpg"],
    "c.jpg": ids["c.jpg"],
  });
  await expectOwnUrls(bucket);
  await expectQuiet(bucket);

  // And from there on they follow their files.
  await moveObjects(lab, bucket, { "a.jpg": "folder/a.jpg" });
  expect(await runToEnd(lab, bucket)).toMatchObject({ totals: { moved: 1 } });
  expect(await placesOf(bucket)).toMatchObject({ "folder/a.jpg": ids["b.jpg"] });
});

test("a record that its owner links to another file is that file's, and the one that it left gets a record of its own", async () => {
  const { bucket, ids } = await bucketOf(["a.jpg", "b.jpg"]);
  await lab.sql`delete from public.part_images where bucket_id = ${bucket} and file_name = 'b.jpg'`;
  await rename(bucket, "a.jpg", "b.jpg");
  expect(await runToEnd(lab, bucket)).toMatchObject({
    state: "succeeded",
    totals: { moved: 0, inserted: 1, signed: 2 },
  });
  expect((await placesOf(bucket))["b.jpg"]).toBe(ids["a.jpg"]);
  await expectOwnUrls(bucket);
  await expectQuiet(bucket);
});

test.each(["plain.jpg", "with space & (1).jpg"])(
  "a URL of another file in the record of %s is signed anew",
  async (name) => {
    const { bucket } = await bucketOf([name, "other.jpg", "other_too.jpg"]);
    await lab.sql`
    update public.part_images p set signed_url = o.signed_url
    from public.part_images o
    where p.bucket_id = ${bucket} and o.bucket_id = ${bucket} and p.file_name in (${name}, 'other_too.jpg') and o.file_name = 'other.jpg'`;
    const answer = await lab.call({ query: `?bucket=${bucket}&file=${encodeURIComponent(name)}` });
    expect(await answer.json()).toMatchObject({ in_sync: false, reasons: [{ code: "foreign_url" }] });
    expect(await runToEnd(lab, bucket)).toMatchObject({ totals: { signed: 2 } });
    await expectOwnUrls(bucket);
    await expectQuiet(bucket);
  },
);

test.each(["null", "default"])(
  "a record stays where a key of another table would be emptied (on update set %s), and is named; the others move",
  async (action) => {
    const { bucket, ids } = await bucketOf(["a.jpg", "b.jpg", "c.jpg"]);
    await withObjects(
      `create table public.test_orders (bucket_id text default null, file_name text default null,
         foreign key (bucket_id, file_name) references public.part_images (bucket_id, file_name) on update set ${action});
       insert into public.test_orders values ('${bucket}', 'b.jpg')`,
      "drop table public.test_orders",
    );
    await moveObjects(lab, bucket, { "a.jpg": "x/a.jpg", "b.jpg": "x/b.jpg" });
    const run = await runToEnd(lab, bucket);
    expect(run).toMatchObject({ state: "partial", totals: { moved: 1, unmoved: 1 } });
    expect(run.problems).toMatchObject([
      {
        name: "x/b.jpg",
        code: "not_moved",
        detail: expect.stringContaining("a row of another table refers to it"),
      },
    ]);
    expect(await placesOf(bucket)).toMatchObject({ "x/a.jpg": ids["a.jpg"], "b.jpg": ids["b.jpg"] });
    expect(await lab.sql`select file_name from public.test_orders`).toEqual([{ file_name: "b.jpg" }]);
    expect(codesOf(await readReport(lab, bucket))).toContain("not_moved");
  },
);

test("a trigger that keeps a record from its new place leaves none of ours behind, and the record is named", async () => {
  const { bucket, ids } = await bucketOf(["a.jpg", "b.jpg", "c.jpg"]);
  await withObjects(
    `create function public.test_skip() returns trigger language plpgsql as $$
       begin if old.file_name like '.moving/%' and new.file_name = 'b.jpg' then return null; end if; return new; end; $$;
     create trigger test_skip before update on public.part_images for each row
       when (new.bucket_id = '${bucket}') execute function public.test_skip()`,
    "drop trigger test_skip on public.part_images; drop function public.test_skip()",
  );
  await moveObjects(lab, bucket, { "a.jpg": "b.jpg", "b.jpg": "a.jpg", "c.jpg": "d.jpg" });
  const run = await runToEnd(lab, bucket);
  expect(run).toMatchObject({ state: "partial", totals: { moved: 1, unmoved: 2 } });
  expect(JSON.stringify(run.problems)).toContain("a trigger of the table keeps it where it is");
  expect(await placesOf(bucket)).toEqual({
    "a.jpg": ids["a.jpg"],
    "b.jpg": ids["b.jpg"],
    "d.jpg": ids["c.jpg"],
  });
});

test.each(["old", "null"])(
  "a URL that a trigger does not let in (return %s) is no signed one, and its record is named",
  async (row) => {
    const { bucket } = await bucketOf(["a.jpg", "b.jpg"]);
    await lab.sql`update public.part_images set signed_url = null where bucket_id = ${bucket}`;
    await withObjects(
      `create function public.test_keep() returns trigger language plpgsql as $$ begin return ${row}; end; $$;
     create trigger test_keep before update on public.part_images for each row
       when (old.file_name = 'a.jpg' and old.bucket_id = '${bucket}') execute function public.test_keep()`,
      "drop trigger test_keep on public.part_images; drop function public.test_keep()",
    );
    const run = await runToEnd(lab, bucket);
    expect(run).toMatchObject({
      state: "partial",
      balanced: true,
      totals: { signed: 1, failed: 1, withdrawn: 0 },
    });
    expect(run.problems).toMatchObject([{ name: "a.jpg", code: "url_refused" }]);
  },
);
