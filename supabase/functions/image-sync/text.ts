/**
 * The documents of the API as a person reads them: `Accept: text/plain` and the commands print the same. Pure: the only clock is
 * the document's own. No colours, and no character that a terminal would obey.
 */
import { bucketFlag, commandOf } from "./commands.ts";
import type { Action, FileStatus, Finding, Report, Run } from "./contract.ts";
import { startRequestSchema } from "./contract.ts";
import { safeText } from "./safe_text.ts";

type Row = readonly [label: string, text: string];

// A difference or a finding shows its first few names; all of the samples are in the JSON.
const SAMPLES_SHOWN = 5;
const LABEL_WIDTH = 12;
const LEVEL_SIGNS = { error: "✖", warning: "▲", info: "ℹ" } as const;
const DIFFERENCES = ["missing", "orphaned", "collided"] as const;

/** The status report: the verdict first and, where the eye is in the end, last, with the one thing to do next. Ends with a newline. */
export function renderReport(report: Report): string {
  const now = Date.parse(report.generated_at);
  return sections([
    [verdict(report), `  ${whenMeasured(report, now)}`],
    rows(sizes(report)),
    differences(report),
    findings(report.findings),
    rows(runs(report, now)),
    [verdict(report), ...nextOf(report)],
  ]);
}

/** One run: its progress while it is open, its outcome afterwards, and what to do next. Ends with a newline. */
export function renderRun(run: Run): string {
  const title = `${runName(run)} of ${name(run.bucket_id)}: ${run.state}`;
  return sections([
    [title],
    rows([...course(run), ...work(run), ...trouble(run)]),
    problems(run),
    listOf(run),
    [title, ...nextStep(run)],
  ]);
}

/** Why a file is, or is not, in sync. Ends with a newline. */
export function renderFile(file: FileStatus): string {
  return sections([
    [`${name(file.file_name)} in ${name(file.bucket_id)}: ${file.in_sync ? "in sync" : "not in sync"}`],
    file.reasons.map(({ code, detail }) => `  ${safeText(detail)} [${safeText(code)}]`),
  ]);
}

/** How far a run is, in one line: `1,200 of 4,000 (30 %), 410 a second, about 7 s left`. */
export function renderProgress({ progress }: Pick<Run, "progress">): string {
  const parts = [
    progress.total_estimate === null
      ? count(progress.done)
      : `${count(progress.done)} of ${count(progress.total_estimate)} (${progress.percent} %)`,
  ];
  if (progress.rate_per_second > 0) parts.push(`${count(progress.rate_per_second)} a second`);
  if ((progress.eta_seconds ?? 0) > 0) parts.push(`about ${duration(progress.eta_seconds ?? 0)} left`);
  return parts.join(", ");
}

/** The same where there is little room: `30 %, 7 s left`. */
export function renderShortProgress({ progress }: Pick<Run, "progress">): string {
  const left = (progress.eta_seconds ?? 0) > 0 ? `, ${duration(progress.eta_seconds ?? 0)} left` : "";
  return `${progress.percent} %${left}`;
}

