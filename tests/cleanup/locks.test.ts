/** Lock before you look: what other sessions do while a cleanup or restore is under way costs nobody a row. */
import type { ReservedSql } from "postgres";
import { afterAll, beforeAll, expect, onTestFinished, test } from "vitest";
import { addObjects, type Lab, openLab, runToEnd } from "../sync/support/lab.ts";
import {
  addRecords,
  apply,
  createTidyBucket,
  dryRun,
  goneNames,
  namesByCode,
  readArchive,
  readWhole,
  restore,
} from "./support/records.ts";

let lab: Lab;
beforeAll(async () => {
  lab = await openLab();
});
afterAll(() => lab?.close());

async function openTransaction(): Promise<ReservedSql> {
  const session = await lab.sql.reserve();
  await session`begin`;
  onTestFinished(async () => {
    await session`rollback`;
    session.release();
  });
  return session;
}

/** A table of the shop's that refers to records. */
async function createOrders(action: string): Promise<string> {
  const table = `test_orders_${crypto.randomUUID().slice(0, 8)}`;
  await lab.sql.unsafe(
    `create table public.${table} (id serial primary key, image_id uuid references public.part_images (id) on delete ${action})`,
  );
  onTestFinished(async () => {
    await lab.sql.unsafe(`drop table public.${table}`);
  });
  return table;
}

test.each(["cascade", "set null", "restrict", "no action", "set default"])(
  "a reference (on delete %s) that another session inserts meanwhile keeps its record, and its row stays",
  async (action) => {
    const orders = await createOrders(action);
    const gone = goneNames(4);
    const bucket = await createTidyBucket(lab, { orphans: gone });
    const plan = await dryRun(lab, bucket);
    const session = await openTransaction();
    await session.unsafe(
      `insert into public.${orders} (image_id) select id from public.part_images where bucket_id = $1 and file_name = 'gone-02.jpg'`,
      [bucket],
    );
    const cleanup = await apply(lab, bucket, plan.id);
    expect(cleanup).toMatchObject({ state: "succeeded", totals: { removed: 3, skipped: 1 } });
    expect(namesByCode(cleanup)).toEqual({ locked: ["gone-02.jpg"] });
    await session`commit`;
    const [kept] = await lab.sql.unsafe(
      `select count(*)::integer as rows, count(o.image_id)::integer as references from public.${orders} o`,
    );
    expect(kept).toEqual({ rows: 1, references: 1 });
    // Committed, it is seen.
    const next = await apply(lab, bucket, (await dryRun(lab, bucket)).id);
    expect(namesByCode(next)).toEqual({ referenced: ["gone-02.jpg"] });
    expect(Object.keys(await readWhole(lab, bucket))).toContain("gone-02.jpg");
  },
);

test("a record that another session holds is kept, with its columns, though its file comes back meanwhile", async () => {
  const gone = goneNames(3);
  const bucket = await createTidyBucket(lab, { orphans: gone });
  const before = await readWhole(lab, bucket);
  const plan = await dryRun(lab, bucket);
  const session = await openTransaction();
  await session`select from public.part_images where bucket_id = ${bucket} and file_name = 'gone-01.jpg' for update`;
  const cleaning = apply(lab, bucket, plan.id);
  await addObjects(lab, bucket, ["gone-01.jpg"]);
  const cleanup = await cleaning;
  expect(cleanup.totals).toMatchObject({ removed: 2, skipped: 1 });
  await session`commit`;
  const after = await readWhole(lab, bucket);
  expect(after["gone-01.jpg"]).toBe(before["gone-01.jpg"]);
  expect(Object.keys(await readArchive(lab, cleanup.id))).toEqual(["gone-02.jpg", "gone-03.jpg"]);
});

test("a record that its owner changed after the list was made is archived as it is now", async () => {
  const bucket = await createTidyBucket(lab, { orphans: goneNames(2) });
  const plan = await dryRun(lab, bucket);
  await lab
    .sql`update public.part_images set url = 'changed' where bucket_id = ${bucket} and file_name = 'gone-01.jpg'`;
  const whole = await readWhole(lab, bucket);
  const cleanup = await apply(lab, bucket, plan.id);
  expect((await readArchive(lab, cleanup.id))["gone-01.jpg"]).toBe(whole["gone-01.jpg"]);
});

test("a file that comes back while a slow trigger runs keeps its record", async () => {
  const bucket = await createTidyBucket(lab, { orphans: goneNames(3) });
  const plan = await dryRun(lab, bucket);
  const name = `test_upload_${crypto.randomUUID().slice(0, 8)}`;
  // As an upload that commits while the statement that deletes is under way: the trigger sees to the moment.
  await lab.sql.unsafe(`
    create function public.${name}() returns trigger language plpgsql security definer as $$
    begin
      insert into storage.objects (bucket_id, name) values (old.bucket_id, 'gone-02.jpg') on conflict do nothing;
      return old;
    end $$;
    create trigger ${name} before delete on public.part_images
      for each row when (old.bucket_id = '${bucket}' and old.file_name = 'gone-01.jpg') execute function public.${name}();`);
  onTestFinished(async () => {
    await lab.sql.unsafe(`drop function public.${name}() cascade`);
  });
  const cleanup = await apply(lab, bucket, plan.id);
  expect(namesByCode(cleanup)).toEqual({ file_is_back: ["gone-02.jpg"] });
  expect(Object.keys(await readArchive(lab, cleanup.id)).toSorted()).toEqual(["gone-01.jpg", "gone-03.jpg"]);
});

