import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { Fault, Route } from "./fault_proxy.ts";
import {
  createBucket,
  fileNames,
  finishedRun,
  lastRun,
  openScene,
  passTime,
  poll,
  post,
  readEndState,
  runJob,
  type Scene,
  startSync,
} from "./support/scene.ts";

let scene: Scene;
beforeAll(async () => {
  scene = await openScene();
});
afterAll(() => scene?.close());

const files = fileNames(5);

type Short = { readonly name: string; readonly fault: Fault; readonly times?: number };

const inBody = (statusCode: string): Fault => ({
  kind: "status",
  status: 400,
  body: { statusCode, error: "Injected", message: "injected" },
});

const shortFaults: readonly Short[] = [
  { name: "429 with Retry-After", fault: { kind: "status", status: 429, headers: { "retry-after": "1" } } },
  {
    name: "429 without Retry-After",
    fault: { kind: "status", status: 429, body: { statusCode: "429", error: "SlowDown" } },
  },
  ...[500, 502, 503, 504, 544].map((status): Short => ({
    name: `${status}`,
    fault: { kind: "status", status },
    times: 2,
  })),
  {
    name: "a connection cut before the server did the work",
    fault: { kind: "cut", when: "before" },
    times: 2,
  },
  { name: "a connection cut after the server did the work", fault: { kind: "cut", when: "after" }, times: 2 },
  { name: "an answer that breaks off", fault: { kind: "truncate" } },
];

async function syncWith(bucket: string, faults: readonly (Short & { readonly route: Route })[]) {
  const met = faults.map(({ route, fault, times = 1 }) => scene.proxy.add({ bucket, route, fault, times }));
  await startSync(scene, bucket);
  const run = await finishedRun(scene, bucket);
  return { run, met: met.map((count) => count()) };
}

describe("a fault that passes costs a retry and nothing else", () => {
  const cases = (["sign", "advance"] as const).flatMap((route) =>
    shortFaults.map((fault) => ({ ...fault, route }))
  );
  test.concurrent.each([
    ...cases,
    ...["429", "500", "503", "504", "544"].map((status) => ({
      name: `400 with statusCode ${status} in the body`,
      fault: inBody(status),
      route: "sign" as const,
    })),
    {
      name: "no answer for longer than an attempt may take",
      fault: { kind: "delay", ms: 16_000 } as const,
      route: "sign" as const,
    },
    {
      name: "no answer for longer than an attempt may take",
      fault: { kind: "delay", ms: 16_000 } as const,
      route: "advance" as const,
    },
  ])("$route: $name", { timeout: 90_000 }, async ({ route, fault, ...rest }) => {
    const times = "times" in rest ? rest.times ?? 1 : 1;
    const bucket = await createBucket(scene, { files });
    const { run, met } = await syncWith(bucket, [{ name: "", route, fault, times }]);
    expect(met).toEqual([times]);
    expect(run).toMatchObject({
      state: "succeeded",
      balanced: true,
      totals: { images: 5, inserted: 5, signed: 5, failed: 0 },
    });
    expect(run.totals["retries"]).toBeGreaterThan(0);
    expect(await readEndState(scene, bucket)).toMatchObject({
      badUrls: [],
      runs: 1,
      ledgerErrors: 0,
      leases: 0,
    });
  });

  test.each(["start", "finish"] as const)("%s: an answer that got lost is asked for again", async (route) => {
    const bucket = await createBucket(scene, { files });
    const { run, met } = await syncWith(bucket, [{ name: "", route, fault: { kind: "cut", when: "after" } }]);
    expect(met).toEqual([1]);
    expect(run).toMatchObject({ state: "succeeded", totals: { signed: 5 } });
    expect(await readEndState(scene, bucket)).toMatchObject({ badUrls: [], runs: 1, leases: 0 });
  });
});

type Item = { path: string | null; error: string | null; signedURL: string | null };

const rewriteItems = (change: (items: Item[]) => Item[]): Fault => ({
  kind: "rewrite",
  rewrite: (body) => JSON.stringify(change(JSON.parse(body) as Item[])),
});

