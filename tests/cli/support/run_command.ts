import { PassThrough } from "node:stream";
import type { Host } from "../../../cli/host.ts";
import { main } from "../../../cli/main.ts";
import { KEY } from "./fake_function.ts";

export type Result = { readonly status: number; readonly stdout: string; readonly stderr: string };

export type Settings = {
  /** Where the function is; without it the command has to find out by itself. */
  readonly url?: string;
  readonly env?: Record<string, string>;
  readonly directory?: string;
  readonly stackFile?: string;
  /** How the commands are typed there. */
  readonly program?: string;
  /** Whether somebody sits before a terminal. */
  readonly terminal?: boolean;
  /** How wide that is, in characters. */
  readonly columns?: number;
  /** What they type when they are asked; `null` ends the input. */
  readonly typed?: string | null;
  /** Receives what presses Ctrl-C. */
  readonly onReady?: (interrupt: () => void) => void;
};

/** Runs a command in this process, as if typed on a machine that the test makes up. */
export async function runCommand(args: readonly string[], settings: Settings = {}): Promise<Result> {
  const isTTY = settings.terminal ?? false;
  const stdout = capture(isTTY, settings.columns);
  const stderr = capture(isTTY, settings.columns);
  const stdin = Object.assign(new PassThrough(), { isTTY });
  stderr.onText = (text) => {
    if (!text.includes("type their number")) return;
    if (settings.typed === null) stdin.end();
    else if (settings.typed !== undefined) stdin.write(`${settings.typed}\n`);
  };
  const host: Host = {
    env: {
      ...(settings.url === undefined ? {} : { SUPABASE_URL: settings.url, SUPABASE_SECRET_KEY: KEY }),
      ...settings.env,
    },
    directory: settings.directory ?? "/nonexistent",
    ...(settings.program === undefined ? {} : { program: settings.program }),
    stackFile: settings.stackFile ?? "/nonexistent",
    stdin: () => stdin,
    stdout: stdout.stream,
    stderr: stderr.stream,
    onInterrupt: (act) => {
      settings.onReady?.(act);
      return () => {};
    },
  };
  const status = await main(args, host, { first: 1, longest: 5 });
  return { status, stdout: stdout.text(), stderr: stderr.text() };
}

function capture(isTTY: boolean, columns = 120) {
  const parts: string[] = [];
  const stream = Object.assign(new PassThrough(), { isTTY, columns });
  const captured = { stream, text: () => parts.join(""), onText: (_text: string) => {} };
  stream.on("data", (part: Buffer) => {
    parts.push(part.toString());
    captured.onText(part.toString());
  });
  return captured;
}
