/** What the operator's page looks at beyond the report: records by name, the history by day, settings, what was archived. */
import { z } from "zod";
import {
  bucketSchema,
  countSchema,
  DEFAULT_BUCKET,
  isStorable,
  runIdSchema,
  timestampSchema,
  UNSTORABLE,
} from "./basics.ts";

const keySchema = z.string().max(4096).refine(isStorable, UNSTORABLE).default("");

/** How a file or record stands. */
export const recordStateSchema = z.enum([
  "working",
  "expiring",
  "expired",
  "unsigned",
  "missing",
  "orphaned",
  "moved",
  "empty",
  "excluded",
  "other",
]);
export type RecordState = z.infer<typeof recordStateSchema>;

/** What a list of records can be narrowed to: a state, part numbers that several files have, what the newest verify saw no image of. */
export const recordFilterSchema = z.enum([
  "all",
  "missing",
  "unsigned",
  "expired",
  "expiring",
  "orphaned",
  "excluded",
  "other",
  "empty",
  "working",
  "several",
  "broken",
]);
export type RecordFilter = z.infer<typeof recordFilterSchema>;

/** The query of a page of records. */
export const recordsQuerySchema = z.strictObject({
  bucket: bucketSchema.default(DEFAULT_BUCKET),
  state: recordFilterSchema.default("all"),
  search: keySchema,
  after: keySchema,
  limit: z.coerce.number().int().min(1).max(100).default(50),
  /** With the URLs that work, which show the pictures to whoever has them. */
  urls: z.enum(["true", "false"]).default("false").transform((text) => text === "true"),
});
export type RecordsQuery = z.infer<typeof recordsQuerySchema>;

/** A file, a record, or both. */
export const recordItemSchema = z.looseObject({
  file_name: z.string(),
  part_number: z.string().optional(),
  state: recordStateSchema,
  bytes: countSchema.optional(),
  usable_until: timestampSchema.optional(),
  /** Only where it was asked for. */
  url: z.string().optional(),
  /** Why the newest verify saw no image of it. */
  code: z.string().optional(),
  detail: z.string().optional(),
});
export type RecordItem = z.infer<typeof recordItemSchema>;

/** A page of records; `next` is the `after` of the next page, also where this one is short or empty. */
export const recordListSchema = z.looseObject({
  records: z.array(recordItemSchema),
  next: z.string().nullable(),
  /** When the run was finished that said where to look; null where all was looked at now. */
  as_of: timestampSchema.nullable(),
  /** What every URL of the bucket begins with; null where no URLs were asked for. */
  url_base: z.string().nullable(),
});
export type RecordList = z.infer<typeof recordListSchema>;

/** A query that names a bucket alone. */
export const bucketQuerySchema = z.strictObject({ bucket: bucketSchema.default(DEFAULT_BUCKET) });

const daySchema = z.iso.date();

/** How many URLs die on which day (GMT). */
export const expirySchema = z.looseObject({
  measured_at: timestampSchema.nullable(),
  renew_before_seconds: z.number(),
  next_run_at: timestampSchema.nullable(),
  unsigned: countSchema.nullable(),
  expired: countSchema.nullable(),
  days: z.array(z.object({ day: daySchema, urls: countSchema })),
});
export type Expiry = z.infer<typeof expirySchema>;

/** The query of the history by day. */
export const historyQuerySchema = z.strictObject({
  bucket: bucketSchema.default(DEFAULT_BUCKET),
  days: z.coerce.number().int().min(1).max(366).default(90),
});

const outcomeSchema = z.enum(["succeeded", "partial", "failed", "cancelled"]);

/** A day (GMT) on which something ran. */
export const historyDaySchema = z.looseObject({
  day: daySchema,
  runs: z.partialRecord(outcomeSchema, countSchema),
  /** How its last scheduled sync ended; absent where none ran. */
  night: outcomeSchema.optional(),
  /** How its last sync ended, the scheduled one before others. */
  sync: outcomeSchema.optional(),
  seconds: z.number().optional(),
  inserted: countSchema.optional(),
  signed: countSchema.optional(),
  failed: countSchema.optional(),
  objects: countSchema.optional(),
  images: countSchema.optional(),
  bytes: countSchema.optional(),
  records: countSchema.optional(),
});
export type HistoryDay = z.infer<typeof historyDaySchema>;

/** The days of a bucket on which something ran, oldest first. */
export const historySchema = z.looseObject({
  from: daySchema,
  to: daySchema,
  days: z.array(historyDaySchema),
});
export type History = z.infer<typeof historySchema>;

/** A setting with what it means and what is allowed. */
export const settingSchema = z.looseObject({
  name: z.string(),
  /** As Postgres calls it. */
  type: z.string(),
  value: z.union([z.string(), z.number(), z.boolean(), z.array(z.string()), z.null()]),
  default: z.string().nullable(),
  meaning: z.string().nullable(),
  bounds: z.string().nullable(),
});
export type Setting = z.infer<typeof settingSchema>;

/** The settings of a bucket. */
export const settingsSchema = z.looseObject({ bucket_id: z.string(), fields: z.array(settingSchema) });
export type Settings = z.infer<typeof settingsSchema>;

/** The body that changes settings: all of `changes`, or nothing. */
export const changeSettingsSchema = z.strictObject({
  bucket: bucketSchema.default(DEFAULT_BUCKET),
  changes: z.record(z.string().max(100), settingSchema.shape.value),
});
export type ChangeSettings = z.infer<typeof changeSettingsSchema>;

/** The query of the cleanups that archived something. */
export const archivesQuerySchema = z.strictObject({
  bucket: bucketSchema.default(DEFAULT_BUCKET),
  limit: z.coerce.number().int().min(1).max(100).default(50),
});

/** Cleanups that archived something, newest first. */
export const archiveListSchema = z.looseObject({
  archives: z.array(z.looseObject({
    run: runIdSchema,
    archived_at: timestampSchema,
    removed: countSchema,
    restored: countSchema,
  })),
});
export type ArchiveList = z.infer<typeof archiveListSchema>;

/** The query of a page of what a cleanup archived. */
export const archivedQuerySchema = z.strictObject({
  run: runIdSchema,
  after: keySchema,
  limit: z.coerce.number().int().min(1).max(1000).default(100),
});

/** A page of what a cleanup archived, by name. */
export const archivedSchema = z.looseObject({
  run: runIdSchema,
  records: z.array(z.looseObject({
    file_name: z.string(),
    part_number: z.string().nullable(),
    restored_at: timestampSchema.nullable(),
  })),
  next: z.string().nullable(),
});
export type Archived = z.infer<typeof archivedSchema>;
