/** What a cleanup takes comes back whole: whatever its columns hold, whatever became of the table since; or it stays where it is, named. */
import { afterAll, beforeAll, beforeEach, expect, onTestFinished, test } from "vitest";
import { type Lab, numberedNames, openLab, readProblem, readRecords } from "../sync/support/lab.ts";
import {
  addRecords,
  apply,
  createTidyBucket,
  dryRun,
  goneNames,
  namesByCode,
  openWithoutWorker,
  restore,
  stepOnce,
} from "./support/records.ts";

let lab: Lab;
beforeAll(async () => {
  lab = await openLab();
  await lab.sql.unsafe("create extension if not exists hstore with schema extensions");
});
afterAll(() => lab?.close());
beforeEach(async () => {
  await lab.sql`delete from public.part_images`;
});

/** Runs SQL, and more of it at the end of the test. */
async function change(sql: string, undo: string): Promise<void> {
  await lab.sql.unsafe(sql);
  onTestFinished(async () => {
    await lab.sql.unsafe(undo);
  });
}

/** The rows' own text forms, by file name: these say all that a row holds. */
async function readTexts(bucket: string): Promise<Readonly<Record<string, string>>> {
  const rows = await lab.sql<{ file_name: string; whole: string }[]>`
    select file_name, p::text as whole from public.part_images p where bucket_id = ${bucket}`;
  return Object.fromEntries(rows.map(({ file_name, whole }) => [file_name, whole]));
}

/** Cleans up, so that the orphans are in the archive and nowhere else. */
async function cleanUp(bucket: string): Promise<string> {
  const cleanup = await apply(lab, bucket, (await dryRun(lab, bucket)).id);
  expect(cleanup).toMatchObject({ state: "succeeded", totals: { skipped: 0 } });
  return cleanup.id;
}

const dear: Readonly<Record<string, readonly [type: string, value: string]>> = {
  "a hstore": ["extensions.hstore", `'"a"=>"1", "b"=>NULL, "c\\"d"=>"e\\\\f"'`],
  "a json with a key twice": ["json", `'{"a":1,  "a":2, "b": 1.50}'`],
  "an array that begins elsewhere": ["integer[]", `'[0:2]={1,NULL,3}'`],
  "an array of arrays of text": ["text[]", `'{{a,"b,c"},{"NULL","d\\"e"}}'`],
  "a row": ["public.test_size", `row(1.50, 'a "b", \\c')`],
  "a row of nothing": ["public.test_size", `row(null, null)`],
  "text that looks like the end of a row": ["text", `E'a),"b""c\\\\",(\\n\\t''d'`],
  "the empty text": ["text", `''`],
  "a number beyond a double's": ["numeric", `'12345678901234567890.123456789012345678900'`],
  "a double to its last digit": ["double precision", `'0.1'::float8 + '0.2'::float8`],
  "a day for ever": ["timestamptz", `'infinity'`],
  "an interval": ["interval", `'-1 mons +2 days -03:04:05.678'`],
  "money": ["money", `'-1234.50'`],
  "bytes": ["bytea", `'\\x005c22ff'`],
  "a range": ["int4range", `'[1,5)'`],
  "text of fixed length": ["character(5)", `'a'`],
  "words": ["tsvector", `$$'a b':1 'c''d':2A$$`],
  "a name of the catalogue": ["regclass", `'public.part_images'`],
};

test.each(Object.entries(dear))("%s", async (_, [type, value]) => {
  await change(
    `create type public.test_size as (height numeric, "the words" text);
    alter table public.part_images add column "the "" dear" ${type}`,
    `alter table public.part_images drop column "the "" dear"; drop type public.test_size`,
  );
  const bucket = await createTidyBucket(lab, { orphans: goneNames(2) });
  await lab.sql.unsafe(
    `update public.part_images set "the "" dear" = ${value} where file_name = 'gone-01.jpg'`,
  );
  const before = await readTexts(bucket);
  const cleanup = await cleanUp(bucket);
  expect(Object.keys(await readTexts(bucket))).toHaveLength(100);
  expect(await restore(lab, bucket, cleanup)).toMatchObject({ state: "succeeded", totals: { restored: 2 } });
  expect(await readTexts(bucket)).toEqual(before);
});