test("a table that refers to records and is locked keeps them all, named, and nothing waits", async () => {
  const orders = await createOrders("cascade");
  const bucket = await createTidyBucket(lab, { orphans: goneNames(3) });
  const plan = await dryRun(lab, bucket);
  const session = await openTransaction();
  await session.unsafe(`lock table public.${orders} in access exclusive mode`);
  const since = Date.now();
  const cleanup = await apply(lab, bucket, plan.id);
  expect(Date.now() - since).toBeLessThan(4_000);
  expect(cleanup.totals).toMatchObject({ removed: 0, skipped: 3 });
  expect(namesByCode(cleanup)).toEqual({ locked: goneNames(3) });
});

test("what an owner's trigger says is stored without the URL that it quotes", async () => {
  const bucket = await createTidyBucket(lab, { orphans: goneNames(2) });
  const token = "eyJhbGciOiJIUzI1NiJ9.eyJ1cmwiOiJ4In0.c2lnbmF0dXJl";
  await lab.sql`
    update public.part_images set signed_url = ${`https://ref.example/storage/v1/object/sign/b/x.jpg?token=${token}`}
    where bucket_id = ${bucket} and file_name like 'gone%'`;
  const plan = await dryRun(lab, bucket);
  const name = `test_words_${crypto.randomUUID().slice(0, 8)}`;
  await lab.sql.unsafe(`
    create function public.${name}() returns trigger language plpgsql as $$
    begin
      raise exception 'row refused: % % %', coalesce(new, old), to_jsonb(coalesce(new, old)), 'sb_secret_abcdef';
    end $$;
    create trigger ${name}_gone before delete on public.part_images
      for each row when (old.bucket_id = '${bucket}' and old.file_name = 'gone-01.jpg') execute function public.${name}();
    create trigger ${name}_back before insert on public.part_images
      for each row when (new.bucket_id = '${bucket}') execute function public.${name}();`);
  onTestFinished(async () => {
    await lab.sql.unsafe(`drop function public.${name}() cascade`);
  });
  const cleanup = await apply(lab, bucket, plan.id);
  expect(namesByCode(cleanup)).toEqual({ refused_by_table: ["gone-01.jpg"] });
  const back = await restore(lab, bucket, cleanup.id);
  expect(back).toMatchObject({
    state: "failed",
    stop_reason: "nothing_restored",
    totals: { restored: 0, skipped: 1 },
  });
  expect(JSON.stringify([cleanup, back])).toContain("row refused");
  const stored = await lab.sql<{ words: string }[]>`
    select c.problems::text || coalesce(r.summary::text, '') as words
    from image_sync.runs r join image_sync.chunks c on c.run_id = r.id
    where r.id in (${cleanup.id}, ${back.id})`;
  for (const words of [JSON.stringify([cleanup, back]), ...stored.map((row) => row.words)]) {
    expect(words).not.toMatch(/eyJ|sb_secret_a|token=(?!\[redacted\])/);
  }
});

test("a restore that puts back some of its records is partial, and says which it did not", async () => {
  const bucket = await createTidyBucket(lab, { orphans: goneNames(2) });
  const cleanup = await apply(lab, bucket, (await dryRun(lab, bucket)).id);
  await addRecords(lab, bucket, ["gone-01.jpg"]);
  const back = await restore(lab, bucket, cleanup.id);
  expect(back).toMatchObject({
    state: "partial",
    stop_reason: "records_skipped",
    totals: { restored: 1, skipped: 1 },
  });
  expect(back.problems[0]?.detail).toContain("restore again");
});

test("what a cleanup removed can be restored after its history was pruned, and after its run was deleted", async () => {
  const bucket = await createTidyBucket(lab, { orphans: goneNames(4) });
  const before = await readWhole(lab, bucket);
  const cleanup = await apply(lab, bucket, (await dryRun(lab, bucket)).id);
  await runToEnd(lab, bucket, { mode: "cleanup" });
  await lab.sql`
    update image_sync.runs set started_at = started_at - interval '1 year', finished_at = finished_at - interval '1 year'
    where bucket_id = ${bucket} and mode = 'cleanup' and plan_id is not null`;
  await lab.sql`select image_sync.prune_history()`;
  expect(await lab.sql`select from image_sync.runs where id = ${cleanup.id}`).toHaveLength(1);
  await lab.sql`delete from image_sync.runs where id = ${cleanup.id}`;
  expect(await restore(lab, bucket, cleanup.id)).toMatchObject({
    state: "succeeded",
    totals: { restored: 4 },
  });
  expect(await readWhole(lab, bucket)).toEqual(before);
  await expect(restore(lab, bucket, cleanup.id)).rejects.toThrow("nothing_to_restore");
  await expect(restore(lab, bucket, crypto.randomUUID())).rejects.toThrow("unknown_plan");
});
