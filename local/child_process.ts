import { textLines } from "./text_lines.ts";

/** How to run a child process that must not outlive this one. */
export type ChildOptions = {
  readonly command: string;
  readonly args: readonly string[];
  /** The child's whole environment. */
  readonly env: Readonly<Record<string, string>>;
  readonly cwd?: string;
  readonly uid?: number;
  readonly gid?: number;
  /** What stops the child when this process dies. */
  readonly stopSignal: "INT" | "TERM" | "KILL";
  /** Removed after the child was stopped because this process died. */
  readonly removeAfterwards?: string;
  /** Receives each line of the child's output. */
  readonly onLine: (line: string) => void;
};

/** A running child. */
export type Child = {
  readonly pid: number;
  /** Settles when the child has ended. */
  readonly ended: Promise<void>;
  /** True once the child has ended. */
  hasEnded(): boolean;
  /** Sends a signal; a child that has ended already is left alone. */
  signal(signal: Deno.Signal): void;
};

// A shell turns itself into the child (so the pid is the child's) after leaving a watcher behind, whose
// standard input is a pipe from us. The pipe closes when we die, by whatever means, and the watcher then stops the child.
const untilParentDies = `
signal=$1 directory=$2
shift 2
exec 3<&0 </dev/null
child=$$
(
  # What a terminal sends to all of us is no reason to stop watching.
  trap '' HUP INT TERM
  cat <&3
  kill -s "$signal" "$child" || exit 0
  while kill -0 "$child"; do sleep 0.1; done
  if [ -n "$directory" ]; then rm -rf "$directory"; fi
) >/dev/null 2>&1 &
exec 3<&-
exec "$@"
`;

/** Starts a child process that ends when this process ends, even when this one is killed. */
export function startChild(options: ChildOptions): Child {
  const process = new Deno.Command("sh", {
    args: [
      "-c",
      untilParentDies,
      "sh",
      options.stopSignal,
      options.removeAfterwards ?? "",
      options.command,
      ...options.args,
    ],
    env: { ...options.env },
    clearEnv: true,
    ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
    ...(options.uid === undefined ? {} : { uid: options.uid }),
    ...(options.gid === undefined ? {} : { gid: options.gid }),
    stdin: "piped",
    stdout: "piped",
    stderr: "piped",
  }).spawn();

  let running = true;
  const ended = process.status.then(async () => {
    running = false;
    await process.stdin.close().catch(() => {}); // lets the watcher go
  });
  forwardLines(process.stdout, options.onLine);
  forwardLines(process.stderr, options.onLine);
  return {
    pid: process.pid,
    ended,
    hasEnded: () => !running,
    signal: (signal) => {
      if (running) process.kill(signal);
    },
  };
}

async function forwardLines(stream: ReadableStream<Uint8Array>, onLine: (line: string) => void) {
  const lines = stream.pipeThrough(new TextDecoderStream()).pipeThrough(textLines());
  try {
    for await (const line of lines) if (line !== "") onLine(line);
  } catch {
    // The pipe broke with its process: what it had to say was said.
  }
}
