import postgres, { type Sql } from "postgres";
import type { SupabaseClient } from "@supabase/supabase-js";
import {
  type Problem,
  problemSchema,
  type Report,
  reportSchema,
  type Run,
  runSchema,
} from "../../../supabase/functions/image-sync/contract.ts";
import { createDatabase, type Database } from "../../../supabase/functions/image-sync/database.ts";
import { createTestClient } from "../../support/client.ts";
import { openTarget, type Target } from "../../support/target.ts";

/** A Supabase with image-sync on it, and what a test does with it. */
export type Lab = {
  readonly target: Target;
  /** The database as role postgres. */
  readonly sql: Sql;
  /** The project's client with a secret key. */
  readonly supabase: SupabaseClient;
  /** The RPCs as the function calls them: with it a test is a worker itself. */
  readonly database: Database;
  /** A request to the function with a secret key, unless `init` has headers of its own. */
  call(init?: RequestInit & { readonly query?: string }): Promise<Response>;
  /** The buckets that the tests made, each with the files that they uploaded. */
  readonly buckets: Map<string, string[]>;
  /** Ends it; from a Supabase that was there before, these buckets and all that belongs to them are removed. */
  close(): Promise<void>;
};

/** What {@linkcode createBucket} makes. */
export type BucketOptions = {
  /** Columns of image_sync.settings that differ from their defaults. */
  readonly settings?: Readonly<Record<string, string | number | boolean | null>>;
  /** Objects to begin with: rows without files. */
  readonly objects?: readonly string[];
};

/** A record as a test looks at it. */
export type RecordRow = {
  readonly id: string;
  readonly file_name: string;
  readonly part_number: string | null;
  readonly signed_url: string | null;
  readonly signed_url_expires_at: Date | null;
  /** The version of the row: another one after every write. */
  readonly version: string;
};

/** The counters of one chunk. */
export type Ledger = Readonly<Record<(typeof LEDGER)[number], number>> & { readonly state: string };

const LEDGER = [
  "listed",
  "images",
  "not_images",
  "recorded",
  "inserted",
  "moved",
  "unmoved",
  "collided",
  "vanished",
  "missing",
  "to_sign",
  "signed",
  "withdrawn",
  "failed",
  "held",
] as const;

/** Opens a lab on the Supabase of the environment, or on a local stack of its own with these flags. */
export async function openLab(args: readonly string[] = []): Promise<Lab> {
  return createLab(await openTarget(args));
}

/** A lab on a Supabase that is there. */
export function createLab(target: Target): Lab {
  const sql = postgres(target.dbUrl, { max: 4, onnotice: () => {} });
  const supabase = createTestClient(target.url, target.secretKey);
  const buckets = new Map<string, string[]>();
  return {
    target,
    buckets,
    sql,
    supabase,
    database: createDatabase(supabase),
    call: ({ query = "", ...init } = {}) =>
      fetch(`${target.url}/functions/v1/image-sync${query}`, {
        ...init,
        headers: { apikey: target.secretKey, ...init.headers },
      }),
    async close() {
      if (target.stack === undefined) {
        await removeBuckets(sql, supabase, buckets);
        await expectNothingLeft(sql);
      }
      await sql.end({ timeout: 5 });
      await target.stop();
    },
  };
}

/** A trigger or function of a test's that stays would change how records are written there for good. */
async function expectNothingLeft(sql: Sql): Promise<void> {
  const left = await sql<{ thing: string }[]>`
    select t.tgname as thing from pg_catalog.pg_trigger t
    where t.tgrelid = 'public.part_images'::regclass and not t.tgisinternal and t.tgname like 'test%'
    union all
    select p.proname from pg_catalog.pg_proc p
    where p.pronamespace = 'public'::regnamespace and p.proname like 'test\\_%'`;
  if (left.length > 0) throw new Error(`A test left behind: ${left.map(({ thing }) => thing).join(", ")}`);
}

async function removeBuckets(sql: Sql, supabase: SupabaseClient, buckets: Lab["buckets"]): Promise<void> {
  for (const [bucket, uploaded] of buckets) {
    if (uploaded.length > 0) await supabase.storage.from(bucket).remove(uploaded);
  }
  const names = sql.array([...buckets.keys()]);
  await sql.begin(async (transaction) => {
    await transaction`select set_config('storage.allow_delete_query', 'true', true)`;
    await transaction`delete from image_sync.runs where bucket_id = any (${names}::text[])`;
    await transaction`delete from image_sync.archive where bucket_id = any (${names}::text[])`;
    await transaction`delete from image_sync.settings where bucket_id = any (${names}::text[])`;
    await transaction`delete from public.part_images where bucket_id = any (${names}::text[])`;
    await transaction`delete from storage.objects where bucket_id = any (${names}::text[])`;
    await transaction`delete from storage.buckets where id = any (${names}::text[])`;
  });
}

