/** Downloads side by side: bounded for each key and for all, so that no reader takes the database or the memory from the others. */
import { refuse } from "./problem.ts";

/** How many an isolate sends at once, in all and with one key. */
const MOST = 4;
const MOST_PER_KEY = 2;
/** When whoever was refused may ask again, in seconds. */
const RETRY_AFTER = 5;
/** How much is sent at a time, in bytes, and how long a reader may take for it, in ms. */
const SLICE_BYTES = 65_536;
const PATIENCE_MS = 15_000;

const running: string[] = [];

/**
 * Begins a download with a key; `key` names it. Returns what ends it, which may be called twice.
 * Throws a problem (429) where as many as may be are running.
 */
export function beginDownload(key: string): () => void {
  const ofKey = running.filter((one) => one === key).length;
  if (running.length >= MOST || ofKey >= MOST_PER_KEY) {
    throw refuse(
      429,
      "too_many_downloads",
      "Too many downloads at once",
      `Cannot send the register: ${ofKey} downloads with this key and ${running.length} in all are running, of ` +
        `${MOST_PER_KEY} and ${MOST} at most. Ask again in ${RETRY_AFTER} seconds`,
      { limit_per_key: MOST_PER_KEY, limit: MOST },
      { "Retry-After": String(RETRY_AFTER) },
    );
  }
  running.push(key);
  let ended = false;
  return () => {
    if (!ended) running.splice(running.indexOf(key), 1);
    ended = true;
  };
}

/**
 * A stream of texts in slices, each made when the one before it was taken. A reader that does not take one in time has ended it; an
 * error of `texts` breaks it, so that nobody takes a part for the whole.
 *
 * @param onEnd called once: with the error, if there was one
 */
export function streamOf(
  texts: AsyncIterator<string>,
  onEnd: (error?: unknown) => void,
  patienceMs: number = PATIENCE_MS,
): ReadableStream<Uint8Array> {
  const encoder = new TextEncoder();
  let rest = new Uint8Array();
  let timer: ReturnType<typeof setTimeout> | undefined;
  let isOver = false;
  const end = (error?: unknown) => {
    clearTimeout(timer);
    if (!isOver) onEnd(error);
    isOver = true;
  };
  return new ReadableStream({
    async pull(controller) {
      clearTimeout(timer);
      const fail = (error: unknown) => {
        controller.error(error);
        end(error);
      };
      try {
        while (rest.byteLength === 0) {
          const next = await texts.next();
          if (next.done) {
            controller.close();
            return end();
          }
          rest = encoder.encode(next.value);
        }
        if (isOver) return;
        controller.enqueue(rest.slice(0, SLICE_BYTES));
        rest = rest.subarray(SLICE_BYTES);
        timer = setTimeout(() => fail(new Error(`not read for ${patienceMs} ms`)), patienceMs);
      } catch (error) {
        fail(error);
      }
    },
    cancel: () => end(),
    // Made when it is asked for: the last slice as well is taken, or given up.
  }, { highWaterMark: 0 });
}
