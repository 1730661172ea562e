import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { reportSchema, type Run, runSchema } from "../../supabase/functions/image-sync/contract.ts";
import { NOTHING_SIGNED } from "../../supabase/functions/image-sync/database.ts";
import {
  createBucket,
  type Lab,
  numberedNames,
  openLab,
  openRun,
  readRecords,
  runToEnd,
  waitForEnd,
} from "../sync/support/lab.ts";

let lab: Lab;
beforeAll(async () => {
  lab = await openLab();
});
afterAll(() => lab?.close());

const post = (body: BodyInit | null, headers: Record<string, string> = {}) =>
  lab.call({ method: "POST", body, headers: { apikey: lab.target.secretKey, ...headers } });
const readRun = async (response: Response): Promise<Run & { created?: unknown }> =>
  runSchema.parse(await response.json());

describe("a POST", () => {
  test("is answered at once with the run and where to find it", async () => {
    const bucket = await createBucket(lab, { objects: numberedNames(5) });
    const response = await post(JSON.stringify({ bucket }));
    const run = await readRun(response);
    expect(response.status).toBe(202);
    expect(run).toMatchObject({ bucket_id: bucket, mode: "sync", trigger: "request", created: true });
    expect(response.headers.get("location")).toBe(`/functions/v1/image-sync?run=${run.id}`);
    const found = await fetch(new URL(response.headers.get("location") ?? "", lab.target.url), {
      headers: { apikey: lab.target.secretKey },
    });
    expect((await readRun(found)).id).toBe(run.id);
    expect(await waitForEnd(lab, run.id)).toMatchObject({ state: "succeeded", totals: { signed: 5 } });
  });

  test.each([["no body", null], ["an empty body", ""], ["an empty object", "{}"]])(
    "with %s starts a sync of part-images",
    async (_, body) => {
      const response = await post(body);
      const run = await readRun(response);
      expect([response.status, run]).toMatchObject([202, { bucket_id: "part-images", mode: "sync" }]);
      await waitForEnd(lab, run.id);
    },
  );

  test("that waits is answered with 200 and the finished run", async () => {
    const bucket = await createBucket(lab, { objects: numberedNames(5) });
    const response = await post(JSON.stringify({ bucket }), { prefer: "respond-async, wait=30" });
    expect([response.status, await readRun(response)]).toMatchObject([200, {
      state: "succeeded",
      totals: { signed: 5 },
    }]);
  });

  test("that waits in vain is answered with 202 and the open run", async () => {
    // The one chunk left waits an hour for its next attempt.
    const bucket = await createBucket(lab, {
      settings: { retry_delay: "1 hour" },
      objects: numberedNames(5),
    });
    const { id } = await openRun(lab, bucket);
    const lease = crypto.randomUUID();
    await lab.database.advance({ run: id, worker: crypto.randomUUID(), lease, closing: null });
    const error = { code: "signing_failed", title: "Signing failed", detail: "Storage is away" };
    const closing = {
      lease,
      number: 1,
      ...NOTHING_SIGNED,
      error,
      storageCalls: 1,
      retries: 0,
    };
    await lab.database.advance({ run: id, worker: crypto.randomUUID(), lease: null, closing });
    const response = await post(JSON.stringify({ bucket }), { prefer: "wait=1" });
    expect([response.status, await readRun(response)]).toMatchObject([202, {
      id,
      state: "open",
      created: false,
    }]);
  });

  test("that wakes a finished run starts nothing", async () => {
    const bucket = await createBucket(lab, { objects: numberedNames(5) });
    const run = await runToEnd(lab, bucket);
    const records = await readRecords(lab, bucket);
    const response = await post(JSON.stringify({ run: run.id }));
    expect([response.status, await readRun(response)]).toMatchObject([202, {
      id: run.id,
      state: "succeeded",
      created: false,
    }]);
    expect(await lab.sql`select from image_sync.runs where bucket_id = ${bucket}`).toHaveLength(1);
    expect(await readRecords(lab, bucket)).toEqual(records);
  });
});

