/** What the report says against what a reader sees, and findings that are about the present. */
import { Cron } from "croner";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import {
  addObjects,
  codesOf,
  createBucket,
  imbalances,
  moveObjects,
  numberedNames,
  openRun,
  readLedgers,
  readRecords,
  readReport,
  removeObjects,
  runToEnd,
  waitForEnd,
} from "../sync/support/lab.ts";
import { type LocalLab, openLocalLab } from "../sync/support/local_lab.ts";
import { NOTHING_SIGNED } from "../../supabase/functions/image-sync/database.ts";
import type { Finding } from "../../supabase/functions/image-sync/contract.ts";
import { renderReport } from "../../supabase/functions/image-sync/text.ts";

let lab: LocalLab;
beforeAll(async () => {
  lab = await openLocalLab();
});
afterAll(() => lab?.close());

const cron = (name: string, schedule: string, command: string) =>
  lab.sql`select cron.schedule(${name}, ${schedule}, ${command})`;
/** The SQL that a finding carries as its action. */
const sqlOf = (finding: Finding | undefined) => {
  const { action } = finding ?? {};
  return action !== null && action !== undefined && "sql" in action ? action.sql : "";
};
const restoreNightly = () => cron("image-sync-nightly", "0 2 * * *", "select image_sync.run_nightly()");

/** The last two times that a schedule was due, in ms since 1970: which they are depends on the day that this runs. */
function lastTimes(schedule: string): readonly [before: number, last: number] {
  const cron = new Cron(schedule, { timezone: "UTC" });
  const now = Date.now();
  const times: number[] = [];
  for (let at = cron.nextRun(new Date(now - 800 * 86_400_000)); at !== null && at.getTime() <= now;) {
    times.push(at.getTime());
    at = cron.nextRun(at);
  }
  const [before = NaN, last = NaN] = times.slice(-2);
  return [before, last];
}

describe("healthy", () => {
  test("is not a bucket of which more than 1 % of the images have no working URL, and the verdict says how many do", async () => {
    const bucket = await createBucket(lab, { objects: numberedNames(100) });
    await runToEnd(lab, bucket);
    expect((await readReport(lab, bucket)).healthy).toBe(true);
    await addObjects(lab, bucket, ["new-1.jpg"]);
    await runToEnd(lab, bucket, { mode: "analyze" });
    expect((await readReport(lab, bucket)).healthy).toBe(true);
    await addObjects(lab, bucket, ["new-2.jpg"]);
    await runToEnd(lab, bucket, { mode: "analyze" });
    const report = await readReport(lab, bucket);
    expect(report.healthy).toBe(false);
    expect(renderReport(report)).toContain("needs attention (1 warning): 98 % of the images can be seen");
  });

  test("is not one of whose records more than 1 % show nothing", async () => {
    const bucket = await createBucket(lab, { objects: numberedNames(100) });
    await runToEnd(lab, bucket);
    await removeObjects(lab, bucket, numberedNames(1));
    await runToEnd(lab, bucket);
    expect((await readReport(lab, bucket)).healthy).toBe(true);
    await removeObjects(lab, bucket, numberedNames(2));
    await runToEnd(lab, bucket);
    expect((await readReport(lab, bucket)).healthy).toBe(false);
  });
});

