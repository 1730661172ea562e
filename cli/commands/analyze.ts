import { renderReport, renderRun } from "../../supabase/functions/image-sync/text.ts";
import { type Context, statusOf } from "./context.ts";
import { showStarted, startRun } from "./start.ts";

/** Counts what is out of step, changes nothing, and shows the report. */
export async function analyze(context: Context, { wait }: { readonly wait: boolean }): Promise<number> {
  const { client, output, bucket } = context;
  const started = await startRun(context, { body: { mode: "analyze", bucket }, isSame: () => true });
  if (!wait) return showStarted(context, started);
  const run = await context.finished(started);
  const report = await client.report(bucket);
  // A report that this run could not make is not shown as if it had.
  output.show({ run, report }, () => run.state === "succeeded" ? renderReport(report) : renderRun(run));
  return statusOf(run);
}