test("a row's text form reads the same whatever a session's dates, intervals and digits look like", async () => {
  await change(
    `alter table public.part_images
      add column test_day date default '2026-02-01', add column test_wait interval default '-1 day +02:03:00',
      add column test_size double precision default '0.1'::float8 + '0.2'::float8`,
    "alter table public.part_images drop column test_day, drop column test_wait, drop column test_size",
  );
  const bucket = await createTidyBucket(lab, { images: 1 });
  const session = await lab.sql.reserve();
  try {
    await session.unsafe(
      "set datestyle = 'SQL, DMY'; set intervalstyle = 'sql_standard'; set extra_float_digits = 0",
    ).simple();
    const [written] = await session<{ whole: string; columns: string[] }[]>`
      select image_sync.row_text(p.*) as whole, image_sync.column_names('public.part_images') as columns
      from public.part_images p where bucket_id = ${bucket}`;
    await session.unsafe("set datestyle = 'German, MDY'; set intervalstyle = 'iso_8601'").simple();
    const [read] = await session`
      select image_sync.row_of(${written?.whole ?? ""}, ${
      written?.columns ?? []
    }, null::public.part_images) = p as same
      from public.part_images p where bucket_id = ${bucket}`;
    expect(read).toEqual({ same: true });
  } finally {
    await session`reset all`;
    session.release();
  }
});

test("columns that came, went, changed places or types since: what the table has still comes back", async () => {
  await change(
    `alter table public.part_images
      add column test_a text, add column test_gone text, add column test_moved extensions.hstore, add column test_wider integer[]`,
    `alter table public.part_images
      drop column test_a, drop column test_moved, drop column test_wider, drop column test_new`,
  );
  const bucket = await createTidyBucket(lab, { orphans: goneNames(3) });
  await lab.sql`
    update public.part_images
    set test_a = 'a,"b', test_gone = 'gone', test_moved = 'k=>v', test_wider = '[5:6]={1,2}' where file_name like 'gone%'`;
  const cleanup = await cleanUp(bucket);
  await lab.sql.unsafe(`
    alter table public.part_images drop column test_gone, drop column test_moved;
    alter table public.part_images add column test_new text default 'new', add column test_moved extensions.hstore;
    alter table public.part_images alter column test_wider type bigint[]`);
  expect(await restore(lab, bucket, cleanup)).toMatchObject({ state: "succeeded", totals: { restored: 3 } });
  const back = await lab.sql`
    select distinct test_a, test_moved::text, test_wider::text, test_new from public.part_images where file_name like 'gone%'`;
  expect(back).toEqual([{
    test_a: 'a,"b',
    test_moved: '"k"=>"v"',
    test_wider: "[5:6]={1,2}",
    test_new: "new",
  }]);
});

test("records of one cleanup between which a column came are restored together", async () => {
  const bucket = await createTidyBucket(lab, { settings: { chunk_size: 2 }, orphans: goneNames(4) });
  const { id } = await openWithoutWorker(lab, bucket, "cleanup", (await dryRun(lab, bucket)).id);
  const before = await readTexts(bucket);
  await lab.sql`update image_sync.runs set chunk_size = 1 where id = ${id}`;
  await stepOnce(lab, id);
  const left = Object.keys(await readTexts(bucket)).length;
  expect(left).toBeLessThan(104);
  expect(left).toBeGreaterThan(100);
  await change(
    "alter table public.part_images add column test_late text default 'late'",
    "alter table public.part_images drop column if exists test_late",
  );
  for (let step = 0; step < 9; step++) await stepOnce(lab, id);
  expect(Object.keys(await readTexts(bucket))).toHaveLength(100);
  const [columns] = await lab.sql`
    select count(distinct row_columns)::integer as kinds from image_sync.archive where run_id = ${id}`;
  expect(columns).toEqual({ kinds: 2 });
  expect(await restore(lab, bucket, id)).toMatchObject({ state: "succeeded", totals: { restored: 4 } });
  await lab.sql`alter table public.part_images drop column test_late`;
  expect(await readTexts(bucket)).toEqual(before);
});

