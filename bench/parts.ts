/** The measurements, each by itself: what it measures, and the figures that it gives. */
import { fillBucket, resetTable } from "./bucket.ts";
import { measureBuckets } from "./buckets.ts";
import { BASELINE_THEN, measureCold } from "./cold.ts";
import { say, summarize } from "./measure.ts";
import { measureNeighbours, removeNeighbour } from "./neighbours.ts";
import { runOurs } from "./ours.ts";
import { type Cost, measureScale, type Scale } from "./scale.ts";
import { measureObvious, measureSeedCase, type SeedRound } from "./seed_case.ts";
import type { BenchStack } from "./stack.ts";
import { hold, type Target } from "./targets.ts";
import { measureVerify } from "./verify.ts";
import { measureWindow, slowest } from "./window.ts";

/** How much is measured. */
export type Sizes = {
  readonly small: number;
  readonly middle: number;
  readonly large: number;
  readonly huge: number;
  /** Rounds of what takes seconds, and of what takes minutes. */
  readonly rounds: number;
  readonly largeRounds: number;
};

/** What a part gave. */
export type Figures = {
  readonly targets: readonly Target[];
  readonly runs: readonly Record<string, unknown>[];
  readonly costs: readonly Cost[];
};

/** What parts that ran before gave, by name. */
export type Before = Readonly<Record<string, Figures | undefined>>;

/** A part of the measurements. */
export type Part = {
  readonly name: string;
  readonly what: string;
  /** About so many minutes on two cores. */
  readonly minutes: number;
  readonly measure: (stack: BenchStack, sizes: Sizes, before: Before) => Promise<Figures>;
};

/** Of a part that only runs where it is asked for. */
export const TEN_MILLION = "ten-million";

/** In the order in which they run. */
export const PARTS: readonly Part[] = [
  {
    name: "seed",
    what: "the seed case on loopback, beside baseline and obvious function",
    minutes: 3,
    measure: seedLoopback,
  },
  { name: "network", what: "the seed case at 50 ms a request", minutes: 5, measure: seedNetwork },
  { name: "cold", what: "the seed case on connections that were just opened", minutes: 1, measure: cold },
  { name: "small", what: "10,000 objects", minutes: 1, measure: small },
  {
    name: "middle",
    what: "100,000 objects, and the obvious function beside it",
    minutes: 4,
    measure: middle,
  },
  { name: "neighbours", what: "two buckets with the same file names", minutes: 2, measure: neighbours },
  { name: "verify", what: "opening every URL of 100,000 files", minutes: 3, measure: verify },
  {
    name: "million",
    what: "1,000,000 objects: first nights beside the floor, and the nights after",
    minutes: 8,
    measure: million,
  },
  { name: "window", what: "the window's pages on 1,000,000 objects", minutes: 3, measure: window },
  { name: "workers", what: "two and four workers on 1,000,000 objects", minutes: 3, measure: workers },
  {
    name: "buckets",
    what: "20 buckets of 50,000 in one night, and with one that fails",
    minutes: 3,
    measure: buckets,
  },
  {
    name: TEN_MILLION,
    what: "10,000,000 objects: a first night and one after",
    minutes: 15,
    measure: tenMillion,
  },
];

async function repeat<T>(count: number, measure: () => Promise<T>): Promise<T[]> {
  const results: T[] = [];
  for (let round = 0; round < count; round++) results.push(await measure());
  return results;
}

async function warmUp(stack: BenchStack): Promise<void> {
  await fillBucket(stack, 2_000);
  await repeat(2, async () => (await resetTable(stack, 0), await runOurs(stack)));
}

async function seedLoopback(stack: BenchStack, { rounds }: Sizes): Promise<Figures> {
  await warmUp(stack);
  const runs = await repeat(rounds, () => measureSeedCase(stack, 0));
  return {
    targets: [
      hold("seed_loopback_ratio", runs.map((r) => r.baseline_s / r.ours_s)),
      hold("seed_requests", runs.map((r) => r.ours_requests)),
    ],
    runs,
    costs: [],
  };
}

async function seedNetwork(stack: BenchStack, { rounds }: Sizes): Promise<Figures> {
  const runs: readonly SeedRound[] = await repeat(rounds, () => measureSeedCase(stack, 50));
  return {
    targets: [
      hold("seed_50ms_ratio", runs.map((r) => r.baseline_s / r.ours_s)),
      hold("obvious_first_50ms_ratio", runs.map((r) => r.obvious_s / r.ours_s)),
      hold("obvious_unchanged_50ms_ratio", runs.map((r) => r.obvious_unchanged_s / r.ours_unchanged_s)),
    ],
    runs,
    costs: [],
  };
}

async function cold(stack: BenchStack, { rounds }: Sizes): Promise<Figures> {
  await warmUp(stack);
  const runs = await repeat(rounds, () => measureCold(stack));
  const speed = summarize(runs.map((r) => r.baseline_s)).median / BASELINE_THEN;
  return { targets: [hold("seed_cold_s", runs.map((r) => r.first_chunk_s), speed)], runs, costs: [] };
}

const costsOf = (scale: Scale): Cost[] => [
  ...scale.firsts.slice(-1),
  ...scale.unchanged.slice(-1),
  ...scale.others,
];

async function small(stack: BenchStack, sizes: Sizes): Promise<Figures> {
  const scale = await measureScale(stack, sizes.small, sizes.rounds);
  return { targets: [], runs: [scale], costs: costsOf(scale) };
}

