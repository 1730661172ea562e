import { expect, test } from "vitest";
import { createWaker } from "../../cli/waker.ts";
import type { Run } from "../../supabase/functions/image-sync/contract.ts";
import { makeRun } from "./support/documents.ts";

/** A waker whose clock the test sets, in s, and what it woke when. */
function begin({ fails = false } = {}) {
  let seconds = 0;
  const woken: [string, number][] = [];
  const wake = createWaker({
    wake: (id) => {
      woken.push([id, seconds]);
      return fails ? Promise.reject(new Error("away")) : Promise.resolve(makeRun());
    },
  }, () => 1000 * seconds);
  /** Looks at the run each second. */
  const look = async (run: Run, until: number) => {
    for (; seconds < until; seconds++) await wake(run);
  };
  return { look, woken };
}

const open = makeRun({ state: "open", moved_at: "2026-11-30T02:00:00+00:00", idle: true });

test("a run that stands still is woken after three seconds, then less and less often", async () => {
  const { look, woken } = begin();
  await look(open, 300);
  expect(woken.map(([, at]) => at)).toEqual([3, 9, 21, 45, 93, 153, 213, 273]);
  expect(woken[0]?.[0]).toBe(open.id);
});

test("a run that moves, and one that a worker is at, are left alone", async () => {
  const { look, woken } = begin();
  for (let second = 1; second <= 20; second++) await look({ ...open, moved_at: `${second}` }, 2 * second);
  await look({ ...open, idle: false }, 100);
  await look(makeRun({ ...open, state: "succeeded", finished_at: "2026-11-30T02:01:00+00:00" }), 200);
  expect(woken).toEqual([]);
});

test("whoever was woken and moved is given three seconds again", async () => {
  const { look, woken } = begin();
  await look(open, 10);
  await look({ ...open, moved_at: "2026-11-30T02:00:10+00:00" }, 20);
  expect(woken.map(([, at]) => at)).toEqual([3, 9, 13, 19]);
});

test("runs of several buckets are told apart, and a function that is away is tried again", async () => {
  const { look, woken } = begin({ fails: true });
  const other = makeRun({ ...open, id: crypto.randomUUID(), bucket_id: "other" });
  for (let second = 1; second <= 20; second++) await look(second % 2 === 0 ? open : other, second);
  expect(new Set(woken.map(([id]) => id))).toEqual(new Set([open.id, other.id]));
  expect(woken.length).toBeGreaterThan(3);
});
