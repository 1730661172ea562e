import { createServer, type Server } from "node:http";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { createOutbound, type OutboundOptions } from "../../supabase/functions/image-sync/outbound.ts";

const storageUrl = "http://127.0.0.1/storage/v1/object/sign/part-images";
const rpcUrl = "http://127.0.0.1/rest/v1/rpc/image_sync_advance";

beforeEach(() => {
  vi.spyOn(console, "log").mockImplementation(() => {});
});
afterEach(() => {
  vi.restoreAllMocks();
  vi.useRealTimers();
});

type Answer = Response | Error | ((signal: AbortSignal) => Promise<Response>);

/** A server that gives these answers in turn, and then the last one for ever. */
function serverOf(...answers: readonly Answer[]) {
  const times: number[] = [];
  const bodies: unknown[] = [];
  const send = (_input: RequestInfo | URL, init?: RequestInit): Promise<Response> => {
    const answer = answers[Math.min(times.length, answers.length - 1)];
    times.push(Date.now());
    bodies.push(init?.body);
    if (answer instanceof Error) return Promise.reject(answer);
    if (answer instanceof Response) return Promise.resolve(answer.clone());
    if (answer === undefined || !init?.signal) return Promise.reject(new Error("The test has no answer"));
    return answer(init.signal);
  };
  return { send, times, bodies };
}

const status = (code: number, body: unknown = { code }, headers: Record<string, string> = {}) =>
  new Response(JSON.stringify(body), { status: code, headers });

const quick = (send: typeof fetch, options: OutboundOptions = {}) =>
  createOutbound({ fetch: send, firstDelayMs: 1, ...options });

/** Never answers until it is told to stop. */
const silence = (signal: AbortSignal) =>
  new Promise<Response>((_, reject) => signal.addEventListener("abort", () => reject(signal.reason)));

