/** Reading the status back: report, run and file, as JSON, as text, and as nothing new. */
import { afterAll, beforeAll, expect, test } from "vitest";
import {
  addObjects,
  createBucket,
  jpeg,
  numberedNames,
  openRun,
  readProblem,
  readReport,
  removeObjects,
  runToEnd,
  upload,
} from "../sync/support/lab.ts";
import { fileSchema, reportSchema, runSchema } from "../../supabase/functions/image-sync/contract.ts";
import { renderFile, renderReport, renderRun } from "../../supabase/functions/image-sync/text.ts";
import { counting, type LocalLab, openLocalLab } from "../sync/support/local_lab.ts";

let lab: LocalLab;
beforeAll(async () => {
  lab = await openLocalLab();
});
afterAll(() => lab?.close());

const get = (query: string, headers: Record<string, string> = {}) =>
  lab.call({ query, headers: { apikey: lab.stack.secretKey, ...headers } });

test("the report has every section, with the counts of the last run and nothing left to guess", async () => {
  const bucket = await createBucket(lab, { settings: { probe_size: 2 } });
  for (const name of ["a.jpg", "b.JPEG"]) await upload(lab, bucket, name, jpeg);
  await addObjects(lab, bucket, ["notes.txt"]);
  const run = await runToEnd(lab, bucket);
  const response = await get(`?bucket=${bucket}`);
  expect(response.status).toBe(200);
  expect(response.headers.get("content-type")).toBe("application/json");
  const report = reportSchema.parse(await response.json());
  expect(report).toMatchObject({
    healthy: true,
    bucket: {
      id: bucket,
      objects: 3,
      images: 2,
      bytes: 1000 + 2 * jpeg.byteLength,
      by_extension: { jpg: 1, jpeg: 1, txt: 1 },
    },
    records: { total: 2, signed: 2, unsigned: 0, expired: 0 },
    difference: {
      missing: { count: 0, samples: [] },
      orphaned: { count: 0, samples: [] },
      collided: { count: 0, samples: [] },
    },
    coverage: { recorded: 1, signed: 1 },
    probe: { checked: 2, ok: 2, failures: [] },
    open_run: null,
    next_run_at: null,
    last_runs: { sync: { id: run.id, mode: "sync", trigger: "request" }, analyze: null, cleanup: null },
  });
  expect(Date.parse(report.records.soonest_expiry ?? "")).toBeGreaterThan(Date.now() + 6 * 86_400_000);
  expect(Date.parse(report.generated_at)).toBeGreaterThan(Date.now() - 60_000);
});

test("the next run is when the nightly job is due, for a bucket that takes part in the night", async () => {
  const bucket = await createBucket(lab, { settings: { nightly: true } });
  const next = new Date((await readReport(lab, bucket)).next_run_at ?? "");
  expect(next.getTime()).toBeGreaterThan(Date.now());
  expect(next.getTime()).toBeLessThanOrEqual(Date.now() + 86_400_000);
  expect([next.getUTCHours(), next.getUTCMinutes(), next.getUTCSeconds()]).toEqual([2, 0, 0]);
});

test("samples name up to 20 of each kind, in order, whatever the chunks", async () => {
  const bucket = await createBucket(lab, { settings: { chunk_size: 3 }, objects: numberedNames(50) });
  await lab.sql`
    insert into public.part_images (bucket_id, file_name)
    select ${bucket}, 'x' || n.name from unnest(${numberedNames(30)}::text[]) as n (name)`;
  await runToEnd(lab, bucket, { mode: "analyze" });
  const { difference } = await readReport(lab, bucket);
  expect(difference.missing).toEqual({ count: 50, samples: numberedNames(20) });
  expect(difference.orphaned).toEqual({ count: 30, samples: numberedNames(20).map((name) => `x${name}`) });
});

