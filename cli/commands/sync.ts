import type { Run } from "../../supabase/functions/image-sync/contract.ts";
import type { Context } from "./context.ts";
import { showFinished, showStarted, startRun } from "./start.ts";

/** Options of {@linkcode sync}. */
export type SyncOptions = { readonly renewAll: boolean; readonly wait: boolean };

/** Brings records and signed URLs in step with the bucket. */
export async function sync(context: Context, { renewAll, wait }: SyncOptions): Promise<number> {
  const run = await startRun(context, {
    body: { mode: "sync", bucket: context.bucket, ...(renewAll ? { renew: "all" } : {}) },
    // A run that renews everything does all that a plain one does, not the other way round.
    isSame: (open: Run) => !renewAll || open.options["renew"] === "all",
  });
  return wait ? showFinished(context, await context.finished(run)) : showStarted(context, run);
}
