/** What the database's functions answer with: a document, or a refusal. */
import { z } from "zod";
import { bucketChangeSchema, planSchema, runListSchema } from "./lists.ts";
import { fileSchema } from "./report.ts";
import { readerSchema, registerTagSchema } from "./register.ts";
import { runSchema } from "./runs.ts";
import { archivedSchema, expirySchema, historySchema, recordListSchema, settingsSchema } from "./window.ts";

/** A refusal, RFC 9457 with a stable `code`; the numbers behind it stand beside as members of their own. */
export const problemSchema = z.looseObject({
  status: z.int().min(400).max(599),
  code: z.string(),
  title: z.string(),
  detail: z.string(),
});
export type Problem = z.infer<typeof problemSchema>;

/** An RPC that answers with something, or with a refusal. */
export const problemAnswerSchema = z.object({ problem: problemSchema });
export const startAnswerSchema = z.union([
  problemAnswerSchema,
  z.object({ run: runSchema, created: z.boolean() }),
]);
export const runAnswerSchema = z.union([problemAnswerSchema, z.object({ run: runSchema })]);
export const fileAnswerSchema = z.union([problemAnswerSchema, z.object({ file: fileSchema })]);
export const planAnswerSchema = z.union([problemAnswerSchema, z.object({ plan: planSchema })]);
export const bucketChangeAnswerSchema = z.union([
  problemAnswerSchema,
  z.object({ bucket: bucketChangeSchema }),
]);
export const runListAnswerSchema = z.union([problemAnswerSchema, runListSchema]);
export const recordListAnswerSchema = z.union([problemAnswerSchema, recordListSchema]);
export const expiryAnswerSchema = z.union([problemAnswerSchema, z.object({ expiry: expirySchema })]);
export const historyAnswerSchema = z.union([problemAnswerSchema, z.object({ history: historySchema })]);
export const settingsAnswerSchema = z.union([problemAnswerSchema, z.object({ settings: settingsSchema })]);
export const archivedAnswerSchema = z.object({ archived: archivedSchema });
export const readerAnswerSchema = z.union([problemAnswerSchema, z.object({ reader: readerSchema })]);
export const readerRemovalAnswerSchema = z.union([
  problemAnswerSchema,
  z.object({ reader: readerSchema, revoked: z.boolean() }),
]);
export const registerTagAnswerSchema = z.union([problemAnswerSchema, registerTagSchema]);
export const endAttemptAnswerSchema = z.object({ ended: z.boolean(), more: z.boolean() });
export const announceAnswerSchema = z.object({ changed: z.boolean(), schema_version: z.string() });
export const handOffAnswerSchema = z.object({ kicked: z.boolean() });
