import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { toJson } from "../../cli/output.ts";
import { safeText } from "../../supabase/functions/image-sync/text/safe_text.ts";
import { renderFile, renderReport, renderRun } from "../../supabase/functions/image-sync/text.ts";
import { makeDryRun, makeReport, makeRun } from "./support/documents.ts";

// What a terminal obeys or hides, but for the line ends that are ours.
const unsafe = /[^\P{Cc}\n]|[\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/u;
const hostileText = fc.string({ unit: "binary" }).chain((text) =>
  fc.constantFrom(
    "",
    "\x1b[2J",
    "\x1b]0;owned\x07",
    "\u009b31m",
    "\u202egpj.exe",
    "\u2066",
    "\r",
    "\n",
    "\\u{1b}",
    "\u00a0",
  )
    .map((sequence) => text + sequence + text)
);

function readBack(text: string): string {
  return text.replace(/\\u\{([0-9a-f]+)\}/g, (_, hex) => String.fromCodePoint(parseInt(hex, 16)));
}

describe("a name from outside", () => {
  test("is shown with what a terminal would obey written out", () => {
    expect(safeText("\x1b[31mred\x07.jpg")).toBe("\\u{1b}[31mred\\u{07}.jpg");
    expect(safeText("a\u202egpj.exe")).toBe("a\\u{202e}gpj.exe");
    expect(safeText("a\nb")).toBe("a\\u{0a}b");
    expect(safeText("\\u{1b}")).toBe("\\u{5c}u{1b}");
    expect(safeText("Größe 3/4 \\ 😀.jpg")).toBe("Größe 3/4 \\ 😀.jpg");
  });

  test("can be read back from what is shown", () => {
    fc.assert(fc.property(hostileText, (text) => {
      expect(safeText(text)).not.toMatch(unsafe);
      expect(safeText(text)).not.toContain("\n");
      expect(readBack(safeText(text))).toBe(text);
    }));
  });

  test("does no harm anywhere in a report, a run, a file or their JSON", () => {
    fc.assert(fc.property(hostileText, (text) => {
      const difference = { count: 1, samples: [text] };
      const run = makeRun({
        bucket_id: text,
        stop_reason: text,
        error: { code: text, title: text, detail: text },
        problems: [{ name: text, code: text, detail: text }],
      });
      const report = makeReport({
        generated_at: text,
        measured_at: text,
        bucket: { id: text, objects: 1, images: 1, bytes: 1, by_extension: { [text]: 1 } },
        difference: { missing: difference, orphaned: difference, collided: difference },
        probe: {
          checked: 1,
          ok: 0,
          failures: [{ name: text, status: null, content_type: text, error: text }],
        },
        last_runs: { sync: run, analyze: run, cleanup: run, restore: run },
        findings: [{ code: text, level: "error", title: text, count: 1, samples: [text], remediation: text }],
        open_run: run,
        next_run_at: text,
      });
      const file = {
        bucket_id: text,
        file_name: text,
        in_sync: false,
        reasons: [{ code: text, detail: text }],
      };
      const dryRun = makeDryRun([text], { bucket_id: text });
      for (const shown of [renderReport(report), renderRun(run), renderRun(dryRun), renderFile(file)]) {
        expect(shown).not.toMatch(unsafe);
      }
      expect(toJson(report)).not.toMatch(unsafe);
      expect(JSON.parse(toJson(report))).toEqual(report);
    }));
  });

  test("that begins like a spreadsheet's formula stays behind its indentation", () => {
    const difference = { count: 1, samples: ["=HYPERLINK(1).jpg"] };
    const shown = renderReport(
      makeReport({ difference: { missing: difference, orphaned: difference, collided: difference } }),
    );
    expect(shown).toMatch(/^ +=HYPERLINK/m);
    expect(shown).not.toMatch(/^[=+@-]/m);
  });
});

test("a healthy report reads like this", () => {
  expect("\n" + renderReport(makeReport())).toMatchInlineSnapshot(`
    "
    part-images: healthy
      Measured 2026-11-24 02:00 GMT, 5 h 59 min ago

      Bucket        4,012 files, 2.3 GB, 4,000 images
                    jpg 3,990, png 12, jpeg 10
      Records       4,000 records
                    4,000 with a working URL, 0 without one, 0 expired
                    first URL expires 2026-12-01 02:00 GMT
      Coverage      100 % of the images have a record, 100 % a working URL
      Probe         10 of 10 random URLs show an image

      Missing       0 images without a record
      Orphaned      0 records without a file
      Collided      0 images whose record the table refuses

      ℹ Files left out because of their extension: 12 [excluded_extensions]
          000001.png
          000002.png
          000003.png
          000004.png
          000005.png
          and 7 more
        To include them: update image_sync.settings set extensions = extensions || '{png}';

      Last sync     succeeded, 2026-11-24 02:00 GMT (6 h ago, by the schedule), took 41 s, 3,804 inserted, 4,000 signed, 0 failed
      Next run      2026-11-25 02:00 GMT, in 18 h

    part-images: healthy
    "
  `);
});

test("a report of a bucket in trouble reads like this", () => {
  const samples = Array.from({ length: 20 }, (_, index) => `${String(index + 1).padStart(6, "0")}.jpg`);
  expect(
    "\n" + renderReport(makeReport({
      healthy: false,
      records: { total: 196, signed: 0, unsigned: 96, expired: 100, soonest_expiry: null },
      difference: {
        missing: { count: 3804, samples },
        orphaned: { count: 1, samples: ["gone.jpg"] },
        collided: { count: 0, samples: [] },
      },
      coverage: { recorded: 0.99996, signed: 0 },
      probe: {
        checked: 2,
        ok: 1,
        failures: [{ name: "000002.jpg", status: 400, content_type: "application/json", error: null }],
      },
      open_run: makeRun({ state: "open", id: "5c1e0d52-7a53-4a0e-9d0c-2f3b1a6a7c11" }),
      last_runs: {
        sync: null,
        analyze: null,
        cleanup: makeDryRun(["gone.jpg"], { totals: { orphaned: 1 } }),
        restore: null,
      },
      next_run_at: null,
      findings: [
        {
          code: "no_recent_sync",
          level: "error",
          title: "No successful sync within 26 hours",
          count: 1,
          samples: [],
          remediation: "Start a sync by hand.",
          action: { request: { mode: "sync", bucket: "part-images" } },
        },
        {
          code: "missing",
          level: "warning",
          title: "Images without a record",
          count: 3804,
          samples,
          remediation: "Start a sync; the nightly run does it too.",
        },
      ],
    })),
  ).toMatchInlineSnapshot(`
    "
    part-images: needs attention (1 error, 1 warning): 0 % of the images can be seen
      Measured 2026-11-24 02:00 GMT, 5 h 59 min ago

      Bucket        4,012 files, 2.3 GB, 4,000 images
                    jpg 3,990, png 12, jpeg 10
      Records       196 records
                    0 with a working URL, 96 without one, 100 expired
      Coverage      99.9 % of the images have a record, 0 % a working URL
      Probe         1 of 2 random URLs show an image
                      000002.jpg: HTTP 400, application/json

      Missing       3,804 images without a record
                    000001.jpg
                    000002.jpg
                    000003.jpg
                    000004.jpg
                    000005.jpg
                    and 3,799 more
      Orphaned      1 record without a file
                    gone.jpg
      Collided      0 images whose record the table refuses

      ✖ No successful sync within 26 hours [no_recent_sync]
        Start a sync by hand.
        Run: npx image-sync sync
      ▲ Images without a record: 3,804 [missing]
        Start a sync; the nightly run does it too.

      Last sync     none yet
      Last cleanup  dry run succeeded, 2026-11-24 02:00 GMT (6 h ago, by a request), took 41 s, 1 would be removed
      Open run      Sync, 1,200 of 4,000 (30 %), 410.5 a second, about 7 s left; run 5c1e0d52-7a53-4a0e-9d0c-2f3b1a6a7c11
      Next run      none is scheduled

    part-images: needs attention (1 error, 1 warning): 0 % of the images can be seen
    Next: npx image-sync sync
    "
  `);
});

test("a report before the first run says what to do", () => {
  const shown = renderReport(makeReport({
    healthy: false,
    measured_at: null,
    bucket: { id: "part-images", objects: null, images: null, bytes: null, by_extension: {} },
    records: { total: null, signed: null, unsigned: null, expired: null, soonest_expiry: null },
    difference: {
      missing: { count: null, samples: [] },
      orphaned: { count: null, samples: [] },
      collided: { count: null, samples: [] },
    },
    coverage: { recorded: null, signed: null },
    last_runs: { sync: null, analyze: null, cleanup: null, restore: null },
    findings: [],
  }));
  expect(shown).toContain("Nothing was measured yet: start an analyze or a sync");
  expect(shown).not.toContain("Bucket ");
  expect(shown).toContain("Last sync     none yet");
});

test.each([
  ["1.2.0", "1.2.0", "schema 1.2.0, function 1.2.0"],
  ["1.1.0", "1.2.0", "schema 1.1.0, function 1.2.0: apply its migrations with npx supabase db push --remote"],
  [
    "1.2.0",
    "1.1.0",
    "schema 1.2.0, function 1.1.0: deploy the newer one with npx supabase functions deploy image-sync --use-api",
  ],
  ["2.0.0", "1.1.0", "schema 2.0.0, function 1.1.0: they do not go together"],
  ["1.2.0", null, "schema 1.2.0, function unknown"],
])("a report says of a schema %s beside a function %s which is behind", (schema, own, words) => {
  const text = renderReport(makeReport({ versions: { schema, function: own } }));
  expect(/^ {2}Version +(.*)$/m.exec(text)?.[1]).toBe(words);
});

test("a run reads like this", () => {
  const id = "9d0f1d52-7a53-4a0e-9d0c-2f3b1a6a7c11";
  expect("\n" + renderRun(makeRun({ id }))).toMatchInlineSnapshot(`
    "
    Sync of part-images: succeeded

      Run           9d0f1d52-7a53-4a0e-9d0c-2f3b1a6a7c11, started by a request
      Started       2026-11-24 02:00 GMT
      Finished      2026-11-24 02:00 GMT after 41 s
      Listed        4,012 files, 4,000 of them images
      Records       196 were there, 3,804 inserted, 0 missing
      Result        3,804 inserted, 4,000 signed, 0 failed
      Work          5 chunks, 1 invocation, 7,804 rows written, 5 Storage calls, 1 retry
      Ledger        balances

    Sync of part-images: succeeded
    "
  `);
});

test("a dry run of a cleanup shows its whole list and how to go on", () => {
  const id = "9d0f1d52-7a53-4a0e-9d0c-2f3b1a6a7c11";
  const samples = Array.from({ length: 20 }, (_, index) => `${index}.jpg`);
  const plan = { count: 1234, samples };
  const shown = renderRun(makeDryRun(samples, { id, plan, bucket_id: "it's" }));
  expect(shown).toContain("1,234 records without a file:");
  expect(shown).toContain("    19.jpg\n    and 1,214 more\n");
  expect(shown).toContain(`npx image-sync cleanup --confirm ${id} --bucket 'it'\\''s'`);
});
