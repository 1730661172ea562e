/** The report as a person reads it, and what it says of one file. Pure: the only clock is the document's own. */
import type { Action, FileStatus, Finding, Report } from "../contract.ts";
import { startRequestSchema } from "../contract.ts";
import { fitOf } from "../version.ts";
import { commandOf } from "./commands.ts";
import { renderProgress, runName, startedBy, summaryParts } from "./run.ts";
import { safeText } from "./safe_text.ts";
import {
  age,
  bytes,
  capital,
  count,
  LABEL_WIDTH,
  name,
  percent,
  quantity,
  renderTime,
  type Row,
  rows,
  sampleLines,
  SAMPLES_SHOWN,
  sections,
} from "./words.ts";

const LEVEL_SIGNS = { error: "✖", warning: "▲", info: "ℹ" } as const;
const DIFFERENCES = ["missing", "orphaned", "collided"] as const;

/** The status report: the verdict first and, where the eye is in the end, last, with the one thing to do next. Ends with a newline. */
export function renderReport(report: Report): string {
  const now = Date.parse(report.generated_at);
  return sections([
    [verdict(report), `  ${whenMeasured(report, now)}`],
    rows(sizes(report)),
    differences(report),
    findings(report.findings, now),
    rows(runs(report, now)),
    [verdict(report), ...nextOf(report)],
  ]);
}

/** Why a file is, or is not, in sync. Ends with a newline. */
export function renderFile(file: FileStatus): string {
  return sections([
    [`${name(file.file_name)} in ${name(file.bucket_id)}: ${file.in_sync ? "in sync" : "not in sync"}`],
    file.reasons.map(({ code, detail }) => `  ${safeText(detail)} [${safeText(code)}]`),
  ]);
}

function verdict(report: Report): string {
  const found = (["error", "warning"] as const)
    .map((level) => [report.findings.filter((finding) => finding.level === level).length, level] as const)
    .filter(([number]) => number > 0)
    .map(([number, level]) => quantity(number, level))
    .join(", ");
  const state = report.healthy ? "healthy" : "needs attention";
  const shown = report.healthy || report.coverage.signed === null || report.coverage.signed >= 0.99
    ? ""
    : `: ${percent(report.coverage.signed)} of the images can be seen`;
  return `${name(report.bucket.id)}: ${state}${found === "" ? "" : ` (${found})`}${shown}`;
}

function whenMeasured({ measured_at }: Report, now: number): string {
  if (measured_at === null) return "Nothing was measured yet: start an analyze or a sync";
  return `Measured ${renderTime(measured_at)}, ${age(measured_at, now)}`;
}

function sizes(report: Report): Row[] {
  const { bucket, records, coverage, probe } = report;
  if (bucket.objects === null) return [];
  const extensions = Object.entries(bucket.by_extension)
    .sort(([, one], [, other]) => other - one)
    .map(([extension, files]) => `${safeText(extension)} ${count(files)}`);
  return [
    [
      "Bucket",
      `${quantity(bucket.objects, "file")}, ${bytes(bucket.bytes ?? 0)}, ${
        quantity(bucket.images ?? 0, "image")
      }`,
    ],
    ["", extensions.join(", ")],
    ["Records", quantity(records.total ?? 0, "record")],
    [
      "",
      `${count(records.signed)} with a working URL, ${count(records.unsigned)} without one, ${
        count(records.expired)
      } expired`,
    ],
    ["", records.soonest_expiry === null ? "" : `first URL expires ${renderTime(records.soonest_expiry)}`],
    [
      "Coverage",
      `${percent(coverage.recorded)} of the images have a record, ${percent(coverage.signed)} a working URL`,
    ],
    [
      "Probe",
      probe.checked === 0 ? "" : `${count(probe.ok)} of ${count(probe.checked)} random URLs show an image`,
    ],
    ...probe.failures.slice(0, SAMPLES_SHOWN).map((failure): Row => ["", `  ${probeFailure(failure)}`]),
    [
      "Verified",
      report.verified === null || report.verified === undefined
        ? ""
        : `${count(report.verified.ok)} of ${quantity(report.verified.checked, "URL")} showed an image, ${
          renderTime(report.verified.at)
        }`,
    ],
  ];
}

