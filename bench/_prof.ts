import { fillBucket, resetTable } from "./bucket.ts";
import { runOurs } from "./ours.ts";
import { runObviousFunction } from "./obvious_function.ts";
import { measureFloor } from "./floor.ts";
import { startBenchStack } from "./stack.ts";
import { timed } from "./measure.ts";
const N = Number(Deno.args[0] ?? 100000);
const what = (Deno.args[1] ?? "ours,obvious,floor").split(",");
const rounds = Number(Deno.args[2] ?? 2);
const stack = await startBenchStack();
const all = async () => {
  const groups: Record<string, number> = { postgres: 0, gateway: 0, fn: 0 };
  for await (const e of Deno.readDir("/proc")) {
    if (!/^\d+$/.test(e.name)) continue;
    try {
      const cmd = (await Deno.readTextFile(`/proc/${e.name}/cmdline`));
      const stat = await Deno.readTextFile(`/proc/${e.name}/stat`);
      const f = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
      const ms = (Number(f[11]) + Number(f[12])) * 10;
      if (cmd.startsWith("postgres") || cmd.includes("/postgres\0")) groups.postgres += ms;
      else if (cmd.includes("serve.ts")) groups.gateway += ms;
      else if (Number(e.name) === stack.functionPid) groups.fn += ms;
    } catch { /* gone */ }
  }
  return groups;
};
async function cpu(name: string, act: () => Promise<unknown>) {
  const a = await all();
  let r: unknown;
  const s = await timed(async () => r = await act());
  const b = await all();
  const per = (k: string) => ((b[k]! - a[k]!) / (N / 1000)).toFixed(1);
  console.log(name, `${s.toFixed(2)} s = ${(s * 1e6 / N).toFixed(1)} ms/1000; cpu ms/1000: pg ${per("postgres")} gw ${per("gateway")} fn ${per("fn")}`, typeof r === "object" && r && "duration_seconds" in r ? r.duration_seconds : r ?? "");
}
await fillBucket(stack, N);
await resetTable(stack, 0);
await runOurs(stack);
for (let i = 0; i < rounds; i++) {
  if (what.includes("ours")) { await resetTable(stack, 0); await cpu("ours", () => runOurs(stack)); }
  if (what.includes("unchanged")) { await stack.sql`vacuum analyze public.part_images`; await cpu("unchanged", () => runOurs(stack)); }
  if (what.includes("obvious")) { await resetTable(stack, 0); await cpu("obvious", () => runObviousFunction(stack)); await cpu("obvious again", () => runObviousFunction(stack)); }
  if (what.includes("floor")) { await resetTable(stack, 0); await cpu("floor", () => measureFloor(stack, N)); }
}
await stack.stop();
Deno.exit(0);
