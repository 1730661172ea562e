import { fileURLToPath } from "node:url";
import type { Figures } from "./parts.ts";
import { scaleTables } from "./scale_model.ts";
import { table } from "./table.ts";
import { type Target, TARGET_IDS } from "./targets.ts";
import type { Cost } from "./scale.ts";

const resultsPath = fileURLToPath(new URL("./results.json", import.meta.url));
const pagePath = fileURLToPath(new URL("../docs/performance.md", import.meta.url));
const scalePath = fileURLToPath(new URL("../docs/scale.md", import.meta.url));

/** What was measured, part by part, with the machine and the day of the newest. */
export type Results = { readonly machine: string; readonly parts: Readonly<Record<string, Figures>> };

/** Reads `bench/results.json`. */
export async function readResults(): Promise<Results> {
  return JSON.parse(await Deno.readTextFile(resultsPath)) as Results;
}

/** Puts what parts gave into `bench/results.json`, and its tables into the pages. */
export async function writeResults(
  figures: Readonly<Record<string, Figures>>,
  postgres: string,
): Promise<void> {
  const results = { machine: machine(postgres), parts: { ...(await readResults()).parts, ...figures } };
  await Deno.writeTextFile(resultsPath, JSON.stringify(results, null, 2) + "\n");
  await writePages();
}

/** Makes the tables of `docs/performance.md` and `docs/scale.md` anew from `bench/results.json`. */
export async function writePages(): Promise<void> {
  const results = await readResults();
  await replaceMeasured(pagePath, performanceTables(results));
  await replaceMeasured(scalePath, scaleTables(results));
  const format = { args: ["fmt", "--quiet", pagePath, scalePath, resultsPath] };
  await new Deno.Command(Deno.execPath(), format).output();
}

/** The tables of `docs/performance.md`. */
export function performanceTables(results: Results): string {
  const parts = Object.values(results.parts);
  const targets = parts.flatMap((part) => part.targets).toSorted((one, other) =>
    placeOf(one) - placeOf(other)
  );
  const costs = parts.flatMap((part) => part.costs).toSorted((one, other) => one.objects - other.objects);
  return [results.machine, targetTable(targets), costTables(costs)].join("\n\n");
}

const placeOf = (target: Target) => TARGET_IDS.findIndex((id) => id === target.id);

async function replaceMeasured(path: string, tables: string): Promise<void> {
  const page = await Deno.readTextFile(path);
  const [head, rest] = page.split("<!-- measured -->");
  const tail = rest?.split("<!-- end -->")[1] ?? "\n";
  await Deno.writeTextFile(path, `${head}<!-- measured -->\n\n${tables}\n\n<!-- end -->${tail}`);
}

/** The targets as a table in text, and below it what each of them is: side by side they would be wider than a screen. */
export function targetTable(targets: readonly Target[]): string {
  const rows = targets.map(({ id, value, op, target, met, spread }) => [
    `\`${id}\``,
    value,
    spread && `${spread[0]} to ${spread[1]}`,
    `${op} ${target}`,
    met ? "yes" : "**no**",
  ]);
  const words = targets.map(({ id, what }) => `- \`${id}\`: ${what}`);
  return [table(["figure", "median", "spread", "target", "met"], rows), "", ...words].join("\n");
}

type Column = readonly [title: string, read: (cost: Cost) => string | number | null];

function costTables(costs: readonly Cost[]): string {
  const run: readonly Column[] = [
    ["objects", (c) => c.objects.toLocaleString("en")],
    ["run", (c) => c.kind],
  ];
  const taken: readonly Column[] = [
    ["s", (c) => c.seconds],
    ["objects/s", (c) => c.objects_per_second.toLocaleString("en")],
    ["requests", (c) => c.requests],
    ["rows written", (c) => c.rows_written.toLocaleString("en")],
    ["WAL MB", (c) => c.wal_mb],
    ["invocations", (c) => c.invocations],
  ];
  const spent: readonly Column[] = [
    ["function", (c) => c.cpu_ms_per_1000],
    ["Postgres", (c) => c.database_ms_per_1000 ?? null],
    ["memory", (c) => c.memory_above_idle_mb],
    ["RPC", (c) => c.slowest_rpc_ms],
    ["first tenth", (c) => c.chunk_ms_first_tenth],
    ["last tenth", (c) => c.chunk_ms_last_tenth],
    ["hand-off", (c) => c.hand_off_ms],
  ];
  const tableOf = (columns: readonly Column[]) =>
    table(columns.map(([title]) => title), costs.map((cost) => columns.map(([, read]) => read(cost))));
  return [
    "What runs took:",
    tableOf([...run, ...taken]),
    "CPU of the function and of Postgres in ms per 1,000 objects; memory above idle in MB; in ms the slowest RPC, " +
    "a chunk in the first and in the last tenth of the run, and a hand-off:",
    tableOf([...run, ...spent]),
  ].join("\n\n");
}

function machine(postgres: string): string {
  const { deno, v8 } = Deno.version;
  const memory = Math.round(Deno.systemMemoryInfo().total / 2 ** 30);
  return `Measured on ${
    new Date().toISOString().slice(0, 10)
  }: ${navigator.hardwareConcurrency} cores, ${memory} GiB, ${Deno.build.os}; Deno ${deno} (V8 ${v8}), ${postgres}. Everything runs on these cores: Postgres, the gateway with its stand-ins, the function.`;
}