describe("what counts as an image", () => {
  test("hidden and system files, names of nothing but an extension and empty files are none, and each group is counted", async () => {
    const bucket = await createBucket(lab, {
      objects: [...numberedNames(3), "thumbs/000012.jpg", "notes.txt"],
    });
    const junk = [
      "._000001.jpg",
      "__MACOSX/._000001.jpg",
      "@eaDir/x.jpg/SYNOPHOTO_THUMB_XL.jpg",
      ".jpg",
      "a/.DS_Store",
    ];
    await addObjects(lab, bucket, junk);
    await lab.sql`
      insert into storage.objects (bucket_id, name, metadata) values (${bucket}, 'empty.jpg', '{"size": 0}')`;
    const run = await runToEnd(lab, bucket);
    expect(run).toMatchObject({
      state: "succeeded",
      balanced: true,
      totals: { images: 4, inserted: 4, not_images: 7 },
    });
    const { findings } = await readReport(lab, bucket);
    expect(Object.fromEntries(findings.map(({ code, count, samples }) => [code, [count, samples.length]])))
      .toEqual({
        empty_files: [1, 1],
        excluded_names: [5, 5],
        excluded_extensions: [1, 1],
      });
    const reasons = async (name: string) =>
      (await lab.database.readFile(bucket, name)).reasons.map(({ code }) => code);
    expect(await reasons("._000001.jpg")).toEqual(["excluded"]);
    expect(await reasons("empty.jpg")).toEqual(["empty"]);
  });

  test("an operator leaves a folder out, but a record that there is already is kept", async () => {
    const bucket = await createBucket(lab, { objects: [...numberedNames(2), "thumbs/1.jpg"] });
    await runToEnd(lab, bucket);
    await lab
      .sql`update image_sync.settings set exclude = exclude || '{thumbs/%}' where bucket_id = ${bucket}`;
    await addObjects(lab, bucket, ["thumbs/2.jpg"]);
    expect((await runToEnd(lab, bucket)).totals).toMatchObject({ recorded: 3, inserted: 0, not_images: 1 });
  });

  test("a pattern means what like makes of it, and one that like does not take is refused when it is set", async () => {
    const names = [
      "a_1.jpg",
      "ab1.jpg",
      "100%.jpg",
      "100 off.jpg",
      "b\\c.jpg",
      "thumbs/x.jpg",
      "my thumbs/x.jpg",
    ];
    const bucket = await createBucket(lab, { objects: names });
    const exclude = (patterns: readonly string[]) =>
      lab.sql`update image_sync.settings set exclude = ${[...patterns]}::text[] where bucket_id = ${bucket}`;
    await exclude(["a\\_1.jpg", "100\\%%", "b\\\\c%", "thumbs/%"]);
    expect((await runToEnd(lab, bucket)).totals).toMatchObject({ images: 3, not_images: 4 });
    expect((await readRecords(lab, bucket)).map(({ file_name }) => file_name).sort())
      .toEqual(["100 off.jpg", "ab1.jpg", "my thumbs/x.jpg"]);
    for (const refused of ["thumbs\\", "\\", "a\\\\\\"]) {
      await expect(exclude(["x", refused, "y"])).rejects.toThrow("settings_exclude_check");
    }
    await exclude(["thumbs\\\\", "a\\\\\\\\"]);
  });

  test("what only looks like a system's folder is none", async () => {
    const objects = [
      "MYMACOSX/1.jpg",
      "a/__MACOSX/2.jpg",
      "$RECYCLE.BIN/3.jpg",
      "System Volume Information/4.jpg",
      "eaDir/5.jpg",
    ];
    const bucket = await createBucket(lab, { objects });
    await runToEnd(lab, bucket);
    expect((await readRecords(lab, bucket)).map(({ file_name }) => file_name).sort())
      .toEqual(["MYMACOSX/1.jpg", "eaDir/5.jpg"]);
  });

  test("only extensions of pictures are offered, as a line that can be run as it stands", async () => {
    const names = ["a.crdownload", "b.db", "c.ini", "d.pdf", "e.png", "f.heic", "no extension"];
    const bucket = await createBucket(lab, { objects: [...numberedNames(2), ...names] });
    await runToEnd(lab, bucket);
    const [finding] = (await readReport(lab, bucket)).findings;
    expect(finding).toMatchObject({ code: "excluded_extensions", count: 7 });
    expect(finding?.remediation).toContain("Neither every spreadsheet nor every browser shows heic");
    await lab.sql.unsafe(sqlOf(finding));
    expect((await runToEnd(lab, bucket)).totals).toMatchObject({ inserted: 2 });
  });
});

