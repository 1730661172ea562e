/** The status report, and what it says of one file. */
import { z } from "zod";
import { countSchema, modeSchema, runIdSchema, timestampSchema } from "./basics.ts";
import { runSchema } from "./runs.ts";

const differenceSchema = z.object({ count: countSchema.nullable(), samples: z.array(z.string()) });

/** What a machine would do about a finding. */
export const actionSchema = z.union([
  z.object({ request: z.looseObject({ mode: modeSchema, bucket: z.string() }) }),
  z.object({ sql: z.string() }),
]);
export type Action = z.infer<typeof actionSchema>;

/** Something the report tells the operator to look at. */
export const findingSchema = z.object({
  code: z.string(),
  level: z.enum(["error", "warning", "info"]),
  title: z.string(),
  count: countSchema,
  samples: z.array(z.string()),
  remediation: z.string(),
  /** What would mend it: the body of a `POST`, or SQL for the owner of the schema; null where only a person can do something. */
  action: actionSchema.nullish(),
  /**
   * Since when it is seen: the end of the first run of those in a row that saw it, or the moment that its fact gives. Absent where
   * nobody knows.
   */
  since: timestampSchema.optional(),
});
export type Finding = z.infer<typeof findingSchema>;

/**
 * Why a reader who opens a signed URL sees no image: the file behind the object is lost or empty; the object is gone; what comes is
 * no image; it is one, under a content type that says otherwise; Storage rejects the URL; there is no answer that says anything of
 * the file.
 */
export const unseenSchema = z.enum([
  "file_lost",
  "file_gone",
  "not_an_image",
  "wrong_content_type",
  "url_rejected",
  "unreachable",
]);
export type Unseen = z.infer<typeof unseenSchema>;

/** What fetching a few random signed URLs gave. */
export const probeSchema = z.object({
  checked: countSchema,
  ok: countSchema,
  failures: z.array(z.object({
    name: z.string(),
    /** Absent in probes of before. */
    code: unseenSchema.optional(),
    status: z.number().nullable(),
    content_type: z.string().nullable(),
    error: z.string().nullable(),
  })),
});
export type Probe = z.infer<typeof probeSchema>;

/** What opening every signed URL gave. */
export const verifiedSchema = z.object({
  run: runIdSchema,
  at: timestampSchema,
  checked: countSchema,
  ok: countSchema,
  failures: z.partialRecord(unseenSchema, z.object({ count: countSchema, samples: z.array(z.string()) })),
});
export type Verified = z.infer<typeof verifiedSchema>;

/** The status report. Counts are null until a first run has measured them. */
export const reportSchema = z.looseObject({
  generated_at: timestampSchema,
  /** Of the schema, and of the function that announced itself last; absent in reports of before. */
  versions: z.object({ schema: z.string(), function: z.string().nullable() }).optional(),
  measured_at: timestampSchema.nullable(),
  healthy: z.boolean(),
  bucket: z.object({
    id: z.string(),
    objects: countSchema.nullable(),
    images: countSchema.nullable(),
    bytes: countSchema.nullable(),
    by_extension: z.record(z.string(), countSchema),
  }),
  records: z.object({
    total: countSchema.nullable(),
    signed: countSchema.nullable(),
    unsigned: countSchema.nullable(),
    expired: countSchema.nullable(),
    soonest_expiry: timestampSchema.nullable(),
  }),
  difference: z.object({
    missing: differenceSchema,
    orphaned: differenceSchema,
    collided: differenceSchema,
    /** Files that have another name than their records, until the next sync; absent in reports of before. */
    moved: differenceSchema.optional(),
  }),
  coverage: z.object({ recorded: z.number().nullable(), signed: z.number().nullable() }),
  probe: probeSchema,
  /** The newest look at every URL; null or absent before the first. */
  verified: verifiedSchema.nullish(),
  open_run: runSchema.nullable(),
  next_run_at: timestampSchema.nullable(),
  last_runs: z.object({
    sync: runSchema.nullable(),
    analyze: runSchema.nullable(),
    verify: runSchema.nullish(),
    cleanup: runSchema.nullable(),
    restore: runSchema.nullable(),
  }),
  findings: z.array(findingSchema),
});
export type Report = z.infer<typeof reportSchema>;

/** Why one file is, or is not, in sync. */
export const fileSchema = z.looseObject({
  bucket_id: z.string(),
  file_name: z.string(),
  in_sync: z.boolean(),
  reasons: z.array(z.object({ code: z.string(), detail: z.string() })),
  object: z.looseObject({ extension: z.string(), bytes: countSchema.nullable() }).nullish(),
  record: z.looseObject({
    part_number: z.string().nullable(),
    signed: z.boolean(),
    usable_until: timestampSchema.nullable(),
  }).nullish(),
  /** Other files of its part number. */
  twins: z.array(z.string()).optional(),
  /** What the newest verify saw of it; `code` is null where its URL showed an image. */
  verified: z.looseObject({
    run: runIdSchema,
    at: timestampSchema,
    code: z.string().nullable(),
    detail: z.string().nullish(),
  }).nullish(),
});
export type FileStatus = z.infer<typeof fileSchema>;
