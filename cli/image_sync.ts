/** The operator's commands: `deno run -A cli/image_sync.ts status`; see `--help`. */
import { join } from "node:path";
import process from "node:process";
import { calledAs } from "./called_as.ts";
import type { Host } from "./host.ts";
import { main } from "./main.ts";
import { packageRoot } from "./package_root.ts";
import { goThroughProxy } from "./proxy.ts";

const host: Host = {
  env: process.env,
  directory: process.cwd(),
  program: calledAs({ env: process.env, directory: process.cwd() }),
  stackFile: join(packageRoot, ".local/stack.json"),
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

goThroughProxy();
process.exitCode = await main(process.argv.slice(2), host);
