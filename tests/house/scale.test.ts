/** docs/scale.md says what bench/scale_model.ts reckons from bench/results.json. */
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { expect, test } from "vitest";
import type { Results } from "../../bench/report.ts";
import { firstLimit, monthOf, nightOf, scaleTables } from "../../bench/scale_model.ts";
import { projectDirectory } from "../support/stack.ts";

const read = (path: string) => readFile(join(projectDirectory, path), "utf8");
const results = JSON.parse(await read("bench/results.json")) as Results;

/** Without what the formatter aligns and wraps. */
const plain = (text: string) => text.replaceAll(/-{3,}/g, "---").replaceAll(/\s+/g, " ").trim();

test("the page's tables are what the arithmetic gives for the newest measurements", async () => {
  const measured = (await read("docs/scale.md")).split("<!-- measured -->")[1]?.split("<!-- end -->")[0] ??
    "";
  expect(plain(measured)).toBe(plain(scaleTables(results)));
});

test("a million in one bucket costs what was measured", () => {
  const [first, unchanged] = ["first sync", "unchanged sync"].map((kind) =>
    results.parts["million"]?.costs.find((cost) => cost.kind === kind)
  );
  const signing = nightOf(results, "signing", 1_000_000, 1);
  expect(signing.minutes * 60).toBeCloseTo(first?.seconds ?? NaN, 3);
  expect(signing.walMb).toBeCloseTo(first?.wal_mb ?? NaN, 3);
  // What the run counted: invocations end by their budget, with a chunk more in each lane that was at one.
  expect(signing.invocations).toBeGreaterThanOrEqual(first?.invocations ?? NaN);
  expect(signing.invocations).toBeLessThanOrEqual(1.1 * (first?.invocations ?? NaN) + 1);
  expect(nightOf(results, "quiet", 1_000_000, 1).minutes * 60).toBeCloseTo(unchanged?.seconds ?? NaN, 3);
});

test("ten million cost what the arithmetic says, but for a third more of the database's CPU", () => {
  for (const [kind, run] of [["signing", "first sync"], ["quiet", "unchanged sync"]] as const) {
    const measured = results.parts["ten-million"]?.costs.find((cost) => cost.kind === run);
    if (measured === undefined) throw new Error(`${run} of ten million was not measured`);
    const night = nightOf(results, kind, 10_000_000, 1);
    expect(night.invocations / measured.invocations).toBeGreaterThan(0.9);
    expect(night.invocations / measured.invocations).toBeLessThan(1.1);
    expect(measured.database_ms_per_1000 * 10 / night.databaseS).toBeGreaterThan(1);
    expect(measured.database_ms_per_1000 * 10 / night.databaseS).toBeLessThan(1.35);
    expect(measured.seconds / 60 / night.minutes).toBeLessThan(1.2);
  }
});

test("twenty buckets cost an invocation each at least, and otherwise what their objects cost", () => {
  const [one, twenty] = [1, 20].map((buckets) => nightOf(results, "quiet", 4_000, buckets));
  expect(one?.invocations).toBe(1);
  expect(twenty?.invocations).toBe(20);
  expect(twenty?.functionCpuS).toBe(one?.functionCpuS);
});

test("the limit that is met first on Free is the database's size, where the page says", () => {
  expect(firstLimit(monthOf(results, 370_000, 1), "Free")).toMatchObject({ limit: "database size" });
  expect(firstLimit(monthOf(results, 350_000, 1), "Free").used).toBeLessThan(1);
  expect(firstLimit(monthOf(results, 390_000, 1), "Free").used).toBeGreaterThan(1);
  expect(firstLimit(monthOf(results, 5_500_000, 1), "Pro").used).toBeLessThan(1);
  expect(firstLimit(monthOf(results, 6_500_000, 1), "Pro").used).toBeGreaterThan(1);
});
