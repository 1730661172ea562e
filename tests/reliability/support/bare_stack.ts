/** A stack without the function, and two ways into its database. */
import postgres, { type Sql } from "postgres";
import { type LocalStack, startLocalStack } from "../../support/stack.ts";
import { openAsWorker } from "./protocol.ts";

/** The database alone, as the protocol's tests need it. */
export type BareStack = {
  readonly stack: LocalStack;
  /** As superuser. */
  readonly admin: Sql;
  /** As the function: service_role. */
  readonly worker: Sql;
  close(): Promise<void>;
};

/**
 * Opens one. Nothing calls the function here, so runs move only when a test moves them.
 *
 * @param options `args`: further flags of `local/serve.ts`
 */
export async function openBareStack(
  { args = [] }: { args?: readonly string[] } = {},
): Promise<BareStack> {
  const stack = await startLocalStack(["--no-function", ...args]);
  const admin = postgres(stack.adminDbUrl, { max: 6, onnotice: () => {} });
  const worker = openAsWorker(stack.adminDbUrl);
  // The first connection of a pool learns the array types for the others.
  await Promise.all([admin`select 1`, worker`select 1`]);
  return {
    stack,
    admin,
    worker,
    close: async () => {
      await Promise.all([admin.end({ timeout: 1 }), worker.end({ timeout: 1 })]);
      await stack.stop();
    },
  };
}
