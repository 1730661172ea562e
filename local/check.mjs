#!/usr/bin/env node
// `npm run check`: format, lint, types, the way that imports run, and the generated migration. Each is asked whatever the others say, and
// what fails says which command mends it.
import { spawnSync } from "node:child_process";
import process from "node:process";
import { wrongWays } from "./directions.mjs";
import { projectFiles } from "./files.mjs";

const deno = (...args) => () =>
  spawnSync("deno", args, { stdio: "inherit", shell: process.platform === "win32" }).status === 0;

const CHECKS = [
  ["format", deno("fmt", "--check", "--quiet"), "npm run format writes it right"],
  ["lint", deno("lint", "--quiet"), "deno lint --fix mends what can be mended by itself"],
  [
    "types",
    deno("check", "--quiet"),
    "the compiler says above where; npm run db:types writes those of the database",
  ],
  [
    "imports",
    directions,
    "docs/decisions.md says which way they run; local/directions.mjs is where it is written down",
  ],
  ["migration", deno("run", "-A", "--quiet", "local/migration.ts", "--check"), "npm run migration writes it"],
];

function directions() {
  const wrong = wrongWays(projectFiles(/\.tsx?$/));
  for (const line of wrong) console.error(line);
  return wrong.length === 0;
}

const failed = CHECKS.filter(([, holds]) => !holds());
for (const [name, , remedy] of failed) console.error(`\n${name} failed: ${remedy}`);
if (failed.length === 0) console.log(`Checked ${CHECKS.map(([name]) => name).join(", ")}: all is well`);
process.exitCode = failed.length === 0 ? 0 : 1;
