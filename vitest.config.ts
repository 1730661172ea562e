import "./local/surroundings.mjs";
import { configDefaults, defineConfig } from "vitest/config";
import { isGiven } from "./tests/support/given.ts";
import { BaseSequencer, type TestSpecification } from "vitest/node";

// Minutes long, and most of that waiting. They begin first: whichever began last would be what all wait for.
const longest = [
  "tests/reliability/disturbances.test.ts",
  "tests/workflow/start.test.ts",
  "tests/workflow/machines.test.ts",
  "tests/report/findings.test.ts",
  "tests/reliability/faults.test.ts",
  "tests/security/endpoint.test.ts",
  "tests/reliability/crash_matrix.test.ts",
  "tests/local/pg_cron.test.ts",
  "tests/local/scheduler.test.ts",
];

// Each keeps a processor busy for most of its time, a browser or thousands of files: two of them at once.
const busy = [
  "tests/sync/verify.test.ts",
  "tests/window/operator.test.ts",
  "tests/window/pages.test.ts",
  "tests/workflow/export.test.ts",
];

// What they measure in milliseconds and processor time is one machine's work: they run one at a time, after all others.
const timed = [
  "tests/register/limits.test.ts",
  "tests/report/large.test.ts",
  "tests/security/limits.test.ts",
];

class LongestFirst extends BaseSequencer {
  override async sort(files: TestSpecification[]): Promise<TestSpecification[]> {
    const place = ({ moduleId }: TestSpecification) => {
      const found = longest.findIndex((file) => moduleId.endsWith(file));
      return found < 0 ? longest.length : found;
    };
    return (await super.sort(files)).toSorted((a, b) => place(a) - place(b));
  }
}

export default defineConfig({
  oxc: { jsx: { runtime: "automatic", importSource: "hono/jsx" } },
  test: {
    environment: "node",
    pool: "forks",
    // A Supabase that is given is one for all of them.
    fileParallelism: !isGiven(),
    ...(isGiven()
      ? { globalSetup: "tests/support/guard.ts", setupFiles: ["tests/support/refuse_unsafe.ts"] }
      : {}),
    testTimeout: 30_000,
    hookTimeout: 90_000,
    sequence: { sequencer: LongestFirst },
    projects: [
      {
        extends: true,
        test: {
          name: "together",
          include: ["tests/**/*.test.ts"],
          exclude: [...configDefaults.exclude, ...busy, ...timed],
          // Twice the processors that there may be: these wait for half of their time.
          maxWorkers: 4,
          sequence: { groupOrder: 0 },
        },
      },
      {
        extends: true,
        test: { name: "busy", include: busy, maxWorkers: 2, sequence: { groupOrder: 1 } },
      },
      {
        extends: true,
        test: { name: "alone", include: timed, maxWorkers: 1, sequence: { groupOrder: 2 } },
      },
    ],
  },
});
