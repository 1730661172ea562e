/** Every finding's real fault, made in a bucket that has none. */
import postgres, { type Sql } from "postgres";
import { z } from "zod";
import { type FaultProxy, startFaultProxy } from "../../reliability/fault_proxy.ts";
import { VERSION } from "../../../supabase/functions/image-sync/version.ts";
import { startLocalStack } from "../../support/stack.ts";
import {
  addObjects,
  createBucket,
  createLab,
  jpeg,
  moveObjects,
  openRun,
  removeObjects,
  runToEnd,
  upload,
} from "../../sync/support/lab.ts";
import { control, type LocalLab, runJob } from "../../sync/support/local_lab.ts";

/** A stack whose function reaches Storage through a proxy that can refuse. */
export type Scene = {
  readonly lab: LocalLab;
  /** As superuser. */
  readonly admin: Sql;
  readonly proxy: FaultProxy;
  close(): Promise<void>;
};

/** How to bring a finding about, and how to undo what reaches beyond the bucket. */
export type FaultCase = {
  readonly level: "error" | "warning" | "info";
  /** False where more than one image in a hundred cannot be seen, whatever the finding's level. Default: as the level says. */
  readonly healthy?: false;
  readonly make: (scene: Scene, bucket: string) => Promise<unknown>;
  /** What the remediation asks of a person before the action that is printed, such as a file to upload. */
  readonly mend?: (scene: Scene, bucket: string) => Promise<unknown>;
  /** No action is printed: only a person can do something, or nothing is to be done. */
  readonly hasNoAction?: true;
  /** The SQL that is printed is for a superuser here: the stand-in's owner of storage and cron is one. */
  readonly needsAdmin?: true;
  readonly undo?: (scene: Scene, bucket: string) => Promise<unknown>;
};

/** Opens a scene; its other bucket takes no part in the night. */
export async function openScene(): Promise<Scene> {
  const proxy = await startFaultProxy();
  const stack = await startLocalStack(["--function-env", `SUPABASE_URL=${proxy.url}`]);
  proxy.setTarget(stack.url);
  const lab = { ...createLab({ ...stack, stack }), stack };
  const admin = postgres(stack.adminDbUrl, { max: 2, onnotice: () => {} });
  await lab.sql`update image_sync.settings set nightly = false`;
  return {
    lab,
    admin,
    proxy,
    async close() {
      await admin.end({ timeout: 5 });
      await lab.close();
      await proxy.close();
    },
  };
}

/** A bucket of three real images in perfect order. */
export async function createHealthyBucket({ lab }: Scene): Promise<string> {
  const bucket = await createBucket(lab, { settings: { probe_size: 3 } });
  for (const name of ["a.jpg", "b.jpg", "c.jpg"]) await upload(lab, bucket, name, jpeg);
  await runToEnd(lab, bucket);
  return bucket;
}

const analyze = ({ lab }: Scene, bucket: string) => runToEnd(lab, bucket, { mode: "analyze" });

const verify = ({ lab }: Scene, bucket: string) => runToEnd(lab, bucket, { mode: "verify" });

/** Changes records, then counts anew. */
const changeRecords = (change: string): FaultCase["make"] => async (scene, bucket) => {
  await scene.lab.sql.unsafe(
    `update public.part_images set ${change} where bucket_id = $1 and file_name = 'b.jpg'`,
    [bucket],
  );
  await analyze(scene, bucket);
};