test("what an earlier version archived, as JSON alone, is restored as it always was", async () => {
  await change(
    `alter table public.part_images add column test_tags jsonb default '{"a": [1, 2.50]}', add column test_list text[] default '{a,b}'`,
    "alter table public.part_images drop column test_tags, drop column test_list",
  );
  const bucket = await createTidyBucket(lab, { orphans: goneNames(3) });
  const before = await readTexts(bucket);
  const cleanup = await cleanUp(bucket);
  await lab.sql`
    update image_sync.archive set row_text = null, row_columns = null
    where run_id = ${cleanup} and file_name <> 'gone-02.jpg'`;
  expect(await restore(lab, bucket, cleanup)).toMatchObject({ state: "succeeded", totals: { restored: 3 } });
  expect(await readTexts(bucket)).toEqual(before);
});

test("a restore counts the rows that are back: what a trigger leaves out stays in the archive, named", async () => {
  const bucket = await createTidyBucket(lab, { orphans: goneNames(5) });
  const before = await readTexts(bucket);
  const cleanup = await cleanUp(bucket);
  await change(
    `create function public.test_leave_out() returns trigger language plpgsql as $$
    begin return case when new.file_name in ('gone-02.jpg', 'gone-05.jpg') then null else new end; end $$;
    create trigger test_leave_out before insert on public.part_images for each row execute function public.test_leave_out()`,
    "drop function if exists public.test_leave_out() cascade",
  );
  const back = await restore(lab, bucket, cleanup);
  expect(back).toMatchObject({ state: "partial", totals: { restored: 3, skipped: 2, rows_written: 3 } });
  expect(namesByCode(back)).toEqual({ not_restored: ["gone-02.jpg", "gone-05.jpg"] });
  expect(back.problems[0]?.detail).toContain("in the archive still");
  expect(await restore(lab, bucket, cleanup)).toMatchObject({
    state: "failed",
    stop_reason: "nothing_restored",
    totals: { restored: 0, skipped: 2 },
  });
  await lab.sql`drop function public.test_leave_out() cascade`;
  expect(await restore(lab, bucket, cleanup)).toMatchObject({ state: "succeeded", totals: { restored: 2 } });
  expect(await readTexts(bucket)).toEqual(before);
});

test("a trigger that leaves out some records and gives others another name hides neither", async () => {
  const bucket = await createTidyBucket(lab, { orphans: goneNames(5) });
  const cleanup = await cleanUp(bucket);
  await change(
    `create function public.test_rename() returns trigger language plpgsql as $$
    begin
      if new.file_name = 'gone-02.jpg' then return null; end if;
      new.file_name := upper(new.file_name);
      return new;
    end $$;
    create trigger test_rename before insert on public.part_images for each row execute function public.test_rename()`,
    "drop function public.test_rename() cascade",
  );
  const back = await restore(lab, bucket, cleanup);
  expect(back).toMatchObject({ state: "partial", totals: { restored: 4, skipped: 1 } });
  expect(namesByCode(back)).toEqual({ not_restored: ["gone-02.jpg"] });
  expect((await readRecords(lab, bucket)).filter(({ file_name }) => file_name.startsWith("GONE")))
    .toHaveLength(
      4,
    );
});

test("a record that a trigger silently keeps from being deleted is kept and named", async () => {
  const bucket = await createTidyBucket(lab, { orphans: goneNames(3) });
  await change(
    `create function public.test_keep() returns trigger language plpgsql as $$
    begin return case when old.file_name = 'gone-02.jpg' then null else old end; end $$;
    create trigger test_keep before delete on public.part_images for each row execute function public.test_keep()`,
    "drop function public.test_keep() cascade",
  );
  const cleanup = await apply(lab, bucket, (await dryRun(lab, bucket)).id);
  expect(cleanup.totals).toMatchObject({ removed: 2, skipped: 1, rows_written: 2 });
  expect(namesByCode(cleanup)).toEqual({ refused_by_table: ["gone-02.jpg"] });
});

