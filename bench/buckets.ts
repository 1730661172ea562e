/** Twenty buckets in one night, beside one bucket of the same size, and with one of them whose calls never reach the function. */
import { fillBucket, removeBucket, resetTable } from "./bucket.ts";
import { say } from "./measure.ts";
import { runOurs } from "./ours.ts";
import type { BenchStack } from "./stack.ts";

const BUCKETS = 20;

/** One round, in seconds. */
export type BucketsRound = {
  readonly one_s: number;
  readonly twenty_s: number;
  readonly ratio: number;
  readonly faulty_s: number;
  readonly faulty_ratio: number;
};

const names = Array.from({ length: BUCKETS }, (_, index) => `night-${String(index + 1).padStart(2, "0")}`);

/** First nights of a bucket of so many objects, of twenty with a twentieth of them each, and of those with one that fails. */
export async function measureBuckets(stack: BenchStack, objects: number): Promise<BucketsRound> {
  await fillBucket(stack, objects);
  await resetTable(stack, 0);
  const one = (await runOurs(stack)).seconds;
  await fillBucket(stack, 0);
  for (const bucket of names) {
    await fillBucket(stack, { objects: objects / BUCKETS, bucket });
    await stack.sql`insert into image_sync.settings (bucket_id) values (${bucket}) on conflict do nothing`;
  }
  const twenty = await night(stack, names);
  const faulty = await withFault(stack, names[0] ?? "", () => night(stack, names.slice(1)));
  for (const bucket of names) await removeBucket(stack, bucket);
  say(
    `${BUCKETS} buckets: ${twenty.toFixed(1)} s, one ${one.toFixed(1)} s, 19 beside one that fails ${
      faulty.toFixed(1)
    } s`,
  );
  return {
    one_s: one,
    twenty_s: twenty,
    ratio: twenty / one,
    faulty_s: faulty,
    faulty_ratio: faulty / twenty,
  };
}

/** Runs the nightly job on an empty table. Returns the seconds until the last of these buckets is done. */
async function night(stack: BenchStack, buckets: readonly string[]): Promise<number> {
  const { sql } = stack;
  await resetTable(stack, 0);
  const [started] = await sql<{ at: Date }[]>`select clock_timestamp() as at, image_sync.run_nightly()`;
  const deadline = Date.now() + 900_000;
  while (Date.now() < deadline) {
    await new Promise((resolve) => setTimeout(resolve, 1000));
    const [ended] = await sql<{ runs: number; bad: number; last: Date | null }[]>`
      select count(*)::integer as runs, count(*) filter (where outcome <> 'succeeded')::integer as bad, max(finished_at) as last
      from image_sync.runs
      where bucket_id = any (${buckets as string[]}) and mode = 'sync' and finished_at is not null`;
    if ((ended?.bad ?? 0) > 0) throw new Error("Cannot measure the night: a bucket's run did not succeed");
    if (ended?.runs === buckets.length && ended.last && started) {
      return (ended.last.getTime() - started.at.getTime()) / 1000;
    }
  }
  throw new Error("Cannot measure the night: it did not end within 15 minutes");
}

/** Lets every queued call for a bucket's runs be answered by 503 while `act` runs, and cancels what is open of it then. */
async function withFault<T>({ sql }: BenchStack, bucket: string, act: () => Promise<T>): Promise<T> {
  const broken = Deno.serve(
    { hostname: "127.0.0.1", port: 0, onListen: () => {} },
    () => new Response(null, { status: 503 }),
  );
  await sql.unsafe(`
    create or replace function net.misdirect() returns trigger language plpgsql set search_path = '' as $$
    begin
      if exists (
        select from image_sync.runs r
        where r.bucket_id = '${bucket}' and r.id::text = convert_from(new.body, 'UTF8')::jsonb ->> 'run'
      ) then
        new.url := 'http://127.0.0.1:${broken.addr.port}/';
      end if;
      return new;
    end $$;
    create trigger misdirect before insert on net.http_request_queue for each row execute function net.misdirect();
    grant execute on function net.misdirect() to public`).simple();
  try {
    return await act();
  } finally {
    await sql.unsafe("drop trigger misdirect on net.http_request_queue; drop function net.misdirect()")
      .simple();
    await sql`select public.image_sync_cancel(r.id) from image_sync.runs r where r.bucket_id = ${bucket} and r.finished_at is null`;
    await broken.shutdown();
  }
}