/** The faults by the code of their finding. */
export const faults: Readonly<Record<string, FaultCase>> = {
  bucket_missing: {
    level: "error",
    make: ({ lab }, bucket) =>
      lab.sql.begin(async (sql) => {
        await sql`select set_config('storage.allow_delete_query', 'true', true)`;
        await sql`delete from storage.objects where bucket_id = ${bucket}`;
        await sql`delete from storage.buckets where id = ${bucket}`;
      }).then(() => runToEnd(lab, bucket)),
  },
  bucket_empty: {
    level: "error",
    mend: ({ lab }, bucket) => upload(lab, bucket, "a.jpg", jpeg),
    make: ({ lab }, bucket) => removeObjects(lab, bucket, ["a.jpg", "b.jpg", "c.jpg"]),
  },
  bucket_public: {
    level: "warning",
    make: ({ lab }, bucket) => lab.sql`update storage.buckets set public = true where id = ${bucket}`,
  },
  listing_failed: {
    level: "error",
    async make({ lab, admin }, bucket) {
      const { id } = await openRun(lab, bucket);
      await admin`revoke select on storage.objects from service_role`;
      await lab.call({ method: "POST", headers: waiting(lab), body: JSON.stringify({ run: id }) });
    },
    undo: ({ admin }) => admin`grant select on storage.objects to service_role`,
  },
  listing_incomplete: {
    level: "error",
    async make({ lab }, bucket) {
      const { run } = await lab.database.start({
        run: crypto.randomUUID(),
        bucket,
        mode: "analyze",
        options: {},
      });
      await lab.database.cancel(run.id);
    },
  },
  signing_failed: {
    level: "error",
    mend: ({ proxy }, bucket) => Promise.resolve(proxy.clear(bucket)),
    async make({ lab, proxy }, bucket) {
      proxy.add({
        route: "sign",
        bucket,
        times: Infinity,
        fault: {
          kind: "status",
          status: 400,
          body: { statusCode: "403", error: "Unauthorized", message: "Invalid Compact JWS" },
        },
      });
      await upload(lab, bucket, "new.jpg", jpeg);
      await runToEnd(lab, bucket);
    },
    undo: ({ proxy }, bucket) => Promise.resolve(proxy.clear(bucket)),
  },
  unsignable_names: {
    level: "warning",
    healthy: false,
    mend: ({ lab }, bucket) => moveObjects(lab, bucket, { "ümlaut.jpg": "umlaut.jpg" }),
    async make({ lab }, bucket) {
      await addObjects(lab, bucket, ["ümlaut.jpg"]);
      await runToEnd(lab, bucket);
    },
  },
  missing: {
    level: "warning",
    healthy: false,
    async make(scene, bucket) {
      await upload(scene.lab, bucket, "new.jpg", jpeg);
      await analyze(scene, bucket);
    },
  },
  orphaned: {
    level: "warning",
    healthy: false,
    async make(scene, bucket) {
      await removeObjects(scene.lab, bucket, ["b.jpg"]);
      await analyze(scene, bucket);
    },
  },
  collided: {
    level: "warning",
    healthy: false,
    mend: ({ lab }, bucket) => moveObjects(lab, bucket, { "folder/b.jpg": "folder/d.jpg" }),
    async make({ lab }, bucket) {
      await lab.sql.unsafe(
        `create unique index "unique in ${bucket}" on public.part_images (part_number) where bucket_id = '${bucket}'`,
      );
      await upload(lab, bucket, "folder/b.jpg", jpeg);
      await runToEnd(lab, bucket);
    },
  },
  row_locked: {
    level: "warning",
    healthy: false,
    async make({ lab, admin }, bucket) {
      await lab.sql`update public.part_images set signed_url = null where bucket_id = ${bucket}`;
      await admin.begin(async (transaction) => {
        await transaction`
          select from public.part_images where bucket_id = ${bucket} and file_name = 'b.jpg' for update`;
        await runToEnd(lab, bucket);
      });
    },
  },
  database_timeout: {
    level: "warning",
    healthy: false,
    mend: ({ lab }, bucket) =>
      lab.sql.unsafe(`alter table public.part_images disable trigger "test slow ${bucket}"`),
    async make({ lab, admin }, bucket) {
      await addSlowRow(lab, bucket);
      await limitStatements(admin, "1s");
      await upload(lab, bucket, "slow.jpg", jpeg);
      await runToEnd(lab, bucket);
    },
    async undo({ lab, admin }, bucket) {
      await limitStatements(admin, "8s");
      await lab.sql.unsafe(`drop trigger "test slow ${bucket}" on public.part_images`);
    },
  },
  url_refused: {
    level: "warning",
    async make({ lab }, bucket) {
      await lab.sql.unsafe(`
        create or replace function public.test_refuse() returns trigger language plpgsql as $$
        begin raise exception 'not this one'; end $$;
        create trigger "test refuses ${bucket}" before update on public.part_images
          for each row when (new.bucket_id = '${bucket}' and new.file_name = 'b.jpg') execute function public.test_refuse();`);
      await runToEnd(lab, bucket, { renew: "all" });
    },
    undo: ({ lab }, bucket) => lab.sql.unsafe(`drop trigger "test refuses ${bucket}" on public.part_images`),
  },
  moved: {
    level: "warning",
    healthy: false,
    async make(scene, bucket) {
      await moveObjects(scene.lab, bucket, { "b.jpg": "folder/b.jpg" });
      await analyze(scene, bucket);
    },
  },
  moved_away: {
    level: "warning",
    healthy: false,
    async make(scene, bucket) {
      const other = await createBucket(scene.lab);
      await moveObjects(scene.lab, bucket, { "b.jpg": "b.jpg" }, other);
      await runToEnd(scene.lab, bucket);
    },
  },
  not_moved: {
    level: "warning",
    healthy: false,
    mend: ({ lab }, bucket) =>
      lab.sql.unsafe(`alter table public.part_images disable trigger "test refuses ${bucket}"`),
    async make({ lab }, bucket) {
      await lab.sql.unsafe(`
        create or replace function public.test_refuse() returns trigger language plpgsql as $$
        begin raise exception 'not this one'; end $$;
        create trigger "test refuses ${bucket}" before update of file_name on public.part_images
          for each row when (new.bucket_id = '${bucket}') execute function public.test_refuse();`);
      await moveObjects(lab, bucket, { "b.jpg": "folder/b.jpg" });
      await runToEnd(lab, bucket);
    },
    undo: ({ lab }, bucket) => lab.sql.unsafe(`drop trigger "test refuses ${bucket}" on public.part_images`),
  },
  run_stands_still: {
    level: "error",
    async make({ lab }, bucket) {
      const { id } = await openRun(lab, bucket);
      await lab.sql`
        update image_sync.runs set moved_at = now() - interval '3 minutes', kicked_at = now() where id = ${id}`;
    },
  },
  table_refused: {
    level: "error",
    make: ({ admin }) => admin`revoke insert on public.part_images from service_role`,
    undo: ({ admin }) => admin`grant insert on public.part_images to service_role`,
  },
  renewed_too_late: {
    level: "warning",
    async make({ lab }, bucket) {
      await lab.sql`
        update image_sync.settings
        set nightly = true, signed_url_ttl = '2 hours', renew_before = '1 minute'
        where bucket_id = ${bucket}`;
      await lab
        .sql`select cron.schedule('image-sync-nightly', ${inTwelveHours()}, 'select image_sync.run_nightly()')`;
      await runToEnd(lab, bucket, { renew: "all" });
    },
    async undo({ lab }) {
      await lab
        .sql`select cron.schedule('image-sync-nightly', '0 2 * * *', 'select image_sync.run_nightly()')`;
    },
  },
  unsigned: {
    level: "warning",
    healthy: false,
    make: changeRecords("signed_url = null, signed_url_expires_at = null"),
  },
  expired: { level: "error", make: changeRecords("signed_url_expires_at = now() - interval '1 minute'") },
  register_opened_rarely: {
    level: "info",
    make: ({ lab }, bucket) =>
      lab.sql`
      insert into image_sync.readers (name, kind, bucket_id, key_hash, last_used_at)
      values ('once-a-month', 'https', ${bucket}, ${
        crypto.getRandomValues(Buffer.alloc(32))
      }, now() - interval '31 days')`,
    undo: ({ lab }) => lab.sql`delete from image_sync.readers`,
  },
  excluded_extensions: {
    level: "info",
    async make(scene, bucket) {
      await upload(scene.lab, bucket, "d.png", jpeg);
      await analyze(scene, bucket);
    },
  },
  excluded_names: {
    level: "info",
    hasNoAction: true,
    async make(scene, bucket) {
      for (const name of ["._a.jpg", "photos/.hidden.jpg", "__MACOSX/._a.jpg", ".jpg"]) {
        await upload(scene.lab, bucket, name, jpeg);
      }
      await runToEnd(scene.lab, bucket);
    },
  },
  empty_files: {
    level: "warning",
    mend: ({ lab }, bucket) => upload(lab, bucket, "empty.jpg", jpeg),
    async make(scene, bucket) {
      await upload(scene.lab, bucket, "empty.jpg", new Uint8Array());
      await runToEnd(scene.lab, bucket);
    },
  },
  several_files: {
    level: "warning",
    mend: ({ lab }, bucket) => removeObjects(lab, bucket, ["a_JPG.jpg"]),
    async make({ lab }, bucket) {
      await upload(lab, bucket, "a_JPG.jpg", jpeg);
      await runToEnd(lab, bucket);
    },
  },
  unnamed_records: {
    level: "warning",
    async make(scene, bucket) {
      await scene.lab
        .sql`insert into public.part_images (bucket_id, part_number) values (${bucket}, 'nameless')`;
      await analyze(scene, bucket);
    },
  },
  stray_records: {
    level: "warning",
    make: ({ lab }, bucket) =>
      lab.sql`insert into public.part_images (bucket_id, file_name) values (${`gone-${bucket}`}, 'x.jpg')`,
    undo: ({ lab }, bucket) =>
      lab.sql.begin(async (sql) => {
        await sql`delete from public.part_images where bucket_id = ${`gone-${bucket}`}`;
        await sql`delete from image_sync.settings where bucket_id = ${`gone-${bucket}`}`;
      }),
  },
  file_lost: {
    level: "warning",
    healthy: false,
    async make(scene, bucket) {
      await addObjects(scene.lab, bucket, ["lost.jpg"]);
      await runToEnd(scene.lab, bucket);
      await verify(scene, bucket);
    },
    mend: ({ lab }, bucket) => upload(lab, bucket, "lost.jpg", jpeg),
  },
  file_gone: {
    level: "warning",
    async make({ lab, proxy }, bucket) {
      await lab.sql`update image_sync.settings set probe_size = 20 where bucket_id = ${bucket}`;
      const held = proxy.hold({ route: "probe", bucket, when: "before", times: Infinity });
      const running = runToEnd(lab, bucket);
      await held.reached;
      await removeObjects(lab, bucket, ["b.jpg"]);
      held.release();
      await running;
    },
    undo: ({ proxy }, bucket) => Promise.resolve(proxy.clear(bucket)),
  },
  not_an_image: {
    level: "warning",
    healthy: false,
    async make(scene, bucket) {
      await upload(scene.lab, bucket, "page.jpg", new TextEncoder().encode("<!doctype html><p>no picture"));
      await runToEnd(scene.lab, bucket);
      await verify(scene, bucket);
    },
    mend: ({ lab }, bucket) => upload(lab, bucket, "page.jpg", jpeg),
  },
  wrong_content_type: {
    level: "warning",
    healthy: false,
    async make(scene, bucket) {
      const { lab } = scene;
      await lab.supabase.storage.from(bucket).upload("typeless.jpg", jpeg, {
        contentType: "application/octet-stream",
      });
      lab.buckets.get(bucket)?.push("typeless.jpg");
      await runToEnd(lab, bucket);
      await verify(scene, bucket);
    },
    mend: ({ lab }, bucket) => upload(lab, bucket, "typeless.jpg", jpeg),
  },
  url_rejected: {
    level: "error",
    async make({ lab }, bucket) {
      await control(lab, "POST", "/storage/rotate-signing-key");
      await runToEnd(lab, bucket);
    },
  },
  unreachable: {
    level: "error",
    async make(scene, bucket) {
      await scene.lab.sql`
        update image_sync.settings set public_url = 'http://127.0.0.1:9' where bucket_id = ${bucket}`;
      await runToEnd(scene.lab, bucket);
    },
    async mend({ lab }, bucket) {
      await lab.sql`update image_sync.settings set public_url = null where bucket_id = ${bucket}`;
      await runToEnd(lab, bucket);
    },
  },
  last_run_failed: {
    level: "error",
    async make({ lab }, bucket) {
      const { id } = await openRun(lab, bucket);
      await lab.sql`
        update image_sync.runs set moved_at = now() - interval '7 hours', kicked_at = now() where id = ${id}`;
      await runJob(lab, "image-sync-nightly");
    },
  },
  last_run_partial: {
    level: "warning",
    async make({ lab, proxy }, bucket) {
      // What Storage says of one file alone; its URL goes on to work.
      const rewrite = (body: string) =>
        JSON.stringify(
          z.array(z.looseObject({ path: z.string() })).parse(JSON.parse(body)).map((signed) =>
            signed.path === "b.jpg" ? { ...signed, error: "Internal error", signedURL: null } : signed
          ),
        );
      proxy.add({ route: "sign", bucket, fault: { kind: "rewrite", rewrite } });
      await runToEnd(lab, bucket, { renew: "all" });
    },
  },
  no_recent_sync: {
    level: "error",
    make: ({ lab }, bucket) =>
      lab.sql`
        with aged as (
          update image_sync.runs
          set started_at = now() - interval '27 hours', finished_at = now() - interval '27 hours'
          where bucket_id = ${bucket}
        )
        update image_sync.settings set nightly = true where bucket_id = ${bucket}`,
  },
  job_failed: {
    level: "error",
    make: ({ admin }) =>
      admin`
        insert into cron.job_run_details (jobid, runid, username, status, return_message, start_time, end_time)
        select j.jobid, 1000000, j.username, 'failed', 'ERROR: no such night', now(), now()
        from cron.job j where j.jobname = 'image-sync-nightly'`,
    undo: ({ admin }) => admin`delete from cron.job_run_details where runid = 1000000`,
  },
  calls_unanswered: {
    level: "error",
    async make({ lab }, bucket) {
      const { id } = await openRun(lab, bucket);
      await lab.sql`
        update image_sync.runs
        set kick_id = 987654321, kicked_at = now() - interval '1 minute', moved_at = now() - interval '3 minutes'
        where id = ${id}`;
    },
  },
  job_missing: {
    level: "error",
    make: ({ lab }) => lab.sql`select cron.unschedule('image-sync-nightly')`,
    undo: ({ lab }) =>
      lab.sql`select cron.schedule('image-sync-nightly', '0 2 * * *', 'select image_sync.run_nightly()')`,
  },
  function_unknown: {
    level: "error",
    make: ({ lab }) => lab.sql`delete from image_sync.project`,
    undo: ({ lab }) =>
      lab.sql`
        insert into image_sync.project (url, function_version) values (${lab.stack.url}, ${VERSION})
        on conflict do nothing`,
  },
  function_outdated: {
    level: "error",
    make: ({ admin }) => admin`update image_sync.project set function_version = '1.1.0'`,
    undo: ({ admin }) => admin`update image_sync.project set function_version = image_sync.schema_version()`,
  },
  address_stale: {
    level: "error",
    async make(scene, bucket) {
      const { lab } = scene;
      const { id } = await openRun(lab, bucket);
      // As if another project's database had queued the call.
      await lab.sql.begin(async (sql) => {
        await sql`select image_sync.kick(${id})`;
        await sql`update image_sync.runs set wake_hashes = '{}' where id = ${id}`;
      });
      await waitForAnswer(scene, id);
    },
    undo: ({ lab }) => lab.sql`update image_sync.runs set kick_id = null, kicked_at = null`,
  },
  last_call_failed: {
    level: "warning",
    async make(scene, bucket) {
      const { lab, admin } = scene;
      const { id } = await openRun(lab, bucket);
      const [project] = await admin`select url from image_sync.project`;
      await admin`update image_sync.project set url = ${`${lab.stack.url}:1`.replace(/:\d+:1$/, ":9")}`;
      await lab.sql`select image_sync.kick(${id})`;
      await waitForAnswer(scene, id);
      await admin`update image_sync.project set url = ${project?.["url"]}`;
    },
    undo: ({ lab }) => lab.sql`update image_sync.runs set kick_id = null, kicked_at = null`,
  },
  table_public: {
    level: "warning",
    make: ({ lab }) =>
      lab.sql.unsafe(`
        grant select on public.part_images to anon;
        create policy test_open on public.part_images for select to anon using (true);`),
    undo: ({ lab }) =>
      lab.sql.unsafe(`
        revoke select on public.part_images from anon;
        drop policy test_open on public.part_images;`),
  },
};

