import { z } from "zod";
import { runSchema } from "../supabase/functions/image-sync/contract.ts";
import type { BenchStack } from "./stack.ts";

const endedSchema = runSchema.extend({ totals: z.record(z.string(), z.number()) });

/** A run of ours that has ended. */
export type EndedRun = z.infer<typeof endedSchema>;

/** Posts a run and waits for its end. Throws where it did not succeed. `duration_seconds` is the run's own clock. */
export async function runOurs(
  { url, key }: BenchStack,
  body: Record<string, unknown> = {},
  { workers = 1 }: { workers?: number } = {},
): Promise<EndedRun> {
  const api = `${url}/functions/v1/image-sync`;
  const send = async (path: string, init: RequestInit = {}) =>
    await (await fetch(api + path, { ...init, headers: { apikey: key } })).json() as unknown;
  let run = endedSchema.parse(await send("", { method: "POST", body: JSON.stringify(body) }));
  for (let more = 1; more < workers; more++) {
    await send("", { method: "POST", body: JSON.stringify({ run: run.id }) });
  }
  const deadline = Date.now() + 600_000;
  while (run.state === "open" && Date.now() < deadline) {
    await new Promise((resolve) => setTimeout(resolve, 250));
    run = endedSchema.parse(await send(`?run=${run.id}`));
  }
  if (run.state !== "succeeded") {
    throw new Error(`Run ${run.id} is ${run.state}: ${JSON.stringify(run.error)}`);
  }
  return run;
}