describe("a GET", () => {
  test("answers the report, before and after the first run", async () => {
    const bucket = await createBucket(lab, { objects: numberedNames(5) });
    const get = async () => reportSchema.parse(await (await lab.call({ query: `?bucket=${bucket}` })).json());
    expect(await get()).toMatchObject({
      healthy: false,
      measured_at: null,
      bucket: { id: bucket, images: null },
      last_runs: { sync: null },
    });
    const run = await runToEnd(lab, bucket);
    expect(await get()).toMatchObject({
      healthy: true,
      bucket: { objects: 5, images: 5, bytes: 5000, by_extension: { jpg: 5 } },
      records: { total: 5, signed: 5, unsigned: 0, expired: 0 },
      coverage: { recorded: 1, signed: 1 },
      last_runs: { sync: { id: run.id } },
    });
  });

  test("answers a run with its progress while it is open", async () => {
    const bucket = await createBucket(lab, { settings: { chunk_size: 5 }, objects: numberedNames(20) });
    const { id } = await openRun(lab, bucket);
    const worker = crypto.randomUUID();
    const [first, second] = [crypto.randomUUID(), crypto.randomUUID()];
    await lab.database.advance({ run: id, worker, lease: first, closing: null });
    const closing = {
      lease: first,
      number: 1,
      ...NOTHING_SIGNED,
      error: null,
      storageCalls: 1,
      retries: 0,
    };
    await lab.database.advance({ run: id, worker, lease: second, closing });
    expect(await readRun(await lab.call({ query: `?run=${id}` }))).toMatchObject({
      state: "open",
      finished_at: null,
      progress: { done: 5, total_estimate: 20, percent: 25 },
      chunks: 2,
    });
  });

  test("answers 304 to who knows the answer already, and anew when it changed", async () => {
    const bucket = await createBucket(lab, { objects: numberedNames(5) });
    const { id } = await runToEnd(lab, bucket);
    for (const query of [`?run=${id}`, `?bucket=${bucket}`]) {
      const etag = (await lab.call({ query })).headers.get("etag") ?? "";
      const headers = { apikey: lab.target.secretKey, "if-none-match": etag };
      expect((await lab.call({ query, headers })).status).toBe(304);
      expect((await lab.call({ query, headers: { ...headers, "if-none-match": 'W/"other"' } })).status).toBe(
        200,
      );
      expect((await lab.call({ query, headers: { ...headers, accept: "text/plain" } })).status).toBe(200);
    }
    const before = (await lab.call({ query: `?bucket=${bucket}` })).headers.get("etag") ?? "";
    await runToEnd(lab, bucket);
    const headers = { apikey: lab.target.secretKey, "if-none-match": before };
    expect((await lab.call({ query: `?bucket=${bucket}`, headers })).status).toBe(200);
  });

  test("answers a person in plain text", async () => {
    const bucket = await createBucket(lab, { objects: numberedNames(5) });
    const { id } = await runToEnd(lab, bucket);
    for (const query of [`?bucket=${bucket}`, `?run=${id}`, `?bucket=${bucket}&file=000001.jpg`]) {
      const response = await lab.call({
        query,
        headers: { apikey: lab.target.secretKey, accept: "text/plain" },
      });
      const text = await response.text();
      expect([response.status, response.headers.get("content-type")]).toEqual([
        200,
        "text/plain; charset=utf-8",
      ]);
      expect(text).toContain(query.includes("file") ? "000001.jpg" : bucket);
      expect(text).not.toMatch(/token=|eyJ|sb_secret/);
    }
  });

  test("never answers with a signed URL or a key", async () => {
    const bucket = await createBucket(lab, { settings: { probe_size: 3 }, objects: numberedNames(5) });
    const { id } = await runToEnd(lab, bucket);
    for (const query of [`?bucket=${bucket}`, `?run=${id}`, `?bucket=${bucket}&file=000001.jpg`]) {
      expect(await (await lab.call({ query })).text()).not.toMatch(/token=|eyJ|sb_secret/);
    }
  });
});

test("a DELETE cancels an open run, and doing it again says the same", async () => {
  const bucket = await createBucket(lab, { objects: numberedNames(5) });
  const { id } = await openRun(lab, bucket);
  for (let time = 0; time < 2; time++) {
    const response = await lab.call({ method: "DELETE", query: `?run=${id}` });
    expect([response.status, await readRun(response)]).toMatchObject([200, {
      id,
      state: "cancelled",
      stop_reason: "cancelled",
    }]);
  }
  expect(await runToEnd(lab, bucket)).toMatchObject({ state: "succeeded", totals: { signed: 5 } });
});
