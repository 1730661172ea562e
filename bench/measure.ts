/** Several measurements of one thing. */
export type Sample = {
  readonly median: number;
  readonly lowest: number;
  readonly highest: number;
  readonly n: number;
};

/** Median and spread. Throws where there is nothing to summarize. */
export function summarize(values: readonly number[]): Sample {
  const sorted = values.toSorted((a, b) => a - b);
  const [lowest, highest] = [sorted[0], sorted.at(-1)];
  if (lowest === undefined || highest === undefined) {
    throw new Error("Cannot summarize: nothing was measured");
  }
  const middle = sorted.length / 2;
  const median = sorted.length % 2 === 1
    ? sorted[Math.floor(middle)] ?? lowest
    : ((sorted[middle - 1] ?? lowest) + (sorted[middle] ?? highest)) / 2;
  return { median, lowest, highest, n: sorted.length };
}

/** Seconds that something took. */
export async function timed(act: () => Promise<unknown>): Promise<number> {
  const started = performance.now();
  await act();
  return (performance.now() - started) / 1000;
}

const TICKS_PER_SECOND = 100; // USER_HZ on Linux

/** CPU time of a process so far, in ms. Source: proc(5), fields 14 and 15 of stat. */
export async function cpuMs(pid: number): Promise<number> {
  const stat = await Deno.readTextFile(`/proc/${pid}/stat`);
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  return (Number(fields[11]) + Number(fields[12])) * 1000 / TICKS_PER_SECOND;
}

/** CPU time of a process's children so far, those that have ended included, in ms. Source: proc(5), fields 4 and 14 to 17 of stat. */
export async function childrenCpuMs(pid: number): Promise<number> {
  const readStat = async (id: string) => {
    const stat = await Deno.readTextFile(`/proc/${id}/stat`).catch(() => "");
    return stat.slice(stat.lastIndexOf(")") + 2).split(" ").map(Number);
  };
  const own = await readStat(String(pid));
  let ticks = (own[13] ?? 0) + (own[14] ?? 0);
  for await (const { name } of Deno.readDir("/proc")) {
    if (!/^\d+$/.test(name)) continue;
    const fields = await readStat(name);
    if (fields[1] === pid) ticks += (fields[11] ?? 0) + (fields[12] ?? 0);
  }
  return ticks * 1000 / TICKS_PER_SECOND;
}

/** Begins to watch the peak of a process's memory anew. Source: proc(5), clear_refs. */
export async function resetPeakMemory(pid: number): Promise<void> {
  await Deno.writeTextFile(`/proc/${pid}/clear_refs`, "5");
}

/** Memory of a process in MB: now, and at its peak since it was last reset. */
export async function memoryMb(pid: number): Promise<{ now: number; peak: number }> {
  const status = await Deno.readTextFile(`/proc/${pid}/status`);
  const read = (name: string) => Number(new RegExp(`^${name}:\\s+(\\d+) kB`, "m").exec(status)?.[1]) / 1024;
  return { now: read("VmRSS"), peak: read("VmHWM") };
}

/** Says on standard error what is going on. */
export function say(text: string): void {
  console.error(`${new Date().toISOString().slice(11, 19)} ${text}`);
}
