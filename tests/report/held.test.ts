/** The report and the list of buckets say what can be seen, whatever somebody holds meanwhile, and soon. */
import postgres, { type Sql } from "postgres";
import { afterAll, beforeAll, expect, test } from "vitest";
import { bucketListSchema, reportSchema } from "../../supabase/functions/image-sync/contract.ts";
import { createBucket, numberedNames, runToEnd } from "../sync/support/lab.ts";
import { type LocalLab, openLocalLab } from "../sync/support/local_lab.ts";

let lab: LocalLab;
/** As superuser. */
let admin: Sql;
const buckets: string[] = [];
beforeAll(async () => {
  lab = await openLocalLab();
  admin = postgres(lab.stack.adminDbUrl, { max: 2, onnotice: () => {} });
  for (let number = 0; number < 12; number++) {
    buckets.push(await createBucket(lab, { objects: numberedNames(2) }));
  }
  await runToEnd(lab, buckets[0] ?? "");
});
afterAll(async () => {
  await admin?.end({ timeout: 1 });
  await lab?.close();
});

const read = async (path: string): Promise<unknown> => {
  const response = await fetch(`${lab.stack.url}/functions/v1/image-sync${path}`, {
    headers: { apikey: lab.stack.secretKey },
  });
  expect(response.status).toBe(200);
  return await response.json();
};

test.each(["public.part_images", "storage.objects", "storage.buckets", "cron.job", "net._http_response"])(
  "while somebody holds %s as a whole",
  async (table) => {
    const session = await admin.reserve();
    await session`begin`;
    await session.unsafe(`lock table ${table} in access exclusive mode`);
    try {
      const started = Date.now();
      const report = reportSchema.parse(await read(`?bucket=${buckets[0]}`));
      expect(report).toMatchObject({ bucket: { objects: 2 }, last_runs: { sync: { state: "succeeded" } } });
      expect(report.findings).toEqual([]);
      const list = bucketListSchema.parse(await read("/buckets"));
      expect(list.buckets.map(({ bucket_id }) => bucket_id)).toEqual(expect.arrayContaining(buckets));
      // A second for each of the two, however many buckets: not one for each of them.
      expect(Date.now() - started).toBeLessThan(6_000);
    } finally {
      await session`rollback`;
      session.release();
    }
  },
);

test("a list of buckets makes one report for each, and looks once for what all findings share", async () => {
  await admin.begin(async (transaction) => {
    await transaction`set local track_functions = 'all'`;
    await transaction`select public.image_sync_buckets()`;
    const calls = await transaction<{ funcname: string; calls: number }[]>`
      select funcname, calls::integer from pg_stat_xact_user_functions where schemaname = 'image_sync'`;
    const [{ count } = { count: 0 }] = await transaction<{ count: number }[]>`
      select count(*)::integer from image_sync.settings`;
    const callsOf = (name: string) => calls.find(({ funcname }) => funcname === name)?.calls;
    expect({ reports: callsOf("report_of"), findings: callsOf("findings") })
      .toEqual({ reports: count, findings: count });
    // Once for the findings, once for the verdict.
    expect(callsOf("unseen")).toBeLessThanOrEqual(2 * count);
  });
});
