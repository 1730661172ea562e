import { access } from "node:fs/promises";
import { setTimeout as delay } from "node:timers/promises";
import postgres, { type Sql } from "postgres";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { createTestClient } from "../support/client.ts";
import { type LocalStack, startLocalStack } from "../support/stack.ts";

const postgresBin = "/usr/lib/postgresql/15/bin";
const control = "/usr/share/postgresql/15/extension/pg_cron.control";

const isInstalled = await access(control).then(() => true, () => false);
const isRequired = process.env["IMAGE_SYNC_REQUIRE_PG_CRON"] !== undefined;

/** A minute until the job is due, and as much again. */
const patience = 120_000;

describe.runIf(isInstalled || isRequired)("on a Postgres with the real pg_cron", () => {
  let stack: LocalStack;
  let sql: Sql;

  beforeAll(async () => {
    if (!isInstalled) throw new Error("Cannot test the real schedule: install Debian's postgresql-15-cron");
    stack = await startLocalStack(["--postgres", postgresBin]);
    sql = postgres(stack.dbUrl, { max: 1, onnotice: () => {} });
  });
  afterAll(async () => {
    await sql?.end();
    await stack?.stop();
  });

  test("the nightly job that pg_cron runs syncs every image", async () => {
    expect(stack.hasCron).toBe(true);
    const { storage } = createTestClient(stack.url, stack.secretKey);
    await storage.createBucket("part-images", { public: false });
    const pixel = Uint8Array.from([0xff, 0xd8, 0xff, 0xd9]);
    for (let number = 1; number <= 25; number++) {
      const { error } = await storage.from("part-images").upload(`${number}.jpg`, pixel, {
        contentType: "image/jpeg",
      });
      expect(error).toBeNull();
    }

    await sql`
      select cron.schedule('image-sync-nightly', to_char(now() at time zone 'UTC' + interval '1 minute', 'FMMI FMHH24') || ' * * *', command)
      from cron.job
      where jobname = 'image-sync-nightly'`;
    const run = await scheduledRun();

    expect(run).toMatchObject({ outcome: "succeeded", trigger: "schedule" });
    expect(run.summary.totals).toMatchObject({ images: 25, inserted: 25, signed: 25 });
    const [details] = await sql`
      select d.status
      from cron.job_run_details d
      join cron.job j using (jobid)
      where j.jobname = 'image-sync-nightly'`;
    expect(details).toMatchObject({ status: "succeeded" });
  }, patience + 30_000);

  async function scheduledRun() {
    const deadline = Date.now() + patience;
    while (Date.now() < deadline) {
      const [run] =
        await sql`select outcome, trigger, summary from image_sync.runs where finished_at is not null`;
      if (run !== undefined) return run as { outcome: string; trigger: string; summary: { totals: object } };
      await delay(500);
    }
    throw new Error(
      `No run finished within ${patience / 1000} s; the stack logged:\n${stack.log.slice(-30).join("\n")}`,
    );
  }
});

test.runIf(!isInstalled && !isRequired)(
  "the real schedule needs Debian's postgresql-15-cron, which is not installed",
  () => {
    expect(isInstalled).toBe(false);
  },
);
