/** Whatever a foreign key compares by: a record that a row of another table refers to stays, and that row with it. */
import { afterAll, beforeAll, beforeEach, expect, onTestFinished, test } from "vitest";
import { type Lab, openLab } from "../sync/support/lab.ts";
import {
  apply,
  createTidyBucket,
  dryRun,
  goneNames,
  namesByCode,
  readWhole,
  restore,
} from "./support/records.ts";

let lab: Lab;
beforeAll(async () => {
  lab = await openLab();
  await lab.sql.unsafe("create extension if not exists citext with schema extensions");
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

test.each([
  ["citext", "", "extensions.citext"],
  [
    "a collation that knows no case",
    "create collation if not exists public.test_no_case (provider = icu, locale = 'und-u-ks-level2', deterministic = false);",
    "text collate public.test_no_case",
  ],
  ["numeric, in another scale", "", "numeric"],
])("a key compared as %s", async (name, before, type) => {
  const isNumber = name.startsWith("numeric");
  await change(
    `${before}
    alter table public.part_images add column "the sku" ${type} constraint test_sku unique;
    create table public."test Orders" ("the sku" ${type} references public.part_images ("the sku") on delete cascade);`,
    `drop table public."test Orders"; alter table public.part_images drop column "the sku"; drop collation if exists public.test_no_case;`,
  );
  const bucket = await createTidyBucket(lab, { orphans: goneNames(3) });
  await lab.sql.unsafe(`
    update public.part_images p set "the sku" = ${
    isNumber ? "length(p.part_number) + q.place" : "'sku-' || p.part_number"
  }
    from (select id, row_number() over () / 100.0 as place from public.part_images) as q where q.id = p.id;
    insert into public."test Orders" select ${
    isNumber ? `("the sku"::text || '00')::numeric` : `upper("the sku"::text)`
  } from public.part_images where file_name = 'gone-02.jpg'`);
  const cleanup = await apply(lab, bucket, (await dryRun(lab, bucket)).id);
  expect(cleanup).toMatchObject({ totals: { removed: 2, skipped: 1 } });
  expect(namesByCode(cleanup)).toEqual({ referenced: ["gone-02.jpg"] });
  expect(await lab.sql`select from public."test Orders"`).toHaveLength(1);
});

test("a record that refers to itself goes and comes back; one that another record refers to stays", async () => {
  await change(
    "alter table public.part_images add column test_parent uuid constraint test_parent references public.part_images (id) on delete cascade",
    "alter table public.part_images drop column test_parent",
  );
  const bucket = await createTidyBucket(lab, { orphans: goneNames(3) });
  await lab.sql`update public.part_images set test_parent = id where file_name = 'gone-01.jpg'`;
  await lab.sql`
    update public.part_images set test_parent = (select id from public.part_images where file_name = 'gone-02.jpg')
    where file_name = '000001.jpg'`;
  const before = await readWhole(lab, bucket);
  const cleanup = await apply(lab, bucket, (await dryRun(lab, bucket)).id);
  expect(cleanup).toMatchObject({ totals: { removed: 2, skipped: 1 } });
  expect(namesByCode(cleanup)).toEqual({ referenced: ["gone-02.jpg"] });
  await restore(lab, bucket, cleanup.id);
  expect(await readWhole(lab, bucket)).toEqual(before);
});

test("where a table may not be seen whole, everything that it might refer to stays", async () => {
  await change(
    `create role test_shop;
    grant test_shop to postgres;
    create schema test_shop authorization test_shop;
    grant references on public.part_images to test_shop;
    set role test_shop;
    create table test_shop.orders (image_id uuid references public.part_images (id) on delete cascade);
    alter table test_shop.orders enable row level security;
    reset role;`,
    "drop schema test_shop cascade; revoke all on public.part_images from test_shop; drop role test_shop",
  );
  // As whoever owns image-sync where that is no one who may pass by row level security.
  await change(
    `create role test_owner;
    grant test_owner to postgres;
    grant usage on schema image_sync, public to test_owner;
    grant usage on schema test_shop to test_owner;
    grant create on schema image_sync to test_owner;
    grant select on public.part_images, test_shop.orders to test_owner;
    alter function image_sync.referenced_names(text, text[], boolean) owner to test_owner;`,
    `alter function image_sync.referenced_names(text, text[], boolean) owner to postgres;
    revoke all on public.part_images from test_owner;
    revoke all on schema image_sync, public from test_owner;
    drop owned by test_owner; drop role test_owner`,
  );
  const bucket = await createTidyBucket(lab, { orphans: goneNames(1) });
  await lab
    .sql`insert into test_shop.orders select id from public.part_images where file_name = 'gone-01.jpg'`;
  const cleanup = await apply(lab, bucket, (await dryRun(lab, bucket)).id);
  expect(cleanup).toMatchObject({ state: "succeeded", totals: { removed: 0, skipped: 1 } });
  expect(cleanup.problems[0]).toMatchObject({
    code: "referenced",
    detail: expect.stringContaining("cannot be seen"),
  });
  expect(await lab.sql`select from test_shop.orders`).toHaveLength(1);
});
