/**
 * Signs object names through the Storage API, up to a thousand paths a call, and builds URLs that work for every legal name.
 */
import type { SupabaseClient } from "@supabase/supabase-js";
import { type Fault, LAST_EXPIRY, tokenPayloadSchema } from "./contract.ts";
import { messageOf } from "./log.ts";
import { RETRYABLE } from "./outbound.ts";
import { explain, isStorages } from "./text/unexplained.ts";

/** Storage refuses more paths in one call. */
const MAX_PATHS = 1_000;
/** Storage refuses a body over 1,048,576 bytes; the rest of the body needs less than what is left here. */
const MAX_PATH_BYTES = 1_000_000;
/** How many more calls may be spent on finding the names that make Storage refuse a whole call. */
const MAX_SEARCH_CALLS = 40;

/**
 * What signing gave: parallel arrays, and the names that could not be signed. A URL is `base`, its path, `?token=` and its token;
 * taken apart, because they are most of what a chunk's closing carries.
 */
export type Signed = {
  readonly base: string;
  readonly names: string[];
  /** Each name as it stands in a URL. */
  readonly paths: string[];
  readonly tokens: string[];
  /** When the token expires, in seconds since 1970, read from the token itself. */
  readonly expires: number[];
  readonly failures: { name: string; error: string }[];
};

/** Signing was impossible for the chunk as a whole. `isFinal`: the next chunk would fare no better. */
export class SigningError extends Error {
  constructor(readonly fault: Fault, readonly isFinal: boolean) {
    super(`${fault.title}: ${fault.detail}`);
  }
}

/** Signs names of one bucket. Throws {@linkcode SigningError}. */
export type Signer = (request: {
  bucket: string;
  names: readonly string[];
  /** Lifetime in seconds. */
  expiresIn: number;
  /** Scheme and host for readers; null: the project's own URL. */
  publicUrl: string | null;
}) => Promise<Signed>;

/** Under this key the one item that supabase-js sees has all that Storage answered. */
const UNOPENED = Symbol("items");

/**
 * Wraps a client's `fetch` so that supabase-js hands Storage's answer to a signing call on as it is, as the one item of a list. It would
 * copy each of a thousand items and escape each of their URLs, of which nothing but the token is used: half of what signing costs.
 */
export function unopened(send: typeof fetch): typeof fetch {
  return async (input, init) => {
    const response = await send(input, init);
    const url = input instanceof Request ? input.url : String(input);
    if (!url.includes("/storage/v1/object/sign/")) return response;
    if (!response.ok) {
      const text = await response.clone().text();
      if (isStorages(text)) return response;
      throw new UnexplainedError(explain({ status: response.status, text }), response.status);
    }
    Object.defineProperty(response, "json", {
      value: async () => [{ [UNOPENED]: JSON.parse(await response.text()) as unknown }],
    });
    return response;
  };
}

/** Somebody else answered in Storage's place. */
class UnexplainedError extends Error {
  constructor(message: string, readonly status: number) {
    super(message);
  }
}

/** The items of an answer, handed on as it is or opened by supabase-js. Throws where it is no list of items. */
function itemsOf(data: readonly object[]): readonly Item[] {
  const [only] = data;
  const items: unknown = only !== undefined && UNOPENED in only ? only[UNOPENED] : data;
  if (Array.isArray(items) && items.every(isItem)) return items;
  throw new Error("Storage answered a signing call with something else than a list of signed paths");
}

