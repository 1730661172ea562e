/** Two buckets with the same file names in other folders: what the second one costs beside the first, and alone. */
import { say } from "./measure.ts";
import { runOurs } from "./ours.ts";
import type { BenchStack } from "./stack.ts";

/** One round, in seconds. */
export type NeighboursRound = { readonly alone_s: number; readonly beside_s: number; readonly ratio: number };

const neighbour = "part-images-neighbour";

/** First syncs of a bucket of `PART/front.jpg`: alone, and beside another bucket's records of the same part numbers. */
export async function measureNeighbours(stack: BenchStack, objects: number): Promise<NeighboursRound> {
  await fill(stack, "part-images", "a", objects);
  await fill(stack, neighbour, "b", objects);
  await stack.sql`truncate public.part_images`;
  const alone = await runOurs(stack, { bucket: neighbour });
  await stack.sql`truncate public.part_images`;
  await runOurs(stack, { bucket: "part-images" });
  await stack.sql`vacuum analyze public.part_images`;
  const beside = await runOurs(stack, { bucket: neighbour });
  const round = {
    alone_s: alone.seconds,
    beside_s: beside.seconds,
    ratio: Math.round(1000 * beside.seconds / alone.seconds) / 1000,
  };
  say(`two buckets of ${objects}: the second alone ${round.alone_s} s, beside the first ${round.beside_s} s`);
  return round;
}

/** Removes the second bucket. */
export async function removeNeighbour({ sql }: BenchStack): Promise<void> {
  await sql.begin(async (transaction) => {
    await transaction`set local storage.allow_delete_query = 'true'`;
    await transaction`delete from storage.objects where bucket_id = ${neighbour}`;
  });
  await sql`delete from image_sync.settings where bucket_id = ${neighbour}`;
  await sql`delete from public.part_images where bucket_id = ${neighbour}`;
}

async function fill({ sql }: BenchStack, bucket: string, folder: string, objects: number): Promise<void> {
  await sql`insert into storage.buckets (id, name, public) values (${bucket}, ${bucket}, false) on conflict do nothing`;
  await sql`
    insert into image_sync.settings (bucket_id, nightly, probe_size) values (${bucket}, false, 0) on conflict do nothing`;
  await sql.begin(async (transaction) => {
    await transaction`set local storage.allow_delete_query = 'true'`;
    await transaction`delete from storage.objects where bucket_id = ${bucket}`;
    await transaction`
      insert into storage.objects (bucket_id, name, metadata)
      select ${bucket}, ${folder} || lpad(i::text, 7, '0') || '/front.jpg', '{"size": 560000, "mimetype": "image/jpeg"}'
      from generate_series(1, ${objects}::integer) as i`;
  });
  await sql`vacuum analyze storage.objects`;
}
