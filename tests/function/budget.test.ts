import { expect, test } from "vitest";
import { createBudget, DEFAULT_LIMITS } from "../../supabase/functions/image-sync/budget.ts";

const limits = { wallMs: 1000, signedChunks: 3, calls: 5, concurrency: 2 };

function budgetAt(start: number) {
  let time = start;
  return { budget: createBudget(limits, () => time), setTime: (now: number) => time = now };
}

test("a budget is spent when its time is over, to the millisecond", () => {
  const { budget, setTime } = budgetAt(5000);
  expect([budget.isSpent(), budget.remainingMs()]).toEqual([false, 1000]);
  setTime(5999);
  expect([budget.isSpent(), budget.remainingMs()]).toEqual([false, 1]);
  setTime(6000);
  expect([budget.isSpent(), budget.remainingMs()]).toEqual([true, 0]);
  setTime(9000);
  expect([budget.isSpent(), budget.remainingMs()]).toEqual([true, 0]);
});

test("a budget is spent by its calls, by its signed chunks, and at once when it is ended", () => {
  const byCalls = budgetAt(0).budget;
  for (let call = 0; call < 4; call++) byCalls.countCall();
  expect(byCalls.isSpent()).toBe(false);
  byCalls.countCall();
  expect(byCalls.isSpent()).toBe(true);

  const byChunks = budgetAt(0).budget;
  for (let chunk = 0; chunk < 3; chunk++) byChunks.countSignedChunk();
  expect(byChunks.isSpent()).toBe(true);

  const ended = budgetAt(0).budget;
  ended.end();
  expect(ended.isSpent()).toBe(true);
});

test("the default leaves the platform's limits far behind and works on four chunks at a time", () => {
  expect(DEFAULT_LIMITS).toMatchObject({ wallMs: 60_000, concurrency: 4 });
});