test("an open run stands in the report with its progress", async () => {
  const bucket = await createBucket(lab, { objects: numberedNames(10) });
  const run = await openRun(lab, bucket);
  expect((await readReport(lab, bucket)).open_run).toMatchObject({
    id: run.id,
    state: "open",
    progress: { done: 0, total_estimate: 10, percent: 0 },
  });
  await lab.database.cancel(run.id);
});

test.each(["report", "run", "file"])(
  "a %s that did not change is answered with 304 and no body",
  async (kind) => {
    const bucket = await createBucket(lab, { objects: numberedNames(3) });
    const run = await runToEnd(lab, bucket);
    const query = {
      report: `?bucket=${bucket}`,
      run: `?run=${run.id}`,
      file: `?bucket=${bucket}&file=000001.jpg`,
    }[kind] ??
      "";
    const first = await get(query);
    const etag = first.headers.get("etag") ?? "";
    expect(etag).toMatch(/^W\/"[0-9a-f]+"$/);
    expect(first.headers.get("vary")).toContain("Accept");
    const again = await get(query, { "if-none-match": `"other", ${etag}` });
    expect(again.status).toBe(304);
    expect(await again.text()).toBe("");
    expect(again.headers.get("etag")).toBe(etag);
    // The text is another representation.
    expect((await get(query, { "if-none-match": etag, accept: "text/plain" })).status).toBe(200);
  },
);

test("a report that changed has another ETag", async () => {
  const bucket = await createBucket(lab, { objects: numberedNames(3) });
  await runToEnd(lab, bucket);
  const etag = (await get(`?bucket=${bucket}`)).headers.get("etag") ?? "";
  await addObjects(lab, bucket, ["new.jpg"]);
  await runToEnd(lab, bucket, { mode: "analyze" });
  const response = await get(`?bucket=${bucket}`, { "if-none-match": etag });
  expect(response.status).toBe(200);
  expect(response.headers.get("etag")).not.toBe(etag);
});

test("Accept: text/plain answers what the commands print", async () => {
  const bucket = await createBucket(lab, { objects: [...numberedNames(3), "notes.txt"] });
  const { id } = await runToEnd(lab, bucket);
  const text = async (query: string) => {
    const response = await get(query, { accept: "text/plain" });
    expect(response.headers.get("content-type")).toBe("text/plain; charset=utf-8");
    return await response.text();
  };
  const runText = await text(`?run=${id}`);
  expect(runText).toBe(renderRun(runSchema.parse(await (await get(`?run=${id}`)).json())));
  const file = `?bucket=${bucket}&file=notes.txt`;
  expect(await text(file)).toBe(renderFile(fileSchema.parse(await (await get(file)).json())));
  const reportText = await text(`?bucket=${bucket}`);
  // Ages in it are counted from the moment of asking.
  const sameButAge = (words: string) => words.replaceAll(/(just now|[\d.]+ s ago)/g, "AGE");
  expect(sameButAge(reportText)).toBe(sameButAge(renderReport(await readReport(lab, bucket))));
  expect(reportText).toContain(`${bucket}: healthy`);
  expect(reportText).toContain("[excluded_extensions]");
});

test("?run tells one run, and knows which it does not", async () => {
  const bucket = await createBucket(lab, { objects: numberedNames(3) });
  const { id } = await runToEnd(lab, bucket);
  const run = runSchema.parse(await (await get(`?run=${id}`)).json());
  expect(run).toMatchObject({
    id,
    bucket_id: bucket,
    state: "succeeded",
    balanced: true,
    progress: { percent: 100 },
  });
  const unknown = await readProblem(await get(`?run=${crypto.randomUUID()}`));
  expect(unknown).toMatchObject({ status: 404, code: "unknown_run" });
  expect((await readProblem(await get("?run=nonsense"))).status).toBe(400);
});

