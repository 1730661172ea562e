/** With jit on, as Debian and many self-hosted servers have it, no call waits for the compiler. */
import { existsSync } from "node:fs";
import postgres, { type Sql } from "postgres";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type BareStack, openBareStack } from "./support/bare_stack.ts";
import { createRows, start, workToEnd } from "./support/protocol.ts";

const postgres15 = "/usr/lib/postgresql/15/bin";
const isInstalled = existsSync(postgres15);

test.runIf(process.env["CI"])("Debian's Postgres 15 is there in CI", () => expect(isInstalled).toBe(true));

describe.runIf(isInstalled)("on Postgres 15 with jit on (left out without /usr/lib/postgresql/15)", () => {
  let db: BareStack;
  let bucket: string;
  beforeAll(async () => {
    db = await openBareStack({ args: ["--postgres", postgres15] });
    await db.admin`alter database postgres set jit = on`;
    const names = Array.from({ length: 50 }, (_, place) => `${place}.jpg`);
    bucket = await createRows(db.admin, { names, settings: { chunk_size: 20 } });
  }, 120_000);
  afterAll(() => db?.close());

  /** The statements that were compiled, of all that a session makes and that those make. */
  async function compiledBy(act: (sql: Sql) => Promise<unknown>): Promise<readonly string[]> {
    const compiled: string[] = [];
    const session = postgres(db.stack.adminDbUrl, {
      max: 1,
      onnotice: ({ message }) => {
        if (/^JIT:/m.test(message ?? "")) compiled.push(message?.slice(0, 500) ?? "");
      },
    });
    try {
      await session`load 'auto_explain'`;
      await session.unsafe(`
        set auto_explain.log_min_duration = 0;
        set auto_explain.log_analyze = on;
        set auto_explain.log_timing = off;
        set auto_explain.log_nested_statements = on;
        set client_min_messages = log`);
      await session`set role service_role`;
      await act(session);
    } finally {
      await session.end();
    }
    return compiled;
  }

  const reads = [
    "image_sync_report($1)",
    "image_sync_buckets()",
    "image_sync_register_tag($1)",
    "image_sync_register($1)",
    "image_sync_records($1, 'missing')",
    "image_sync_records($1, 'several')",
    "image_sync_file($1, '1.jpg')",
    "image_sync_expiry($1)",
    "image_sync_history($1)",
  ];
  const readAll = async (sql: Sql) => {
    for (const read of reads) await sql.unsafe(`select public.${read}`, read.includes("$1") ? [bucket] : []);
  };

  test.each(["analyze", "sync", "verify", "cleanup"])("a small %s compiles nothing", async (mode) => {
    expect(
      await compiledBy(async (sql) => {
        const { run } = await start(sql, bucket, { mode });
        await workToEnd(sql, run);
      }),
    ).toEqual([]);
  });

  test("no read compiles anything", async () => {
    expect(await compiledBy(readAll)).toEqual([]);
  });

  test("and would without their setting, so this is seen here", async () => {
    await db.admin`alter function public.image_sync_register(text, text, text, boolean, integer) reset jit`;
    expect(await compiledBy(readAll)).not.toEqual([]);
    await db
      .admin`alter function public.image_sync_register(text, text, text, boolean, integer) set jit = off`;
  });
});
