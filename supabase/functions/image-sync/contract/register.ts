/** The register for spreadsheets, and who may read it. */
import { z } from "zod";
import {
  bucketSchema,
  countSchema,
  DEFAULT_BUCKET,
  isStorable,
  timestampSchema,
  UNSTORABLE,
} from "./basics.ts";

/** The most rows that one answer of the register holds. */
export const MAX_REGISTER_ROWS = 100_000;

/** Where a page of the register begins: opaque to callers, the last key of the page before to us. */
const cursorSchema = z.string().max(8192).transform((text, context) => {
  const key = keyOf(text);
  if (key !== undefined && isStorable(key)) return key;
  context.addIssue({ code: "custom", message: "must be what a Link of the register says" });
  return z.NEVER;
});

/** The query of the register. Without a bucket: a reader's own, or for a secret key the one whose settings say `register`. */
export const registerQuerySchema = z.strictObject({
  bucket: bucketSchema.optional(),
  after: cursorSchema.optional(),
  limit: z.coerce.number().int().min(1).max(MAX_REGISTER_ROWS).default(MAX_REGISTER_ROWS),
  /** Whether what a spreadsheet would run as a formula arrives as text (`escaped`), or everything as it is (`raw`). */
  text: z.enum(["escaped", "raw"]).default("escaped"),
});
export type RegisterQuery = z.infer<typeof registerQuerySchema>;

/** A key of the register as callers see it, so that no part number stands in a header or an address. */
export function cursorOf(key: string): string {
  const bytes = new TextEncoder().encode(key);
  const text = btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
  return text.replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
}

function keyOf(cursor: string): string | undefined {
  try {
    const text = atob(cursor.replaceAll("-", "+").replaceAll("_", "/"));
    return new TextDecoder("utf-8", { fatal: true }).decode(Uint8Array.from(text, (c) => c.charCodeAt(0)));
  } catch {
    return undefined;
  }
}

/** What a reader's key looks like: a mark, and 256 bits in base64url. */
export const readerKeyPattern = /^isr_[A-Za-z0-9_-]{43}$/;

/** What a reader is called; of a reader by ODBC it is the database role. */
export const readerNameSchema = z.string().regex(
  /^[a-z][a-z0-9_-]{0,47}$/,
  "must be 1 to 48 of a-z, 0-9, _ and -, beginning with a letter",
);

/** Somebody who may read the register of a bucket and nothing else. */
export const readerSchema = z.looseObject({
  name: z.string(),
  kind: z.enum(["odbc", "https"]),
  bucket_id: z.string(),
  created_at: timestampSchema,
  /** To the hour; null: not yet, or not known. */
  last_used_at: timestampSchema.nullable(),
});
export type Reader = z.infer<typeof readerSchema>;

/** A reader who was just added, with the key that is shown this once. */
export const newReaderSchema = readerSchema.extend({ key: z.string() });
export type NewReader = z.infer<typeof newReaderSchema>;

/** A page of readers; `next` is the `after` of the next page. */
export const readerListSchema = z.looseObject({
  readers: z.array(readerSchema),
  next: z.string().nullable(),
});
export type ReaderList = z.infer<typeof readerListSchema>;

/** A reader whose right was taken away; `revoked` is false for a database role, which its owner has to drop. */
export const readerRemovalSchema = readerSchema.extend({ revoked: z.boolean() });
export type ReaderRemoval = z.infer<typeof readerRemovalSchema>;

/** The body that adds a reader by HTTPS. */
export const addReaderRequestSchema = z.strictObject({
  name: readerNameSchema,
  bucket: bucketSchema.default(DEFAULT_BUCKET),
});

/** The query that takes a reader's right away. */
export const removeReaderQuerySchema = z.strictObject({ name: readerNameSchema });

/** The query of a page of readers. */
export const readersQuerySchema = z.strictObject({
  after: z.string().max(100).refine(isStorable, UNSTORABLE).default(""),
  limit: z.coerce.number().int().min(1).max(100).default(100),
});

/** What a part of the register holds; `last` is its last key where more may follow. */
export const registerTagSchema = z.object({
  bucket_id: z.string(),
  rows: countSchema,
  tag: z.string(),
  last: z.string().nullable(),
});
export type RegisterTag = z.infer<typeof registerTagSchema>;

/** Lines of the register; `last` is their last key where more may follow. */
export const registerPageSchema = z.object({ csv: z.string(), last: z.string().nullable() });
export type RegisterPage = z.infer<typeof registerPageSchema>;
