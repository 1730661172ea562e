/** `npm start` ends everything that it started, whoever ends and at whatever moment. */
import { spawn } from "node:child_process";
import { readdir, readFile } from "node:fs/promises";
import process from "node:process";
import { expect, onTestFinished, test } from "vitest";
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

function start() {
  const child = spawn("npm", ["start", "--", "--port", "0", "--db-port", "0", "--images", "40"], {
    cwd: projectDirectory,
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

// npm alone, its whole group as a terminal does it, or npm without a word.
test.each(
  [
    ["SIGTERM to npm", "SIGTERM", false, 700],
    ["SIGINT to all, as a terminal sends it", "SIGINT", true, 2500],
    ["SIGHUP to all, as a terminal that is closed", "SIGHUP", true, 4500],
    ["the death of npm", "SIGKILL", false, 6000],
    ["SIGINT while it stays up", "SIGINT", true, 12_000],
  ] as const,
)("%s", async (_what, signal, isGroup, after) => {
  const { session, output } = start();
  await sleep(after);
  expect((await running(session)).length, output()).toBeGreaterThan(0);
  process.kill(isGroup ? -session : session, signal);
  await expect.poll(() => running(session), { timeout: 20_000, interval: 200 }).toEqual([]);
  expect(output()).not.toMatch(/deprecated|DeprecationWarning|Deno\.serve:/);
}, 60_000);
