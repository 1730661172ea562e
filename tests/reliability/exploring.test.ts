/** The harness of the random schedules: what fails is shrunk, kept and replayed. */
import { mkdtemp, readdir, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { beforeEach, describe, expect, onTestFinished, test } from "vitest";
import { type BareStack, openBareStack } from "./support/bare_stack.ts";
import { explore, readKept } from "./support/exploring.ts";
import { withMutation } from "./support/mutation.ts";
import { play } from "./support/play.ts";
import { eventSchema, type Schedule, scheduleArbitrary, scheduleSchema } from "./support/schedules.ts";

let directory: string;
beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), "image-sync-"));
  onTestFinished(() => rm(directory, { recursive: true }));
});

const base = { arbitrary: scheduleArbitrary, runs: 300, seed: 1 };

/** A made-up fault: a move and, at any time after it, a worker's death. */
const fails = ({ events }: Schedule): boolean => {
  const moved = events.findIndex(({ kind }) => kind === "move");
  return moved >= 0 && events.slice(moved).some(({ kind }) => kind === "die");
};
const playFault = (schedule: Schedule) =>
  fails(schedule) ? Promise.reject(new Error("lost")) : Promise.resolve();

test("a failing schedule is shrunk to what it takes, kept as JSON, and replayed", async () => {
  await expect(explore({ ...base, play: playFault, directory })).rejects.toThrow(
    /lost[\s\S]*Kept in .*failed-[0-9a-f]{12}\.json/,
  );
  const kept = await readKept(directory, scheduleSchema);
  expect(kept).toHaveLength(1);
  const [name, schedule] = kept[0] ?? ["", undefined];
  expect(name).toMatch(/^failed-/);
  // Three events are the least that is drawn, of up to thirty.
  expect(schedule).toMatchObject({ objects: [], records: [], chunkSize: 1, maxAttempts: 1 });
  expect(schedule?.events.length).toBeLessThan(6);
  expect(schedule?.events.map(({ kind }) => kind)).toEqual(expect.arrayContaining(["move", "die"]));
  await expect(playFault(schedule as Schedule)).rejects.toThrow("lost");
});

test("the same failure found again is kept once, and one that is mended keeps nothing", async () => {
  for (const _ of [1, 2]) {
    await expect(explore({ ...base, play: playFault, directory })).rejects.toThrow("lost");
  }
  expect(await readdir(directory)).toHaveLength(1);
  await explore({ ...base, play: () => Promise.resolve(), directory });
  expect(await readdir(directory)).toHaveLength(1);
});

test("a kept file of another shape is refused by name, instead of being passed over", async () => {
  await writeFile(
    join(directory, "failed-1.json"),
    JSON.stringify({ objects: [], events: [{ kind: "explode" }] }),
  );
  await expect(readKept(directory, scheduleSchema)).rejects.toThrow("Cannot replay failed-1.json");
});

test("every kind of event is drawn, and what is drawn can be kept", () => {
  const drawn = fc.sample(scheduleArbitrary, { numRuns: 300, seed: 1 });
  for (const schedule of drawn) {
    expect(scheduleSchema.parse(JSON.parse(JSON.stringify(schedule)))).toEqual(schedule);
  }
  const kinds = new Set(drawn.flatMap(({ events }) => events.map(({ kind }) => kind)));
  const all = eventSchema.options.flatMap(({ shape: { kind } }) => [...kind._zod.values]);
  expect([...kinds].sort()).toEqual(all.sort());
});

describe("played on a database", () => {
  let db: BareStack;
  test("a schedule passes, and fails where a record is lost", async () => {
    db = await openBareStack();
    onTestFinished(() => db.close());
    const schedule: Schedule = {
      objects: [0, 1],
      records: [],
      chunkSize: 1,
      maxAttempts: 2,
      events: [
        { kind: "step", worker: 0 },
        { kind: "expire" },
        { kind: "step", worker: 1 },
        { kind: "step", worker: 1 },
        { kind: "move", file: 0, to: 2 },
        { kind: "step", worker: 0 },
      ],
    };
    await play(schedule, db);
    const noticed = await withMutation(db.admin, {
      apply: `
        create function public.lose() returns trigger language plpgsql as
        $$ begin delete from public.part_images where file_name = '002.jpg'; return null; end $$;
        create trigger lose after update on image_sync.runs for each statement execute function public.lose();`,
      undo: "drop trigger lose on image_sync.runs; drop function public.lose();",
    }, () => play(schedule, db));
    expect(noticed).toBeTypeOf("string");
  }, 60_000);
});
