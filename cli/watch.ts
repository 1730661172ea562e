import { setTimeout as delay } from "node:timers/promises";
import type { Run } from "../supabase/functions/image-sync/contract.ts";
import type { Client } from "./client.ts";
import { CommandError, exitStatus } from "./command_error.ts";
import type { Progress } from "./progress.ts";
import { createWaker } from "./waker.ts";

/** How often to look, in ms: soon at first, because small runs are over at once, then less and less often. */
export type Pace = { readonly first: number; readonly longest: number };

export const DEFAULT_PACE: Pace = { first: 150, longest: 2_000 };

// In a row, each after a pause: a restart of the function or a short loss of the network is no reason to look away.
const FAILURES_BORNE = 8;

/** Options of {@linkcode watch}. */
export type WatchOptions = {
  readonly client: Pick<Client, "run" | "wake">;
  readonly progress: Progress;
  /** Aborted by Ctrl-C. */
  readonly signal: AbortSignal;
  readonly pace?: Pace;
};

/**
 * Looks at a run until it has finished, and wakes it where it stands still. The run goes on whatever becomes of this.
 *
 * @returns the finished run
 * @throws {CommandError} `interrupted` after Ctrl-C; what the client throws when it throws that again and again.
 */
export async function watch(
  run: Run,
  { client, progress, signal, pace = DEFAULT_PACE }: WatchOptions,
): Promise<Run> {
  const wake = createWaker(client);
  let latest = run;
  let failures = 0;
  let pause = pace.first;
  try {
    while (latest.finished_at === null) {
      if (failures === 0) progress.update(latest);
      await delay(pause, undefined, { signal });
      pause = Math.min(pause * 1.5, pace.longest);
      try {
        latest = await client.run(run.id);
        failures = 0;
        await wake(latest);
      } catch (error) {
        failures++;
        if (!isTransient(error) || failures > FAILURES_BORNE) throw error;
        progress.lose();
      }
    }
    progress.update(latest);
    return latest;
  } catch (error) {
    throw lostSight({ run, error, interrupted: signal.aborted });
  } finally {
    progress.stop();
  }
}

/** How to come back to a run that goes on. */
export function howToFollow(run: Run): string {
  return `watch it with: npx image-sync status --run ${run.id} --wait, cancel it with: npx image-sync cancel ${run.id}`;
}

function isTransient(error: unknown): boolean {
  return error instanceof CommandError && error.transient;
}

function lostSight({ run, error, interrupted }: { run: Run; error: unknown; interrupted: boolean }): unknown {
  if (interrupted) {
    return new CommandError("interrupted", `Stopped watching; run ${run.id} goes on: ${howToFollow(run)}`, {
      cause: error,
      status: exitStatus.interrupted,
    });
  }
  if (!(error instanceof CommandError)) return error;
  return error.reworded(`${error.message}. Run ${run.id} may go on: ${howToFollow(run)}`);
}
