/** The one guard before all tests where a Supabase is given by IMAGE_SYNC_TEST_*: only those run that touch no row but their own. */
import process from "node:process";

/** What may run there: each of them works in buckets that it makes itself. */
export const SAFE_FILES: readonly string[] = [
  "tests/api/answers.test.ts",
  "tests/api/refusals.test.ts",
  "tests/cleanup/guards.test.ts",
  "tests/cleanup/locks.test.ts",
  "tests/cleanup/plan.test.ts",
  "tests/sync/boundaries.test.ts",
  "tests/sync/names.test.ts",
];

/** Whether the environment gives a Supabase, or part of one. */
export function isGiven(): boolean {
  return Object.entries(process.env).some(([name, value]) => name.startsWith("IMAGE_SYNC_TEST_") && value);
}
