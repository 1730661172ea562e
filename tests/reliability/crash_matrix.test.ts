import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { projectDirectory } from "../support/stack.ts";
import type { Route } from "./fault_proxy.ts";
import {
  control,
  createBucket,
  endSessions,
  type EndState,
  fileNames,
  finishedRun,
  lastRun,
  openScene,
  passTime,
  poll,
  post,
  readEndState,
  type Scene,
  startSync,
} from "./support/scene.ts";

let scene: Scene;
beforeAll(async () => {
  scene = await openScene();
});
afterAll(() => scene?.close());

type Step = {
  readonly name: string;
  readonly route: Route;
  readonly when: "before" | "after";
  /** Tells the closing call of advance from the first one. */
  readonly containing?: string;
  /** Files of the bucket; a hand-off needs more chunks than one invocation may sign. */
  readonly files: number;
};

const few = 5;
const many = 46;
const chunkSizeOf = (files: number) => files === many ? 1 : 2;

const moments = ["before", "after"] as const;
const steps: readonly Step[] = [
  ...moments.map((when): Step => ({ name: `${when} the run is opened`, route: "start", when, files: few })),
  ...moments.map((when): Step => ({
    name: `${when} the first chunk is listed and leased`,
    route: "advance",
    when,
    files: few,
  })),
  ...moments.map((when): Step => ({ name: `${when} the signing call`, route: "sign", when, files: few })),
  ...moments.map((when): Step => ({
    name: `${when} records are written and a chunk is leased`,
    route: "advance",
    when,
    containing: `"p_closing"`,
    files: few,
  })),
  ...moments.map((when): Step => ({ name: `${when} the hand-off`, route: "hand_off", when, files: many })),
  ...moments.map((when): Step => ({ name: `${when} the probe`, route: "probe", when, files: few })),
  ...moments.map((when): Step => ({
    name: `${when} the run is finished`,
    route: "finish",
    when,
    files: few,
  })),
];

type Crash = { readonly name: string; readonly strike: () => Promise<void>; readonly losesWorker: boolean };

const crashes: readonly Crash[] = [
  { name: "worker killed", strike: () => control(scene, "/function/kill"), losesWorker: true },
  { name: "connections ended", strike: () => endSessions(scene.sql), losesWorker: false },
  {
    name: "Postgres killed",
    strike: async () => {
      await control(scene, "/postgres/crash");
      await control(scene, "/postgres/restart");
      await poll(async () => (await scene.sql`select 1`.catch(() => [])).length === 1, {
        what: "Postgres answered",
      });
    },
    losesWorker: false,
  },
];

const undisturbed = new Map<number, EndState>();

async function newBucket(files: number): Promise<string> {
  return await createBucket(scene, {
    files: fileNames(files),
    settings: { chunk_size: chunkSizeOf(files), probe_size: 1 },
  });
}

async function undisturbedEnd(files: number): Promise<EndState> {
  const known = undisturbed.get(files);
  if (known !== undefined) return known;
  const bucket = await newBucket(files);
  await startSync(scene, bucket);
  await finishedRun(scene, bucket);
  const state = await readEndState(scene, bucket);
  expect(state).toMatchObject({ outcome: "succeeded", badUrls: [], runs: 1, balanced: true, leases: 0 });
  expect(state.records).toHaveLength(files);
  undisturbed.set(files, state);
  return state;
}

// A worker that is left finishes by itself; where none is, leases run out and the watchdog comes.
async function carryOn(bucket: string, losesWorker: boolean): Promise<void> {
  let next = Date.now() + (losesWorker ? 0 : 8_000);
  await poll(async () => {
    const run = await lastRun(scene, bucket).catch(() => undefined);
    if (run !== undefined && run.state !== "open") return true;
    if (Date.now() > next) {
      await passTime(scene, bucket);
      next = Date.now() + 8_000;
    }
    return false;
  }, { what: `the run of ${bucket} ended`, timeoutMs: 60_000 });
}

async function crashAt(step: Step, crash: Crash): Promise<string> {
  const expected = await undisturbedEnd(step.files);
  const bucket = await newBucket(step.files);
  const { route, when, containing } = step;
  const held = scene.proxy.hold({ bucket, route, when, ...(containing === undefined ? {} : { containing }) });
  const request = post(scene, { bucket }).catch(() => undefined);
  await held.reached;
  await crash.strike();
  held.release();
  // A caller whose request got no answer asks again, and meets the run that is open.
  if ((await request)?.status !== 202) await startSync(scene, bucket);
  await carryOn(bucket, crash.losesWorker);
  expect(await readEndState(scene, bucket)).toEqual(expected);
  return "as undisturbed";
}

const outcomes = new Map<string, string>();

describe.each(crashes)("a run whose $name", (crash) => {
  test.each(steps)("$name ends as one that nothing disturbed", { timeout: 60_000 }, async (step) => {
    outcomes.set(`${step.name} ${crash.name}`, await crashAt(step, crash));
  });
});

// Written by the test, so that the page cannot say what was not seen. Only a whole matrix is written.
afterAll(async () => {
  if (outcomes.size < steps.length * crashes.length) return;
  const rows = [
    ["the moment", ...crashes.map(({ name }) => name)],
    ...steps.map((step) => [
      step.name,
      ...crashes.map((crash) => outcomes.get(`${step.name} ${crash.name}`) ?? "not run"),
    ]),
  ];
  // As the formatter aligns it, so that a run of the tests leaves the page as it was.
  const widths = rows[0]?.map((_, column) => Math.max(...rows.map((cells) => cells[column]?.length ?? 0))) ??
    [];
  const line = (cells: readonly string[]) =>
    `| ${cells.map((cell, column) => cell.padEnd(widths[column] ?? 0)).join(" | ")} |`;
  const [titles = [], ...body] = rows;
  const table = [line(titles), line(widths.map((width) => "-".repeat(width))), ...body.map(line)].join("\n");
  const page = join(projectDirectory, "docs/reliability.md");
  const text = await readFile(page, "utf8");
  const updated = text.replace(
    /(<!-- crash matrix -->)[^]*?(<!-- end -->)/,
    (_, start, end) => `${start}\n\n${table}\n\n${end}`,
  );
  if (updated !== text) await writeFile(page, updated);
});
