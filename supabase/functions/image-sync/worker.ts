/**
 * A stateless worker: it goes on with a run until nothing is left or its budget is used up. All state is in the database, so
 * it may be ended between any two lines; any number of workers may be at one run (docs/leases.md).
 *
 * Work is done in lanes: a lane closes its chunk and leases the next with one call, then signs it. The first lane walks alone
 * over what needs no signing; a chunk that does starts the others, as many as there are chunks left, up to the limit.
 */
import type { Budget, Limits } from "./budget.ts";
import type { Advance, Fault, Run } from "./contract.ts";
import { type Closing, type Database, DatabaseError, NOTHING_SIGNED } from "./database.ts";
import { log, messageOf } from "./log.ts";
import { type Pipeline, workChunk } from "./pipeline.ts";
import type { ProbeTarget } from "./probe.ts";
import type { Probe } from "./contract.ts";

/** The longest that an idle lane waits for chunks that others hold or that wait for their next attempt, in ms. */
const MAX_IDLE_MS = 20_000;
/** SQLSTATE of a missing grant. */
const INSUFFICIENT_PRIVILEGE = "42501";
/** How long a lane leaves the run's lock to others before it asks again, in ms. */
const BUSY_MS = 50;

let nextLane = 0;

/** What a worker works with. */
export type WorkerOptions = {
  readonly run: string;
  readonly database: Database;
  readonly pipeline: Pipeline;
  readonly probe: (targets: readonly ProbeTarget[]) => Promise<Probe>;
  readonly budget: Budget;
  readonly limits: Limits;
};

/** A worker at work. */
export type Worker = {
  /** How it ended: the run is finished, or others go on with it. Never rejects. */
  readonly done: Promise<"finished" | "handed_off" | "left">;
  /** The platform ends this worker: gives back what it holds, as far as there is time. */
  readonly end: () => Promise<void>;
};

type State = WorkerOptions & {
  readonly worker: string;
  readonly leases: Set<string>;
  readonly lanes: Map<number, Promise<void>>;
  finished: boolean;
};

/** Starts a worker on an open run. */
export function startWorker(options: WorkerOptions): Worker {
  const state: State = {
    ...options,
    worker: crypto.randomUUID(),
    leases: new Set(),
    lanes: new Map(),
    finished: false,
  };
  return {
    done: work(state),
    async end() {
      options.budget.end();
      await handOff(state);
    },
  };
}

async function work(state: State): Promise<"finished" | "handed_off" | "left"> {
  const started = Date.now();
  let result: "finished" | "handed_off" | "left" = "left";
  try {
    startLanes(state, 1);
    // Lanes start lanes: wait until none is left.
    while (state.lanes.size > 0) await Promise.all(state.lanes.values());
    if (state.finished) result = "finished";
    else if (state.budget.isSpent() && await handOff(state)) result = "handed_off";
  } catch (error) {
    // The leases expire and the watchdog calls again.
    log("worker_failed", { run: state.run, error: messageOf(error) });
  }
  log("worker_ended", { run: state.run, worker: state.worker, result, ms: Date.now() - started });
  return result;
}

/** Starts so many lanes more, as far as the limit allows. */
function startLanes(state: State, count: number): void {
  for (let started = 0; started < count && state.lanes.size < state.limits.concurrency; started++) {
    const lane = nextLane++;
    state.lanes.set(lane, runLane(state, lane).finally(() => state.lanes.delete(lane)));
  }
}

