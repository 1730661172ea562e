import { Command, CommanderError, InvalidArgumentError, Option } from "commander";
import { z } from "zod";
import { asNpmScripts, quoted } from "../supabase/functions/image-sync/text/commands.ts";
import { DEFAULT_BUCKET, modeSchema, stateSchema } from "../supabase/functions/image-sync/contract.ts";
import { VERSION } from "../supabase/functions/image-sync/version.ts";
import { DEFAULT_PROGRAM } from "./called_as.ts";
import { CommandError, exitStatus } from "./command_error.ts";
import { analyze } from "./commands/analyze.ts";
import { buckets } from "./commands/buckets.ts";
import { cancel } from "./commands/cancel.ts";
import { cleanup } from "./commands/cleanup.ts";
import { type CommonFlags, type Context, withContext } from "./commands/context.ts";
import { deploy } from "./commands/deploy.ts";
import { doctor } from "./commands/doctor.ts";
import { exportRegister } from "./commands/export.ts";
import { init, type InitOptions, uninstall, upgrade } from "./commands/init.ts";
import { open } from "./commands/open.ts";
import { reader } from "./commands/reader.ts";
import { restore } from "./commands/restore.ts";
import { runs, type RunsOptions } from "./commands/runs.ts";
import { status } from "./commands/status.ts";
import { sync } from "./commands/sync.ts";
import { verify } from "./commands/verify.ts";
import type { Host } from "./host.ts";
import { createOutput, type Output, toJson } from "./output.ts";
import { redact } from "./redact.ts";
import type { Pace } from "./watch.ts";

