/** What a worker works with: leased chunks, and what Storage answers to a signing call. */
import { z } from "zod";

/** A leased chunk. */
const chunkSchema = z.object({
  number: z.int(),
  names: z.array(z.string()),
  expires_in: z.int().positive(),
  lease_ms: z.number(),
  public_url: z.string().nullable(),
  more_lanes: z.number(),
}).transform((chunk) => ({
  number: chunk.number,
  names: chunk.names,
  /** Lifetime of a new URL, in seconds. */
  expiresIn: chunk.expires_in,
  /** What is left of the lease, in ms. */
  leaseMs: chunk.lease_ms,
  /** Scheme and host for readers, where those differ from the project's URL. */
  publicUrl: chunk.public_url,
  /** How many lanes more may be started; 0 where this chunk is the last, or other runs and workers have enough of them. */
  moreLanes: chunk.more_lanes,
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

/** `more`: not all of it is written yet. */
const closedSchema = z.enum(["closed", "more", "already_closed", "stale"]).nullable();

/** What `image_sync_advance` says to do next. */
export const advanceAnswerSchema = z.discriminatedUnion("next", [
  // The same call is to be made again: the database writes as much as it can in time.
  z.object({ closed: closedSchema, next: z.literal("more") }),
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

/** Later than any lifetime that the settings allow, in seconds since 1970: the end of the year 9999, which is the last that every
 * reader of a timestamp understands. */
export const LAST_EXPIRY = 253_402_300_799;

/** The payload of a signed URL's token, as far as it matters here. */
export const tokenPayloadSchema = z.object({ exp: z.int().positive().max(LAST_EXPIRY) });
