import { fillBucket, resetTable } from "./bucket.ts";
import { runOurs } from "./ours.ts";
import { startBenchStack } from "./stack.ts";
const N = 100000;
const stack = await startBenchStack();
const cpu = async (pid: number) => { try { const s = await Deno.readTextFile(`/proc/${pid}/stat`); const f = s.slice(s.lastIndexOf(")") + 2).split(" "); return [Number(f[11]) * 10, Number(f[12]) * 10]; } catch { return [0, 0]; } };
const snap = async () => { const m = new Map<string, number[]>(); for (const r of await stack.sql`select pid, coalesce(usename, backend_type) || ' ' || application_name u from pg_stat_activity`) { const c = await cpu(r.pid); const o = m.get(r.u) ?? [0, 0]; m.set(r.u, [o[0]! + c[0]!, o[1]! + c[1]!]); } return m; };
await fillBucket(stack, N);
await resetTable(stack, 0);
await runOurs(stack);
await resetTable(stack, 0);
const a = await snap();
const r = await runOurs(stack);
const b = await snap();
console.log(r.duration_seconds);
for (const [k, v] of b) { const o = a.get(k) ?? [0, 0]; if (v[0]! - o[0]! + v[1]! - o[1]! > 20) console.log(k, "user", (v[0]! - o[0]!) / (N / 1000), "sys", (v[1]! - o[1]!) / (N / 1000), "ms/1000"); }
await stack.stop();
Deno.exit(0);