/** Creates a signer that calls Storage with the client's secret key. `projectUrl` is `SUPABASE_URL`. */
export function createSigner(client: SupabaseClient, projectUrl: string): Signer {
  return async ({ bucket, names, expiresIn, publicUrl }) => {
    const base = signedUrlBase(publicUrl ?? projectUrl, bucket);
    const signed: Signed = { base, names: [], paths: [], tokens: [], expires: [], failures: [] };
    let searchCalls = MAX_SEARCH_CALLS;

    async function signAll(paths: readonly string[]): Promise<void> {
      const { data, error } = await client.storage.from(bucket).createSignedUrls([...paths], expiresIn);
      if (error === null) return collect(paths, itemsOf(data));
      const refusal = toSigningError(error, bucket);
      if (refusal.isFinal || !isInvalidRequest(error)) throw refusal;
      // One name that Storage does not accept refuses them all: halve until it stands alone.
      if (paths.length === 1 || searchCalls <= 0) {
        for (const name of paths) signed.failures.push({ name, error: refusal.fault.detail });
        return;
      }
      searchCalls -= 2;
      const middle = Math.ceil(paths.length / 2);
      await signAll(paths.slice(0, middle));
      await signAll(paths.slice(middle));
    }

    function collect(paths: readonly string[], items: readonly Item[]): void {
      // By path, not by place: an answer with fewer or reordered items must not give one file's URL to another.
      let itemByPath: ReadonlyMap<unknown, Item> | undefined;
      for (const [place, name] of paths.entries()) {
        const item = items[place]?.path === name
          ? items[place]
          : (itemByPath ??= new Map(items.map((one) => [one.path, one]))).get(name);
        const token = tokenOf(item?.signedURL);
        const expires = token === null ? null : expiryOf(token);
        if (token === null || expires === null) {
          signed.failures.push({
            name,
            error: messageOf(item?.error ?? "Storage gave no usable URL for this name"),
          });
          continue;
        }
        signed.names.push(name);
        signed.paths.push(encodePath(name));
        signed.tokens.push(token);
        signed.expires.push(expires);
      }
    }

    const signable: string[] = [];
    for (const name of names) {
      const error = whyUnsignable(name);
      if (error === null) signable.push(name);
      else signed.failures.push({ name, error });
    }
    for (const batch of batches(signable)) await signAll(batch);
    return signed;
  };
}

/** What every signed URL of a bucket begins with. The database has the same in `image_sync.url_base`. */
export function signedUrlBase(address: string, bucket: string): string {
  return `${address}/storage/v1/object/sign/${encodeURIComponent(bucket)}/`;
}

/** One item of Storage's answer to a signing call; `signedURL` is relative and ends in `?token=JWT`. */
type Item = {
  readonly path?: string | null | undefined;
  readonly error?: string | null | undefined;
  readonly signedURL?: string | null | undefined;
};

/** Every item is looked at, by hand: a schema took a millisecond for the thousand of a call. */
function isItem(item: unknown): item is Item {
  if (item === null || typeof item !== "object") return false;
  const { path, error, signedURL } = item as Record<keyof Item, unknown>;
  return isText(path) && isText(error) && isText(signedURL);
}

function isText(value: unknown): value is string | null | undefined {
  return typeof value === "string" || value === null || value === undefined;
}

function* batches(names: readonly string[]): Generator<readonly string[]> {
  let batch: string[] = [];
  let bytes = 0;
  for (const name of names) {
    // In JSON a character takes at most 6 bytes (\u0000) for each UTF-16 unit; plain names are not measured that closely.
    const size = PLAIN.test(name) ? name.length + 3 : name.length * 6 + 3;
    if (batch.length === MAX_PATHS || (bytes + size > MAX_PATH_BYTES && batch.length > 0)) {
      yield batch;
      batch = [];
      bytes = 0;
    }
    batch.push(name);
    bytes += size;
  }
  if (batch.length > 0) yield batch;
}

/** Names of these characters are the same in a URL and in JSON. */
const PLAIN = /^[\w./-]*$/;

/** supabase-js leaves `?` and `#` as they are, which would end the path too early. */
function encodePath(name: string): string {
  return PLAIN.test(name) ? name : name.split("/").map(encodeURIComponent).join("/");
}

