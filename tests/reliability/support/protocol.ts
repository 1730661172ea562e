/** The protocol between a worker and the database, spoken directly: what the tests of races, faults and mutations drive. */
import { randomUUID } from "node:crypto";
import postgres, { type Sql, type TransactionSql } from "postgres";
import { z } from "zod";
import { ledgersIn } from "../../sync/support/lab.ts";

/** Opens a pool that acts as the function does: as service_role. */
export function openAsWorker(adminDbUrl: string, max = 8): Sql {
  return postgres(adminDbUrl, {
    max,
    onnotice: () => {},
    connection: { role: "service_role", application_name: "worker" },
  });
}

const answerSchema = z.looseObject({
  closed: z.enum(["closed", "more", "already_closed", "stale"]).nullable(),
  next: z.enum(["more", "sign", "open", "again", "busy", "wait", "probe", "stop"]),
  chunk: z.looseObject({
    number: z.number(),
    names: z.array(z.string()).default([]),
    targets: z.array(z.looseObject({ name: z.string() })).default([]),
  }).optional(),
});
/** A leased chunk. */
export type Chunk = { readonly number: number; readonly names: readonly string[] };
/** What advance answers. */
export type Answer = z.infer<typeof answerSchema>;

/** How a chunk is closed. */
export type Closing = {
  readonly lease: string;
  readonly number: number;
  readonly names: readonly string[];
  readonly urls: readonly string[];
  readonly failures: readonly { readonly name: string; readonly error: string }[];
  readonly error:
    | { readonly code: string; readonly title: string; readonly detail: string; readonly is_final?: boolean }
    | null;
};

/** A call of advance, to be made once or, with the same tokens, again. */
export type AdvanceRequest = {
  readonly run: string;
  readonly worker: string;
  readonly lease: string | null;
  readonly closing: Closing | null;
};

const inAWeek = () => Math.floor(Date.now() / 1000) + 7 * 86_400;

/** Calls advance. */
export async function advance(sql: Sql | TransactionSql, request: AdvanceRequest): Promise<Answer> {
  const { run, worker, lease, closing } = request;
  const [row] = await sql`
    select public.image_sync_advance(
      ${run}, ${worker}, ${lease}, ${closing?.lease ?? null},
      ${sql.array([...closing?.names ?? []])}::text[],
      '{"",""}', ${sql.array((closing?.names ?? []).map(() => ""))}::text[],
      ${sql.array([...closing?.urls ?? []])}::text[],
      ${sql.array((closing?.names ?? []).map(() => String(inAWeek())))}::bigint[],
      ${sql.json([...closing?.failures ?? []])},
      ${closing === null || closing.error === null ? null : sql.json(closing.error)},
      p_number => ${closing?.number ?? null}
    ) as answer`;
  return answerSchema.parse(row?.["answer"]);
}

/** Says that the database ended an attempt: at the chunk of a lease, or at getting one under it. Returns whether to repeat the close. */
export async function endAttempt(
  sql: Sql,
  { run, worker, lease, closing, code }: {
    run: string;
    worker: string;
    lease: string | null;
    closing: string | null;
    code: "database_timeout" | "row_locked";
  },
): Promise<boolean> {
  const error = { code, title: "Injected", detail: "injected" };
  const [row] = await sql`
    select public.image_sync_end_attempt(${run}, ${worker}, ${lease}, ${closing}, ${
    sql.json(error)
  }) as answer`;
  return z.looseObject({ more: z.boolean() }).parse(row?.["answer"]).more;
}

const startSchema = z.looseObject({
  run: z.looseObject({ id: z.string(), state: z.string() }).optional(),
  created: z.boolean().optional(),
  problem: z.looseObject({ code: z.string() }).optional(),
});

/** Starts a run and returns its id, or the refusal's code. */
export async function start(
  sql: Sql,
  bucket: string,
  { mode = "sync", options = {}, run = randomUUID() }: {
    mode?: string;
    options?: Record<string, string | number>;
    run?: string;
  } = {},
): Promise<{ readonly run: string; readonly created: boolean; readonly problem: string | null }> {
  const [row] = await sql`select public.image_sync_start(${run}, ${bucket}, ${mode}, ${
    sql.json(options)
  }) as answer`;
  const answer = startSchema.parse(row?.["answer"]);
  return {
    run: answer.run?.id ?? "",
    created: answer.created ?? false,
    problem: answer.problem?.code ?? null,
  };
}

/** The signed URL that a model worker makes. */
export const urlFor = (name: string): string => `http://signed/${name}?token=${randomUUID()}`;

/** Signs all of a chunk. */
export function signAll(lease: string, { number, names }: Chunk): Closing {
  return { lease, number, names, urls: names.map(urlFor), failures: [], error: null };
}

/** The same chunk where nothing of it could be signed, this time or ever. */
export function failed(closing: Closing, { isFinal = false }: { isFinal?: boolean } = {}): Closing {
  const error = { code: "signing_failed", title: "Injected", detail: "injected", is_final: isFinal };
  return { ...closing, names: [], urls: [], failures: [], error };
}

