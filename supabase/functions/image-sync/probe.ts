/** Fetches a few signed URLs as a reader would, to see that they show an image. */
import pLimit from "p-limit";
import type { Probe } from "./contract.ts";

const CONCURRENCY = 10;
const TIMEOUT_MS = 10_000;

/** A record to probe; its URL is a secret. */
export type ProbeTarget = { readonly name: string; readonly url: string };

/** What to probe, and what a URL has to begin with to be fetched: the column can be written by others than the sync. */
export type ProbeRequest = { readonly targets: readonly ProbeTarget[]; readonly base: string };

/** Fetches every target once, without its body. Never throws: what failed is named in the result, without its URL. */
export async function probe({ targets, base }: ProbeRequest, send: typeof fetch = fetch): Promise<Probe> {
  const limit = pLimit(CONCURRENCY);
  const results = await Promise.all(targets.map((target) => limit(() => probeOne(target, base, send))));
  const failures = results.filter((result) => result !== null);
  return { checked: targets.length, ok: targets.length - failures.length, failures };
}

async function probeOne(
  { name, url }: ProbeTarget,
  base: string,
  send: typeof fetch,
): Promise<Probe["failures"][number] | null> {
  const failure = (error: string) => ({ name, status: null, content_type: null, error });
  if (!isBelow(url, base)) return failure("foreign address");
  try {
    // A redirect would lead to an address that nobody checked.
    const response = await send(url, { signal: AbortSignal.timeout(TIMEOUT_MS), redirect: "manual" });
    const contentType = response.headers.get("Content-Type");
    await response.body?.cancel();
    if (response.status === 200 && contentType?.startsWith("image/")) return null;
    return { name, status: response.status, content_type: contentType, error: null };
  } catch (error) {
    // The words of a failed fetch contain the URL, and with it the token.
    const isTimeout = error instanceof DOMException && error.name === "TimeoutError";
    return failure(isTimeout ? "timed out" : "unreachable");
  }
}

/** Compared as the URL parser understands both, so that `..`, backslashes, user names and ports mislead nobody. */
function isBelow(url: string, base: string): boolean {
  if (!URL.canParse(url) || !URL.canParse(base)) return false;
  const [parsed, allowed] = [new URL(url), new URL(base)];
  return parsed.origin === allowed.origin && parsed.username === "" && parsed.password === "" &&
    parsed.pathname.startsWith(allowed.pathname);
}