/**
 * Why a URL of this name could never be opened; null where it can. Storage signs any name in bulk and refuses to open those with
 * characters that it does not take (`InvalidKey`); every URL parser removes segments `.` and `..`, escaped or not. The
 * database knows the same rule as `image_sync.is_signable`.
 */
function whyUnsignable(name: string): string | null {
  if (/(^|\/)\.{1,2}(\/|$)/.test(name)) {
    return "A path with a segment . or .. cannot be fetched by URL; rename the file";
  }
  const refused = /[^\w/!.*'() &$@=;:+,?-]/u.exec(name)?.[0];
  return refused === undefined
    ? null
    : `Storage opens no URL of a name with the character ${JSON.stringify(refused)}; rename the file`;
}

function tokenOf(signedUrl: string | null | undefined): string | null {
  if (!signedUrl) return null;
  const start = signedUrl.lastIndexOf("?token=");
  return start < 0 ? null : signedUrl.slice(start + "?token=".length);
}

/** The end of a payload that holds its last member, in characters. */
const TAIL = 32;

/** The true expiry, null where it is no usable time: this machine's clock plus the lifetime could lie behind it. */
function expiryOf(token: string): number | null {
  const start = token.indexOf(".") + 1;
  if (start === 0) return null;
  const end = token.indexOf(".", start);
  const payload = token.slice(start, end < 0 ? undefined : end);
  try {
    // Base64 is read in groups of four characters; `exp` is the last member, where Storage puts it.
    const tail = decodeBase64Url(payload.slice(Math.max((payload.length - TAIL) & ~3, 0)));
    const exp = /"exp":(\d{1,15})\}$/.exec(tail)?.[1];
    if (exp === undefined) return tokenPayloadSchema.parse(JSON.parse(decodeBase64Url(payload))).exp;
    return Number(exp) > 0 && Number(exp) <= LAST_EXPIRY ? Number(exp) : null;
  } catch {
    return null;
  }
}

function decodeBase64Url(text: string): string {
  return atob(text.replaceAll("-", "+").replaceAll("_", "/"));
}

function statusOf(error: unknown): string {
  const status = (key: "statusCode" | "status") =>
    error !== null && typeof error === "object" && key in error
      ? String((error as Record<string, unknown>)[key] ?? "")
      : "";
  return status("statusCode") || status("status");
}

function isInvalidRequest(error: unknown): boolean {
  return ["400", "413", "422", "InvalidRequest", "InvalidKey"].includes(statusOf(error));
}

function toSigningError(error: unknown, bucket: string): SigningError {
  const status = statusOf(error);
  const unexplained = originOf(error);
  const isFinal = ["401", "403", "404"].includes(status) || codeOf(error) === "InvalidBucketName" ||
    (unexplained !== null && !RETRYABLE.has(unexplained.status));
  return new SigningError({
    code: "signing_failed",
    title: unexplained === null ? "Storage refused to sign" : "Storage did not answer",
    detail: `Cannot sign files of bucket ${bucket}: ${messageOf(error)}${
      status ? ` (status ${status})` : ""
    }${unexplained === null ? `. ${wayOut(error, isFinal)}` : ""}`,
  }, isFinal);
}

function wayOut(error: unknown, isFinal: boolean): string {
  if (codeOf(error) === "InvalidBucketName") {
    return "Storage signs nothing in a bucket of such a name: copy its files to one named with letters a to z and digits";
  }
  return isFinal
    ? "Check that the bucket exists and that the function has a secret key"
    : "Storage may be unavailable";
}

/** supabase-js wraps what its `fetch` throws. */
function originOf(error: unknown): UnexplainedError | null {
  const origin = error !== null && typeof error === "object" && "originalError" in error
    ? error.originalError
    : error;
  return origin instanceof UnexplainedError ? origin : null;
}

function codeOf(error: unknown): unknown {
  return error !== null && typeof error === "object" && "code" in error ? error.code : undefined;
}
