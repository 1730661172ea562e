/** The operator's commands: `deno run -A cli/image_sync.ts status`; see `--help`. */
import process from "node:process";
import { fileURLToPath } from "node:url";
import type { Host } from "./host.ts";
import { main } from "./main.ts";

const host: Host = {
  env: process.env,
  directory: process.cwd(),
  stackFile: fileURLToPath(new URL("../.local/stack.json", import.meta.url)),
  stdin: () => process.stdin,
  stdout: process.stdout,
  stderr: process.stderr,
  onInterrupt: (act) => {
    for (const signal of ["SIGINT", "SIGTERM"] as const) process.on(signal, act);
    return () => {
      for (const signal of ["SIGINT", "SIGTERM"] as const) process.off(signal, act);
    };
  },
};

// A reader that has seen enough (`| head`) is no error.
process.stdout.on("error", (error: NodeJS.ErrnoException) => {
  if (error.code !== "EPIPE") throw error;
});

process.exitCode = await main(process.argv.slice(2), host);
