import { fillBucket, resetTable } from "./bucket.ts";
import { type Floor, measureFloor } from "./floor.ts";
import { childrenCpuMs, cpuMs, memoryMb, resetPeakMemory, say } from "./measure.ts";
import { type EndedRun, runOurs } from "./ours.ts";
import type { BenchStack } from "./stack.ts";

/** What one run cost. */
export type Cost = {
  readonly objects: number;
  readonly kind: string;
  readonly seconds: number;
  readonly objects_per_second: number;
  readonly requests: number;
  readonly storage_calls: number;
  readonly rows_written: number;
  readonly wal_mb: number;
  readonly invocations: number;
  readonly cpu_ms_per_1000: number;
  /** CPU of all of Postgres, in ms. */
  readonly database_ms_per_1000: number;
  readonly memory_above_idle_mb: number;
  readonly slowest_rpc_ms: number;
  /** Time of a chunk in the first and in the last tenth of the bucket, in ms; null where a tenth is no more than a chunk. */
  readonly chunk_ms_first_tenth: number | null;
  readonly chunk_ms_last_tenth: number | null;
  /** What the chunks around a hand-off take longer than those before and behind them, in ms; null where none was measured. */
  readonly hand_off_ms: number | null;
};

/** Everything measured at one size. */
export type Scale = {
  readonly objects: number;
  readonly firsts: readonly Cost[];
  readonly floors: readonly Floor[];
  readonly unchanged: readonly Cost[];
  readonly others: readonly Cost[];
  readonly report_ms: readonly number[];
};

/** First sync and floor alternating, then the nights after: unchanged ones, and `others` in which something changed. */
export async function measureScale(
  stack: BenchStack,
  objects: number,
  rounds: number,
  { floor = true, others = true }: { floor?: boolean; others?: boolean } = {},
): Promise<Scale> {
  say(`${objects} objects: filling the bucket`);
  await fillBucket(stack, objects);
  const firsts: Cost[] = [];
  const floors: Floor[] = [];
  for (let round = 1; round <= rounds; round++) {
    await resetTable(stack, 0);
    if (floor) floors.push(await measureFloor(stack, objects));
    await resetTable(stack, 0);
    firsts.push(await measureRun(stack, objects, "first sync"));
    say(
      `${objects} objects: round ${round} of ${rounds}: ours ${firsts.at(-1)?.seconds} s, floor ${
        floors.at(-1)?.sum.toFixed(1) ?? "not measured"
      } s`,
    );
  }
  await stack.sql`vacuum analyze public.part_images`;
  const unchanged: Cost[] = [];
  for (let round = 1; round <= rounds; round++) {
    unchanged.push(await measureRun(stack, objects, "unchanged sync"));
  }
  const changed = others ? await measureOthers(stack, objects) : [];
  return { objects, firsts, floors, unchanged, others: changed, report_ms: await timeReport(stack) };
}

async function measureOthers(stack: BenchStack, objects: number): Promise<Cost[]> {
  const costs = [await measureRun(stack, objects, "analyze", { mode: "analyze" })];
  await makeDue(stack, objects, 100);
  costs.push(await measureRun(stack, objects, "1 % changed"));
  await makeDue(stack, objects, 5);
  costs.push(await measureRun(stack, objects, "renewing 20 %"));
  return costs;
}

/** Makes one record in so many due: its URL is about to expire. */
async function makeDue({ sql }: BenchStack, objects: number, every: number): Promise<void> {
  await sql`
    update public.part_images
    set signed_url_expires_at = now() + interval '1 hour'
    where part_number::integer % ${every}::integer = 0 and part_number::integer <= ${objects}::integer`;
}

