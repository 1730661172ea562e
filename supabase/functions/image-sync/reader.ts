/** Opens signed URLs as a reader does, the first bytes of each, and says what was to be seen. */
import { fileTypeFromBuffer } from "file-type";
import pLimit, { type LimitFunction } from "p-limit";
import { z } from "zod";
import type { Probe, Target, Unseen } from "./contract.ts";

/** How many URLs are open at once, and how long one may take, in ms. */
const CONCURRENCY = 10;
const TIMEOUT_MS = 10_000;
/** The end is near when the URLs that are left take no longer than this, in ms: time to lease the next ones, or to hand off. */
const NEAR_END_MS = 250;
/** After an answer that a moment may mend, in ms. */
const SECOND_LOOK_MS = 500;
/** Enough for the library that knows the signatures of file types. */
const FIRST_BYTES = 4100;
/** What says nothing of the file: a gateway or Storage that is overloaded or away, rate limits, a database timeout. */
const PASSING = new Set([408, 429, 502, 503, 504, 520, 522, 524, 544]);

/** What to open. */
export type OpenRequest = {
  readonly targets: readonly Target[];
  /** What a URL has to begin with to be fetched: the column can be written by others than the sync. */
  readonly base: string;
  /** At most so many URLs a second. Default: as fast as they answer. */
  readonly rate?: number;
  /** What is not opened by then, in ms from now, is called unreachable. Default: no limit. */
  readonly deadlineMs?: number;
  /** Shared by requests that together open no more at once than one does. Default: a limit of its own. */
  readonly limit?: LimitFunction;
  /** Called when the end is near: what is asked for now will not wait long for these. */
  readonly onEndNear?: () => void;
};

/** A URL that showed no image, and why; as it may be kept and shown, without the URL. */
export type Failure = Probe["failures"][number] & { readonly code: Unseen };

/** What opening gave: every target once, in one of the two. */
export type Sight = { readonly shown: readonly string[]; readonly failures: readonly Failure[] };

/** The limit of URLs that are open at once. */
export const limitOpen = (): LimitFunction => pLimit(CONCURRENCY);

/** Opens every target once. Never throws. */
export async function openUrls(request: OpenRequest, send: typeof fetch = fetch): Promise<Sight> {
  const { targets, rate = Infinity, deadlineMs = Infinity, limit = limitOpen(), onEndNear } = request;
  const started = Date.now();
  const noticeTurn = watchEnd(targets.length, onEndNear);
  const seen = await Promise.all(targets.map((target, place) =>
    limit(async () => {
      await sleep(started + (1000 * place) / rate - Date.now());
      noticeTurn(place);
      if (Date.now() - started > deadlineMs) return failure(target, "unreachable", "not opened in time");
      return await openPatiently(target, request.base, send);
    })
  ));
  const failures = seen.filter((one) => one !== null);
  const failed = new Set(failures.map(({ name }) => name));
  return { shown: targets.map(({ name }) => name).filter((name) => !failed.has(name)), failures };
}

/** Calls `onEndNear` once, when it is near by the time that those before it took. Returns what is told whose turn has come. */
function watchEnd(count: number, onEndNear: (() => void) | undefined): (place: number) => void {
  const started = Date.now();
  let isNear = false;
  return (place) => {
    // Those that have made room for this one are done.
    const done = place - CONCURRENCY + 1;
    const leftMs = done < 1 ? Infinity : (count - place) * (Date.now() - started) / done;
    if (isNear || (leftMs > NEAR_END_MS && place < count - 1)) return;
    isNear = true;
    onEndNear?.();
  };
}

/** Opens a few URLs; what failed is named, without its URL. Never throws. */
export async function probe(request: OpenRequest, send: typeof fetch = fetch): Promise<Probe> {
  const { shown, failures } = await openUrls(request, send);
  return { checked: request.targets.length, ok: shown.length, failures: [...failures] };
}

/** A moment's trouble is no finding: looks twice where Storage may only have stumbled. */
async function openPatiently(target: Target, base: string, send: typeof fetch): Promise<Failure | null> {
  const first = await open(target, base, send);
  if (first === null || !(first.code === "unreachable" || first.status === 500)) return first;
  await sleep(SECOND_LOOK_MS);
  return await open(target, base, send);
}