describe("an answer of Storage that is not what was asked for", () => {
  test("in another order gives every file its own URL all the same", async () => {
    const bucket = await createBucket(scene, { files, settings: { chunk_size: 1000 } });
    const { run } = await syncWith(bucket, [{
      name: "",
      route: "sign",
      fault: rewriteItems((items) => items.reverse()),
    }]);
    expect(run).toMatchObject({ state: "succeeded", totals: { signed: 5 } });
    expect((await readEndState(scene, bucket)).badUrls).toEqual([]);
  });

  test.each([
    { name: "with fewer items", fault: rewriteItems((items) => items.slice(1)) },
    {
      name: "with an error for one item",
      fault: rewriteItems((items) =>
        items.map((item, index) =>
          index > 0 ? item : { path: item.path, error: "not \0 today \ud800", signedURL: null }
        )
      ),
    },
    {
      name: "with a token for one item that is none",
      fault: rewriteItems((items) =>
        items.map((item, index) => index > 0 ? item : { ...item, signedURL: "/object/sign/x?token=no" })
      ),
    },
  ])("$name costs that item and names it; the next run repairs it", async ({ fault }) => {
    const bucket = await createBucket(scene, { files, settings: { chunk_size: 1000 } });
    const { run } = await syncWith(bucket, [{ name: "", route: "sign", fault }]);
    expect(run).toMatchObject({
      state: "partial",
      stop_reason: "items_failed",
      balanced: true,
      totals: { signed: 4, failed: 1 },
    });
    expect(run.problems).toMatchObject([{
      code: "signing_failed",
      name: expect.stringMatching(/^00000\d\.jpg$/),
    }]);
    expect((await syncWith(bucket, [])).run).toMatchObject({
      state: "succeeded",
      totals: { inserted: 0, signed: 1 },
    });
    expect((await readEndState(scene, bucket)).badUrls).toEqual([]);
  });

  test.each(
    [
      { route: "sign", name: "garbled" },
      { route: "advance", name: "garbled" },
    ] as const,
  )("$route: $name is not believed, and the run comes through", async ({ route }) => {
    const bucket = await createBucket(scene, { files });
    scene.proxy.add({ bucket, route, fault: { kind: "garble" } });
    await startSync(scene, bucket);
    await poll(async () => {
      if ((await lastRun(scene, bucket))?.state !== "open") return true;
      await passTime(scene, bucket);
      await new Promise((resolve) => setTimeout(resolve, 1500));
      return false;
    }, { what: "the run ended" });
    expect(await lastRun(scene, bucket)).toMatchObject({
      state: "succeeded",
      totals: { inserted: 5, signed: 5 },
    });
    expect(await readEndState(scene, bucket)).toMatchObject({ badUrls: [], ledgerErrors: 0, leases: 0 });
  });
});

const down: Fault = { kind: "status", status: 503 };
const forEver = 1_000_000;

describe("a fault that lasts", { timeout: 120_000 }, () => {
  test.concurrent("in signing: the run is failed and says so, the next night repairs everything", async () => {
    const bucket = await createBucket(scene, {
      files,
      settings: { chunk_size: 1000, max_attempts: 1, nightly: true },
    });
    scene.proxy.add({ bucket, route: "sign", fault: down, times: forEver });
    await startSync(scene, bucket);
    expect(await finishedRun(scene, bucket)).toMatchObject({
      state: "failed",
      stop_reason: "signing_impossible",
      balanced: true,
      totals: { inserted: 5, records: 5, signed: 0, failed: 5 },
    });
    scene.proxy.clear(bucket);
    await runJob(scene, "image-sync-nightly");
    await poll(async () => (await lastRun(scene, bucket))?.state === "succeeded", {
      what: "the next night succeeded",
    });
    expect((await readEndState(scene, bucket)).badUrls).toEqual([]);
  });

  test.concurrent("for one chunk: the run is partial and names it, the next run repairs it", async () => {
    const bucket = await createBucket(scene, { files, settings: { max_attempts: 1 } });
    scene.proxy.add({ bucket, route: "sign", fault: down, times: forEver, containing: files[2] ?? "" });
    await startSync(scene, bucket);
    const run = await finishedRun(scene, bucket);
    expect(run).toMatchObject({
      state: "partial",
      stop_reason: "dead_chunks",
      balanced: true,
      // What could not be signed has its record all the same.
      totals: { inserted: 5, records: 5, signed: 3, failed: 2 },
    });
    expect(run.problems).toMatchObject([{ name: "chunk 2", code: "signing_failed" }]);
    scene.proxy.clear(bucket);
    expect((await syncWith(bucket, [])).run).toMatchObject({ state: "succeeded", totals: { signed: 2 } });
    expect((await readEndState(scene, bucket)).badUrls).toEqual([]);
  });

  test.concurrent("in the database's API: the worker gives up, the run stays open for the watchdog, which finishes it", async () => {
    const bucket = await createBucket(scene, { files });
    const met = scene.proxy.add({ bucket, route: "advance", fault: down, times: forEver });
    await startSync(scene, bucket);
    await poll(() => Promise.resolve(met() >= 6), { what: "the worker gave up", timeoutMs: 60_000 });
    scene.proxy.clear(bucket);
    expect(await lastRun(scene, bucket)).toMatchObject({ state: "open" });
    await passTime(scene, bucket);
    expect(await finishedRun(scene, bucket)).toMatchObject({
      state: "succeeded",
      totals: { inserted: 5, signed: 5 },
    });
  });

  test.concurrent("with a Retry-After beyond the budget is not waited for", async () => {
    const bucket = await createBucket(scene, { files, settings: { max_attempts: 1 } });
    const fault: Fault = { kind: "status", status: 429, headers: { "retry-after": "3600" } };
    scene.proxy.add({ bucket, route: "sign", fault, times: forEver });
    const started = Date.now();
    await startSync(scene, bucket);
    expect(await finishedRun(scene, bucket)).toMatchObject({ state: "failed" });
    expect(Date.now() - started).toBeLessThan(25_000);
  });

  test.concurrent("in opening a run: the caller is told 503, and nothing is left behind", async () => {
    const bucket = await createBucket(scene, { files });
    scene.proxy.add({ bucket, route: "start", fault: down, times: forEver });
    const response = await post(scene, { bucket });
    expect([response.status, await response.json()]).toMatchObject([503, { code: "database_unavailable" }]);
    expect(await lastRun(scene, bucket)).toBeUndefined();
  });
});
