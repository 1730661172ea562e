/** The four steps of the old manual, typed as an operator types them: analyze, sync, analyze, cleanup; then undo and look. */
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import {
  type Report,
  reportSchema,
  type Run,
  runSchema,
} from "../../supabase/functions/image-sync/contract.ts";
import { z } from "zod";
import { type Ended, npmRun, runProgram } from "../report/support/command.ts";
import { jpeg, readRecords, removeObjects, upload } from "../sync/support/lab.ts";
import { type LocalLab, openLocalLab } from "../sync/support/local_lab.ts";

const bucket = "part-images";
const images = Array.from({ length: 40 }, (_, index) => `${String(index + 1).padStart(6, "0")}.jpg`);
const gone = ["000098.jpg", "000099.jpg"];

/** A bucket as it stood when the scripts were last run by hand: half of it recorded, two records without a file. */
async function openLeftBehind(): Promise<LocalLab> {
  const lab = await openLocalLab();
  await lab.supabase.storage.createBucket(bucket, { public: false });
  for (const name of images) await upload(lab, bucket, name, jpeg);
  await upload(lab, bucket, "notes.txt", jpeg);
  await lab.sql`
    insert into public.part_images (file_name, part_number, signed_url)
    select n.name, split_part(n.name, '.', 1), 'http://127.0.0.1/dead?token=x.y.z'
    from unnest(${[...images.slice(0, 20), ...gone]}::text[]) as n (name)`;
  return lab;
}

const idIn = (text: string) => /[0-9a-f]{8}-[0-9a-f-]{27}/.exec(text)?.[0] ?? "";

describe("on the command line", () => {
  let lab: LocalLab;
  beforeAll(async () => {
    lab = await openLeftBehind();
  });
  afterAll(() => lab?.close());
  const type = (command: string, ...args: string[]): Promise<Ended> => npmRun(lab.stack, command, args);

  // One after the other: each step begins where the one before it ended.
  test("analyze, sync, analyze, cleanup, restore", async () => {
    const before = await type("status");
    expect(before.code).toBe(1);
    expect(before.stdout).toContain("Nothing was measured yet");
    expect(before.stdout).toContain("[no_recent_sync]");

    const first = await type("analyze");
    expect(first.code).toBe(0);
    expect(first.stderr).toContain("Started run");
    expect(first.stdout).toContain("41 files");
    expect(first.stdout).toContain("40 images");
    expect(first.stdout).toContain("jpg 40, txt 1");
    expect(first.stdout).toContain("22 records");
    expect(first.stdout).toContain("50 % of the images have a record, 0 % a working URL");
    expect(first.stdout).toMatch(/Missing +20 images without a record/);
    expect(first.stdout).toContain("000021.jpg");
    expect(first.stdout).toMatch(/Orphaned +2 records without a file/);
    expect(first.stdout).toContain("000098.jpg");
    expect(await readRecords(lab, bucket)).toHaveLength(22);

    const sync = await type("sync");
    expect(sync.code).toBe(0);
    expect(sync.stdout).toContain("Sync of part-images: succeeded");
    expect(sync.stdout).toContain("20 inserted, 40 signed, 0 failed");
    expect(sync.stdout).toContain("balances");
    const records = await readRecords(lab, bucket);
    expect(records).toHaveLength(42);
    for (const { signed_url, file_name } of records.filter(({ file_name }) => !gone.includes(file_name))) {
      const response = await fetch(signed_url ?? "");
      expect([file_name, response.status]).toEqual([file_name, 200]);
      await response.body?.cancel();
    }

    const second = await type("analyze");
    expect(second.code).toBe(0);
    expect(second.stdout).toContain("100 % of the images have a record, 100 % a working URL");
    expect(second.stdout).toMatch(/Missing +0 images/);
    expect(second.stdout).toMatch(/Orphaned +2 records without a file/);
    expect(second.stdout).toContain("10 of 10 random URLs show an image");

    // Without a terminal nobody can be asked: the list, and what to type.
    const list = await type("cleanup");
    expect(list.code).toBe(0);
    expect(list.stdout).toContain("2 records without a file:");
    for (const name of gone) expect(list.stdout).toContain(name);
    expect(list.stdout).toContain("cleanup -- --confirm ");
    expect(await readRecords(lab, bucket)).toHaveLength(42);

    const cleanup = await type("cleanup", "--confirm", idIn(list.stdout.split("--confirm")[1] ?? ""));
    expect(cleanup.code).toBe(0);
    expect(cleanup.stdout).toContain("2 removed, 0 kept");
    expect((await readRecords(lab, bucket)).map(({ file_name }) => file_name)).toEqual(images);

    await expect.poll(async () => (await type("status")).stdout, { timeout: 30_000 }).toMatch(
      /Orphaned +0 records/,
    );
    const status = await type("status");
    expect(status).toMatchObject({
      code: 0,
      stderr: expect.stringMatching(/^Project \S+ \([^)]*\), bucket \S+ \([^)]*\)\n$/),
    });
    expect(status.stdout).toContain("part-images: healthy");

    const restored = await type("restore", idIn(cleanup.stdout.split("restore ")[1] ?? ""));
    expect(restored.code).toBe(0);
    expect(restored.stdout).toContain("2 restored, 0 skipped");
    expect(await readRecords(lab, bucket)).toEqual(
      records.map((record) => ({ ...record, version: expect.any(String) })),
    );
  }, 180_000);

  test("the program and npm's link run the same commands as npm run", async () => {
    const project = lab.stack;
    const byNpm = await npmRun(project, "status", ["--json"]);
    const direct = await runProgram(project, "node_modules/.bin/deno", [
      "run",
      "--quiet",
      "-A",
      "cli/image_sync.ts",
      "status",
      "--json",
    ]);
    const byLink = await runProgram(project, "node", ["cli/image-sync.mjs", "status", "--json"]);
    const stripped = ({ stdout }: Ended) => ({ ...reportSchema.parse(JSON.parse(stdout)), generated_at: "" });
    expect(stripped(direct)).toEqual(stripped(byNpm));
    expect(stripped(byLink)).toEqual(stripped(byNpm));
  });
});

