import { fillBucket, resetTable } from "./bucket.ts";
import { startBenchStack } from "./stack.ts";
const N = Number(Deno.args[0] ?? 30000);
const stack = await startBenchStack();
await fillBucket(stack, N);
const one = await stack.sql.reserve(); console.log("pid", (await one`select pg_backend_pid() p`)[0]!.p);
if (Deno.args[1] === "explain") {
  await one`load 'auto_explain'`;
  for (const [k, v] of Object.entries({ log_min_duration: "1ms", log_nested_statements: "on", log_analyze: "on", log_timing: "off", log_buffers: "on", log_parameter_max_length: "0" })) await one.unsafe(`set auto_explain.${k} = '${v}'`);
}
for (let round = 0; round < 2; round++) {
  await resetTable(stack, 0);
  const run = crypto.randomUUID(), worker = crypto.randomUUID();
  await one`select public.image_sync_start(${run}, 'part-images', 'sync', '{}')`;
  let closing: Record<string, unknown> = {};
  const tok = "eyJ" + "x".repeat(330);
  let tLease = 0, n = 0; const ts: number[] = [];
  for (;;) {
    const lease = crypto.randomUUID();
    const body = JSON.stringify({ p_run: run, p_worker: worker, p_lease: lease, ...closing });
    const t0 = performance.now();
    const [r] = await one.unsafe(`select to_json(value)::text as body from (select value from json_to_record($1::text::json) as a (p_run uuid, p_worker uuid, p_lease uuid, p_closing uuid, p_names text[], p_urls text[], p_expires bigint[], p_failures jsonb, p_error jsonb, p_storage_calls int, p_retries int), lateral public.image_sync_advance(a.p_run, a.p_worker, a.p_lease, a.p_closing, coalesce(a.p_names,'{}'), coalesce(a.p_urls,'{}'), coalesce(a.p_expires,'{}'), coalesce(a.p_failures,'[]'), a.p_error, 1, 0) as result (value)) q`, [body], { prepare: true });
    { const d = performance.now() - t0; tLease += d; ts.push(d); n++; }
    const a = JSON.parse(r.body);
    if (a.next !== "sign") { console.log(a.next); break; }
    const names: string[] = a.chunk.names;
    closing = { p_closing: lease, p_names: names, p_urls: names.map((x) => `http://127.0.0.1:54321/storage/v1/object/sign/part-images/${x}?token=${tok}${Math.random()}`), p_expires: names.map(() => 1900000000) };
  }
  ts.sort((a, b) => a - b); console.log("advance mean", (tLease / n).toFixed(1), "median", ts[ts.length >> 1]!.toFixed(1), "min", ts[3]!.toFixed(1), "calls", n);
}
one.release();
await stack.stop();
Deno.exit(0);
