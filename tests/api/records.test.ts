/** What the window looks at, over HTTP: records by name and state, URLs by day of death, history, settings, archives. */
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import {
  archivedSchema,
  archiveListSchema,
  expirySchema,
  fileSchema,
  historySchema,
  type RecordItem,
  recordListSchema,
  reportSchema,
  settingsSchema,
} from "../../supabase/functions/image-sync/contract.ts";
import { addObjects, createBucket, numberedNames, removeObjects, runToEnd } from "../sync/support/lab.ts";
import { type LocalLab, openLocalLab } from "../sync/support/local_lab.ts";

let lab: LocalLab;
beforeAll(async () => {
  lab = await openLocalLab();
});
afterAll(() => lab?.close());

const ask = async (path: string, query: Record<string, string> = {}, init: RequestInit = {}) => {
  const response = await fetch(
    `${lab.stack.url}/functions/v1/image-sync${path}?${new URLSearchParams(query)}`,
    {
      ...init,
      headers: { apikey: lab.stack.secretKey },
    },
  );
  return { status: response.status, body: await response.json() };
};
const list = async (bucket: string, query: Record<string, string> = {}) =>
  recordListSchema.parse((await ask("/records", { bucket, ...query })).body);
const statesOf = (records: readonly RecordItem[]) =>
  Object.fromEntries(records.map(({ file_name, state }) => [file_name, state]));
const namesOf = (records: readonly RecordItem[]) => records.map(({ file_name }) => file_name);

