/** A stack whose function reaches everything through the fault proxy, and what the tests do with it. */
import { randomUUID } from "node:crypto";
import type { SupabaseClient } from "@supabase/supabase-js";
import postgres, { type Sql } from "postgres";
import { z } from "zod";
import { createTestClient } from "../../support/client.ts";
import { type LocalStack, startLocalStack } from "../../support/stack.ts";
import { ledgersIn } from "../../sync/support/lab.ts";
import { type FaultProxy, startFaultProxy } from "../fault_proxy.ts";

/** One stack with its proxy. */
export type Scene = {
  readonly stack: LocalStack;
  readonly proxy: FaultProxy;
  /** As superuser. */
  readonly sql: Sql;
  readonly client: SupabaseClient;
  close(): Promise<void>;
};

const runSchema = z.looseObject({
  id: z.string(),
  state: z.string(),
  stop_reason: z.string().nullable(),
  balanced: z.boolean(),
  invocations: z.number(),
  totals: z.record(z.string(), z.number()),
  error: z.looseObject({ code: z.string() }).nullable(),
  problems: z.array(z.looseObject({ name: z.string(), code: z.string() })),
});
/** A run as the function answers it. */
export type Run = z.infer<typeof runSchema>;

/** Opens a scene. */
export async function openScene(): Promise<Scene> {
  const proxy = await startFaultProxy();
  const stack = await startLocalStack(["--function-env", `SUPABASE_URL=${proxy.url}`]);
  proxy.setTarget(stack.url);
  const sql = postgres(stack.adminDbUrl, { max: 4, onnotice: () => {} });
  // What was committed has to outlive a crash of the server here. Sessions take it over when they begin.
  await sql`alter database postgres set synchronous_commit = on`;
  await endSessions(sql);
  const client = createTestClient(stack.url, stack.secretKey);
  return {
    stack,
    proxy,
    sql,
    client,
    close: async () => {
      await sql.end({ timeout: 1 });
      await stack.stop();
      await proxy.close();
    },
  };
}

/**
 * Ends every session of the API and of Storage, as a failover does, and waits until they are gone: a server that was told to
 * end a session takes its time, and whoever is handed such a session meanwhile is refused for a reason that says nothing of
 * what is asked.
 */
export async function endSessions(sql: Sql): Promise<void> {
  const ended = await sql<{ pid: number }[]>`
    select pid, pg_terminate_backend(pid)
    from pg_stat_activity
    where backend_type = 'client backend'
      and usename in ('authenticator', 'supabase_storage_admin')`;
  const pids = ended.map(({ pid }) => pid);
  await poll(async () => {
    const [left] = await sql`select count(*)::int as count from pg_stat_activity where pid = any(${pids})`;
    return left?.["count"] === 0;
  }, { what: "the ended sessions were gone" });
}

/** Calls one of the stack's own endpoints. */
export async function control(scene: Scene, path: string): Promise<void> {
  const response = await fetch(`${scene.stack.url}/_local${path}`, {
    method: "POST",
    headers: { apikey: scene.stack.secretKey },
  });
  if (!response.ok) {
    throw new Error(`Cannot post ${path} to the stack: ${response.status} ${await response.text()}`);
  }
}

/** Runs one of the scheduled jobs now. */
export const runJob = (scene: Scene, job: string): Promise<void> => control(scene, `/cron/run?job=${job}`);

/** What a test may choose of its bucket. */
export type BucketOptions = {
  readonly files: readonly string[];
  readonly settings?: Readonly<Record<string, number | string | boolean>>;
};

/** Makes a bucket with settings of its own and uploads its files; what a record needs to be good is there. */
export async function createBucket(scene: Scene, { files, settings = {} }: BucketOptions): Promise<string> {
  const bucket = `bucket-${randomUUID().slice(0, 8)}`;
  const { error } = await scene.client.storage.createBucket(bucket, { public: false });
  if (error) throw error;
  const row = {
    bucket_id: bucket,
    chunk_size: 2,
    retry_delay: "0 s",
    max_attempts: 20,
    nightly: false,
    ...settings,
  };
  await scene.sql`insert into image_sync.settings ${scene.sql(row)}`;
  const image = new Uint8Array([0xff, 0xd8, 0xff, 0xd9]);
  await Promise.all(files.map(async (file) => {
    const uploaded = await scene.client.storage.from(bucket).upload(file, image, {
      contentType: "image/jpeg",
    });
    if (uploaded.error) throw uploaded.error;
  }));
  return bucket;
}

/** Names like `000001.jpg`. */
export const fileNames = (count: number): string[] =>
  Array.from({ length: count }, (_, index) => `${String(index + 1).padStart(6, "0")}.jpg`);

/** Posts a request for a bucket; the answer as it is. */
export async function post(scene: Scene, body: Record<string, unknown>, wait = 0): Promise<Response> {
  return await fetch(`${scene.stack.url}/functions/v1/image-sync`, {
    method: "POST",
    headers: {
      apikey: scene.stack.secretKey,
      "content-type": "application/json",
      ...(wait > 0 ? { prefer: `wait=${wait}` } : {}),
    },
    body: JSON.stringify(body),
  });
}

