/** Opens signed URLs as a reader does, the first bytes of each, and says what was to be seen. */
import { fileTypeFromBuffer } from "file-type";
import pLimit, { type LimitFunction } from "p-limit";
import { z } from "zod";
import type { Probe, Target, Unseen } from "./contract.ts";
import { explain } from "./text/unexplained.ts";

/** How many URLs are open at once, and how long one may take, in ms. */
const CONCURRENCY = 10;
const TIMEOUT_MS = 10_000;
/** The end is near when the URLs that are left take no longer than this, in ms: time to lease the next ones, or to hand off. */
const NEAR_END_MS = 250;
/** How long after an answer that says nothing of the file it is looked at again, in ms. */
const LOOKS_AGAIN_MS = [500, 2_000];
/** Enough for the library that knows the signatures of file types. */
const FIRST_BYTES = 4100;
/** Storage's own word for a token that it will never accept: the key was rotated, the token is forged or has expired. */
export const DEAD_TOKEN = "InvalidJWT";
/** What Storage says of a file or its URL, by the code in its JSON. Any other answer says nothing of them. */
const SAID_OF_FILE: Readonly<Record<string, Unseen>> = {
  not_found: "file_gone",
  // The row is there, the file behind it is not.
  NoSuchKey: "file_lost",
  // No first byte to give.
  InvalidRange: "file_lost",
  [DEAD_TOKEN]: "url_rejected",
  InvalidSignature: "url_rejected",
  InvalidKey: "url_rejected",
};

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

/** What opening gave: every target that was opened, in one of the two. */
export type Sight = {
  readonly shown: readonly string[];
  readonly failures: readonly Failure[];
  /** Nothing reaches Storage any more: the failure (one of the above) behind which no target was opened; null where all were. */
  readonly end: Failure | null;
};

/** The limit of URLs that are open at once. */
export const limitOpen = (): LimitFunction => pLimit(CONCURRENCY);

/**
 * Opens every target once. Never throws. An answer that says nothing of a file is looked at again; where Storage said nothing of any
 * other file meanwhile, it is the address that fails and not this file, and nothing more is opened.
 */
export async function openUrls(request: OpenRequest, send: typeof fetch = fetch): Promise<Sight> {
  const { targets, rate = Infinity, deadlineMs = Infinity, limit = limitOpen(), onEndNear } = request;
  const started = Date.now();
  const noticeTurn = watchEnd(targets.length, onEndNear);
  const ending = new AbortController();
  const shown: string[] = [];
  const failures: Failure[] = [];
  let answered = 0;
  let end: Failure | null = null;
  await Promise.all(targets.map((target, place) =>
    limit(async () => {
      await sleep(started + (1000 * place) / rate - Date.now(), ending.signal);
      noticeTurn(place);
      if (end !== null) return;
      if (Date.now() - started > deadlineMs) {
        failures.push(failure(target, "unreachable", "not opened in time"));
        return;
      }
      const before = answered;
      const failed = await openPatiently({ target, base: request.base, send, ending: ending.signal });
      if (end !== null) return;
      if (failed === null) shown.push(target.name);
      else failures.push(failed);
      if (failed?.code !== "unreachable") answered++;
      else if (answered === before) {
        end = failed;
        ending.abort();
      }
    })
  ));
  return { shown, failures, end };
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
  return { checked: shown.length + failures.length, ok: shown.length, failures: [...failures] };
}

type Opening = {
  readonly target: Target;
  readonly base: string;
  readonly send: typeof fetch;
  /** Aborted where the answer is of no use any more. */
  readonly ending: AbortSignal;
};

/** A moment's trouble is no finding: what says nothing of the file is looked at again, and once so is Storage's own 500. */
async function openPatiently(opening: Opening): Promise<Failure | null> {
  let seen = await open(opening);
  for (const [times, waitMs] of LOOKS_AGAIN_MS.entries()) {
    const mayPass = seen?.code === "unreachable" || (seen?.status === 500 && times === 0);
    if (!mayPass || opening.ending.aborted) return seen;
    await sleep(waitMs, opening.ending);
    seen = await open(opening);
  }
  return seen;
}

