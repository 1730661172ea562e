import { beforeEach, describe, expect, test, vi } from "vitest";
import { createBudget, type Limits } from "../../supabase/functions/image-sync/budget.ts";
import type { Advance, Fault, Run } from "../../supabase/functions/image-sync/contract.ts";
import {
  type AdvanceRequest,
  type Database,
  DatabaseError,
  type EndedAttempt,
} from "../../supabase/functions/image-sync/database.ts";
import { type Signed, SigningError } from "../../supabase/functions/image-sync/signer.ts";
import { startWorker, type WorkerOptions } from "../../supabase/functions/image-sync/worker.ts";

beforeEach(() => {
  vi.spyOn(console, "log").mockImplementation(() => {});
});

const runId = crypto.randomUUID();
const limits: Limits = { wallMs: 60_000, signedChunks: 1000, calls: 1000, concurrency: 4 };
const stop: Advance = { closed: null, next: "stop" };
const ended = { id: runId, state: "succeeded", stop_reason: null, duration_seconds: 1 } as Run;

/** A database of `chunks` chunks of one file each, and what was asked of it. */
function databaseOf(
  chunks: number,
  refuse: (request: AdvanceRequest) => Error | undefined = () => undefined,
) {
  const seen = {
    calls: 0,
    closed: [] as string[],
    errors: [] as Fault[],
    handOffs: [] as string[][],
    /** Chunks that were open when the next invocation was called. */
    openAtHandOff: [] as number[],
    finished: [] as (Fault | null)[],
    attempts: [] as EndedAttempt[],
  };
  const open = new Set<string>();
  let given = 0;
  const database = {
    async advance(request: AdvanceRequest): Promise<Advance> {
      await Promise.resolve();
      seen.calls++;
      const error = refuse(request);
      if (error !== undefined) throw error;
      if (request.closing !== null) {
        open.delete(request.closing.lease);
        seen.closed.push(...request.closing.names);
        if (request.closing.error !== null) seen.errors.push(request.closing.error);
      }
      if (request.lease === null) return { closed: "closed", next: "again" };
      if (given === chunks) return open.size > 0 ? { closed: null, next: "wait", waitMs: 1 } : stop;
      open.add(request.lease);
      const number = ++given;
      return {
        closed: null,
        next: "sign",
        chunk: {
          number,
          names: [`${number}.jpg`],
          expiresIn: 60,
          leaseMs: 60_000,
          publicUrl: null,
          moreLanes: chunks - number,
        },
      };
    },
    endAttempt: (attempt: EndedAttempt) => {
      seen.attempts.push(attempt);
      // A timeout is mended by the same close again, with less of it at once.
      const isToRepeat = attempt.closing !== null && attempt.error.code === "database_timeout";
      if (attempt.closing !== null && !isToRepeat) open.delete(attempt.closing);
      return Promise.resolve(isToRepeat);
    },
    finish: (request: { error: Fault | null }) => {
      seen.finished.push(request.error);
      return Promise.resolve(ended);
    },
    handOff: (request: { leases: readonly string[] }) => {
      seen.handOffs.push([...request.leases]);
      seen.openAtHandOff.push(open.size);
      return Promise.resolve(true);
    },
  };
  return { database: database as unknown as Database, seen, open };
}

/** A signer that takes a moment, and how many of its calls overlapped. */
function slowSigner(ms = 2) {
  const seen = { now: 0, most: 0, calls: 0 };
  const sign = async ({ names }: { names: readonly string[] }): Promise<Signed> => {
    seen.calls++;
    seen.most = Math.max(seen.most, ++seen.now);
    await new Promise((resolve) => setTimeout(resolve, ms));
    seen.now--;
    return {
      base: "http://x/",
      names: [...names],
      paths: [...names],
      tokens: names.map(() => "a.b.c"),
      expires: names.map(() => 1),
      failures: [],
    };
  };
  return { sign, seen };
}

/** Opens for 10 ms; the end is near after 5. `waiting`: chunks whose end is not near. */
function opener() {
  const seen = { waiting: 0 };
  const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));
  const open: WorkerOptions["pipeline"]["open"] = async ({ onEndNear }) => {
    seen.waiting++;
    await sleep(5);
    seen.waiting--;
    onEndNear?.();
    await sleep(5);
    return { shown: [], failures: [], end: null };
  };
  return { open, seen };
}

