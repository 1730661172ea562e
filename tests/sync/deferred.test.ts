/** What a table says only at the end of a transaction costs the row that it is about, and not the run. */
import { afterAll, beforeAll, beforeEach, describe, expect, onTestFinished, test } from "vitest";
import {
  createBucket,
  imbalances,
  type Lab,
  moveObjects,
  openLab,
  readLedgers,
  readRecords,
  removeObjects,
  runToEnd,
} from "./support/lab.ts";

let lab: Lab;
beforeAll(async () => {
  lab = await openLab();
});
afterAll(() => lab?.close());
beforeEach(async () => {
  await lab.sql`delete from public.part_images`;
});

/** What a rule needs, the rule itself, and how it is taken away again. */
type Rule = { readonly before?: string; readonly add: string; readonly remove: string };

const constraint = (definition: string): Rule => ({
  add: `alter table public.part_images add constraint test_rule ${definition}`,
  remove: "alter table public.part_images drop constraint test_rule",
});
const parts = `
  create table public.test_parts (part_number text primary key);
  grant select, insert on public.test_parts to service_role;
  insert into public.test_parts values ('one'), ('two'), ('three'), ('four');`;

/** Each takes one.jpg, two.jpg, three.jpg and four.jpg, and not refused/one.jpg beside them. */
const rules: Readonly<Record<string, Rule>> = {
  "a unique part number, initially deferred": constraint(
    "unique (part_number) deferrable initially deferred",
  ),
  "a unique part number, deferrable": constraint("unique (part_number) deferrable"),
  "an exclusion, initially deferred": constraint(
    "exclude (part_number with =) deferrable initially deferred",
  ),
  "a trigger at the end of the transaction": {
    add: `
      create function public.test_rule() returns trigger language plpgsql as $$
      begin
        if new.file_name like 'refused/%' then raise exception 'no % here', new.file_name; end if;
        return null;
      end $$;
      create constraint trigger test_rule after insert or update on public.part_images
        deferrable initially deferred for each row execute function public.test_rule();`,
    remove: "drop function public.test_rule() cascade",
  },
};

async function impose({ before = "", add, remove }: Rule): Promise<void> {
  await lab.sql.unsafe(before + add);
  onTestFinished(async () => {
    await lab.sql.unsafe(remove);
  });
}

const signedNames = async (bucket: string) =>
  (await readRecords(lab, bucket)).filter(({ signed_url }) => signed_url !== null)
    .map(({ file_name }) => file_name).sort();

describe.each(Object.entries(rules))("%s", (_, rule) => {
  const taken = ["four.jpg", "one.jpg", "three.jpg", "two.jpg"];

  test("keeps the one image out that it is about", async () => {
    await impose(rule);
    const bucket = await createBucket(lab, { objects: [...taken, "refused/one.jpg"] });
    const run = await runToEnd(lab, bucket);
    expect(run).toMatchObject({
      balanced: true,
      error: null,
      totals: { images: 5, inserted: 4, signed: 4, collided: 1, failed: 0 },
    });
    expect(imbalances(await readLedgers(lab, run.id))).toEqual([]);
    expect(await signedNames(bucket)).toEqual(taken);
  });

  test("keeps the one record at its place that it is about when files are moved", async () => {
    await impose(rule);
    const bucket = await createBucket(lab, { objects: ["four.jpg", "one.jpg", "two.jpg", "zzz.jpg"] });
    await runToEnd(lab, bucket);
    await moveObjects(lab, bucket, { "zzz.jpg": "refused/one.jpg", "four.jpg": "three.jpg" });
    expect(await runToEnd(lab, bucket)).toMatchObject({
      balanced: true,
      totals: { moved: 1, unmoved: 1 },
      problems: [{ name: "refused/one.jpg", code: "not_moved" }],
    });
    expect(await signedNames(bucket)).toContain("three.jpg");
  });

  test("does not keep a cleanup from removing, nor a restore from bringing back", async () => {
    await impose(rule);
    const bucket = await createBucket(lab, { objects: taken, settings: { max_delete_fraction: 1 } });
    await runToEnd(lab, bucket);
    await removeObjects(lab, bucket, ["one.jpg", "two.jpg"]);
    const plan = await runToEnd(lab, bucket, { mode: "cleanup" });
    const cleanup = await runToEnd(lab, bucket, { mode: "cleanup", confirm: plan.id });
    expect(cleanup).toMatchObject({ state: "succeeded", totals: { removed: 2 } });
    expect(await runToEnd(lab, bucket, { mode: "restore", restore: cleanup.id }))
      .toMatchObject({ state: "succeeded", totals: { restored: 2, skipped: 0 } });
    expect((await readRecords(lab, bucket)).map(({ file_name }) => file_name).sort()).toEqual(taken);
  });
});

test("a reference to a part that there is not is refused for that image alone", async () => {
  await impose({
    before: parts,
    add:
      "alter table public.part_images add constraint test_rule foreign key (part_number) references public.test_parts deferrable initially deferred",
    remove: "alter table public.part_images drop constraint test_rule; drop table public.test_parts",
  });
  const bucket = await createBucket(lab, { objects: ["five.jpg", "four.jpg", "one.jpg"] });
  expect(await runToEnd(lab, bucket)).toMatchObject({
    balanced: true,
    totals: { inserted: 2, signed: 2, collided: 1 },
    problems: [{ name: "five.jpg", code: "record_refused" }],
  });
});

test("what a later trigger sets right is not refused, as the owner of a deferred key counts on", async () => {
  await impose({
    before: parts,
    add: `
      alter table public.part_images add constraint test_rule foreign key (part_number) references public.test_parts deferrable initially deferred;
      create function public.test_rule() returns trigger language plpgsql as $$
      begin
        insert into public.test_parts values (new.part_number) on conflict do nothing;
        return null;
      end $$;
      create trigger test_rule after insert on public.part_images for each row execute function public.test_rule();`,
    remove:
      "drop function public.test_rule() cascade; alter table public.part_images drop constraint test_rule; drop table public.test_parts",
  });
  const bucket = await createBucket(lab, { objects: ["five.jpg", "one.jpg"] });
  expect(await runToEnd(lab, bucket)).toMatchObject({
    state: "succeeded",
    totals: { inserted: 2, signed: 2 },
  });
});

test("a table that forbids null for the URL has the empty text where there is none", async () => {
  await impose({
    add:
      "alter table public.part_images alter column signed_url set default '', alter column signed_url set not null",
    remove:
      "alter table public.part_images alter column signed_url drop not null, alter column signed_url drop default",
  });
  const bucket = await createBucket(lab, { objects: ["one.jpg", "ümlaut.jpg"] });
  expect(await runToEnd(lab, bucket)).toMatchObject({
    balanced: true,
    totals: { inserted: 2, signed: 1, failed: 1 },
  });
  await moveObjects(lab, bucket, { "one.jpg": "two.jpg" });
  expect(await runToEnd(lab, bucket)).toMatchObject({ totals: { moved: 1, signed: 1 } });
  const urls = Object.fromEntries(
    (await readRecords(lab, bucket)).map((row) => [row.file_name, row.signed_url]),
  );
  expect(urls).toEqual({ "two.jpg": expect.stringContaining("two.jpg?token="), "ümlaut.jpg": "" });
});
