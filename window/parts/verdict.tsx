/** The verdict, how old it is, and the figures behind it. */
import type { FC } from "hono/jsx";
import type { Report } from "../../supabase/functions/image-sync/contract.ts";
import { safeText } from "../../supabase/functions/image-sync/text/safe_text.ts";
import { bytes, percent, quantity } from "../../supabase/functions/image-sync/text/words.ts";
import { link, type View } from "../view.ts";
import { Change, Figure, number, Time } from "./basics.tsx";

/** What to think of the bucket, and what to do about it from here. */
export const Verdict: FC<{ view: View; report: Report }> = ({ view, report }) => (
  <section
    id="verdict"
    class={`card verdict ${report.healthy ? "good" : "error"}`}
    aria-labelledby="verdict-title"
  >
    <div>
      <h1 id="verdict-title">{report.healthy ? "Healthy" : "Needs attention"}</h1>
      <p>{reasonOf(report)}</p>
      <p class="dim">
        {report.measured_at === null ? "Nothing was measured yet: count first, or sync." : (
          <>
            Measured <Time at={report.measured_at} now={view.now} />.
          </>
        )} {report.next_run_at === null ? "No run is scheduled." : (
          <>
            The next run is due <Time at={report.next_run_at} now={view.now} />.
          </>
        )}
      </p>
    </div>
    <Starts view={view} />
  </section>
);

function reasonOf({ findings, coverage, measured_at }: Report): string {
  const errors = findings.filter(({ level }) => level === "error").length;
  const warnings = findings.filter(({ level }) => level === "warning").length;
  const found = [
    ...errors > 0 ? [quantity(errors, "error")] : [],
    ...warnings > 0 ? [quantity(warnings, "warning")] : [],
  ].join(" and ");
  const seen = measured_at === null ? "" : `${percent(coverage.signed)} of the images can be seen`;
  return [seen, found].filter((part) => part !== "").join(", ") || "Nothing to look at";
}

const STARTS = [
  ["sync", "Sync", "Inserts missing records, signs URLs that are due. Deletes nothing."],
  ["analyze", "Analyze", "Counts and compares. Changes nothing."],
  ["verify", "Verify", "Opens every URL as a reader does. Changes nothing but the report."],
] as const;

const Starts: FC<{ view: View }> = ({ view }) => (
  <div class="starts">
    {STARTS.map(([mode, name, meaning]) => (
      <Change view={view} action="/start" fields={{ request: JSON.stringify({ mode, bucket: view.bucket }) }}>
        <button type="submit" class={mode === "sync" ? "primary" : ""} title={meaning} id={`start-${mode}`}>
          {name}
        </button>
      </Change>
    ))}
  </div>
);

/** The figures: files, records, and how many of the images a reader sees. */
export const Coverage: FC<{ view: View; report: Report }> = ({ view, report }) => {
  const { bucket, records, coverage, difference, probe, verified } = report;
  return (
    <section id="coverage" class="card" aria-labelledby="coverage-title">
      <header>
        <h2 id="coverage-title">Coverage</h2>
      </header>
      <dl class="figures">
        <Figure
          label="Files"
          value={number(bucket.objects)}
          note={bucket.bytes === null ? undefined : bytes(bucket.bytes)}
        />
        <Figure label="Images" value={number(bucket.images)} note={extensionsOf(report)} />
        <Figure label="Records" value={number(records.total)} note={missingOf(view, difference)} />
        <Figure
          label="Working URLs"
          value={number(records.signed)}
          note={records.unsigned === null
            ? undefined
            : `${number(records.unsigned)} without, ${number(records.expired)} expired`}
        />
      </dl>
      {coverage.signed === null ? null : (
        <div class="meters">
          <Meter label="have a record" fraction={coverage.recorded} />
          <Meter label="have a working URL" fraction={coverage.signed} />
        </div>
      )}
      <p class="dim">
        {probe.checked === 0
          ? null
          : `The last sync opened ${quantity(probe.checked, "random URL")}: ${
            number(probe.ok)
          } showed an image. `}
        {verified === null || verified === undefined ? "No verify has opened every URL yet." : (
          <>
            A verify opened {quantity(verified.checked, "URL")} <Time at={verified.at} now={view.now} />:{" "}
            {number(verified.ok)} showed an image.
          </>
        )}
      </p>
    </section>
  );
};

const Meter: FC<{ label: string; fraction: number | null }> = ({ label, fraction }) => (
  <p class="meter">
    <span>
      <strong>{percent(fraction)}</strong> of the images {label}
    </span>
    <meter
      value={String(fraction ?? 0)}
      min="0"
      max="1"
      low={0.99}
      optimum={1}
      aria-label={`Images that ${label}`}
    >
    </meter>
  </p>
);

function extensionsOf({ bucket }: Report): string | undefined {
  const all = Object.entries(bucket.by_extension).toSorted(([, one], [, other]) => other - one);
  if (all.length === 0) return undefined;
  const more = all.length > 3 ? ` and ${all.length - 3} more` : "";
  return all.slice(0, 3).map(([extension, files]) => `${number(files)} ${safeText(extension)}`).join(", ") +
    more;
}

function missingOf(view: View, difference: Report["difference"]) {
  if (difference.missing.count === null) return undefined;
  return (
    <>
      <a href={link("/pictures", { bucket: view.bucket, state: "missing" })}>
        {number(difference.missing.count)} missing
      </a>,{" "}
      <a href={link("/pictures", { bucket: view.bucket, state: "orphaned" })}>
        {number(difference.orphaned.count)} orphaned
      </a>
    </>
  );
}
