import pLimit from "p-limit";
import { afterAll, beforeAll, expect, test } from "vitest";
import type { Run } from "../../supabase/functions/image-sync/contract.ts";
import {
  addObjects,
  codesOf,
  createBucket,
  eventually,
  imbalances,
  jpeg,
  numberedNames,
  readLedgers,
  readRecords,
  readReport,
  type RecordRow,
  removeObjects,
  runToEnd,
  upload,
  waitForEnd,
} from "./support/lab.ts";
import { counting, type LocalLab, openLocalLab, runJob } from "./support/local_lab.ts";

let lab: LocalLab;
beforeAll(async () => {
  lab = await openLocalLab();
  await watchWrites();
});
afterAll(() => lab?.close());

/** Counts what is written to the table, row by row, whatever becomes of statistics. */
async function watchWrites(): Promise<void> {
  await lab.sql.unsafe(`
    create schema watch;
    create table watch.writes (bucket_id text, operation text, file_name text);
    create function watch.record_write() returns trigger language plpgsql security definer set search_path = '' as $$
    begin
      insert into watch.writes values (coalesce(new.bucket_id, old.bucket_id), tg_op, coalesce(new.file_name, old.file_name));
      return null;
    end $$;
    create trigger record_write after insert or update or delete on public.part_images
      for each row execute function watch.record_write();`);
}

/** What was written to a bucket's records since the last look. */
async function takeWrites(bucket: string): Promise<Readonly<Record<string, readonly string[]>>> {
  const writes = await lab.sql<{ operation: string; file_name: string }[]>`
    with taken as (
      delete from watch.writes where bucket_id = ${bucket} returning operation, file_name
    )
    select operation, file_name from taken order by operation, file_name collate "C"`;
  const taken: Record<string, string[]> = {};
  for (const { operation, file_name } of writes) (taken[operation] ??= []).push(file_name);
  return taken;
}

/** Lets the nightly job open the run and its queued call start the function. */
async function runNight(bucket: string): Promise<Run> {
  const previous = (await readReport(lab, bucket)).last_runs.sync?.id;
  await runJob(lab, "image-sync-nightly");
  const id = await eventually(async () => {
    const { open_run, last_runs } = await readReport(lab, bucket);
    const run = open_run ?? last_runs.sync;
    return run === null || run.id === previous ? undefined : run.id;
  }, "the nightly job to open a run");
  return await waitForEnd(lab, id);
}

const byName = (records: readonly RecordRow[]) =>
  new Map(records.map((record) => [record.file_name, record]));

test(
  "4,000 images and 196 old rows become 4,000 signed records in one scheduled run, and the next run writes nothing",
  async () => {
    const bucket = "part-images";
    const names = numberedNames(4000);
    await lab.supabase.storage.createBucket(bucket, { public: false });
    const limit = pLimit(8);
    // Real files where they are fetched by chance are all of them.
    await Promise.all(names.map((name) => limit(() => upload(lab, bucket, name, jpeg))));
    // 180 of the old rows are of files that are there, as the replaced scripts left them; 16 are of files that are gone.
    const kept = names.slice(0, 180);
    const gone = numberedNames(16, 900_001);
    await lab.sql`
    insert into public.part_images (file_name, part_number, signed_url)
    select n.name, split_part(n.name, '.', 1), case when n.place <= 100 then 'http://127.0.0.1/dead?token=x.y.z' end
    from unnest(${[...kept, ...gone]}::text[]) with ordinality as n (name, place)`;
    const before = byName(await readRecords(lab, bucket));
    await takeWrites(bucket);

    const run = await runNight(bucket);
    expect(run).toMatchObject({
      state: "succeeded",
      trigger: "schedule",
      balanced: true,
      error: null,
      problems: [],
      totals: {
        listed: 4000,
        images: 4000,
        recorded: 180,
        inserted: 3820,
        collided: 0,
        vanished: 0,
        signed: 4000,
        failed: 0,
        orphaned: 16,
        // 3,820 inserted, 4,000 signed, and the 180 of before have learned their object's id: once.
        rows_written: 4000,
      },
    });
    const ledgers = await readLedgers(lab, run.id);
    expect(ledgers.length).toBeGreaterThanOrEqual(5);
    expect(imbalances(ledgers)).toEqual([]);

    const records = await readRecords(lab, bucket);
    const after = byName(records);
    expect(records.map(({ file_name }) => file_name)).toEqual([...names, ...gone]);
    expect(records.filter(({ file_name, part_number }) => `${part_number}.jpg` !== file_name)).toEqual([]);
    for (const name of kept) expect(after.get(name)?.id).toBe(before.get(name)?.id);
    for (const name of gone) expect(after.get(name)).toEqual(before.get(name));
    const unusable = records.filter(({ file_name, signed_url, signed_url_expires_at }) =>
      !gone.includes(file_name) &&
      (signed_url === null || (signed_url_expires_at?.getTime() ?? 0) < Date.now() + 6 * 86_400_000)
    );
    expect(unusable).toEqual([]);
    const statuses = await Promise.all(
      names.filter((_, place) => place % 100 === 0).map(async (name) => {
        const response = await fetch(after.get(name)?.signed_url ?? "");
        await response.body?.cancel();
        return [response.status, response.headers.get("content-type")];
      }),
    );
    expect(new Set(statuses.map(String))).toEqual(new Set(["200,image/jpeg"]));

    const report = await readReport(lab, bucket);
    expect(report).toMatchObject({
      healthy: true,
      bucket: { id: bucket, objects: 4000, images: 4000, by_extension: { jpg: 4000 } },
      records: { total: 4016, signed: 4000, unsigned: 16, expired: 0 },
      difference: { missing: { count: 0 }, orphaned: { count: 16, samples: gone }, collided: { count: 0 } },
      coverage: { recorded: 1, signed: 1 },
      probe: { checked: 10, ok: 10, failures: [] },
      open_run: null,
      last_runs: { sync: { id: run.id, state: "succeeded" } },
    });
    expect(codesOf(report)).toContain("orphaned");
    const [status] = await lab.sql`select outcome, report from image_sync.runs where id = ${run.id}`;
    expect(status).toMatchObject({ outcome: "succeeded", report: { bucket: { objects: 4000 } } });

    await takeWrites(bucket);
    await lab.sql`update image_sync.settings set probe_size = 0 where bucket_id = ${bucket}`;
    const { result: again, counts } = await counting(lab, () => runNight(bucket));
    expect(again).toMatchObject({
      state: "succeeded",
      totals: {
        listed: 4000,
        recorded: 4000,
        inserted: 0,
        signed: 0,
        rows_written: 0,
        storage_calls: 0,
        retries: 0,
        orphaned: 16,
      },
    });
    expect(imbalances(await readLedgers(lab, again.id))).toEqual([]);
    expect(await takeWrites(bucket)).toEqual({});
    expect(await readRecords(lab, bucket)).toEqual(records);
    expect(counts.storage).toEqual({});
    // 4,000 names are walked within one call unless the machine is busy: its bound is 250 ms.
    expect(counts.rpc["image_sync_advance"]).toBeLessThanOrEqual(4);
    expect(counts.rpc["image_sync_start"]).toBeUndefined();
  },
  180_000,
);