async function runLane(state: State, lane: number): Promise<void> {
  let closing: Closing | null = null;
  while (!state.finished) {
    // A spent budget closes what is in hand and leases nothing more.
    const lease = state.budget.isSpent() ? null : crypto.randomUUID();
    if (lease === null && closing === null) return;
    const answer = await advance(state, lease, closing);
    closing = null;
    if (answer.next === "sign" && lease !== null) {
      state.leases.add(lease);
      state.budget.countSignedChunk();
      // A chunk that needs signing has others behind it, as many as the bucket has left; they are worked on side by side.
      startLanes(state, answer.chunk.chunksLeft);
      const outcome = await workChunk(state.pipeline, lease, answer.chunk);
      closing = outcome.closing;
      if (outcome.isFinal && closing.error !== null) {
        // Its images get their records before the run ends.
        await advance(state, null, closing);
        return await fail(state, closing.error);
      }
    } else if (answer.next === "probe") {
      await finish(state, await state.probe(answer.targets));
    } else if (answer.next === "stop") {
      state.finished = true;
    } else if (answer.next === "busy") {
      await sleep(BUSY_MS);
    } else if (answer.next === "wait" && !await idle(state, lane, answer.waitMs)) {
      return;
    }
  }
}

/**
 * Waits for a chunk to come free. False where this lane is not needed: another one of this worker is at it, or it would wait
 * too long.
 */
async function idle(state: State, lane: number, waitMs: number): Promise<boolean> {
  const isNeeded = state.lanes.size === 1 && waitMs <= Math.min(MAX_IDLE_MS, state.budget.remainingMs());
  // Out of the count at once, so that of two lanes that ask at the same time one stays.
  if (!isNeeded) state.lanes.delete(lane);
  else await sleep(waitMs);
  return isNeeded;
}

/** At least `ms`, and up to a quarter more, so that workers do not come back all at once. */
function sleep(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms * (1 + Math.random() / 4)));
}

async function advance(state: State, lease: string | null, closing: Closing | null): Promise<Advance> {
  const { run, worker, database } = state;
  state.budget.countCall();
  try {
    return await database.advance({ run, worker, lease, closing });
  } catch (error) {
    if (!(error instanceof DatabaseError) || !error.isRefusal) throw error;
    const fault = toFault(error);
    // Something in this chunk's URLs is refused (a constraint of the table's owner): that is the chunk's failure, not the run's.
    if (closing !== null && closing.error === null && error.code !== INSUFFICIENT_PRIVILEGE) {
      return await advance(state, lease, { ...closing, ...NOTHING_SIGNED, error: fault });
    }
    await fail(state, fault);
    return { closed: null, next: "stop" };
  } finally {
    if (closing !== null) state.leases.delete(closing.lease);
  }
}

async function finish(state: State, probe: Probe): Promise<void> {
  reportEnd(await state.database.finish({ run: state.run, probe, error: null }));
  state.finished = true;
}

async function fail(state: State, error: Fault): Promise<void> {
  reportEnd(await state.database.finish({ run: state.run, probe: null, error }));
  state.finished = true;
}

async function handOff({ database, run, worker, leases }: State): Promise<boolean> {
  try {
    return await database.handOff({ run, worker, leases: [...leases] });
  } catch (error) {
    log("hand_off_failed", { run, error: messageOf(error) });
    return false;
  }
}

function reportEnd(run: Run): void {
  log("run_ended", {
    run: run.id,
    state: run.state,
    stop_reason: run.stop_reason,
    seconds: run.duration_seconds,
  });
}

/** Why the database refuses to go on with the run. */
function toFault(error: DatabaseError): Fault {
  if (error.code === INSUFFICIENT_PRIVILEGE && /\b(objects|buckets|schema storage)\b/.test(error.message)) {
    return {
      code: "listing_failed",
      title: "Error listing files",
      detail:
        `Cannot read the bucket's objects: ${error.message}. Run: grant usage on schema storage to service_role; grant select on storage.objects, storage.buckets to service_role;`,
    };
  }
  if (error.code === INSUFFICIENT_PRIVILEGE) {
    return {
      code: "permission_denied",
      title: "The function may not do its work",
      detail:
        `${error.message}. Grant service_role what it needs: grant select, insert, update, delete on public.part_images to service_role;`,
    };
  }
  return {
    code: "database_refused",
    title: "The database refused",
    detail: `${error.message} (${error.code})`,
  };
}
