/** Every bucket that is kept in step, with its verdict. */
import type { FC } from "hono/jsx";
import type { BucketList } from "../../supabase/functions/image-sync/contract.ts";
import { percent, quantity } from "../../supabase/functions/image-sync/text/words.ts";
import { link, type View } from "../view.ts";
import { Badge, Change, Empty, Name, number, Time } from "../parts/basics.tsx";

type Summary = BucketList["buckets"][number];

/** The page of buckets. */
export const Buckets: FC<{ view: View; list: BucketList }> = ({ view, list: { buckets } }) => (
  <>
    <h1>Buckets</h1>
    {buckets.length === 0
      ? <Empty>No bucket is kept in step yet.</Empty>
      : <ul class="buckets">{buckets.map((bucket) => <Bucket view={view} bucket={bucket} />)}</ul>}
    <section class="card" aria-labelledby="add-title">
      <h2 id="add-title">Keep another one in step</h2>
      <p>It gets the default settings, and the next night looks at it. Files and records stay as they are.</p>
      <Change view={view} action="/add-bucket" class="search">
        <label for="name">Name of the bucket</label>
        <input id="name" name="name" required maxlength={100} autocomplete="off" spellcheck={false} />
        <button type="submit" class="primary">Add</button>
      </Change>
    </section>
  </>
);

const Bucket: FC<{ view: View; bucket: Summary }> = ({ view, bucket }) => (
  <li class="card">
    <h2>
      <a href={link("/", { bucket: bucket.bucket_id })}>
        <Name of={bucket.bucket_id} />
      </a>{" "}
      <Badge tone={bucket.healthy ? "good" : "error"}>{bucket.healthy ? "healthy" : "needs attention"}</Badge>
    </h2>
    <p>{factsOf(bucket)}</p>
    <p class="dim">
      {bucket.last_sync_at === null ? "No sync yet." : (
        <>
          Last sync {bucket.last_sync_state} <Time at={bucket.last_sync_at} now={view.now} />.
        </>
      )}
      {bucket.open_run === null ? "" : " A run is open."}
      {bucket.nightly ? "" : " Not part of the night."}
    </p>
    <details class="mend">
      <summary>Take it out</summary>
      <p>No run looks at it any more, and its URLs expire. Its files, its records and its history stay.</p>
      <Change view={view} action="/remove-bucket" fields={{ name: bucket.bucket_id }}>
        <button type="submit" class="danger">Take it out</button>
      </Change>
    </details>
  </li>
);

function factsOf({ exists, errors, warnings, images, coverage }: Summary): string {
  return [
    exists === false ? "The bucket does not exist" : "",
    images === null
      ? "not measured yet"
      : `${number(images)} images, ${percent(coverage)} with a working URL`,
    errors > 0 ? quantity(errors, "error") : "",
    warnings > 0 ? quantity(warnings, "warning") : "",
  ].filter((part) => part !== "").join(", ");
}