/** What a worker closes a chunk with that it could sign, or whose URLs all showed an image. */
function closingOf(lease: string, { next, chunk }: Answer): Closing | null {
  if (chunk === undefined) return null;
  if (next === "sign") return signAll(lease, chunk);
  const names = chunk.targets.map(({ name }) => name);
  return { lease, number: chunk.number, names, urls: names.map(() => ""), failures: [], error: null };
}

/** Works on a run until it is finished; leases that others hold are expired while it waits. Returns how many calls it took. */
export async function workToEnd(
  sql: Sql | TransactionSql,
  run: string,
  { onWait, onAnswer, call = (request) => advance(sql, request) }: {
    onWait?: () => Promise<void>;
    onAnswer?: (request: AdvanceRequest, answer: Answer) => void;
    /** Makes a call, where more than the call is to be done. */
    call?: (request: AdvanceRequest) => Promise<Answer>;
  } = {},
): Promise<number> {
  const worker = randomUUID();
  let closing: Closing | null = null;
  for (let calls = 1; calls < 100_000; calls++) {
    const request: AdvanceRequest = { run, worker, lease: randomUUID(), closing };
    const answer = await call(request);
    onAnswer?.(request, answer);
    if (answer.next !== "more") closing = closingOf(request.lease ?? "", answer);
    if (answer.next === "stop") return calls;
    if (answer.next === "probe") {
      await sql`select public.image_sync_finish(${run}, '{"checked": 0, "ok": 0, "failures": []}')`;
    }
    if (answer.next === "busy") await new Promise((resolve) => setTimeout(resolve, 20));
    if (answer.next === "wait") await (onWait?.() ?? new Promise((resolve) => setTimeout(resolve, 20)));
  }
  throw new Error(`Worked on run ${run} in vain: it does not end`);
}

/** Makes a bucket with settings and rows of storage.objects; no files. */
export async function createRows(
  admin: Sql,
  { names, settings = {} }: {
    names: readonly string[];
    settings?: Readonly<Record<string, number | string | boolean>>;
  },
): Promise<string> {
  const bucket = `rows-${randomUUID().slice(0, 13)}`;
  const row = { bucket_id: bucket, retry_delay: "0 s", probe_size: 0, nightly: false, ...settings };
  await admin`insert into storage.buckets (id, name) values (${bucket}, ${bucket})`;
  await admin`insert into image_sync.settings ${admin(row)}`;
  await admin`
    insert into storage.objects (bucket_id, name)
    select ${bucket}, name from unnest(${admin.array([...names])}::text[]) as name`;
  return bucket;
}

/**
 * What is wrong with a bucket and its finished runs; nothing, if the invariants of docs/reliability.md hold.
 *
 * @param options `areNumbersUnique`: an image may have no record, and a record another image at its name, because of a part number
 */
export async function findViolations(
  admin: Sql,
  bucket: string,
  { areNumbersUnique = false }: { readonly areNumbersUnique?: boolean } = {},
): Promise<string[]> {
  const rows = await admin<{ violation: string }[]>`
    with runs as (
      select r.* from image_sync.runs r where r.bucket_id = ${bucket}
    ), chunks as (
      select c.*, r.plan_id, r.exhausted, lag(c.to_key) over (partition by c.run_id, c.from_key is null order by c.from_key collate "C") as previous_to_key
      from (${ledgersIn(admin)}) as c
      join runs r on r.id = c.run_id
    )
    select 'run ' || id || ' is open' as violation from runs where finished_at is null
    union all
    select 'a lease is left in chunk ' || number from chunks where state = 'leased' or lease_expires_at is not null
    union all
    select 'chunk ' || number || ' does not begin where the one before it ended' from chunks
    where plan_id is null and from_key <> coalesce(previous_to_key, '')
    union all
    select 'the ledger of chunk ' || number || ' does not balance' from chunks
    where listed <> images + not_images
      or images <> recorded + inserted + moved + unmoved + collided + vanished + missing
        + case when state in ('done', 'dead') then 0 else image_sync.count_of(ledger, 'unsettled') end
      or (state in ('done', 'dead') and to_sign <> signed + withdrawn + failed + held)
    union all
    select 'run ' || run_id || ' has no last chunk' from chunks where exhausted and from_key is not null
    group by run_id having count(*) filter (where to_key is null) <> 1
    union all
    select 'an image has no record or no URL: ' || o.name
    from image_sync.objects o
    left join public.part_images p on p.bucket_id = o.bucket_id and p.file_name collate "C" = o.name
    where o.bucket_id = ${bucket} and o.extension in ('jpg', 'jpeg')
      and (p.signed_url is null or p.signed_url_expires_at < now())
      and not (${areNumbersUnique} and p.id is null)
    union all
    select 'a record is of another object than the one at its name: ' || o.name
    from image_sync.objects o
    join public.part_images p on p.bucket_id = o.bucket_id and p.file_name collate "C" = o.name
    where o.bucket_id = ${bucket} and p.object_id is distinct from o.id and not ${areNumbersUnique}
    union all
    select 'two records of one image: ' || min(file_name)
    from public.part_images where bucket_id = ${bucket} group by file_name having count(*) > 1
    union all
    select 'two leases under one token in run ' || run_id from chunks
    where lease_token is not null group by run_id, lease_token having count(*) > 1`;
  return rows.map(({ violation }) => violation);
}
