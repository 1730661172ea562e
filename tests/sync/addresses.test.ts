/** Which URLs count as ours: those that readers of this project are meant to open. */
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import {
  addObjects,
  codesOf,
  createBucket,
  type Lab,
  numberedNames,
  openLab,
  readRecords,
  readReport,
  runToEnd,
} from "./support/lab.ts";

let lab: Lab;
beforeAll(async () => {
  lab = await openLab();
});
afterAll(() => lab?.close());

const urls = async (bucket: string) =>
  (await readRecords(lab, bucket)).map(({ signed_url }) => signed_url ?? "");

describe("a URL of another address", () => {
  test.each([
    "http://127.0.0.1:9/internal",
    "https://elsewhere.example/storage/v1/object/sign/BUCKET/000002.jpg?token=x",
    "HOME/storage/v1/object/sign/other/000002.jpg?token=x",
    "HOME/storage/v1/object/public/BUCKET/000002.jpg",
    "javascript:alert(1)",
  ])("is signed anew by the next sync, alone: %s", async (template) => {
    const bucket = await createBucket(lab, { objects: numberedNames(5) });
    await runToEnd(lab, bucket);
    const [home = ""] = (await urls(bucket)).map((url) => new URL(url).origin);
    const foreign = template.replace("BUCKET", bucket).replace("HOME", home);
    await lab.sql`
      update public.part_images set signed_url = ${foreign}, signed_url_expires_at = now() + interval '6 days'
      where bucket_id = ${bucket} and file_name = '000002.jpg'`;
    // Until then it counts as none.
    await runToEnd(lab, bucket, { mode: "analyze" });
    expect((await readReport(lab, bucket)).records).toMatchObject({ signed: 4, unsigned: 1 });
    expect((await runToEnd(lab, bucket)).totals).toMatchObject({ signed: 1, rows_written: 1 });
    expect(await urls(bucket)).toEqual(
      numberedNames(5).map((name) =>
        expect.stringContaining(`${home}/storage/v1/object/sign/${bucket}/${name}?token=`)
      ),
    );
    expect((await runToEnd(lab, bucket)).totals).toMatchObject({ rows_written: 0, storage_calls: 0 });
  });
});

describe("the address for readers", () => {
  test("is in every URL after the next sync when it was set, changed or taken back", async () => {
    const bucket = await createBucket(lab, { objects: [...numberedNames(3), "with space.jpg"] });
    await runToEnd(lab, bucket);
    for (const address of ["https://images.example", "https://other.example:8443", null]) {
      await lab.sql`update image_sync.settings set public_url = ${address} where bucket_id = ${bucket}`;
      expect((await runToEnd(lab, bucket)).totals).toMatchObject({ signed: 4 });
      for (const url of await urls(bucket)) {
        expect(new URL(url).origin).toBe(address ?? new URL(url).origin);
      }
      expect((await runToEnd(lab, bucket)).totals).toMatchObject({ rows_written: 0, storage_calls: 0 });
    }
  });

  test("is known of a bucket whose name a URL escapes", async () => {
    const bucket = `bucket (1) & co ${crypto.randomUUID()}`;
    await lab.sql`insert into storage.buckets (id, name, public) values (${bucket}, ${bucket}, false)`;
    await lab
      .sql`insert into image_sync.settings (bucket_id, nightly, probe_size) values (${bucket}, false, 0)`;
    lab.buckets.set(bucket, []);
    await addObjects(lab, bucket, numberedNames(2));
    await runToEnd(lab, bucket);
    expect((await runToEnd(lab, bucket)).totals).toMatchObject({ rows_written: 0, storage_calls: 0 });
    for (const name of [bucket, "bücket/1"]) {
      const [row] = await lab.sql`select image_sync.encode_uri_component(${name}) as encoded`;
      expect(row?.["encoded"]).toBe(encodeURIComponent(name));
    }
  });
});

describe("what used to be passed over", () => {
  test("renew all signs a record whose expiry is infinity", async () => {
    const bucket = await createBucket(lab, { objects: numberedNames(3) });
    await runToEnd(lab, bucket);
    await lab.sql`
      update public.part_images set signed_url_expires_at = 'infinity'
      where bucket_id = ${bucket} and file_name = '000002.jpg'`;
    expect((await runToEnd(lab, bucket, { renew: "all" })).totals).toMatchObject({ signed: 3 });
  });

  test("a hand-off of a run that there is not calls nobody", async () => {
    const request = { run: crypto.randomUUID(), worker: crypto.randomUUID(), leases: [] };
    expect(await lab.database.handOff(request)).toBe(false);
  });

  test("a record with an empty file name is counted as one without", async () => {
    const bucket = await createBucket(lab, { objects: numberedNames(2) });
    await lab.sql`insert into public.part_images (bucket_id, file_name) values (${bucket}, '')`;
    await runToEnd(lab, bucket);
    const { findings } = await readReport(lab, bucket);
    expect(findings).toMatchObject([{ code: "unnamed_records", count: 1 }]);
    const action = findings[0]?.action ?? { sql: "" };
    await lab.sql.unsafe("sql" in action ? action.sql : "");
    expect(await lab.sql`select from image_sync.archive where bucket_id = ${bucket} and reason = 'unnamed'`)
      .toHaveLength(1);
  });

  test("a report over names of 1,000 characters is small", async () => {
    const names = Array.from({ length: 400 }, (_, index) => `${"x".repeat(990)}${index}.png`);
    const bucket = await createBucket(lab, {
      objects: [...names, ...names.map((name) => name.replace(".png", ".jpg"))],
    });
    await runToEnd(lab, bucket);
    const report = await readReport(lab, bucket);
    expect(codesOf(report)).toEqual(["several_files", "excluded_extensions"]);
    expect(JSON.stringify(report).length).toBeLessThan(64_000);
  });

  test("a right to the one column that holds the URLs is a finding", async () => {
    const bucket = await createBucket(lab, { objects: numberedNames(1) });
    await runToEnd(lab, bucket);
    expect(codesOf(await readReport(lab, bucket))).toEqual([]);
    await lab.sql`grant select (signed_url) on public.part_images to anon`;
    await lab.sql`create policy test_column on public.part_images for select to anon using (true)`;
    try {
      expect(codesOf(await readReport(lab, bucket))).toEqual(["table_public"]);
    } finally {
      await lab.sql`revoke select (signed_url) on public.part_images from anon`;
      await lab.sql`drop policy test_column on public.part_images`;
    }
  });
});
