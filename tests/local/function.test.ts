import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";
import { type LocalStack, startLocalStack } from "../support/stack.ts";

const entry = fileURLToPath(new URL("./fixtures/echo_function.ts", import.meta.url));

let stack: LocalStack;
beforeAll(async () => {
  stack = await startLocalStack(["--no-migrate", "--function", entry, "--function-env", "MY_SETTING=on"]);
});
afterAll(() => stack?.stop());

const call = (path: string, init: RequestInit = {}) => fetch(`${stack.url}/functions/v1${path}`, init);
const control = async (path: string, method = "POST") => {
  const response = await fetch(`${stack.url}/_local${path}`, {
    method,
    headers: { apikey: stack.secretKey },
  });
  return await response.json();
};

describe("the function behind the gateway", () => {
  test("sees its name as the first part of the path, and the body and headers as they were sent", async () => {
    const response = await call("/image-sync/deeper?run=1&x=a%20b", {
      method: "POST",
      headers: { apikey: "a key", prefer: "wait=5" },
      body: '{"mode":"sync"}',
    });
    expect(await response.json()).toMatchObject({
      method: "POST",
      path: "/image-sync/deeper?run=1&x=a%20b",
      body: '{"mode":"sync"}',
      headers: { apikey: "a key", prefer: "wait=5", "x-forwarded-path": "/functions/v1/image-sync/deeper" },
    });
  });

  test("has the platform's environment and its own settings, and nothing of the shell's", async () => {
    const { env } = await (await call("/image-sync")).json();
    expect(env).toEqual(expect.arrayContaining([
      "MY_SETTING",
      "SUPABASE_DB_URL",
      "SUPABASE_PUBLISHABLE_KEYS",
      "SUPABASE_SECRET_KEYS",
      "SUPABASE_URL",
    ]));
    expect(env).not.toContain("SUPABASE_SERVICE_ROLE_KEY");
    expect(env).not.toContain("VITEST");
  });

  test("cannot read files", async () => {
    expect(await (await call("/image-sync/file")).json()).toEqual({ outcome: "NotCapable" });
  });

  test("serves no pages", async () => {
    expect((await call("/image-sync/page")).headers.get("content-type")).toMatch(/^text\/plain/);
  });

  test("that is killed answers what it was at with 546, and runs again at the next request", async () => {
    const before = await (await call("/image-sync")).json();
    const hanging = call("/image-sync/hang");
    await control("/function/kill");
    expect((await hanging).status).toBe(546);
    const after = await (await call("/image-sync")).json();
    expect(after.pid).not.toBe(before.pid);
  });

  test.each([["before it answers", "patient"], ["while it answers", "long"]])(
    "goes on when its caller leaves %s",
    async (_when, path) => {
      const caller = new AbortController();
      const left = call(`/image-sync/${path}`, { signal: caller.signal });
      if (path === "long") await left;
      else await new Promise((resolve) => setTimeout(resolve, 50));
      caller.abort();
      await left.then((response) => response.text()).catch(() => {});
      await vi.waitFor(
        async () => expect((await control("/logs", "GET")).lines).toContain(`${path} ended, not given up`),
        { timeout: 5000 },
      );
    },
  );

  test("leaves its output where it can be read", async () => {
    await call("/image-sync/once", { method: "PUT" });
    expect((await control("/logs", "GET")).lines).toContain("echo PUT /image-sync/once");
  });
});

test("a function that does not exist is a 404, and so is any other path", async () => {
  expect((await call("/nobody")).status).toBe(404);
  expect((await fetch(`${stack.url}/else`)).status).toBe(404);
});

test("a function that does not start is a 503, with the reason in the log", async () => {
  const broken = await startLocalStack(["--no-migrate", "--function", `${entry}.missing`]);
  try {
    const response = await fetch(`${broken.url}/functions/v1/image-sync`);
    expect([response.status, await response.json()]).toMatchObject([503, { code: "BOOT_ERROR" }]);
    expect(broken.log.join("\n")).toContain("Cannot start the function");
  } finally {
    await broken.stop();
  }
});

describe("the control endpoints", () => {
  test("need a secret key", async () => {
    const headers = { apikey: stack.publishableKey };
    expect((await fetch(`${stack.url}/_local/requests`, { headers })).status).toBe(401);
  });

  test("can make every request take longer", async () => {
    const setLatency = (ms: number) =>
      fetch(`${stack.url}/_local/latency`, {
        method: "PUT",
        headers: { apikey: stack.secretKey },
        body: JSON.stringify({ ms }),
      });
    await setLatency(300);
    const start = performance.now();
    await call("/image-sync");
    await setLatency(0);
    expect(performance.now() - start).toBeGreaterThanOrEqual(299);
    expect((await setLatency(-1)).status).toBe(400);
  });
});
