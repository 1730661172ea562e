/** Verifying: every URL is opened as a reader opens it, what shows no image is named by its cause, and the next sync mends what it can. */
import { afterAll, beforeAll, expect, onTestFinished, test } from "vitest";
import type { Run } from "../../supabase/functions/image-sync/contract.ts";
import { NOTHING_SIGNED } from "../../supabase/functions/image-sync/database.ts";
import {
  addObjects,
  codesOf,
  createBucket,
  imbalances,
  jpeg,
  numberedNames,
  readLedgers,
  readRecords,
  readReport,
  removeObjects,
  runToEnd,
  upload,
} from "./support/lab.ts";
import { addCopies, control, counting, type LocalLab, openLocalLab } from "./support/local_lab.ts";

let lab: LocalLab;
beforeAll(async () => {
  lab = await openLocalLab();
});
afterAll(() => lab?.close());

const verify = (bucket: string): Promise<Run> => runToEnd(lab, bucket, { mode: "verify" });

async function bucketOf(names: readonly string[], settings: Record<string, unknown> = {}): Promise<string> {
  const bucket = await createBucket(lab, { settings: { probe_size: 0, ...settings } });
  for (const name of names) await upload(lab, bucket, name, jpeg);
  await runToEnd(lab, bucket);
  return bucket;
}

test("of a bucket in order every URL shows an image, nothing is written and the report says when", async () => {
  const bucket = await bucketOf(numberedNames(25), { chunk_size: 10 });
  const before = await readRecords(lab, bucket);
  const { result: run, counts } = await counting(lab, () => verify(bucket));
  expect(run).toMatchObject({
    state: "succeeded",
    balanced: true,
    totals: { opened: 25, shown: 25, rows_written: 0, images: 25 },
  });
  expect(imbalances(await readLedgers(lab, run.id))).toEqual([]);
  expect(counts.storage).toEqual({ download_signed: 25 });
  expect(await readRecords(lab, bucket)).toEqual(before);
  const report = await readReport(lab, bucket);
  expect(report).toMatchObject({
    healthy: true,
    findings: [],
    verified: { run: run.id, checked: 25, ok: 25, failures: {} },
    last_runs: { verify: { id: run.id } },
    coverage: { signed: 1 },
  });
});

test("all that show no image are listed, however many, and each says so itself", async () => {
  const bucket = await bucketOf(["whole.jpg"], { verify_rate: 1000 });
  const lost = numberedNames(238);
  await addObjects(lab, bucket, lost);
  await runToEnd(lab, bucket);
  await verify(bucket);
  const listed: string[] = [];
  for (let after: string | null = ""; after !== null;) {
    const page = await lab.database.readRecords({
      bucket,
      state: "broken",
      search: "",
      after,
      limit: 100,
      urls: false,
    });
    listed.push(...page.records.map(({ file_name }) => file_name));
    after = page.next;
  }
  expect(listed).toEqual(lost);
  for (const name of [lost[0], lost[150], lost[237]]) {
    expect(await lab.database.readFile(bucket, name ?? "")).toMatchObject({ in_sync: false });
  }
  expect(await lab.database.readFile(bucket, "whole.jpg")).toMatchObject({ in_sync: true });
});

test("each cause is told by its name, and counted", async () => {
  const bucket = await bucketOf(numberedNames(6));
  await addObjects(lab, bucket, ["lost.jpg"]);
  await upload(lab, bucket, "page.jpg", new TextEncoder().encode("<html>"));
  const { error } = await lab.supabase.storage.from(bucket).upload("typeless.jpg", jpeg, {
    contentType: "application/octet-stream",
  });
  expect(error).toBeNull();
  lab.buckets.get(bucket)?.push("typeless.jpg");
  await runToEnd(lab, bucket);
  await lab.sql`
    update public.part_images set signed_url = left(signed_url, -5) || 'aaaaa'
    where bucket_id = ${bucket} and file_name = '000001.jpg'`;
  const run = await verify(bucket);
  expect(run).toMatchObject({ state: "succeeded", totals: { opened: 9, shown: 5 } });
  expect(run.problems.map(({ name, code }) => [name, code]).sort()).toEqual([
    ["000001.jpg", "url_rejected"],
    ["lost.jpg", "file_lost"],
    ["page.jpg", "not_an_image"],
    ["typeless.jpg", "wrong_content_type"],
  ]);
  const report = await readReport(lab, bucket);
  expect(report.healthy).toBe(false);
  expect(codesOf(report).sort()).toEqual([
    // Its expiry is forgotten, so that the next sync signs it.
    "expired",
    "file_lost",
    "not_an_image",
    "url_rejected",
    "wrong_content_type",
  ]);
  expect(JSON.stringify(report)).not.toContain("token=");
  expect(JSON.stringify(run)).not.toContain("token=");

  // The next sync signs anew what was rejected and nothing else.
  const sync = await runToEnd(lab, bucket);
  expect(sync.totals).toMatchObject({ signed: 1 });
  expect(codesOf(await readReport(lab, bucket)).sort()).toEqual([
    "file_lost",
    "not_an_image",
    "wrong_content_type",
  ]);
  const again = await verify(bucket);
  expect(again.totals).toMatchObject({ opened: 9, shown: 6 });
});