test("?file tells each reason why a file is, or is not, in sync", async () => {
  const bucket = await createBucket(lab, {
    objects: ["fine.jpg", "unsigned.jpg", "expired.jpg", "expiring.jpg", "gone.jpg"],
  });
  await runToEnd(lab, bucket);
  await lab.sql`
    update public.part_images
    set
      signed_url = case when file_name = 'unsigned.jpg' then '' else signed_url end,
      signed_url_expires_at = now() + case file_name when 'expired.jpg' then interval '-1 s' else interval '1 day' end
    where bucket_id = ${bucket} and file_name in ('unsigned.jpg', 'expired.jpg', 'expiring.jpg')`;
  await removeObjects(lab, bucket, ["gone.jpg"]);
  await addObjects(lab, bucket, ["new.jpg", "notes.txt", "folder/fine.jpg"]);
  const look = async (name: string) => {
    const response = await get(`?bucket=${bucket}&file=${encodeURIComponent(name)}`);
    const file = fileSchema.parse(await response.json());
    expect(file.file_name).toBe(name);
    return { in_sync: file.in_sync, reasons: file.reasons.map(({ code }) => code) };
  };
  expect(await look("fine.jpg")).toEqual({ in_sync: true, reasons: [] });
  expect(await look("unsigned.jpg")).toEqual({ in_sync: false, reasons: ["unsigned"] });
  expect(await look("expired.jpg")).toEqual({ in_sync: false, reasons: ["expired"] });
  expect(await look("expiring.jpg")).toEqual({ in_sync: true, reasons: ["expiring"] });
  expect(await look("gone.jpg")).toEqual({ in_sync: false, reasons: ["orphaned"] });
  expect(await look("new.jpg")).toEqual({ in_sync: false, reasons: ["missing"] });
  expect(await look("notes.txt")).toEqual({ in_sync: false, reasons: ["excluded_extension"] });
  expect(await look("FINE.jpg")).toEqual({ in_sync: false, reasons: ["unknown_file"] });
  expect(await look("a?b#c%d/é ü.jpg")).toEqual({ in_sync: false, reasons: ["unknown_file"] });

  // A URL of another address works for somebody else.
  await lab.sql`
    update public.part_images set signed_url = 'https://elsewhere.example/x', signed_url_expires_at = now() + interval '6 days'
    where bucket_id = ${bucket} and file_name = 'fine.jpg'`;
  expect(await look("fine.jpg")).toEqual({ in_sync: false, reasons: ["foreign_url"] });
  // What was told to be signed anew cannot be, whatever else is wrong with it.
  await addObjects(lab, bucket, ["ümlaut.jpg"]);
  await lab.sql`
    insert into public.part_images (bucket_id, file_name, signed_url, signed_url_expires_at)
    values (${bucket}, 'ümlaut.jpg', 'https://elsewhere.example/x', now())`;
  expect(await look("ümlaut.jpg")).toEqual({ in_sync: false, reasons: ["unsignable"] });

  // Where the table's owner wants part numbers to be unique, a second file of one has no place.
  await lab.sql`delete from public.part_images where bucket_id <> ${bucket}`;
  await lab.sql`alter table public.part_images add constraint test_one unique (part_number)`;
  try {
    expect(await look("folder/fine.jpg")).toEqual({ in_sync: false, reasons: ["collided"] });
  } finally {
    await lab.sql`alter table public.part_images drop constraint test_one`;
  }
});

test("a bucket without settings is a problem that says so, not an empty report", async () => {
  for (const query of ["?bucket=nowhere", "?bucket=nowhere&file=a.jpg"]) {
    const problem = await readProblem(await get(query));
    expect(problem).toMatchObject({ status: 404, code: "unknown_bucket" });
    expect(problem.detail).toContain("nowhere");
  }
});

test("reading the report is one RPC", async () => {
  const bucket = await createBucket(lab, { objects: numberedNames(3) });
  await runToEnd(lab, bucket);
  const { counts } = await counting(lab, () => get(`?bucket=${bucket}`).then((response) => response.text()));
  expect(counts.rpc).toEqual({ image_sync_report: 1 });
  expect(counts.storage).toEqual({});
});