describe("a request", () => {
  test("that is answered is made once and its answer handed on whole", async () => {
    const server = serverOf(status(200, { a: 1 }, { "x-header": "kept" }));
    const response = await quick(server.send).fetch(rpcUrl, { method: "POST", body: "{}" });
    expect([response.status, await response.json(), response.headers.get("x-header")]).toEqual([
      200,
      { a: 1 },
      "kept",
    ]);
    expect(server.bodies).toEqual(["{}"]);
  });

  test.each([408, 429, 500, 502, 503, 504, 520, 522, 524, 544])("is made again after a %i", async (code) => {
    const server = serverOf(status(code), status(200));
    const response = await quick(server.send).fetch(rpcUrl, { method: "POST", body: "the same" });
    expect([response.status, server.bodies]).toEqual([200, ["the same", "the same"]]);
  });

  test.each([204, 400, 402, 403, 404, 405, 409, 413, 422, 501, 505])(
    "is made once when a %i answers it",
    async (code) => {
      const server = serverOf(new Response(null, { status: code }));
      expect((await quick(server.send).fetch(rpcUrl)).status).toBe(code);
      expect(server.times).toHaveLength(1);
    },
  );

  test.each([["a key that is refused", 401, {}], ["a function that is not known", 404, {
    code: "PGRST202",
  }]])(
    "is made once more, a second later, after %s",
    async (_what, code, body) => {
      vi.useFakeTimers();
      const server = serverOf(status(code, body), status(200));
      const request = createOutbound({ fetch: server.send }).fetch(rpcUrl, {
        method: "POST",
        body: "the same",
      });
      await vi.advanceTimersByTimeAsync(990);
      expect(server.times).toHaveLength(1);
      await vi.advanceTimersByTimeAsync(20);
      expect([(await request).status, server.bodies]).toEqual([200, ["the same", "the same"]]);

      const refusing = serverOf(status(code, body));
      const refused = createOutbound({ fetch: refusing.send }).fetch(rpcUrl);
      await vi.advanceTimersByTimeAsync(60_000);
      expect([(await refused).status, refusing.times.length]).toEqual([code, 2]);
    },
  );

  test("is made once more where a key is refused between other troubles", async () => {
    const server = serverOf(status(503), status(401), status(503), status(200));
    const outbound = quick(server.send, { secondDelayMs: 1 });
    expect((await outbound.fetch(storageUrl)).status).toBe(200);
    expect(outbound.takeCounts()).toEqual({ storageCalls: 4, retries: 3 });
  });

  test("is made again where a 400 hides in its body what may pass, and not where it hides something else", async () => {
    const slow = serverOf(status(400, { statusCode: "544", error: "DatabaseTimeout" }), status(200));
    expect((await quick(slow.send).fetch(storageUrl)).status).toBe(200);
    expect(slow.times).toHaveLength(2);
    const refused = serverOf(status(400, { statusCode: "403", error: "Unauthorized" }));
    const response = await quick(refused.send).fetch(storageUrl);
    expect([response.status, await response.json()]).toMatchObject([400, { statusCode: "403" }]);
    expect(refused.times).toHaveLength(1);
  });

  test.each(
    [
      ["the connection is refused", new TypeError("fetch failed")],
      ["the connection breaks in any other way", new Error("socket hang up")],
      ["the body breaks off", () =>
        Promise.resolve(
          new Response(new ReadableStream({ pull: (stream) => stream.error(new Error("reset")) })),
        )],
    ] as const,
  )("is made again when %s", async (_, answer) => {
    const server = serverOf(answer, status(200));
    expect((await quick(server.send).fetch(rpcUrl)).status).toBe(200);
    expect(server.times).toHaveLength(2);
  });

  test("that is not answered within an attempt's time is made again", async () => {
    const server = serverOf(silence, status(200));
    expect((await quick(server.send, { attemptMs: 20 }).fetch(rpcUrl)).status).toBe(200);
    expect(server.times).toHaveLength(2);
  });

  test("whose body never ends is given up and made again", async () => {
    const endless = (signal: AbortSignal) =>
      Promise.resolve(
        new Response(
          new ReadableStream({
            start: (stream) => signal.addEventListener("abort", () => stream.error(signal.reason)),
          }),
        ),
      );
    const server = serverOf(endless, status(200));
    expect((await quick(server.send, { attemptMs: 20 }).fetch(rpcUrl)).status).toBe(200);
  });

  test("that fails for good resolves to the last answer, or rejects with the last error", async () => {
    const busy = serverOf(status(503, { message: "later" }));
    const response = await quick(busy.send, { retries: 2 }).fetch(rpcUrl);
    expect([response.status, await response.json(), busy.times.length]).toEqual([
      503,
      { message: "later" },
      3,
    ]);
    const away = serverOf(new TypeError("fetch failed"));
    await expect(quick(away.send, { retries: 2 }).fetch(rpcUrl)).rejects.toThrow(/connection failed/);
    expect(away.times).toHaveLength(3);
    const silent = serverOf(silence);
    await expect(quick(silent.send, { retries: 1, attemptMs: 10 }).fetch(rpcUrl)).rejects.toThrow(
      "No answer within 10 ms",
    );
  });

  test("that its caller gives up is not made again", async () => {
    const caller = new AbortController();
    const server = serverOf((signal) => {
      setTimeout(() => caller.abort(new Error("enough")), 1);
      return silence(signal);
    });
    await expect(quick(server.send).fetch(rpcUrl, { signal: caller.signal })).rejects.toThrow();
    expect(server.times).toHaveLength(1);
  });
});

describe("between attempts", () => {
  /** How long a request waited before each of its repetitions, in ms, on a clock that the test moves. */
  async function waitsOf(
    answers: readonly Answer[],
    options: OutboundOptions = {},
  ): Promise<readonly number[]> {
    vi.useFakeTimers({ now: new Date("2026-11-24T02:00:00Z") });
    const server = serverOf(...answers);
    const request = createOutbound({ fetch: server.send, ...options }).fetch(rpcUrl).catch(() => undefined);
    await vi.advanceTimersByTimeAsync(120_000);
    await request;
    return server.times.slice(1).map((time, place) => time - (server.times[place] ?? 0));
  }

  test("it waits twice as long each time, with jitter", async () => {
    const waits = await waitsOf([status(503)], { firstDelayMs: 100, retries: 4 });
    expect(waits).toHaveLength(4);
    const rounding = 2; // ms
    waits.forEach((wait, place) => {
      expect(wait).toBeGreaterThanOrEqual(100 * 2 ** place);
      expect(wait).toBeLessThanOrEqual(100 * 2 ** (place + 1) + rounding);
    });
    const others = await waitsOf([status(503)], { firstDelayMs: 100, retries: 4 });
    expect(others).not.toEqual(waits);
  });

  test("it waits as long as Retry-After says, in seconds or until a date", async () => {
    const [wait] = await waitsOf([status(429, {}, { "Retry-After": "3" }), status(200)], { firstDelayMs: 1 });
    expect(wait).toBeGreaterThanOrEqual(3000);
    expect(wait).toBeLessThan(3100);
    const date = { "Retry-After": "Tue, 24 Nov 2026 02:00:05 GMT" };
    const [until] = await waitsOf([status(503, {}, date), status(200)], { firstDelayMs: 1 });
    expect(until).toBeGreaterThanOrEqual(5000);
    expect(until).toBeLessThan(5100);
  });

  test("it takes no notice of a Retry-After that is past or makes no sense", async () => {
    for (const header of ["soon", "-5", "Tue, 24 Nov 2020 02:00:00 GMT"]) {
      const [wait] = await waitsOf([status(503, {}, { "Retry-After": header }), status(200)], {
        firstDelayMs: 10,
      });
      expect(wait).toBeLessThanOrEqual(25);
    }
  });

  test("it does not wait longer than the request may take altogether: the answer is what there was", async () => {
    expect(await waitsOf([status(503, {}, { "Retry-After": "3600" }), status(200)])).toEqual([]);
    const waits = await waitsOf([status(503)], { firstDelayMs: 1000, retries: 100, totalMs: 10_000 });
    expect(waits.reduce((sum, wait) => sum + wait, 0)).toBeLessThanOrEqual(10_000);
    expect(waits.length).toBeGreaterThan(1);
  });
});

