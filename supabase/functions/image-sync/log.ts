/**
 * One structured line per event. The platform keeps 100 lines per 10 s and cuts a line at 10,000 characters: chunk lines
 * beyond a share of that are counted instead of written, and a line never carries a key, a token or a list of files.
 */

const WINDOW_MS = 10_000;
const CHUNK_LINES_PER_WINDOW = 50;

let windowStart = 0;
let chunkLines = 0;
let dropped = 0;

/** Fields of a log line; keep them short and free of file names. */
export type LogFields = Readonly<Record<string, string | number | boolean | null | undefined>>;

/** Writes one line of JSON to the log. */
export function log(event: string, fields: LogFields): void {
  console.log(redact(JSON.stringify({ event, ...fields })));
}

/** Like {@linkcode log}, for what a large run writes thousands of: what exceeds the platform's limit is counted, not written. */
export function logChunk(fields: LogFields, now = Date.now()): void {
  if (now - windowStart >= WINDOW_MS) {
    windowStart = now;
    chunkLines = 0;
  }
  if (chunkLines >= CHUNK_LINES_PER_WINDOW) {
    dropped++;
    return;
  }
  chunkLines++;
  log("chunk", dropped > 0 ? { ...fields, lines_left_out: dropped } : fields);
  dropped = 0;
}

/** Blots out whatever looks like the token of a signed URL, a JWT or one of the project's keys. */
export function redact(text: string): string {
  return text
    .replace(/token=[^\s"'&]+/g, "token=[redacted]")
    .replace(/eyJ[\w-]+\.[\w-]+\.[\w-]+/g, "[redacted]")
    .replace(/sb_(secret|publishable)_[\w-]+/g, "sb_$1_[redacted]")
    .replace(/\bisr_[\w-]{8,}/g, "isr_[redacted]");
}

/** The words of whatever was thrown: redacted, at most 500 characters, and such that Postgres can store them. */
export function messageOf(error: unknown): string {
  const message = error !== null && typeof error === "object" && "message" in error ? error.message : error;
  // Neither U+0000 nor half a surrogate pair (the cut may make one) is text to Postgres: it would refuse the whole call.
  return redact(String(message)).slice(0, 500).replaceAll("\0", "\ufffd").toWellFormed();
}
