/**
 * What most people would write instead: an Edge Function that goes through the bucket page by page. Lists in pages of 1,000
 * (listV2), signs 1,000 a call, upserts 1,000 rows a call, one after the other, every night anew.
 */
import { createClient } from "@supabase/supabase-js";

async function syncBucket(): Promise<void> {
  const client = createClient(Deno.env.get("SUPABASE_URL") ?? "", Deno.env.get("SUPABASE_SECRET_KEY") ?? "", {
    auth: { persistSession: false },
  });
  const bucket = client.storage.from("part-images");
  let cursor: string | undefined;
  do {
    const page = await bucket.listV2({ limit: 1000, ...(cursor === undefined ? {} : { cursor }) });
    if (page.error) throw page.error;
    const names = page.data.objects.map(({ name }) => name);
    if (names.length > 0) {
      const signed = await bucket.createSignedUrls(names, 604_800);
      if (signed.error) throw signed.error;
      const rows = signed.data.map(({ path, signedUrl }) => ({
        file_name: path,
        part_number: path?.replace(/\.[^.]*$/, ""),
        signed_url: signedUrl,
      }));
      const { error } = await client.rpc("bench_upsert", { p_rows: rows });
      if (error) throw error;
    }
    cursor = page.data.hasNext ? page.data.nextCursor : undefined;
  } while (cursor !== undefined);
}

export default {
  async fetch(): Promise<Response> {
    await syncBucket();
    return new Response("done");
  },
};