/** A private bucket of its own with settings: not part of the night, no probe (its objects have no files), no waiting. */
export async function createBucket(
  lab: Lab,
  { settings = {}, objects = [] }: BucketOptions = {},
): Promise<string> {
  const bucket = `bucket-${crypto.randomUUID()}`;
  await lab.sql`insert into storage.buckets (id, name, public) values (${bucket}, ${bucket}, false)`;
  await createSettings(lab, bucket, settings);
  await addObjects(lab, bucket, objects);
  return bucket;
}

/** Settings for a bucket, whether there is one or not. */
export async function createSettings(
  lab: Lab,
  bucket: string,
  settings: BucketOptions["settings"] = {},
): Promise<void> {
  lab.buckets.set(bucket, []);
  const row = { bucket_id: bucket, nightly: false, probe_size: 0, retry_delay: "0", ...settings };
  await lab.sql`insert into image_sync.settings ${lab.sql(row)}`;
}

/** Objects as rows without files: enough to be listed and signed. */
export async function addObjects(lab: Lab, bucket: string, names: readonly string[]): Promise<void> {
  await lab.sql`
    insert into storage.objects (bucket_id, name, metadata)
    select ${bucket}, n.name, '{"size": 1000, "mimetype": "image/jpeg"}'
    from unnest(${[...names]}::text[]) as n (name)`;
}

/** Takes objects away behind everybody's back. */
export async function removeObjects(lab: Lab, bucket: string, names: readonly string[]): Promise<void> {
  await lab.sql.begin(async (transaction) => {
    await transaction`select set_config('storage.allow_delete_query', 'true', true)`;
    await transaction`delete from storage.objects where bucket_id = ${bucket} and name = any (${[
      ...names,
    ]}::text[])`;
  });
}

/** Renames objects as Storage's move does, all at once: their rows stay, with their ids. */
export async function moveObjects(
  lab: Lab,
  bucket: string,
  names: Readonly<Record<string, string>>,
  toBucket = bucket,
): Promise<void> {
  await lab.sql.begin(async (transaction) => {
    const objects = await transaction<{ id: string; name: string }[]>`
      select id, name from storage.objects where bucket_id = ${bucket} and name = any (${
      Object.keys(names)
    })`;
    const ids = objects.map(({ id }) => id);
    const places = objects.map(({ name }) => names[name] ?? name);
    // By way of names that nothing else has: they may change places.
    await transaction`update storage.objects set name = 'on-the-way/' || id where id = any (${ids}::uuid[])`;
    await transaction`
      update storage.objects o
      set name = m.name, bucket_id = ${toBucket}, version = gen_random_uuid()
      from unnest(${ids}::uuid[], ${places}::text[]) as m (id, name)
      where o.id = m.id`;
  });
}

/** A real file. */
export async function upload(
  lab: Lab,
  bucket: string,
  name: string,
  content: Uint8Array<ArrayBuffer>,
): Promise<void> {
  const { error } = await lab.supabase.storage.from(bucket).upload(name, content, {
    contentType: "image/jpeg",
    upsert: true,
  });
  lab.buckets.get(bucket)?.push(name);
  if (error !== null) throw new Error(`Cannot upload ${name} to ${bucket}: ${error.message}`);
}

/** `000001.jpg` and so on, as the register names its files. */
export function numberedNames(count: number, first = 1): string[] {
  return Array.from({ length: count }, (_, index) => `${String(first + index).padStart(6, "0")}.jpg`);
}

/** The records of a bucket in byte order of their names. */
export async function readRecords(lab: Lab, bucket: string): Promise<readonly RecordRow[]> {
  return await lab.sql<RecordRow[]>`
    select id, file_name, part_number, signed_url, signed_url_expires_at, ctid::text || xmin::text as version
    from public.part_images
    where bucket_id = ${bucket}
    order by file_name collate "C"`;
}

