import type { RunsQuery } from "../../supabase/functions/image-sync/contract.ts";
import { renderRuns } from "../../supabase/functions/image-sync/text/lists.ts";
import { exitStatus } from "../command_error.ts";
import type { Context } from "./context.ts";

/** Options of {@linkcode runs}. */
export type RunsOptions = Pick<RunsQuery, "mode" | "state" | "after" | "limit"> & {
  /** Of every bucket instead of one. */
  readonly allBuckets: boolean;
};

/** Shows the history of runs, newest first. */
export async function runs({ client, output, bucket }: Context, options: RunsOptions): Promise<number> {
  const { allBuckets, mode, state, after, limit } = options;
  const page = await client.runs({ mode, state, after, limit, ...(allBuckets ? {} : { bucket }) });
  output.show(page, () => renderRuns(page));
  return exitStatus.fine;
}
