/** `doctor`: every link of the chain, outside in, with what mends it. */
import { expect, test } from "vitest";
import { z } from "zod";
import { VERSION } from "../../supabase/functions/image-sync/version.ts";
import { FINDINGS } from "../../supabase/functions/image-sync/findings.ts";
import { makeReport } from "./support/documents.ts";
import { problem, serveFunction } from "./support/fake_function.ts";
import { runCommand } from "./support/run_command.ts";

const linksSchema = z.object({ links: z.array(z.looseObject({ looked_at: z.string(), state: z.string() })) });
const versions = { schema: VERSION, function: VERSION };

/** What doctor says of a report, link by link. */
async function examine(report: Parameters<typeof makeReport>[0]) {
  const server = await serveFunction({ onReport: () => makeReport({ findings: [], versions, ...report }) });
  const { status, stdout } = await runCommand(["doctor", "--json"], server);
  const { links } = linksSchema.parse(JSON.parse(stdout));
  return {
    status,
    states: Object.fromEntries(links.map(({ looked_at, state }) => [looked_at, state])),
    links,
  };
}

const finding = (code: string, level: "error" | "warning") => ({
  code,
  level,
  title: `Something about ${code}`,
  count: 1,
  samples: [],
  remediation: "Mend it.",
  action: { request: { mode: "sync" as const, bucket: "part-images" } },
});

test("of a healthy project every link holds", async () => {
  const { status, states } = await examine({});
  expect(status).toBe(0);
  expect(new Set(Object.values(states))).toEqual(new Set(["fine"]));
});

test("a finding breaks the link that it is of, and its remedy stands there", async () => {
  const { status, states, links } = await examine({
    findings: [finding("job_missing", "error"), finding("table_public", "warning")],
  });
  expect(status).toBe(1);
  expect(Object.entries(states).filter(([, state]) => state !== "fine")).toEqual([
    ["jobs of pg_cron", "broken"],
    ["who else can see them", "warning"],
  ]);
  expect(links.find(({ state }) => state === "broken")).toMatchObject({
    remedy: "Mend it.\nRun: npx image-sync sync",
  });
});

test("every error that a report can have breaks a link, but for those that are of single files", async () => {
  const single = [
    ...["missing", "orphaned", "collided", "moved", "not_moved", "unsignable_names", "url_refused"],
    ...[
      "excluded_extensions",
      "excluded_names",
      "empty_files",
      "several_files",
      "unnamed_records",
      "stray_records",
    ],
  ];
  for (const code of Object.keys(FINDINGS)) {
    const { states } = await examine({ findings: [finding(code, "error")] });
    expect(Object.values(states).includes("broken"), code).toBe(!single.includes(code));
  }
});

test("versions that differ are said", async () => {
  const { status, states } = await examine({ versions: { schema: "0.0.1", function: VERSION } });
  expect({ status, versions: states["versions"] }).toEqual({ status: 0, versions: "warning" });
});

test("of a function that does not answer nothing else is known", async () => {
  const server = await serveFunction({
    onReport: () => {
      throw problem(401, "unauthorized", "Not signed in", "Cannot answer");
    },
  });
  const { status, stdout } = await runCommand(["doctor"], server);
  expect(status).toBe(1);
  expect(stdout).toMatch(/^✖ function: Cannot sign in/);
  expect(stdout).toContain("? versions: not looked at");
  expect(stdout).toContain("Begin with: function");
});