/** Starts a run (a sync unless `body` says otherwise) and waits for its end. */
export async function runToEnd(lab: Lab, bucket: string, body: Record<string, unknown> = {}): Promise<Run> {
  const response = await lab.call({
    method: "POST",
    headers: { apikey: lab.target.secretKey, prefer: "wait=60" },
    body: JSON.stringify({ bucket, ...body }),
  });
  const answer: unknown = await response.json();
  if (response.status !== 200) {
    throw new Error(`The run did not finish: ${response.status} ${JSON.stringify(answer)}`);
  }
  return runSchema.parse(answer);
}

/** Opens a run without a worker. */
export async function openRun(lab: Lab, bucket: string, options: Record<string, unknown> = {}): Promise<Run> {
  return (await lab.database.start({ run: crypto.randomUUID(), bucket, mode: "sync", options })).run;
}

/** Sends the function to a run as the schedule does: it answers at once. */
export async function wake(lab: Lab, run: string): Promise<Response> {
  return await lab.call({ method: "POST", body: JSON.stringify({ run }) });
}

/** Looks at a run until it is finished. */
export async function waitForEnd(lab: Lab, run: string, deadlineMs = 60_000): Promise<Run> {
  return await eventually(
    async () => {
      const seen = await lab.database.readRun(run);
      return seen.state === "open" ? undefined : seen;
    },
    `run ${run} to finish`,
    deadlineMs,
  );
}

/** Asks until there is an answer: soon at first, then less and less often, because asking costs the machine what is waited for. */
export async function eventually<T>(
  ask: () => Promise<T | undefined>,
  what: string,
  deadlineMs = 60_000,
): Promise<T> {
  const deadline = Date.now() + deadlineMs;
  for (let pause = 25; Date.now() < deadline; pause = Math.min(pause * 1.2, 250)) {
    const answer = await ask();
    if (answer !== undefined) return answer;
    await new Promise((resolve) => setTimeout(resolve, pause));
  }
  throw new Error(`Waited ${deadlineMs} ms for ${what} in vain`);
}

/** The status report of a bucket. */
export async function readReport(lab: Lab, bucket: string): Promise<Report> {
  return reportSchema.parse(
    await (await lab.call({ query: `?bucket=${encodeURIComponent(bucket)}` })).json(),
  );
}

/** The codes of a report's findings. */
export function codesOf(report: Report): string[] {
  return report.findings.map(({ code }) => code);
}

/** SQL: every chunk with its counters as columns, those that are left out as zero. */
export function ledgersIn(sql: Sql) {
  const counters = LEDGER.map((name) => `image_sync.count_of(c.ledger, '${name}')::integer as ${name}`);
  return sql.unsafe(`select c.*, ${counters.join(", ")} from image_sync.chunks c`);
}

/** The ledgers of a run's chunks, in order. */
export async function readLedgers(lab: Lab, run: string): Promise<readonly Ledger[]> {
  return await lab.sql<Ledger[]>`
    select c.state, ${lab.sql(LEDGER)}
    from (${ledgersIn(lab.sql)}) as c
    where c.run_id = ${run}
    order by c.number`;
}

/** What is wrong in the ledgers; nothing where each chunk is done and balances. */
export function imbalances(ledgers: readonly Ledger[]): readonly Ledger[] {
  return ledgers.filter((chunk) =>
    chunk.state !== "done" ||
    chunk.listed !== chunk.images + chunk.not_images ||
    chunk.images !==
      chunk.recorded + chunk.inserted + chunk.moved + chunk.unmoved + chunk.collided + chunk.vanished +
        chunk.missing ||
    chunk.to_sign !== chunk.signed + chunk.withdrawn + chunk.failed + chunk.held
  );
}

/** The problem that a response carries, with its status checked. */
export async function readProblem(response: Response): Promise<Problem> {
  const problem = problemSchema.parse(await response.json());
  if (
    response.headers.get("content-type") !== "application/problem+json" || problem.status !== response.status
  ) {
    throw new Error(`Not a problem document: ${response.status} ${JSON.stringify(problem)}`);
  }
  return problem;
}

/** When the token of a signed URL expires. */
export function expiryOf(signedUrl: string): Date {
  const token = new URL(signedUrl).searchParams.get("token") ?? "";
  const claims: unknown = JSON.parse(Buffer.from(token.split(".")[1] ?? "", "base64url").toString());
  if (claims === null || typeof claims !== "object" || !("exp" in claims)) {
    throw new Error("The token has no expiry");
  }
  return new Date(Number(claims.exp) * 1000);
}

/** The smallest content that Storage serves as an image in these tests. */
export const jpeg = new Uint8Array([0xff, 0xd8, 0xff, 0xd9]);