async function measureRun(
  stack: BenchStack,
  objects: number,
  kind: string,
  body: Record<string, unknown> = {},
): Promise<Cost> {
  await stack.resetRequests();
  await resetPeakMemory(stack.functionPid);
  const idle = await memoryMb(stack.functionPid);
  const cpu = await cpuMs(stack.functionPid);
  const databaseCpu = await childrenCpuMs(stack.postgresPid);
  const [before] = await stack.sql<{ lsn: string }[]>`select pg_current_wal_lsn()::text as lsn`;
  const run = await runOurs(stack, body);
  const [wal] = await stack.sql<{ mb: number }[]>`
    select ((pg_current_wal_lsn() - ${before?.lsn ?? "0/0"}::pg_lsn) / 1048576)::float8 as mb`;
  const { rpc, rpc_slowest_ms, storage } = await stack.readRequests();
  const memory = await memoryMb(stack.functionPid);
  const worked = Object.entries(rpc).filter(([name]) => name !== "image_sync_run");
  const { first, last, handOff } = await chunkTimes(stack, run);
  return {
    objects,
    kind,
    seconds: run.seconds,
    objects_per_second: Math.round(objects / run.seconds),
    requests: sum(worked.map(([, count]) => count)) + (storage["sign_many"] ?? 0),
    storage_calls: storage["sign_many"] ?? 0,
    rows_written: run.totals["rows_written"] ?? 0,
    wal_mb: Math.round(wal?.mb ?? 0),
    invocations: run.invocations,
    cpu_ms_per_1000: round((await cpuMs(stack.functionPid) - cpu) / (objects / 1000)),
    database_ms_per_1000: round((await childrenCpuMs(stack.postgresPid) - databaseCpu) / (objects / 1000)),
    memory_above_idle_mb: round(Math.max(memory.peak - idle.now, 0)),
    slowest_rpc_ms: Math.round(Math.max(...worked.map(([name]) => rpc_slowest_ms[name] ?? 0))),
    chunk_ms_first_tenth: first,
    chunk_ms_last_tenth: last,
    hand_off_ms: handOff,
  };
}

type ChunkTimes = {
  readonly first: number | null;
  readonly last: number | null;
  readonly handOff: number | null;
};

/** Closings on each side of a hand-off in which it may cost something, and those beyond that say what a chunk takes without one. */
const AROUND = 8;
const BEYOND = 12;

async function chunkTimes({ sql }: BenchStack, { id }: EndedRun): Promise<ChunkTimes> {
  const [times] = await sql<{ first: number | null; last: number | null; hand_off: number | null }[]>`
    with closings as (
      select
        c.closed_at,
        c.worker_id,
        row_number() over (order by c.closed_at) as place,
        ntile(10) over (order by c.number) as tenth
      from image_sync.chunks c
      where c.run_id = ${id}
    ), spans as (
      -- One chunk has no span.
      select tenth, extract(epoch from max(closed_at) - min(closed_at)) * 1000 / nullif(count(*) - 1, 0) as ms
      from closings
      group by tenth
    ), arrivals as (
      select min(place) as place
      from closings
      group by worker_id
    ), costs as (
      select
        extract(epoch from behind.closed_at - before.closed_at) * 1000
        - extract(epoch from before.closed_at - far_before.closed_at + far_behind.closed_at - behind.closed_at) * 1000
          * ${2 * AROUND}::integer / ${2 * BEYOND}::integer as ms
      from arrivals a
      join closings before on before.place = a.place - ${AROUND}::integer
      join closings behind on behind.place = a.place + ${AROUND}::integer
      join closings far_before on far_before.place = a.place - ${AROUND + BEYOND}::integer
      join closings far_behind on far_behind.place = a.place + ${AROUND + BEYOND}::integer
    )
    select
      max(ms) filter (where tenth = 1)::float8 as first,
      max(ms) filter (where tenth = 10)::float8 as last,
      (
        select avg(ms)
        from costs
      )::float8 as hand_off
    from spans`;
  const rounded = (ms: number | null | undefined) => ms === null || ms === undefined ? null : round(ms);
  return { first: rounded(times?.first), last: rounded(times?.last), handOff: rounded(times?.hand_off) };
}

async function timeReport({ url, key }: BenchStack): Promise<number[]> {
  const times: number[] = [];
  for (let ask = 0; ask < 21; ask++) {
    const started = performance.now();
    await (await fetch(`${url}/functions/v1/image-sync`, { headers: { apikey: key } })).text();
    times.push(performance.now() - started);
  }
  return times;
}

function sum(values: readonly number[]): number {
  return values.reduce((total, value) => total + value, 0);
}

function round(value: number): number {
  return Math.round(value * 100) / 100;
}
