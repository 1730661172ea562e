/** Lists as a person reads them: buckets with their verdicts, the history of runs. */
import type { BucketList, ReaderList, RunList } from "../contract.ts";
import { summaryOf } from "./run.ts";
import { count, percent, renderTime } from "./words.ts";
import { safeText } from "./safe_text.ts";

/** A page of buckets, one a line, verdict first. Ends with a newline. */
export function renderBuckets({ buckets, next }: BucketList): string {
  if (buckets.length === 0) return "No bucket is kept in step. To add one: npx image-sync buckets add NAME\n";
  const lines = buckets.map((bucket) => {
    const found = [
      bucket.exists === false ? "the bucket does not exist" : "",
      bucket.errors > 0 ? `${count(bucket.errors)} ${bucket.errors === 1 ? "error" : "errors"}` : "",
      bucket.warnings > 0
        ? `${count(bucket.warnings)} ${bucket.warnings === 1 ? "warning" : "warnings"}`
        : "",
    ].filter((part) => part !== "").join(", ");
    const images = bucket.images === null
      ? "not measured yet"
      : `${count(bucket.images)} images, ${percent(bucket.coverage)} with a working URL`;
    const last = bucket.last_sync_at === null
      ? "no sync yet"
      : `last sync ${bucket.last_sync_state} ${renderTime(bucket.last_sync_at)}`;
    const course = [
      images,
      last,
      ...bucket.open_run === null ? [] : ["a run is open"],
      ...bucket.nightly ? [] : ["not nightly"],
    ];
    return `${bucket.healthy ? "✔" : "✖"} ${safeText(bucket.bucket_id)}: ${
      bucket.healthy ? "healthy" : "needs attention"
    }${found === "" ? "" : ` (${found})`}\n    ${course.join(", ")}`;
  });
  return [...lines, ...next === null ? [] : ["... and more"]].join("\n") + "\n";
}

/** A page of the history, newest first, one run a line. Ends with a newline. */
export function renderRuns({ runs, next }: RunList): string {
  if (runs.length === 0) return "No run of that kind is kept\n";
  const lines = runs.flatMap((run) => [
    `${renderTime(run.started_at)}  ${run.mode} of ${safeText(run.bucket_id)}: ${summaryOf(run)}`,
    `    ${run.id}`,
  ]);
  return [...lines, ...next === null ? [] : [`... and more: after ${next}`]].join("\n") + "\n";
}

/** A page of readers, one a line. Ends with a newline. */
export function renderReaders({ readers, next }: ReaderList): string {
  if (readers.length === 0) {
    return "Nobody has a right of their own yet. To add somebody: npx image-sync reader add NAME --https\n";
  }
  const lines = readers.map(({ name, kind, bucket_id: bucket, last_used_at: lastUsed }) => {
    const use = lastUsed !== null
      ? `last used ${renderTime(lastUsed)}`
      : kind === "https"
      ? "not used yet"
      : "a database role: its last use is not known";
    return `${safeText(name)}: ${kind.toUpperCase()}, register of ${safeText(bucket)}, ${use}`;
  });
  return [...lines, ...next === null ? [] : ["... and more"]].join("\n") + "\n";
}