describe("a finding about the schedule", () => {
  test("looks at what the jobs do, whatever their name, and its remedy mends them", async () => {
    const bucket = await createBucket(lab, { objects: numberedNames(2) });
    await runToEnd(lab, bucket);
    expect(codesOf(await readReport(lab, bucket))).toEqual([]);
    await cron("image-sync-nightly", "0 2 * * *", "select 1");
    const [finding] = (await readReport(lab, bucket)).findings;
    expect(finding).toMatchObject({ code: "job_missing", samples: ["image-sync-nightly"] });
    await lab.sql.unsafe(sqlOf(finding));
    expect(codesOf(await readReport(lab, bucket))).toEqual([]);

    await lab.sql`select cron.unschedule('image-sync-nightly')`;
    await cron("the shop's own name", "0 2 * * *", "select image_sync.run_nightly();");
    expect(codesOf(await readReport(lab, bucket))).toEqual([]);
    await lab.sql`select cron.unschedule('the shop''s own name')`;
    await restoreNightly();
  });

  test.each([
    ["select * from image_sync.run_nightly()", true],
    ['select "image_sync"."run_nightly"();', true],
    ["SELECT image_sync . run_nightly ( )", true],
    ["do $$ begin perform image_sync.run_nightly(); end $$", true],
    ["begin; select image_sync.run_nightly(); commit", true],
    ["/* the shop's */ select image_sync.run_nightly() -- at night", true],
    ["select 1 -- select image_sync.run_nightly()", false],
    ["select 1 /* select image_sync.run_nightly() */", false],
    ["select 'select image_sync.run_nightly()'", false],
    ["select image_sync.watchdog()", false],
  ])("reads the command %j for what it does", async (command, does) => {
    const bucket = await createBucket(lab, { objects: numberedNames(2) });
    await runToEnd(lab, bucket);
    await cron("image-sync-nightly", "0 2 * * *", command);
    try {
      expect(codesOf(await readReport(lab, bucket)).includes("job_missing")).toBe(!does);
    } finally {
      await restoreNightly();
    }
  });

  test.each(["0 2 * * SUN", "0 2 1 JAN *", "@daily"])(
    "knows when %s is due, and is late only then",
    async (schedule) => {
      const bucket = await createBucket(lab, { settings: { nightly: true }, objects: numberedNames(2) });
      await runToEnd(lab, bucket);
      await cron("image-sync-nightly", schedule, "select image_sync.run_nightly()");
      try {
        const report = await readReport(lab, bucket);
        expect(Date.parse(report.next_run_at ?? "")).toBeGreaterThan(Date.now());
        expect(codesOf(report).filter((code) => code !== "renewed_too_late")).toEqual([]);
        const age = (seconds: number) =>
          lab.sql`
          update image_sync.runs
          set
            started_at = now() - make_interval(secs => ${seconds}),
            finished_at = now() - make_interval(secs => ${seconds})
          where bucket_id = ${bucket}`;
        const isLate = async () => codesOf(await readReport(lab, bucket)).includes("no_recent_sync");
        const [before, last] = lastTimes(schedule);
        const sinceLast = (Date.now() - last) / 1000;
        // The last time that it was due it came; it has been due since, for longer than it may take; it did not come twice.
        await age(Math.max(sinceLast - 60, 0));
        expect(await isLate()).toBe(false);
        await age(sinceLast + 60);
        expect(await isLate()).toBe(sinceLast > 2 * 3600);
        await age((Date.now() - before) / 1000 + 60);
        expect(await isLate()).toBe(true);
      } finally {
        await restoreNightly();
      }
    },
  );

  test("has no limit for a bucket that is not part of the night", async () => {
    const bucket = await createBucket(lab, { objects: numberedNames(2) });
    await runToEnd(lab, bucket);
    await lab.sql`
      update image_sync.runs set started_at = now() - interval '400 days', finished_at = now() - interval '400 days'
      where bucket_id = ${bucket}`;
    expect(codesOf(await readReport(lab, bucket))).not.toContain("no_recent_sync");
  });

  test("about a call is gone when a later run succeeded", async () => {
    const bucket = await createBucket(lab, { objects: numberedNames(2) });
    const old = await openRun(lab, bucket);
    await lab.sql`update image_sync.runs set kick_id = 424242, kicked_at = now() where id = ${old.id}`;
    await lab.database.cancel(old.id);
    await runToEnd(lab, bucket);
    expect(codesOf(await readReport(lab, bucket))).toEqual([]);
  });
});

