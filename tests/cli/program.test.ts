/** The commands as they are typed: through the launcher, in a process of their own. */
import { type ChildProcess, spawn } from "node:child_process";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { expect, onTestFinished, test } from "vitest";
import { makeDryRun, makeReport, makeRun } from "./support/documents.ts";
import { KEY, serveFunction } from "./support/fake_function.ts";

const launcher = fileURLToPath(new URL("../../cli/image-sync.mjs", import.meta.url));

type Ended = { readonly code: number | null; readonly stdout: string; readonly stderr: string };

function start(command: string, args: readonly string[], options: { url?: string; cwd?: string } = {}) {
  const { SUPABASE_URL: _url, SUPABASE_SECRET_KEY: _key, ...env } = process.env;
  const child: ChildProcess = spawn(command, args, {
    cwd: options.cwd ?? tmpdir(),
    env: options.url === undefined ? env : { ...env, SUPABASE_URL: options.url, SUPABASE_SECRET_KEY: KEY },
  });
  onTestFinished(() => {
    child.kill("SIGKILL");
  });
  const text = {
    stdout: "",
    stderr: "",
  };
  child.stdout?.on("data", (part) => text.stdout += part);
  child.stderr?.on("data", (part) => text.stderr += part);
  const ended = new Promise<Ended>((resolve) => child.on("close", (code) => resolve({ code, ...text })));
  return { child, ended };
}

test("passes output and exit status through", async () => {
  const report = makeReport({ healthy: false });
  const { url } = await serveFunction({ onReport: () => report });
  const { code, stdout, stderr } = await start(process.execPath, [launcher, "status", "--json"], { url })
    .ended;
  expect({ code, stderr }).toEqual({
    code: 1,
    stderr: expect.stringMatching(/^Project \S+ \([^)]*\), bucket \S+ \([^)]*\)\n$/),
  });
  expect(JSON.parse(stdout)).toEqual(report);
});

test("finds the project in .env of the directory it is called in", async () => {
  const { url } = await serveFunction({ onReport: () => makeReport() });
  const cwd = await mkdtemp(join(tmpdir(), "image-sync-"));
  onTestFinished(() => rm(cwd, { recursive: true }));
  await writeFile(join(cwd, ".env"), `SUPABASE_URL=${url}\nSUPABASE_SECRET_KEY=${KEY}\n`);
  const { code, stdout } = await start(process.execPath, [launcher, "status"], { cwd }).ended;
  expect(code).toBe(0);
  expect(stdout).toMatch(/^part-images: healthy/);
});

test.each(["SIGINT", "SIGTERM"] as const)(
  "%s to the launcher reaches the command, which leaves the run going",
  async (signal) => {
    const run = makeRun({ state: "open" });
    let onLook = () => {};
    const { url } = await serveFunction({
      onStart: () => ({ run, created: true }),
      onRun: () => {
        onLook();
        return run;
      },
    });
    const { child, ended } = start(process.execPath, [launcher, "sync"], { url });
    onLook = () => child.kill(signal);
    const { code, stderr } = await ended;
    expect(code).toBe(130);
    expect(stderr).toContain(`run ${run.id} goes on`);
  },
);

test("a reader that has seen enough is no error", async () => {
  const findings = Array.from({ length: 5000 }, (_, index) => ({
    code: `code_${index}`,
    level: "info" as const,
    title: "Something to look at",
    count: 1,
    samples: [],
    remediation: "Look at it.",
  }));
  const { url } = await serveFunction({ onReport: () => makeReport({ findings }) });
  const line = `"${process.execPath}" "${launcher}" status | head -n 1`;
  const { stdout, stderr } = await start("sh", ["-c", line], { url }).ended;
  expect({ stdout, stderr }).toEqual({
    stdout: "part-images: healthy\n",
    stderr: expect.stringMatching(/^Project \S+ \([^)]*\), bucket \S+ \([^)]*\)\n$/),
  });
});

// script(1) of util-linux gives the command a terminal of its own; elsewhere its options differ.
test.skipIf(process.platform !== "linux")(
  "on a terminal (Linux only), cleanup asks and removes what is confirmed",
  async () => {
    const dryRun = makeDryRun(["gone.jpg", "\x1b[2Jgone.jpg"]);
    const applied = makeRun({ mode: "cleanup", plan_id: dryRun.id, totals: { removed: 2 } });
    const open = makeRun({ ...dryRun, state: "open", finished_at: null });
    const server = await serveFunction({
      onStart: ({ confirm }) => ({ run: confirm === undefined ? open : applied, created: true }),
      onRun: () => dryRun,
    });
    const line = `"${process.execPath}" "${launcher}" cleanup`;
    const { child, ended } = start("script", ["-qec", line, "/dev/null"], server);
    let isTyped = false;
    child.stdout?.on("data", (part) => {
      if (isTyped || !String(part).includes("type their number")) return;
      isTyped = true;
      child.stdin?.write("2\r");
    });
    const { code, stdout } = await ended;
    expect(code).toBe(0);
    expect(stdout).toMatch(/\[=+\] /);
    expect(stdout).toContain("\\u{1b}[2Jgone.jpg");
    expect(stdout).toContain("2 removed");
    expect(server.starts.at(-1)).toMatchObject({ confirm: dryRun.id });
  },
);
