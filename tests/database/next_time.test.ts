/** When a schedule is due, as the report says it: against a library that knows cron, and against pg_cron's own extras. */
import { Cron } from "croner";
import { afterAll, beforeAll, expect, test } from "vitest";
import { type BareStack, openBareStack } from "../reliability/support/bare_stack.ts";

let db: BareStack;
beforeAll(async () => {
  db = await openBareStack();
});
afterAll(() => db?.close());

async function nextTime(schedule: string, after: Date): Promise<string | null> {
  const [row] = await db.admin<{ next: Date | null }[]>`
    select image_sync.next_time(${schedule}, ${after.toISOString()}::timestamptz) as next`;
  return row?.next?.toISOString() ?? null;
}

const moments = [
  "2026-11-25T11:23:45Z",
  "2026-12-31T23:59:59Z",
  "2027-02-28T02:00:00Z",
  "2028-02-29T00:00:00Z",
].map((text) => new Date(text));

test.each([
  "0 2 * * *",
  "*/15 * * * *",
  "5-10,40 3 * * *",
  "0 2 * * SUN",
  "0 2 * * 7",
  "0 2 * * 5-7",
  "0 2 * * mon-fri",
  "0 2 1 JAN *",
  "0 0 13 * 5",
  "0 2 */2 * 1",
  "30 23 31 * *",
  "0 0 29 2 *",
  "@daily",
  "@midnight",
  "@hourly",
  "@weekly",
  "@monthly",
  "@yearly",
])("%s is due when cron says so", async (schedule) => {
  const [, , days = "", , weekDays = ""] = schedule.split(" ");
  for (const after of moments) {
    // Where one kind of day begins with a star both have to fit, else either: the old rule.
    const legacyMode = !days.startsWith("*") && !weekDays.startsWith("*");
    const spelled = schedule === "@midnight" ? "@daily" : schedule;
    const expected = new Cron(spelled, { timezone: "UTC", legacyMode }).nextRun(after)?.toISOString();
    expect([schedule, after.toISOString(), await nextTime(schedule, after)]).toEqual([
      schedule,
      after.toISOString(),
      expected,
    ]);
  }
});

test("so are pg_cron's own: seconds, and the last day of a month", async () => {
  const [after = new Date()] = moments;
  expect(await nextTime("30 seconds", after)).toBe("2026-11-25T11:24:15.000Z");
  expect(await nextTime("0 2 $ * *", after)).toBe("2026-11-30T02:00:00.000Z");
  expect(await nextTime("0 2 1,$ * *", new Date("2027-02-05T00:00:00Z"))).toBe("2027-02-28T02:00:00.000Z");
});

test("what is no schedule is never due", async () => {
  for (const schedule of ["", "never", "0 2 * *", "61 2 * * *", "0 2 * * XYZ"]) {
    expect(await nextTime(schedule, new Date())).toBeNull();
  }
});