describe("for machines and on a terminal", () => {
  let lab: LocalLab;
  beforeAll(async () => {
    lab = await openLeftBehind();
  });
  afterAll(() => lab?.close());

  async function json<T>(schema: z.ZodType<T>, command: string, ...args: string[]): Promise<T> {
    const { stdout } = await npmRun(lab.stack, command, [...args, "--json"]);
    return schema.parse(JSON.parse(stdout));
  }

  test("--json gives one document a step, and cleanup --json deletes nothing without --confirm", async () => {
    const analyzedSchema = z.object({ run: runSchema, report: reportSchema });
    const first: { run: Run; report: Report } = await json(analyzedSchema, "analyze");
    expect(first.run).toMatchObject({
      mode: "analyze",
      state: "succeeded",
      totals: { missing: 20, orphaned: 2 },
    });
    expect(first.report.difference.missing.count).toBe(20);
    expect(await json(runSchema, "sync")).toMatchObject({
      mode: "sync",
      totals: { inserted: 20, signed: 40 },
    });
    expect((await json(analyzedSchema, "analyze")).report.coverage).toEqual({ recorded: 1, signed: 1 });

    const list = await json(runSchema, "cleanup");
    expect(list).toMatchObject({ plan_id: null, plan: { count: 2, samples: gone } });
    expect(await readRecords(lab, bucket)).toHaveLength(42);
    const cleanup = await json(runSchema, "cleanup", "--confirm", list.id);
    expect(cleanup).toMatchObject({ plan_id: list.id, totals: { removed: 2 } });
    expect(await readRecords(lab, bucket)).toHaveLength(40);
    expect(await json(runSchema, "restore", cleanup.id)).toMatchObject({ totals: { restored: 2 } });

    // A refusal is a document too.
    const refused = await json(
      z.object({ error: z.object({ code: z.string() }) }),
      "cleanup",
      "--confirm",
      list.id,
    );
    expect(refused.error.code).toBe("plan_already_applied");
  }, 120_000);

  test("on a terminal, cleanup removes nothing unless the number of records is typed", async () => {
    await lab
      .sql`delete from public.part_images where bucket_id = ${bucket} and file_name <> all (${images})`;
    await removeObjects(lab, bucket, ["000040.jpg", "000041.jpg"]);
    const typeNumber = (typed: string) =>
      // script(1) gives the command a terminal of its own.
      runProgram(lab.stack, "script", ["-qec", "npm run --silent cleanup", "/dev/null"], { typed });
    const counted = async () => (await readRecords(lab, bucket)).length;
    const all = await counted();
    const wrong = await typeNumber("7");
    expect(wrong.stdout).toContain("000040.jpg");
    expect(wrong.stdout).toContain("Nothing was removed: 1 was not typed");
    expect(wrong.code).toBe(1);
    expect(await counted()).toBe(all);
    const right = await typeNumber("1");
    expect(right.stdout).toContain("1 removed, 0 kept");
    expect(right.code).toBe(0);
    expect(await counted()).toBe(all - 1);
  }, 120_000);
});
