import { Command, CommanderError, InvalidArgumentError, Option } from "commander";
import { z } from "zod";
import { DEFAULT_BUCKET } from "../supabase/functions/image-sync/contract.ts";
import { CommandError, exitStatus } from "./command_error.ts";
import { analyze } from "./commands/analyze.ts";
import { cancel } from "./commands/cancel.ts";
import { cleanup } from "./commands/cleanup.ts";
import { type CommonFlags, type Context, withContext } from "./commands/context.ts";
import { restore } from "./commands/restore.ts";
import { status } from "./commands/status.ts";
import { sync } from "./commands/sync.ts";
import type { Host } from "./host.ts";
import { toJson } from "./output.ts";
import { redact } from "./redact.ts";
import type { Pace } from "./watch.ts";

/** What commander makes of the options of any command. */
type Flags = CommonFlags & {
  readonly debug: boolean;
  readonly wait: boolean;
  readonly renew?: "all";
  readonly confirm?: string;
  readonly dryRun: boolean;
  readonly maxDeleteCount?: number;
  readonly maxDeleteFraction?: number;
  readonly allowEmptyBucket: boolean;
  readonly run?: string;
  readonly file?: string;
};
type Work = (context: Context, flags: Flags, argument: string | undefined) => Promise<number>;

const RUN_STATUS =
  "Exit status: 0 the run succeeded (with --no-wait: it was started), 1 it did not, 2 it could not be told.";
const STATUS_STATUS =
  "Exit status: 0 healthy, 1 needs attention, 2 could not be told. With --run: 1 if it did not succeed; with --file: 1 if it is not in sync.";

/**
 * Runs one command.
 *
 * @param args the command line without the program's name
 * @param pace how often a run is looked at
 * @returns the exit status
 */
export async function main(args: readonly string[], host: Host, pace?: Pace): Promise<number> {
  const result = { status: exitStatus.fine as number };
  try {
    await createProgram({
      host,
      onStatus: (status) => result.status = status,
      ...(pace === undefined ? {} : { pace }),
    })
      .parseAsync(args, { from: "user" });
    return result.status;
  } catch (error) {
    return fail(error, { args, host });
  }
}

type ProgramOptions = {
  readonly host: Host;
  readonly onStatus: (status: number) => void;
  readonly pace?: Pace;
};

function createProgram({ host, onStatus, pace }: ProgramOptions): Command {
  const perform = (work: Work) => async (...given: unknown[]) => {
    const command = given.at(-1) as Command;
    const flags = command.opts<Flags>();
    const context = { flags, host, ...(pace === undefined ? {} : { pace }) };
    onStatus(await withContext(context, (context) => work(context, flags, command.args[0])));
  };
  const program = new Command("image-sync")
    .description("Keeps the table part_images in step with the storage bucket part-images")
    .version("0.1.0")
    .exitOverride()
    .configureOutput({
      writeOut: (text) => host.stdout.write(text),
      writeErr: (text) => host.stderr.write(text),
    });
  const add = (signature: string, description: string) =>
    program.command(signature).description(description).allowExcessArguments(false);

  common(
    waiting(add("analyze", "count what is out of step, change nothing, and show the report")),
    RUN_STATUS,
  )
    .action(perform((context, { wait }) => analyze(context, { wait })));
  common(waiting(add("sync", "bring records and signed URLs in step with the bucket")), RUN_STATUS)
    .addOption(
      new Option("--renew <which>", "sign every URL again, as after a rotation of the URL-signing key")
        .choices(["all"]),
    )
    .action(perform((context, { renew, wait }) => sync(context, { renewAll: renew === "all", wait })));
  common(
    waiting(add("cleanup", "list the records whose file is gone and, once confirmed, archive them")),
    RUN_STATUS,
  )
    .addOption(
      new Option("--confirm <run>", "archive the list of this dry run without asking").argParser(toRunId),
    )
    .addOption(new Option("--dry-run", "stop after the list").default(false).conflicts("confirm"))
    .option("--max-delete-count <number>", "archive up to so many records", toCount)
    .option("--max-delete-fraction <fraction>", "archive up to this part of all records, 0 to 1", toFraction)
    .option("--allow-empty-bucket", "archive although the bucket holds no file", false)
    .action(perform((context, flags) => cleanup(context, flags)));
  common(waiting(add("restore", "put back what a cleanup archived")), RUN_STATUS)
    .argument("[run]", "the cleanup run", toRunId)
    .action(perform((context, { wait }, id) => restore(context, { id, wait })));
  common(add("status", "show how things are"), STATUS_STATUS)
    .addOption(new Option("--run <run>", "one run instead").argParser(toRunId).conflicts("file"))
    .option("--file <name>", "why this file is, or is not, in sync instead")
    .option("--wait", "with --run: wait until it has finished", false)
    .action(perform((context, flags) => status(context, flags)));
  common(add("cancel", "cancel an open run"), "Exit status: 0 it is cancelled, 2 it is not.")
    .argument("<run>", "the run", toRunId)
    .action(perform((context, _flags, id) => cancel(context, { id: id ?? "" })));
  return program;
}

