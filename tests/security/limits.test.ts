import { execFile } from "node:child_process";
import { readFile } from "node:fs/promises";
import { promisify } from "node:util";
import postgres, { type Sql } from "postgres";
import { afterAll, beforeAll, expect, test } from "vitest";
import { z } from "zod";
import { type LocalStack, startLocalStack } from "../support/stack.ts";

// The platform gives a worker 256 MB and an invocation 2 s of CPU. Here V8 ends the process beyond a heap of 256 MB (the stack
// starts it so), this test beyond 300 MB of resident memory, and the kernel (RLIMIT_CPU) beyond 2 s of CPU for each invocation of
// the run. The same of a register is in tests/register/limits.test.ts.
const memoryLimit = 300 * 1024 * 1024;
const cpuPerInvocation = 2;
/** One invocation signs at most 40 chunks of 1,000. */
const invocations = 3;
const objects = 100_000;

let stack: LocalStack;
let admin: Sql;
beforeAll(async () => {
  if (process.platform !== "linux") {
    throw new Error("Cannot limit a process here: this test needs Linux (prlimit, /proc)");
  }
  stack = await startLocalStack();
  admin = postgres(stack.adminDbUrl, { max: 2, onnotice: () => {} });
});
afterAll(async () => {
  await admin?.end();
  await stack?.stop();
});

const processSchema = z.object({ pid: z.number().nullable(), starts: z.number() });

async function functionProcess(): Promise<z.infer<typeof processSchema>> {
  const response = await fetch(`${stack.url}/_local/function`, { headers: { apikey: stack.secretKey } });
  return processSchema.parse(await response.json());
}

const request = (query: string, init: RequestInit = {}) =>
  fetch(`${stack.url}/functions/v1/image-sync${query}`, {
    ...init,
    headers: { apikey: stack.secretKey, prefer: "wait=120" },
  });

async function runningFunction(): Promise<{ pid: number; starts: number }> {
  const { pid, starts } = await functionProcess();
  if (pid === null) throw new Error("Cannot limit the function: it does not run");
  return { pid, starts };
}

async function limitCpu(pid: number, seconds: number): Promise<void> {
  await promisify(execFile)("prlimit", [`--pid=${pid}`, `--cpu=${seconds}`]);
}

async function cpuSeconds(pid: number): Promise<number> {
  const fields = (await readFile(`/proc/${pid}/stat`, "utf8")).replace(/^.*\) /, "").split(" ");
  return (Number(fields[11]) + Number(fields[12])) / 100; // user and system, in ticks of 10 ms
}

async function residentBytes(pid: number): Promise<number> {
  const status = await readFile(`/proc/${pid}/status`, "utf8");
  return Number(/VmRSS:\s+(\d+) kB/.exec(status)?.[1] ?? 0) * 1024;
}

test("100,000 objects are synced within the platform's memory and CPU", {
  timeout: 240_000,
}, async () => {
  await admin`insert into storage.buckets (id, name) values ('large', 'large')`;
  await admin`insert into image_sync.settings (bucket_id, probe_size) values ('large', 0)`;
  await admin`insert into storage.objects (bucket_id, name) select 'large', lpad(n::text, 6, '0') || '.jpg' from generate_series(1, ${objects}::int) as n`;
  // Compiling its code is what an invocation does not pay on the platform, where workers are kept warm.
  for (let warmUp = 0; warmUp < 3; warmUp++) await request("");
  const { pid, starts } = await runningFunction();
  const budget = Math.ceil(await cpuSeconds(pid)) + cpuPerInvocation * invocations;
  await limitCpu(pid, budget);

  let peak = 0;
  const watch = setInterval(async () => {
    peak = Math.max(peak, await residentBytes(pid).catch(() => 0));
    if (peak > memoryLimit) process.kill(pid, "SIGKILL");
  }, 25);
  const response = await request("", { method: "POST", body: JSON.stringify({ bucket: "large" }) });
  clearInterval(watch);

  const run = await response.json();
  expect(run).toMatchObject({
    state: "succeeded",
    balanced: true,
    invocations,
    totals: { listed: objects, signed: objects },
  });
  expect(peak).toBeGreaterThan(0);
  expect(peak).toBeLessThan(memoryLimit);
  // Had a limit struck, the process would be another one.
  expect(await functionProcess()).toEqual({ pid, starts });
});

test("a process that goes beyond its CPU is ended, so the limit is one", { timeout: 120_000 }, async () => {
  await request("");
  const { pid } = await runningFunction();
  await limitCpu(pid, Math.floor(await cpuSeconds(pid)) + 1);
  const deadline = Date.now() + 60_000;
  while ((await functionProcess()).pid === pid && Date.now() < deadline) await request("");
  expect((await functionProcess()).pid).not.toBe(pid);
});
