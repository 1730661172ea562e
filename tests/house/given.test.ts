/** Tests against a Supabase that is given change nothing there but what they made. */
import { spawn } from "node:child_process";
import process from "node:process";
import postgres, { type Sql } from "postgres";
import { afterAll, beforeAll, expect, test } from "vitest";
import { type LocalStack, projectDirectory, startLocalStack } from "../support/stack.ts";

let stack: LocalStack;
let sql: Sql;
beforeAll(async () => {
  stack = await startLocalStack();
  sql = postgres(stack.dbUrl, { max: 1, onnotice: () => {} });
  // Named as a test's own, which the guard lets pass.
  const bucket = `bucket-${crypto.randomUUID()}`;
  await sql`insert into storage.buckets (id, name) values (${bucket}, ${bucket})`;
  await sql`insert into storage.objects (bucket_id, name, metadata) values (${bucket}, '1.jpg', '{"size": 1}')`;
  await sql`insert into image_sync.settings (bucket_id, nightly) values (${bucket}, false)`;
  await sql`
    insert into public.part_images (id, bucket_id, file_name, part_number) values
    (gen_random_uuid(), ${bucket}, '1.jpg', '1'), (gen_random_uuid(), ${bucket}, 'gone-01.jpg', '2')`;
  await sql`
    insert into image_sync.archive (bucket_id, file_name, record, reason) values (${bucket}, 'old.jpg', '{}', 'orphaned')`;
}, 90_000);
afterAll(async () => {
  await sql?.end({ timeout: 5 });
  await stack?.stop();
});

function vitest(...files: string[]): Promise<{ status: number | null; output: string }> {
  const env = Object.entries(process.env).filter(([name]) => !/^VITEST|^IMAGE_SYNC_TEST_/.test(name));
  const child = spawn(process.execPath, ["node_modules/vitest/vitest.mjs", "run", ...files], {
    cwd: projectDirectory,
    env: {
      ...Object.fromEntries(env),
      IMAGE_SYNC_TEST_URL: stack.url,
      IMAGE_SYNC_TEST_SECRET_KEY: stack.secretKey,
      IMAGE_SYNC_TEST_DB_URL: stack.dbUrl,
    },
  });
  let output = "";
  for (const stream of [child.stdout, child.stderr]) stream.on("data", (data) => output += String(data));
  return new Promise((resolve) => child.once("close", (status) => resolve({ status, output })));
}

const tables = [
  "public.part_images",
  "storage.buckets",
  "storage.objects",
  "image_sync.settings",
  "image_sync.archive",
  "cron.job",
];
const rows = () =>
  Promise.all(tables.map((table) => sql.unsafe(`select t::text as row from ${table} t order by 1`)));

test("those that may run leave every row as it was", async () => {
  const before = await rows();
  const { status, output } = await vitest("tests/api/refusals.test.ts", "tests/cleanup/guards.test.ts");
  expect([status, output]).toEqual([0, expect.stringContaining("2 passed")]);
  expect(await rows()).toEqual(before);
}, 180_000);

test(
  "any other is refused before it begins, and a project with records that no test made before all",
  async () => {
    const before = await rows();
    const moves = await vitest("tests/sync/moves.test.ts", "tests/cleanup/references.test.ts");
    expect(moves.status).toBe(1);
    expect(moves.output).toMatch(/Cannot run .*moves\.test\.ts against the Supabase of IMAGE_SYNC_TEST_URL/);
    expect(moves.output).toMatch(/Cannot run .*references\.test\.ts against/);
    expect(await rows()).toEqual(before);

    await sql`insert into public.part_images (id, bucket_id, file_name) values (gen_random_uuid(), 'part-images', '1.jpg')`;
    const foreign = await vitest("tests/api/refusals.test.ts");
    expect(foreign.status).toBe(1);
    expect(foreign.output).toContain("holds 1 records that no test made, of the bucket part-images");
  },
  180_000,
);
