import { randomUUID } from "node:crypto";
import fc from "fast-check";
import type { ReservedSql, Sql } from "postgres";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type BareStack, openBareStack } from "./support/bare_stack.ts";
import {
  advance,
  type AdvanceRequest,
  type Closing,
  createRows,
  endAttempt,
  failed,
  findViolations,
  signAll,
  start,
  workToEnd,
} from "./support/protocol.ts";

// A shop at work while records are synced, cleaned up and restored: sessions with open transactions refer to records, change and lock
// them, files come, go and get other names, in an order that fast-check draws. IMAGE_SYNC_INTERLEAVINGS and IMAGE_SYNC_SEED choose
// others; npm run test:soak draws 5,000.
const interleavings = Number(process.env["IMAGE_SYNC_INTERLEAVINGS"] ?? 320);
const seed = Number(process.env["IMAGE_SYNC_SEED"] ?? 20_261_125);
const lanes = 4;
const sessions = 2;
const files = 8;
/** The longest that a call of ours may take beside whatever others hold, in ms. */
const patienceMs = 2_500;

let db: BareStack;
beforeAll(async () => {
  db = await openBareStack();
  for (let lane = 0; lane < lanes; lane++) {
    for (const action of actions) {
      await db.admin.unsafe(
        `create table public.${
          tableOf(lane, action)
        } (id serial primary key, image_id uuid references public.part_images (id) on delete ${action})`,
      );
    }
  }
});
afterAll(() => db?.close());

const actions = ["cascade", "set null", "restrict"] as const;
const tableOf = (lane: number, action: string) => `orders_${lane}_${action.replace(" ", "_")}`;
const fileName = (index: number) => `${index}.jpg`;

/** What befalls the next chunk that is closed. */
type Trouble = "time_out" | "fail" | "fail_for_good";

type Event =
  | { readonly kind: "sync" | "plan" | "confirm" | "restore" | "work" | Trouble }
  | { readonly kind: "upload" | "delete" | "rename"; readonly file: number }
  | {
    readonly kind: "refer" | "update" | "lock";
    readonly session: number;
    readonly file: number;
    readonly how: number;
  }
  | { readonly kind: "commit" | "rollback" | "commit_meanwhile"; readonly session: number };

const fileArbitrary = fc.nat(files - 1);
const eventArbitrary: fc.Arbitrary<Event> = fc.oneof(
  {
    weight: 8,
    arbitrary: fc.record({
      kind: fc.constantFrom("plan", "confirm", "confirm", "confirm", "work", "work", "restore", "sync"),
    }),
  },
  {
    weight: 3,
    arbitrary: fc.record({ kind: fc.constantFrom("time_out", "time_out", "fail", "fail_for_good") }),
  },
  {
    weight: 4,
    arbitrary: fc.record({
      kind: fc.constantFrom("upload", "delete", "delete", "rename"),
      file: fileArbitrary,
    }),
  },
  {
    weight: 6,
    arbitrary: fc.record({
      kind: fc.constantFrom("refer", "refer", "update", "lock"),
      session: fc.nat(sessions - 1),
      file: fileArbitrary,
      how: fc.nat(2),
    }),
  },
  {
    weight: 4,
    arbitrary: fc.record({
      kind: fc.constantFrom("commit", "rollback", "commit_meanwhile", "commit_meanwhile"),
      session: fc.nat(sessions - 1),
    }),
  },
);

const interleavingArbitrary = fc.record({
  present: fc.uniqueArray(fileArbitrary, { minLength: 1, maxLength: files / 2 }),
  chunkSize: fc.integer({ min: 1, max: 3 }),
  events: fc.array(eventArbitrary, { minLength: 5, maxLength: 30 }),
});
type Interleaving = typeof interleavingArbitrary extends fc.Arbitrary<infer T> ? T : never;

/** One of the shop's sessions: what its open transaction will have done once it commits. */
type Session = {
  readonly sql: ReservedSql;
  isOpen: boolean;
  urls: Map<string, string>;
  references: { readonly table: string; readonly id: string }[];
};

