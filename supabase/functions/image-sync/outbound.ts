/**
 * The one way out: every request to the Data API and to Storage goes through this `fetch`. It bounds each attempt in time and
 * repeats what a moment may mend, and nothing else.
 */
import pRetry, { AbortError } from "p-retry";
import { log, messageOf } from "./log.ts";

/** What may succeed a moment later (Supabase's own list for Storage and the Data API; 544 is a database timeout). */
export const RETRYABLE: ReadonlySet<number> = new Set([408, 429, 500, 502, 503, 504, 520, 522, 524, 544]);
/**
 * Of the errors that the database itself reports, by SQLSTATE, those that a moment may mend: a deadlock, a serialization failure, a
 * connection or server that goes away, too many connections. A statement timeout (57014) costs its time again, and a lock
 * (55P03) is waited for elsewhere.
 */
const PASSING_SQLSTATE = /^(40001|40P01|08...|53300|57P0[123])$/;

/** Options of {@linkcode createOutbound}; times in ms. */
export type OutboundOptions = {
  /** One attempt may take so long. Default 15,000. */
  readonly attemptMs?: number;
  /** All attempts of one request together, waiting included. Default 25,000. */
  readonly totalMs?: number;
  /** How often a request is repeated at most. Default 5. */
  readonly retries?: number;
  /** The first wait; doubled each time, with jitter. Default 250. */
  readonly firstDelayMs?: number;
  /** How long after the gateway refused a key, or the Data API knew no function, it is asked again, once. Default 1,000. */
  readonly secondDelayMs?: number;
  /** What sends a request. Default: the global `fetch`. */
  readonly fetch?: typeof fetch;
};

/** An answer that redirects: what was sent, the key included, is for the address that was asked and for no other. */
export class RedirectError extends Error {}

/** Requests made since the counts were last taken. */
export type OutboundCounts = { readonly storageCalls: number; readonly retries: number };

/** The wrapped `fetch` and its counts. */
export type Outbound = {
  readonly fetch: typeof fetch;
  /** Returns the counts since the last call, and starts again at 0. */
  takeCounts(): OutboundCounts;
};

/** A response that is worth another attempt; kept, because the last one is the caller's answer. */
class RetryableResponse extends Error {
  constructor(readonly response: Response) {
    super(`HTTP ${response.status}`);
  }
}

/**
 * Creates the wrapped `fetch` of one invocation.
 *
 * It resolves to the last response where attempts run out, so that the client library says what the server said, and rejects
 * with the last network error or a `TimeoutError`. A `Retry-After` (seconds or a date) that would not fit is not waited for.
 */
export function createOutbound(options: OutboundOptions = {}): Outbound {
  const { attemptMs = 15_000, totalMs = 25_000, retries = 5, firstDelayMs = 250, secondDelayMs = 1_000 } =
    options;
  const send = options.fetch ?? fetch;
  let storageCalls = 0;
  let repeated = 0;

  async function outboundFetch(input: RequestInfo | URL, init?: RequestInit): Promise<Response> {
    const started = Date.now();
    const isStorage = urlOf(input).includes("/storage/v1/");
    let isSecond = false;
    try {
      return await pRetry(async (attempt) => {
        if (isStorage) storageCalls++;
        if (attempt > 1) repeated++;
        let response = await attemptOnce(send, input, init, attemptMs);
        if (!isSecond && await isReloading(response)) {
          isSecond = true;
          repeated++;
          if (isStorage) storageCalls++;
          await new Promise((resolve) => setTimeout(resolve, secondDelayMs));
          response = await attemptOnce(send, input, init, attemptMs);
        }
        if (await isRetryable(response)) throw new RetryableResponse(response);
        return response;
      }, {
        retries,
        minTimeout: firstDelayMs,
        factor: 2,
        randomize: true,
        maxRetryTime: totalMs,
        ...(init?.signal ? { signal: init.signal } : {}),
        async onFailedAttempt({ error, attemptNumber, retriesLeft }) {
          log("attempt_failed", {
            path: pathOf(urlOf(input)),
            attempt: attemptNumber,
            error: messageOf(error),
            cause: messageOf(error.cause ?? ""),
          });
          if (!(error instanceof RetryableResponse) || retriesLeft === 0) return;
          const waitMs = retryAfterMs(error.response.headers.get("Retry-After"));
          if (Date.now() - started + waitMs > totalMs) throw error;
          await new Promise((resolve) => setTimeout(resolve, waitMs));
        },
      });
    } catch (error) {
      if (error instanceof RetryableResponse) return error.response;
      throw error;
    }
  }

  return {
    fetch: outboundFetch,
    takeCounts() {
      const counts = { storageCalls, retries: repeated };
      storageCalls = repeated = 0;
      return counts;
    },
  };
}

