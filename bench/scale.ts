import { fillBucket, resetTable } from "./bucket.ts";
import { type Floor, measureFloor } from "./floor.ts";
import { cpuMs, memoryMb, resetPeakMemory, say } from "./measure.ts";
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
  readonly memory_above_idle_mb: number;
  readonly slowest_rpc_ms: number;
  /** Time of a chunk in the first and in the last tenth of the bucket, in ms. */
  readonly chunk_ms_first_tenth: number;
  readonly chunk_ms_last_tenth: number;
  /** What passes between the last chunk of an invocation and the first one of the next, beyond what passes between chunks, in ms. */
  readonly hand_off_ms: number;
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

/** First sync and floor alternating, then the nights after. */
export async function measureScale(stack: BenchStack, objects: number, rounds: number): Promise<Scale> {
  say(`${objects} objects: filling the bucket`);
  await fillBucket(stack, objects);
  const firsts: Cost[] = [];
  const floors: Floor[] = [];
  for (let round = 1; round <= rounds; round++) {
    await resetTable(stack, 0);
    floors.push(await measureFloor(stack, objects));
    await resetTable(stack, 0);
    firsts.push(await measureRun(stack, objects, "first sync"));
    say(
      `${objects} objects: round ${round} of ${rounds}: ours ${firsts.at(-1)?.seconds} s, floor ${
        floors.at(-1)?.sum.toFixed(1)
      } s`,
    );
  }
  await stack.sql`vacuum analyze public.part_images`;
  const unchanged: Cost[] = [];
  for (let round = 1; round <= Math.max(rounds, 5); round++) {
    unchanged.push(await measureRun(stack, objects, "unchanged sync"));
  }
  const others = [await measureRun(stack, objects, "analyze", { mode: "analyze" })];
  await makeDue(stack, objects, 100);
  others.push(await measureRun(stack, objects, "1 % changed"));
  await makeDue(stack, objects, 5);
  others.push(await measureRun(stack, objects, "renewing 20 %"));
  return { objects, firsts, floors, unchanged, others, report_ms: await timeReport(stack) };
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
    memory_above_idle_mb: round(Math.max(memory.peak - idle.now, 0)),
    slowest_rpc_ms: Math.round(Math.max(...worked.map(([name]) => rpc_slowest_ms[name] ?? 0))),
    chunk_ms_first_tenth: first,
    chunk_ms_last_tenth: last,
    hand_off_ms: handOff,
  };
}

type ChunkTimes = { readonly first: number; readonly last: number; readonly handOff: number };

async function chunkTimes({ sql }: BenchStack, { id }: EndedRun): Promise<ChunkTimes> {
  const [times] = await sql<{ first: number | null; last: number | null; hand_off: number | null }[]>`
    with closings as (
      select
        extract(epoch from c.closed_at - lag(c.closed_at) over closing) * 1000 as ms,
        c.worker_id <> lag(c.worker_id) over closing as is_handed_off
      from image_sync.chunks c
      where c.run_id = ${id}
      window closing as (order by c.closed_at)
    ), tenths as (
      select c.closed_at, ntile(10) over (order by c.number) as tenth
      from image_sync.chunks c
      where c.run_id = ${id}
    ), spans as (
      select tenth, extract(epoch from max(closed_at) - min(closed_at)) * 1000 / greatest(count(*) - 1, 1) as ms
      from tenths
      group by tenth
    )
    select
      max(ms) filter (where tenth = 1)::float8 as first,
      max(ms) filter (where tenth = 10)::float8 as last,
      (
        select
          percentile_cont(0.5) within group (order by ms) filter (where is_handed_off)
          - percentile_cont(0.5) within group (order by ms) filter (where not is_handed_off)
        from closings
      )::float8 as hand_off
    from spans`;
  return {
    first: round(times?.first ?? 0),
    last: round(times?.last ?? 0),
    handOff: round(times?.hand_off ?? 0),
  };
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