async function open(target: Target, base: string, send: typeof fetch): Promise<Failure | null> {
  if (!isBelow(target.url, base)) return failure(target, "url_rejected", "foreign address");
  try {
    // A redirect would lead to an address that nobody checked.
    const response = await send(target.url, {
      signal: AbortSignal.timeout(TIMEOUT_MS),
      redirect: "manual",
      headers: { Range: `bytes=0-${FIRST_BYTES - 1}` },
    });
    const answer = { status: response.status, content_type: response.headers.get("Content-Type") };
    const bytes = await readStart(response);
    const code = response.status === 200 || response.status === 206
      ? await judgeContent(bytes, answer.content_type)
      : judgeRefusal(response.status, bytes);
    return code === null ? null : { ...failure(target, code, null), ...answer };
  } catch (error) {
    // The words of a failed fetch contain the URL, and with it the token.
    const isTimeout = error instanceof DOMException && error.name === "TimeoutError";
    return failure(target, "unreachable", isTimeout ? "timed out" : "no answer");
  }
}

/** What came, of an answer that Storage gave for a file. */
async function judgeContent(bytes: Uint8Array, contentType: string | null): Promise<Unseen | null> {
  if (bytes.byteLength === 0) return "file_lost";
  const type = (await fileTypeFromBuffer(bytes))?.mime;
  const isImage = type?.startsWith("image/") || isSvg(bytes);
  if (!isImage) return "not_an_image";
  return contentType?.toLowerCase().startsWith("image/") ? null : "wrong_content_type";
}

const refusalSchema = z.object({ statusCode: z.coerce.string().nullish(), error: z.string().nullish() });

/** Why Storage refused. Its errors are mostly HTTP 400, with the status that is meant in the body. */
function judgeRefusal(status: number, bytes: Uint8Array): Unseen {
  const { statusCode, error } = refusalOf(bytes);
  const meant = status === 400 && statusCode !== undefined ? Number(statusCode) : status;
  if (PASSING.has(meant) || PASSING.has(status)) return "unreachable";
  if (meant === 404 || /^(not_found|NoSuchKey)$/i.test(error ?? "")) return "file_gone";
  // No first byte to give.
  if (meant === 416 || meant >= 500) return "file_lost";
  return meant >= 400 ? "url_rejected" : "unreachable";
}

function refusalOf(bytes: Uint8Array): { statusCode: string | undefined; error: string | undefined } {
  try {
    const { data } = refusalSchema.safeParse(JSON.parse(new TextDecoder().decode(bytes)));
    return { statusCode: data?.statusCode ?? undefined, error: data?.error ?? undefined };
  } catch {
    return { statusCode: undefined, error: undefined };
  }
}

/**
 * The first bytes of the body; the rest of it is not fetched. A body that says that it is no longer is read at once: a stream costs as
 * much CPU as all else of a fetch.
 */
async function readStart(response: Response): Promise<Uint8Array> {
  const length = Number(response.headers.get("Content-Length") ?? NaN);
  const isEncoded = response.headers.has("Content-Encoding");
  return length <= FIRST_BYTES && !isEncoded
    ? new Uint8Array(await response.arrayBuffer())
    : await readStream(response);
}

async function readStream(response: Response): Promise<Uint8Array> {
  const parts: Uint8Array[] = [];
  let length = 0;
  const reader = response.body?.getReader();
  while (reader !== undefined && length < FIRST_BYTES) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    length += value.byteLength;
  }
  await reader?.cancel();
  const start = new Uint8Array(length);
  let at = 0;
  for (const part of parts) {
    start.set(part, at);
    at += part.byteLength;
  }
  return start.subarray(0, FIRST_BYTES);
}

/** Text, so it has no signature: the one kind of image that the library does not tell. */
function isSvg(bytes: Uint8Array): boolean {
  return /^\s*(<\?xml|<!--|<!DOCTYPE svg|<svg)/i.test(new TextDecoder().decode(bytes.subarray(0, 256))) &&
    new TextDecoder().decode(bytes).includes("<svg");
}

/** Compared as the URL parser understands both, so that `..`, backslashes, user names and ports mislead nobody. */
function isBelow(url: string, base: string): boolean {
  if (!URL.canParse(url) || !URL.canParse(base)) return false;
  const [parsed, allowed] = [new URL(url), new URL(base)];
  return parsed.origin === allowed.origin && parsed.username === "" && parsed.password === "" &&
    parsed.pathname.startsWith(allowed.pathname);
}

function failure({ name }: Target, code: Unseen, error: string | null): Failure {
  return { name, code, status: null, content_type: null, error };
}

async function sleep(ms: number): Promise<void> {
  if (ms > 0) await new Promise((resolve) => setTimeout(resolve, ms));
}
