import { afterAll, beforeAll, describe, expect, test } from "vitest";
import {
  addObjects,
  createBucket,
  expiryOf,
  jpeg,
  numberedNames,
  readRecords,
  runToEnd,
  upload,
} from "./support/lab.ts";
import { control, counting, type LocalLab, openLocalLab, runJob } from "./support/local_lab.ts";

let lab: LocalLab;
beforeAll(async () => {
  lab = await openLocalLab();
});
afterAll(() => lab?.close());

/** Sets when URLs expire, as an SQL expression; the URLs themselves stay. */
async function setExpiry(bucket: string, name: string, expression: string): Promise<void> {
  await lab.sql`
    update public.part_images set signed_url_expires_at = ${lab.sql.unsafe(expression)}
    where bucket_id = ${bucket} and file_name = ${name}`;
}

async function changedBy(bucket: string, body: Record<string, unknown> = {}): Promise<string[]> {
  const before = new Map((await readRecords(lab, bucket)).map(({ id, version }) => [id, version]));
  await runToEnd(lab, bucket, body);
  const records = await readRecords(lab, bucket);
  return records.filter(({ id, version }) => before.get(id) !== version).map(({ file_name }) => file_name);
}

describe("a signed URL", () => {
  test.each([["1 minute", "30 seconds", 60], ["7 days", "2 days", 604_800], [
    "365 days",
    "1 day",
    31_536_000,
  ]])(
    "that lives %s never outlives its token in the table",
    async (ttl, renewBefore, seconds) => {
      const bucket = await createBucket(lab, {
        settings: { signed_url_ttl: ttl, renew_before: renewBefore },
        objects: numberedNames(20),
      });
      await runToEnd(lab, bucket);
      const now = Date.now() / 1000;
      for (const { signed_url, signed_url_expires_at } of await readRecords(lab, bucket)) {
        const expiry = expiryOf(signed_url ?? "").getTime() / 1000;
        expect(signed_url_expires_at?.getTime()).toBeLessThanOrEqual(expiry * 1000);
        expect(signed_url_expires_at?.getTime()).toBeGreaterThan((expiry - 2) * 1000);
        expect(expiry).toBeLessThanOrEqual(now + seconds + 1);
        expect(expiry).toBeGreaterThan(now + seconds - 60);
      }
    },
  );

  test("is made anew only where it is missing, expired, of unknown expiry or within renew_before", async () => {
    const bucket = await createBucket(lab, { objects: numberedNames(10) });
    await runToEnd(lab, bucket);
    const [fresh, , soon, notYet, expired, unknown, none, empty] = numberedNames(10) as [string, ...string[]];
    await setExpiry(bucket, soon ?? "", "now() + interval '47 hours 59 minutes'");
    await setExpiry(bucket, notYet ?? "", "now() + interval '48 hours 10 minutes'");
    await setExpiry(bucket, expired ?? "", "now() - interval '1 second'");
    await setExpiry(bucket, unknown ?? "", "null");
    await lab
      .sql`update public.part_images set signed_url = null where bucket_id = ${bucket} and file_name = ${
      none ?? ""
    }`;
    await lab.sql`update public.part_images set signed_url = '' where bucket_id = ${bucket} and file_name = ${
      empty ?? ""
    }`;
    expect(await changedBy(bucket)).toEqual([soon, expired, unknown, none, empty]);
    expect(await changedBy(bucket)).toEqual([]);
    expect(fresh).toBe("000001.jpg");
  });

  test("keeps to the bucket's own renew_before", async () => {
    const bucket = await createBucket(lab, { objects: numberedNames(3) });
    await runToEnd(lab, bucket);
    await lab
      .sql`update image_sync.settings set renew_before = '6 days 23 hours 59 minutes 59 seconds' where bucket_id = ${bucket}`;
    await lab
      .sql`update public.part_images set signed_url_expires_at = signed_url_expires_at - interval '1 minute' where bucket_id = ${bucket}`;
    expect(await changedBy(bucket)).toEqual(numberedNames(3));
  });

  test("that was cut by a column of limited length is signed anew, and counts as one that does not work", async () => {
    const bucket = await createBucket(lab);
    const [whole, ...cut] = numberedNames(9);
    for (const name of numberedNames(9)) await upload(lab, bucket, name, jpeg);
    await runToEnd(lab, bucket);
    // At 255 characters, as varchar(255) does it; before the token, in its mark, in each of its parts, by one character.
    const places = [
      "255",
      "strpos(signed_url, '?')",
      "strpos(signed_url, '=')",
      "strpos(signed_url, '=') + 2",
      "strpos(signed_url, '=') + 10",
      "length(signed_url) - 43",
      "length(signed_url) - 44",
      "length(signed_url) - 1",
    ];
    for (const [place, name] of cut.entries()) {
      await lab.sql.unsafe(
        `update public.part_images set signed_url = left(signed_url, ${
          places[place]
        }) where bucket_id = $1 and file_name = $2`,
        [bucket, name],
      );
    }
    const analyzed = await runToEnd(lab, bucket, { mode: "analyze" });
    expect(analyzed.state).toBe("succeeded");
    const report = await lab.database.readReport(bucket);
    expect(report).toMatchObject({ healthy: false, records: { signed: 1, expired: 8 } });
    expect(report.findings.map(({ code, count }) => [code, count])).toEqual([["expired", 8]]);
    expect(await lab.database.readFile(bucket, cut[0] ?? "")).toMatchObject({
      in_sync: false,
      reasons: [{ code: "expired" }],
    });
    expect(await changedBy(bucket)).toEqual(cut);
    expect(await changedBy(bucket)).toEqual([]);
    for (const { signed_url: url } of await readRecords(lab, bucket)) {
      expect((await fetch(url ?? "")).status).toBe(200);
    }
    expect(whole).toBe("000001.jpg");
  });

  test("works again after the signing key was rotated and everything renewed", async () => {
    const bucket = await createBucket(lab, { settings: { chunk_size: 4 } });
    for (const name of numberedNames(10)) await upload(lab, bucket, name, jpeg);
    await runToEnd(lab, bucket);
    const statuses = async () =>
      await Promise.all((await readRecords(lab, bucket)).map(async ({ signed_url }) => {
        const response = await fetch(signed_url ?? "");
        await response.body?.cancel();
        return response.status;
      }));
    expect(new Set(await statuses())).toEqual(new Set([200]));
    await control(lab, "POST", "/storage/rotate-signing-key");
    expect(new Set(await statuses())).toEqual(new Set([400]));
    // A plain sync cannot know: nothing is due.
    expect(await changedBy(bucket)).toEqual([]);
    expect(await changedBy(bucket, { renew: "all" })).toEqual(numberedNames(10));
    expect(new Set(await statuses())).toEqual(new Set([200]));
    expect(await changedBy(bucket)).toEqual([]);
  });

  test("of a record whose file is gone is left as it is, also when everything is renewed", async () => {
    const bucket = await createBucket(lab, { objects: numberedNames(2) });
    await lab.sql`insert into public.part_images (bucket_id, file_name) values (${bucket}, 'gone.jpg')`;
    expect(await changedBy(bucket, { renew: "all" })).toEqual(numberedNames(2));
  });

  test("is made for the readers' address where the settings name one", async () => {
    const bucket = await createBucket(lab, {
      settings: { public_url: "https://images.example.com" },
      objects: ["what? & why.jpg"],
    });
    await runToEnd(lab, bucket);
    expect((await readRecords(lab, bucket))[0]?.signed_url).toMatch(
      new RegExp(
        `^https://images\\.example\\.com/storage/v1/object/sign/${bucket}/what%3F%20%26%20why\\.jpg\\?token=ey`,
      ),
    );
  });
});