function probeFailure(
  { name: file, status, content_type, error }: Report["probe"]["failures"][number],
): string {
  const answer = [status === null ? undefined : `HTTP ${status}`, content_type, error]
    .filter((part) => part !== null && part !== undefined);
  return `${name(file)}: ${safeText(answer.join(", "))}`;
}

function differences({ difference }: Report): string[] {
  const meaning = {
    missing: ["image without a record", "images without a record"],
    orphaned: ["record without a file", "records without a file"],
    collided: ["image whose record the table refuses", "images whose record the table refuses"],
  } as const;
  return DIFFERENCES.flatMap((kind) => {
    const { count: number, samples } = difference[kind];
    const [one, many] = meaning[kind];
    if (number === null) return [];
    return [
      ...rows([[capital(kind), quantity(number, one, many)]]),
      ...sampleLines({ samples, count: number, indent: LABEL_WIDTH + 4 }),
    ];
  });
}

function findings(all: readonly Finding[], now: number): string[] {
  if (all.length === 0) return ["  Nothing to look at"];
  return all.flatMap(({ code, level, title, count: number, samples, remediation, action, since }) => {
    // What is or is not the case has a count of 1, which says nothing.
    const much = number === 1 && samples.length === 0 ? "" : `: ${count(number)}`;
    // The names of a difference stand above already.
    const isDifference = DIFFERENCES.some((kind) => kind === code);
    return [
      `  ${LEVEL_SIGNS[level]} ${safeText(title)}${much} [${safeText(code)}]`,
      ...(since === undefined ? [] : [`    Seen since ${renderTime(since)}, ${age(since, now)}`]),
      ...(isDifference ? [] : sampleLines({ samples, count: number, indent: 6 })),
      `    ${safeText(remediation)}`,
      ...actionText(action ?? null).map((line) => `    ${line}`),
    ];
  });
}

/** An action as it can be typed, or pasted into the SQL editor; no line where there is none. */
export function actionText(action: Action | null): string[] {
  if (action === null) return [];
  if ("sql" in action) return [`SQL: ${safeText(action.sql)}`];
  const request = startRequestSchema.safeParse(action.request).data;
  return request === undefined ? [] : [`Run: ${commandOf(request)}`];
}

// The first finding that a machine can do something about.
function nextOf({ findings }: Report): string[] {
  const [action] = findings.flatMap((finding) => finding.level === "info" ? [] : finding.action ?? []);
  if (action === undefined) return [];
  return "sql" in action
    ? ["Next: the SQL above"]
    : actionText(action).map((line) => line.replace("Run:", "Next:"));
}

function runs({ last_runs, open_run, next_run_at, versions }: Report, now: number): Row[] {
  const last = (["sync", "analyze", "verify", "cleanup", "restore"] as const).flatMap((mode): Row[] => {
    const run = last_runs[mode] ?? null;
    if (run !== null) return [[`Last ${mode}`, summary(run, now)]];
    return mode === "sync" ? [["Last sync", "none yet"]] : [];
  });
  const open = open_run === null
    ? ""
    : `${runName(open_run)}, ${renderProgress(open_run)}; run ${open_run.id}`;
  const next = next_run_at === null
    ? "none is scheduled"
    : `${renderTime(next_run_at)}, ${age(next_run_at, now)}`;
  return [...last, ["Open run", open], ["Next run", next], ["Version", versionsInWords(versions)]];
}

// Both have one version; where one is behind, the way on is beside it.
function versionsInWords(versions: Report["versions"]): string {
  if (versions === undefined) return "";
  const schema = safeText(versions.schema);
  if (versions.function === null) return `schema ${schema}, function unknown`;
  const both = `schema ${schema}, function ${safeText(versions.function)}`;
  switch (fitOf(versions.schema, versions.function)) {
    case "fits":
      return both;
    case "older_function":
      return `${both}: deploy the newer one with npx supabase functions deploy image-sync --use-api`;
    case "older_schema":
      return `${both}: apply its migrations with npx supabase db push --remote`;
    case "mismatch":
      return `${both}: they do not go together`;
  }
}

function summary(run: NonNullable<Report["open_run"]>, now: number): string {
  const [state, ...rest] = summaryParts(run);
  return [state, `${renderTime(run.started_at)} (${age(run.started_at, now)}, by ${startedBy(run)})`, ...rest]
    .join(", ");
}
