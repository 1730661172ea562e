/** Each finding absent and present, through the report and as `npm run status` shows it: one fault, one finding. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { type Result, runCommand } from "../cli/support/run_command.ts";
import { projectDirectory } from "../support/stack.ts";
import {
  addObjects,
  codesOf,
  eventually,
  jpeg,
  removeObjects,
  runToEnd,
  upload,
} from "../sync/support/lab.ts";
import { runJob } from "../sync/support/local_lab.ts";
import { npmRun } from "./support/command.ts";
import { createHealthyBucket, type FaultCase, faults, openScene, type Scene } from "./support/faults.ts";
import { FINDINGS } from "../../supabase/functions/image-sync/findings.ts";

let scene: Scene;
beforeAll(async () => {
  scene = await openScene();
});
afterAll(() => scene?.close());

/** A command as its npm script runs it, in this process: npm, Node and Deno would begin a hundred times to the same end. */
async function runScript(command: string, args: readonly string[]): Promise<Result> {
  const { scripts } = JSON.parse(readFileSync(join(projectDirectory, "package.json"), "utf8"));
  expect(scripts[command]).toBe(`node cli/image-sync.mjs ${command}`);
  const { url, secretKey } = scene.lab.stack;
  const env = { SUPABASE_URL: url, SUPABASE_SECRET_KEY: secretKey, npm_lifecycle_event: command };
  return await runCommand([command, ...args], { env });
}

const report = (bucket: string) => scene.lab.database.readReport(bucket);

test("every finding that the report can have has its words, and a fault here that brings it about", () => {
  expect(Object.keys(faults).sort()).toEqual(Object.keys(FINDINGS).sort());
});

test("what people search for is called as they search for it", () => {
  const titles = Object.values(FINDINGS).map(({ title }) => title);
  expect(titles).toEqual(
    expect.arrayContaining(["No files found in bucket", "Error listing files", "Error signing URLs"]),
  );
  expect(new Set(titles).size).toBe(titles.length);
});

test("what explains another away, and is explained away, is a finding", () => {
  const explained = Object.values(FINDINGS).flatMap(({ explains = [] }) => explains);
  expect(Object.keys(FINDINGS)).toEqual(expect.arrayContaining(explained));
});

test("a bucket in order has no finding, and status says so with 0", async () => {
  const bucket = await createHealthyBucket(scene);
  expect(await report(bucket)).toMatchObject({
    healthy: true,
    findings: [],
    coverage: { recorded: 1, signed: 1 },
  });
  const status = await npmRun(scene.lab.stack, "status", ["--bucket", bucket]);
  expect(status).toMatchObject({
    code: 0,
    stderr: expect.stringMatching(/^Project \S+ \([^)]*\), bucket \S+ \([^)]*\)\n$/),
  });
  expect(status.stdout).toContain(`${bucket}: healthy`);
  expect(status.stdout).toContain("Nothing to look at");
});

test.each(Object.entries(faults))("%s alone is found when that is what is wrong", async (code, fault) => {
  const bucket = await createHealthyBucket(scene);
  expect(codesOf(await report(bucket))).toEqual([]);
  try {
    await fault.make(scene, bucket);
    const found = await report(bucket);
    expect(codesOf(found)).toEqual([code]);
    const [finding] = found.findings;
    expect(finding).toMatchObject({ code, level: fault.level });
    expect(finding?.count).toBeGreaterThan(0);
    expect(finding?.title).toBe(FINDINGS[code]?.title);
    expect(finding?.remediation.length).toBeGreaterThan(10);
    const healthy = fault.healthy ?? fault.level !== "error";
    expect(found.healthy).toBe(healthy);

    const status = await runScript("status", ["--bucket", bucket]);
    expect([...status.stdout.matchAll(/^ {2}\S .*\[([a-z_]+)\]$/gm)].map(([, shown]) => shown)).toEqual([
      code,
    ]);
    expect(status.stdout).toContain(finding?.title);
    expect(status.stdout).toContain(finding?.remediation);
    expect(status).toMatchObject({
      status: healthy ? 0 : 1,
      stderr: expect.stringMatching(/^Project \S+ \([^)]*\), bucket \S+ \([^)]*\)\n$/),
    });
    await doWhatIsPrinted(bucket, { code, fault, status: status.stdout });
  } finally {
    await fault.undo?.(scene, bucket);
  }
});