function work(
  database: Database,
  sign: ReturnType<typeof slowSigner>["sign"],
  changed: Partial<Limits> = {},
  open: WorkerOptions["pipeline"]["open"] = opener().open,
) {
  const all = { ...limits, ...changed };
  return startWorker({
    run: runId,
    database,
    pipeline: {
      bucket: "part-images",
      sign,
      open,
      takeCounts: () => ({ storageCalls: 1, retries: 0 }),
    },
    probe: () => Promise.resolve({ checked: 0, ok: 0, failures: [] }),
    budget: createBudget(all),
    limits: all,
  });
}

describe("a worker", () => {
  test("signs every chunk once, at most four at a time, and ends with its run", async () => {
    const { database, seen } = databaseOf(40);
    const signer = slowSigner();
    expect(await work(database, signer.sign).done).toBe("finished");
    expect(seen.closed.toSorted()).toEqual(
      Array.from({ length: 40 }, (_, place) => `${place + 1}.jpg`).toSorted(),
    );
    expect(signer.seen.most).toBe(4);
    expect(seen.handOffs).toEqual([]);
  });

  test("walks alone where nothing has to be signed", async () => {
    const { database, seen } = databaseOf(0);
    expect(await work(database, slowSigner().sign).done).toBe("finished");
    expect(seen.calls).toBe(1);
  });

  test("whose budget is used up closes what it has in hand and hands off, holding nothing", async () => {
    const { database, seen, open } = databaseOf(40);
    expect(await work(database, slowSigner().sign, { signedChunks: 6 }).done).toBe("handed_off");
    expect(seen.handOffs).toEqual([[]]);
    expect(open.size).toBe(0);
    expect(seen.closed.length).toBeGreaterThanOrEqual(6);
    expect(seen.closed.length).toBeLessThanOrEqual(6 + 4);
  });

  test("calls the next one while its lanes close what they have in hand", async () => {
    const { database, seen, open } = databaseOf(40);
    expect(await work(database, slowSigner(20).sign, { signedChunks: 6 }).done).toBe("handed_off");
    expect(seen.handOffs).toEqual([[]]);
    expect(seen.openAtHandOff[0]).toBeGreaterThan(1);
    expect(open.size).toBe(0);
  });

  test("whose time is over leases nothing more", async () => {
    const { database, seen, open } = databaseOf(1000);
    expect(await work(database, slowSigner(5).sign, { wallMs: 20 }).done).toBe("handed_off");
    expect(seen.closed.length).toBeLessThan(1000);
    expect(open.size).toBe(0);
  });

  test("that the platform ends gives back at once the chunks that it holds", async () => {
    const { database, seen, open } = databaseOf(1000);
    const worker = work(database, slowSigner(50).sign);
    await vi.waitFor(() => expect(open.size).toBe(4));
    const held = [...open];
    await worker.end();
    expect(seen.handOffs[0]?.toSorted()).toEqual(held.toSorted());
    expect(await worker.done).toBe("handed_off");
  });

  test("fails the run at once where no other chunk would fare better", async () => {
    const { database, seen } = databaseOf(40);
    const fault = { code: "signing_failed", title: "Storage refused to sign", detail: "No" };
    expect(await work(database, () => Promise.reject(new SigningError(fault, true))).done).toBe("finished");
    expect(seen.finished[0]).toEqual(fault);
    expect(seen.closed).toEqual([]);
  });

  test("goes on after a chunk that could not be signed this time", async () => {
    const { database, seen } = databaseOf(10);
    const { sign } = slowSigner();
    const fault = { code: "signing_failed", title: "Storage refused to sign", detail: "Later" };
    const moody: typeof sign = (request) =>
      request.names[0] === "3.jpg" ? Promise.reject(new SigningError(fault, false)) : sign(request);
    expect(await work(database, moody).done).toBe("finished");
    expect(seen.closed).toHaveLength(9);
    expect(seen.errors).toEqual([fault]);
  });

  test("closes a chunk that the table refuses with its error, and goes on", async () => {
    const refuse = ({ closing }: AdvanceRequest) =>
      closing?.names[0] === "2.jpg"
        ? new DatabaseError("image_sync_advance", "23514", 400, "too long")
        : undefined;
    const { database, seen } = databaseOf(5, refuse);
    expect(await work(database, slowSigner().sign).done).toBe("finished");
    expect(seen.closed.toSorted()).toEqual(["1.jpg", "3.jpg", "4.jpg", "5.jpg"]);
    expect(seen.errors).toMatchObject([{
      code: "database_refused",
      detail: expect.stringContaining("too long"),
    }]);
  });

  test("says in the run's error which right it lacks", async () => {
    const listing = databaseOf(
      5,
      () => new DatabaseError("image_sync_advance", "42501", 403, "permission denied for table objects"),
    );
    expect(await work(listing.database, slowSigner().sign).done).toBe("finished");
    expect(listing.seen.finished).toMatchObject([{
      code: "listing_failed",
      detail: expect.stringContaining("grant select"),
    }]);
    const writing = databaseOf(
      5,
      () => new DatabaseError("image_sync_advance", "42501", 403, "permission denied for table part_images"),
    );
    expect(await work(writing.database, slowSigner().sign).done).toBe("finished");
    expect(writing.seen.finished).toMatchObject([{
      code: "permission_denied",
      detail: expect.stringContaining("part_images"),
    }]);
  });

  test("leaves the run to the next one when the database is away", async () => {
    const { database, seen } = databaseOf(
      5,
      () => new DatabaseError("image_sync_advance", "", 0, "The connection failed"),
    );
    expect(await work(database, slowSigner().sign).done).toBe("left");
    expect(seen.finished).toEqual([]);
  });

  test("whose lanes fail rejects nothing, and ends only when the last of them has", async () => {
    const unhandled: unknown[] = [];
    const note = (error: unknown) => void unhandled.push(error);
    process.on("unhandledRejection", note);
    const lost = new DatabaseError("image_sync_advance", "", 0, "The connection failed");
    const { database, seen, open } = databaseOf(
      40,
      ({ closing }) => closing?.names[0] === "2.jpg" ? lost : undefined,
    );
    const signer = slowSigner(20);
    expect(await work(database, signer.sign).done).toBe("left");
    await new Promise((resolve) => setTimeout(resolve, 20));
    process.off("unhandledRejection", note);
    expect(unhandled).toEqual([]);
    // What the others had in hand is closed, nothing more is leased, and the one chunk is its lease's.
    expect(signer.seen.now).toBe(0);
    expect(open.size).toBe(1);
    expect(seen.closed.length).toBeLessThan(8);
    expect(seen.finished).toEqual([]);
  });

  test("tells the database which of two parts it ended, and goes on", async () => {
    const timeout = new DatabaseError(
      "image_sync_advance",
      "57014",
      500,
      "canceling statement due to statement timeout",
    );
    const signer = slowSigner();
    let failures = 0;
    const { database, seen } = databaseOf(
      6,
      ({ closing }) => closing?.names[0] === "3.jpg" && ++failures <= 2 ? timeout : undefined,
    );
    expect(await work(database, signer.sign, { concurrency: 1 }).done).toBe("finished");
    expect(seen.attempts).toMatchObject([{
      lease: null,
      closing: expect.any(String),
      error: { code: "database_timeout" },
      storageCalls: 1,
    }]);
    // The same URLs: nothing is signed twice.
    expect(seen.closed).toEqual(["1.jpg", "2.jpg", "3.jpg", "4.jpg", "5.jpg", "6.jpg"]);
    expect(signer.seen.calls).toBe(6);
    expect(seen.errors).toEqual([]);
    expect(seen.finished).toEqual([]);
  });

  test("whose next chunk cannot be made in time closes the one in hand all the same", async () => {
    const timeout = new DatabaseError(
      "image_sync_advance",
      "57014",
      500,
      "canceling statement due to statement timeout",
    );
    let failures = 0;
    const { database, seen } = databaseOf(
      3,
      ({ lease, closing }) =>
        (lease !== null && closing?.names[0] === "1.jpg") ||
          (closing === null && seen.closed.length === 1 && ++failures === 1)
          ? timeout
          : undefined,
    );
    expect(await work(database, slowSigner().sign, { concurrency: 1 }).done).toBe("finished");
    expect(seen.closed).toEqual(["1.jpg", "2.jpg", "3.jpg"]);
    expect(seen.attempts).toMatchObject([{ lease: expect.any(String), closing: null }]);
  });

  test("waits where a lock ends its attempts, and hands off when its time is over", async () => {
    const locked = new DatabaseError(
      "image_sync_advance",
      "55P03",
      500,
      "canceling statement due to lock timeout",
    );
    const { database, seen } = databaseOf(3, () => locked);
    expect(await work(database, slowSigner().sign, { wallMs: 1_200 }).done).toBe("handed_off");
    expect(seen.attempts.length).toBeGreaterThanOrEqual(2);
    expect(seen.attempts.length).toBeLessThan(5);
    expect(seen.attempts[0]).toMatchObject({ error: { code: "row_locked" } });
  });

  test("makes the same call again until what it closes is all written", async () => {
    const { database, seen } = databaseOf(2);
    const signer = slowSigner();
    const calls: AdvanceRequest[] = [];
    const slow: Database = {
      ...database,
      advance: (request) => {
        calls.push(request);
        return calls.length === 2 || calls.length === 3
          ? Promise.resolve({ closed: "more", next: "more" })
          : database.advance(request);
      },
    };
    expect(await work(slow, signer.sign, { concurrency: 1 }).done).toBe("finished");
    expect(calls[2]).toEqual(calls[1]);
    expect(calls[3]).toEqual(calls[1]);
    expect(calls[1]?.closing).toMatchObject({ lease: calls[0]?.lease, number: 1, names: ["1.jpg"] });
    expect(seen.closed).toEqual(["1.jpg", "2.jpg"]);
    expect(signer.seen.calls).toBe(2);
  });

  test("gives back what it cannot close when its time is over", async () => {
    const { database } = databaseOf(1);
    const released: string[] = [];
    const leases: (string | null)[] = [];
    const held: Database = {
      ...database,
      advance: (request) => {
        leases.push(request.lease);
        return request.closing === null
          ? database.advance(request)
          : Promise.resolve({ closed: "more", next: "more" });
      },
      handOff: (request) => {
        released.push(...request.leases);
        return Promise.resolve(true);
      },
    };
    expect(await work(held, slowSigner().sign, { wallMs: 200 }).done).toBe("handed_off");
    expect(released).toEqual([leases[0]]);
  });

  test("drops a chunk that a lock ends, and goes on when it has waited", async () => {
    const locked = new DatabaseError(
      "image_sync_advance",
      "55P03",
      500,
      "canceling statement due to lock timeout",
    );
    const { database, seen, open } = databaseOf(
      3,
      ({ closing }) => closing?.names[0] === "2.jpg" ? locked : undefined,
    );
    expect(await work(database, slowSigner().sign, { concurrency: 1 }).done).toBe("finished");
    expect(seen.attempts).toMatchObject([{ closing: expect.any(String), error: { code: "row_locked" } }]);
    expect(seen.closed).toEqual(["1.jpg", "3.jpg"]);
    expect(open.size).toBe(0);
  });

  test("has the next chunk at hand when few URLs of one are left, no sooner and no more than that", async () => {
    const { database } = databaseOf(0);
    const { open, seen: opened } = opener();
    const seen = { now: 0, most: 0, given: 0, tooSoon: 0 };
    const opening: Database = {
      ...database,
      advance: async (request) => {
        if (request.closing !== null) seen.now--;
        await new Promise((resolve) => setTimeout(resolve, 2));
        if (request.lease === null) return { closed: null, next: "again" };
        if (++seen.given > 12) {
          return seen.now > 0 ? { closed: null, next: "wait", waitMs: 1 } : { closed: null, next: "stop" };
        }
        seen.most = Math.max(seen.most, ++seen.now);
        seen.tooSoon += opened.waiting;
        const chunk = { number: seen.given, targets: [], leaseMs: 1000, rate: 100, publicUrl: null };
        return { closed: null, next: "open", chunk };
      },
    };
    expect(await work(opening, slowSigner().sign, {}, open).done).toBe("finished");
    expect(seen).toMatchObject({ most: 2, tooSoon: 0 });
  });

  test("waits for what the lanes of the worker before it are about to close", async () => {
    const { database } = databaseOf(0);
    let calls = 0;
    const waiting: Database = {
      ...database,
      // A lease has a minute left, but its worker closes the chunk in a moment.
      advance: () =>
        Promise.resolve(
          ++calls < 4 ? { closed: null, next: "wait", waitMs: 60_000 } : { closed: null, next: "stop" },
        ),
    };
    const started = Date.now();
    expect(await work(waiting, slowSigner().sign).done).toBe("finished");
    expect(Date.now() - started).toBeLessThan(2_000);
  });

  test("starts its other lanes where much is to be signed, and one of them probes", async () => {
    const { database } = databaseOf(50);
    let calls = 0;
    let probes = 0;
    const probing: Database = {
      ...database,
      advance: async (request) => {
        calls++;
        await new Promise((resolve) => setTimeout(resolve, 20));
        return request.closing === null && calls === 1
          ? await database.advance(request)
          : { closed: null, next: "probe", targets: [], publicUrl: null };
      },
      finish: (request) => {
        probes++;
        return database.finish(request);
      },
    };
    expect(await work(probing, slowSigner().sign, { concurrency: 4 }).done).toBe("finished");
    expect(probes).toBe(1);
    expect(calls).toBe(5);
  });
});
