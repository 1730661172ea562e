/** Reads what a caller sent, within bounds, and says precisely what is wrong with it. */
import type { z } from "zod";
import {
  MAX_BODY_BYTES,
  MAX_TOKEN_BODY_BYTES,
  MAX_WAIT_SECONDS,
  modeSchema,
  type TokenRequest,
  tokenRequestSchema,
} from "./contract.ts";
import { refuse } from "./problem.ts";

/** How long a caller without a key may take to say its token, in ms. */
const TOKEN_BODY_MS = 3_000;

/** The JSON of a body of at most {@linkcode MAX_BODY_BYTES}; an empty body is an empty object. Throws a problem (400, 413). */
export async function readJson(request: Request): Promise<unknown> {
  const text = await readText(request);
  if (text.trim() === "") return {};
  try {
    return JSON.parse(text) as unknown;
  } catch {
    throw refuse(
      400,
      "invalid_json",
      "The body is not JSON",
      'Cannot parse the request body as JSON. Send an object like {"mode": "sync"}, or no body at all',
    );
  }
}

async function readText(request: Request): Promise<string> {
  const tooLarge = () =>
    refuse(
      413,
      "body_too_large",
      "The body is too large",
      `A request body has at most ${MAX_BODY_BYTES} bytes`,
      {
        limit_bytes: MAX_BODY_BYTES,
      },
    );
  if (Number(request.headers.get("Content-Length")) > MAX_BODY_BYTES) throw tooLarge();
  const parts: Uint8Array<ArrayBuffer>[] = [];
  let bytes = 0;
  for await (const part of request.body ?? []) {
    bytes += part.byteLength;
    if (bytes > MAX_BODY_BYTES) throw tooLarge();
    parts.push(part);
  }
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(await new Blob(parts).arrayBuffer());
  } catch {
    throw refuse(
      400,
      "invalid_json",
      "The body is not JSON",
      "Cannot read the request body: it is not UTF-8",
    );
  }
}

/**
 * The token that a call brings instead of a key, as the schedule does; undefined for every other request, whose body is left unread
 * where it is too large or too slow to be one. Costs no look at the database.
 */
export async function readToken(request: Request): Promise<TokenRequest | undefined> {
  if (request.method !== "POST" || request.headers.has("apikey")) return undefined;
  if (Number(request.headers.get("Content-Length")) > MAX_TOKEN_BODY_BYTES) return undefined;
  let text = "";
  const decoder = new TextDecoder();
  const body = request.clone().body?.pipeThrough(new TransformStream<Uint8Array, Uint8Array>(), {
    signal: AbortSignal.timeout(TOKEN_BODY_MS),
  });
  try {
    for await (const part of body ?? []) {
      text += decoder.decode(part, { stream: true });
      if (text.length > MAX_TOKEN_BODY_BYTES) return undefined;
    }
    return tokenRequestSchema.safeParse(JSON.parse(text)).data;
  } catch {
    return undefined;
  }
}

/** Parses with a schema. Throws a problem (400) that names every field and what is wrong with it. */
export function parse<T>(schema: z.ZodType<T>, value: unknown, where: "body" | "query"): T {
  const parsed = schema.safeParse(value);
  if (parsed.success) return parsed.data;
  const errors = parsed.error.issues.slice(0, 10).map((issue) => ({
    field: issue.path.join(".") || where,
    message: issue.message.slice(0, 200),
  }));
  const detail = errors.map(({ field, message }) => `${field}: ${message}`).join("; ");
  if (errors.some(({ field }) => field === "mode")) {
    throw refuse(
      400,
      "unknown_mode",
      "There is no such mode",
      `${detail}. Modes: ${modeSchema.options.join(", ")}`,
      {
        errors,
      },
    );
  }
  throw refuse(
    400,
    where === "body" ? "invalid_body" : "invalid_query",
    `The ${where} has the wrong shape`,
    detail,
    {
      errors,
    },
  );
}

/** Seconds to wait for the run's end, from `Prefer: wait=N` (RFC 7240); 0 without one. Throws a problem (400). */
export function readWaitSeconds(request: Request): number {
  const prefer = request.headers.get("Prefer") ?? "";
  const wait = /(?:^|[,;\s])wait=("?)([^,;\s"]*)\1/i.exec(prefer)?.[2];
  if (wait === undefined) return 0;
  const seconds = /^\d{1,6}$/.test(wait) ? Number(wait) : NaN;
  if (seconds >= 0 && seconds <= MAX_WAIT_SECONDS) return seconds;
  throw refuse(
    400,
    "invalid_wait",
    "The wait is out of range",
    `Cannot wait as asked: Prefer: wait=N takes a whole number of seconds from 0 to ${MAX_WAIT_SECONDS}`,
    { limit_seconds: MAX_WAIT_SECONDS },
  );
}
