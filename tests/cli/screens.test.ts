/** What a person sees on a terminal of a width: words whole, the verdict and the next command last, colour as an aid alone. */
import { stripVTControlCharacters } from "node:util";
import { describe, expect, test } from "vitest";
import { asNpmScripts } from "../../supabase/functions/image-sync/text/commands.ts";
import type { Finding } from "../../supabase/functions/image-sync/contract.ts";
import { makeReport, makeRun } from "./support/documents.ts";
import { serveFunction } from "./support/fake_function.ts";
import { runCommand, type Settings } from "./support/run_command.ts";

const finding: Finding = {
  code: "missing",
  level: "warning",
  title: "Images without a record",
  count: 3804,
  samples: [],
  remediation:
    "Start a sync; the nightly run does it too. These words are many, so that a line of them has to be wrapped.",
  action: { request: { mode: "sync", bucket: "shop photos" } },
};

const trouble = () =>
  makeReport({
    healthy: false,
    bucket: { id: "shop photos", objects: 4012, images: 4000, bytes: 1, by_extension: { jpg: 4012 } },
    findings: [finding],
  });

const show = async (settings: Settings) => {
  const server = await serveFunction({ onReport: trouble });
  return await runCommand(["status", "--bucket", "shop photos"], { ...settings, url: server.url });
};

describe.each([80, 60])("on a terminal of %d columns", (columns) => {
  test("the report is no wider, breaks between words and ends with the verdict and the one next command", async () => {
    const { stdout } = await show({ terminal: true, columns });
    const lines = stripVTControlCharacters(stdout).trimEnd().split("\n");
    expect(lines.filter((line) => line.length > columns && !/^ *(Run|SQL|Next): /.test(line))).toEqual([]);
    expect(lines.slice(-2)).toEqual([
      "shop photos: needs attention (1 warning)",
      "Next: npx image-sync sync --bucket 'shop photos'",
    ]);
    const words = lines.join(" ").replaceAll(/\s+/g, " ");
    expect(words).toContain(finding.remediation);
  });

  test("the time that is left is never cut off", async () => {
    const run = makeRun({
      state: "open",
      progress: {
        done: 1_234_567,
        total_estimate: 4_000_000,
        percent: 30,
        rate_per_second: 12_345.6,
        eta_seconds: 7200,
      },
    });
    const server = await serveFunction({
      onStart: () => ({ run, created: true }),
      onRun: (_id, look) => look < 3 ? run : makeRun({ id: run.id }),
    });
    const { stderr } = await runCommand(["sync"], { terminal: true, columns, url: server.url });
    const bars = stderr.replaceAll("\u001b[1G", "\n").split(/[\r\n]/).map(stripVTControlCharacters).filter((
      line,
    ) => line.startsWith("["));
    expect(bars.length).toBeGreaterThan(0);
    for (const bar of bars.filter((bar) => bar.includes("30 %"))) {
      expect(bar.length).toBeLessThanOrEqual(columns);
      expect(bar).toMatch(/2 h left/);
    }
  });
});

test("colour is for a terminal, and taken back where the user wants none; the words are the same", async () => {
  const coloured = (await show({ terminal: true })).stdout;
  expect(coloured).not.toBe(stripVTControlCharacters(coloured));
  for (
    const settings of [{ terminal: true, env: { NO_COLOR: "1" } }, { terminal: true, env: { TERM: "dumb" } }]
  ) {
    expect((await show(settings)).stdout).toBe(stripVTControlCharacters(coloured));
  }
  const { stdout } = await show({ terminal: false });
  expect(stdout).toBe(stripVTControlCharacters(stdout));
  expect(stdout).toContain("needs attention");
});

test("every command begins with the project and the bucket, and where that came from", async () => {
  const { stderr } = await show({});
  expect(stderr).toMatch(
    /^Project http:\/\/127\.0\.0\.1:\d+ \(the environment\), bucket shop photos \(--bucket\)\n/,
  );
});

test("a connection that is lost is said to be so while it lasts", async () => {
  const run = makeRun({ state: "open" });
  const server = await serveFunction({
    onStart: () => ({ run, created: true }),
    onRun: (_id, look) => {
      if (look < 4) throw { status: 503, body: { code: "BOOT_ERROR" } };
      return makeRun({ id: run.id });
    },
  });
  const { stderr, status } = await runCommand(["sync"], server);
  expect(status).toBe(0);
  expect(stderr.match(/connection lost, trying again/g)).toHaveLength(1);
});

test("commands are named the way that they were called", async () => {
  const { stdout } = await show({ env: { npm_lifecycle_event: "status" } });
  expect(stdout).toContain("Run: npm run sync -- --bucket 'shop photos'");
  expect(stdout).not.toContain("npx image-sync");
  expect((await show({ env: { npm_lifecycle_event: "test" } })).stdout).toContain("npx image-sync sync");
  expect(asNpmScripts("npx image-sync status")).toBe("npm run status");
  expect(asNpmScripts("npx image-sync cancel 0b0e7f0a-1111-4222-8333-444455556666, or npx image-sync runs"))
    .toBe(
      "npm run cancel -- 0b0e7f0a-1111-4222-8333-444455556666, or npm run runs",
    );
  expect(asNpmScripts("npx image-sync buckets add NAME")).toBe("npm run buckets -- add NAME");
});

test.each([
  [{ npm_config_bucket: "shop" }, "npm run status -- --bucket shop"],
  [{ npm_config_url: "https://x.supabase.co" }, "npm run status -- --url 'https://x.supabase.co'"],
  [{ npm_config_json: "true", npm_config_file: "a b.jpg" }, "npm run status -- --json --file 'a b.jpg'"],
])("flags that npm swallowed are refused with the right spelling: %j", async (swallowed, right) => {
  const server = await serveFunction({ onReport: trouble });
  const env = { npm_lifecycle_event: "status", ...swallowed };
  const { status, stdout, stderr } = await runCommand(["status"], { env, url: server.url });
  expect({ status, stdout }).toEqual({ status: 2, stdout: "" });
  for (const flag of right.replace("npm run status -- ", "").split(/ (?=--)/)) expect(stderr).toContain(flag);
  // Through npx they are nobody's.
  expect((await runCommand(["status"], { env: swallowed, url: server.url })).status).toBe(1);
});
