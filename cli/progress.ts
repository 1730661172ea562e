import { SingleBar } from "cli-progress";
import type { Run } from "../supabase/functions/image-sync/contract.ts";
import { renderProgress } from "../supabase/functions/image-sync/text.ts";
import type { Host } from "./host.ts";

/** Shows on standard error how far a run is. */
export type Progress = {
  update(run: Run): void;
  /** Leaves the terminal as it was. Repeating it is harmless. */
  stop(): void;
};

const LINE_INTERVAL = 3_000; // ms

/** A bar on a terminal; elsewhere a line when something changed, at most one in three seconds. */
export function createProgress({ stderr }: Pick<Host, "stderr">): Progress {
  return stderr.isTTY === true ? createBar(stderr) : createLines(stderr);
}

function createBar(stream: Host["stderr"]): Progress {
  const bar = new SingleBar({
    stream,
    format: "[{bar}] {text}",
    barsize: 30,
    emptyOnZero: true,
    gracefulExit: false, // the command itself reacts to Ctrl-C
  });
  return {
    update: (run) => {
      const payload = { text: renderProgress(run) };
      if (bar.isActive) bar.update(run.progress.percent, payload);
      else bar.start(100, run.progress.percent, payload);
    },
    stop: () => bar.stop(),
  };
}

function createLines(stream: Host["stderr"]): Progress {
  let shown = "";
  let shownAt = -Infinity;
  return {
    update: (run) => {
      const line = `${run.mode}: ${renderProgress(run)}\n`;
      const unchanged = line === shown || Date.now() - shownAt < LINE_INTERVAL;
      if (unchanged && run.finished_at === null) return;
      stream.write(line);
      shown = line;
      shownAt = Date.now();
    },
    stop: () => {},
  };
}
