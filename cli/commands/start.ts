import type { Run } from "../../supabase/functions/image-sync/contract.ts";
import { renderRun } from "../../supabase/functions/image-sync/text.ts";
import type { StartBody } from "../client.ts";
import { CommandError } from "../command_error.ts";
import { howToFollow } from "../watch.ts";
import { type Context, statusOf } from "./context.ts";

/** A run to start, and how to tell that an open one will do instead. */
export type Start = {
  readonly body: StartBody;
  /** Whether a run that is open in this mode already does what was asked. */
  readonly isSame: (run: Run) => boolean;
};

/**
 * Starts a run, or joins the open one that does the same.
 *
 * @throws {CommandError} `other_run_open` when the open run does something else.
 */
export async function startRun({ client, output }: Context, { body, isSame }: Start): Promise<Run> {
  const { run, created } = await client.start(body);
  if (created) {
    output.note(`Started run ${run.id}`);
    return run;
  }
  if (isSame(run)) {
    output.note(`Run ${run.id} was open already and does the same: joined it`);
    return run;
  }
  throw new CommandError(
    "other_run_open",
    `Cannot start this ${run.mode}: run ${run.id} is open in the same mode and does something else; try again when it has ` +
      `finished, ${howToFollow(run)}`,
  );
}

/** Shows a run that is not waited for. */
export function showStarted({ output }: Context, run: Run): number {
  output.show(run, () => renderRun(run));
  if (run.finished_at === null) output.note(`Run ${run.id} goes on: ${howToFollow(run)}`);
  return statusOf(run);
}

/** Shows a run that has finished. */
export function showFinished({ output }: Context, run: Run): number {
  output.show(run, () => renderRun(run));
  return statusOf(run);
}
