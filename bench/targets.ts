/** Every figure that is promised: what it is, and what it has to be. Figures are made in the parts (`parts.ts`). */
const TARGETS = {
  seed_loopback_ratio: ["seed case, loopback: baseline / ours", ">=", 20],
  seed_50ms_ratio: ["seed case, 50 ms a request: baseline / ours", ">=", 300],
  seed_requests: ["seed case: HTTP requests of a first sync, the probe apart", "<=", 20],
  seed_cold_s: ["seed case, cold connections: from the request to the first chunk, s", "<=", 0.35],
  obvious_first_50ms_ratio: ["obvious function / ours, 50 ms: first sync of the seed case", ">=", 1.5],
  obvious_unchanged_50ms_ratio: ["obvious function / ours, 50 ms: an unchanged night", ">=", 4],
  obvious_first_100k_ratio: ["obvious function / ours, 100k, loopback: first sync", ">=", 2],
  obvious_unchanged_100k_ratio: ["obvious function / ours, 100k, loopback: an unchanged night", ">=", 10],
  neighbours_ratio_100k: [
    "two buckets of 100k with the same file names: first sync of the second, beside the first / alone",
    "<=",
    1.15,
  ],
  buckets_20_ratio: ["20 buckets of 50k in one night / one bucket of 1M", "<=", 1.2],
  buckets_20_faulty_ratio: ["the same, one bucket's calls answered by 503: the other 19 / all 20", "<=", 1.1],
  verify_floor_ratio: ["verify of 100k at 10 ms a fetch: time / (fetches x 10 ms / parallelism)", "<=", 1.3],
  million_floor_ratio: ["first sync of 1M: ours / floor", "<=", 1.5],
  million_unchanged_fraction: ["unchanged sync of 1M / its first sync", "<=", 0.15],
  million_unchanged_rows_written: ["unchanged sync of 1M: rows written", "==", 0],
  million_unchanged_storage_calls: ["unchanged sync of 1M: Storage calls", "==", 0],
  cost_growth_1m_10k: ["first sync: time per 1,000 objects, 1M / 10k", "<=", 1.2],
  cost_growth_10m_1m: ["time per 1,000 objects, 10M / 1M: the worse of first and unchanged", "<=", 1.2],
  slowest_rpc_ms_1m: ["slowest single RPC at 1M, ms", "<=", 1000],
  memory_above_idle_mb_1m: ["function's memory above idle at 1M, MB", "<=", 64],
  cpu_ms_per_1000_signed: ["function's CPU per 1,000 signed, ms", "<=", 10],
  cpu_ms_per_1000_unchanged: ["function's CPU per 1,000 unchanged, ms", "<=", 0.2],
  hand_off_ms_1m: ["what a hand-off costs a first sync of 1M, ms", "<=", 20],
  workers_2_ratio: ["two workers on 1M, on two cores / one", "<=", 1.05],
  workers_4_ratio: ["four workers on 1M, on two cores / one", "<=", 1.05],
  report_ms_1m: ["GET report at 1M, ms", "<=", 50],
  window_rpc_ms_1m: ["the window at 1M: the slowest of the looks that its pages take, ms", "<=", 50],
  window_first_view_ms_1m: ["the window at 1M: first view of the slowest page, ms", "<=", 200],
} as const satisfies Record<string, readonly [what: string, op: "<=" | ">=" | "==", target: number]>;

/** The name of a figure that is promised. */
export type TargetId = keyof typeof TARGETS;

/** A figure that was promised, and what it came to. */
export type Target = {
  readonly id: string;
  readonly what: string;
  readonly value: number;
  readonly op: "<=" | ">=" | "==";
  readonly target: number;
  readonly met: boolean;
  /** Lowest and highest of its rounds. */
  readonly spread?: readonly [number, number];
};

/** In the order of the table. */
export const TARGET_IDS = Object.keys(TARGETS) as readonly TargetId[];

/**
 * Holds a figure against its target.
 *
 * @param scale what the target is multiplied by, where it is promised for a machine of the speed of another day's
 */
export function hold(id: TargetId, values: readonly number[], scale = 1): Target {
  const [what, op, promised] = TARGETS[id];
  const target = round(promised * scale);
  const sorted = values.toSorted((a, b) => a - b);
  const value = round(sorted[Math.floor(sorted.length / 2)] ?? NaN);
  const met = op === "<=" ? value <= target : op === ">=" ? value >= target : value === target;
  const [lowest, highest] = [sorted[0], sorted.at(-1)];
  const spread = sorted.length > 1 && lowest !== undefined && highest !== undefined
    ? { spread: [round(lowest), round(highest)] as const }
    : {};
  return { id, what, value, op, target, met, ...spread };
}

function round(value: number): number {
  return Math.round(value * 1000) / 1000;
}
