/**
 * A stateless worker: it goes on with a run until nothing is left or its budget is used up. All state is in the database, so
 * it may be ended between any two lines; any number of workers may be at one run (docs/leases.md).
 *
 * Work is done in lanes: a lane closes its chunk and leases the next with one call, then signs it. The first lane walks alone
 * over what needs no signing; a chunk that does starts the others, as many as the database says are of use, up to the limit.
 */
import type { Budget, Limits } from "./budget.ts";
import type { Advance, Fault, Probe, Run, Target } from "./contract.ts";
import { type Closing, type Database, DatabaseError, NOTHING_SIGNED } from "./database.ts";
import { faultOf, isPassing } from "./faults.ts";
import { log, messageOf } from "./log.ts";
import { openChunk, type Pipeline, workChunk } from "./pipeline.ts";

/** The longest that an idle lane waits for chunks that others hold or that wait for their next attempt, in ms: at first, and in all. */
const FIRST_IDLE_MS = 100;
const MAX_IDLE_MS = 20_000;
/** What every lane waits out, in ms: the pace of a verify, mostly. */
const SHORT_WAIT_MS = 250;
/** How often a close that is not all written yet is repeated once the worker's budget is spent. */
const MOST_REPEATS = 20;
/** How long a lane leaves the run's lock to others before it asks again, in ms. */
const BUSY_MS = 50;
/** How long a lane waits after an attempt that a lock ended, in ms: first, doubled each time in a row, and longest. */
const FIRST_PAUSE_MS = 500;
const LONGEST_PAUSE_MS = 5_000;

/** Lanes that open URLs. */
const OPENING_LANES = 2;

let nextLane = 0;

/** What a worker works with. */
export type WorkerOptions = {
  readonly run: string;
  readonly database: Database;
  readonly pipeline: Pipeline;
  /** Opens URLs as a reader does, below the address that readers use (null: the project's own). */
  readonly probe: (targets: readonly Target[], publicUrl: string | null) => Promise<Probe>;
  readonly budget: Budget;
  readonly limits: Limits;
  /** Settles when it is known whether the worker may begin. Never rejects. */
  readonly ready?: Promise<boolean>;
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
  /** A lane opens the last URLs and finishes the run. */
  isProbing: boolean;
  /** The next invocation was called: lanes that are at a chunk still close it beside that one's. */
  called: Promise<boolean> | null;
  /** Why a lane gave up: the others close what they have in hand and lease nothing more. */
  failure: { readonly error: unknown } | null;
};

/** What a call of the database came to; interrupted: the database ended it, and knows. */
type Step = Advance | { readonly next: "interrupted"; readonly fault: Fault; readonly isNoted: boolean };

/** Starts a worker on an open run. */
export function startWorker(options: WorkerOptions): Worker {
  const state: State = {
    ...options,
    worker: crypto.randomUUID(),
    leases: new Set(),
    lanes: new Map(),
    finished: false,
    isProbing: false,
    called: null,
    failure: null,
  };
  return {
    done: work(state),
    async end() {
      options.budget.end();
      await handOff(state, state.leases);
    },
  };
}

async function work(state: State): Promise<"finished" | "handed_off" | "left"> {
  const started = Date.now();
  const mayBegin = await state.ready ?? true;
  if (mayBegin) startLanes(state, 1);
  // Lanes start lanes: wait until none is left. None rejects.
  while (state.lanes.size > 0) await Promise.all(state.lanes.values());
  let result: "finished" | "handed_off" | "left" = "left";
  if (state.finished) result = "finished";
  // The leases expire and the watchdog calls again.
  else if (state.failure !== null) {
    log("worker_failed", { run: state.run, error: messageOf(state.failure.error) });
  } else if (state.budget.isSpent() && await endHandOff(state)) result = "handed_off";
  log("worker_ended", { run: state.run, worker: state.worker, result, ms: Date.now() - started });
  return result;
}

/** Starts so many lanes more, as far as the limit allows. */
function startLanes(state: State, count: number): void {
  for (let started = 0; started < count && state.lanes.size < state.limits.concurrency; started++) {
    const lane = nextLane++;
    const running = runLane(state, lane)
      .catch((error: unknown) => void (state.failure ??= { error }))
      .finally(() => state.lanes.delete(lane));
    state.lanes.set(lane, running);
  }
}

async function runLane(state: State, lane: number): Promise<void> {
  let closing: Closing | null = null;
  let interruptions = 0;
  let idledMs = 0;
  while (!state.finished) {
    const lease = nextLease(state);
    // What is in hand is signed already: the next worker starts while it is closed.
    if (lease === null && state.failure === null) state.called ??= handOff(state, []);
    if (lease === null && closing === null) return;
    const answer = await close(state, lease, closing);
    closing = null;
    if (answer.next === "interrupted") {
      await pause(state, answer, interruptions++);
      continue;
    }
    interruptions = 0;
    if (answer.next !== "wait") idledMs = 0;
    if (answer.next === "sign" && lease !== null) {
      state.leases.add(lease);
      state.budget.countSignedChunk();
      // A chunk that needs signing has others behind it; they are worked on side by side.
      if (state.failure === null) startLanes(state, answer.chunk.moreLanes);
      closing = await workChunk(state.pipeline, lease, answer.chunk);
      if (closing.isFinal === true && closing.error !== null) {
        // Its images get their records before the run ends.
        await close(state, null, closing);
        return await fail(state, closing.error);
      }
    } else if (answer.next === "open" && lease !== null) {
      state.leases.add(lease);
      state.budget.countOpenedUrls(answer.chunk.targets.length);
      // The rate and the URLs open at once are the run's and the worker's: another lane leases the next chunk when this one is
      // nearly done, no sooner, because a lease that waits for its turn runs out.
      closing = await openChunk(state.pipeline, lease, answer.chunk, () => {
        if (state.failure === null && state.lanes.size < OPENING_LANES) startLanes(state, 1);
      });
      // The next chunk's URLs are reached no better, and of this one's nothing is known.
      if (closing.error !== null) return await fail(state, closing.error);
      if (state.lanes.size > 1) {
        await close(state, null, closing);
        closing = null;
        // Out of the count at once, as an idle lane. Where the other one found nothing and left, this one goes on.
        if (state.lanes.size > 1) return void state.lanes.delete(lane);
      }
    } else if (answer.next === "probe") {
      // Another lane of this worker came first: what is left is its.
      if (state.isProbing) return;
      state.isProbing = true;
      await finish(state, await state.probe(answer.targets, answer.publicUrl));
    } else if (answer.next === "stop") {
      state.finished = true;
    } else if (answer.next === "busy") {
      await sleep(BUSY_MS);
    } else if (answer.next === "wait") {
      const waitMs = Math.min(answer.waitMs, Math.max(FIRST_IDLE_MS, idledMs / 2));
      idledMs += waitMs;
      if (answer.waitMs <= SHORT_WAIT_MS && idledMs <= MAX_IDLE_MS) await sleep(waitMs);
      else if (!await idle(state, lane, waitMs, idledMs)) return;
    }
  }
}

