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

/**
 * The Supabase given by SUPABASE_URL, SUPABASE_SECRET_KEY and SUPABASE_DB_URL (SUPABASE_PUBLISHABLE_KEY may join them), or
 * else a fresh local stack.
 *
 * @param args flags of `local/serve.ts` for a local stack
 * @throws {Error} when some of the three variables are set but not all.
 */
export async function openTarget(args: readonly string[] = []): Promise<Target> {
  const names = ["SUPABASE_URL", "SUPABASE_SECRET_KEY", "SUPABASE_DB_URL"] as const;
  const [url, secretKey, dbUrl] = names.map((name) => process.env[name] || undefined);
  if (url !== undefined && secretKey !== undefined && dbUrl !== undefined) {
    const publishableKey = process.env["SUPABASE_PUBLISHABLE_KEY"];
    return { url, secretKey, dbUrl, publishableKey, stack: undefined, stop: () => Promise.resolve() };
  }
  const missing = names.filter((name) => !process.env[name]);
  if (missing.length < names.length) {
    throw new Error(`Cannot choose the Supabase to test: ${missing.join(" and ")} not set beside the others`);
  }
  const stack = await startLocalStack(args);
  const { publishableKey, stop } = stack;
  return { url: stack.url, secretKey: stack.secretKey, dbUrl: stack.dbUrl, publishableKey, stack, stop };
}
