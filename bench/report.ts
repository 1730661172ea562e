import { fileURLToPath } from "node:url";
import type { Cost } from "./scale.ts";
import type { Target } from "./targets.ts";

const resultsPath = fileURLToPath(new URL("./results.json", import.meta.url));
const pagePath = fileURLToPath(new URL("../docs/performance.md", import.meta.url));

/** What a whole run of the measurements gave. */
export type Results = {
  readonly targets: readonly Target[];
  readonly runs: readonly Record<string, unknown>[];
};

/** Writes `bench/results.json` and the tables of `docs/performance.md`, between its markers. */
export async function writeResults(
  results: Results,
  costs: readonly Cost[],
  postgres: string,
): Promise<void> {
  await Deno.writeTextFile(resultsPath, JSON.stringify(results, null, 2) + "\n");
  const page = await Deno.readTextFile(pagePath);
  const [head, rest] = page.split("<!-- measured -->");
  const tail = rest?.split("<!-- end -->")[1] ?? "\n";
  const tables = [machine(postgres), targetTable(results.targets), costTable(costs)].join("\n\n");
  await Deno.writeTextFile(pagePath, `${head}<!-- measured -->\n\n${tables}\n\n<!-- end -->${tail}`);
}

/** The targets as a table in text. */
export function targetTable(targets: readonly Target[]): string {
  const rows = targets.map(({ id, what, value, op, target, met, spread }) =>
    `| ${what} | \`${id}\` | ${value}${spread ? ` (${spread[0]} to ${spread[1]})` : ""} | ${op} ${target} | ${
      met ? "yes" : "**no**"
    } |`
  );
  return ["| figure | id | median (spread) | target | met |", "| --- | --- | --- | --- | --- |", ...rows]
    .join("\n");
}

function costTable(costs: readonly Cost[]): string {
  const rows = costs.map((cost) =>
    `| ${cost.objects.toLocaleString("en")} | ${cost.kind} | ${cost.seconds} | ${
      cost.objects_per_second.toLocaleString("en")
    } | ${cost.requests} | ${
      cost.rows_written.toLocaleString("en")
    } | ${cost.wal_mb} | ${cost.invocations} | ${cost.cpu_ms_per_1000} | ${cost.memory_above_idle_mb} | ${cost.slowest_rpc_ms} | ${cost.chunk_ms_first_tenth} / ${cost.chunk_ms_last_tenth} | ${cost.hand_off_ms} |`
  );
  return [
    "| objects | run | s | objects/s | requests | rows written | WAL MB | invocations | CPU ms per 1,000 | memory above idle MB | slowest RPC ms | ms a chunk, first / last tenth | ms a hand-off |",
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ...rows,
  ].join("\n");
}

function machine(postgres: string): string {
  const { deno, v8 } = Deno.version;
  const memory = Math.round(Deno.systemMemoryInfo().total / 2 ** 30);
  return `Measured on ${
    new Date().toISOString().slice(0, 10)
  }: ${navigator.hardwareConcurrency} cores, ${memory} GiB, ${Deno.build.os}; Deno ${deno} (V8 ${v8}), ${postgres}. Everything runs on these cores: Postgres, the gateway with its stand-ins, the function.`;
}
