/** The open run: how far it is, how fast, how long still, and its end by hand. */
import type { FC } from "hono/jsx";
import type { Run } from "../../supabase/functions/image-sync/contract.ts";
import { duration, quantity } from "../../supabase/functions/image-sync/text/words.ts";
import { safeText } from "../../supabase/functions/image-sync/text/safe_text.ts";
import { runName } from "../../supabase/functions/image-sync/text/run.ts";
import { link, type View } from "../view.ts";
import { Change, Figure, number, Time } from "./basics.tsx";

/** A worker that is alive closes a chunk every few seconds, in ms. */
const SILENCE = 10_000;

/** The card of the open run; an empty place where none is open. */
export const LiveRun: FC<{ view: View; run: Run | null }> = ({ view, run }) =>
  run === null
    ? <section id="live-run" hidden></section>
    : (
      <section id="live-run" class="card live" aria-labelledby="live-run-title">
        <header>
          <h2 id="live-run-title">
            <a href={link(`/runs/${run.id}`, { bucket: view.bucket })}>{runName(run)}</a> is open
          </h2>
          <Change view={view} action="/cancel" fields={{ run: run.id }}>
            <button type="submit" id="cancel-run" title="Ends it. What it has done so far stays.">
              Cancel
            </button>
          </Change>
        </header>
        <Progress run={run} />
        <p role="status" class="dim">{standOf(run, view.now)}</p>
        <dl class="figures small">
          <Figure
            label="Rate"
            value={run.progress.rate_per_second > 0
              ? `${number(Math.round(run.progress.rate_per_second))} a second`
              : "–"}
          />
          <Figure label="Time left" value={leftOf(run)} />
          <Figure label="Chunks" value={number(run.chunks)} />
          <Figure label="Workers so far" value={number(run.invocations)} />
          <Figure label="Retries" value={number(run.totals["retries"] ?? 0)} />
          <Figure label="Started" value={<Time at={run.started_at} now={view.now} />} />
        </dl>
      </section>
    );

const Progress: FC<{ run: Run }> = ({ run: { progress, mode } }) => (
  <p class="progress">
    <progress value={progress.percent} max={100} aria-label={`Progress of the ${mode}`}></progress>
    <span>
      <strong>{progress.percent} %</strong> · {number(progress.done)}
      {progress.total_estimate === null ? null : ` of ${number(progress.total_estimate)}`}
    </span>
  </p>
);

/** What the run is doing, as far as that can be seen from outside. */
function standOf(run: Run, now: number): string {
  const silence = run.moved_at === undefined ? 0 : now - Date.parse(run.moved_at);
  if (silence > SILENCE) {
    return `Nothing has moved for ${
      duration(Math.floor(silence / 1000))
    }: waiting for the next worker, who goes on where the last one stopped.`;
  }
  if (run.error !== null) return `${safeText(run.error.title)}. The run goes on.`;
  return run.invocations === 0 ? "Waiting for the first worker." : "At work.";
}

function leftOf({ progress }: Run): string {
  if (progress.eta_seconds === null) return "–";
  return progress.eta_seconds === 0 ? "almost done" : `about ${duration(progress.eta_seconds)}`;
}

/** What the finished run did, in a line. */
export function resultOf({ totals, mode, plan_id, state }: Run): string {
  const of = (key: string, word: string) => (totals[key] ?? 0) > 0 ? [`${number(totals[key])} ${word}`] : [];
  const parts: Readonly<Record<Run["mode"], readonly string[]>> = {
    sync: [
      ...of("inserted", "inserted"),
      ...of("moved", "moved"),
      ...of("signed", "signed"),
      ...of("failed", "failed"),
    ],
    analyze: [...of("missing", "missing"), ...of("orphaned", "orphaned"), ...of("collided", "collided")],
    verify: [`${number(totals["shown"])} of ${quantity(totals["opened"] ?? 0, "URL")} show an image`],
    cleanup: plan_id === null
      ? [`${number(totals["orphaned"])} listed`]
      : [...of("removed", "archived"), ...of("skipped", "kept")],
    restore: [...of("restored", "put back"), ...of("skipped", "left")],
  };
  return parts[mode].join(", ") || (state === "open" ? "nothing yet" : "nothing to do");
}
