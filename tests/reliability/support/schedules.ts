/** Random schedules: a bucket, a few workers, and what befalls them. Only generators; what an event does is in `play.ts`. */
import fc from "fast-check";
import { z } from "zod";

/** How many workers a schedule has. */
export const WORKERS = 3;
const FILES = 11;

/** The name of a file by its number; every fifth is no image. */
export const file = (index: number): string =>
  `${String(index).padStart(3, "0")}.${index % 5 === 4 ? "txt" : "jpg"}`;

/** The same where files in three folders share part numbers: 0, 1 and 2 have the first one, 3, 4 and 5 the next. */
export const fileInFolder = (prefix: string, index: number): string =>
  `${"abc"[index % 3]}/${prefix}-${Math.floor(index / 3)}.${index % 5 === 4 ? "txt" : "jpg"}`;

const workerKinds = [
  "step",
  "lose_answer",
  "fail_chunk",
  "fail_for_good",
  "fail_items",
  "die",
  "hand_off",
  "time_out",
  "meet_lock",
] as const;
const disturbances = [
  "lose_answer",
  "fail_chunk",
  "fail_for_good",
  "fail_items",
  "die",
  "hand_off",
  "time_out",
  "time_out",
  "meet_lock",
] as const;
const count = z.int().min(0);

/** What happens next. */
export const eventSchema = z.discriminatedUnion("kind", [
  z.strictObject({ kind: z.enum(workerKinds), worker: count.max(WORKERS - 1) }),
  // A call that was sent before arrives once more.
  z.strictObject({ kind: z.literal("duplicate"), back: count }),
  z.strictObject({ kind: z.enum(["expire", "cancel", "finish", "watchdog"]) }),
  z.strictObject({ kind: z.enum(["upload", "delete"]), file: count }),
  z.strictObject({ kind: z.enum(["move", "swap"]), file: count, to: count }),
]);
export type Event = z.infer<typeof eventSchema>;

/** A whole schedule, as it is kept when it fails. */
export const scheduleSchema = z.strictObject({
  objects: z.array(count),
  records: z.array(count),
  chunkSize: z.int().min(1),
  maxAttempts: z.int().min(1),
  events: z.array(eventSchema),
});
export type Schedule = z.infer<typeof scheduleSchema>;

// The weights: mostly steps, so that runs get somewhere; each kind of trouble often enough to meet each other one.
const eventArbitrary: fc.Arbitrary<Event> = fc.oneof(
  { weight: 10, arbitrary: fc.record({ kind: fc.constant("step" as const), worker: fc.nat(WORKERS - 1) }) },
  {
    weight: 6,
    arbitrary: fc.record({ kind: fc.constantFrom(...disturbances), worker: fc.nat(WORKERS - 1) }),
  },
  { weight: 4, arbitrary: fc.record({ kind: fc.constant("duplicate" as const), back: fc.nat(6) }) },
  {
    weight: 3,
    arbitrary: fc.record({
      kind: fc.constantFrom("expire" as const, "finish" as const, "watchdog" as const),
    }),
  },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant("cancel" as const) }) },
  {
    weight: 3,
    arbitrary: fc.record({
      kind: fc.constantFrom("upload" as const, "delete" as const),
      file: fc.nat(FILES),
    }),
  },
  {
    weight: 3,
    arbitrary: fc.record({
      kind: fc.constantFrom("move" as const, "swap" as const),
      file: fc.nat(FILES),
      to: fc.nat(FILES + 2),
    }),
  },
);

/** Draws schedules. */
export const scheduleArbitrary: fc.Arbitrary<Schedule> = fc.record({
  objects: fc.uniqueArray(fc.nat(FILES), { maxLength: 12 }),
  records: fc.uniqueArray(fc.nat(FILES), { maxLength: 4 }),
  chunkSize: fc.integer({ min: 1, max: 4 }),
  maxAttempts: fc.integer({ min: 1, max: 4 }),
  events: fc.array(eventArbitrary, { minLength: 3, maxLength: 30 }),
});
