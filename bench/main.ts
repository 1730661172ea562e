/**
 * `npm run bench`: what a person deciding for this project would ask, measured on the embedded stack in one run. With `--quick`
 * small buckets and few rounds, to try the measurements; it writes no results.
 */
import { parseArgs } from "node:util";
import { fillBucket, resetTable } from "./bucket.ts";
import { say, summarize } from "./measure.ts";
import { measureNeighbours, removeNeighbour } from "./neighbours.ts";
import { runOurs } from "./ours.ts";
import { targetTable, writeResults } from "./report.ts";
import { type Cost, measureScale, type Scale } from "./scale.ts";
import { measureObvious, measureSeedCase, type SeedRound } from "./seed_case.ts";
import { type BenchStack, startBenchStack } from "./stack.ts";
import { hold, type Target } from "./targets.ts";

const { values: flags } = parseArgs({
  args: Deno.args,
  options: {
    quick: { type: "boolean", default: false },
    rounds: { type: "string", default: "5" },
    "large-rounds": { type: "string", default: "5" },
  },
});
const sizes = flags.quick
  ? { small: 2_000, middle: 5_000, large: 20_000 }
  : { small: 10_000, middle: 100_000, large: 1_000_000 };
const rounds = flags.quick ? 1 : Number(flags.rounds);
const largeRounds = flags.quick ? 1 : Number(flags["large-rounds"]);

type WorkersRow = { readonly workers: number; readonly seconds: number; readonly invocations: number };

/** On the bucket that is there. */
async function measureWorkers(stack: BenchStack): Promise<WorkersRow[]> {
  const rows: WorkersRow[] = [];
  for (const workers of [1, 2, 4]) {
    await resetTable(stack, 0);
    const run = await runOurs(stack, {}, { workers });
    rows.push({ workers, seconds: run.seconds, invocations: run.invocations });
    say(`${workers} workers: ${run.seconds} s`);
  }
  return rows;
}

async function repeat<T>(count: number, measure: () => Promise<T>): Promise<T[]> {
  const results: T[] = [];
  for (let round = 0; round < count; round++) results.push(await measure());
  return results;
}

function seedTargets(loopback: readonly SeedRound[], network: readonly SeedRound[]): Target[] {
  return [
    hold(
      "seed_loopback_ratio",
      "seed case, loopback: baseline / ours",
      loopback.map((r) => r.baseline_s / r.ours_s),
      ">=",
      20,
    ),
    hold(
      "seed_50ms_ratio",
      "seed case, 50 ms a request: baseline / ours",
      network.map((r) => r.baseline_s / r.ours_s),
      ">=",
      300,
    ),
    hold(
      "seed_requests",
      "seed case: HTTP requests of a first sync, the probe apart",
      loopback.map((r) => r.ours_requests),
      "<=",
      20,
    ),
    hold(
      "obvious_first_50ms_ratio",
      "obvious function / ours, 50 ms: first sync of the seed case",
      network.map((r) => r.obvious_s / r.ours_s),
      ">=",
      1.5,
    ),
    hold(
      "obvious_unchanged_50ms_ratio",
      "obvious function / ours, 50 ms: an unchanged night",
      network.map((r) => r.obvious_unchanged_s / r.ours_unchanged_s),
      ">=",
      4,
    ),
  ];
}

