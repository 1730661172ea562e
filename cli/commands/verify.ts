import { renderRun } from "../../supabase/functions/image-sync/text.ts";
import { exitStatus } from "../command_error.ts";
import { type Context, statusOf } from "./context.ts";
import { showStarted, startRun } from "./start.ts";

/** Opens every signed URL as a reader does and says which show no image, and why. */
export async function verify(context: Context, { wait }: { readonly wait: boolean }): Promise<number> {
  const { output, bucket } = context;
  const started = await startRun(context, { body: { mode: "verify", bucket }, isSame: () => true });
  if (!wait) return showStarted(context, started);
  const run = await context.finished(started);
  output.show(run, () => renderRun(run));
  const isSeen = run.totals["opened"] === run.totals["shown"];
  return isSeen ? statusOf(run) : exitStatus.attention;
}
