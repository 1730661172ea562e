/** Between `db push` and `functions deploy`: the function of the release before, beside the new schema. */
import { execFile } from "node:child_process";
import { cp, mkdir, mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { migrationOf, readSchema } from "../../cli/project/schema.ts";
import { VERSION } from "../../supabase/functions/image-sync/version.ts";
import { foundReportSchema, tell } from "../../supabase/functions/image-sync/findings.ts";
import { denoPath, projectDirectory } from "../support/stack.ts";
import { createBucket, jpeg, upload } from "../sync/support/lab.ts";
import { control, type LocalLab, openLocalLab, runJob, setLatency } from "../sync/support/local_lab.ts";

const run = promisify(execFile);
const released = join(projectDirectory, "tests/schema/fixtures/releases");
const VERSIONS = ["1.0.0", "1.1.0"];
const FUNCTION = "supabase/functions/image-sync";
const DEPLOY = "npx supabase functions deploy image-sync --use-api";

describe.each(VERSIONS)("the function of %s", (version) => {
  let directory: string;
  let lab: LocalLab;
  let bucket: string;
  const runOf = async () =>
    (await lab.sql`select * from image_sync.runs order by started_at desc limit 1`)[0];
  // The platform tells the Data API of a migration.
  const migrate = async (text: string) => {
    await lab.sql.unsafe(text);
    await lab.sql`notify pgrst, 'reload schema'`;
  };

  beforeAll(async () => {
    directory = await mkdtemp(join(tmpdir(), "image-sync-released-"));
    await mkdir(join(directory, "image-sync"));
    await run("tar", [
      "xzf",
      join(released, `${version}_function.tar.gz`),
      "-C",
      join(directory, "image-sync"),
    ]);
    // 1.0.0 has no lock; its imports are those of today.
    await cp(join(projectDirectory, FUNCTION, "deno.lock"), join(directory, "image-sync/deno.lock"));
    await run(denoPath, ["cache", "--frozen", "index.ts"], { cwd: join(directory, "image-sync") });
    lab = await openLocalLab(["--no-migrate", "--function", join(directory, "image-sync/index.ts")]);
    for (const each of VERSIONS.slice(0, VERSIONS.indexOf(version) + 1)) {
      await migrate(await readFile(join(released, `${each}.sql`), "utf8"));
    }
    bucket = await createBucket(lab, { settings: { chunk_size: 2, nightly: false } });
    for (let number = 1; number <= 40; number++) await upload(lab, bucket, `${number}.jpg`, jpeg);
  }, 90_000);
  afterAll(async () => {
    await lab?.close();
    await rm(directory, { recursive: true, force: true });
  });

  test(
    "stops when the migrations come while it works, is refused from then on, and the run waits for the next one",
    async () => {
      // Made before, or the run is over by then.
      const migration = migrationOf(await readSchema(), { from: version, to: VERSION });
      await setLatency(lab, 400);
      expect((await lab.call({ method: "POST", body: JSON.stringify({ bucket }) })).status).toBe(202);
      await expect.poll(async () => (await runOf())?.["moved_at"] > (await runOf())?.["started_at"]).toBe(
        true,
      );
      await migrate(migration);
      await setLatency(lab, 0);

      const refused = await lab.call({ method: "POST", body: JSON.stringify({ bucket }) });
      expect([refused.status, await refused.json()]).toEqual([
        503,
        expect.objectContaining({ code: "schema_mismatch", detail: expect.stringContaining(DEPLOY) }),
      ]);
      expect(await runOf()).toMatchObject({ finished_at: null });
      expect(
        await lab.sql`select count(*)::integer as dead from image_sync.chunks where state = 'dead'`,
      ).toEqual([{ dead: 0 }]);
      const [row] = await lab.sql`select image_sync_report(${bucket}) as report`;
      expect(tell(foundReportSchema.parse(row?.["report"].report)).findings).toContainEqual(
        expect.objectContaining({ code: "function_outdated", remediation: expect.stringContaining(DEPLOY) }),
      );

      // Deployed at last: the schedule's next call finds the new one.
      await rm(join(directory, "image-sync"), { recursive: true });
      await cp(join(projectDirectory, FUNCTION), join(directory, "image-sync"), {
        recursive: true,
      });
      await control(lab, "POST", "/function/kill");
      // Leases and delays are over.
      await lab.sql`update image_sync.chunks set lease_expires_at = now() where state = 'leased'`;
      await lab.sql`update image_sync.chunks set not_before = now() where state = 'pending'`;
      await expect.poll(async () => {
        // A call that comes while the function starts may be lost; the watchdog calls again.
        await lab.sql`
          update image_sync.runs set moved_at = now() - interval '1 minute', kicked_at = now() - interval '1 minute'
          where finished_at is null and greatest(moved_at, kicked_at) < now() - interval '5 seconds'`;
        await runJob(lab, "image-sync-watchdog");
        return (await runOf())?.["outcome"];
      }, { interval: 1_000, timeout: 60_000 }).toBe("succeeded");
      expect(
        await lab
          .sql`select count(*)::integer as signed from public.part_images where bucket_id = ${bucket} and signed_url <> ''`,
      ).toEqual([{ signed: 40 }]);
      expect(await lab.sql`select function_version from image_sync.project`).toEqual([{
        function_version: VERSION,
      }]);
    },
    90_000,
  );
});
