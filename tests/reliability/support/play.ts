/** What the events of a random schedule do to a database, and what has to hold afterwards. */
import { randomUUID } from "node:crypto";
import type { Sql } from "postgres";
import { expect } from "vitest";
import type { BareStack } from "./bare_stack.ts";
import {
  advance,
  type AdvanceRequest,
  type Answer,
  type Closing,
  createRows,
  endAttempt,
  failed,
  findViolations,
  signAll,
  start,
  workToEnd,
} from "./protocol.ts";
import { findUnsettled, partNumberOf } from "./part_numbers.ts";
import { type Event, file, fileInFolder, type Schedule, WORKERS } from "./schedules.ts";

/** A worker as the function is one, without time: what it holds, and the call whose answer it waits for. */
type Worker = {
  id: string;
  closing: Closing | null;
  pending: AdvanceRequest | null;
};

type World = {
  readonly admin: Sql;
  readonly sql: Sql;
  readonly bucket: string;
  readonly hasUniqueNumbers: boolean;
  /** The name of a file by its number. */
  readonly file: (index: number) => string;
  readonly workers: Worker[];
  readonly sent: AdvanceRequest[];
  /** Which URL the database has taken last, by name: what a fenced worker sent must not show up. */
  readonly accepted: Map<string, string>;
  /** How many URLs of a run were in the closings that the database took. */
  readonly closings: Map<string, number>;
  run: string;
};

const newWorker = (): Worker => ({ id: randomUUID(), closing: null, pending: null });

async function send(world: World, request: AdvanceRequest): Promise<Answer> {
  world.sent.push(request);
  return await take(world, request, () => advance(world.sql, request));
}

/**
 * Makes a call, and notes which URLs the database took of it: all, or of a close that is to be repeated those of some names. The URL of
 * a file that is gone is not stored, unless the file was new when it was looked at: that it went, the next run sees.
 */
async function take(
  world: World,
  { run, closing }: AdvanceRequest,
  call: () => Promise<Answer>,
): Promise<Answer> {
  const before = await namesLeft(world, run, closing);
  const answer = await call();
  if (closing === null || (answer.closed !== "closed" && answer.closed !== "more")) return answer;
  const after = await namesLeft(world, run, closing);
  closing.names.forEach((name, index) => {
    const file = before.find((one) => one.name === name);
    if (file === undefined || after.some((one) => one.name === name)) return;
    if (file.exists) world.accepted.set(name, closing.urls[index] ?? "");
    world.closings.set(run, (world.closings.get(run) ?? 0) + 1);
  });
  return answer;
}

/** The names that a chunk has still to do, and whether there is a file of that name, or was one that was new. */
async function namesLeft(
  { admin, bucket }: World,
  run: string,
  closing: Closing | null,
): Promise<readonly { readonly name: string; readonly exists: boolean }[]> {
  if (closing === null) return [];
  return await admin<{ name: string; exists: boolean }[]>`
    select n.name, n.id is not null or exists (
      select from storage.objects o where o.bucket_id = ${bucket} and o.name = n.name
    ) as exists
    from image_sync.chunks c
    cross join lateral unnest(c.to_do, c.to_do_ids) as n (name, id)
    where c.run_id = ${run} and c.number = ${closing.number}`;
}

function receive(worker: Worker, request: AdvanceRequest, answer: Answer): void {
  worker.pending = answer.next === "more" ? request : null;
  if (answer.next === "more") return;
  worker.closing = answer.next === "sign" && request.lease !== null && answer.chunk !== undefined
    ? signAll(request.lease, answer.chunk)
    : null;
}

const nextRequest = ({ run }: World, worker: Worker): AdvanceRequest =>
  worker.pending ?? { run, worker: worker.id, lease: randomUUID(), closing: worker.closing };

async function act(world: World, worker: Worker, event: { readonly kind: string }): Promise<void> {
  const request = nextRequest(world, worker);
  const answer = await send(world, request);
  if (event.kind === "lose_answer") worker.pending = request;
  else receive(worker, request, answer);
}

