import { type ChildProcess, spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { z } from "zod";

const readySchema = z.object({
  url: z.string(),
  dbUrl: z.string(),
  adminDbUrl: z.string(),
  secretKey: z.string(),
  publishableKey: z.string(),
  scheduleKey: z.string(),
  hasCron: z.boolean(),
  pids: z.object({ serve: z.number(), postgres: z.number(), function: z.number().nullable() }),
});

/** A stack in a process of its own. */
export type LocalStack = z.infer<typeof readySchema> & {
  /** What the stack has logged so far, one line each. */
  readonly log: readonly string[];
  /** Stops the stack and waits until everything of it is gone. Repeating it is harmless. */
  stop(): Promise<void>;
};

const checkout = fileURLToPath(new URL("../..", import.meta.url));
const startTimeout = 60_000; // ms

/** The directory of the project. */
export const projectDirectory: string = checkout;

/** The Deno that npm installed. */
export const denoPath: string = fileURLToPath(new URL("../../node_modules/.bin/deno", import.meta.url));

/**
 * Starts a stack on free ports, without a state file: any number may run side by side.
 *
 * @param args flags of `local/serve.ts`, such as `--no-function` or `--postgres BINDIR`
 * @throws {Error} when it does not start; the message has what it logged.
 */
export async function startLocalStack(args: readonly string[] = []): Promise<LocalStack> {
  const child = spawn(denoPath, ["run", "-A", "local/serve.ts", "--fast", ...args], {
    cwd: checkout,
    stdio: ["pipe", "pipe", "pipe"], // its standard input closes with this process, and that stops it
  });
  const log: string[] = [];
  createInterface({ input: child.stderr }).on("line", (line) => log.push(line));
  const ended = new Promise<void>((resolve) => child.once("close", () => resolve()));
  const stop = async () => {
    child.stdin.end();
    await ended;
  };
  try {
    return { ...readySchema.parse(JSON.parse(await firstLine(child, ended, log))), log, stop };
  } catch (error) {
    await stop();
    throw error;
  }
}

async function firstLine(
  child: ChildProcess & { stdout: NodeJS.ReadableStream },
  ended: Promise<void>,
  log: readonly string[],
): Promise<string> {
  const fail = (reason: string): never => {
    throw new Error(`Cannot start a local stack: ${reason}\n${log.slice(-30).join("\n")}`);
  };
  let timer: NodeJS.Timeout | undefined;
  const patience = new Promise<void>((resolve) => timer = setTimeout(resolve, startTimeout));
  const line = new Promise<string>((resolve) =>
    createInterface({ input: child.stdout }).once("line", resolve)
  );
  try {
    return await Promise.race([
      line,
      ended.then(() => fail(`it ended with status ${child.exitCode}`)),
      patience.then(() => fail(`it was not ready after ${startTimeout / 1000} s`)),
    ]);
  } finally {
    clearTimeout(timer);
  }
}
