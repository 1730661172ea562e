import { randomUUID } from "node:crypto";
import type { Report, Run } from "../../../supabase/functions/image-sync/contract.ts";

/** A finished sync that went well, but for what is given. */
export function makeRun(given: Partial<Run> = {}): Run {
  const isOpen = given.state === "open";
  return {
    id: randomUUID(),
    bucket_id: "part-images",
    mode: "sync",
    trigger: "request",
    options: {},
    plan_id: null,
    state: "succeeded",
    stop_reason: null,
    started_at: "2026-11-24T02:00:00+00:00",
    finished_at: isOpen ? null : "2026-11-24T02:00:41+00:00",
    duration_seconds: 41,
    progress: isOpen
      ? { done: 1200, total_estimate: 4000, percent: 30, rate_per_second: 410.5, eta_seconds: 7 }
      : { done: 4012, total_estimate: 4012, percent: 100, rate_per_second: 97.9, eta_seconds: 0 },
    totals: {
      listed: 4012,
      images: 4000,
      not_images: 12,
      recorded: 196,
      inserted: 3804,
      collided: 0,
      vanished: 0,
      missing: 0,
      signed: 4000,
      failed: 0,
      orphaned: 2,
      removed: 0,
      restored: 0,
      skipped: 0,
      rows_written: 7804,
      storage_calls: 5,
      retries: 1,
    },
    chunks: 5,
    invocations: 1,
    balanced: true,
    error: null,
    problems: [],
    ...given,
  };
}

/** A finished dry run of a cleanup with this list. */
export function makeDryRun(samples: readonly string[], given: Partial<Run> = {}): Run {
  return makeRun({ mode: "cleanup", plan: { count: samples.length, samples: [...samples] }, ...given });
}

/** The report of a healthy bucket, but for what is given. */
export function makeReport(given: Partial<Report> = {}): Report {
  return {
    generated_at: "2026-11-24T08:00:00+00:00",
    measured_at: "2026-11-24T02:00:40+00:00",
    healthy: true,
    bucket: {
      id: "part-images",
      objects: 4012,
      images: 4000,
      bytes: 2_254_857_830,
      by_extension: { jpeg: 10, jpg: 3990, png: 12 },
    },
    records: {
      total: 4000,
      signed: 4000,
      unsigned: 0,
      expired: 0,
      soonest_expiry: "2026-12-01T02:00:40+00:00",
    },
    difference: {
      missing: { count: 0, samples: [] },
      orphaned: { count: 0, samples: [] },
      collided: { count: 0, samples: [] },
    },
    coverage: { recorded: 1, signed: 1 },
    probe: { checked: 10, ok: 10, failures: [] },
    open_run: null,
    next_run_at: "2026-11-25T02:00:00+00:00",
    last_runs: {
      sync: makeRun({ trigger: "schedule" }),
      analyze: null,
      cleanup: null,
      restore: null,
    },
    findings: [{
      code: "excluded_extensions",
      level: "info",
      title: "Files left out because of their extension",
      count: 12,
      samples: ["000001.png", "000002.png", "000003.png", "000004.png", "000005.png", "000006.png"],
      remediation: "To include them: update image_sync.settings set extensions = extensions || '{png}';",
    }],
    ...given,
  };
}