async function apply(world: World, event: Event): Promise<void> {
  const { admin, sql, bucket, run, file } = world;
  const worker = "worker" in event ? world.workers[event.worker] ?? newWorker() : newWorker();
  const name = "file" in event ? file(event.file) : "";
  switch (event.kind) {
    case "step":
    case "lose_answer":
      return await act(world, worker, event);
    case "fail_chunk":
    case "fail_for_good":
      if (worker.closing !== null && worker.pending === null) {
        worker.closing = failed(worker.closing, { isFinal: event.kind === "fail_for_good" });
      }
      return;
    case "fail_items":
      if (worker.closing !== null && worker.pending === null) {
        const { names, urls, failures } = worker.closing;
        const failed = names.slice(0, 1).map((name) => ({ name, error: "injected" }));
        worker.closing = {
          ...worker.closing,
          names: names.slice(1),
          urls: urls.slice(1),
          failures: [...failures, ...failed],
        };
      }
      return;
    case "time_out":
    case "meet_lock": {
      // The transaction of its next call is gone; it says so, and closes the same again, or drops what it had.
      const request = nextRequest(world, worker);
      const { closing } = request;
      const lease = closing === null ? request.lease : null;
      const isToRepeat = await endAttempt(sql, {
        run: request.run,
        worker: worker.id,
        lease,
        closing: closing?.lease ?? null,
        code: event.kind === "time_out" ? "database_timeout" : "row_locked",
      });
      worker.pending = isToRepeat ? { ...request, lease } : null;
      if (!isToRepeat) worker.closing = null;
      return;
    }
    case "die":
      return void Object.assign(worker, newWorker());
    case "hand_off": {
      const leases = worker.closing === null ? [] : [worker.closing.lease];
      await sql`select public.image_sync_hand_off(${run}, ${worker.id}, ${sql.array(leases)}::uuid[])`;
      // Its closing may still be on its way: it stays what a late worker would send.
      return;
    }
    case "duplicate": {
      const late = world.sent.at(-1 - event.back);
      if (late !== undefined) await take(world, late, () => advance(sql, late));
      return;
    }
    case "expire":
      await admin`update image_sync.chunks set lease_expires_at = now() - interval '1 s' where run_id = ${run} and state = 'leased'`;
      return;
    case "cancel":
      await sql`select public.image_sync_cancel(${run})`;
      world.run = (await start(sql, bucket)).run;
      return;
    case "finish":
      await sql`select public.image_sync_finish(${run})`;
      return;
    case "watchdog":
      await admin`select image_sync.watchdog()`;
      return;
    case "upload":
      await admin`insert into storage.objects (bucket_id, name) values (${bucket}, ${name}) on conflict do nothing`;
      return;
    case "move":
      await admin`
        update storage.objects o set name = ${file(event.to)}
        where o.bucket_id = ${bucket} and o.name = ${name}
          and not exists (select from storage.objects p where p.bucket_id = ${bucket} and p.name = ${
        file(event.to)
      })`;
      return;
    case "swap":
      await admin.begin(async (transaction) => {
        const ids = await transaction<{ id: string; name: string }[]>`
          select id, name from storage.objects where bucket_id = ${bucket} and name in (${name}, ${
          file(event.to)
        })`;
        if (ids.length < 2) return;
        await transaction`update storage.objects set name = id::text where id in ${
          transaction(ids.map(({ id }) => id))
        }`;
        for (const { id, name: old } of ids) {
          await transaction`update storage.objects set name = ${
            old === name ? file(event.to) : name
          } where id = ${id}`;
        }
      });
      return;
    case "delete":
      await admin.begin(async (transaction) => {
        await transaction`set local storage.allow_delete_query = 'true'`;
        await transaction`delete from storage.objects where bucket_id = ${bucket} and name = ${name}`;
      });
  }
}

/**
 * Plays a schedule to its end, then lets time pass and two nights come.
 *
 * @param options `hasUniqueNumbers`: the table's owner has made `part_number` unique; the files' part numbers meet then
 * @throws where the run does not end, a record is lost, the ledger does not balance, or a fenced worker's URL shows up
 */
