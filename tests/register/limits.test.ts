/** A register of 100,000 rows within the platform's memory (256 MB) and CPU (2 s); the kernel (RLIMIT_CPU) ends what goes beyond. */
import { execFile } from "node:child_process";
import { readFile } from "node:fs/promises";
import { promisify } from "node:util";
import { afterAll, beforeAll, expect, test } from "vitest";
import { z } from "zod";
import { createBucket } from "../sync/support/lab.ts";
import { control, type LocalLab, openLocalLab } from "../sync/support/local_lab.ts";

const memoryLimit = 300 * 1024 * 1024;
const cpuSeconds = 2;
const rows = 100_000;

let lab: LocalLab;
beforeAll(async () => {
  if (process.platform !== "linux") {
    throw new Error("Cannot limit a process here: this test needs Linux (prlimit, /proc)");
  }
  lab = await openLocalLab();
});
afterAll(() => lab?.close());

const processSchema = z.object({ pid: z.number(), starts: z.number() });
const functionProcess = async () =>
  processSchema.parse(await (await control(lab, "GET", "/function")).json());

async function usedCpu(pid: number): Promise<number> {
  const fields = (await readFile(`/proc/${pid}/stat`, "utf8")).replace(/^.*\) /, "").split(" ");
  return (Number(fields[11]) + Number(fields[12])) / 100; // user and system, in ticks of 10 ms
}

async function residentBytes(pid: number): Promise<number> {
  const status = await readFile(`/proc/${pid}/status`, "utf8");
  return Number(/VmRSS:\s+(\d+) kB/.exec(status)?.[1] ?? 0) * 1024;
}

/** Parts with URLs of 400 characters, and objects for them. */
async function createLargeRegister(): Promise<string> {
  const bucket = await createBucket(lab);
  await lab.sql`
    insert into storage.objects (bucket_id, name)
    select ${bucket}, lpad(n::text, 6, '0') || '.jpg' from generate_series(1, ${rows}::int) as n`;
  // Announces where the function lives; compiling its code is what an invocation does not pay on the platform.
  await lab.call({ query: `?bucket=${bucket}` });
  await lab.sql`
    with base as materialized (
      select s.bucket_id, image_sync.url_base(s) as url from image_sync.settings s where s.bucket_id = ${bucket}
    )
    insert into public.part_images (bucket_id, file_name, part_number, signed_url, signed_url_expires_at)
    select o.bucket_id, o.name, left(o.name, 6), u.url || repeat('b', 400 - 44 - length(u.url)) || '.' || repeat('c', 43), now() + interval '5 days'
    from base
    join storage.objects o on o.bucket_id = base.bucket_id
    cross join lateral (select base.url || o.name || '?token=eyJ' || repeat('a', 33) || '.' as url) as u`;
  return bucket;
}

test("is sent whole, in one answer", { timeout: 240_000 }, async () => {
  const bucket = await createLargeRegister();
  for (let warmUp = 0; warmUp < 3; warmUp++) {
    await (await lab.call({ query: `/register.csv?bucket=${bucket}&limit=5000` })).arrayBuffer();
  }
  const before = await functionProcess();
  const limit = Math.ceil(await usedCpu(before.pid)) + cpuSeconds;
  await promisify(execFile)("prlimit", [`--pid=${before.pid}`, `--cpu=${limit}`]);

  let peak = 0;
  const watch = setInterval(async () => {
    peak = Math.max(peak, await residentBytes(before.pid).catch(() => 0));
  }, 25);
  const response = await lab.call({ query: `/register.csv?bucket=${bucket}` });
  let lines = 0;
  let bytes = 0;
  for await (const part of response.body ?? []) {
    bytes += part.byteLength;
    lines += part.reduce((count: number, byte: number) => count + (byte === 10 ? 1 : 0), 0);
  }
  clearInterval(watch);

  expect(lines).toBe(rows + 1);
  expect(bytes).toBeGreaterThan(400 * rows);
  expect(response.headers.get("link")).toBeNull();
  expect(peak).toBeGreaterThan(0);
  expect(peak).toBeLessThan(memoryLimit);
  // Had the limit struck, the process would be another one.
  expect(await functionProcess()).toEqual(before);
});
