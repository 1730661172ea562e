import { basename, dirname, join, relative, resolve } from "node:path";
import { safeText } from "../../supabase/functions/image-sync/text/safe_text.ts";
import { confirm } from "../ask.ts";
import { CommandError, exitStatus } from "../command_error.ts";
import type { Host } from "../host.ts";
import type { Output } from "../output.ts";
import { unifiedDiff } from "../project/diff.ts";
import {
  applyPlan,
  findRepository,
  type InstallOptions,
  type Plan,
  planInstall,
  planRemoval,
  planUpgrade,
} from "../project/install.ts";
import { readLink } from "../project/supabase_cli.ts";

/** Options of {@linkcode init}. */
export type InitOptions = {
  readonly directory: string | undefined;
  /** Show what would change, and change nothing. */
  readonly dryRun: boolean;
  /** With that: every line of what is new, too. */
  readonly full?: boolean | undefined;
  /** Do it without asking. */
  readonly yes: boolean;
  /** Overwrite what was edited. */
  readonly force: boolean;
  /** In an upgrade: the version that the database has, where the repository does not say. */
  readonly from?: string | undefined;
};

const WORDS = {
  create: "create",
  update: "update",
  delete: "delete",
  keep: "keep  ",
  same: "same  ",
} as const;

/** What init and uninstall work with. */
type HereContext = { readonly host: Host; readonly output: Output; readonly json: boolean };

/** Brings the function, one migration and the function's configuration into a project's repository. */
export async function init(context: HereContext, options: InitOptions): Promise<number> {
  const plan = await planInstall(await installOptions(context, options));
  return await carryOut(context, options, plan, stepsAfterInstall);
}

/** Goes on from the version that is there to this one, by a migration and the new function. */
export async function upgrade(context: HereContext, options: InitOptions): Promise<number> {
  const plan = await planUpgrade(await installOptions(context, options));
  return await carryOut(context, options, plan, stepsAfterInstall);
}

/** Takes them out again, by a migration too; the table and its rows stay. */
export async function uninstall(context: HereContext, options: InitOptions): Promise<number> {
  const plan = await planRemoval(await installOptions(context, options));
  return await carryOut(context, options, plan, stepsAfterRemoval);
}

async function installOptions(
  { host }: HereContext,
  { directory, force, from }: InitOptions,
): Promise<InstallOptions> {
  return { directory: await directoryOf(host, directory), force, from, now: new Date() };
}

/** The folder that is named, or the repository that the command is called in. */
export async function directoryOf(host: Host, directory: string | undefined): Promise<string> {
  return directory === undefined || directory === "."
    ? await findRepository(host.directory)
    : resolve(host.directory, directory);
}

/** Which project it is, first of all. */
async function nameProject({ output }: HereContext, { directory }: Plan): Promise<void> {
  const link = await readLink(directory).catch(() => undefined);
  const name = link?.name === undefined ? "" : ` (${safeText(link.name)})`;
  output.note(
    `Repository ${dirname(directory)}, ${
      link === undefined ? "not linked to a project" : `of project ${link.ref}${name}`
    }`,
  );
}

/** Shows a plan, asks, and does it. */
async function carryOut(
  context: HereContext,
  { dryRun, full = false, yes }: InitOptions,
  plan: Plan,
  nextSteps: (plan: Plan, host: Host) => string,
): Promise<number> {
  const { host, output, json } = context;
  await nameProject(context, plan);
  const isChange = plan.changes.some(({ kind }) => kind !== "same" && kind !== "keep");
  const document = (isDone: boolean) => ({
    directory: plan.directory,
    done: isDone,
    changes: plan.changes.map(({ path, kind }) => ({ path, kind })),
    advice: plan.advice,
  });
  if (dryRun) {
    output.show(document(false), () => render(plan, host));
    // Word for word: no text for a person's screen.
    if (!json) output.reveal(undefined, "", () => differenceOf(plan, { full }));
    return exitStatus.fine;
  }
  if (!isChange) {
    output.show(document(true), () => `${render(plan, host)}Nothing to do: image-sync is there\n`);
    return exitStatus.fine;
  }
  if (!yes) {
    output.note(render(plan, host).trimEnd());
    const answer = await confirm(host, "Make these changes? (yes/no) ");
    if (answer === undefined) {
      throw new CommandError(
        "not_confirmed",
        "Nothing was changed: nobody is there to agree; add --yes, or --dry-run to see them",
      );
    }
    if (!answer) {
      output.note("Nothing was changed");
      return exitStatus.attention;
    }
  }
  await applyPlan(plan);
  output.show(document(true), () => (yes && !json ? render(plan, host) : "") + nextSteps(plan, host));
  return exitStatus.fine;
}

function render({ directory, changes, advice }: Plan, host: Host): string {
  const place = relative(host.directory, directory) || ".";
  const shown = changes.filter(({ kind }) => kind !== "same");
  return [
    `Into ${place}:`,
    ...shown.map(({ path, kind }) =>
      `  ${WORDS[kind]} ${path}${kind === "keep" ? "   (edited: --force overwrites it)" : ""}`
    ),
    ...(shown.length < changes.length
      ? [`  ${changes.length - shown.length} files are as they should be`]
      : []),
    ...advice.map((words) => `  ${words}`),
    "",
  ].join("\n");
}

const SHORT = 100; // lines

/** What is there and changes, as a diff; of a new migration what it does, or all of it where that is short; with `full` every line. */
function differenceOf({ directory, changes }: Plan, { full }: { readonly full: boolean }): string {
  const shown = changes.flatMap(({ path, kind, before, after }) => {
    if (kind === "same" || kind === "keep") return [];
    const isMigration = kind === "create" && path.startsWith("migrations/");
    if (full || kind === "update" || isMigration && after.split("\n").length <= SHORT) {
      return [unifiedDiff(`${basename(directory)}/${path}`, before, kind === "delete" ? undefined : after)];
    }
    return isMigration ? [`${path}\n${after.split("\n\n")[0]}\n`] : [];
  });
  return shown.map((text) => `\n${text}`).join("") +
    (full ? "" : "\n--full shows every line of what is new\n");
}

function stepsAfterInstall({ directory }: Plan, host: Host): string {
  const root = relative(host.directory, join(directory, "..")) || ".";
  return [
    "Done. Look at it (git diff), then:",
    ...(root === "." ? [] : [`  cd ${root}`]),
    "  npx supabase login",
    "  npx supabase link",
    "  npx supabase db push --remote",
    "  npx supabase functions deploy image-sync --use-api",
    "Then set SUPABASE_URL and SUPABASE_SECRET_KEY, and see how things are: npx image-sync status",
    "",
  ].join("\n");
}

function stepsAfterRemoval({ directory }: Plan, host: Host): string {
  const root = relative(host.directory, join(directory, "..")) || ".";
  return [
    "Done. Look at it (git diff), then:",
    ...(root === "." ? [] : [`  cd ${root}`]),
    "  npx supabase db push --remote",
    "  npx supabase functions delete image-sync",
    "The table part_images stays, with its rows",
    "",
  ].join("\n");
}
