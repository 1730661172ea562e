// Runs a program with the Deno that npm installed. The platform's own executable is started where it is there, because npm's wrapper
// around it neither waits for Ctrl-C to be handled nor passes signals on.
import { spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import process from "node:process";

/**
 * Ends this process as the program ends.
 *
 * @param {string} entry the program's module
 * @param {readonly string[]} args what it is given
 */
export function runWithDeno(entry, args) {
  const denoDirectory = findDeno();
  if (denoDirectory === undefined) {
    console.error("Cannot run the commands of a clone without what they need: npm ci brings it");
    process.exit(2);
  }
  const executable = join(denoDirectory, process.platform === "win32" ? "deno.exe" : "deno");
  const [command, ...wrapper] = existsSync(executable)
    ? [executable]
    : [process.execPath, join(denoDirectory, "bin.cjs")];
  const child = spawn(command, [...wrapper, "run", "--quiet", "-A", entry, ...args], { stdio: "inherit" });
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) process.on(signal, () => child.kill(signal));
  child.on("error", (error) => {
    console.error(`Cannot start Deno at ${command}: ${error.message}; run npm ci again`);
    process.exitCode = 2;
  });
  child.on("exit", (code, signal) => {
    if (signal === null) {
      process.exitCode = code ?? 2;
      return;
    }
    process.removeAllListeners(signal);
    process.kill(process.pid, signal); // as the child died, so that a shell sees the same
  });
}

function findDeno() {
  try {
    return dirname(createRequire(import.meta.url).resolve("deno/package.json"));
  } catch {
    return undefined;
  }
}