export async function play(
  schedule: Schedule,
  { admin, worker: sql }: BareStack,
  { hasUniqueNumbers = false }: { readonly hasUniqueNumbers?: boolean } = {},
): Promise<void> {
  // Unique across all buckets, and other schedules are played beside this one.
  const prefix = randomUUID().slice(0, 8);
  const nameOf = hasUniqueNumbers ? (index: number) => fileInFolder(prefix, index) : file;
  const bucket = await createRows(admin, {
    names: schedule.objects.map(nameOf),
    settings: { chunk_size: schedule.chunkSize, max_attempts: schedule.maxAttempts },
  });
  const recorded = schedule.records.map(nameOf);
  await admin`
    insert into public.part_images (bucket_id, file_name, part_number)
    select ${bucket}, r.name, r.part_number
    from unnest(
      ${admin.array(recorded)}::text[],
      ${admin.array(recorded.map((name) => hasUniqueNumbers ? partNumberOf(name) : "p"))}::text[]
    ) as r (name, part_number)
    on conflict do nothing`;
  const { run } = await start(sql, bucket);
  const world: World = {
    admin,
    sql,
    bucket,
    hasUniqueNumbers,
    file: nameOf,
    workers: Array.from({ length: WORKERS }, newWorker),
    sent: [],
    accepted: new Map(),
    closings: new Map(),
    run,
  };
  for (const event of schedule.events) await apply(world, event);
  const before = await idsOfRecords(world);
  await settle(world);
  const after = await idsOfRecords(world);
  expect(before.filter((id) => !after.includes(id))).toEqual([]);
  expect(await findViolations(admin, bucket, { areNumbersUnique: hasUniqueNumbers })).toEqual([]);
  if (hasUniqueNumbers) expect(await findUnsettled(admin, bucket)).toEqual([]);
  await expectOnlyAcceptedUrls(world);
}

/** Time passes, a worker comes and finishes; then the next night. */
async function settle(world: World): Promise<void> {
  const { sql, bucket, hasUniqueNumbers } = world;
  // An image whose part number is another's is named, every night.
  const state = hasUniqueNumbers ? expect.stringMatching(/^(succeeded|partial)$/) : "succeeded";
  const call = (request: AdvanceRequest) => take(world, request, () => advance(sql, request));
  const onWait = () => apply(world, { kind: "expire" });
  await workToEnd(sql, world.run, { call, onWait });
  const { run } = await start(sql, bucket);
  await workToEnd(sql, run, { call, onWait });
  const [night] = await sql`select image_sync.run_document(${run}) as document`;
  expect(night?.["document"]).toMatchObject({ state, balanced: true });
  // And the one after that has nothing left to do.
  const { run: idle } = await start(sql, bucket);
  await workToEnd(sql, idle, { call, onWait });
  const [last] = await sql`select image_sync.run_document(${idle}) as document`;
  expect(last?.["document"]).toMatchObject({ state, totals: { rows_written: 0, to_sign: 0 } });
}

async function idsOfRecords({ admin, bucket }: World): Promise<readonly string[]> {
  const records = await admin<
    { id: string }[]
  >`select id from public.part_images where bucket_id = ${bucket}`;
  return records.map(({ id }) => id);
}

async function expectOnlyAcceptedUrls({ admin, bucket, accepted, closings }: World): Promise<void> {
  const records = await admin<{ file_name: string; signed_url: string }[]>`
    select file_name, signed_url from public.part_images where bucket_id = ${bucket} and signed_url is not null`;
  // The URL of a name whose record followed its file went with the name.
  const [{ names } = { names: [] }] = await admin<{ names: string[] }[]>`
    select coalesce(array_agg(file_name), '{}') as names from public.part_images where bucket_id = ${bucket}`;
  const current = new Map([...accepted].filter(([name]) => names.includes(name)));
  expect(new Map(records.map((row) => [row.file_name, row.signed_url]))).toEqual(current);
  // A record that followed its file while its chunk was being signed is withdrawn from it, as one is whose file was deleted and that
  // could not be signed: the one had a URL in a closing, the other had none.
  const counted = await admin<{ run_id: string; signed: number; withdrawn: number }[]>`
    select
      c.run_id,
      sum(image_sync.count_of(c.ledger, 'signed'))::int as signed,
      sum(image_sync.count_of(c.ledger, 'withdrawn'))::int as withdrawn
    from image_sync.chunks c
    join image_sync.runs r on r.id = c.run_id
    where r.bucket_id = ${bucket}
    group by c.run_id`;
  const miscounted = counted.filter(({ run_id, signed, withdrawn }) => {
    const sent = closings.get(run_id) ?? 0;
    return sent < signed || sent > signed + withdrawn;
  });
  expect(miscounted).toEqual([]);
}
