#!/usr/bin/env node
// `npm start`: sees to what is missing and runs the demonstration with the Deno that npm installed. Deno's own executable is
// started, because npm's wrapper around it neither waits for Ctrl-C to be handled nor passes signals on.
import { spawn, spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { makeReady } from "./ready.mjs";

// npm, or the shell that it runs scripts in, may go away without a word, even before this line is reached.
const parent = process.ppid;
const isScript = process.env.npm_lifecycle_event !== undefined;
const above = isScript ? parentOf(parent) : undefined;
const wasLeftBehind = isScript && isLeftBehind();

function isOnOurOwn() {
  return wasLeftBehind || process.ppid !== parent || (above > 1 && !isAlive(above));
}

// Whoever runs scripts stands above us, or above the shell between us. Where it went away before we looked, the system's first process
// has taken its place; without ps nobody can tell.
function isLeftBehind() {
  if (parent !== 1 && above !== 1) return false;
  const commands = [commandOf(parent), commandOf(1)];
  return commands.every((command) => command !== "" && !/npm|pnpm|yarn|bun/.test(command));
}

function parentOf(pid) {
  const found = ask("ppid", pid);
  return found === "" ? undefined : Number(found);
}

function commandOf(pid) {
  return ask("args", pid);
}

function ask(what, pid) {
  const { stdout } = spawnSync("ps", ["-o", `${what}=`, "-p", String(pid)], { encoding: "utf8" });
  return stdout?.trim() ?? "";
}

function isAlive(pid) {
  try {
    return process.kill(pid, 0);
  } catch (error) {
    return error.code === "EPERM";
  }
}

makeReady();
const denoDirectory = dirname(createRequire(import.meta.url).resolve("deno/package.json"));
const executable = join(denoDirectory, process.platform === "win32" ? "deno.exe" : "deno");
const [command, ...wrapper] = existsSync(executable)
  ? [executable]
  : [process.execPath, join(denoDirectory, "bin.cjs")];
const main = fileURLToPath(new URL("demo/main.ts", import.meta.url));
// Warnings of dependencies say nothing to whoever tries this out.
const env = { ...process.env, NODE_NO_WARNINGS: "1" };
const child = spawn(command, [
  ...wrapper,
  "run",
  "--quiet",
  "--unstable-no-legacy-abort",
  "-A",
  main,
  ...process.argv.slice(2),
], {
  stdio: "inherit",
  env,
});
// It stops what it started; where it cannot, its parts see that it is gone and stop by themselves.
const PATIENCE_MS = 10_000;
let isEnding = false;
function stop(signal) {
  child.kill(signal);
  if (!isEnding) setTimeout(() => child.kill("SIGKILL"), PATIENCE_MS).unref();
  isEnding = true;
}
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) process.on(signal, () => stop(signal));
setInterval(() => isOnOurOwn() && stop("SIGTERM"), 500).unref();
child.on("error", (error) => {
  console.error(`Cannot start Deno at ${command}: ${error.message}; run npm ci again`);
  process.exitCode = 2;
});
child.on("exit", (code) => process.exit(code ?? 1));
