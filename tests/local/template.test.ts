/** What a stack begins with is made once and copied. */
import { execFile } from "node:child_process";
import { readdir, readFile, rm } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import postgres from "postgres";
import { expect, onTestFinished, test } from "vitest";
import { z } from "zod";
import { denoPath, startLocalStack } from "../support/stack.ts";

const program = fileURLToPath(new URL("./fixtures/find_template.ts", import.meta.url));
const foundSchema = z.object({ place: z.string(), made: z.boolean() });

async function find(name: string): Promise<z.infer<typeof foundSchema>> {
  const { stdout } = await promisify(execFile)(denoPath, ["run", "-A", program, name]);
  return foundSchema.parse(JSON.parse(stdout));
}

test("several that want a template at once find the same whole one, and whoever comes later makes none", async () => {
  const name = `test-${crypto.randomUUID()}`;
  const found = await Promise.all([find(name), find(name), find(name)]);
  const { place } = found[0];
  onTestFinished(() => rm(place, { recursive: true }));
  expect(new Set(found.map((one) => one.place))).toEqual(new Set([place]));
  const [one, two] = await Promise.all(["one", "two"].map((file) => readFile(join(place, file), "utf8")));
  expect(one).toBe(two);
  expect((await readdir(dirname(place))).filter((entry) => entry.startsWith(name))).toEqual([
    basename(place),
  ]);
  expect(await find(name)).toEqual({ place, made: false });
});

test("a stack begins with what the migrations make, whatever another one made of its copy", async () => {
  const [first, second] = await Promise.all([
    startLocalStack(["--no-function"]),
    startLocalStack(["--no-function"]),
  ]);
  onTestFinished(async () => {
    await Promise.all([first.stop(), second.stop()]);
  });
  const run = async (url: string, statement: string) => {
    const sql = postgres(url, { max: 1, onnotice: () => {} });
    try {
      return [...await sql.unsafe(statement)];
    } finally {
      await sql.end();
    }
  };
  await run(first.dbUrl, "drop schema image_sync cascade");
  await run(first.dbUrl, "create table public.left_behind ()");
  const look =
    "select to_regclass('public.left_behind') as left_behind, count(*)::integer as buckets from image_sync.settings";
  expect(await run(second.dbUrl, look)).toEqual([{ left_behind: null, buckets: 1 }]);
  await first.stop();
  const third = await startLocalStack(["--no-function"]);
  onTestFinished(() => third.stop());
  expect(await run(third.dbUrl, look)).toEqual([{ left_behind: null, buckets: 1 }]);
});