/** The token of a lane's next call; null where it closes what is in hand and leases nothing more. */
function nextLease({ budget, failure }: State): string | null {
  return budget.isSpent() || failure !== null ? null : crypto.randomUUID();
}

/** A timeout is mended by a smaller chunk; a lock, or a database that could not even note it, by time. */
async function pause(
  { budget }: State,
  { fault, isNoted }: { readonly fault: Fault; readonly isNoted: boolean },
  before: number,
): Promise<void> {
  if (fault.code === "database_timeout" && isNoted) return;
  await sleep(Math.min(FIRST_PAUSE_MS * 2 ** before, LONGEST_PAUSE_MS, budget.remainingMs()));
}

/**
 * Waits for a chunk to come free. What others hold is mostly closed long before their lease runs out, so it is asked for again and
 * again: a worker that left because of the lanes that the one before it is about to end would leave the run to the watchdog.
 * False where this lane is not needed: another one of this worker is at it, or it has waited long enough.
 */
async function idle(state: State, lane: number, waitMs: number, idledMs: number): Promise<boolean> {
  const isNeeded = state.lanes.size === 1 && idledMs <= Math.min(MAX_IDLE_MS, state.budget.remainingMs());
  // Out of the count at once, so that of two lanes that ask at the same time one stays.
  if (!isNeeded) state.lanes.delete(lane);
  else await sleep(waitMs);
  return isNeeded;
}

/** At least `ms`, and up to a quarter more, so that workers do not come back all at once. */
function sleep(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms * (1 + Math.random() / 4)));
}

/** Closes what is in hand, in as many calls as the database takes for it, and leases the next chunk. */
async function close(state: State, lease: string | null, closing: Closing | null): Promise<Step> {
  for (let repeats = 0;; repeats++) {
    const answer = await advance(state, lease, closing);
    if (answer.next !== "more") {
      if (closing !== null) state.leases.delete(closing.lease);
      return answer;
    }
    // What is left of it is given back with the lease.
    if (state.budget.isSpent() && repeats > MOST_REPEATS) return { closed: null, next: "again" };
    await sleep(BUSY_MS);
  }
}

async function advance(state: State, lease: string | null, closing: Closing | null): Promise<Step> {
  const { run, worker, database } = state;
  state.budget.countCall();
  try {
    return await database.advance({ run, worker, lease, closing });
  } catch (error) {
    if (!(error instanceof DatabaseError)) throw error;
    const fault = faultOf(error);
    if (isPassing(fault)) return await interrupted(state, lease, closing, fault);
    if (!error.isRefusal) throw error;
    // Something in this chunk's URLs is refused: that is the chunk's failure, not the run's.
    if (closing !== null && closing.error === null && fault.code === "database_refused") {
      return await advance(state, lease, { ...closing, ...NOTHING_SIGNED, error: fault });
    }
    await fail(state, fault);
    return { closed: null, next: "stop" };
  }
}

/**
 * The database ended the call, and with it all that the call had written, the count of the attempt included: it is told so in a call
 * of its own. Where the call had two parts, the closing is tried by itself first: it may be the other part that took too long.
 */
async function interrupted(
  state: State,
  lease: string | null,
  closing: Closing | null,
  fault: Fault,
): Promise<Step> {
  if (lease !== null && closing !== null) return await close(state, null, closing);
  const { run, worker, database } = state;
  try {
    const { storageCalls, retries } = closing ?? { storageCalls: 0, retries: 0 };
    const isToRepeat = await database.endAttempt({
      run,
      worker,
      lease,
      closing: closing?.lease ?? null,
      error: fault,
      storageCalls,
      retries,
    });
    return isToRepeat ? { closed: null, next: "more" } : { next: "interrupted", fault, isNoted: true };
  } catch (error) {
    // Its lease runs out, which counts as an attempt too.
    log("attempt_not_noted", { run, code: fault.code, error: messageOf(error) });
    return { next: "interrupted", fault, isNoted: false };
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

/** Whether others go on: called while the lanes ended, or called now; what no lane has closed is given back. */
async function endHandOff(state: State): Promise<boolean> {
  const isCalled = state.called !== null && await state.called;
  return isCalled && state.leases.size === 0 || await handOff(state, state.leases) || isCalled;
}

/** Gives leases back and calls the next invocation, once for a worker. */
async function handOff({ database, run, worker }: State, leases: Iterable<string>): Promise<boolean> {
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
