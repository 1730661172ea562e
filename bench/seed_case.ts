import { runBaseline } from "./baseline.ts";
import { fillBucket, resetTable } from "./bucket.ts";
import { say, timed } from "./measure.ts";
import { runOurs } from "./ours.ts";
import type { BenchStack } from "./stack.ts";

const OBJECTS = 4_251;
const RECORDS = 196;
/** With a network in between the baseline is measured on a tenth of the bucket and scaled by its requests. */
const SHARE = 10;

/** The three approaches on the shop's own bucket, side by side in every round. */
export type SeedRound = {
  readonly latency_ms: number;
  readonly baseline_s: number;
  readonly baseline_requests: number;
  readonly obvious_s: number;
  readonly obvious_unchanged_s: number;
  readonly ours_s: number;
  readonly ours_unchanged_s: number;
  readonly ours_requests: number;
};

/** One round at a latency that the gateway adds to every request. */
export async function measureSeedCase(stack: BenchStack, latency: number): Promise<SeedRound> {
  const share = latency > 0 ? SHARE : 1;
  await fillBucket(stack, Math.floor(OBJECTS / share));
  await resetTable(stack, Math.floor(RECORDS / share));
  await stack.setLatency(latency);
  let made = 0;
  const measured = await timed(async () => made = await runBaseline(stack));
  await stack.setLatency(0);

  await fillBucket(stack, OBJECTS);
  await warmUp(stack);
  await resetTable(stack, RECORDS);
  await stack.setLatency(latency);
  const obvious = await timed(() => stack.runObviousFunction());
  const obviousUnchanged = await timed(() => stack.runObviousFunction());
  await stack.setLatency(0);

  await resetTable(stack, RECORDS);
  await stack.setLatency(latency);
  await stack.resetRequests();
  const ours = await runOurs(stack, {}, { latency });
  const requests = await stack.readRequests();
  const oursUnchanged = await runOurs(stack, {}, { latency });
  await stack.setLatency(0);

  const baselineRequests = share === 1 ? made : fullRequests();
  const round = {
    latency_ms: latency,
    baseline_s: measured * baselineRequests / made,
    baseline_requests: baselineRequests,
    obvious_s: obvious,
    obvious_unchanged_s: obviousUnchanged,
    ours_s: ours.seconds,
    ours_unchanged_s: oursUnchanged.seconds,
    // What starts the function, its RPCs, its calls of Storage; not the looks of this measurement at the run.
    ours_requests: ours.invocations + countOf(requests.rpc, "image_sync_run") +
      countOf(requests.storage, "download_signed"),
  };
  say(
    `seed case, ${latency} ms: baseline ${round.baseline_s.toFixed(1)} s, obvious ${
      obvious.toFixed(2)
    } s, ours ${round.ours_s} s`,
  );
  return round;
}

/** Connections that were idle are closed, and new ones have everything to load and to plan: once each without being measured. */
async function warmUp(stack: BenchStack): Promise<void> {
  for (const approach of [() => stack.runObviousFunction(), () => runOurs(stack)]) {
    await resetTable(stack, RECORDS);
    await approach();
  }
}

/** What the baseline asks for the whole bucket: pages of 100, rows by 1,000, inserts of 100, a signature and an update per file. */
function fullRequests(): number {
  return Math.floor(OBJECTS / 100) + 1 + 1 + Math.ceil((OBJECTS - RECORDS) / 100) + 2 * OBJECTS;
}

/** All of these but the one that the measurement itself asks for. */
function countOf(counts: Readonly<Record<string, number>>, except: string): number {
  return Object.entries(counts).reduce((total, [name, count]) => name === except ? total : total + count, 0);
}

/** The obvious function and ours on a larger bucket, first sync and an unchanged night. */
export async function measureObvious(
  stack: BenchStack,
  objects: number,
): Promise<Omit<SeedRound, "baseline_s" | "baseline_requests" | "ours_requests">> {
  await warmUp(stack);
  await resetTable(stack, 0);
  const obvious = await timed(() => stack.runObviousFunction());
  const obviousUnchanged = await timed(() => stack.runObviousFunction());
  await resetTable(stack, 0);
  const ours = await runOurs(stack);
  await stack.sql`vacuum analyze public.part_images`;
  const unchanged = await runOurs(stack);
  say(
    `${objects} objects: obvious ${obvious.toFixed(1)} s and ${
      obviousUnchanged.toFixed(1)
    } s, ours ${ours.seconds} s and ${unchanged.seconds} s`,
  );
  return {
    latency_ms: 0,
    obvious_s: obvious,
    obvious_unchanged_s: obviousUnchanged,
    ours_s: ours.seconds,
    ours_unchanged_s: unchanged.seconds,
  };
}
