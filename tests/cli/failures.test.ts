import { randomUUID } from "node:crypto";
import { describe, expect, test } from "vitest";
import { makeReport, makeRun } from "./support/documents.ts";
import { KEY, problem, serve, serveFunction, write } from "./support/fake_function.ts";
import { runCommand } from "./support/run_command.ts";

function answering(status: number, body: unknown, headers: Record<string, string> = {}): Promise<string> {
  return serve((_request, response) => write(response, { status, body, headers }));
}

describe("an error is a sentence with the way out, and the exit status is 2", () => {
  const cases: { title: string; url: () => Promise<string>; code: string; says: RegExp }[] = [
    {
      title: "nothing listens",
      url: () => Promise.resolve("http://127.0.0.1:59999"),
      code: "unreachable",
      says: /Cannot reach http:\/\/127\.0\.0\.1:59999: the connection was refused; .*npm start/,
    },
    {
      title: "the host does not exist",
      url: () => Promise.resolve("https://no-such-project.invalid"),
      code: "unreachable",
      says: /there is no host of that name; check the URL/,
    },
    {
      title: "the connection is cut",
      url: () => serve((request) => request.socket.destroy()),
      code: "unreachable",
      says: /Cannot reach .*the connection was cut/,
    },
    {
      title: "no answer comes in time",
      url: () => serve(() => {}),
      code: "timeout",
      says: /within 0\.2 s: .*--timeout SECONDS/,
    },
    {
      title: "the key is wrong",
      url: () => answering(401, problem(401, "unauthorized", "Not signed in", "No").body),
      code: "unauthorized",
      says: /the key is not one of its secret keys \(HTTP 401\).*SUPABASE_SECRET_KEY or pass --key/,
    },
    {
      title: "the function is not deployed",
      url: () => answering(404, { code: "NOT_FOUND", message: "Requested function was not found" }),
      code: "not_deployed",
      says: /HTTP 404.*npx supabase functions deploy image-sync/,
    },
    {
      title: "the function does not start",
      url: () => answering(503, { code: "BOOT_ERROR", message: "Function failed to start" }),
      code: "unavailable",
      says: /HTTP 503.*look at its log/,
    },
    {
      title: "the function is killed",
      url: () => answering(546, { code: "WORKER_LIMIT" }),
      code: "unavailable",
      says: /HTTP 546/,
    },
    {
      title: "the quota is exceeded",
      url: () => answering(402, { message: "Service for this project is restricted" }),
      code: "unavailable",
      says: /HTTP 402: "Service for this project is restricted"\. 402 usually means .*exceeded its quota/,
    },
    {
      title: "a firewall answers with a page",
      url: () => answering(403, "<!doctype html><title>Blocked</title>"),
      code: "unauthorized",
      says: /HTTP 403: "Blocked"\. 403 usually means .*firewall or proxy/,
    },
    {
      title: "the project is paused",
      url: () => answering(540, { message: "Project paused" }),
      code: "unavailable",
      says: /HTTP 540: "Project paused"\. 540 usually means .*restore it/,
    },
    {
      title: "the gateway wants a key of its own",
      url: () => answering(401, { message: "Missing authorization header" }),
      code: "unauthorized",
      says: /HTTP 401: "Missing authorization header"\. 401 usually means .*verify_jwt/,
    },
    {
      title: "the function refuses",
      url: () =>
        answering(
          404,
          problem(404, "unknown_bucket", "The bucket has no settings", "Cannot sync bucket x: add it.").body,
        ),
      code: "unknown_bucket",
      says: /^Project .*\nThe bucket has no settings\. Cannot sync bucket x: add it\n$/,
    },
    {
      title: "the host redirects",
      url: () => answering(301, "", { location: "http://127.0.0.1:9/" }),
      code: "redirected",
      says: /redirect \(HTTP 301\).*set the URL of the project itself/,
    },
    {
      title: "the URL is of something else",
      url: () => answering(200, "<!doctype html><title>Hello</title>"),
      code: "not_understood",
      says: /not a document of image-sync; check the URL/,
    },
    {
      title: "the document has another shape",
      url: () => answering(200, { healthy: "yes" }),
      code: "not_understood",
      says: /of the same version/,
    },
  ];

  test.each(cases)("$title", async ({ url, code, says }) => {
    const settings = { url: await url() };
    const { status, stdout, stderr } = await runCommand(["status", "--timeout", "0.2"], settings);
    expect({ status, stdout }).toEqual({ status: 2, stdout: "" });
    expect(stderr).toMatch(says);
    expect(stderr).not.toMatch(/^\s+at |Error:/m);

    const json = await runCommand(["status", "--json", "--timeout", "0.2"], settings);
    expect(json.status).toBe(2);
    expect(JSON.parse(json.stdout)).toMatchObject({ error: { code } });
  });

  test("--debug adds the stack trace", async () => {
    const { stderr } = await runCommand(["status", "--debug"], { url: "http://127.0.0.1:59999" });
    expect(stderr).toMatch(/^\s+at /m);
  });
});

