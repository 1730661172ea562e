import { defineConfig } from "vitest/config";

export default defineConfig({
  oxc: { jsx: { runtime: "automatic", importSource: "hono/jsx" } },
  test: {
    include: ["tests/**/*.test.ts"],
    environment: "node",
    pool: "forks",
    // A file usually has a stack of its own: more of them at once would wait for each other.
    maxWorkers: 2,
    // A Supabase that is given is one for all of them.
    fileParallelism: process.env["SUPABASE_URL"] === undefined,
    testTimeout: 30_000,
    hookTimeout: 90_000,
  },
});
