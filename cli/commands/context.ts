import { DEFAULT_BUCKET, type Run } from "../../supabase/functions/image-sync/contract.ts";
import { safeText } from "../../supabase/functions/image-sync/text/safe_text.ts";
import { type Client, createClient } from "../client.ts";
import { asCommands } from "../as_commands.ts";
import { CommandError, exitStatus } from "../command_error.ts";
import { type Connection, findConnection } from "../connection.ts";
import type { Host } from "../host.ts";
import { createOutput, type Output } from "../output.ts";
import { createProgress } from "../progress.ts";
import { type Pace, watch } from "../watch.ts";

/** The options that every command has. */
export type CommonFlags = {
  readonly url?: string | undefined;
  readonly key?: string | undefined;
  readonly bucket: string;
  readonly json: boolean;
  /** For one request, in s. */
  readonly timeout: number;
};

/** What a command works with. */
export type Context = {
  readonly client: Client;
  readonly connection: Connection;
  readonly output: Output;
  readonly host: Host;
  readonly bucket: string;
  /** The project's URL, without a slash at its end. */
  readonly url: string;
  readonly json: boolean;
  /** Waits for a run, showing how far it is; see {@linkcode watch}. */
  readonly finished: (run: Run) => Promise<Run>;
};

/** Finds the project and gives `work` what it needs; Ctrl-C ends whatever it waits for. */
export async function withContext(
  { flags, host, pace, words }: {
    flags: CommonFlags;
    host: Host;
    pace?: Pace;
    /** How what is printed names commands. */
    words?: (text: string) => string;
  },
  work: (context: Context) => Promise<number>,
): Promise<number> {
  const connection = await findConnection({ url: flags.url, key: flags.key }, host);
  const client = createClient(connection, { timeout: flags.timeout * 1000 });
  const finished = async (run: Run) => {
    const interrupt = new AbortController();
    const ignoreInterrupts = host.onInterrupt(() => interrupt.abort());
    const options = { client, progress: createProgress(host), signal: interrupt.signal };
    try {
      return await watch(run, pace === undefined ? options : { ...options, pace });
    } finally {
      ignoreInterrupts();
    }
  };
  const output = createOutput(host, {
    json: flags.json,
    key: connection.key,
    ...(words === undefined ? {} : { words }),
  });
  const bucket = flags.bucket === DEFAULT_BUCKET ? "the default" : "--bucket";
  output.note(
    `Project ${connection.url} (${connection.source}), bucket ${safeText(flags.bucket)} (${bucket})`,
  );
  try {
    return await work({
      client,
      connection,
      output,
      host,
      bucket: flags.bucket,
      url: connection.url,
      json: flags.json,
      finished,
    });
  } catch (error) {
    throw error instanceof CommandError ? error.reworded(asCommands(error.message, flags.bucket)) : error;
  }
}

/** How a command ends that was there to bring this run about. */
export function statusOf(run: Run): number {
  return run.state === "succeeded" || run.state === "open" ? exitStatus.fine : exitStatus.attention;
}
