import { renderFile, renderReport, renderRun } from "../../supabase/functions/image-sync/text.ts";
import { exitStatus } from "../command_error.ts";
import { type Context, statusOf } from "./context.ts";

/** Options of {@linkcode status}; without any it shows the report. */
export type StatusOptions = {
  /** Show this run. */
  readonly run?: string;
  /** Show why this file is, or is not, in sync. */
  readonly file?: string;
  /** Wait for the run to finish. */
  readonly wait: boolean;
};

/** Shows how things are and changes nothing. */
export async function status(context: Context, { run, file, wait }: StatusOptions): Promise<number> {
  if (run !== undefined) return await runStatus(context, { id: run, wait });
  if (file !== undefined) return await fileStatus(context, file);
  const report = await context.client.report(context.bucket);
  context.output.show(report, () => renderReport(report));
  return report.healthy ? exitStatus.fine : exitStatus.attention;
}

async function runStatus(context: Context, { id, wait }: { id: string; wait: boolean }): Promise<number> {
  const latest = await context.client.run(id);
  const run = wait ? await context.finished(latest) : latest;
  context.output.show(run, () => renderRun(run));
  return statusOf(run);
}

async function fileStatus({ client, output, bucket }: Context, name: string): Promise<number> {
  const file = await client.file(bucket, name);
  output.show(file, () => renderFile(file));
  return file.in_sync ? exitStatus.fine : exitStatus.attention;
}
