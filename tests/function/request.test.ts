import { describe, expect, test } from "vitest";
import { MAX_BODY_BYTES, startRequestSchema } from "../../supabase/functions/image-sync/contract.ts";
import { ProblemError } from "../../supabase/functions/image-sync/problem.ts";
import { parse, readJson, readWaitSeconds } from "../../supabase/functions/image-sync/request.ts";

const post = (body: BodyInit | null, headers: Record<string, string> = {}) =>
  new Request("http://127.0.0.1/", { method: "POST", body, headers });

const codeOf = async (act: () => unknown) => {
  try {
    await act();
  } catch (error) {
    if (error instanceof ProblemError) return [error.problem.status, error.problem.code];
    throw error;
  }
  return undefined;
};

describe("a body", () => {
  test("is read as JSON, and none is an empty object", async () => {
    expect(await readJson(post('{"mode": "analyze"}'))).toEqual({ mode: "analyze" });
    expect(await readJson(post(null))).toEqual({});
    expect(await readJson(post(" \n"))).toEqual({});
  });

  test("may have 64 KiB and not a byte more", async () => {
    const fitting = JSON.stringify("x".repeat(MAX_BODY_BYTES - 2));
    expect(await readJson(post(fitting))).toHaveLength(MAX_BODY_BYTES - 2);
    expect(await codeOf(() => readJson(post(`${fitting} `)))).toEqual([413, "body_too_large"]);
  });

  test("that never ends is read no further than that", async () => {
    let sent = 0;
    const endless = new ReadableStream<Uint8Array>({
      pull(stream) {
        sent += 1024;
        stream.enqueue(new Uint8Array(1024).fill(32));
      },
    });
    const request = new Request(
      "http://127.0.0.1/",
      { method: "POST", body: endless, duplex: "half" } as RequestInit,
    );
    expect(await codeOf(() => readJson(request))).toEqual([413, "body_too_large"]);
    expect(sent).toBeLessThan(2 * MAX_BODY_BYTES);
  });

  test("that is no JSON or no UTF-8 is a problem", async () => {
    expect(await codeOf(() => readJson(post("{")))).toEqual([400, "invalid_json"]);
    expect(await codeOf(() => readJson(post(new Uint8Array([34, 0xff, 34]))))).toEqual([400, "invalid_json"]);
  });
});

test("a wrong shape names every field that is wrong", () => {
  let problem: unknown;
  try {
    parse(startRequestSchema, { bucket: 1, renew: "some", extra: true }, "body");
  } catch (error) {
    problem = (error as ProblemError).problem;
  }
  expect(problem).toMatchObject({
    status: 400,
    code: "invalid_body",
    errors: expect.arrayContaining([
      { field: "bucket", message: expect.any(String) },
      { field: "renew", message: expect.any(String) },
    ]),
  });
});

describe("Prefer", () => {
  test.each([
    [undefined, 0],
    ["respond-async", 0],
    ["wait=0", 0],
    ["wait=5", 5],
    ["respond-async, wait=120", 120],
    ["wait=7; x=1", 7],
    ['wait="8"', 8],
    ["Wait=9", 9],
    ["await=9", 0],
  ])("%s means %i seconds", (prefer, seconds) => {
    expect(readWaitSeconds(post(null, prefer === undefined ? {} : { prefer }))).toBe(seconds);
  });

  test.each(["wait=121", "wait=-1", "wait=1e9", "wait=0x10", "wait=99999999999", "wait="])(
    "%s is a problem",
    async (prefer) => {
      expect(await codeOf(() => readWaitSeconds(post(null, { prefer })))).toEqual([400, "invalid_wait"]);
    },
  );
});
