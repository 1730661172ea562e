/** Pages of lists. */
import { z } from "zod";
import { countSchema, runIdSchema, stateSchema, timestampSchema } from "./basics.ts";
import { runSchema } from "./runs.ts";

/** A page of the names that a dry run of a cleanup listed; `next` is the `after` of the next page. */
export const planSchema = z.looseObject({
  run: runIdSchema,
  count: countSchema,
  names: z.array(z.string()),
  next: z.string().nullable(),
});
export type Plan = z.infer<typeof planSchema>;

/** A bucket that is kept in step, with its verdict. */
export const bucketSummarySchema = z.looseObject({
  bucket_id: z.string(),
  exists: z.boolean().nullable(),
  nightly: z.boolean(),
  healthy: z.boolean(),
  errors: countSchema,
  warnings: countSchema,
  images: countSchema.nullable(),
  coverage: z.number().nullable(),
  last_sync_at: timestampSchema.nullable(),
  last_sync_state: stateSchema.nullable(),
  open_run: runIdSchema.nullable(),
});

/** A page of buckets; `next` is the `after` of the next page. */
export const bucketListSchema = z.looseObject({
  buckets: z.array(bucketSummarySchema),
  next: z.string().nullable(),
});
export type BucketList = z.infer<typeof bucketListSchema>;

/** A bucket whose settings were given or taken away; `changed` is false where it had some already. */
export const bucketChangeSchema = z.looseObject({ bucket_id: z.string(), changed: z.boolean() });
export type BucketChange = z.infer<typeof bucketChangeSchema>;

/** A page of the history of runs, newest first; `next` is the `after` of the next page. */
export const runListSchema = z.looseObject({ runs: z.array(runSchema), next: runIdSchema.nullable() });
export type RunList = z.infer<typeof runListSchema>;
