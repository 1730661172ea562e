import { z } from "zod";
import { storageFailures } from "./errors.ts";

/** The service's limit on a JSON body, in bytes. */
const maxBodyBytes = 1_048_576;

const transform = z.object({
  height: z.int().min(0).optional(),
  width: z.int().min(0).optional(),
  resize: z.enum(["cover", "contain", "fill"]).optional(),
  format: z.enum(["origin", "avif", "webp"]).optional(),
  quality: z.int().min(20).max(100).optional(),
});
const paths = z.array(z.string()).min(1).max(1000);

/** The bodies of the service's JSON requests. */
export const requestSchemas = {
  signMany: z.object({ expiresIn: z.int().min(1), paths }),
  signOne: z.object({ expiresIn: z.int().min(1), transform: transform.optional() }),
  remove: z.object({ prefixes: paths }),
  list: z.object({
    prefix: z.string(),
    limit: z.int().min(1).default(100),
    offset: z.int().min(0).default(0),
    search: z.string().default(""),
    sortBy: z.object({
      column: z.enum(["name", "updated_at", "created_at", "last_accessed_at"]).default("name"),
      order: z.enum(["asc", "desc"]).default("asc"),
    }).default({ column: "name", order: "asc" }),
  }),
  listV2: z.object({
    prefix: z.string().default(""),
    limit: z.int().min(1).default(1000),
    cursor: z.string().optional(),
    with_delimiter: z.boolean().default(false),
  }),
  relocate: z.object({
    bucketId: z.string(),
    sourceKey: z.string(),
    destinationBucket: z.string().optional(),
    destinationKey: z.string(),
  }),
  bucket: z.object({
    id: z.string().optional(),
    name: z.string().optional(),
    public: z.boolean().default(false),
    file_size_limit: z.number().nullable().optional(),
    allowed_mime_types: z.array(z.string()).nullable().optional(),
  }),
};

/**
 * Reads and checks a JSON body.
 *
 * @throws {StorageFailure} as the service answers a body that is too large, is not JSON, or breaks the schema.
 */
export async function readJson<T>(request: Request, schema: z.ZodType<T>): Promise<T> {
  const bytes = await request.arrayBuffer();
  if (bytes.byteLength > maxBodyBytes) throw storageFailures.bodyTooLarge();
  let body: unknown;
  try {
    body = JSON.parse(new TextDecoder().decode(bytes));
  } catch {
    throw storageFailures.invalidJson();
  }
  const parsed = schema.safeParse(body);
  if (parsed.success) return parsed.data;
  const [issue] = parsed.error.issues;
  throw storageFailures.invalidRequest(issue === undefined ? "body is invalid" : describeIssue(issue));
}

// The service validates with JSON schema; these are that validator's words.
function describeIssue(issue: z.core.$ZodIssue): string {
  const place = ["body", ...issue.path].join("/");
  if (issue.code === "too_big" && issue.origin === "array") {
    return `${place} must NOT have more than ${issue.maximum} items`;
  }
  if (issue.code === "too_small" && issue.origin === "array") {
    return `${place} must NOT have fewer than ${issue.minimum} items`;
  }
  if (issue.code === "too_big") return `${place} must be <= ${issue.maximum}`;
  if (issue.code === "invalid_value") return `${place} must be equal to one of the allowed values`;
  if (issue.code === "too_small") return `${place} must be >= ${issue.minimum}`;
  if (issue.code === "invalid_type" && issue.input === undefined) {
    const parent = ["body", ...issue.path.slice(0, -1)].join("/");
    return `${parent} must have required property '${String(issue.path.at(-1))}'`;
  }
  if (issue.code === "invalid_type") {
    return `${place} must be ${issue.expected === "int" ? "integer" : issue.expected}`;
  }
  return `${place} is invalid`;
}
