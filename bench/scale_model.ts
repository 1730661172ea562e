/**
 * What nights cost at sizes that nobody measured: arithmetic on `results.json` and on the platform's limits, and nothing else. It makes
 * the tables of `docs/scale.md`; a test compares the two.
 */
import type { Results } from "./report.ts";
import type { Cost } from "./scale.ts";
import { table } from "./table.ts";

/** Bytes, measured at 100,000 objects: `pg_total_relation_size` divided by rows. */
const BYTES = { record: 694, object: 631, chunk: 2_703 };
/** Kilobytes that the API answers for 1,000 names to sign: the names, and Storage's answer (docs/performance.md). */
const EGRESS_KB_PER_1000 = 17 + 366;
/** Chunks that one invocation signs, seconds that it works and calls of the database that it makes at most (`budget.ts`). */
const INVOCATION = { signedChunks: 40, seconds: 60, calls: 250 };
/** What a bucket's night costs whatever its size: opening it, one look, the end of its run. */
const RPCS_PER_RUN = 4;
/** `signed_url_ttl` less `renew_before`, in days: so often every URL is made anew. And days that chunks are kept. */
const DEFAULTS = { renewedEvery: 5, keepChunks: 14 };
const NIGHTS = 30;

/** Of a month, or at any time. Source: supabase.com/pricing and docs/guides/functions/limits, November 2026. */
const PLANS = {
  Free: { "database size": 0.5, "egress": 5, "invocations": 500_000 },
  Pro: { "database size": 8, "egress": 250, "invocations": 2_000_000 },
} as const;

type Limit = keyof typeof PLANS.Free;

const SIZES: readonly (readonly [objects: number, buckets: number])[] = [
  [4_000, 1],
  [100_000, 1],
  [1_000_000, 1],
  [1_000_000, 20],
  [10_000_000, 1],
  [10_000_000, 20],
  [100_000_000, 1],
  [100_000_000, 20],
];

/** What a night costs. */
export type Night = {
  readonly invocations: number;
  readonly functionCpuS: number;
  readonly rpcs: number;
  readonly storageCalls: number;
  readonly databaseS: number;
  readonly walMb: number;
  readonly egressMb: number;
  readonly minutes: number;
};

/** A night in which every URL is made, and one in which none is; of `objects` in all, spread over `buckets`. */
export function nightOf(
  results: Results,
  kind: "signing" | "quiet",
  objects: number,
  buckets: number,
): Night {
  const cost = measuredCost(results, kind === "signing" ? "first sync" : "unchanged sync");
  const thousands = objects / 1000;
  const share = cost.objects / 1000;
  const seconds = thousands * cost.seconds / share;
  const chunks = buckets * Math.ceil(thousands / buckets);
  const isSigning = kind === "signing";
  const rpcs = RPCS_PER_RUN * buckets + (isSigning ? chunks : Math.ceil(cost.requests * thousands / share));
  const ofBudget = isSigning
    ? chunks / INVOCATION.signedChunks
    : Math.max(seconds / INVOCATION.seconds, rpcs / INVOCATION.calls);
  return {
    invocations: buckets * Math.ceil(ofBudget / buckets),
    functionCpuS: thousands * cost.cpu_ms_per_1000 / 1000,
    rpcs,
    storageCalls: isSigning ? chunks : 0,
    databaseS: thousands * (cost.database_ms_per_1000 ?? 1000 * cost.seconds / share) / 1000,
    walMb: thousands * cost.wal_mb / share,
    egressMb: isSigning ? thousands * EGRESS_KB_PER_1000 / 1000 : 0,
    minutes: seconds / 60,
  };
}

/** What a month of nights by the default settings uses of what a plan has; and what the tables take. */
export function monthOf(results: Results, objects: number, buckets: number): Readonly<Record<Limit, number>> {
  const signingNights = NIGHTS / DEFAULTS.renewedEvery;
  const signing = nightOf(results, "signing", objects, buckets);
  const quiet = nightOf(results, "quiet", objects, buckets);
  const sum = (read: (night: Night) => number) =>
    signingNights * read(signing) + (NIGHTS - signingNights) * read(quiet);
  const chunks = DEFAULTS.keepChunks * buckets * Math.ceil(objects / 1000 / buckets);
  return {
    "database size": (objects * (BYTES.record + BYTES.object) + chunks * BYTES.chunk) / 1e9,
    "egress": sum((night) => night.egressMb) / 1000,
    "invocations": sum((night) => night.invocations),
  };
}

/** The limit of a plan of which most is used, and how much of it: 1 is all of it. */
export function firstLimit(
  use: Readonly<Record<Limit, number>>,
  plan: keyof typeof PLANS,
): { readonly limit: Limit; readonly used: number } {
  const shares = (Object.keys(use) as Limit[]).map((limit) => ({
    limit,
    used: use[limit] / PLANS[plan][limit],
  }));
  return shares.reduce((most, one) => one.used > most.used ? one : most);
}

function measuredCost(results: Results, kind: string): Cost {
  const cost = results.parts["million"]?.costs.find((one) => one.kind === kind);
  if (cost === undefined) throw new Error(`Cannot reckon: ${kind} of a million was not measured`);
  return cost;
}

/** The tables of `docs/scale.md`. */
export function scaleTables(results: Results): string {
  return [
    `From: ${results.machine}`,
    "What a night calls:",
    nightTable(results, [
      ["invocations", (night) => night.invocations.toLocaleString("en")],
      ["RPCs", (night) => night.rpcs.toLocaleString("en")],
      ["Storage calls", (night) => night.storageCalls.toLocaleString("en")],
      ["minutes", (night) => shown(night.minutes)],
    ]),
    "What it takes, CPU in seconds:",
    nightTable(results, [
      ["function CPU", (night) => shown(night.functionCpuS)],
      ["database CPU", (night) => shown(night.databaseS)],
      ["WAL MB", (night) => shown(night.walMb)],
      ["egress MB", (night) => shown(night.egressMb)],
    ]),
    "A month of such nights by the default settings, and which limit of a plan it uses most of:",
    monthTable(results),
  ].join("\n\n");
}

type Column = readonly [title: string, read: (night: Night) => string];

function nightTable(results: Results, columns: readonly Column[]): string {
  const rows = SIZES.flatMap(([objects, buckets]) =>
    (["signing", "quiet"] as const).map((kind) => {
      const night = nightOf(results, kind, objects, buckets);
      return [objects.toLocaleString("en"), buckets, kind, ...columns.map(([, read]) => read(night))];
    })
  );
  return table(["objects", "buckets", "night", ...columns.map(([title]) => title)], rows);
}

function monthTable(results: Results): string {
  const rows = SIZES.map(([objects, buckets]) => {
    const use = monthOf(results, objects, buckets);
    const ofPlan = (plan: keyof typeof PLANS) => {
      const { limit, used } = firstLimit(use, plan);
      return `${limit}: ${used > 1 ? `${shown(used)} x` : used < 0.01 ? "< 1 %" : `${shown(100 * used)} %`}`;
    };
    return [
      objects.toLocaleString("en"),
      buckets,
      shown(use["database size"]),
      shown(use.egress),
      Math.round(use.invocations).toLocaleString("en"),
      ofPlan("Free"),
      ofPlan("Pro"),
    ];
  });
  return table(["objects", "buckets", "tables GB", "egress GB", "invocations", "of Free", "of Pro"], rows);
}

/** Two digits that mean something. */
function shown(value: number): string {
  if (value === 0) return "0";
  return Number(value.toPrecision(2)).toLocaleString("en", { maximumFractionDigits: 4 });
}