test.each(["gone\n", ""])(
  "records of a bucket that none can be called are archived as it says: %j",
  async (stray) => {
    const bucket = await createBucket(lab, { objects: numberedNames(2) });
    await runToEnd(lab, bucket);
    await lab.sql`insert into public.part_images (bucket_id, file_name) values (${stray}, 'x.jpg')`;
    if (stray !== "") {
      const body = JSON.stringify({ mode: "cleanup", bucket: stray, bucket_is_gone: true });
      const refused = await lab.call({ method: "POST", body });
      expect(refused.status).toBe(404);
      await refused.body?.cancel();
    }
    const finding = (await readReport(lab, bucket)).findings.find(({ code }) => code === "stray_records");
    const action = finding?.action ?? { sql: "" };
    await lab.sql.unsafe("sql" in action ? action.sql : "");
    expect(codesOf(await readReport(lab, bucket))).toEqual([]);
    expect(await lab.sql`select from image_sync.archive where bucket_id = ${stray} and file_name = 'x.jpg'`)
      .toHaveLength(1);
  },
);

test("a count that failed says nothing, not 0", async () => {
  const bucket = await createBucket(lab, { objects: numberedNames(2) });
  await runToEnd(lab, bucket);
  const { run } = await lab.database.start({
    run: crypto.randomUUID(),
    bucket,
    mode: "analyze",
    options: {},
  });
  await lab.database.cancel(run.id);
  const text = renderReport(await readReport(lab, bucket));
  expect(text).toMatch(/Last analyze {2}cancelled/);
  expect(text).not.toMatch(/Last analyze.* 0 missing/);
});

test("why a file is not in sync has one cause", async () => {
  const bucket = await createBucket(lab, { objects: ["a.jpg"] });
  await runToEnd(lab, bucket);
  await lab.sql`delete from public.part_images where bucket_id <> ${bucket}`;
  await lab.sql`alter table public.part_images add constraint test_part_number_key unique (part_number)`;
  try {
    await addObjects(lab, bucket, ["folder/a.jpg"]);
    expect((await lab.database.readFile(bucket, "folder/a.jpg")).reasons.map(({ code }) => code)).toEqual([
      "collided",
    ]);
  } finally {
    await lab.sql`alter table public.part_images drop constraint test_part_number_key`;
  }
});

test("what was deleted or moved while it was signed is an orphan only where a record lost its file", async () => {
  const known = ["deleted.jpg", "expired.jpg", "moved.jpg", "stays.jpg"];
  const bucket = await createBucket(lab, { objects: known });
  await runToEnd(lab, bucket);
  await lab.sql`
    update public.part_images
    set signed_url_expires_at = case file_name when 'expired.jpg' then now() - interval '1 day' end, signed_url = case file_name when 'expired.jpg' then signed_url end
    where bucket_id = ${bucket} and file_name <> 'stays.jpg'`;
  await addObjects(lab, bucket, ["new and deleted.jpg", "new.jpg"]);

  const run = await openRun(lab, bucket);
  const [worker, lease] = [crypto.randomUUID(), crypto.randomUUID()];
  const answer = await lab.database.advance({ run: run.id, worker, lease, closing: null });
  if (answer.next !== "sign") throw new Error(`There is nothing to sign: ${JSON.stringify(answer)}`);
  await removeObjects(lab, bucket, ["deleted.jpg", "expired.jpg", "new and deleted.jpg"]);
  await moveObjects(lab, bucket, { "moved.jpg": "away/moved.jpg" });
  const failures = answer.chunk.names.map((name) => ({ name, error: "Object not found" }));
  await lab.database.advance({
    run: run.id,
    worker,
    lease: null,
    closing: {
      ...NOTHING_SIGNED,
      lease,
      number: answer.chunk.number,
      failures,
      error: null,
      storageCalls: 1,
      retries: 0,
    },
  });
  await lab.call({ method: "POST", query: "", body: JSON.stringify({ bucket }) });
  expect(await waitForEnd(lab, run.id)).toMatchObject({
    balanced: true,
    totals: { withdrawn: 4, failed: 1, orphaned: 2, vanished: 1 },
  });
  expect(imbalances(await readLedgers(lab, run.id))).toEqual([]);

  const { difference, findings, coverage } = await readReport(lab, bucket);
  expect(difference.orphaned).toEqual({ count: 2, samples: ["deleted.jpg", "expired.jpg"] });
  expect(findings.find(({ code }) => code === "orphaned")).toMatchObject({ count: 2 });
  expect(coverage.recorded).toBe(1);
  const { totals } = await runToEnd(lab, bucket);
  expect(totals).toMatchObject({ moved: 1, orphaned: 2, signed: 2, failed: 0 });
});
