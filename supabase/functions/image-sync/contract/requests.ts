/** What callers send: bodies and queries. */
import { z } from "zod";
import {
  bucketSchema,
  DEFAULT_BUCKET,
  isStorable,
  type Mode,
  modeSchema,
  runIdSchema,
  stateSchema,
  UNSTORABLE,
} from "./basics.ts";

/** The largest request body, in bytes. */
export const MAX_BODY_BYTES = 65_536;
/** The longest that `Prefer: wait=N` waits, in seconds: the platform answers 504 after 150. */
export const MAX_WAIT_SECONDS = 120;

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