describe("records", () => {
  test("say how each file and record stands", async () => {
    const bucket = await createBucket(lab, { objects: numberedNames(6) });
    await runToEnd(lab, bucket);
    await removeObjects(lab, bucket, ["000001.jpg"]);
    await addObjects(lab, bucket, ["._000009.jpg", "b.png", "new.jpg"]);
    await lab
      .sql`insert into storage.objects (bucket_id, name, metadata) values (${bucket}, 'zero.jpg', '{"size": 0}')`;
    await lab
      .sql`update public.part_images set signed_url = null, signed_url_expires_at = null where bucket_id = ${bucket} and file_name = '000002.jpg'`;
    await lab
      .sql`update public.part_images set signed_url_expires_at = now() - interval '1 hour' where bucket_id = ${bucket} and file_name = '000003.jpg'`;
    await lab
      .sql`update public.part_images set signed_url_expires_at = now() + interval '1 hour' where bucket_id = ${bucket} and file_name = '000004.jpg'`;
    await lab
      .sql`update public.part_images set signed_url = 'https://elsewhere.example/x?token=x' where bucket_id = ${bucket} and file_name = '000005.jpg'`;
    const states = {
      "._000009.jpg": "excluded",
      "000001.jpg": "orphaned",
      "000002.jpg": "unsigned",
      "000003.jpg": "expired",
      "000004.jpg": "expiring",
      "000005.jpg": "unsigned",
      "000006.jpg": "working",
      "b.png": "other",
      "new.jpg": "missing",
      "zero.jpg": "empty",
    };
    const all = await list(bucket);
    expect(statesOf(all.records)).toEqual(states);
    expect(all).toMatchObject({ next: null, as_of: null, url_base: null });
    for (const state of new Set(Object.values(states))) {
      const narrowed = await list(bucket, { state });
      expect(statesOf(narrowed.records)).toEqual(
        Object.fromEntries(Object.entries(states).filter(([, each]) => each === state)),
      );
      expect(narrowed.next).toBeNull();
    }
  });

  test("are paged by key, in byte order, without a gap or a repetition", async () => {
    const names = [...numberedNames(25), "A.jpg", "a.jpg", "shelf/000001.jpg", "ä.jpg"];
    const bucket = await createBucket(lab, { objects: names });
    const seen: string[] = [];
    for (let after: string | null = ""; after !== null;) {
      const page = await list(bucket, { after, limit: "4" });
      seen.push(...namesOf(page.records));
      after = page.next;
    }
    expect(seen).toEqual(
      names.toSorted((one, other) => Buffer.compare(Buffer.from(one), Buffer.from(other))),
    );
  });

  test("are found by the beginning of their name or part number, in any case of it", async () => {
    const bucket = await createBucket(lab, { objects: ["AB-1.jpg", "AB-2.jpg", "shelf/ab-1.jpg", "zz.jpg"] });
    await runToEnd(lab, bucket);
    expect(namesOf((await list(bucket, { search: "AB-" })).records)).toEqual([
      "AB-1.jpg",
      "AB-2.jpg",
      "shelf/ab-1.jpg",
    ]);
    expect(namesOf((await list(bucket, { search: "shelf/" })).records)).toEqual(["shelf/ab-1.jpg"]);
    expect(namesOf((await list(bucket, { search: "AB-1.jpg" })).records)).toEqual(["AB-1.jpg"]);
    expect((await list(bucket, { search: "nothing" })).records).toEqual([]);
  });

  test("of one part number are told together, and each names its twins", async () => {
    const bucket = await createBucket(lab, { objects: ["A.jpg", "a.JPG", "b.jpg", "shelf/B.jpg", "c.jpg"] });
    await runToEnd(lab, bucket);
    expect(namesOf((await list(bucket, { state: "several" })).records)).toEqual([
      "A.jpg",
      "a.JPG",
      "b.jpg",
      "shelf/B.jpg",
    ]);
    const file = fileSchema.parse((await ask("", { bucket, file: "A.jpg" })).body);
    expect(file).toMatchObject({ twins: ["a.JPG"], verified: null });
  });

  test("of one part number are told with the pictures beside them that are left out, which no record knows", async () => {
    const bucket = await createBucket(lab, {
      objects: [
        ...["1.jpg", "1 (1).jpg", "1.png", "2.gif", "2.jpg", "2.png", "3.jpg", "4.png", "5.jpg", "5.txt"],
        ...["f/6.jpg", "f/6.webp", "g/6.jpg", "7.jpg", "f/7.png", "._8.png", "8.jpg", "9.jpeg", "9.heic"],
      ],
    });
    await runToEnd(lab, bucket);
    const groups = [
      ...["1 (1).jpg", "1.jpg", "1.png", "f/6.jpg", "f/6.webp", "g/6.jpg"],
      ...["2.gif", "2.jpg", "2.png", "9.heic", "9.jpeg"],
    ];
    for (const limit of ["50", "1"]) {
      const seen: string[] = [];
      for (let after: string | null = ""; after !== null;) {
        const page = await list(bucket, { state: "several", after, limit });
        seen.push(...namesOf(page.records));
        after = page.next;
      }
      expect(seen, limit).toEqual(groups);
    }
    const { findings } = reportSchema.parse((await ask("", { bucket })).body);
    const finding = findings.find(({ code }) => code === "several_files");
    // Whatever the finding names is listed, and nothing else.
    const named = finding?.samples.flatMap((sample) => sample.replace(/^[^:]*: /, "").split(", "));
    expect(new Set(named)).toEqual(new Set(groups));
  });

  test("of a large bucket too: where the run's chunks saw such pictures", async () => {
    const pictures = numberedNames(20_000).filter((_, place) => place % 1500 === 3)
      .map((name) => name.replace(".jpg", ".png"));
    const bucket = await createBucket(lab, { objects: [...numberedNames(20_000), ...pictures] });
    await runToEnd(lab, bucket);
    const seen: string[] = [];
    for (let after: string | null = ""; after !== null;) {
      const page = await list(bucket, { state: "several", after, limit: "5" });
      expect(page.as_of).not.toBeNull();
      seen.push(...namesOf(page.records));
      after = page.next;
    }
    expect(seen).toEqual(pictures.flatMap((name) => [name.replace(".png", ".jpg"), name]));
  }, 60_000);

  test("of a file that is gone say that it is, and nothing of where it went", async () => {
    const bucket = await createBucket(lab, { objects: numberedNames(2) });
    await runToEnd(lab, bucket);
    await removeObjects(lab, bucket, ["000001.jpg"]);
    const file = fileSchema.parse((await ask("", { bucket, file: "000001.jpg" })).body);
    expect(file.reasons).toEqual([
      { code: "orphaned", detail: "There is a record, but no file of this name in the bucket" },
    ]);
  });

  test("show a URL only where it is asked for, and none that is dead", async () => {
    const bucket = await createBucket(lab, { objects: numberedNames(2) });
    await runToEnd(lab, bucket);
    await lab
      .sql`update public.part_images set signed_url_expires_at = now() - interval '1 hour' where bucket_id = ${bucket} and file_name = '000001.jpg'`;
    expect(JSON.stringify(await list(bucket))).not.toContain("token=");
    const { records, url_base } = await list(bucket, { urls: "true" });
    expect(records.map(({ url }) => url?.startsWith(url_base ?? "?") ?? false)).toEqual([false, true]);
  });

  test("that a verify saw no image of say why", async () => {
    // Objects without files: lost.
    const bucket = await createBucket(lab, { objects: numberedNames(3) });
    await runToEnd(lab, bucket);
    await runToEnd(lab, bucket, { mode: "verify" });
    const { records, as_of } = await list(bucket, { state: "broken" });
    expect(records.map(({ code }) => code)).toEqual(["file_lost", "file_lost", "file_lost"]);
    expect(as_of).not.toBeNull();
    expect(namesOf((await list(bucket, { state: "broken", limit: "2", after: "000001.jpg" })).records))
      .toEqual(["000002.jpg", "000003.jpg"]);
    const file = fileSchema.parse((await ask("", { bucket, file: "000002.jpg" })).body);
    expect(file.verified).toMatchObject({ code: "file_lost" });
  });

  test(
    "of a large bucket are looked for where the newest run found some, and every one is found",
    async () => {
      const bucket = await createBucket(lab, { objects: numberedNames(20_000) });
      await runToEnd(lab, bucket);
      const gone = numberedNames(20_000).filter((_, place) => place % 1999 === 7);
      await removeObjects(lab, bucket, gone);
      await runToEnd(lab, bucket, { mode: "analyze" });
      const seen: string[] = [];
      for (let after: string | null = ""; after !== null;) {
        const page = await list(bucket, { state: "orphaned", after, limit: "3" });
        expect(page.as_of).not.toBeNull();
        seen.push(...namesOf(page.records));
        after = page.next;
      }
      expect(seen).toEqual(gone);
      expect(await list(bucket, { state: "missing" })).toMatchObject({ records: [], next: null });
      expect(await list(bucket, { state: "several" })).toMatchObject({ records: [], next: null });
    },
    60_000,
  );
});

