import { afterAll, beforeAll, describe, expect, test } from "vitest";
import {
  createBucket,
  type Lab,
  numberedNames,
  openLab,
  openRun,
  readProblem,
  runToEnd,
} from "../sync/support/lab.ts";

let lab: Lab;
let bucket: string;
beforeAll(async () => {
  lab = await openLab();
  bucket = await createBucket(lab, { objects: numberedNames(3) });
});
afterAll(() => lab?.close());

const post = (body: BodyInit, headers: Record<string, string> = {}) =>
  lab.call({ method: "POST", body, headers: { apikey: lab.target.secretKey, ...headers } });

/** Everything that a refused request must leave as it is. */
async function readState(): Promise<unknown> {
  const [state] = await lab.sql`
    select
      (select jsonb_agg(to_jsonb(r) - 'moved_at' order by r.id) from image_sync.runs r) as runs,
      (select count(*) from image_sync.chunks) as chunks,
      (select jsonb_agg(to_jsonb(p) order by p.id) from public.part_images p) as records,
      (select count(*) from image_sync.archive) as archive`;
  return state;
}

/** The problem that a request is refused with; it must have changed nothing. */
async function refusalOf(request: () => Promise<Response>) {
  const before = await readState();
  const response = await request();
  const problem = await readProblem(response);
  expect(await readState()).toEqual(before);
  expect(JSON.stringify(problem)).not.toMatch(/\bat .*\.ts:\d|node_modules|sb_secret_(?!\.\.\.)/);
  return { ...problem, response };
}

describe("a caller without one of the project's secret keys", () => {
  const keys: readonly [string, () => Record<string, string>][] = [
    ["with no key", () => ({})],
    ["with an empty key", () => ({ apikey: "" })],
    ["with a wrong key", () => ({ apikey: "sb_secret_wrong" })],
    ["with a key that begins like the right one", () => ({ apikey: lab.target.secretKey.slice(0, -1) })],
    ["with the right key and more", () => ({ apikey: `${lab.target.secretKey}x` })],
    ["with the publishable key", () => ({ apikey: lab.target.publishableKey ?? "sb_publishable_unknown" })],
    [
      "with the publishable key as a bearer token",
      () => ({ authorization: `Bearer ${lab.target.publishableKey ?? "none"}` }),
    ],
    ["with a forged service_role token", () => ({
      authorization: `Bearer ${["{}", '{"role":"service_role"}', "x"].map((part) => btoa(part)).join(".")}`,
    })],
  ];
  const requests: readonly [string, RequestInit & { query?: string }][] = [
    ["POST", { method: "POST", body: "{}" }],
    ["POST with a body that is no JSON", { method: "POST", body: "{" }],
    ["GET", { method: "GET" }],
    ["DELETE", { method: "DELETE", query: `?run=${crypto.randomUUID()}` }],
  ];
  test.each(keys)("%s is refused with 401, whatever is asked, and nothing happens", async (_, headers) => {
    for (const [, init] of requests) {
      // Not lab.call: it adds the secret key.
      const request = () =>
        fetch(`${lab.target.url}/functions/v1/image-sync${init.query ?? ""}`, {
          method: init.method ?? "GET",
          headers: headers(),
          ...(init.body === undefined ? {} : { body: init.body }),
        });
      expect(await refusalOf(request)).toMatchObject({
        status: 401,
        code: "unauthorized",
        detail: expect.stringContaining("apikey"),
      });
    }
  });
});