/** A moment in GMT, as the schedule has it: `2026-11-24 02:00 GMT`. */
export function renderTime(timestamp: string): string {
  const time = new Date(timestamp);
  if (Number.isNaN(time.getTime())) return safeText(timestamp);
  return `${time.toISOString().slice(0, 16).replace("T", " ")} GMT`;
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

function findings(all: readonly Finding[]): string[] {
  if (all.length === 0) return ["  Nothing to look at"];
  return all.flatMap(({ code, level, title, count: number, samples, remediation, action }) => {
    // What is or is not the case has a count of 1, which says nothing.
    const much = number === 1 && samples.length === 0 ? "" : `: ${count(number)}`;
    // The names of a difference stand above already.
    const isDifference = DIFFERENCES.some((kind) => kind === code);
    return [
      `  ${LEVEL_SIGNS[level]} ${safeText(title)}${much} [${safeText(code)}]`,
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
  const running = versions === undefined
    ? ""
    : `schema ${safeText(versions.schema)}, function ${safeText(versions.function ?? "unknown")}`;
  return [...last, ["Open run", open], ["Next run", next], ["Version", running]];
}

function summary(run: Run, now: number): string {
  const [state, ...rest] = summaryParts(run);
  return [state, `${renderTime(run.started_at)} (${age(run.started_at, now)}, by ${startedBy(run)})`, ...rest]
    .join(", ");
}

/** How a run went, in one line: its state and why, how long it took, what it did. */
export function summaryOf(run: Run): string {
  return summaryParts(run).join(", ");
}

function summaryParts(run: Run): string[] {
  const kind = run.mode === "cleanup" && run.plan_id === null ? "dry run " : "";
  const cause = run.error === null ? "" : `: ${safeText(run.error.title)}`;
  return [
    `${kind}${run.state}${cause}`,
    run.finished_at === null ? renderProgress(run) : `took ${duration(run.duration_seconds)}`,
    ...results(run).map(([number, word]) => `${count(number)} ${word}`),
  ];
}

// What a run of this kind is there to do, and what it could not.
function results(run: Run): [number: number | undefined, word: string][] {
  const { totals } = run;
  // What a run that only counts did not get to is unknown, not 0.
  const counts = run.mode === "analyze" || run.mode === "verify" ||
    (run.mode === "cleanup" && run.plan_id === null);
  if (counts && (run.state === "failed" || run.state === "cancelled")) return [];
  const all: Record<Run["mode"], [number | undefined, string][]> = {
    sync: [
      [totals["inserted"], "inserted"],
      ...((totals["moved"] ?? 0) > 0
        ? [[totals["moved"], "moved"] satisfies [number | undefined, string]]
        : []),
      [totals["signed"], "signed"],
      [totals["failed"], "failed"],
    ],
    analyze: [[totals["missing"], "missing"], [totals["orphaned"], "orphaned"], [
      totals["collided"],
      "collided",
    ]],
    verify: [[totals["shown"], "show an image"], [
      run.state === "open" ? undefined : (totals["opened"] ?? 0) - (totals["shown"] ?? 0),
      "do not",
    ]],
    cleanup: run.plan_id === null
      ? [[totals["orphaned"], "would be removed"]]
      : [[totals["removed"], "removed"], [totals["skipped"], "kept"]],
    restore: [[totals["restored"], "restored"], [totals["skipped"], "skipped"]],
  };
  return all[run.mode];
}

function course(run: Run): Row[] {
  return [
    ["Run", `${run.id}, started by ${startedBy(run)}`],
    ["Started", renderTime(run.started_at)],
    run.finished_at === null
      ? ["Progress", renderProgress(run)]
      : ["Finished", `${renderTime(run.finished_at)} after ${duration(run.duration_seconds)}`],
  ];
}

function work(run: Run): Row[] {
  const { totals } = run;
  const listed: Row[] = (totals["listed"] ?? 0) === 0 ? [] : [
    ["Listed", `${quantity(totals["listed"] ?? 0, "file")}, ${count(totals["images"])} of them images`],
    ["Records", recordCounts(run)],
  ];
  return [
    ...listed,
    ["Result", results(run).map(([number, word]) => `${count(number)} ${word}`).join(", ")],
    [
      "Work",
      `${quantity(run.chunks, "chunk")}, ${quantity(run.invocations, "invocation")}, ` +
      `${quantity(totals["rows_written"] ?? 0, "row")} written, ` +
      `${quantity(totals["storage_calls"] ?? 0, "Storage call")}, ${
        quantity(totals["retries"] ?? 0, "retry", "retries")
      }`,
    ],
    [
      "Ledger",
      run.balanced
        ? "balances"
        : "does not balance: the totals do not add up, so the run does not count as a success",
    ],
  ];
}

function recordCounts({ totals }: Run): string {
  const words = [["recorded", "were there"], ["inserted", "inserted"], ["missing", "missing"]] as const;
  const rare = [["moved", "moved along with their files"], ["unmoved", "could not follow theirs"], [
    "collided",
    "refused by the table",
  ], ["vanished", "vanished meanwhile"]] as const;
  return [...words, ...rare.filter(([key]) => (totals[key] ?? 0) > 0)]
    .map(([key, word]) => `${count(totals[key])} ${word}`)
    .join(", ");
}

function trouble(run: Run): Row[] {
  return [
    ["Stopped", run.stop_reason === null ? "" : safeText(run.stop_reason.replaceAll("_", " "))],
    ["Error", run.error === null ? "" : `${safeText(run.error.title)}. ${safeText(run.error.detail)}`],
  ];
}

function problems(run: Run): string[] {
  if (run.problems.length === 0) return [];
  const lines = run.problems.map((problem) => {
    const detail = problem.detail ?? "";
    return `    ${name(problem.name ?? "")}: ${safeText(problem.code)}${
      detail === "" ? "" : `, ${safeText(detail)}`
    }`;
  });
  return ["  Problems", ...lines];
}

// What a dry run would remove.
function listOf({ plan, state }: Run): string[] {
  if (plan === undefined || state !== "succeeded" || plan.count === 0) return [];
  return [
    `  ${quantity(plan.count, "record")} without a file:`,
    ...sampleLines({ samples: plan.samples, count: plan.count, indent: 4, shown: plan.samples.length }),
  ];
}

// The commands that a run leads to.
function nextStep(run: Run): string[] {
  const { plan, state, totals } = run;
  const flag = bucketFlag(run.bucket_id);
  if (plan !== undefined && state === "succeeded") {
    if (plan.count === 0) return ["Nothing to clean up: every record has its file"];
    return [
      ...(plan.count > plan.samples.length
        ? [`To see all of them: npx image-sync cleanup --dry-run --all${flag}`]
        : []),
      `To remove them: npx image-sync cleanup --confirm ${run.id}${flag}`,
    ];
  }
  if (run.mode === "cleanup" && (totals["removed"] ?? 0) > 0) {
    return [`To put the removed records back: npx image-sync restore ${run.id}${flag}`];
  }
  const isBroken = run.mode === "verify" && totals["opened"] !== totals["shown"];
  return state === "open" || state === "succeeded" && !isBroken ? [] : [`Next: npx image-sync status${flag}`];
}

function sampleLines(
  { samples, count: number, indent, shown = SAMPLES_SHOWN }: {
    samples: readonly string[];
    count: number;
    indent: number;
    shown?: number;
  },
): string[] {
  const lines = samples.slice(0, shown).map(name);
  const more = number - lines.length;
  if (lines.length > 0 && more > 0) lines.push(`and ${count(more)} more`);
  return lines.map((line) => " ".repeat(indent) + line);
}

function runName(run: Run): string {
  return run.mode === "cleanup" && run.plan_id === null ? "Cleanup (dry run)" : capital(run.mode);
}

function startedBy(run: Run): string {
  return run.trigger === "schedule" ? "the schedule" : "a request";
}

// A name whose ends cannot be seen is quoted.
function name(text: string): string {
  return text === "" || text.trim() !== text ? `"${safeText(text)}"` : safeText(text);
}

function sections(all: readonly (readonly string[])[]): string {
  return all.filter((lines) => lines.length > 0).map((lines) => lines.join("\n")).join("\n\n") + "\n";
}

// Rows without a text have nothing to say.
function rows(all: readonly Row[]): string[] {
  return all.filter(([, text]) => text !== "").map(([label, text]) =>
    `  ${label.padEnd(LABEL_WIDTH)}  ${text}`
  );
}

const numbers = new Intl.NumberFormat("en-US", { maximumFractionDigits: 1 });

/** A number with its thousands apart; `unknown` for none. */
export function count(number: number | null | undefined): string {
  return number === null || number === undefined ? "unknown" : numbers.format(number);
}

function quantity(number: number, one: string, many = `${one}s`): string {
  return `${count(number)} ${number === 1 ? one : many}`;
}

/** A part in percent, rounded down: 100 % means all of them. */
export function percent(fraction: number | null): string {
  return fraction === null ? "an unknown part" : `${count(Math.floor(fraction * 1000) / 10)} %`;
}

function bytes(number: number): string {
  const units = ["bytes", "kB", "MB", "GB", "TB", "PB"];
  const power = number < 1000 ? 0 : Math.min(Math.floor(Math.log10(number) / 3), units.length - 1);
  return `${count(number / 1000 ** power)} ${units[power]}`;
}

function duration(seconds: number): string {
  if (seconds < 10) return `${count(seconds)} s`;
  if (seconds < 60) return `${Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours >= 48) return `${Math.round(hours / 24)} days`;
  return minutes % 60 === 0 ? `${hours} h` : `${hours} h ${minutes % 60} min`;
}

function age(timestamp: string, now: number): string {
  const seconds = (now - Date.parse(timestamp)) / 1000;
  if (Number.isNaN(seconds)) return "at an unknown time";
  if (Math.abs(seconds) < 1) return "just now";
  return seconds < 0 ? `in ${duration(Math.ceil(-seconds))}` : `${duration(Math.floor(seconds))} ago`;
}

function capital(word: string): string {
  return word.charAt(0).toUpperCase() + word.slice(1);
}