test("a run that nothing changed for takes one RPC to start it and as few as can be to walk", async () => {
  const bucket = await createBucket(lab, { settings: { chunk_size: 10 }, objects: numberedNames(200) });
  await runToEnd(lab, bucket);
  await takeWrites(bucket);
  const { result: run, counts } = await counting(lab, () => runToEnd(lab, bucket));
  expect(run).toMatchObject({
    state: "succeeded",
    totals: { rows_written: 0, storage_calls: 0 },
  });
  expect(counts.storage).toEqual({});
  expect(counts.rpc["image_sync_start"]).toBe(1);
  expect(counts.rpc["image_sync_advance"]).toBeLessThanOrEqual(6);
  expect(counts.rpc["image_sync_finish"]).toBeUndefined();
  expect(await takeWrites(bucket)).toEqual({});
});

test("30 new, 20 deleted and 10 replaced objects and 5 URLs about to expire: exactly those change", async () => {
  const names = numberedNames(500);
  const bucket = await createBucket(lab, { settings: { chunk_size: 60 }, objects: names });
  await runToEnd(lab, bucket);
  const before = byName(await readRecords(lab, bucket));

  const added = [
    ...numberedNames(15, 501),
    ...numberedNames(15).map((name) => name.replace(".jpg", "-b.jpg")),
  ].sort();
  const deleted = names.slice(100, 120);
  const replaced = names.slice(200, 210);
  const expiring = names.slice(300, 305);
  await addObjects(lab, bucket, added);
  await removeObjects(lab, bucket, deleted);
  // A replaced file is another object of the same name: its URL goes on to work, its record learns the new id.
  await removeObjects(lab, bucket, replaced);
  await addObjects(lab, bucket, replaced);
  await lab.sql`
    update public.part_images
    set signed_url_expires_at = now() + interval '1 day'
    where bucket_id = ${bucket} and file_name = any (${expiring})`;
  await takeWrites(bucket);

  const run = await runToEnd(lab, bucket);
  expect(run).toMatchObject({
    state: "succeeded",
    totals: {
      listed: 510,
      images: 510,
      recorded: 480,
      inserted: 30,
      signed: 35,
      failed: 0,
      orphaned: 20,
      rows_written: 45,
    },
  });
  expect(imbalances(await readLedgers(lab, run.id))).toEqual([]);
  expect(await takeWrites(bucket)).toEqual({
    INSERT: added,
    UPDATE: [...replaced, ...expiring].sort(),
  });
  const after = byName(await readRecords(lab, bucket));
  const changed = [...after.values()].filter(({ file_name, version }) =>
    before.get(file_name)?.version !== version
  );
  expect(changed.map(({ file_name }) => file_name).sort()).toEqual(
    [...added, ...replaced, ...expiring].sort(),
  );
  for (const name of deleted) expect(after.get(name)).toEqual(before.get(name));
  expect((await readReport(lab, bucket)).difference.orphaned).toEqual({ count: 20, samples: deleted });
  expect(run.totals["storage_calls"]).toBeLessThanOrEqual(4);
});
