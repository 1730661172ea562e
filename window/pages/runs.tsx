/** The history of runs, and a run. */
import type { FC } from "hono/jsx";
import {
  modeSchema,
  type Run,
  type RunList,
  stateSchema,
} from "../../supabase/functions/image-sync/contract.ts";
import { duration, quantity } from "../../supabase/functions/image-sync/text/words.ts";
import { runName, startedBy } from "../../supabase/functions/image-sync/text/run.ts";
import { safeText } from "../../supabase/functions/image-sync/text/safe_text.ts";
import { LiveRun, resultOf } from "../parts/live_run.tsx";
import { link, type View } from "../view.ts";
import { Badge, Card, Empty, Figure, Name, number, Pages, Table, Time, toneOf } from "../parts/basics.tsx";

/** What the history is narrowed to. */
export type RunsChoice = { readonly mode: string; readonly state: string; readonly after: string };

/** A page of the history, newest first. */
export const Runs: FC<{ view: View; choice: RunsChoice; list: RunList }> = ({ view, choice, list }) => (
  <>
    <h1>Runs</h1>
    <form method="get" action="/runs" class="search">
      <input type="hidden" name="bucket" value={view.bucket} />
      <Choose id="mode" label="Mode" options={modeSchema.options} chosen={choice.mode} />
      <Choose id="state" label="State" options={stateSchema.options} chosen={choice.state} />
      <button type="submit">Show</button>
    </form>
    {list.runs.length === 0 ? <Empty>No run of that kind is kept.</Empty> : (
      <Table
        caption="Runs, newest first"
        class="rows"
        head={["Started", "Run", "State", "Took", "Did", "By"]}
        rows={list.runs.map((run) => [
          <a href={link(`/runs/${run.id}`, { bucket: view.bucket })}>
            <Time at={run.started_at} now={view.now} />
          </a>,
          runName(run),
          <Badge tone={toneOf(run.state)}>{run.state}</Badge>,
          duration(run.duration_seconds),
          resultOf(run),
          startedBy(run),
        ])}
      />
    )}
    <Pages
      first={choice.after === "" ? undefined : link("/runs", { bucket: view.bucket, ...choice, after: "" })}
      next={list.next === null
        ? undefined
        : link("/runs", { bucket: view.bucket, ...choice, after: list.next })}
    />
  </>
);

const Choose: FC<{ id: string; label: string; options: readonly string[]; chosen: string }> = (
  { id, label, options, chosen },
) => (
  <span class="pair">
    <label for={id}>{label}</label>
    <select id={id} name={id}>
      <option value="">any</option>
      {options.map((option) => <option value={option} selected={option === chosen}>{option}</option>)}
    </select>
  </span>
);

/** The page of a run. */
export const RunPage: FC<{ view: View; run: Run }> = ({ view, run }) => (
  <>
    <p>
      <a href={link("/runs", { bucket: view.bucket })}>All runs</a>
    </p>
    <h1>{runName(run)}</h1>
    <LiveRun view={view} run={run.state === "open" ? run : null} />
    <RunCard view={view} run={run} />
  </>
);

/** What a run did and what went wrong in it. */
export const RunCard: FC<{ view: View; run: Run }> = ({ view, run }) => (
  <section id="run" aria-labelledby="run-title">
    <div class="card">
      <header>
        <h2 id="run-title">
          <Badge tone={toneOf(run.state)}>{run.state}</Badge> {resultOf(run)}
        </h2>
      </header>
      {run.error === null ? null : (
        <p class="banner error">
          <strong>{safeText(run.error.title)}.</strong> {safeText(run.error.detail)}
        </p>
      )}
      <dl class="figures small">
        <Figure
          label="Started"
          value={<Time at={run.started_at} now={view.now} />}
          note={`by ${startedBy(run)}`}
        />
        <Figure
          label="Took"
          value={duration(run.duration_seconds)}
          note={run.stop_reason === null ? undefined : safeText(run.stop_reason.replaceAll("_", " "))}
        />
        <Figure label="Chunks" value={number(run.chunks)} note={quantity(run.invocations, "worker")} />
        <Figure label="Rows written" value={number(run.totals["rows_written"])} />
        <Figure
          label="Storage calls"
          value={number(run.totals["storage_calls"])}
          note={quantity(run.totals["retries"] ?? 0, "retry", "retries")}
        />
        <Figure
          label="Ledger"
          value={run.balanced ? "balances" : "does not balance"}
          tone={run.balanced ? "" : "error"}
        />
      </dl>
      <p class="dim">
        Run <code>{run.id}</code>
      </p>
    </div>
    {run.problems.length === 0 ? null : (
      <Card title="Problems">
        <Table
          caption="Items that failed or were skipped"
          head={["Name", "What", "Why"]}
          rows={run.problems.map((
            { name, code, detail },
          ) => [<Name of={name ?? ""} />, safeText(code.replaceAll("_", " ")), safeText(detail ?? "")])}
        />
      </Card>
    )}
    <Totals totals={run.totals} />
  </section>
);

const Totals: FC<{ totals: Run["totals"] }> = ({ totals }) => {
  const counted = Object.entries(totals).filter(([, total]) => total > 0);
  if (counted.length === 0) return null;
  return (
    <Card title="Totals">
      <Table
        caption="Totals of the run"
        head={["What", "Number"]}
        rows={counted.map(([what, total]) => [safeText(what.replaceAll("_", " ")), number(total)])}
      />
    </Card>
  );
};