/** Follows the remedy of a finding to the letter, and finds the fault gone. */
async function doWhatIsPrinted(
  bucket: string,
  { code, fault, status }: { code: string; fault: FaultCase; status: string },
): Promise<void> {
  await fault.mend?.(scene, bucket);
  const [, kind, words] = /^ {4}(SQL|Run): (.*)$/m.exec(status) ?? [];
  if (fault.hasNoAction) {
    expect(kind).toBeUndefined();
    return;
  }
  expect(words).toBeDefined();
  if (kind === "SQL") await (fault.needsAdmin ? scene.admin : scene.lab.sql).unsafe(words ?? "");
  else await typed(words ?? "");
  const next = /then start an? (sync|analyze|verify)\b/i.exec(status)?.[1];
  if (kind === "SQL" && next !== undefined) await typed(`npm run ${next} -- --bucket ${bucket}`);
  // A cleanup is counted by an analyze behind it.
  await eventually(
    async () => !codesOf(await report(bucket)).includes(code) || undefined,
    `the finding ${code} to be gone`,
    5_000,
  );
}

/**
 * Types a command that was printed. A list that it prints is confirmed with the command printed below it; a guard that refuses is
 * lifted with the command that it prints.
 */
async function typed(command: string): Promise<void> {
  const [, script = "", rest = ""] = /^npm run ([a-z]+)(?: -- ([^'"\\$]+))?$/.exec(command) ?? [];
  expect(script, command).not.toBe("");
  const { status, stdout, stderr } = await runScript(script, rest.split(" ").filter(Boolean));
  const next = /^ *To remove them: (.*)$/m.exec(stdout) ?? /If all of them should go: (.*)$/m.exec(stderr);
  if (next?.[1] !== undefined) return await typed(next[1]);
  expect(status, stdout + stderr).toBeLessThan(2);
}

test("what was mended is gone from the report with the next run", async () => {
  const bucket = await createHealthyBucket(scene);
  const { lab } = scene;
  await faults["missing"]?.make(scene, bucket);
  await faults["expired"]?.make(scene, bucket);
  await faults["listing_incomplete"]?.make(scene, bucket);
  expect(codesOf(await report(bucket)).sort()).toEqual(["expired", "listing_incomplete", "missing"]);
  await runToEnd(lab, bucket);
  expect(codesOf(await report(bucket))).toEqual([]);
});

test("a URL that died since the last count is found without another run", async () => {
  const bucket = await createHealthyBucket(scene);
  await scene.lab.sql`
    update image_sync.runs
    set report = jsonb_set(report, '{records,soonest_expiry}', to_jsonb(now() - interval '1 minute'))
    where bucket_id = ${bucket}`;
  expect(codesOf(await report(bucket))).toEqual(["expired"]);
});

test("all files of a part number are listed with it, and each keeps a record of its own", async () => {
  const bucket = await createHealthyBucket(scene);
  const { lab } = scene;
  for (const name of ["a.JPG", "a_JPG.jpg", "a.png"]) await upload(lab, bucket, name, jpeg);
  await runToEnd(lab, bucket);
  const { findings } = await report(bucket);
  expect(findings.find(({ code }) => code === "several_files")).toMatchObject({
    count: 1,
    samples: ["a: a.JPG, a.jpg, a.png, a_JPG.jpg"],
  });
  const records = await lab.sql<{ file_name: string }[]>`
    select file_name from public.part_images where bucket_id = ${bucket} order by file_name collate "C"`;
  expect(records.map(({ file_name }) => file_name)).toEqual([
    "a.JPG",
    "a.jpg",
    "a_JPG.jpg",
    "b.jpg",
    "c.jpg",
  ]);
});

test("the line of SQL that the report offers for files left out includes them", async () => {
  const bucket = await createHealthyBucket(scene);
  const { lab } = scene;
  for (const name of ["d.png", "e.PNG", "f.webp", "no-extension"]) await upload(lab, bucket, name, jpeg);
  await runToEnd(lab, bucket);
  const [finding] = (await report(bucket)).findings;
  expect(finding).toMatchObject({
    code: "excluded_extensions",
    count: 4,
    samples: ["d.png", "e.PNG", "f.webp", "no-extension"],
  });
  const { action } = finding ?? {};
  await lab.sql.unsafe(action !== null && action !== undefined && "sql" in action ? action.sql : "");
  const run = await runToEnd(lab, bucket);
  expect(run.totals).toMatchObject({ inserted: 3, signed: 3 });
  expect((await report(bucket)).findings).toMatchObject([{ code: "excluded_extensions", count: 1 }]);
});

test("one damaged file among the probed ones is a warning that names it", async () => {
  const bucket = await createHealthyBucket(scene);
  const { lab } = scene;
  await addObjects(lab, bucket, ["damaged.jpg"]);
  await lab.sql`update image_sync.settings set probe_size = 100 where bucket_id = ${bucket}`;
  await runToEnd(lab, bucket);
  const { findings, probe, healthy } = await report(bucket);
  expect(findings).toMatchObject([{ code: "file_lost", level: "warning" }]);
  expect(new Set(findings[0]?.samples)).toEqual(new Set(["damaged.jpg"]));
  expect(probe.failures[0]).toMatchObject({ name: "damaged.jpg", status: 400, error: "NoSuchKey" });
  expect(healthy).toBe(true);
});

test("a name that can never be signed makes no night fail, and the rest counts as in step", async () => {
  const bucket = await createHealthyBucket(scene);
  const { lab } = scene;
  await addObjects(lab, bucket, ["folder#1/up.jpg", "ümlaut.jpg"]);
  await runToEnd(lab, bucket);
  const second = await runToEnd(lab, bucket);
  expect(second).toMatchObject({ state: "partial", stop_reason: "items_failed" });
  // As if the successful sync before had never been.
  await lab.sql`delete from image_sync.runs where bucket_id = ${bucket} and outcome = 'succeeded'`;
  const { findings, healthy } = await report(bucket);
  expect(findings.map(({ code }) => code)).toEqual(["unsignable_names"]);
  expect(findings[0]).toMatchObject({ count: 2, samples: ["folder#1/up.jpg", "ümlaut.jpg"] });
  // Two images of five cannot be seen.
  expect(healthy).toBe(false);
});

test("an empty bucket without records is a warning, with them an error", async () => {
  const bucket = await createHealthyBucket(scene);
  const { lab } = scene;
  await removeObjects(lab, bucket, ["a.jpg", "b.jpg", "c.jpg"]);
  expect((await report(bucket)).findings).toMatchObject([{ code: "bucket_empty", level: "error" }]);
  await lab.sql`delete from public.part_images where bucket_id = ${bucket}`;
  expect((await report(bucket)).findings).toMatchObject([{ code: "bucket_empty", level: "warning" }]);
});

test("a night without the function's address is explained by that alone", async () => {
  const bucket = await createHealthyBucket(scene);
  const { lab } = scene;
  await lab.sql`update image_sync.settings set nightly = true where bucket_id = ${bucket}`;
  await faults["function_unknown"]?.make(scene, bucket);
  try {
    await runJob(lab, "image-sync-nightly");
    const found = await report(bucket);
    expect(found.last_runs.sync).toMatchObject({ state: "failed", error: { code: "function_unknown" } });
    expect(codesOf(found)).toEqual(["function_unknown"]);
  } finally {
    await faults["function_unknown"]?.undo?.(scene, bucket);
  }
  // The address is back, the night is lost all the same.
  expect(codesOf(await report(bucket))).toEqual(["last_run_failed"]);
});

test("a bucket that no run has measured yet has a report all the same", async () => {
  const { lab } = scene;
  const bucket = `bucket-${crypto.randomUUID()}`;
  await lab.sql`insert into image_sync.settings (bucket_id, nightly) values (${bucket}, false)`;
  const found = await report(bucket);
  expect(codesOf(found)).toEqual(["bucket_missing", "no_recent_sync"]);
  expect(found).toMatchObject({ healthy: false, measured_at: null, bucket: { objects: null } });
});
