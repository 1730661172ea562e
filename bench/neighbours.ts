/** Two buckets with the same file names in other folders: what the second one costs beside the first, and alone. */
import { fillBucket, removeBucket } from "./bucket.ts";
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
export async function removeNeighbour(stack: BenchStack): Promise<void> {
  await removeBucket(stack, neighbour);
}

async function fill(stack: BenchStack, bucket: string, folder: string, objects: number): Promise<void> {
  await fillBucket(stack, { objects, bucket, around: [folder, "/front.jpg"] });
  await stack.sql`
    insert into image_sync.settings (bucket_id, nightly, probe_size) values (${bucket}, false, 0) on conflict do nothing`;
}