test("after a rotation of the signing key one verify and one sync mend all of them", async () => {
  const bucket = await bucketOf(numberedNames(12), { chunk_size: 5 });
  await control(lab, "POST", "/storage/rotate-signing-key");
  expect((await verify(bucket)).totals).toMatchObject({ opened: 12, shown: 0 });
  expect(await readReport(lab, bucket)).toMatchObject({ healthy: false, coverage: { signed: 0 } });
  expect((await runToEnd(lab, bucket)).totals).toMatchObject({ signed: 12 });
  expect((await verify(bucket)).totals).toMatchObject({ opened: 12, shown: 12 });
  expect(await readReport(lab, bucket)).toMatchObject({ healthy: true, findings: [] });
});

test("a URL that was renewed meanwhile is not forgotten, and a held record is left alone", async () => {
  const bucket = await bucketOf(numberedNames(3));
  await lab.sql`
    update public.part_images set signed_url = left(signed_url, -5) || 'aaaaa'
    where bucket_id = ${bucket} and file_name < '000003.jpg'`;
  await lab.sql.begin(async (holder) => {
    await holder`
      select from public.part_images where bucket_id = ${bucket} and file_name = '000001.jpg' for update`;
    expect((await verify(bucket)).totals).toMatchObject({ opened: 3, shown: 1, rows_written: 1 });
  });
});

test("what a verify saw of a file is what ?file says of it, until it is uploaded again", async () => {
  const bucket = await bucketOf(["fine.jpg", "text.jpg"]);
  await addObjects(lab, bucket, ["lost.jpg"]);
  await lab.supabase.storage.from(bucket).update("text.jpg", new TextEncoder().encode("no image"), {
    contentType: "image/jpeg",
  });
  await runToEnd(lab, bucket);
  const look = async (name: string) => {
    const { in_sync, reasons } = await lab.database.readFile(bucket, name);
    return { in_sync, reasons: reasons.map(({ code }) => code) };
  };
  expect(await look("lost.jpg")).toEqual({ in_sync: true, reasons: [] });
  await verify(bucket);
  expect(await look("fine.jpg")).toEqual({ in_sync: true, reasons: [] });
  expect(await look("lost.jpg")).toEqual({ in_sync: false, reasons: ["file_lost"] });
  expect(await look("text.jpg")).toEqual({ in_sync: false, reasons: ["not_an_image"] });
  await lab.supabase.storage.from(bucket).update("text.jpg", jpeg, { contentType: "image/jpeg" });
  expect(await look("text.jpg")).toEqual({ in_sync: true, reasons: [] });
});

test("a file that no verify opened is not said to have shown an image", async () => {
  const bucket = await bucketOf(["1.jpg", "2.jpg"], { probe_size: 0 });
  await runToEnd(lab, bucket);
  const verifiedOf = async (name: string) => (await lab.database.readFile(bucket, name)).verified;
  await verify(bucket);
  expect(await verifiedOf("1.jpg")).toMatchObject({ code: null });
  // One that had no URL then, and one that had no record: who can tell which of a chunk were opened?
  await lab
    .sql`update public.part_images set signed_url = null where bucket_id = ${bucket} and file_name = '2.jpg'`;
  await verify(bucket);
  await runToEnd(lab, bucket);
  expect(await verifiedOf("2.jpg")).toBeNull();
  await upload(lab, bucket, "0.jpg", jpeg);
  await verify(bucket);
  await runToEnd(lab, bucket);
  expect(await verifiedOf("0.jpg")).toBeNull();
  await verify(bucket);
  expect(await verifiedOf("0.jpg")).toMatchObject({ code: null });
  // Uploaded since, replaced since, and never there.
  await upload(lab, bucket, "3.jpg", jpeg);
  await lab.supabase.storage.from(bucket).update("2.jpg", jpeg, { contentType: "image/jpeg" });
  await runToEnd(lab, bucket);
  expect(await Promise.all(["1.jpg", "2.jpg", "3.jpg", "4.jpg"].map(verifiedOf))).toEqual([
    expect.objectContaining({ code: null }),
    null,
    null,
    null,
  ]);
  // A verify that was ended before it had opened what it leased.
  const { run } = await lab.database.start({ run: crypto.randomUUID(), bucket, mode: "verify", options: {} });
  const answer = await lab.database.advance({
    run: run.id,
    worker: crypto.randomUUID(),
    lease: crypto.randomUUID(),
    closing: null,
  });
  expect(answer.next).toBe("open");
  await lab.database.cancel(run.id);
  expect(await verifiedOf("1.jpg")).toBeNull();
});

