/** `npm start` ends everything that it started, whoever ends and at whatever moment. */
import { spawn } from "node:child_process";
import { chmod, mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { describe, expect, onTestFinished, test } from "vitest";
import { projectDirectory } from "../support/stack.ts";

/** The processes of a session: what was started in it, and what that started. */
async function running(session: number): Promise<number[]> {
  const pids = (await readdir("/proc")).filter((name) => /^\d+$/.test(name));
  const found = await Promise.all(pids.map(async (pid) => {
    const stat = await readFile(`/proc/${pid}/stat`, "utf8").catch(() => "");
    // Behind the name in parentheses: state, parent, group, session.
    const [state, , , sid] = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    return Number(sid) === session && state !== "Z" ? [Number(pid)] : [];
  }));
  return found.flat();
}

function start(env: Readonly<Record<string, string>> = {}) {
  const child = spawn("npm", ["start", "--", "--port", "0", "--db-port", "0", "--images", "40"], {
    cwd: projectDirectory,
    env: { ...process.env, ...env },
    stdio: ["ignore", "pipe", "pipe"],
    detached: true, // a session of its own, as a terminal's
  });
  const session = child.pid ?? 0;
  onTestFinished(async () => {
    for (const pid of await running(session)) process.kill(pid, "SIGKILL");
  });
  let output = "";
  child.stdout?.on("data", (part) => output += part);
  child.stderr?.on("data", (part) => output += part);
  return { session, output: () => output };
}

const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

// Who ends: npm alone, all of its group as a terminal does it, or npm without a word.
const ENDS = [
  ["SIGTERM to npm", "SIGTERM", false],
  ["SIGINT to all, as a terminal sends it", "SIGINT", true],
  ["SIGHUP to all, as a terminal that is closed", "SIGHUP", true],
  ["the death of npm", "SIGKILL", false],
] as const;
const TRIES = 5;
const LONGEST = 6_000; // ms; by then it is ready, or nearly

describe.each(ENDS)("%s ends everything", (_what, signal, isGroup) => {
  test.each(
    Array.from({ length: TRIES }, (_, attempt) => [attempt + 1, Math.random() * LONGEST] as const),
  )(
    "at a random moment, the %i. time, after %i ms",
    async (_attempt, after) => {
      const { session, output } = start();
      await sleep(after);
      expect((await running(session)).length, output()).toBeGreaterThan(0);
      process.kill(isGroup ? -session : session, signal);
      await expect.poll(() => running(session), { timeout: 30_000, interval: 200 }).toEqual([]);
      expect(output()).not.toMatch(/deprecated|DeprecationWarning|Deno\.serve:/);
    },
    90_000,
  );
});

test(
  "the death of npm ends everything at the moment when its script's shell is there, before that has begun",
  async () => {
    for (let attempt = 0; attempt < 5; attempt++) {
      const { session, output } = start();
      await expect.poll(async () => (await running(session)).length, { timeout: 20_000, interval: 1 })
        .toBeGreaterThan(1);
      process.kill(session, "SIGKILL");
      await expect.poll(() => running(session), { timeout: 20_000, interval: 200, message: output() })
        .toEqual([]);
    }
  },
  120_000,
);

test("what a crash of everything leaves behind the next one removes", async () => {
  const place = await mkdtemp(join(tmpdir(), "image-sync-crash-"));
  await chmod(place, 0o755);
  onTestFinished(() => rm(place, { recursive: true, force: true }));
  const left = async () => (await readdir(place)).filter((name) => /-(files|postgres-data)-\d+-/.test(name));
  const crashed = start({ TMPDIR: place });
  await expect.poll(left, { timeout: 30_000, interval: 50 }).toHaveLength(2);
  for (const pid of await running(crashed.session)) {
    try {
      process.kill(pid, "SIGKILL");
    } catch { /* it ended with another one of them */ }
  }
  await expect.poll(() => running(crashed.session), { timeout: 20_000 }).toEqual([]);
  const before = await left();
  const next = start({ TMPDIR: place });
  await expect.poll(async () => (await left()).filter((name) => before.includes(name)), { timeout: 30_000 })
    .toEqual([]);
  process.kill(-next.session, "SIGINT");
  await expect.poll(() => running(next.session), { timeout: 30_000, interval: 200 }).toEqual([]);
}, 120_000);
