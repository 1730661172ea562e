import { SingleBar } from "cli-progress";
import type { Run } from "../supabase/functions/image-sync/contract.ts";
import { renderProgress, renderShortProgress } from "../supabase/functions/image-sync/text.ts";
import type { Host } from "./host.ts";

/** How far something is: a run, or work of a command's own. */
export type Step = Pick<Run, "progress" | "finished_at"> & {
  /** What is done, as a word. */
  readonly mode: string;
};

/** Shows on standard error how far a run is. */
export type Progress = {
  update(run: Step): void;
  /** Says that the run cannot be seen at the moment; the next update takes that back. */
  lose(): void;
  /** Leaves the terminal as it was. Repeating it is harmless. */
  stop(): void;
};

const LINE_INTERVAL = 3_000; // ms
const LONGEST_BAR = 30;
const SHORTEST_BAR = 5;
const LOST = "connection lost, trying again";

/** A bar on a terminal; elsewhere a line when something changed, at most one in three seconds. */
export function createProgress({ stderr }: Pick<Host, "stderr">): Progress {
  return stderr.isTTY === true ? createBar(stderr) : createLines(stderr);
}

/** Counts what a command does by itself, and shows it as a run's progress is shown. */
export type Tally = {
  /** So many are done now, of so many; `undefined` where nobody knows. */
  update(done: number, total: number | undefined): void;
  /** Shows that so many were all. */
  finish(): void;
  /** Leaves the terminal as it was. Repeating it is harmless. */
  stop(): void;
};

/** Begins to count; the time left follows from how long it took so far. */
export function createTally(host: Pick<Host, "stderr">, what: string): Tally {
  const progress = createProgress(host);
  const startedAt = performance.now();
  const show = (done: number, total: number | undefined, finishedAt: string | null) => {
    const seconds = (performance.now() - startedAt) / 1000;
    progress.update({ mode: what, progress: paceOf(done, total, seconds), finished_at: finishedAt });
  };
  let latest = 0;
  return {
    update(done, total) {
      latest = done;
      show(done, total, null);
    },
    finish: () => show(latest, latest, new Date().toISOString()),
    stop: () => progress.stop(),
  };
}

/** How far and how fast, as a run says it. */
function paceOf(done: number, total: number | undefined, seconds: number): Run["progress"] {
  const rate = seconds > 0.5 ? done / seconds : 0;
  const estimate = total === undefined ? null : Math.max(total, done);
  return {
    done,
    total_estimate: estimate,
    percent: estimate === null || estimate === 0 ? 0 : Math.floor(100 * done / estimate),
    rate_per_second: rate < 10 ? Math.round(rate * 10) / 10 : Math.round(rate),
    eta_seconds: estimate === null || rate === 0 ? null : Math.ceil((estimate - done) / rate),
  };
}

function createBar(stream: Host["stderr"] & { readonly columns?: number }): Progress {
  const bar = new SingleBar({
    stream,
    // How long it still takes is never cut off: the bar gives way first, then the words are fewer.
    format: (_options, { progress }, { texts }: { texts: readonly string[] }) => {
      const columns = stream.columns ?? 80;
      const text = texts.find((text) => text.length + SHORTEST_BAR + 3 < columns) ?? texts.at(-1) ?? "";
      const size = Math.max(SHORTEST_BAR, Math.min(LONGEST_BAR, columns - text.length - 4));
      const done = Math.round(progress * size);
      return `[${"=".repeat(done)}${"-".repeat(size - done)}] ${text}`;
    },
    emptyOnZero: true,
    gracefulExit: false, // the command itself reacts to Ctrl-C
  });
  let percent = 0;
  const show = (texts: readonly string[]) => {
    if (bar.isActive) bar.update(percent, { texts });
    else bar.start(100, percent, { texts });
  };
  return {
    update: (run) => {
      percent = run.progress.percent;
      show([renderProgress(run), renderShortProgress(run)]);
    },
    lose: () => show([LOST]),
    stop: () => bar.stop(),
  };
}

function createLines(stream: Host["stderr"]): Progress {
  let shown = "";
  let shownAt = -Infinity;
  const write = (line: string) => {
    stream.write(line);
    shown = line;
    shownAt = Date.now();
  };
  return {
    update: (run) => {
      const line = `${run.mode}: ${renderProgress(run)}\n`;
      const unchanged = line === shown || Date.now() - shownAt < LINE_INTERVAL;
      if (!unchanged || run.finished_at !== null) write(line);
    },
    lose: () => {
      if (shown !== `${LOST}\n`) write(`${LOST}\n`);
    },
    stop: () => {},
  };
}
