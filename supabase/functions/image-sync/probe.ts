/** Fetches a few signed URLs as a reader would, to see that they show an image. */
import pLimit from "p-limit";
import type { Probe } from "./contract.ts";

const CONCURRENCY = 10;
const TIMEOUT_MS = 10_000;

/** A record to probe; its URL is a secret. */
export type ProbeTarget = { readonly name: string; readonly url: string };

/** Fetches every target once, without its body. Never throws: what failed is named in the result, without its URL. */
export async function probe(targets: readonly ProbeTarget[], send: typeof fetch = fetch): Promise<Probe> {
  const limit = pLimit(CONCURRENCY);
  const results = await Promise.all(targets.map((target) => limit(() => probeOne(target, send))));
  const failures = results.filter((result) => result !== null);
  return { checked: targets.length, ok: targets.length - failures.length, failures };
}

async function probeOne(target: ProbeTarget, send: typeof fetch): Promise<Probe["failures"][number] | null> {
  try {
    const response = await send(target.url, { signal: AbortSignal.timeout(TIMEOUT_MS) });
    const contentType = response.headers.get("Content-Type");
    await response.body?.cancel();
    if (response.status === 200 && contentType?.startsWith("image/")) return null;
    return { name: target.name, status: response.status, content_type: contentType, error: null };
  } catch (error) {
    // The words of a failed fetch contain the URL, and with it the token.
    const isTimeout = error instanceof DOMException && error.name === "TimeoutError";
    return {
      name: target.name,
      status: null,
      content_type: null,
      error: isTimeout ? "timed out" : "unreachable",
    };
  }
}
