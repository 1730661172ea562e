/**
 * What one invocation may use up. The platform ends a worker after 150 s of wall clock (400 s on paid plans) and after 2 s of
 * CPU; both are left far behind, and the database calls the function again for the rest.
 */

import { z } from "zod";

/** Limits of one invocation. */
export type Limits = {
  /** No chunk is begun after this time, in ms. Default 60,000. */
  readonly wallMs: number;
  /** Chunks signed; one costs 10 to 20 ms of CPU, the more the younger the worker. Default 40: well under a second. */
  readonly signedChunks: number;
  /** Calls of the database; one costs about 2 ms of CPU. Default 250. */
  readonly calls: number;
  /** Chunks in flight at once. Default 4. */
  readonly concurrency: number;
};

export const DEFAULT_LIMITS: Limits = { wallMs: 60_000, signedChunks: 40, calls: 250, concurrency: 4 };

const wholeNumber = z.coerce.number().int().positive();

/**
 * The limits that the function's environment sets (`IMAGE_SYNC_WALL_MS`, `IMAGE_SYNC_CONCURRENCY`), for tests and for a
 * project that has reason to; what is absent or no positive whole number is the default.
 */
export function readLimits(read: (name: string) => string | undefined): Limits {
  return {
    ...DEFAULT_LIMITS,
    wallMs: wholeNumber.catch(DEFAULT_LIMITS.wallMs).parse(read("IMAGE_SYNC_WALL_MS")),
    concurrency: wholeNumber.catch(DEFAULT_LIMITS.concurrency).parse(read("IMAGE_SYNC_CONCURRENCY")),
  };
}

/** What is left of an invocation's limits. */
export type Budget = {
  readonly isSpent: () => boolean;
  /** What is left of the wall clock, in ms. */
  readonly remainingMs: () => number;
  readonly countCall: () => void;
  readonly countSignedChunk: () => void;
  /** Opening a URL costs about a twentieth of what signing a chunk does. */
  readonly countOpenedUrls: (urls: number) => void;
  /** Spends all of it: the platform is about to end this worker. */
  readonly end: () => void;
};

/** Starts counting now. `now` returns ms. */
export function createBudget(limits: Limits, now: () => number = Date.now): Budget {
  const deadline = now() + limits.wallMs;
  let calls = limits.calls;
  let signedChunks = limits.signedChunks;
  let ended = false;
  return {
    isSpent: () => ended || calls <= 0 || signedChunks <= 0 || now() >= deadline,
    remainingMs: () => Math.max(deadline - now(), 0),
    countCall: () => void calls--,
    countSignedChunk: () => void signedChunks--,
    countOpenedUrls: (urls) => void (signedChunks -= urls / 20),
    end: () => void (ended = true),
  };
}
