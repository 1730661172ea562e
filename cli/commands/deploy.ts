import { dirname } from "node:path";
import { renderReport } from "../../supabase/functions/image-sync/text.ts";
import { safeText } from "../../supabase/functions/image-sync/text/safe_text.ts";
import { hostOf, withoutPassword } from "../catalogue/database.ts";
import { confirm } from "../ask.ts";
import { createClient } from "../client.ts";
import { CommandError, exitStatus } from "../command_error.ts";
import { findConnection } from "../connection.ts";
import type { Host } from "../host.ts";
import type { Output } from "../output.ts";
import { directoryOf } from "./init.ts";
import { findInstallation } from "../project/install.ts";
import { describeProject, findSupabaseCli, readLink, type SupabaseCli } from "../project/supabase_cli.ts";

/** Options of {@linkcode deploy}. */
export type DeployOptions = {
  readonly directory: string | undefined;
  /** Show what would be done, and do nothing. */
  readonly dryRun: boolean;
  readonly yes: boolean;
  readonly bucket: string;
  /** The project's URL and a secret key, where they are not the linked project's own address or stand nowhere. */
  readonly url: string | undefined;
  readonly key: string | undefined;
  /** Where to push to, for networks that do not reach the database itself: the URL of its pooler. */
  readonly dbUrl: string | undefined;
};

/** One call of the CLI, and how it is shown: without what nobody should see. Docker is not needed. */
type Step = {
  readonly args: readonly string[];
  readonly shown: string;
  /** What only the step's own process is to see: every user can read the arguments of a program. */
  readonly env?: Readonly<Record<string, string>>;
};

// Nobody can be asked by the CLI, which sees no terminal: what it would ask was agreed to before.
function stepsOf(cli: SupabaseCli, dbUrl: string | undefined): readonly Step[] {
  const push = (remote: string) => ["db", "push", remote, "--yes"];
  const deployment = ["functions", "deploy", "image-sync", "--use-api", "--yes"];
  const pushTo = ({ url, password }: { url: string; password: string }, host: string): Step => ({
    args: push(`--remote=${url}`),
    shown: say(push(`--remote=postgresql://...@${host}`)),
    ...(password === "" ? {} : { env: { PGPASSWORD: password } }),
  });
  const say = (args: readonly string[]) => `${cli.name} ${args.join(" ")}`;
  return [
    dbUrl === undefined
      ? { args: push("--remote"), shown: say(push("--remote")) }
      : pushTo(withoutPassword(dbUrl), hostOf(dbUrl)),
    { args: deployment, shown: say(deployment) },
  ];
}

const PERMISSIONS = "database_write, edge_functions_write, projects_read, database_pooling_config_read";

/** Pushes the migrations and the function of a repository with its owner's CLI, calls the function once and shows the report. */
export async function deploy(
  { host, output }: { readonly host: Host; readonly output: Output },
  options: DeployOptions,
): Promise<number> {
  const { directory, dryRun, yes } = options;
  const supabase = await findInstallation(await directoryOf(host, directory));
  const root = dirname(supabase);
  const link = await readLink(supabase);
  refuseOtherProject(link.ref, host);
  const cli = await findSupabaseCli(root, host);
  const project = await describeProject(cli, link);
  const steps = stepsOf(cli, options.dbUrl);
  output.note(
    [
      `To project ${project}:`,
      ...steps.map(({ shown }) => `  ${shown}`),
      `An access token has to be allowed: ${PERMISSIONS}`,
    ]
      .join("\n"),
  );
  if (dryRun) {
    const commands = steps.map(({ shown }) => shown);
    output.show({ project: link.ref, done: false, commands }, () => "Nothing was done: this was a dry run\n");
    return exitStatus.fine;
  }
  if (!yes) {
    const answer = await confirm(host, "Do it? (yes/no) ");
    if (answer === undefined) {
      throw new CommandError("not_confirmed", "Nothing was done: nobody is there to agree; add --yes");
    }
    if (!answer) {
      output.note("Nothing was done");
      return exitStatus.attention;
    }
  }
  for (const step of steps) await runStep(cli, step);
  return await showReport({ host, output, ref: link.ref }, options);
}

// The CLI goes by this variable before the link.
function refuseOtherProject(ref: string, { env }: Host): void {
  const other = env["SUPABASE_PROJECT_ID"];
  if (other === undefined || other === "" || other === ref) return;
  throw new CommandError(
    "other_project",
    `Cannot tell which project is meant: the repository is linked to ${ref}, and SUPABASE_PROJECT_ID names ${
      safeText(other)
    }; ` +
      "unset it, or link that project",
  );
}

async function runStep(cli: SupabaseCli, { args, shown, env }: Step): Promise<void> {
  const { code } = await cli.run(args, true, env);
  if (code === 0) return;
  const refused = args[0] === "db"
    ? "; where it says that the remote has migrations that are not here, fetch them into the repository (npx supabase migration " +
      "fetch --remote): never repair your own history away. Where it asks for --include-all, push that way by hand. Where it cannot " +
      "reach the database, pass the pooler's URL (dashboard, Connect) with --db-url"
    : "";
  throw new CommandError("step_failed", `${shown} ended with status ${code}${refused}`);
}

/** Calls the function once, with which it says where it lives. */
async function showReport(
  { host, output, ref }: { host: Host; output: Output; ref: string },
  { url, key, bucket }: DeployOptions,
): Promise<number> {
  const own = `https://${ref}.supabase.co`;
  const connection = await findConnection({ url, key }, host).catch((error: unknown) => {
    if (url !== undefined || key !== undefined) throw error;
    return undefined;
  });
  // A project that stands in the environment may be another one; what is passed is meant.
  if (connection === undefined || (url === undefined && connection.url !== own)) {
    output.show(
      { project: ref, url: own, done: true, report: null },
      () =>
        `Deployed. The function has to be called once: set SUPABASE_URL=${own} and SUPABASE_SECRET_KEY, then\n` +
        "Next: npx image-sync status\n",
    );
    return exitStatus.fine;
  }
  const client = createClient(connection, { timeout: 60_000 });
  const report = await client.report(bucket).catch((error: unknown) => {
    if (!(error instanceof CommandError)) throw error;
    output.note(`Deployed, but: ${error.message}`);
    return null;
  });
  output.show(
    { project: ref, url: connection.url, done: true, report },
    () => report === null ? "Next: npx image-sync doctor\n" : renderReport(report),
  );
  return report?.healthy === true ? exitStatus.fine : exitStatus.attention;
}
