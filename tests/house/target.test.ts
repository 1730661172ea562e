/** Which Supabase the tests run against: never the one that somebody works with. */
import process from "node:process";
import postgres from "postgres";
import { afterAll, afterEach, beforeAll, expect, test, vi } from "vitest";
import { type LocalStack, startLocalStack } from "../support/stack.ts";
import { openTarget } from "../support/target.ts";

let stack: LocalStack;
beforeAll(async () => {
  for (const name of Object.keys(process.env)) {
    if (name.startsWith("IMAGE_SYNC_TEST_")) vi.stubEnv(name, undefined);
  }
  stack = await startLocalStack(["--no-function"]);
}, 90_000);
afterEach(() => void vi.unstubAllEnvs());
afterAll(() => stack?.stop());

function give(prefix: string): void {
  vi.stubEnv(`${prefix}URL`, stack.url);
  vi.stubEnv(`${prefix}SECRET_KEY`, stack.secretKey);
  vi.stubEnv(`${prefix}DB_URL`, stack.dbUrl);
}

test("one that is given by names of the tests' own is taken, unless it holds records that no test made", async () => {
  give("IMAGE_SYNC_TEST_");
  expect(await openTarget()).toMatchObject({ url: stack.url, stack: undefined });
  const sql = postgres(stack.dbUrl, { max: 1 });
  await sql`insert into public.part_images (id, bucket_id, file_name) values
    (gen_random_uuid(), ${`bucket-${crypto.randomUUID()}`}, 'a.jpg')`;
  expect(await openTarget()).toMatchObject({ url: stack.url });
  await sql`insert into public.part_images (id, bucket_id, file_name) values (gen_random_uuid(), 'part-images', '000001.jpg')`;
  await sql.end();
  await expect(openTarget()).rejects.toThrow(/holds 1 records that no test made, of the bucket part-images/);
});

test("some of the names alone are a mistake", async () => {
  vi.stubEnv("IMAGE_SYNC_TEST_URL", stack.url);
  await expect(openTarget()).rejects.toThrow(/IMAGE_SYNC_TEST_SECRET_KEY and IMAGE_SYNC_TEST_DB_URL not set/);
});

test("the everyday names are never read", async () => {
  give("SUPABASE_");
  const target = await openTarget(["--no-function", "--no-migrate"]);
  await target.stop();
  expect(target.stack).toBeDefined();
  expect(target.url).not.toBe(stack.url);
});
