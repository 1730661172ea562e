/** Findings in words: what the database counts, and what the function says of it. */
import { expect, test } from "vitest";
import { reportSchema } from "../../supabase/functions/image-sync/contract.ts";
import {
  DOCTOR_LINKS,
  FINDINGS,
  foundBucketsSchema,
  foundReportSchema,
  SUBJECTS,
  tell,
  tellBuckets,
} from "../../supabase/functions/image-sync/findings.ts";

const found = (code: string, more = {}) => ({ code, count: 1, samples: [], numbers: {}, ...more });
const difference = { count: 0, samples: [] };
const reportWith = (findings: readonly object[], more = {}) =>
  foundReportSchema.parse({
    generated_at: "2026-12-01T02:00:00Z",
    measured_at: null,
    healthy: true,
    bucket: { id: "it's", objects: 1, images: 1, bytes: 1, by_extension: { heic: 1, "(none)": 2, txt: 3 } },
    records: { total: 1, signed: 1, unsigned: 0, expired: 0, soonest_expiry: null },
    difference: { missing: difference, orphaned: difference, collided: difference },
    coverage: { recorded: 1, signed: 1 },
    probe: { checked: 0, ok: 0, failures: [] },
    open_run: null,
    next_run_at: null,
    last_runs: { sync: null, analyze: null, cleanup: null, restore: null },
    findings,
    ...more,
  });

test.each(Object.keys(FINDINGS))("%s has its words and its action whatever the numbers are", (code) => {
  const report = tell(reportWith([found(code)]));
  expect(reportSchema.parse(report)).toEqual(report);
  const [finding] = report.findings;
  expect(finding).toMatchObject({ code, title: FINDINGS[code]?.title });
  expect(finding?.remediation).not.toMatch(/\bnull\b(?!;)|NaN|Invalid/);
  expect(report.healthy).toBe(finding?.level !== "error");
});

test("every part of the page and every link of doctor has a finding", () => {
  const kinds = Object.values(FINDINGS);
  expect(new Set(kinds.map(({ about }) => about))).toEqual(new Set(SUBJECTS));
  expect(new Set(kinds.flatMap(({ link }) => link ?? []))).toEqual(new Set(Object.keys(DOCTOR_LINKS)));
});

test("a finding that follows from another is left out, and the gravest come first", () => {
  const { findings } = tell(
    reportWith(["excluded_names", "last_run_failed", "missing", "signing_failed"].map((code) => found(code))),
  );
  expect(findings.map(({ code }) => code)).toEqual(["signing_failed", "missing", "excluded_names"]);
});

test("a name of the bucket stays a text in SQL", () => {
  const [finding] = tell(reportWith([found("bucket_public")])).findings;
  expect(finding?.action).toEqual({ sql: "update storage.buckets set public = false where id = 'it''s';" });
});

test("pictures among the files left out are offered, but for those that have their extension", () => {
  const left = (extensions: readonly string[]) =>
    tell(reportWith([found("excluded_extensions", { numbers: { extensions } })])).findings[0];
  expect(left(["jpg"])).toMatchObject({
    remediation: expect.stringMatching(/^To include.*heic.*without an extension/),
    action: { sql: expect.stringContaining("'{heic}'::text[] where bucket_id = 'it''s'") },
  });
  expect(left(["heic", ""])).toMatchObject({
    remediation: "None of them is a picture by its extension: nothing to do.",
    action: null,
  });
});

test("where files went, and which records no run looks at, is said of each", () => {
  const numbers = {
    files: [{ name: "a.jpg", bucket: "other", to: "b.jpg" }, { name: "c.jpg", bucket: "it's", to: "d.txt" }],
    strays: [
      { bucket_id: "gone", bucket_exists: false, records: 10_000 },
      { bucket_id: "there", bucket_exists: true, records: 1 },
    ],
  };
  const { findings } = tell(
    reportWith([found("moved_away", { numbers }), found("stray_records", { numbers })]),
  );
  expect(findings.map(({ samples }) => samples)).toEqual([
    ["a.jpg → b.jpg (bucket other)", "c.jpg → d.txt"],
    ["gone: 10000 or more records, the bucket does not exist", "there: 1 record, a bucket without settings"],
  ]);
  expect(findings[1]?.action).toEqual({
    request: { mode: "cleanup", bucket: "gone", bucket_is_gone: true },
  });
});

test("a run that stands still is started again as what it is", () => {
  const run = { id: "r", mode: "restore", plan_id: "p", since: "2026-12-01T01:00:00Z", reason: "So it is." };
  const [finding] = tell(reportWith([found("run_stands_still", { numbers: { run } })])).findings;
  expect(finding?.remediation).toMatch(
    /^The restore r has not moved since 2026-12-01 01:00 GMT\. So it is\. /,
  );
  expect(finding?.action).toEqual({ request: { mode: "restore", bucket: "it's", restore: "p" } });
});

test("what counts find bad stays bad without a finding", () => {
  expect(tell(reportWith([], { healthy: false })).healthy).toBe(false);
});

test("words that a schema of before brings along are kept", () => {
  const old = { code: "missing", level: "error", title: "So", count: 2, samples: ["a"], remediation: "Do." };
  expect(tell(reportWith([old])).findings).toEqual([old]);
});

test("of a finding that a newer schema has the function says that it has to be deployed", () => {
  for (const code of ["new_one", "constructor", "__proto__"]) {
    expect(tell(reportWith([found(code, { numbers: { run: 7 } })])).findings).toMatchObject([
      { code, level: "warning", remediation: expect.stringMatching(/^Deploy /), action: null },
    ]);
  }
});

test("a list of buckets counts what their reports say, and tells a verdict of a schema of before as it is", () => {
  const bucket = {
    bucket_id: "a",
    exists: true,
    nightly: true,
    healthy: true,
    images: 1,
    coverage: 1,
    last_sync_at: null,
    last_sync_state: null,
    open_run: null,
  };
  const list = tellBuckets(foundBucketsSchema.parse({
    buckets: [
      {
        ...bucket,
        findings: [
          found("bucket_empty", { numbers: { has_records: true } }),
          found("file_lost", { numbers: { none_shown: false } }),
          found("row_locked"),
          found("missing"),
          found("excluded_names"),
        ],
      },
      { ...bucket, errors: 3, warnings: 2, healthy: false },
    ],
    next: null,
  }));
  expect(list.buckets).toEqual([
    { ...bucket, healthy: false, errors: 1, warnings: 2 },
    { ...bucket, healthy: false, errors: 3, warnings: 2 },
  ]);
});