function scaleTargets(small: Scale, large: Scale): Target[] {
  const perThousand = (costs: readonly Cost[]) =>
    summarize(costs.map((c) => c.seconds * 1000 / c.objects)).median;
  const first = summarize(large.firsts.map((c) => c.seconds)).median;
  const all = [...large.firsts, ...large.unchanged, ...large.others];
  return [
    hold(
      "million_floor_ratio",
      "first sync of 1M: ours / floor",
      large.firsts.map((c, round) => c.seconds / (large.floors[round]?.sum ?? NaN)),
      "<=",
      1.5,
    ),
    hold(
      "million_unchanged_fraction",
      "unchanged sync of 1M / its first sync",
      large.unchanged.map((c) => c.seconds / first),
      "<=",
      0.2,
    ),
    hold(
      "million_unchanged_rows_written",
      "unchanged sync of 1M: rows written",
      large.unchanged.map((c) => c.rows_written),
      "==",
      0,
    ),
    hold(
      "million_unchanged_storage_calls",
      "unchanged sync of 1M: Storage calls",
      large.unchanged.map((c) => c.storage_calls),
      "==",
      0,
    ),
    hold(
      "cost_growth_1m_10k",
      "first sync: time per 1,000 objects, 1M / 10k",
      [perThousand(large.firsts) / perThousand(small.firsts)],
      "<=",
      1.2,
    ),
    hold(
      "slowest_rpc_ms_1m",
      "slowest single RPC at 1M, ms",
      [Math.max(...all.map((c) => c.slowest_rpc_ms))],
      "<=",
      1000,
    ),
    hold(
      "memory_above_idle_mb_1m",
      "function's memory above idle at 1M, MB",
      large.firsts.map((c) => c.memory_above_idle_mb),
      "<=",
      64,
    ),
    hold(
      "cpu_ms_per_1000_signed",
      "function's CPU per 1,000 signed, ms",
      large.firsts.map((c) => c.cpu_ms_per_1000),
      "<=",
      15,
    ),
    hold(
      "cpu_ms_per_1000_unchanged",
      "function's CPU per 1,000 unchanged, ms",
      large.unchanged.map((c) => c.cpu_ms_per_1000),
      "<=",
      0.2,
    ),
    hold("report_ms_1m", "GET report at 1M, ms", large.report_ms, "<=", 50),
  ];
}

async function main(): Promise<void> {
  const stack = await startBenchStack();
  try {
    say("warming up");
    await fillBucket(stack, 2_000);
    await repeat(2, async () => (await resetTable(stack, 0), await runOurs(stack)));
    const loopback = await repeat(rounds, () => measureSeedCase(stack, 0));
    const network = await repeat(rounds, () => measureSeedCase(stack, 50));
    const small = await measureScale(stack, sizes.small, rounds);
    const middle = await measureScale(stack, sizes.middle, rounds);
    const obvious = await repeat(rounds, () => measureObvious(stack, sizes.middle));
    const neighbours = await repeat(rounds, () => measureNeighbours(stack, sizes.middle));
    await removeNeighbour(stack);
    const large = await measureScale(stack, sizes.large, largeRounds);
    const workers = await measureWorkers(stack);
    const targets = [
      ...seedTargets(loopback, network),
      hold(
        "obvious_first_100k_ratio",
        "obvious function / ours, 100k, loopback: first sync",
        obvious.map((r) => r.obvious_s / r.ours_s),
        ">=",
        2,
      ),
      hold(
        "obvious_unchanged_100k_ratio",
        "obvious function / ours, 100k, loopback: an unchanged night",
        obvious.map((r) => r.obvious_unchanged_s / r.ours_unchanged_s),
        ">=",
        10,
      ),
      hold(
        "neighbours_ratio_100k",
        "two buckets of 100k with the same file names: first sync of the second, beside the first / alone",
        neighbours.map((r) => r.ratio),
        "<=",
        1.15,
      ),
      ...scaleTargets(small, large),
    ];
    const costs = [small, middle, large].flatMap((
      scale,
    ) => [...scale.firsts.slice(-1), ...scale.unchanged.slice(-1), ...scale.others]);
    console.log(targetTable(targets));
    console.log(workers);
    if (flags.quick) return;
    const [version] = await stack.sql<{ v: string }[]>`select split_part(version(), ' on ', 1) as v`;
    await writeResults(
      {
        targets,
        runs: [...loopback, ...network, ...obvious, ...neighbours, ...[small, middle, large], ...workers],
      },
      costs,
      version?.v ?? "",
    );
  } finally {
    await stack.stop();
  }
}

await main().then(() => Deno.exit(0), (error: unknown) => {
  console.error(error instanceof Error ? error.stack : String(error));
  Deno.exit(1);
});