type World = {
  readonly sql: Sql;
  readonly bucket: string;
  readonly lane: number;
  readonly sessions: Session[];
  /** The owner's column of every record that ever was, as last committed, by id. */
  readonly urls: Map<string, string | null>;
  /** Rows of other tables that were committed: which record each refers to. */
  readonly references: { readonly table: string; readonly id: string }[];
  /** The runs that are open: worked on by turns. */
  runs: string[];
  trouble: Trouble | null;
  plan: string | null;
  cleanup: string | null;
  archived: number;
};

const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

async function timely<T>(what: string, act: () => Promise<T>): Promise<T> {
  const since = Date.now();
  const result = await act();
  expect(Date.now() - since, `${what} must not wait`).toBeLessThan(patienceMs);
  return result;
}

async function open(
  world: World,
  mode: string,
  options: Record<string, string | number>,
): Promise<string | null> {
  const { run, problem } = await timely(mode, () => start(world.sql, world.bucket, { mode, options }));
  if (problem !== null) return null;
  if (!world.runs.includes(run)) world.runs.push(run);
  return run;
}

/** One step of each open run, as workers do that live long enough to close what they lease. */
async function workOnce(world: World): Promise<void> {
  for (const run of [...world.runs]) {
    const request = { run, worker: randomUUID(), lease: randomUUID(), closing: null };
    const answer = await timely("advance", () => advance(world.sql, request));
    if (answer.next === "stop") world.runs = world.runs.filter((one) => one !== run);
    if (answer.next === "sign" && answer.chunk !== undefined) {
      await closeChunk(world, { ...request, lease: null, closing: signAll(request.lease, answer.chunk) });
    }
    await expectNoFileOfWhatIsArchived(world);
  }
  await noteRecords(world);
}

/** Closes a chunk, in as many calls as it takes. */
async function closeChunk(world: World, request: AdvanceRequest & { closing: Closing }): Promise<void> {
  const { trouble } = world;
  world.trouble = null;
  const { run, worker, closing } = request;
  if (trouble === "time_out") {
    const attempt = { run, worker, lease: null, closing: closing.lease, code: "database_timeout" } as const;
    // What somebody holds is waited for: the next worker gets the chunk.
    if (!await timely("end_attempt", () => endAttempt(world.sql, attempt))) return;
  }
  const sent = trouble === "fail" || trouble === "fail_for_good"
    ? { ...request, closing: failed(closing, { isFinal: trouble === "fail_for_good" }) }
    : request;
  while ((await timely("close", () => advance(world.sql, sent))).next === "more");
}

/** What was moved to the archive a moment ago has no file. */
async function expectNoFileOfWhatIsArchived(world: World): Promise<void> {
  const rows = await db.admin<{ id: number; has_file: boolean }[]>`
    select a.id::integer, exists (
      select from storage.objects o where o.bucket_id = a.bucket_id and o.name = a.file_name
    ) as has_file
    from image_sync.archive a
    where a.bucket_id = ${world.bucket} and a.id > ${world.archived}`;
  expect(rows.filter(({ has_file }) => has_file)).toEqual([]);
  world.archived = Math.max(world.archived, ...rows.map(({ id }) => id));
}

/** Records that came since the last look. */
async function noteRecords({ bucket, urls }: World): Promise<void> {
  const rows = await db.admin<{ id: string; url: string | null }[]>`
    select id, url from public.part_images where bucket_id = ${bucket}`;
  for (const { id, url } of rows) if (!urls.has(id)) urls.set(id, url);
}

async function endSession(world: World, session: Session, outcome: "commit" | "rollback"): Promise<void> {
  if (!session.isOpen) return;
  await session.sql.unsafe(outcome);
  if (outcome === "commit") {
    for (const [id, url] of session.urls) world.urls.set(id, url);
    world.references.push(...session.references);
  }
  Object.assign(session, { isOpen: false, urls: new Map(), references: [] });
}

