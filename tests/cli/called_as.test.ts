/** Commands are named the way that this one was called, never as a package of a registry. */
import { expect, test } from "vitest";
import { calledAs } from "../../cli/called_as.ts";
import { runCommand } from "./support/run_command.ts";

const directory = "/home/shop";

test.each<[string, Record<string, string>, string]>([
  ["by npx", { npm_command: "exec", IMAGE_SYNC_CALLED_AS: "/clone/cli/image-sync.mjs" }, "npx image-sync"],
  [
    "by a script of its owner's package.json",
    { npm_command: "run-script", IMAGE_SYNC_CALLED_AS: "/home/shop/node_modules/.bin/image-sync" },
    "npx image-sync",
  ],
  [
    "by its path in node_modules",
    { IMAGE_SYNC_CALLED_AS: "/home/shop/node_modules/.bin/image-sync" },
    "npx image-sync",
  ],
  ["by a link on the PATH", { IMAGE_SYNC_CALLED_AS: "/usr/local/bin/image-sync" }, "image-sync"],
  [
    "by Node, from beside it",
    { IMAGE_SYNC_CALLED_AS: "/home/clone/cli/image-sync.mjs" },
    "node ../clone/cli/image-sync.mjs",
  ],
  [
    "from a path with spaces",
    { IMAGE_SYNC_CALLED_AS: "/home/shop/our tools/image-sync.mjs" },
    'node "our tools/image-sync.mjs"',
  ],
])("called %s", (_how, env, program) => {
  expect(calledAs({ env, directory })).toBe(program);
});

test("what is said uses that name; through npm its script", async () => {
  const env = { SUPABASE_URL: "http://127.0.0.1:1", SUPABASE_SECRET_KEY: "sb_secret_x" };
  const usage = ["buckets", "add"];
  const by = async (settings: { program?: string; env?: Record<string, string> }) =>
    (await runCommand(usage, { ...settings, env: { ...env, ...settings.env } })).stderr;
  expect(await by({})).toContain("use npx image-sync buckets, npx image-sync buckets add NAME");
  expect(await by({ program: "image-sync" })).toContain(
    "use image-sync buckets, image-sync buckets add NAME",
  );
  expect(await by({ env: { npm_lifecycle_event: "buckets" } })).toContain("use npm run buckets, ");
});