async function open({ target, base, send, ending }: Opening): Promise<Failure | null> {
  if (!isBelow(target.url, base)) return failure(target, "url_rejected", "foreign address");
  try {
    // A redirect would lead to an address that nobody checked.
    const response = await send(target.url, {
      signal: AbortSignal.any([AbortSignal.timeout(TIMEOUT_MS), ending]),
      redirect: "manual",
      headers: { Range: `bytes=0-${FIRST_BYTES - 1}` },
    });
    const bytes = await readStart(response);
    const judged = await judge(response, bytes);
    if (judged === null) return null;
    return {
      ...failure(target, judged.code, judged.error),
      status: response.status,
      content_type: response.headers.get("Content-Type"),
    };
  } catch (error) {
    // The words of a failed fetch contain the URL, and with it the token.
    const isTimeout = error instanceof DOMException && error.name === "TimeoutError";
    const what = isTimeout ? `No answer within ${TIMEOUT_MS / 1000} s` : "No answer";
    return failure(
      target,
      "unreachable",
      `${what}. Check the network, and the address that readers use (public_url)`,
    );
  }
}

type Judged = { readonly code: Unseen; readonly error: string | null };

async function judge(response: Response, bytes: Uint8Array): Promise<Judged | null> {
  const { status, headers } = response;
  const contentType = headers.get("Content-Type")?.toLowerCase() ?? null;
  if ((status === 200 || status === 206) && !contentType?.startsWith("text/html")) {
    const code = await judgeContent(bytes, contentType);
    return code === null ? null : { code, error: null };
  }
  const text = new TextDecoder().decode(bytes);
  const error = explain({ status, text, location: headers.get("Location") });
  return judgeRefusal(status, text) ?? { code: "unreachable", error };
}

/** What came, of an answer that Storage gave for a file. */
async function judgeContent(bytes: Uint8Array, contentType: string | null): Promise<Unseen | null> {
  if (bytes.byteLength === 0) return "file_lost";
  const type = (await fileTypeFromBuffer(bytes))?.mime;
  const isImage = type?.startsWith("image/") || isSvg(bytes);
  if (!isImage) return "not_an_image";
  return contentType?.startsWith("image/") ? null : "wrong_content_type";
}

/** How Storage refuses: mostly by HTTP 400, with the status that is meant in the body. */
const refusalSchema = z.object({
  statusCode: z.coerce.string(),
  error: z.string().nullish(),
  code: z.string().nullish(),
  message: z.string().nullish(),
});

/** What Storage says of the file; null where it is not Storage that speaks, or not of the file. */
function judgeRefusal(status: number, text: string): Judged | null {
  const { data } = refusalSchema.safeParse(parseJson(text));
  if (data === undefined) return null;
  // Which of them has the code depends on Storage's version and on who refused, it or S3.
  for (const word of [data.error, data.code, data.message]) {
    const code = word && Object.hasOwn(SAID_OF_FILE, word) ? SAID_OF_FILE[word] : undefined;
    if (code !== undefined) return { code, error: word ?? null };
  }
  // Where files lie on a file system, one that is missing is an error of the server.
  const isLost = data.statusCode === "416" || data.statusCode === "500" && !/^Database/.test(data.code ?? "");
  return isLost && status < 501 ? { code: "file_lost", error: data.error ?? null } : null;
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
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

/** Waits, until `ending` is aborted at the latest. */
async function sleep(ms: number, ending: AbortSignal): Promise<void> {
  if (ms <= 0 || ending.aborted) return;
  await new Promise<void>((resolve) => {
    const done = () => {
      clearTimeout(timer);
      ending.removeEventListener("abort", done);
      resolve();
    };
    const timer = setTimeout(done, ms);
    ending.addEventListener("abort", done);
  });
}