/** A statement of the shop's; where it cannot have a lock at once, its transaction is over. */
async function actInSession(
  world: World,
  { session: index, kind, file, how }: Event & { kind: "refer" | "update" | "lock" },
): Promise<void> {
  const session = world.sessions[index];
  if (session === undefined) return;
  if (!session.isOpen) {
    await session.sql`begin`;
    await session.sql`set local lock_timeout = '30ms'`;
    session.isOpen = true;
  }
  try {
    const strength = ["for update", "for share", "for key share"][how] ?? "for update";
    const [record] = await session.sql.unsafe<{ id: string }[]>(
      `select id from public.part_images where bucket_id = $1 and file_name = $2 ${
        kind === "lock" ? strength : ""
      }`,
      [world.bucket, fileName(file)],
    );
    if (record === undefined || kind === "lock") return;
    if (kind === "refer") {
      const table = tableOf(world.lane, actions[how] ?? "cascade");
      await session.sql.unsafe(`insert into public.${table} (image_id) values ($1)`, [record.id]);
      session.references.push({ table, id: record.id });
    } else {
      const url = randomUUID();
      const updated = await session.sql`update public.part_images set url = ${url} where id = ${record.id}`;
      if (updated.count === 1) session.urls.set(record.id, url);
    }
  } catch {
    await endSession(world, session, "rollback");
  }
}

/** What a worker leased that lives no more is waited for by nobody here: a lease is a minute. */
async function expireLeases(run: string): Promise<void> {
  await db.admin`
    update image_sync.chunks set lease_expires_at = now() - interval '1 second' where run_id = ${run} and state = 'leased'`;
}

async function makePlan(world: World): Promise<void> {
  const plan = await open(world, "cleanup", {});
  if (plan === null || world.runs.indexOf(plan) < world.runs.length - 1) return;
  world.runs.pop();
  await workToEnd(world.sql, plan);
  world.plan = plan;
}

async function apply(world: World, event: Event): Promise<void> {
  const { bucket } = world;
  switch (event.kind) {
    case "sync":
      return void await open(world, "sync", {});
    case "plan":
      return await makePlan(world);
    case "confirm":
      // A list is applied once: the next confirmation needs another.
      if (world.plan === null) await makePlan(world);
      if (world.plan === null) return;
      world.cleanup = await open(world, "cleanup", {
        confirm: world.plan,
        max_delete_fraction: 1,
        max_delete_count: 100,
        allow_empty_bucket: "true",
      }) ?? world.cleanup;
      world.plan = null;
      return;
    case "restore":
      if (world.cleanup !== null) await open(world, "restore", { restore: world.cleanup });
      return;
    case "work":
      return await workOnce(world);
    case "time_out":
    case "fail":
    case "fail_for_good":
      world.trouble = event.kind;
      return;
    case "upload":
      await db.admin`
        insert into storage.objects (bucket_id, name) values (${bucket}, ${
        fileName(event.file)
      }) on conflict do nothing`;
      return;
    case "rename":
      await db.admin`
        update storage.objects set name = ${`moved-${fileName(event.file)}`}
        where bucket_id = ${bucket} and name = ${fileName(event.file)}
          and not exists (
            select from storage.objects o where o.bucket_id = ${bucket} and o.name = ${`moved-${
        fileName(event.file)
      }`}
          )`;
      return;
    case "delete":
      await db.admin.begin(async (transaction) => {
        await transaction`set local storage.allow_delete_query = 'true'`;
        await transaction`delete from storage.objects where bucket_id = ${bucket} and name = ${
          fileName(event.file)
        }`;
      });
      return;
    case "commit_meanwhile": {
      // While our call has begun and, were it to wait for the session, would be waiting.
      const session = world.sessions[event.session];
      if (session === undefined || !session.isOpen) return;
      await Promise.all([workOnce(world), sleep(20).then(() => endSession(world, session, "commit"))]);
      return;
    }
    case "commit":
    case "rollback": {
      const session = world.sessions[event.session];
      if (session !== undefined) await endSession(world, session, event.kind);
      return;
    }
    default:
      return await actInSession(world, event);
  }
}