test("URLs are told by the day on which they die, as the chunks noted it when they were closed", async () => {
  const bucket = await createBucket(lab, {
    objects: numberedNames(2500),
    settings: { signed_url_ttl: "5 days" },
  });
  const empty = expirySchema.parse((await ask("/expiry", { bucket })).body);
  expect(empty).toMatchObject({ measured_at: null, days: [] });
  const run = await runToEnd(lab, bucket);
  const day = new Date(Date.parse(run.finished_at ?? "") + 5 * 86_400_000).toISOString().slice(0, 10);
  const signed = expirySchema.parse((await ask("/expiry", { bucket })).body);
  expect(signed).toMatchObject({ renew_before_seconds: 172_800, unsigned: 0, expired: 0 });
  expect(signed.days.reduce((sum, { urls }) => sum + urls, 0)).toBe(2500);
  expect(signed.days.map((each) => each.day)).toContain(day);
  // An analyze only reads, and sees the same.
  await lab
    .sql`update public.part_images set signed_url_expires_at = '2030-01-01' where bucket_id = ${bucket} and file_name <= '000100.jpg'`;
  await runToEnd(lab, bucket, { mode: "analyze" });
  const { days } = expirySchema.parse((await ask("/expiry", { bucket })).body);
  expect(days.at(-1)).toEqual({ day: "2030-01-01", urls: 100 });
});

test("the history tells each day's sync and sizes, and leaves holes where nothing ran", async () => {
  const bucket = await createBucket(lab, { objects: numberedNames(3) });
  const run = await runToEnd(lab, bucket);
  await lab.sql`
    update image_sync.runs set started_at = started_at - interval '3 days', finished_at = finished_at - interval '3 days', trigger = 'schedule' where id = ${run.id}`;
  await addObjects(lab, bucket, ["000004.jpg"]);
  await runToEnd(lab, bucket);
  const { days, from, to } = historySchema.parse((await ask("/history", { bucket, days: "30" })).body);
  expect(days.map(({ objects, inserted, sync, night }) => ({ objects, inserted, sync, night }))).toEqual([
    { objects: 3, inserted: 3, sync: "succeeded", night: "succeeded" },
    { objects: 4, inserted: 1, sync: "succeeded", night: undefined },
  ]);
  expect((Date.parse(to) - Date.parse(from)) / 86_400_000).toBe(29);
});

