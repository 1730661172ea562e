/** The seed case by sessions that the Data API has just opened: nothing is compiled or planned in them. */
import { fillBucket, resetTable } from "./bucket.ts";
import { say, timed } from "./measure.ts";
import { runBaseline } from "./baseline.ts";
import { runOurs } from "./ours.ts";
import type { BenchStack } from "./stack.ts";

const OBJECTS = 4_251;
const RECORDS = 196;
/** The baseline of the day on which the target was set, in s: what that machine was worth. */
export const BASELINE_THEN = 7.666;

/** One round, in seconds. */
export type ColdRound = {
  readonly first_chunk_s: number;
  readonly cold_s: number;
  readonly baseline_s: number;
};

/** From the request that opens the run until its first chunk is closed, and until its end; and the baseline beside it. */
export async function measureCold(stack: BenchStack): Promise<ColdRound> {
  const { sql } = stack;
  await fillBucket(stack, OBJECTS);
  await resetTable(stack, RECORDS);
  const baseline = await timed(() => runBaseline(stack));
  await resetTable(stack, RECORDS);
  await sql`select pg_terminate_backend(pid) from pg_stat_activity where usename in ('authenticator', 'supabase_storage_admin')`;
  await new Promise((resolve) => setTimeout(resolve, 500));
  const run = await runOurs(stack);
  const [first] = await sql<
    { at: Date }[]
  >`select min(closed_at) as at from image_sync.chunks where run_id = ${run.id}`;
  const asked = Date.parse(run.finished_at ?? "") - 1000 * run.seconds;
  const round = {
    first_chunk_s: ((first?.at.getTime() ?? NaN) - asked) / 1000,
    cold_s: run.seconds,
    baseline_s: baseline,
  };
  say(
    `seed case, cold: first chunk after ${round.first_chunk_s.toFixed(2)} s, all after ${
      run.seconds.toFixed(2)
    } s`,
  );
  return round;
}