function waiting(command: Command): Command {
  return command.option("--no-wait", "start the run and come back at once");
}

function common(command: Command, status: string): Command {
  return command
    .option("--bucket <name>", "the bucket", DEFAULT_BUCKET)
    .option("--url <url>", "the project's URL (default: SUPABASE_URL, .env, or the embedded stack)")
    .option(
      "--key <key>",
      "a secret key of the project (default: SUPABASE_SECRET_KEY, .env, or the embedded stack)",
    )
    .option("--json", "one JSON document on standard output, everything else on standard error", false)
    .option("--timeout <seconds>", "for one request", toSeconds, 30)
    .option("--debug", "show stack traces", false)
    .addHelpText("after", `\n${status}`);
}

function fail(error: unknown, { args, host }: { args: readonly string[]; host: Host }): number {
  // Commander has said already what is wrong with the command line.
  if (error instanceof CommanderError && error.exitCode === 0) return exitStatus.fine;
  const isUsage = error instanceof CommanderError;
  const known = error instanceof CommandError ? error : undefined;
  const message = known?.message ?? (error instanceof Error ? error.message : String(error));
  if (!isUsage) host.stderr.write(`${redact(known === undefined ? `Unexpected: ${message}` : message)}\n`);
  if (args.includes("--debug")) host.stderr.write(`${redact(traceOf(error))}\n`);
  else if (known === undefined && !isUsage) host.stderr.write("Run it again with --debug to see where\n");
  if (args.includes("--json")) {
    const code = known?.code ?? (isUsage ? "usage" : "unexpected");
    host.stdout.write(redact(toJson({ error: { code, detail: message } })));
  }
  return known?.status ?? exitStatus.unknown;
}

function traceOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const cause = error.cause === undefined ? "" : `\nCaused by: ${traceOf(error.cause)}`;
  return (error.stack ?? error.message) + cause;
}

function toRunId(text: string): string {
  if (z.uuid().safeParse(text).success) return text;
  throw new InvalidArgumentError("A run's id looks like 3f2b8c1e-5d4a-4b7e-9c1d-0a1b2c3d4e5f.");
}

function toCount(text: string): number {
  if (/^\d{1,9}$/.test(text)) return Number(text);
  throw new InvalidArgumentError("It must be a whole number.");
}

function toFraction(text: string): number {
  const fraction = Number(text);
  if (text !== "" && fraction >= 0 && fraction <= 1) return fraction;
  throw new InvalidArgumentError("It must be between 0 and 1, such as 0.15.");
}

function toSeconds(text: string): number {
  const seconds = Number(text);
  if (seconds > 0 && seconds <= 600) return seconds;
  throw new InvalidArgumentError("It must be between 0 and 600.");
}