describe("settings", () => {
  const change = (bucket: string, changes: Record<string, unknown>) =>
    ask("/settings", {}, { method: "PATCH", body: JSON.stringify({ bucket, changes }) });

  test("come with what they mean and what is allowed", async () => {
    const bucket = await createBucket(lab);
    const { fields } = settingsSchema.parse((await ask("/settings", { bucket })).body);
    expect(fields.filter(({ meaning }) => meaning === null)).toEqual([]);
    expect(fields.find(({ name }) => name === "chunk_size")).toMatchObject({
      value: 1000,
      default: "1000",
      bounds: "From 1 to 1,000.",
    });
    expect(fields.find(({ name }) => name === "signed_url_ttl")).toMatchObject({
      value: "7 days",
      default: "7 days",
    });
    expect(fields.find(({ name }) => name === "extensions")).toMatchObject({
      value: ["jpg", "jpeg"],
      default: "{jpg,jpeg}",
    });
  });

  test("are changed together, or not at all, and a refusal names the field in the words of its check", async () => {
    const bucket = await createBucket(lab);
    const changed = await change(bucket, {
      chunk_size: "500",
      extensions: ["jpg", "png"],
      signed_url_ttl: "10 days",
      nightly: true,
      public_url: null,
    });
    const { fields } = settingsSchema.parse(changed.body);
    expect(fields.find(({ name }) => name === "signed_url_ttl")?.value).toBe("10 days");
    // Every column of the table is in the form, and can be changed.
    const unchanged = fields.map(({ name, value }) => [name, value] as const);
    expect((await change(bucket, Object.fromEntries(unchanged))).body).toEqual(changed.body);
    const refusals: [Record<string, unknown>, string, string][] = [
      [{ probe_size: 5, chunk_size: "1001" }, "chunk_size", "From 1 to 1,000."],
      [{ renew_before: "11 days" }, "renew_before", "less than a URL lives"],
      [{ signed_url_ttl: "soon" }, "signed_url_ttl", "interval"],
      [{ chunk_size: null }, "chunk_size", "must have a value"],
      [{ bucket_id: "other" }, "bucket_id", "no such setting"],
      [{ extensions: ["JPG"] }, "extensions", "lower case"],
      [{ extensions: ["jpg\n"] }, "extensions", "control characters"],
      [{ exclude: ["a/%\nb/%"] }, "exclude", "control characters"],
      [{ public_url: "https://example.com\n" }, "public_url", "Scheme and host without a path"],
      [{ keep_runs: "10000 years" }, "keep_runs", "up to 100 years"],
      [{ keep_chunks: "200 years", keep_runs: "200 years" }, "keep_chunks", "From 2 days to 100 years"],
    ];
    for (const [changes, field, words] of refusals) {
      const { status, body } = await change(bucket, changes);
      expect([status, body.code, body.errors[0].field]).toEqual([400, "invalid_setting", field]);
      expect(body.errors[0].message).toContain(words);
    }
    const [row] = await lab
      .sql`select chunk_size, probe_size, signed_url_ttl::text from image_sync.settings where bucket_id = ${bucket}`;
    expect(row).toEqual({ chunk_size: 500, probe_size: 0, signed_url_ttl: "10 days" });
  });

  test("have words for every check of the table", async () => {
    const checks = await lab.sql`
      select conname as name from pg_catalog.pg_constraint
      where conrelid = 'image_sync.settings'::regclass and contype = 'c' and conname <> 'settings_bucket_id_check'
        and obj_description(oid, 'pg_constraint') is null`;
    expect(checks.map(({ name }) => name)).toEqual([]);
  });
});

test("archives tell what each cleanup removed, name by name, and what was put back since", async () => {
  const bucket = await createBucket(lab, {
    objects: numberedNames(20),
    settings: { max_delete_fraction: 1 },
  });
  await runToEnd(lab, bucket);
  expect(archiveListSchema.parse((await ask("/archives", { bucket })).body).archives).toEqual([]);
  await removeObjects(lab, bucket, ["000001.jpg", "000002.jpg"]);
  const plan = await runToEnd(lab, bucket, { mode: "cleanup" });
  const cleanup = await runToEnd(lab, bucket, { mode: "cleanup", confirm: plan.id });
  const archives = async () => archiveListSchema.parse((await ask("/archives", { bucket })).body).archives;
  expect(await archives()).toMatchObject([{ run: cleanup.id, removed: 2, restored: 0 }]);
  const page = archivedSchema.parse((await ask("/archived", { run: cleanup.id, limit: "1" })).body);
  expect(page).toMatchObject({
    records: [{ file_name: "000001.jpg", part_number: "000001", restored_at: null }],
    next: "000001.jpg",
  });
  await runToEnd(lab, bucket, { mode: "restore", restore: cleanup.id });
  expect(await archives()).toMatchObject([{ run: cleanup.id, removed: 2, restored: 2 }]);
});

test("none of them is for a caller without a secret key, and each says what it does not know", async () => {
  for (const path of ["/records", "/expiry", "/history", "/settings", "/archives", "/archived"]) {
    const response = await fetch(`${lab.stack.url}/functions/v1/image-sync${path}`);
    expect([path, response.status]).toEqual([path, 401]);
    await response.body?.cancel();
  }
  for (const path of ["/records", "/expiry", "/history", "/settings"]) {
    expect((await ask(path, { bucket: "no-such" })).body).toMatchObject({
      status: 404,
      code: "unknown_bucket",
    });
  }
  expect((await ask("/records", { state: "nonsense" })).status).toBe(400);
  expect((await ask("/records", { limit: "101" })).status).toBe(400);
});
