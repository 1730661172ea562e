import { randomUUID } from "node:crypto";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type BareStack, openBareStack } from "../reliability/support/bare_stack.ts";
import { advance, createRows, start } from "../reliability/support/protocol.ts";

// Chunks of one: each of a bucket's files is one.
const names = (files: number) =>
  Array.from({ length: files }, (_, index) => `${String(index).padStart(4, "0")}.jpg`);

let db: BareStack;
beforeAll(async () => {
  db = await openBareStack();
});
afterAll(() => db?.close());

async function openRun(files: number): Promise<string> {
  const bucket = await createRows(db.admin, { names: names(files), settings: { chunk_size: 1 } });
  return (await start(db.worker, bucket)).run;
}

const cancel = (run: string) => db.worker`select public.image_sync_cancel(${run})`;

/** Leases a run's next chunk. Returns how many lanes more its worker is told to start. */
async function leaseChunk(run: string): Promise<number> {
  const answer = await advance(db.worker, { run, worker: randomUUID(), lease: randomUUID(), closing: null });
  expect(answer.next).toBe("sign");
  return Number(answer.chunk?.["more_lanes"]);
}

describe("lanes", () => {
  test("are as many as chunks are left, and ten at most", async () => {
    const few = await openRun(3);
    expect([await leaseChunk(few), await leaseChunk(few), await leaseChunk(few)]).toEqual([2, 1, 1]);
    await cancel(few);
    const many = await openRun(30);
    const told = [];
    for (let lane = 0; lane < 12; lane++) told.push(await leaseChunk(many));
    expect(told).toEqual([9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 0, 0]);
    await cancel(many);
  });

  test("of other runs count, and those of workers that are gone do not", async () => {
    const [one, other] = [await openRun(30), await openRun(30)];
    for (let lane = 0; lane < 6; lane++) await leaseChunk(other);
    expect(await leaseChunk(one)).toBe(3);
    await db.admin`
      update image_sync.chunks set lease_expires_at = clock_timestamp() - interval '1 second' where run_id = ${other}`;
    expect(await leaseChunk(one)).toBe(8);
    for (const run of [one, other]) await cancel(run);
  });

  test("of many buckets that begin at once are one each, until some of them end or stand still", async () => {
    const runs = [];
    for (let bucket = 0; bucket < 12; bucket++) runs.push(await openRun(30));
    const [first = "", ...others] = runs;
    expect(await leaseChunk(first)).toBe(0);
    for (const run of others.slice(0, 8)) await cancel(run);
    expect(await leaseChunk(first)).toBe(6);
    await db.admin`
      update image_sync.runs set moved_at = now() - interval '2 minutes' where id = any (${others.slice(8)})`;
    expect(await leaseChunk(first)).toBe(7);
    for (const run of [first, ...others.slice(8)]) await cancel(run);
  });
});
