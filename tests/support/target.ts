import process from "node:process";
import postgres from "postgres";
import { type LocalStack, startLocalStack } from "./stack.ts";

/** The Supabase that the integration tests run against. */
export type Target = {
  readonly url: string;
  /** A secret key of the project. */
  readonly secretKey: string;
  /** The database as role postgres. */
  readonly dbUrl: string;
  /** The publishable key, where it is known. */
  readonly publishableKey: string | undefined;
  /** The stack behind it; absent when it is a Supabase given by the environment. */
  readonly stack: LocalStack | undefined;
  /** Stops what was started for the tests. */
  stop(): Promise<void>;
};

/** Names of their own: nobody runs the tests against the project that they work with, because its variables happen to be set. */
const NAMES = ["IMAGE_SYNC_TEST_URL", "IMAGE_SYNC_TEST_SECRET_KEY", "IMAGE_SYNC_TEST_DB_URL"] as const;

/**
 * The Supabase given by IMAGE_SYNC_TEST_URL, IMAGE_SYNC_TEST_SECRET_KEY and IMAGE_SYNC_TEST_DB_URL
 * (IMAGE_SYNC_TEST_PUBLISHABLE_KEY may join them), or else a fresh local stack.
 *
 * @param args flags of `local/serve.ts` for a local stack
 * @throws {Error} when some of the three variables are set but not all, or the project holds records that no test made.
 */
export async function openTarget(args: readonly string[] = []): Promise<Target> {
  const [url, secretKey, dbUrl] = NAMES.map((name) => process.env[name] || undefined);
  if (url !== undefined && secretKey !== undefined && dbUrl !== undefined) {
    await refuseForeignRecords(url, dbUrl);
    const publishableKey = process.env["IMAGE_SYNC_TEST_PUBLISHABLE_KEY"];
    return { url, secretKey, dbUrl, publishableKey, stack: undefined, stop: () => Promise.resolve() };
  }
  const missing = NAMES.filter((name) => !process.env[name]);
  if (missing.length < NAMES.length) {
    throw new Error(`Cannot choose the Supabase to test: ${missing.join(" and ")} not set beside the others`);
  }
  const stack = await startLocalStack(args);
  const { publishableKey, stop } = stack;
  return { url: stack.url, secretKey: stack.secretKey, dbUrl: stack.dbUrl, publishableKey, stack, stop };
}

// The tests change, sign and delete. Their own buckets are called bucket-UUID.
async function refuseForeignRecords(url: string, dbUrl: string): Promise<void> {
  const sql = postgres(dbUrl, { max: 1, onnotice: () => {} });
  try {
    const [found] = await sql<{ count: number; bucket: string }[]>`
      select count(*)::integer as count, min(r.bucket_id) as bucket
      from (
        select p.bucket_id from public.part_images p
        union all
        select a.bucket_id from image_sync.archive a
      ) as r
      where r.bucket_id !~ '^bucket-[0-9a-f-]{36}$'`;
    if (found === undefined || found.count === 0) return;
    throw new Error(
      `Cannot test on ${url}: it holds ${found.count} records that no test made, of the bucket ${found.bucket}; use a project ` +
        "that is there for tests alone",
    );
  } finally {
    await sql.end({ timeout: 5 });
  }
}
