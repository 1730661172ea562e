/** What the shapes are made of: names, ids, counts, modes and states. */
import { z } from "zod";

/** The bucket that a request means when it names none. */
export const DEFAULT_BUCKET = "part-images";
/** What is said of a text that is none to Postgres. */
export const UNSTORABLE = "must not contain the character U+0000 or half a surrogate pair";

/** How a run passes over its bucket. */
export const modeSchema = z.enum(["sync", "analyze", "verify", "cleanup", "restore"]);
export type Mode = z.infer<typeof modeSchema>;

/** How a run stands. */
export const stateSchema = z.enum(["open", "succeeded", "partial", "failed", "cancelled"]);

/** The name of a bucket. */
export const bucketSchema = z.string().min(1).max(100).refine(
  isStorable,
  UNSTORABLE,
);
/** The id of a run. */
export const runIdSchema = z.uuid();

/** A moment as Postgres writes it. */
export const timestampSchema = z.string();
export const countSchema = z.number();

/** Whether it is text to Postgres. */
export function isStorable(text: string): boolean {
  return text.isWellFormed() && !text.includes("\0");
}