/** What commander makes of the options of any command. */
type Flags = CommonFlags & RunsOptions & Pick<InitOptions, "yes" | "force" | "full"> & {
  readonly debug: boolean;
  readonly wait: boolean;
  readonly renew?: "all";
  readonly confirm?: string;
  readonly dryRun: boolean;
  readonly all: boolean;
  readonly maxDeleteCount?: number;
  readonly maxDeleteFraction?: number;
  readonly allowEmptyBucket: boolean;
  readonly bucketIsGone: boolean;
  readonly run?: string;
  readonly file?: string;
  readonly dbUrl?: string;
  readonly sql?: string;
  readonly port: number;
  readonly browser: boolean;
  readonly smallPictures: boolean;
  readonly thumbnails: boolean;
  readonly size?: number;
  readonly odbc: boolean;
  readonly https: boolean;
};
type Work = (context: Context, flags: Flags, ...given: (string | undefined)[]) => Promise<number>;

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
    refuseSwallowedFlags(command, host);
    const flags = command.opts<Flags>();
    const context = {
      flags,
      host,
      words: wordsOf(host, command.name()),
      ...(pace === undefined ? {} : { pace }),
    };
    onStatus(await withContext(context, (context) => work(context, flags, ...command.args)));
  };
  // Without a project to talk to: on the files of a repository.
  const performHere = (
    work: (
      context: { host: Host; output: Output; json: boolean },
      flags: Flags,
      ...given: (string | undefined)[]
    ) => Promise<number>,
  ) =>
  async (...given: unknown[]) => {
    const command = given.at(-1) as Command;
    refuseSwallowedFlags(command, host);
    const flags = command.opts<Flags>();
    const output = createOutput(host, { json: flags.json, words: wordsOf(host, command.name()) });
    onStatus(await work({ host, output, json: flags.json }, flags, ...command.args));
  };
  const program = new Command("image-sync")
    .description("Keeps the table part_images in step with the storage bucket part-images")
    .version(VERSION)
    .exitOverride()
    .configureOutput({
      writeOut: (text) => host.stdout.write(text),
      writeErr: (text) => host.stderr.write(text),
    });
  const add = (signature: string, description: string) =>
    program.command(signature).description(description).allowExcessArguments(false);

  local(
    add("init", "bring the function, one migration and its configuration into a project's repository"),
    "Exit status: 0 it is there, 1 it was not agreed to, 2 it could not be done.",
  )
    .argument("[dir]", "the repository, or a folder to begin one in", ".")
    .option("--force", "overwrite files that were edited", false)
    .option("--full", "with --dry-run: show every line of what is new, too", false)
    .action(performHere((context, flags, directory) => init(context, { ...flags, directory })));
  local(
    add(
      "deploy",
      "push the migrations and the function with the project's own Supabase CLI, and call it once",
    ),
    "Exit status: 0 it is deployed, 1 it was not agreed to or needs attention, 2 it could not be done.",
  )
    .argument("[dir]", "the repository", ".")
    .option("--bucket <name>", "the bucket to report on", DEFAULT_BUCKET)
    .option("--url <url>", "the project's URL, where it has an address of its own")
    .option("--key <key>", "a secret key of the project (default: SUPABASE_SECRET_KEY, .env)")
    .option("--db-url <url>", "push to this database (its pooler, from a network without IPv6)")
    .action(
      performHere((context, { dryRun, yes, bucket, url, key, dbUrl }, directory) =>
        deploy(context, { dryRun, yes, bucket, url, key, dbUrl, directory })
      ),
    );
  local(
    add("upgrade", "go on to this version: one migration more, and the new function"),
    "Exit status: 0 it is this version, 1 it was not agreed to, 2 it could not be done.",
  )
    .argument("[dir]", "the repository", ".")
    .option("--force", "overwrite files that were edited", false)
    .option("--full", "with --dry-run: show every line of what is new, too", false)
    .option("--from <version>", "the version that the database has, where a clone pushed its migrations")
    .action(performHere((context, flags, directory) => upgrade(context, { ...flags, directory })));
  local(
    add("uninstall", "take them out of a project's repository again; the table and its rows stay"),
    "Exit status: 0 it is out, 1 it was not agreed to, 2 it could not be done.",
  )
    .argument("[dir]", "the repository", ".")
    .option("--force", "delete files that were edited", false)
    .option("--full", "with --dry-run: show every line of what is new, too", false)
    .action(performHere((context, flags, directory) => uninstall(context, { ...flags, directory })));
  common(
    waiting(add("analyze", "count what is out of step, change nothing, and show the report")),
    RUN_STATUS,
  )
    .action(perform((context, { wait }) => analyze(context, { wait })));
  common(
    waiting(add("verify", "open every signed URL as a reader does and say which show no image, and why")),
    RUN_STATUS,
  )
    .action(perform((context, { wait }) => verify(context, { wait })));
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
    .option("--all", "print every name of the list", false)
    .option("--max-delete-count <number>", "archive up to so many records", toCount)
    .option("--max-delete-fraction <fraction>", "archive up to this part of all records, 0 to 1", toFraction)
    .option("--allow-empty-bucket", "archive although the bucket holds no file", false)
    .option("--bucket-is-gone", "list the records of a bucket that does not exist any more", false)
    .action(perform((context, flags) => cleanup(context, flags)));
  common(waiting(add("restore", "put back what a cleanup archived")), RUN_STATUS)
    .argument("[run]", "the cleanup run", toRunId)
    .action(perform((context, { wait }, id) => restore(context, { id, wait })));
  common(add("status", "show how things are"), STATUS_STATUS)
    .addOption(new Option("--run <run>", "one run instead").argParser(toRunId).conflicts("file"))
    .option("--file <name>", "why this file is, or is not, in sync instead")
    .option("--wait", "with --run: wait until it has finished", false)
    .action(perform((context, flags) => status(context, flags)));
  common(
    add(
      "buckets",
      "list the buckets that are kept in step, or add or remove one: settings only, never files",
    ),
    "Exit status: 0 all are healthy, or it was changed; 1 one needs attention; 2 could not be told.",
  )
    .argument("[action]", "list, add or remove", "list")
    .argument("[name]", "the bucket to add or remove")
    .action(perform((context, _flags, action, name) => buckets(context, { action, name })));
  common(
    add(
      "reader",
      "give somebody the right to read the register of a bucket and nothing else, list who has it, or take it away",
    ),
    "Exit status: 0 it is done, 1 it is left for you to do with the SQL that is printed, 2 it could not be done.",
  )
    .argument("[action]", "list, add or revoke", "list")
    .argument("[name]", "the reader to add or revoke: a-z, 0-9, _ and -")
    .addOption(
      new Option("--https", "with add: a key for register.csv, as Power Query reads it").default(false)
        .conflicts("odbc"),
    )
    .option("--odbc", "with add: print the SQL of a login role", false)
    .action(
      perform((context, { odbc, https }, action, name) => reader(context, { action, name, odbc, https })),
    );
  common(
    add("doctor", "look at every link of the chain, outside in, and say of each what mends it"),
    "Exit status: 0 every link holds, 1 one does not, 2 it could not be told.",
  )
    .option("--db-url <url>", "the database's URL, to look at more (default: SUPABASE_DB_URL beside the key)")
    .option("--sql <file>", "write the SQL that mends what differs in the database to a file")
    .action(perform((context, { dbUrl, sql }) => doctor(context, { dbUrl, sql })));
  common(
    add("export", "write the register to a file for a spreadsheet: .csv, or .xlsx with the pictures"),
    "Exit status: 0 it is written, 1 it is and something was left out or nothing was there, 2 it is not written.",
  )
    .argument("<file>", "what to write, ending in .csv or .xlsx")
    .option("--thumbnails", "small pictures in the cells of a workbook, which need no network", false)
    .option("--size <pixels>", "of the pictures' longer side, 16 to 512 (default: 96)", toSize)
    .option("--force", "replace the file if it exists", false)
    .action(perform((context, flags, file) => exportRegister(context, { ...flags, file: file ?? "" })));
  common(
    add("runs", "show the history of runs, newest first"),
    "Exit status: 0, or 2 if it could not be told.",
  )
    .addOption(new Option("--mode <mode>", "only runs of this mode").choices(modeSchema.options))
    .addOption(new Option("--state <state>", "only runs that are so").choices(stateSchema.options))
    .addOption(new Option("--after <run>", "those before this run").argParser(toRunId))
    .option("--limit <number>", "so many, 1 to 100", toPage, 20)
    .option("--all-buckets", "of every bucket", false)
    .action(perform((context, flags) => runs(context, flags)));
  common(
    add("open", "show the project in a browser, until Ctrl-C"),
    "Served on loopback alone; the key stays here. Exit status: 0, or 2 if it could not be served.",
  )
    .option("--port <number>", "of loopback; 0: any free one", toPort, 0)
    .option("--no-browser", "print the address and open nothing")
    .option(
      "--small-pictures",
      "let Storage scale the pictures of the gallery down: paid plans alone, which bill each picture shown so in a month",
      false,
    )
    .action(perform((context, flags) => open(context, flags)));
  common(add("cancel", "cancel an open run"), "Exit status: 0 it is cancelled, 2 it is not.")
    .argument("<run>", "the run", toRunId)
    .action(perform((context, _flags, id) => cancel(context, { id: id ?? "" })));
  return program;
}

