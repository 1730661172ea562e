import { dirname } from "node:path";
import { type Child, startChild } from "../child_process.ts";

/** How to run the Edge Function. */
export type FunctionOptions = {
  /** The module whose default export has `fetch`. */
  readonly entry: string;
  /** The environment that the platform gives it, and the project's own variables. */
  readonly env: Readonly<Record<string, string>>;
  /** More flags for Deno, such as `--v8-flags=...`. */
  readonly denoFlags?: readonly string[];
  readonly log: (line: string) => void;
};

/** The function's process. It is started when a request comes and none runs, as the platform starts isolates. */
export type FunctionProcess = {
  /**
   * The origin that it listens on, after starting it if it does not run.
   *
   * @throws {Error} when it does not start; the message has its last lines.
   */
  origin(): Promise<string>;
  /** The process id while it runs. */
  pid(): number | undefined;
  /** How often it was started. */
  starts(): number;
  /** Kills it at once (SIGKILL); the next request starts it again. */
  kill(): Promise<void>;
  /** Its latest lines of output, oldest first. */
  lines(): readonly string[];
};

const linesKept = 1000;

type Running = { readonly child: Child; readonly origin: string };

/** Prepares the function; nothing runs before {@linkcode FunctionProcess.origin} is called. */
export function createFunctionProcess(options: FunctionOptions): FunctionProcess {
  const lines: string[] = [];
  let starts = 0;
  let running: Promise<Running> | undefined;
  let current: Child | undefined;

  const start = async (): Promise<Running> => {
    starts++;
    const { child, origin } = launch(options, (line) => {
      lines.push(line);
      if (lines.length > linesKept) lines.shift();
      options.log(`function: ${line}`);
    });
    current = child;
    const outcome = await Promise.race([origin, child.ended.then(() => undefined)]);
    if (outcome === undefined) {
      throw new Error(
        `Cannot start the function ${options.entry}: it ended with\n${lines.slice(-20).join("\n")}`,
      );
    }
    return { child, origin: outcome };
  };
  return {
    origin: async () => {
      const alive = await running?.then(({ child }) => !child.hasEnded(), () => false);
      if (alive !== true) running = start();
      return (await running!).origin;
    },
    pid: () => current?.hasEnded() === false ? current.pid : undefined,
    starts: () => starts,
    kill: async () => {
      current?.signal("SIGKILL");
      await current?.ended;
    },
    lines: () => lines,
  };
}

function launch(
  options: FunctionOptions,
  onLine: (line: string) => void,
): { child: Child; origin: Promise<string> } {
  let found = (_origin: string) => {};
  const origin = new Promise<string>((resolve) => found = resolve);
  const child = startChild({
    command: Deno.execPath(),
    // As on the platform: network and environment, no files, no programs. Imports need no permission.
    args: [
      "serve",
      "--no-prompt",
      "--allow-net",
      "--allow-env",
      // The platform's memory for a worker: told the same limit, V8 collects as it does there.
      "--v8-flags=--max-heap-size=256",
      "--host=127.0.0.1",
      "--port=0",
      ...options.denoFlags ?? [],
      options.entry,
    ],
    cwd: dirname(options.entry),
    env: { ...options.env, ...denoHome(), NO_COLOR: "1" },
    stopSignal: "KILL",
    onLine: (line) => {
      const listening = /Listening on (http:\/\/127\.0\.0\.1:\d+)/.exec(line)?.[1];
      if (listening === undefined) return onLine(line);
      found(listening);
    },
  });
  return { child, origin };
}

// Deno keeps compiled modules in its cache directory, which it finds by one of these.
function denoHome(): Record<string, string> {
  const names = ["DENO_DIR", "HOME", "XDG_CACHE_HOME"];
  return Object.fromEntries(names.flatMap((name) => {
    const value = Deno.env.get(name);
    return value === undefined ? [] : [[name, value]];
  }));
}