async function middle(stack: BenchStack, sizes: Sizes): Promise<Figures> {
  const scale = await measureScale(stack, sizes.middle, sizes.largeRounds);
  const obvious = await repeat(sizes.rounds, () => measureObvious(stack, sizes.middle));
  return {
    targets: [
      hold("obvious_first_100k_ratio", obvious.map((r) => r.obvious_s / r.ours_s)),
      hold("obvious_unchanged_100k_ratio", obvious.map((r) => r.obvious_unchanged_s / r.ours_unchanged_s)),
    ],
    runs: [scale, ...obvious],
    costs: costsOf(scale),
  };
}

async function neighbours(stack: BenchStack, sizes: Sizes): Promise<Figures> {
  const runs = await repeat(sizes.largeRounds, () => measureNeighbours(stack, sizes.middle));
  await removeNeighbour(stack);
  return { targets: [hold("neighbours_ratio_100k", runs.map((r) => r.ratio))], runs, costs: [] };
}

async function verify(stack: BenchStack, sizes: Sizes): Promise<Figures> {
  const run = await measureVerify(stack, sizes.middle);
  return { targets: [hold("verify_floor_ratio", [run.floor_ratio])], runs: [run], costs: [] };
}

async function million(stack: BenchStack, sizes: Sizes, before: Before): Promise<Figures> {
  const large = await measureScale(stack, sizes.large, sizes.largeRounds);
  const first = secondsPerThousand(large.firsts);
  const all = [...large.firsts, ...large.unchanged, ...large.others];
  const smaller = before["small"]?.costs.filter(({ kind }) => kind === "first sync") ?? [];
  return {
    targets: [
      hold(
        "million_floor_ratio",
        large.firsts.map((c, round) => c.seconds / (large.floors[round]?.sum ?? NaN)),
      ),
      hold("million_unchanged_fraction", large.unchanged.map((c) => secondsPerThousand([c]) / first)),
      hold("million_unchanged_rows_written", large.unchanged.map((c) => c.rows_written)),
      hold("million_unchanged_storage_calls", large.unchanged.map((c) => c.storage_calls)),
      ...smaller.length === 0 ? [] : [hold("cost_growth_1m_10k", [first / secondsPerThousand(smaller)])],
      hold("slowest_rpc_ms_1m", [Math.max(...all.map((c) => c.slowest_rpc_ms))]),
      hold("memory_above_idle_mb_1m", large.firsts.map((c) => c.memory_above_idle_mb)),
      hold("cpu_ms_per_1000_signed", large.firsts.map((c) => c.cpu_ms_per_1000)),
      hold("cpu_ms_per_1000_unchanged", large.unchanged.map((c) => c.cpu_ms_per_1000)),
      ...handOffs(large),
      hold("report_ms_1m", large.report_ms),
    ],
    runs: [large],
    costs: costsOf(large),
  };
}

function handOffs({ firsts }: Scale): Target[] {
  const measured = firsts.map((c) => c.hand_off_ms).filter((ms) => ms !== null);
  return measured.length === 0 ? [] : [hold("hand_off_ms_1m", measured)];
}

async function window(stack: BenchStack, { large }: Sizes): Promise<Figures> {
  const times = await measureWindow(stack, large);
  return {
    targets: [
      hold("window_rpc_ms_1m", slowest(times.rpcs).ms),
      hold("window_first_view_ms_1m", slowest(times.views).ms),
    ],
    runs: [{ ...times, slowest_rpc: slowest(times.rpcs).name, slowest_view: slowest(times.views).name }],
    costs: [],
  };
}

async function workers(stack: BenchStack, { large }: Sizes): Promise<Figures> {
  await fillBucket(stack, large);
  const runs: { workers: number; seconds: number; invocations: number }[] = [];
  // One before and one behind, so that a machine that becomes slower or faster meanwhile is none of the workers' doing.
  for (const count of [1, 2, 4, 1]) {
    await resetTable(stack, 0);
    const run = await runOurs(stack, {}, { workers: count });
    runs.push({ workers: count, seconds: run.seconds, invocations: run.invocations });
    say(`${count} workers: ${run.seconds} s`);
  }
  const secondsOf = (count: number) =>
    summarize(runs.filter((run) => run.workers === count).map(({ seconds }) => seconds)).median;
  return {
    targets: [
      hold("workers_2_ratio", [secondsOf(2) / secondsOf(1)]),
      hold("workers_4_ratio", [secondsOf(4) / secondsOf(1)]),
    ],
    runs,
    costs: [],
  };
}

async function buckets(stack: BenchStack, { large }: Sizes): Promise<Figures> {
  const run = await measureBuckets(stack, large);
  return {
    targets: [hold("buckets_20_ratio", [run.ratio]), hold("buckets_20_faulty_ratio", [run.faulty_ratio])],
    runs: [run],
    costs: [],
  };
}

async function tenMillion(stack: BenchStack, sizes: Sizes, before: Before): Promise<Figures> {
  const huge = await measureScale(stack, sizes.huge, 1, { floor: false, others: false });
  const growth = (costs: readonly Cost[], kind: string) => {
    const smaller = before["million"]?.costs.filter((cost) => cost.kind === kind) ?? [];
    return smaller.length === 0 ? [] : [secondsPerThousand(costs) / secondsPerThousand(smaller)];
  };
  const grown = [...growth(huge.firsts, "first sync"), ...growth(huge.unchanged, "unchanged sync")];
  return {
    targets: grown.length === 0 ? [] : [hold("cost_growth_10m_1m", [Math.max(...grown)])],
    runs: [huge],
    costs: costsOf(huge),
  };
}

function secondsPerThousand(costs: readonly Cost[]): number {
  return summarize(costs.map((c) => c.seconds * 1000 / c.objects)).median;
}
