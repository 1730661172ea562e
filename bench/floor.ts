/** The bare cost of what cannot be avoided, each by the fastest way there is. */
import { createClient } from "@supabase/supabase-js";
import pLimit from "p-limit";
import { timed } from "./measure.ts";
import type { BenchStack } from "./stack.ts";

const CALLS_AT_ONCE = 2; // on two cores more are slower

/** Seconds: signing N names in calls of 1,000; inserting the rows with one statement; storing their URLs with one statement. */
export type Floor = {
  readonly sign: number;
  readonly insert: number;
  readonly store: number;
  readonly sum: number;
};

/** Measures the floor for a bucket of names `0000001.jpg` and on, on an empty table. */
export async function measureFloor({ url, key, sql }: BenchStack, objects: number): Promise<Floor> {
  const { storage } = createClient(url, key, { auth: { persistSession: false } });
  const limit = pLimit(CALLS_AT_ONCE);
  const starts = Array.from({ length: Math.ceil(objects / 1000) }, (_, page) => page * 1000);
  const sign = await timed(() =>
    limit.map(starts, async (start) => {
      const count = Math.min(1000, objects - start);
      const names = Array.from({ length: count }, (_, place) =>
        `${String(start + place + 1).padStart(7, "0")}.jpg`);
      const { error } = await storage.from("part-images").createSignedUrls(names, 604_800);
      if (error) {
        throw error;
      }
    })
  );
  const insert = await timed(() =>
    sql`
      insert into public.part_images (bucket_id, file_name, part_number)
      select o.bucket_id, o.name, regexp_replace(o.name, '\\.[^.]*$', '')
      from storage.objects o
      where o.bucket_id = 'part-images'`
  );
  // URLs as long as real ones, no two alike.
  const store = await timed(() =>
    sql`
      update public.part_images p
      set signed_url = ${url} || '/storage/v1/object/sign/part-images/' || p.file_name || '?token=' || repeat(md5(p.file_name), 10),
          signed_url_expires_at = now() + interval '7 days'
      where p.bucket_id = 'part-images'`
  );
  return { sign, insert, store, sum: sign + insert + store };
}