async function attemptOnce(
  send: typeof fetch,
  input: RequestInfo | URL,
  init: RequestInit | undefined,
  attemptMs: number,
): Promise<Response> {
  const timeout = AbortSignal.timeout(attemptMs);
  const signal = init?.signal ? AbortSignal.any([init.signal, timeout]) : timeout;
  try {
    const response = await send(input, { ...init, signal, redirect: "manual" });
    if (isRedirect(response)) {
      await response.body?.cancel();
      throw new AbortError(redirectError(input, response));
    }
    // The body is part of the attempt: an answer that breaks off or never ends is no answer.
    const body = response.body === null ? null : await response.arrayBuffer();
    return new Response(body, response);
  } catch (error) {
    if (error instanceof AbortError) throw error;
    if (init?.signal?.aborted) throw new AbortError(error instanceof Error ? error : String(error));
    // p-retry repeats only those TypeErrors that it knows as network errors; every failure to get an answer is one here.
    throw new Error(timeout.aborted ? `No answer within ${attemptMs} ms` : "The connection failed", {
      cause: error,
    });
  }
}

/** Storage often answers 400 and hides the true status in the body; the Data API says in its body what the database said. */
async function isRetryable(response: Response): Promise<boolean> {
  if (response.status !== 400 && !RETRYABLE.has(response.status)) return false;
  const body: unknown = await response.clone().json().catch(() => null);
  if (response.status === 400) return RETRYABLE.has(Number(fieldOf(body, "statusCode") ?? NaN));
  const code = fieldOf(body, "code");
  return typeof code !== "string" || !/^[0-9A-Z]{5}$/.test(code) || PASSING_SQLSTATE.test(code);
}

/** While the Data API reads its schema anew, or the gateway its keys, a single request may meet neither: that proves nothing. */
async function isReloading(response: Response): Promise<boolean> {
  if (response.status === 401) return true;
  if (response.status !== 404) return false;
  return fieldOf(await response.clone().json().catch(() => null), "code") === "PGRST202";
}

function fieldOf(body: unknown, name: string): unknown {
  return body !== null && typeof body === "object" && name in body
    ? (body as Record<string, unknown>)[name]
    : undefined;
}

function isRedirect(response: Response): boolean {
  return response.type === "opaqueredirect" || (response.status >= 300 && response.status < 400);
}

function redirectError(input: RequestInfo | URL, response: Response): RedirectError {
  const url = urlOf(input);
  const location = response.headers.get("Location");
  const target = location !== null && URL.canParse(location, url)
    ? new URL(location, url).origin
    : "another address";
  return new RedirectError(
    `${
      new URL(url).origin
    } answered with a redirect to ${target}. The key is not sent there: check SUPABASE_URL`,
  );
}

/** `Retry-After` in ms from now; 0 where there is none. */
function retryAfterMs(header: string | null): number {
  if (header === null) return 0;
  const seconds = Number(header);
  const ms = Number.isFinite(seconds) ? seconds * 1000 : Date.parse(header) - Date.now();
  return Number.isFinite(ms) ? Math.max(ms, 0) : 0;
}

/** The path down to the bucket or the RPC; what follows may name a file. */
function pathOf(url: string): string {
  return new URL(url).pathname.split("/").slice(0, 7).join("/");
}

function urlOf(input: RequestInfo | URL): string {
  return input instanceof Request ? input.url : String(input);
}