test("requests to Storage and repetitions are counted until the counts are taken", async () => {
  const server = serverOf(status(503), status(200));
  const outbound = quick(server.send);
  await outbound.fetch(storageUrl);
  await outbound.fetch(rpcUrl);
  await outbound.fetch(new URL(storageUrl));
  await outbound.fetch(new Request(storageUrl));
  expect(outbound.takeCounts()).toEqual({ storageCalls: 4, retries: 1 });
  expect(outbound.takeCounts()).toEqual({ storageCalls: 0, retries: 0 });
});

test("no file name, token or key of a failed request reaches the log", async () => {
  const lines = vi.mocked(console.log);
  const server = serverOf(
    new Error("Cannot fetch http://x/y?token=eyJh.eyJi.c with sb_secret_abc"),
    status(200),
  );
  await quick(server.send).fetch(`${storageUrl}/folder/secret name.jpg?token=eyJh.eyJi.c`);
  const logged = lines.mock.calls.flat().join("\n");
  expect(logged).toContain("attempt_failed");
  expect(logged).not.toMatch(/secret name|eyJ|sb_secret_abc/);
});

describe("an error that the database itself reports", () => {
  test.each([["57014", 500], ["55P03", 500], ["P0002", 500], ["XX000", 500], ["53100", 503]])(
    "is not asked for again: %s",
    async (code, http) => {
      const server = serverOf(status(http, { code, message: "no" }), status(200));
      expect((await quick(server.send).fetch(rpcUrl)).status).toBe(http);
      expect(server.times).toHaveLength(1);
    },
  );

  test.each([["40P01", 500], ["40001", 500], ["57P01", 500], ["08006", 503], ["53300", 503], [
    "PGRST001",
    503,
  ]])(
    "is tried again where a moment may mend it: %s",
    async (code, http) => {
      const server = serverOf(status(http, { code, message: "later" }), status(200));
      expect((await quick(server.send).fetch(rpcUrl)).status).toBe(200);
      expect(server.times).toHaveLength(2);
    },
  );
});

describe("an answer that redirects", () => {
  test.each([301, 302, 303, 307, 308])(
    "is an error, and the key reaches no second address: %i",
    async (code) => {
      const keys: (string | undefined)[] = [];
      const other = createServer((request, response) => {
        keys.push(request.headers["apikey"] as string | undefined);
        response.end("{}");
      });
      const first = createServer((_, response) => {
        response.writeHead(code, { Location: `${addressOf(other)}/rest/v1/rpc/x?apikey=1` }).end();
      });
      await Promise.all([listen(other), listen(first)]);
      try {
        const asked = createOutbound().fetch(`${addressOf(first)}/rest/v1/rpc/x`, {
          method: "POST",
          headers: { apikey: "sb_secret_test" },
          body: "{}",
        });
        await expect(asked).rejects.toThrow(
          `answered with a redirect to ${addressOf(other)}. The key is not sent there`,
        );
        expect(keys).toEqual([]);
      } finally {
        first.close();
        other.close();
      }
    },
  );
});

function listen(server: Server): Promise<void> {
  return new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
}

function addressOf(server: Server): string {
  const address = server.address();
  return `http://127.0.0.1:${address !== null && typeof address === "object" ? address.port : 0}`;
}
