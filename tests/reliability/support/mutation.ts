/** Breaks one mechanism of the engine in a database that is thrown away, so that a test can show that its check notices. */
import type { Sql } from "postgres";

/** A mechanism to take out: in this function this text becomes that, or what these statements do and undo. */
export type Mutation =
  | { readonly signature: string; readonly from: string; readonly to: string }
  | { readonly apply: string; readonly undo: string };

/**
 * Applies a mutation, lets `check` run, and takes it back. Returns what the check threw, as text; null where it noticed
 * nothing.
 *
 * @throws {Error} when the text to replace is not there exactly once: the mechanism was rewritten, so the mutation has to be.
 */
export async function withMutation(
  sql: Sql,
  mutation: Mutation,
  check: () => Promise<void>,
): Promise<string | null> {
  const { apply, undo } = "apply" in mutation ? mutation : await mutate(sql, mutation);
  await sql.unsafe(apply).simple();
  try {
    await check();
    return null;
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  } finally {
    await sql.unsafe(undo).simple();
  }
}

async function mutate(
  sql: Sql,
  { signature, from, to }: { signature: string; from: string; to: string },
): Promise<{ apply: string; undo: string }> {
  const [row] = await sql<{ definition: string }[]>`
    select pg_get_functiondef(${signature}::regprocedure) as definition`;
  const definition = row?.definition ?? "";
  if (definition.split(from).length !== 2) {
    throw new Error(`Cannot mutate ${signature}: it does not hold ${JSON.stringify(from)} exactly once`);
  }
  return { apply: definition.replace(from, () => to), undo: definition };
}
