/** The approach that this project replaces, as its scripts worked when they did, without their pauses. */
import { createClient } from "@supabase/supabase-js";
import type { BenchStack } from "./stack.ts";

/** Lists in pages of 100, inserts 100 at a time, signs one by one, updates one by one. Returns the requests it made. */
export async function runBaseline({ url, key }: BenchStack): Promise<number> {
  const client = createClient(url, key, { auth: { persistSession: false } });
  const bucket = client.storage.from("part-images");
  let requests = 0;
  const rpc = async (name: string, args: Record<string, unknown>): Promise<unknown> => {
    requests++;
    const { data, error } = await client.rpc(name, args);
    if (error) throw error;
    return data;
  };

  const files: string[] = [];
  for (let offset = 0;; offset += 100) {
    requests++;
    const { data, error } = await bucket.list("", { limit: 100, offset });
    if (error) throw error;
    files.push(...data.map(({ name }) => name));
    if (data.length < 100) break;
  }
  const known = new Set<string>();
  for (let offset = 0;; offset += 1000) {
    const rows = await rpc("bench_select", { p_offset: offset, p_limit: 1000 }) as { file_name: string }[];
    for (const row of rows) known.add(row.file_name);
    if (rows.length < 1000) break;
  }
  const missing = files.filter((name) => !known.has(name));
  for (let start = 0; start < missing.length; start += 100) {
    const rows = missing.slice(start, start + 100).map((name) => ({
      file_name: name,
      part_number: name.replace(/\.[^.]*$/, ""),
    }));
    await rpc("bench_insert", { p_rows: rows });
  }
  for (const name of files) {
    requests++;
    const { data, error } = await bucket.createSignedUrl(name, 604_800);
    if (error) throw error;
    await rpc("bench_update", { p_file_name: name, p_signed_url: data.signedUrl });
  }
  return requests;
}