async function expectNothingLost(world: World): Promise<void> {
  const { bucket, urls, references } = world;
  const kept = await db.admin<{ id: string; url: string | null }[]>`
    select id, url from public.part_images where bucket_id = ${bucket}
    union all
    select (a.record ->> 'id')::uuid, a.record ->> 'url'
    from image_sync.archive a where a.bucket_id = ${bucket} and a.restored_at is null`;
  const order = ([one]: readonly [string, unknown], [other]: readonly [string, unknown]) =>
    one < other ? -1 : 1;
  expect(kept.map(({ id, url }) => [id, url] as const).toSorted(order)).toEqual([...urls].toSorted(order));

  const referring: { table: string; id: string | null }[] = [];
  for (const action of actions) {
    const table = tableOf(world.lane, action);
    const rows = await db.admin.unsafe<{ id: string | null }[]>(`select image_id as id from public.${table}`);
    referring.push(...rows.map(({ id }) => ({ table, id })));
    await db.admin.unsafe(`delete from public.${table}`);
  }
  const words = (all: readonly { table: string; id: string | null }[]) =>
    all.map(({ table, id }) => `${table} ${id}`).toSorted();
  expect(words(referring)).toEqual(words(references));
}

async function play(lane: number, { present, chunkSize, events }: Interleaving): Promise<void> {
  const all = Array.from({ length: files }, (_, index) => fileName(index));
  const bucket = await createRows(db.admin, {
    names: present.map(fileName),
    settings: { chunk_size: chunkSize, max_attempts: 2 },
  });
  await db.admin`
    insert into public.part_images (bucket_id, file_name, url)
    select ${bucket}, n, 'of ' || n from unnest(${db.admin.array(all)}::text[]) as n`;
  const world: World = {
    sql: db.worker,
    bucket,
    lane,
    sessions: [],
    urls: new Map(),
    references: [],
    runs: [],
    trouble: null,
    plan: null,
    cleanup: null,
    archived: 0,
  };
  for (let index = 0; index < sessions; index++) {
    world.sessions.push({ sql: await shop.reserve(), isOpen: false, urls: new Map(), references: [] });
  }
  try {
    await noteRecords(world);
    for (const event of events) await apply(world, event);
    for (const session of world.sessions) await endSession(world, session, "commit");
    for (const run of world.runs) await workToEnd(world.sql, run, { onWait: () => expireLeases(run) });
    await noteRecords(world);
    await expectNothingLost(world);
    // And the next sync finds everything in order.
    const { run } = await start(world.sql, bucket);
    await workToEnd(world.sql, run);
    expect(await findViolations(db.admin, bucket)).toEqual([]);
  } finally {
    for (const session of world.sessions) {
      if (session.isOpen) await session.sql`rollback`;
      session.sql.release();
    }
    for (const action of actions) await db.admin.unsafe(`delete from public.${tableOf(lane, action)}`);
  }
}

/** The shop's own connections. */
let shop: Sql;
beforeAll(async () => {
  const { default: postgres } = await import("postgres");
  shop = postgres(db.stack.adminDbUrl, { max: lanes * sessions, onnotice: () => {} });
});
afterAll(() => shop?.end({ timeout: 1 }));

describe("whatever a shop does beside a sync, a cleanup and a restore", () => {
  test.concurrent.each(Array.from({ length: lanes }, (_, lane) => lane))(
    "no row of anybody's is lost, and nobody waits (part %i)",
    { timeout: 3_600_000 },
    async (lane) => {
      await fc.assert(fc.asyncProperty(interleavingArbitrary, (drawn) => play(lane, drawn)), {
        numRuns: Math.ceil(interleavings / lanes),
        seed: seed + lane,
        endOnFailure: false,
      });
    },
  );
});
