/** A run as a person reads it: its progress while it is open, its outcome afterwards, and what to do next. */
import type { Run } from "../contract.ts";
import { bucketFlag } from "./commands.ts";
import { safeText } from "./safe_text.ts";
import {
  capital,
  count,
  duration,
  name,
  quantity,
  renderTime,
  type Row,
  rows,
  sampleLines,
  sections,
} from "./words.ts";

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

/** How a run went, in one line: its state and why, how long it took, what it did. */
export function summaryOf(run: Run): string {
  return summaryParts(run).join(", ");
}

/** The parts of {@linkcode summaryOf}: the state comes first. */
export function summaryParts(run: Run): string[] {
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

/** What kind of run it is. */
export function runName(run: Run): string {
  return run.mode === "cleanup" && run.plan_id === null ? "Cleanup (dry run)" : capital(run.mode);
}

/** Who started it. */
export function startedBy(run: Run): string {
  return run.trigger === "schedule" ? "the schedule" : "a request";
}