describe("a POST is refused, with a code that says what was wrong, for", () => {
  const uuid = crypto.randomUUID();
  test.each([
    ["a body that is no JSON", "{mode", "invalid_json", /JSON/],
    ["half a body", '{"mode": "sync"', "invalid_json", /JSON/],
    ["a body that is no UTF-8", new Uint8Array([0x7b, 0xff, 0x7d]), "invalid_json", /UTF-8/],
    ["a list", "[]", "invalid_body", /object/],
    ["a string", '"sync"', "invalid_body", /object/],
    ["a number", "1", "invalid_body", /object/],
    ["null", "null", "invalid_body", /object/],
    [
      "an unknown mode",
      '{"mode": "delete everything"}',
      "unknown_mode",
      /sync, analyze, verify, cleanup, restore/,
    ],
    ["a mode that is no text", '{"mode": 7}', "unknown_mode", /mode/],
    ["a misspelled field", '{"mod": "analyze"}', "invalid_body", /mod/],
    ["a bucket that is no text", '{"bucket": 7}', "invalid_body", /bucket/],
    ["an empty bucket", '{"bucket": ""}', "invalid_body", /bucket/],
    ["a bucket with a null character", '{"bucket": "a\\u0000b"}', "invalid_body", /bucket/],
    ["another renew than all", '{"renew": "some"}', "invalid_body", /renew/],
    [
      "renew in a mode that signs nothing",
      '{"mode": "analyze", "renew": "all"}',
      "invalid_body",
      /renew.*sync/,
    ],
    ["confirm in a sync", `{"confirm": "${uuid}"}`, "invalid_body", /confirm.*cleanup/],
    ["a confirm that is no run id", '{"mode": "cleanup", "confirm": "yes"}', "invalid_body", /confirm/],
    ["a negative limit", '{"mode": "cleanup", "max_delete_count": -1}', "invalid_body", /max_delete_count/],
    [
      "a fraction above 1",
      '{"mode": "cleanup", "max_delete_fraction": 10}',
      "invalid_body",
      /max_delete_fraction/,
    ],
    ["a restore of nothing", '{"mode": "restore"}', "invalid_body", /restore/],
    ["a wake-up with more to say", `{"run": "${uuid}", "mode": "sync"}`, "invalid_body", /mode/],
    ["a wake-up of no run id", '{"run": 1}', "invalid_body", /run/],
  ])("%s", async (_, body, code, detail) => {
    expect(await refusalOf(() => post(body))).toMatchObject({
      status: 400,
      code: expect.stringMatching(code),
      detail: expect.stringMatching(detail),
    });
  });

  test("a body over 64 KiB, told or not", async () => {
    const body = JSON.stringify({ bucket: "b".repeat(65_536) });
    const limit = { status: 413, code: "body_too_large", limit_bytes: 65_536 };
    expect(await refusalOf(() => post(body))).toMatchObject(limit);
    const streamed = () => {
      const stream = new Blob([body]).stream();
      return lab.call({ method: "POST", body: stream, duplex: "half" } as RequestInit);
    };
    expect(await refusalOf(streamed)).toMatchObject(limit);
  });

  test("a bucket without settings", async () => {
    const problem = await refusalOf(() => post('{"bucket": "unheard-of"}'));
    expect(problem).toMatchObject({
      status: 404,
      code: "unknown_bucket",
      detail: expect.stringContaining("insert into image_sync.settings"),
    });
  });

  test("a wake-up of a run that never was", async () => {
    const problem = await refusalOf(() => post(JSON.stringify({ run: uuid })));
    expect(problem).toMatchObject({
      status: 404,
      code: "unknown_run",
      detail: expect.stringContaining(uuid),
    });
  });

  test.each(["wait=121", "wait=-1", "wait=abc", "wait=1.5", "wait="])("Prefer: %s", async (prefer) => {
    expect(await refusalOf(() => post(JSON.stringify({ bucket }), { prefer }))).toMatchObject({
      status: 400,
      code: "invalid_wait",
    });
  });
});

describe("a GET is refused for", () => {
  test.each([
    ["a bucket without settings", "?bucket=unheard-of", 404, "unknown_bucket"],
    ["a run that never was", `?run=${crypto.randomUUID()}`, 404, "unknown_run"],
    ["a run that is no run id", "?run=7", 400, "invalid_query"],
    ["two questions at once", `?run=${crypto.randomUUID()}&file=a.jpg`, 400, "invalid_query"],
    ["a question that it does not know", "?runs=all", 400, "invalid_query"],
    ["a file without a name", "?file=", 400, "invalid_query"],
  ])("%s", async (_, query, status, code) => {
    expect(await refusalOf(() => lab.call({ query }))).toMatchObject({ status, code });
  });

  test("a path that is not the function's", async () => {
    expect(await refusalOf(() => lab.call({ query: "/deeper" }))).toMatchObject({
      status: 404,
      code: "unknown_path",
    });
  });
});

test.each(["PUT", "PATCH"])("%s is refused with the methods that are allowed", async (method) => {
  const { response, ...problem } = await refusalOf(() => lab.call({ method, body: "{}" }));
  expect(problem).toMatchObject({ status: 405, code: "method_not_allowed" });
  expect(response.headers.get("allow")).toMatch(/GET.*POST.*DELETE/);
});

describe("a DELETE is refused for", () => {
  test("no run, a run that is no run id and one that never was", async () => {
    expect(await refusalOf(() => lab.call({ method: "DELETE" }))).toMatchObject({
      status: 400,
      code: "invalid_query",
    });
    expect(await refusalOf(() => lab.call({ method: "DELETE", query: "?run=7" }))).toMatchObject({
      status: 400,
      code: "invalid_query",
    });
    const query = `?run=${crypto.randomUUID()}`;
    expect(await refusalOf(() => lab.call({ method: "DELETE", query }))).toMatchObject({
      status: 404,
      code: "unknown_run",
    });
  });

  test("a run that is finished", async () => {
    const run = await runToEnd(lab, bucket);
    const query = `?run=${run.id}`;
    expect(await refusalOf(() => lab.call({ method: "DELETE", query }))).toMatchObject({
      status: 409,
      code: "run_finished",
    });
  });
});

test("a run that is open is refused nothing: POST joins it and says so", async () => {
  const mine = await createBucket(lab);
  const open = await openRun(lab, mine);
  const response = await post(JSON.stringify({ bucket: mine }));
  expect([response.status, await response.json()]).toMatchObject([202, { id: open.id, created: false }]);
});