/** A schedule of one night a day, 12 hours from now: long after a URL of two hours has died. */
const inTwelveHours = () => `0 ${(new Date().getUTCHours() + 12) % 24} * * *`;

/** A row that takes its trigger longer than any statement may take. */
async function addSlowRow(lab: LocalLab, bucket: string): Promise<void> {
  await lab.sql.unsafe(`
    create or replace function public.test_be_slow() returns trigger language plpgsql as $$
    begin perform pg_sleep(30); return new; end $$;
    create trigger "test slow ${bucket}" before insert on public.part_images
      for each row when (new.bucket_id = '${bucket}' and new.file_name = 'slow.jpg') execute function public.test_be_slow();`);
}

async function limitStatements(admin: Sql, limit: string): Promise<void> {
  await admin.unsafe(`alter role authenticator set statement_timeout = '${limit}'`);
  await admin`
    select pg_terminate_backend(pid) from pg_stat_activity
    where backend_type = 'client backend' and usename = 'authenticator'`;
}

const waiting = (lab: LocalLab) => ({ apikey: lab.stack.secretKey, prefer: "wait=60" });

async function waitForAnswer({ admin }: Scene, run: string): Promise<void> {
  const deadline = Date.now() + 30_000;
  while (Date.now() < deadline) {
    const answers = await admin`
      select from net._http_response h join image_sync.runs r on r.kick_id = h.id where r.id = ${run}`;
    if (answers.length > 0) return;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  throw new Error(`The call for run ${run} was not answered within 30 s`);
}
