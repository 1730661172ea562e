/** A run as everybody sees it. */
import { z } from "zod";
import { countSchema, modeSchema, runIdSchema, stateSchema, timestampSchema } from "./basics.ts";

/** A named item that failed or was skipped. */
export const itemProblemSchema = z.looseObject({
  name: z.string().optional(),
  code: z.string(),
  detail: z.string().nullish(),
});

/** What went wrong for a run or a chunk as a whole. */
export const faultSchema = z.looseObject({ code: z.string(), title: z.string(), detail: z.string() });
export type Fault = z.infer<typeof faultSchema>;

/** One run. */
export const runSchema = z.looseObject({
  id: runIdSchema,
  bucket_id: z.string(),
  mode: modeSchema,
  trigger: z.enum(["schedule", "request"]),
  options: z.record(z.string(), z.unknown()),
  plan_id: runIdSchema.nullable(),
  state: stateSchema,
  stop_reason: z.string().nullable(),
  started_at: timestampSchema,
  /** When a chunk of it was last made or closed; absent in documents of before. */
  moved_at: timestampSchema.optional(),
  /** Whether it is open, has something to do, and no worker is at it; absent in documents of before. */
  idle: z.boolean().optional(),
  finished_at: timestampSchema.nullable(),
  duration_seconds: z.number(),
  progress: z.object({
    done: countSchema,
    total_estimate: countSchema.nullable(),
    percent: z.number(),
    rate_per_second: z.number(),
    eta_seconds: z.number().nullable(),
  }),
  totals: z.record(z.string(), countSchema),
  chunks: countSchema,
  invocations: countSchema,
  balanced: z.boolean(),
  error: faultSchema.nullable(),
  problems: z.array(itemProblemSchema),
  /** What a finished dry run of a cleanup would remove. */
  plan: z.object({ count: countSchema, samples: z.array(z.string()) }).optional(),
});
export type Run = z.infer<typeof runSchema>;