test("of hundreds to restore, those that are refused, taken or held stay in the archive and the others are back", async () => {
  const gone = numberedNames(300, 9_001);
  const bucket = await createTidyBucket(lab, {
    settings: { max_delete_fraction: 1 },
    images: 10,
    orphans: gone,
  });
  const cleanup = await cleanUp(bucket);
  await addRecords(lab, bucket, ["009100.jpg", "009200.jpg"]);
  await change(
    "alter table public.part_images add constraint test_refused check (part_number not in ('009001', '009150', '009300'))",
    "alter table public.part_images drop constraint test_refused",
  );
  const session = await lab.sql.reserve();
  try {
    await session`begin`;
    await session`insert into public.part_images (bucket_id, file_name) values (${bucket}, '009250.jpg')`;
    const back = await restore(lab, bucket, cleanup);
    expect(back).toMatchObject({ state: "partial", totals: { restored: 294, skipped: 6 } });
    expect(namesByCode(back)["not_restored"]?.toSorted()).toEqual(
      ["009001.jpg", "009100.jpg", "009150.jpg", "009200.jpg", "009250.jpg", "009300.jpg"],
    );
  } finally {
    await session`rollback`;
    session.release();
  }
  expect(await restore(lab, bucket, cleanup)).toMatchObject({ totals: { restored: 1, skipped: 5 } });
});

const inherit = `create table public.test_photos (exposure integer) inherits (public.part_images)`;

test("table_has_children: no cleanup begins while a table inherits from ours, until the way out is typed", async () => {
  const bucket = await createTidyBucket(lab, { orphans: goneNames(1) });
  const plan = await dryRun(lab, bucket);
  await change(inherit, "drop table public.test_photos");
  await lab.sql`
    insert into public.test_photos (bucket_id, file_name, exposure) values (${bucket}, 'gone-02.jpg', 100)`;
  for (const confirm of [undefined, plan.id]) {
    const response = await lab.call({
      method: "POST",
      body: JSON.stringify({
        bucket,
        mode: "cleanup",
        confirm,
        allow_empty_bucket: true,
        max_delete_fraction: 1,
      }),
    });
    const problem = await readProblem(response);
    expect(problem).toMatchObject({ status: 409, code: "table_has_children" });
    expect(problem.detail).toMatch(/Run: alter table public\.test_photos no inherit public\.part_images;$/);
    if (confirm !== undefined) await lab.sql.unsafe(problem.detail.split("Run: ")[1] ?? "");
  }
  expect((await apply(lab, bucket, plan.id)).totals).toMatchObject({ removed: 1 });
  expect(await lab.sql`select exposure from public.test_photos`).toEqual([{ exposure: 100 }]);
});

test("a row of a table that came to inherit from ours after the confirmation stays, with its own columns", async () => {
  const bucket = await createTidyBucket(lab, { orphans: goneNames(3) });
  const { id } = await openWithoutWorker(lab, bucket, "cleanup", (await dryRun(lab, bucket)).id);
  await change(inherit, "drop table public.test_photos");
  await lab.sql`delete from public.part_images where file_name = 'gone-02.jpg'`;
  await lab.sql`
    insert into public.test_photos (bucket_id, file_name, exposure) values (${bucket}, 'gone-02.jpg', 100)`;
  for (let step = 0; step < 3; step++) await stepOnce(lab, id);
  const run = await lab.database.readRun(id);
  expect(run.totals).toMatchObject({ removed: 2, skipped: 1 });
  expect(run.problems).toMatchObject([{
    name: "gone-02.jpg",
    code: "refused_by_table",
    detail: expect.stringContaining("public.test_photos"),
  }]);
  expect(await lab.sql`select exposure from public.test_photos`).toEqual([{ exposure: 100 }]);
});
