import { SingleBar } from "cli-progress";
import type { Run } from "../supabase/functions/image-sync/contract.ts";
import { renderProgress, renderShortProgress } from "../supabase/functions/image-sync/text.ts";
import type { Host } from "./host.ts";

/** Shows on standard error how far a run is. */
export type Progress = {
  update(run: Run): void;
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