test("a table that refuses every change is verified all the same", async () => {
  const bucket = await bucketOf(["one.jpg", "two.jpg"]);
  await lab.sql`
    update public.part_images set signed_url = regexp_replace(signed_url, '.{4}$', 'AAAA') where bucket_id = ${bucket} and file_name = 'two.jpg'`;
  await lab.sql.unsafe(`
    create function public.test_keep() returns trigger language plpgsql as $$ begin raise exception 'kept'; end $$;
    create trigger test_keep before update on public.part_images for each row execute function public.test_keep();`);
  onTestFinished(async () => {
    await lab.sql.unsafe("drop function public.test_keep() cascade");
  });
  expect(await verify(bucket)).toMatchObject({
    state: "succeeded",
    totals: { opened: 2, shown: 1, rows_written: 0 },
    problems: [{ name: "two.jpg", code: "url_rejected" }],
  });
});

test("no more URLs are opened a second than the setting allows, and four workers share them", async () => {
  const bucket = await bucketOf(numberedNames(40), { verify_rate: 20, lease_duration: "4 seconds" });
  const started = Date.now();
  const { run } = await lab.database.start({ run: crypto.randomUUID(), bucket, mode: "verify", options: {} });
  const wake = () =>
    lab.call({
      method: "POST",
      headers: { apikey: lab.stack.secretKey, prefer: "wait=60" },
      body: JSON.stringify({ run: run.id }),
    });
  await Promise.all([wake(), wake(), wake(), wake()]);
  const ended = await lab.database.readRun(run.id);
  expect(ended).toMatchObject({ state: "succeeded", totals: { opened: 40, shown: 40 } });
  expect(ended.chunks).toBeGreaterThanOrEqual(2);
  expect(Date.now() - started).toBeGreaterThan(1500);
});

test("a worker that dies costs its chunk a second look, and what it says late counts for nothing", async () => {
  const bucket = await bucketOf(numberedNames(12), { chunk_size: 5 });
  const { run } = await lab.database.start({ run: crypto.randomUUID(), bucket, mode: "verify", options: {} });
  const [worker, lease] = [crypto.randomUUID(), crypto.randomUUID()];
  const leased = await lab.database.advance({ run: run.id, worker, lease, closing: null });
  expect(leased).toMatchObject({ next: "open", chunk: { number: 1, rate: 200 } });
  // Its answer lost, the call is repeated.
  const repeated = await lab.database.advance({ run: run.id, worker, lease, closing: null });
  expect(repeated).toMatchObject({ next: "open", chunk: { number: 1 } });
  await lab.sql`
    update image_sync.chunks set lease_expires_at = now() - interval '1 second' where run_id = ${run.id}`;
  const ended = await verify(bucket);
  expect(ended).toMatchObject({
    id: run.id,
    state: "succeeded",
    balanced: true,
    totals: { opened: 12, shown: 12 },
  });
  const closing = { lease, number: 1, ...NOTHING_SIGNED, error: null, storageCalls: 0, retries: 0 };
  expect(await lab.database.advance({ run: run.id, worker, lease: null, closing })).toMatchObject({
    closed: "stale",
  });
  expect((await lab.database.readRun(run.id)).totals).toMatchObject({ opened: 12, shown: 12 });
});

test("records without a file, a URL or a usable name are not opened", async () => {
  const bucket = await bucketOf(numberedNames(5));
  await removeObjects(lab, bucket, ["000001.jpg"]);
  await addObjects(lab, bucket, ["ümlaut.jpg"]);
  await lab.sql`
    update public.part_images set signed_url = null where bucket_id = ${bucket} and file_name = '000002.jpg'`;
  expect((await verify(bucket)).totals).toMatchObject({ opened: 3, shown: 3, orphaned: 1, missing: 1 });
});

test("an empty bucket and one without records are verified at once", async () => {
  const empty = await createBucket(lab);
  expect(await verify(empty)).toMatchObject({ state: "succeeded", totals: { opened: 0 } });
});

test("4,000 URLs are opened within a minute", async () => {
  const bucket = await createBucket(lab, { settings: { probe_size: 0 } });
  const [first = "", ...names] = numberedNames(4000);
  await upload(lab, bucket, first, jpeg);
  await addCopies(lab, { bucket, of: first, names });
  await runToEnd(lab, bucket);
  const started = Date.now();
  const run = await verify(bucket);
  expect(run).toMatchObject({ state: "succeeded", balanced: true, totals: { opened: 4000, shown: 4000 } });
  expect(Date.now() - started).toBeLessThan(60_000);
}, 200_000);
