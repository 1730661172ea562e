/**
 * Every shape that crosses a boundary, defined once: what callers send, what the database and Storage answer, what the
 * function answers. Documents that only pass through (a run, a report) keep the names of the wire; what the worker works
 * with is turned into camelCase here and nowhere else.
 */
import { z } from "zod";

/** The bucket that a request means when it names none. */
export const DEFAULT_BUCKET = "part-images";
/** The largest request body, in bytes. */
export const MAX_BODY_BYTES = 65_536;
/** The longest that `Prefer: wait=N` waits, in seconds: the platform answers 504 after 150. */
export const MAX_WAIT_SECONDS = 120;

const UNSTORABLE = "must not contain the character U+0000 or half a surrogate pair";

/** How a run passes over its bucket. */
export const modeSchema = z.enum(["sync", "analyze", "verify", "cleanup", "restore"]);
export type Mode = z.infer<typeof modeSchema>;

/** How a run stands. */
export const stateSchema = z.enum(["open", "succeeded", "partial", "failed", "cancelled"]);

const bucketSchema = z.string().min(1).max(100).refine(
  isStorable,
  UNSTORABLE,
);
const runIdSchema = z.uuid();

/**
 * The body of a `POST`. Everything is optional: an empty body starts a sync of the default bucket. With `run` alone it wakes
 * that run and starts nothing.
 */
export const startRequestSchema = z.strictObject({
  mode: modeSchema.default("sync"),
  bucket: bucketSchema.default(DEFAULT_BUCKET),
  /** Sign every record again, as after a rotation of the URL-signing key. */
  renew: z.literal("all").optional(),
  /** The dry run whose list a cleanup applies. */
  confirm: runIdSchema.optional(),
  /** The cleanup run that a restore undoes. */
  restore: runIdSchema.optional(),
  /** Raises the guard of that name for this cleanup. */
  max_delete_count: z.int().min(0).max(2_147_483_647).optional(),
  max_delete_fraction: z.number().min(0).max(1).optional(),
  /** Lets a cleanup of an empty bucket begin, where every record looks orphaned. */
  allow_empty_bucket: z.boolean().optional(),
  /** Lists the records of a bucket that does not exist any more. */
  bucket_is_gone: z.boolean().optional(),
}).superRefine((body, context) => {
  const demands: readonly (readonly [keyof typeof body, Mode])[] = [
    ["renew", "sync"],
    ["confirm", "cleanup"],
    ["max_delete_count", "cleanup"],
    ["max_delete_fraction", "cleanup"],
    ["allow_empty_bucket", "cleanup"],
    ["bucket_is_gone", "cleanup"],
    ["restore", "restore"],
  ];
  for (const [option, mode] of demands) {
    if (body[option] !== undefined && body.mode !== mode) {
      context.addIssue({
        code: "custom",
        path: [option],
        message: `goes with mode ${mode}, not ${body.mode}`,
      });
    }
  }
  if (body.mode === "restore" && body.restore === undefined) {
    context.addIssue({ code: "custom", path: ["restore"], message: "must name the cleanup run to undo" });
  }
});
export type StartRequest = z.infer<typeof startRequestSchema>;

/** The body of a `POST` that only wakes a run. */
export const wakeRequestSchema = z.strictObject({ run: runIdSchema });

/** The same without a key: what the schedule sends, with a token that is good for that run alone. */
export const tokenRequestSchema = z.strictObject({
  run: runIdSchema,
  token: z.string().regex(/^[0-9a-f]{64}$/, "must be 64 hexadecimal digits"),
});
export type TokenRequest = z.infer<typeof tokenRequestSchema>;

/** The largest body that may hold a token, in bytes. */
export const MAX_TOKEN_BODY_BYTES = 512;

/** The query of a `GET`: one of the three questions. */
export const readQuerySchema = z.strictObject({
  bucket: bucketSchema.default(DEFAULT_BUCKET),
  run: runIdSchema.optional(),
  file: z.string().min(1).max(4096).refine(
    isStorable,
    UNSTORABLE,
  ).optional(),
}).refine(
  (query) => query.run === undefined || query.file === undefined,
  "ask for run or for file, not for both",
);

/** The query of a page of a plan. */
export const planQuerySchema = z.strictObject({
  run: runIdSchema,
  after: z.string().max(4096).refine(
    isStorable,
    UNSTORABLE,
  ).default(""),
  limit: z.coerce.number().int().min(1).max(1000).default(1000),
});

/** The query of a page of buckets. */
export const bucketsQuerySchema = z.strictObject({
  after: z.string().max(100).refine(isStorable, UNSTORABLE).default(""),
  limit: z.coerce.number().int().min(1).max(100).default(50),
});

/** The body that gives a bucket settings, and the query that takes them away. */
export const bucketRequestSchema = z.strictObject({ bucket: bucketSchema });

/** The query of a page of the history of runs; without a bucket it is that of all of them. */
export const runsQuerySchema = z.strictObject({
  bucket: bucketSchema.optional(),
  mode: modeSchema.optional(),
  state: stateSchema.optional(),
  after: runIdSchema.optional(),
  limit: z.coerce.number().int().min(1).max(100).default(20),
});
export type RunsQuery = z.infer<typeof runsQuerySchema>;

/** The query of a `DELETE`. */
export const cancelQuerySchema = z.strictObject({ run: runIdSchema });

