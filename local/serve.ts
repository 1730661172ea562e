/**
 * Runs a stack for another process: `deno run -A local/serve.ts [options]`, on the Postgres of IMAGE_SYNC_POSTGRES=BINDIR where that
 * is set and no `--postgres` is given: in that one the stand-in runs the jobs, which tests can make due.
 *
 * Prints one line of JSON on standard output when the stack is ready, logs on standard error, and runs until
 * SIGTERM, SIGINT or the end of its standard input.
 */
import { parseArgs } from "node:util";
import { type StackOptions, startStack } from "./stack.ts";

function readOptions(args: readonly string[]): StackOptions {
  const { values } = parseArgs({
    args: [...args],
    options: {
      "port": { type: "string", default: "0" },
      "db-port": { type: "string", default: "0" },
      "postgres": { type: "string" },
      "no-migrate": { type: "boolean", default: false },
      "no-function": { type: "boolean", default: false },
      "image-transformation": { type: "boolean", default: false },
      "no-call": { type: "boolean", default: false },
      "function": { type: "string" },
      "function-env": { type: "string", multiple: true, default: [] },
      "function-flag": { type: "string", multiple: true, default: [] },
      "fast": { type: "boolean", default: false },
      "state-file": { type: "string" },
      "quiet": { type: "boolean", default: false },
    },
  });
  const postgres = values.postgres ?? (Deno.env.get("IMAGE_SYNC_POSTGRES") || undefined);
  return {
    port: readPort("--port", values.port),
    dbPort: readPort("--db-port", values["db-port"]),
    ...(postgres === undefined ? {} : { postgresBin: postgres }),
    realCron: values.postgres !== undefined,
    migrate: !values["no-migrate"],
    withFunction: !values["no-function"],
    imageTransformation: values["image-transformation"],
    callOnce: !values["no-call"],
    ...(values.function === undefined ? {} : { functionEntry: values.function }),
    functionEnv: Object.fromEntries(values["function-env"].map(readVariable)),
    functionFlags: values["function-flag"],
    fast: values.fast,
    stateFile: values["state-file"] ?? false,
    log: values.quiet ? () => {} : (line) => console.error(line),
  };
}

function readPort(flag: string, text: string): number {
  const port = Number(text);
  if (Number.isInteger(port) && port >= 0 && port <= 65535) return port;
  throw new Error(`Cannot use ${flag} ${text}: a port is a number from 0 (any free one) to 65535`);
}

function readVariable(text: string): [string, string] {
  const [name, ...value] = text.split("=");
  return [name ?? "", value.join("=")];
}

function stopRequested(): Promise<void> {
  return new Promise((resolve) => {
    for (const signal of ["SIGINT", "SIGTERM"] as const) Deno.addSignalListener(signal, () => resolve());
    Deno.stdin.readable.pipeTo(new WritableStream()).finally(resolve);
  });
}

async function main(): Promise<void> {
  const stopped = stopRequested();
  const stack = await startStack(readOptions(Deno.args));
  console.log(JSON.stringify({
    url: stack.url,
    dbUrl: stack.dbUrl,
    adminDbUrl: stack.adminDbUrl,
    secretKey: stack.secretKey,
    publishableKey: stack.publishableKey,
    scheduleKey: stack.keys.secret.schedule,
    hasCron: stack.hasCron,
    pids: { serve: Deno.pid, postgres: stack.postgres.pid(), function: stack.functionProcess?.pid() ?? null },
  }));
  await stopped;
  await stack.stop();
}

await main().then(() => Deno.exit(0), (error: unknown) => {
  console.error(error instanceof Error ? error.message : String(error));
  Deno.exit(1);
});
