import { renderRun } from "../../supabase/functions/image-sync/text.ts";
import { exitStatus } from "../command_error.ts";
import type { Context } from "./context.ts";

/** Cancels an open run; what it has done so far stays. */
export async function cancel({ client, output }: Context, { id }: { readonly id: string }): Promise<number> {
  const run = await client.cancel(id);
  output.show(run, () => renderRun(run));
  return exitStatus.fine;
}
