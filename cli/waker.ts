import type { Run } from "../supabase/functions/image-sync/contract.ts";
import type { Client } from "./client.ts";

/** How long a run may stand still, in ms: first, doubled each time in a row that waking it moved nothing, and longest. */
const FIRST_PATIENCE = 3_000;
const LONGEST_PATIENCE = 60_000;

/** Looks at a run each time that it was read. Never rejects: what is wrong, the next look at the run says. */
export type Waker = (run: Run) => Promise<void>;

/**
 * Makes what wakes a run while somebody waits for it. A worker whose budget is used up has the database call the next one, and
 * where that call does not arrive, the one who waits is the only one to see it.
 */
export function createWaker(client: Pick<Client, "wake">, now: () => number = Date.now): Waker {
  const seen = new Map<string, { readonly as: string; readonly since: number; readonly patience: number }>();
  return async (run) => {
    const as = `${run.id} ${run.moved_at ?? run.progress.done}`;
    const before = seen.get(run.bucket_id);
    if (run.finished_at !== null || run.idle === false || before?.as !== as) {
      seen.set(run.bucket_id, { as, since: now(), patience: FIRST_PATIENCE });
    } else if (now() - before.since >= before.patience) {
      seen.set(run.bucket_id, {
        as,
        since: now(),
        patience: Math.min(2 * before.patience, LONGEST_PATIENCE),
      });
      await client.wake(run.id).catch(() => {});
    }
  };
}
