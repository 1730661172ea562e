import { dirname, resolve } from "node:path";
import { renderReport } from "../../supabase/functions/image-sync/text.ts";
import { confirm } from "../ask.ts";
import { createClient } from "../client.ts";
import { CommandError, exitStatus } from "../command_error.ts";
import { findConnection } from "../connection.ts";
import type { Host } from "../host.ts";
import type { Output } from "../output.ts";
import { findInstallation } from "../project/install.ts";
import { describeProject, findSupabaseCli, readLink, type SupabaseCli } from "../project/supabase_cli.ts";

/** Options of {@linkcode deploy}. */
export type DeployOptions = {
  readonly directory: string | undefined;
  /** Show what would be done, and do nothing. */
  readonly dryRun: boolean;
  readonly yes: boolean;
  readonly bucket: string;
};

// What the CLI is told, in order. Docker is not needed.
const STEPS: readonly (readonly string[])[] = [
  ["db", "push", "--remote", "--yes"],
  ["functions", "deploy", "image-sync", "--use-api"],
];
const PERMISSIONS = "database_write, edge_functions_write, projects_read, database_pooling_config_read";

/** Pushes the migrations and the function of a repository with its owner's CLI, calls the function once and shows the report. */
export async function deploy(
  { host, output }: { readonly host: Host; readonly output: Output },
  { directory = ".", dryRun, yes, bucket }: DeployOptions,
): Promise<number> {
  const supabase = await findInstallation(resolve(host.directory, directory));
  const root = dirname(supabase);
  const link = await readLink(supabase);
  const cli = await findSupabaseCli(root, host);
  const project = await describeProject(cli, link);
  const url = `https://${link.ref}.supabase.co`;
  const commands = STEPS.map((step) => `${cli.name} ${step.join(" ")}`);
  output.note(
    [
      `To project ${project}:`,
      ...commands.map((command) => `  ${command}`),
      `An access token has to be allowed: ${PERMISSIONS}`,
    ]
      .join("\n"),
  );
  if (dryRun) {
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
  for (const step of STEPS) await runStep(cli, step);
  return await showReport({ host, output, url, bucket });
}

async function runStep(cli: SupabaseCli, step: readonly string[]): Promise<void> {
  const { code } = await cli.run(step, true);
  if (code === 0) return;
  const refused = step[0] === "db"
    ? "; where it says that the remote has migrations that are not here, fetch them into the repository (npx supabase migration " +
      "fetch): never repair your own history away. Where it asks for --include-all, push that way by hand"
    : "";
  throw new CommandError("step_failed", `${cli.name} ${step.join(" ")} ended with status ${code}${refused}`);
}

/** Calls the function once, with which it says where it lives. */
async function showReport(
  { host, output, url, bucket }: { host: Host; output: Output; url: string; bucket: string },
): Promise<number> {
  const connection = await findConnection({ url: undefined, key: undefined }, host).catch(() => undefined);
  if (connection?.url !== url) {
    output.show(
      { url, done: true, report: null },
      () =>
        `Deployed. The function has to be called once: set SUPABASE_URL=${url} and SUPABASE_SECRET_KEY, then\n` +
        "Next: npx image-sync status\n",
    );
    return exitStatus.fine;
  }
  const report = await createClient(connection, { timeout: 60_000 }).report(bucket);
  output.show({ url, done: true, report }, () => renderReport(report));
  return report.healthy ? exitStatus.fine : exitStatus.attention;
}