/** Starts a sync, again until the function takes the request, as a caller does that got no answer. */
export async function startSync(scene: Scene, bucket: string): Promise<void> {
  await poll(async () => (await post(scene, { bucket }).catch(() => undefined))?.status === 202, {
    what: "a sync was accepted",
  });
}

/** The last sync of a bucket. */
export async function lastRun(scene: Scene, bucket: string): Promise<Run | undefined> {
  const [row] = await scene.sql`
    select image_sync.run_document(id) as document
    from image_sync.runs
    where bucket_id = ${bucket}
    order by started_at desc
    limit 1`;
  return row === undefined ? undefined : runSchema.parse(row["document"]);
}

/** Waits until the bucket's last run is finished. */
export async function finishedRun(scene: Scene, bucket: string, timeoutMs = 60_000): Promise<Run> {
  let run: Run | undefined;
  await poll(async () => {
    run = await lastRun(scene, bucket).catch(() => undefined);
    return run !== undefined && run.state !== "open";
  }, { what: `the run of ${bucket} ended`, timeoutMs, describe: () => JSON.stringify(run) });
  if (run === undefined) throw new Error("Cannot happen: the run was read");
  return run;
}

/** Lets time pass for a bucket: every lease has run out, every run has stood still for a minute. Then the watchdog comes. */
export async function passTime(scene: Scene, bucket: string): Promise<void> {
  await scene.sql`
    update image_sync.chunks
    set lease_expires_at = now() - interval '1 second'
    where state = 'leased' and run_id in (select id from image_sync.runs where bucket_id = ${bucket})`;
  await scene.sql`
    update image_sync.runs
    set moved_at = now() - interval '1 minute', kicked_at = null
    where finished_at is null and bucket_id = ${bucket}`;
  await runJob(scene, "image-sync-watchdog");
}

/** Everything that must be the same at the end, whatever happened on the way. */
export type EndState = {
  readonly records: readonly string[];
  readonly badUrls: readonly string[];
  readonly runs: number;
  readonly outcome: string;
  readonly balanced: boolean;
  readonly totals: Readonly<Record<string, number>>;
  readonly ledgerErrors: number;
  readonly leases: number;
};

/** Reads a bucket's end state; every URL is fetched. */
export async function readEndState(scene: Scene, bucket: string): Promise<EndState> {
  const { sql } = scene;
  const run = await lastRun(scene, bucket);
  const rows = await sql<{ file_name: string; part_number: string; signed_url: string | null }[]>`
    select file_name, part_number, signed_url from public.part_images where bucket_id = ${bucket} order by file_name collate "C"`;
  const good = await Promise.all(rows.map(async ({ signed_url: url }) => {
    const path = url === null ? "" : new URL(url).pathname + new URL(url).search;
    return url !== null && (await fetch(scene.stack.url + path)).status === 200;
  }));
  const [counts] = await sql<{ runs: number; leases: number; ledger_errors: number }[]>`
    select
      (select count(*)::int from image_sync.runs r where r.bucket_id = ${bucket}) as runs,
      count(*) filter (where c.state = 'leased' or c.lease_expires_at is not null)::int as leases,
      count(*) filter (where
        c.listed <> c.images + c.not_images
        or c.images <> c.recorded + c.inserted + c.moved + c.unmoved + c.collided + c.vanished + c.missing
        or c.to_sign <> c.signed + c.withdrawn + c.failed + c.held
        or c.state <> 'done')::int as ledger_errors
    from (${ledgersIn(sql)}) as c
    join image_sync.runs r on r.id = c.run_id
    where r.bucket_id = ${bucket}`;
  // How much work it took may differ: what is inserted after a failed attempt is written again when its URL comes.
  const { storage_calls: _calls, retries: _retries, rows_written: _rows, ...totals } = run?.totals ?? {};
  return {
    records: rows.map((row) => `${row.file_name} ${row.part_number}`),
    badUrls: rows.filter((_, index) => !good[index]).map((row) => row.file_name),
    runs: counts?.runs ?? 0,
    outcome: run?.state ?? "none",
    balanced: run?.balanced ?? false,
    totals,
    ledgerErrors: counts?.ledger_errors ?? 0,
    leases: counts?.leases ?? 0,
  };
}

/** Asks until it is so. */
export async function poll(
  isSo: () => Promise<boolean>,
  { what, timeoutMs = 30_000, describe = () => "" }: {
    what: string;
    timeoutMs?: number;
    describe?: () => string;
  },
): Promise<void> {
  const deadline = Date.now() + timeoutMs;
  while (!await isSo()) {
    if (Date.now() > deadline) throw new Error(`Waited ${timeoutMs} ms in vain until ${what}: ${describe()}`);
    await new Promise((resolve) => setTimeout(resolve, 60));
  }
}