const timestampSchema = z.string();
const countSchema = z.number();

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
});
export type FileStatus = z.infer<typeof fileSchema>;

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

/** A refusal, RFC 9457 with a stable `code`; the numbers behind it stand beside as members of their own. */
export const problemSchema = z.looseObject({
  status: z.int().min(400).max(599),
  code: z.string(),
  title: z.string(),
  detail: z.string(),
});
export type Problem = z.infer<typeof problemSchema>;

/** An RPC that answers with something, or with a refusal. */
const problemAnswerSchema = z.object({ problem: problemSchema });
export const startAnswerSchema = z.union([
  problemAnswerSchema,
  z.object({ run: runSchema, created: z.boolean() }),
]);
export const runAnswerSchema = z.union([problemAnswerSchema, z.object({ run: runSchema })]);
export const reportAnswerSchema = z.union([problemAnswerSchema, z.object({ report: reportSchema })]);
export const fileAnswerSchema = z.union([problemAnswerSchema, z.object({ file: fileSchema })]);
export const planAnswerSchema = z.union([problemAnswerSchema, z.object({ plan: planSchema })]);
export const bucketChangeAnswerSchema = z.union([
  problemAnswerSchema,
  z.object({ bucket: bucketChangeSchema }),
]);
export const runListAnswerSchema = z.union([problemAnswerSchema, runListSchema]);
export const endAttemptAnswerSchema = z.object({ ended: z.boolean() });
export const announceAnswerSchema = z.object({ changed: z.boolean(), schema_version: z.string() });
export const handOffAnswerSchema = z.object({ kicked: z.boolean() });

/** A leased chunk. */
const chunkSchema = z.object({
  number: z.int(),
  names: z.array(z.string()),
  expires_in: z.int().positive(),
  lease_ms: z.number(),
  public_url: z.string().nullable(),
  chunks_left: z.number(),
}).transform((chunk) => ({
  number: chunk.number,
  names: chunk.names,
  /** Lifetime of a new URL, in seconds. */
  expiresIn: chunk.expires_in,
  /** What is left of the lease, in ms. */
  leaseMs: chunk.lease_ms,
  /** Scheme and host for readers, where those differ from the project's URL. */
  publicUrl: chunk.public_url,
  /** About how many chunks come after this one; 0 where it is the last. */
  chunksLeft: chunk.chunks_left,
}));
export type Chunk = z.infer<typeof chunkSchema>;

/** A record whose URL is to be opened; the URL is a secret. */
const targetSchema = z.object({ name: z.string(), url: z.string() });
export type Target = z.infer<typeof targetSchema>;

/** A leased chunk of a verify. */
const openChunkSchema = z.object({
  number: z.int(),
  targets: z.array(targetSchema),
  lease_ms: z.number(),
  rate: z.int().positive(),
  public_url: z.string().nullable(),
}).transform((chunk) => ({
  number: chunk.number,
  targets: chunk.targets,
  /** What is left of the lease, in ms. */
  leaseMs: chunk.lease_ms,
  /** At most so many URLs are opened a second. */
  rate: chunk.rate,
  publicUrl: chunk.public_url,
}));
export type OpenChunk = z.infer<typeof openChunkSchema>;

/** `held`: the URLs were stored, but somebody else holds the chunk's row, so it stays open for whoever gets it. */
const closedSchema = z.enum(["closed", "already_closed", "stale", "held"]).nullable();

/** What `image_sync_advance` says to do next. */
export const advanceAnswerSchema = z.discriminatedUnion("next", [
  // The lease of this call holds a chunk that has still to be listed: the next call with the same lease lists it.
  z.object({ closed: closedSchema, next: z.literal("list") }),
  z.object({ closed: closedSchema, next: z.literal("sign"), chunk: chunkSchema }),
  z.object({ closed: closedSchema, next: z.literal("open"), chunk: openChunkSchema }),
  z.object({ closed: closedSchema, next: z.literal("again") }),
  z.object({ closed: closedSchema, next: z.literal("busy") }),
  z.object({ closed: closedSchema, next: z.literal("wait"), wait_ms: z.number() })
    .transform(({ closed, next, wait_ms }) => ({ closed, next, waitMs: wait_ms })),
  z.object({
    closed: closedSchema,
    next: z.literal("probe"),
    targets: z.array(targetSchema),
    public_url: z.string().nullish(),
  }).transform(({ closed, next, targets, public_url }) => ({
    closed,
    next,
    targets,
    publicUrl: public_url ?? null,
  })),
  z.object({ closed: closedSchema, next: z.literal("stop") }),
]);
export type Advance = z.infer<typeof advanceAnswerSchema>;

/** One item of Storage's answer to a signing call; `signedURL` is relative and ends in `?token=JWT`. */
export const signedItemSchema = z.object({
  path: z.string().nullish(),
  error: z.string().nullish(),
  signedURL: z.string().nullish(),
});

/** Later than any lifetime that the settings allow, in seconds since 1970: the end of the year 9999, which is the last that every
 * reader of a timestamp understands. */
const LAST_EXPIRY = 253_402_300_799;

/** The payload of a signed URL's token, as far as it matters here. */
export const tokenPayloadSchema = z.object({ exp: z.int().positive().max(LAST_EXPIRY) });

/** Whether it is text to Postgres. */
function isStorable(text: string): boolean {
  return text.isWellFormed() && !text.includes("\0");
}
