/** A verify of a large bucket, beside the time that its fetches take when nothing else does. */
import { fillBucket, resetTable } from "./bucket.ts";
import { say } from "./measure.ts";
import { runOurs } from "./ours.ts";
import type { BenchStack } from "./stack.ts";

/** What the gateway adds to each request, in ms. */
const FETCH_MS = 10;
/** URLs that the function has open at once (`reader.ts`). */
const PARALLEL = 10;

/** One round. */
export type VerifyRound = {
  readonly verify_s: number;
  readonly floor_s: number;
  readonly floor_ratio: number;
};

/** Opens every URL of a bucket of so many files, as fast as the settings allow. */
export async function measureVerify(stack: BenchStack, objects: number): Promise<VerifyRound> {
  await fillBucket(stack, objects);
  await resetTable(stack, 0);
  await runOurs(stack);
  await stack.sql`update image_sync.settings set verify_rate = 10000 where bucket_id = 'part-images'`;
  await stack.setLatency(FETCH_MS);
  const run = await runOurs(stack, { mode: "verify" });
  await stack.setLatency(0);
  await stack.sql`update image_sync.settings set verify_rate = default where bucket_id = 'part-images'`;
  const floor = objects * FETCH_MS / 1000 / PARALLEL;
  say(`verify of ${objects}: ${run.seconds.toFixed(1)} s, its fetches alone ${floor.toFixed(1)} s`);
  return { verify_s: run.seconds, floor_s: floor, floor_ratio: run.seconds / floor };
}