test("the key is sent to its host alone, never after a redirect", async () => {
  const seen: (string | undefined)[] = [];
  const other = await serve((request, response) => {
    seen.push(request.headers["apikey"] as string | undefined);
    write(response, { status: 200, body: makeReport() });
  });
  const url = await answering(307, "", { location: `${other}/functions/v1/image-sync` });
  expect((await runCommand(["status"], { url })).status).toBe(2);
  expect(seen).toEqual([]);
});

describe("wrong usage exits with 2 and says what is wrong", () => {
  test.each([
    { args: ["destroy"], says: "unknown command 'destroy'" },
    { args: ["sync", "extra"], says: "too many arguments" },
    { args: ["sync", "--renew", "some"], says: "Allowed choices are all" },
    { args: ["cleanup", "--confirm", "7"], says: "A run's id looks like" },
    { args: ["cleanup", "--max-delete-fraction", "20"], says: "between 0 and 1" },
    { args: ["cleanup", "--max-delete-count", "-1"], says: "whole number" },
    { args: ["cleanup", "--dry-run", "--confirm", randomUUID()], says: "cannot be used with" },
    { args: ["status", "--run", randomUUID(), "--file", "a.jpg"], says: "cannot be used with" },
    { args: ["cancel"], says: "missing required argument" },
    { args: ["status", "--timeout", "0"], says: "between 0 and 600" },
  ])("$args", async ({ args, says }) => {
    const { status, stdout, stderr } = await runCommand(args, { url: "http://127.0.0.1:59999" });
    expect({ status, stdout }).toEqual({ status: 2, stdout: "" });
    expect(stderr).toContain(says);
  });
});

test("help exits with 0 and tells the exit statuses", async () => {
  const { status, stdout } = await runCommand(["status", "--help"]);
  expect(status).toBe(0);
  expect(stdout).toContain("0 healthy, 1 needs attention, 2 could not be told");
});

describe("no output holds a key or a token of a signed URL, whatever the function answers", () => {
  const token = "eyJhbGciOiJIUzI1NiJ9.eyJ1cmwiOiJwYXJ0LWltYWdlcy9hLmpwZyJ9.c2lnbmF0dXJl";
  const leak = `https://x.supabase.co/storage/v1/object/sign/part-images/a.jpg?token=${token} ${KEY}`;
  const run = makeRun({
    state: "failed",
    stop_reason: leak,
    error: { code: "x", title: leak, detail: leak },
    problems: [{ name: leak, code: leak, detail: leak }],
  });
  const report = makeReport({ last_runs: { ...makeReport().last_runs, sync: run } });

  test.each([
    [["status"]],
    [["status", "--json"]],
    [["sync"]],
    [["sync", "--json"]],
    [["status", "--run", run.id]],
    [["status", "--file", "a.jpg", "--debug"]],
    [["status", "--url", "http://user:pass-in-url@127.0.0.1:59999", "--debug"]],
    [["status", "--key", `${KEY} `, "--debug"]],
  ])("%j", async (args) => {
    const server = await serveFunction({
      onStart: () => ({ run, created: true }),
      onRun: () => run,
      onReport: () => report,
      onFile: () => {
        throw problem(400, "x", leak, leak);
      },
    });
    const { stdout, stderr } = await runCommand(args, server);
    expect(stdout + stderr).not.toBe("");
    expect(stdout + stderr).not.toContain(KEY);
    expect(stdout + stderr).not.toContain(token);
    expect(stdout + stderr).not.toContain("pass-in-url");
    if (args.includes("--json")) JSON.parse(stdout);
  });
});
