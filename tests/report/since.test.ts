/** Since when a finding stands: what runs saw in a row, what facts tell, and nothing where nobody knows. */
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { Run } from "../../supabase/functions/image-sync/contract.ts";
import { renderReport } from "../../supabase/functions/image-sync/text.ts";
import {
  addObjects,
  createBucket,
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

const analyze = (bucket: string) => runToEnd(lab, bucket, { mode: "analyze" });
const findingOf = async (bucket: string, code: string) =>
  (await readReport(lab, bucket)).findings.find((finding) => finding.code === code);
const sinceOf = async (bucket: string, code: string) => (await findingOf(bucket, code))?.since;
/** The end of a run is the moment at which it saw what it saw. */
const endOf = (run: Run) => run.finished_at ?? "never";

describe("what runs measure", () => {
  test("is seen since the first run of those in a row that saw it", async () => {
    const bucket = await createBucket(lab, { objects: numberedNames(3) });
    await runToEnd(lab, bucket);
    await addObjects(lab, bucket, ["new.jpg"]);
    const first = await analyze(bucket);
    expect(await sinceOf(bucket, "missing")).toBe(endOf(first));
    await removeObjects(lab, bucket, ["000001.jpg"]);
    const second = await analyze(bucket);
    const third = await analyze(bucket);
    expect(await sinceOf(bucket, "missing")).toBe(endOf(first));
    expect(await sinceOf(bucket, "orphaned")).toBe(endOf(second));
    expect(third.id).not.toBe(second.id);
  });

  test("that went away and came back is seen since it came back", async () => {
    const bucket = await createBucket(lab, { objects: numberedNames(3) });
    await runToEnd(lab, bucket);
    await addObjects(lab, bucket, ["one.jpg"]);
    const before = await analyze(bucket);
    await runToEnd(lab, bucket);
    expect(await findingOf(bucket, "missing")).toBeUndefined();
    await addObjects(lab, bucket, ["two.jpg"]);
    const after = await analyze(bucket);
    expect(await sinceOf(bucket, "missing")).toBe(endOf(after));
    expect(endOf(after)).not.toBe(endOf(before));
  });

  test("is each bucket's own", async () => {
    const one = await createBucket(lab, { objects: ["a.jpg"] });
    const other = await createBucket(lab, { objects: ["a.jpg"] });
    const ofOne = await analyze(one);
    const ofOther = await analyze(other);
    await analyze(one);
    expect(await sinceOf(one, "missing")).toBe(endOf(ofOne));
    expect(await sinceOf(other, "missing")).toBe(endOf(ofOther));
  });

  test("is kept over runs that did not reach the end of the bucket, which saw nothing of it", async () => {
    const bucket = await createBucket(lab, { objects: ["a.jpg"] });
    const first = await analyze(bucket);
    const { run } = await lab.database.start({
      run: crypto.randomUUID(),
      bucket,
      mode: "analyze",
      options: {},
    });
    await lab.database.cancel(run.id);
    expect(await sinceOf(bucket, "missing")).toBe(endOf(first));
    await analyze(bucket);
    expect(await sinceOf(bucket, "missing")).toBe(endOf(first));
  });

  test("by a verify as well: what it sees is since then, and since then it stays after a later analyze", async () => {
    const bucket = await createBucket(lab, { objects: numberedNames(2), settings: { probe_size: 0 } });
    await runToEnd(lab, bucket);
    const verify = await runToEnd(lab, bucket, { mode: "verify" });
    await analyze(bucket);
    // Rows without files.
    expect(await sinceOf(bucket, "file_lost")).toBe(endOf(verify));
  });

  test("and was seen before runs kept it has no moment, until it has gone and come again", async () => {
    const bucket = await createBucket(lab, { objects: ["a.jpg"] });
    await analyze(bucket);
    await lab.sql`update image_sync.runs set report = report - 'since' where bucket_id = ${bucket}`;
    expect(await findingOf(bucket, "missing")).not.toHaveProperty("since");
    await analyze(bucket);
    await analyze(bucket);
    expect(await findingOf(bucket, "missing")).not.toHaveProperty("since");
    await runToEnd(lab, bucket);
    await addObjects(lab, bucket, ["b.jpg"]);
    const again = await analyze(bucket);
    expect(await sinceOf(bucket, "missing")).toBe(endOf(again));
  });

  test("costs the run nothing where it cannot be told", async () => {
    const bucket = await createBucket(lab, { objects: ["a.jpg"] });
    await analyze(bucket);
    await lab
      .sql`update image_sync.runs set report = report || '{"since": "broken"}' where bucket_id = ${bucket}`;
    expect((await analyze(bucket)).state).toBe("succeeded");
    expect(await findingOf(bucket, "missing")).toMatchObject({ count: 1 });
  });
});

describe("what the facts tell", () => {
  test("a sync that failed: since the first of those in a row that did", async () => {
    const bucket = await createBucket(lab, { objects: numberedNames(2) });
    await runToEnd(lab, bucket);
    const [moments] = await lab.sql`
      with failed as (
        insert into image_sync.runs (bucket_id, mode, trigger, started_at, finished_at, outcome, stop_reason, error)
        select ${bucket}, 'sync', 'schedule', now() + make_interval(secs => n), now() + make_interval(secs => n), 'failed', 'internal', '{"code": "internal", "title": "It failed", "detail": "so"}'
        from generate_series(1, 3) as n
        returning finished_at
      )
      select to_jsonb(min(finished_at)) as first from failed`;
    expect(await sinceOf(bucket, "last_run_failed")).toBe(moments?.["first"]);
  });

  test("a bucket that is gone: since the first sync in a row that did not find it", async () => {
    const bucket = await createBucket(lab, { objects: [] });
    await lab.sql.begin(async (sql) => {
      await sql`select set_config('storage.allow_delete_query', 'true', true)`;
      await sql`delete from storage.buckets where id = ${bucket}`;
    });
    expect(await findingOf(bucket, "bucket_missing")).not.toHaveProperty("since");
    await lab.sql`
      insert into image_sync.runs (bucket_id, mode, trigger, started_at, finished_at, outcome, stop_reason, error)
      values (${bucket}, 'sync', 'schedule', '2026-01-02T02:00:00Z', '2026-01-02T02:00:01Z', 'failed', 'bucket_missing', '{"code": "bucket_missing", "title": "Gone", "detail": "so"}')`;
    expect(Date.parse(await sinceOf(bucket, "bucket_missing") ?? "")).toBe(
      Date.parse("2026-01-02T02:00:01Z"),
    );
  });

  test("a URL that died after the last count: since it died", async () => {
    const bucket = await createBucket(lab, { objects: numberedNames(2) });
    await runToEnd(lab, bucket);
    const died = "2026-01-02T02:00:00+00:00";
    await lab.sql`
      update image_sync.runs set report = jsonb_set(report, '{records,soonest_expiry}', to_jsonb(${died}::text))
      where bucket_id = ${bucket}`;
    expect(await sinceOf(bucket, "expired")).toBe(died);
  });

  test("a night that did not come: since it was due", async () => {
    const bucket = await createBucket(lab, { objects: numberedNames(2), settings: { nightly: true } });
    await runToEnd(lab, bucket);
    await lab.sql`
      update image_sync.runs set started_at = '2026-01-02T01:59:00Z', finished_at = '2026-01-02T02:00:01Z'
      where bucket_id = ${bucket}`;
    expect(Date.parse(await sinceOf(bucket, "no_recent_sync") ?? "")).toBe(
      Date.parse("2026-01-03T02:00:00Z"),
    );
  });

  test("where nobody knows, nothing is said", async () => {
    const bucket = await createBucket(lab, { objects: numberedNames(2) });
    await runToEnd(lab, bucket);
    await lab.sql`update storage.buckets set public = true where id = ${bucket}`;
    expect(await findingOf(bucket, "bucket_public")).not.toHaveProperty("since");
  });
});

test("the report for a person says it below the finding", async () => {
  const bucket = await createBucket(lab, { objects: ["a.jpg"] });
  const run = await analyze(bucket);
  const minute = endOf(run).slice(0, 16).replace("T", " ");
  expect(renderReport(await readReport(lab, bucket))).toMatch(
    new RegExp(`\\[missing\\]\\n {4}Seen since ${minute} GMT, (just now|\\d+ s ago)\\n`),
  );
});
