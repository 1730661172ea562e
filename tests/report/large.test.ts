/** A bucket of 100,000 objects: reading its report, and an analyze that nobody notices. */
import postgres from "postgres";
import { afterAll, beforeAll, expect, test } from "vitest";
import { createBucket, readReport, runToEnd } from "../sync/support/lab.ts";
import { type LocalLab, openLocalLab } from "../sync/support/local_lab.ts";

const size = 100_000;

let lab: LocalLab;
let bucket = "";
beforeAll(async () => {
  lab = await openLocalLab();
  bucket = await createBucket(lab);
  // The owner numbers the rows with a sequence of their own.
  await lab.sql`alter table public.part_images add column row_number bigserial`;
  await lab.sql`
    insert into storage.objects (bucket_id, name, metadata)
    select ${bucket}, lpad(n::text, 6, '0') || '.jpg', '{"size": 1000}' from generate_series(1, ${size}) as n`;
  // The function has said by then where it lives: URLs of any other address count as none.
  await lab.call();
  // 90,000 have a record, in each state; 1,000 records are of files that are gone.
  await lab.sql`
    with base as materialized (
      select image_sync.url_base(s) as url from image_sync.settings s where s.bucket_id = ${bucket}
    )
    insert into public.part_images (bucket_id, file_name, part_number, signed_url, signed_url_expires_at)
    select ${bucket}, lpad(n::text, 6, '0') || '.jpg', lpad(n::text, 6, '0'),
      case when n % 10 > 0 then base.url || lpad(n::text, 6, '0') || '.jpg?token=x' end, now() + case when n % 10 > 1 then interval '5 days' else '-5 days' end
    from base
    cross join generate_series(10001, ${size + 1000}) as n`;
  await lab.sql`analyze storage.objects`;
  await lab.sql`analyze public.part_images`;
});
afterAll(() => lab?.close());

/** Everything that a write to the table would change. */
async function readTraces() {
  const [rows] = await lab.sql`
    select count(*)::integer as count, md5(string_agg(ctid::text || xmin::text || xmax::text, ',' order by ctid)) as versions
    from public.part_images`;
  const [sequence] = await lab.sql`
    select last_value, is_called from public.part_images_row_number_seq`;
  return { rows, sequence };
}

test("an analyze counts everything and writes nothing to the table, not even its sequence", async () => {
  const before = await readTraces();
  const run = await runToEnd(lab, bucket, { mode: "analyze" });
  expect(run).toMatchObject({
    state: "succeeded",
    balanced: true,
    totals: {
      listed: size,
      images: size,
      recorded: 90_000,
      missing: 10_000,
      orphaned: 1000,
      records: 91_000,
      inserted: 0,
      rows_written: 0,
      storage_calls: 0,
    },
  });
  expect(await readTraces()).toEqual(before);
  const report = await readReport(lab, bucket);
  expect(report).toMatchObject({
    bucket: { objects: size, bytes: size * 1000 },
    records: { total: 91_000, signed: 72_800, unsigned: 9100, expired: 9100 },
    coverage: { recorded: 0.9, signed: 0.72 },
  });
}, 120_000);

test("an analyze holds no lock that blocks a writer for more than 100 ms", async () => {
  // A statement that has to wait longer for a lock fails.
  const writer = postgres(lab.stack.dbUrl, { max: 1, onnotice: () => {}, connection: { lock_timeout: 100 } });
  let isDone = false;
  let writes = 0;
  const write = async () => {
    while (!isDone) {
      const name = `${String(10_001 + (writes * 997) % 90_000).padStart(6, "0")}.jpg`;
      await writer`
        update public.part_images set url = 'touched' where bucket_id = ${bucket} and file_name = ${name}`;
      await writer`insert into public.part_images (bucket_id, file_name) values (${bucket}, 'written.jpg')`;
      await writer`delete from public.part_images where bucket_id = ${bucket} and file_name = 'written.jpg'`;
      await writer`insert into storage.objects (bucket_id, name) values (${bucket}, ${`written-${writes}.png`})`;
      writes++;
    }
  };
  // One analyze may be over within ten writes: as many as it takes for a hundred.
  const analyze = async () => {
    while (!isDone && writes < 100) {
      const run = await runToEnd(lab, bucket, { mode: "analyze" });
      expect(run).toMatchObject({ state: "succeeded", balanced: true });
    }
  };
  try {
    // Whichever ends, for whatever reason, ends the other.
    await Promise.all([write, analyze].map((act) => act().finally(() => isDone = true)));
    expect(writes).toBeGreaterThanOrEqual(100);
  } finally {
    await writer.end();
  }
}, 120_000);

test("the report of a large bucket takes less than 30 ms to read", async () => {
  await runToEnd(lab, bucket, { mode: "analyze" });
  const times: number[] = [];
  for (let round = 0; round < 21; round++) {
    const started = performance.now();
    await lab.database.readReport(bucket);
    times.push(performance.now() - started);
  }
  const [quickest = NaN, median = NaN] = [0, 10].map((place) => times.toSorted((a, b) => a - b)[place]);
  expect(median).toBeLessThan(50);
  // What it costs, and not what else the machine does meanwhile.
  expect(quickest).toBeLessThan(30);
}, 120_000);
