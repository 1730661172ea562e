import type { Run } from "../../supabase/functions/image-sync/contract.ts";
import { bucketFlag } from "../../supabase/functions/image-sync/text/commands.ts";
import { renderTime } from "../../supabase/functions/image-sync/text.ts";
import { CommandError } from "../command_error.ts";
import type { Context } from "./context.ts";
import { showFinished, showStarted, startRun } from "./start.ts";

/** Options of {@linkcode restore}. */
export type RestoreOptions = {
  /** The cleanup run to undo. */
  readonly id: string | undefined;
  readonly wait: boolean;
};

/** Puts back the records that a cleanup run moved to the archive. */
export async function restore(context: Context, { id, wait }: RestoreOptions): Promise<number> {
  if (id === undefined) throw await missingRun(context);
  const run = await startRun(context, {
    body: { mode: "restore", bucket: context.bucket, restore: id },
    isSame: (open) => open.plan_id === id,
  });
  return wait ? showFinished(context, await context.finished(run)) : showStarted(context, run);
}

async function missingRun({ client, bucket }: Context): Promise<CommandError> {
  const last = (await client.report(bucket)).last_runs.cleanup;
  const hint = last !== null && removed(last) > 0
    ? `the last cleanup removed ${removed(last)} at ${
      renderTime(last.started_at)
    }: npx image-sync restore ${last.id}` +
      bucketFlag(bucket)
    : "the last run of cleanup removed nothing; earlier ones are in SQL: select id, started_at, summary from image_sync.runs " +
      "where mode = 'cleanup' and plan_id is not null order by started_at desc";
  return new CommandError("run_required", `Cannot restore without the id of a cleanup run: ${hint}`);
}

function removed({ totals }: Run): number {
  return totals["removed"] ?? 0;
}