describe("requests", () => {
  test("a chunk that needs signing costs two, one of the database and one of Storage", async () => {
    const bucket = await createBucket(lab, { settings: { chunk_size: 10 }, objects: numberedNames(195) });
    const { result: run, counts } = await counting(lab, () => runToEnd(lab, bucket));
    expect(run).toMatchObject({
      state: "succeeded",
      chunks: 20,
      totals: { signed: 195, storage_calls: 20, retries: 0 },
    });
    expect(counts.storage).toEqual({ sign_many: 20 });
    expect(counts.rpc["image_sync_start"]).toBe(1);
    // Each of the four lanes makes one call that finds nothing left to sign.
    expect(counts.rpc["image_sync_advance"]).toBeGreaterThanOrEqual(20);
    expect(counts.rpc["image_sync_advance"]).toBeLessThanOrEqual(20 + 5);
  });

  test("chunks that need none cost none: one call walks over them to the one that does", async () => {
    const bucket = await createBucket(lab, { settings: { chunk_size: 10 }, objects: numberedNames(400) });
    await runToEnd(lab, bucket);
    await addObjects(lab, bucket, ["000350-new.jpg"]);
    const { result: run, counts } = await counting(lab, () => runToEnd(lab, bucket));
    expect(run).toMatchObject({
      state: "succeeded",
      totals: { listed: 401, signed: 1, storage_calls: 1 },
    });
    expect(counts.storage).toEqual({ sign_many: 1 });
    // Two would do; a call walks for 250 ms at most, which on a busy machine makes a few more.
    expect(counts.rpc["image_sync_advance"]).toBeLessThanOrEqual(12);
  });

  test("the watchdog makes none while nothing is open", async () => {
    const { counts } = await counting(lab, () => runJob(lab, "image-sync-watchdog"));
    expect(counts).toEqual({ function: 0, rpc: {}, storage: {} });
    expect(await lab.sql`select from net.http_request_queue`).toHaveLength(0);
  });
});