/**
 * `npm run sync --bucket=x` gives the flag to npm, which knows no such thing, says nothing and runs the command without it: on another
 * bucket, of another project. What it swallowed stands in the environment.
 */
function refuseSwallowedFlags(command: Command, { env }: Host): void {
  if (env["npm_lifecycle_event"] !== command.name()) return;
  const swallowed = command.options.flatMap(({ long, negate }) => {
    const name = long?.replace(/^--(no-)?/, "") ?? "";
    const value = env[`npm_config_${name.replaceAll("-", "_")}`];
    if (value === undefined || value === "") return [];
    if (value === "true" || negate) return [`--${negate ? "no-" : ""}${name}`];
    return [`--${name} ${quoted(value)}`];
  });
  if (swallowed.length === 0) return;
  throw new CommandError(
    "usage",
    `npm took ${swallowed.join(" ")} for a flag of its own; flags of a command stand behind two dashes: ` +
      `npm run ${command.name()} -- ${swallowed.join(" ")}`,
  );
}

/** Commands are named the way that this one was called: through its npm script, through npx, or as a program. */
function wordsOf(
  { env, program = DEFAULT_PROGRAM }: Host,
  command: string | undefined,
): (text: string) => string {
  if (env["npm_lifecycle_event"] === command) return asNpmScripts;
  return (text) => text.replaceAll(DEFAULT_PROGRAM, program);
}

function waiting(command: Command): Command {
  return command.option("--no-wait", "start the run and come back at once");
}

function local(command: Command, status: string): Command {
  return command
    .option("--dry-run", "show what would change, and change nothing", false)
    .option("--yes", "do it without asking", false)
    .option("--json", "one JSON document on standard output, everything else on standard error", false)
    .option("--debug", "show stack traces", false)
    .addHelpText("after", `\n${status}`);
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
  const words = wordsOf(host, args[0]);
  if (!isUsage) {
    host.stderr.write(`${redact(words(known === undefined ? `Unexpected: ${message}` : message))}\n`);
  }
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

function toPage(text: string): number {
  if (/^([1-9]\d?|100)$/.test(text)) return Number(text);
  throw new InvalidArgumentError("It must be a whole number from 1 to 100.");
}

function toPort(text: string): number {
  if (/^\d{1,5}$/.test(text) && Number(text) <= 65_535) return Number(text);
  throw new InvalidArgumentError("It must be a number from 0 to 65535.");
}

function toSize(text: string): number {
  const size = Number(text);
  if (/^\d{1,3}$/.test(text) && size >= 16 && size <= 512) return size;
  throw new InvalidArgumentError("It must be a whole number from 16 to 512.");
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
