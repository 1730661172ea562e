import { configDefaults, defineConfig } from "vitest/config";

// What they measure in seconds is about one machine's work: they run one at a time, after all others.
const timed = [
  "tests/register/limits.test.ts",
  "tests/report/large.test.ts",
  "tests/security/limits.test.ts",
  "tests/sync/verify.test.ts",
  "tests/window/operator.test.ts",
  "tests/window/pages.test.ts",
  "tests/workflow/export.test.ts",
];

export default defineConfig({
  oxc: { jsx: { runtime: "automatic", importSource: "hono/jsx" } },
  test: {
    environment: "node",
    pool: "forks",
    // A Supabase that is given is one for all of them.
    fileParallelism: process.env["IMAGE_SYNC_TEST_URL"] === undefined,
    testTimeout: 30_000,
    hookTimeout: 90_000,
    projects: [
      {
        extends: true,
        test: {
          name: "together",
          include: ["tests/**/*.test.ts"],
          exclude: [...configDefaults.exclude, ...timed],
          // A file usually has a stack of its own: more of them at once would wait for each other.
          maxWorkers: 2,
          sequence: { groupOrder: 0 },
        },
      },
      {
        extends: true,
        test: { name: "alone", include: timed, maxWorkers: 1, sequence: { groupOrder: 1 } },
      },
    ],
  },
});
