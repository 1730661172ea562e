import { beforeEach, describe, expect, test, vi } from "vitest";
import { createBudget, type Limits } from "../../supabase/functions/image-sync/budget.ts";
import type { Advance, Fault, Run } from "../../supabase/functions/image-sync/contract.ts";
import {
  type AdvanceRequest,
  type Database,
  DatabaseError,
} from "../../supabase/functions/image-sync/database.ts";
import { type Signed, SigningError } from "../../supabase/functions/image-sync/signer.ts";
import { startWorker } from "../../supabase/functions/image-sync/worker.ts";

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
    finished: [] as (Fault | null)[],
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
          chunksLeft: chunks - number,
        },
      };
    },
    finish: (request: { error: Fault | null }) => {
      seen.finished.push(request.error);
      return Promise.resolve(ended);
    },
    handOff: (request: { leases: readonly string[] }) => {
      seen.handOffs.push([...request.leases]);
      return Promise.resolve(true);
    },
  };
  return { database: database as unknown as Database, seen, open };
}

/** A signer that takes a moment, and how many of its calls overlapped. */
function slowSigner(ms = 2) {
  const seen = { now: 0, most: 0 };
  const sign = async ({ names }: { names: readonly string[] }): Promise<Signed> => {
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

function work(
  database: Database,
  sign: ReturnType<typeof slowSigner>["sign"],
  changed: Partial<Limits> = {},
) {
  const all = { ...limits, ...changed };
  return startWorker({
    run: runId,
    database,
    pipeline: { bucket: "part-images", sign, takeCounts: () => ({ storageCalls: 1, retries: 0 }) },
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
});
