import { z } from "zod";
import { runSchema } from "../supabase/functions/image-sync/contract.ts";
import type { BenchStack } from "./stack.ts";

const endedSchema = runSchema.extend({ totals: z.record(z.string(), z.number()) });

/** A run of ours that has ended; `seconds` from the moment at which the function was asked for it. */
export type EndedRun = z.infer<typeof endedSchema> & { readonly seconds: number };

/**
 * Posts a run and waits for its end. Throws where it did not succeed.
 *
 * @param options `latency`: what the gateway adds to each request, in ms. The request that starts the function is not counted,
 * because the other approaches are measured without one.
 */
export async function runOurs(
  { url, key }: BenchStack,
  body: Record<string, unknown> = {},
  { workers = 1, latency = 0 }: { workers?: number; latency?: number } = {},
): Promise<EndedRun> {
  const api = `${url}/functions/v1/image-sync`;
  const send = async (path: string, init: RequestInit = {}) =>
    await (await fetch(api + path, { ...init, headers: { apikey: key } })).json() as unknown;
  const asked = Date.now() + latency;
  let run = endedSchema.parse(await send("", { method: "POST", body: JSON.stringify(body) }));
  for (let more = 1; more < workers; more++) {
    await send("", { method: "POST", body: JSON.stringify({ run: run.id }) });
  }
  const deadline = asked + 3_600_000;
  while (run.state === "open" && Date.now() < deadline) {
    // Looking costs something: the longer the run, the less often.
    const pause = Math.min(Math.max((Date.now() - asked) / 2, 200), 5_000);
    await new Promise((resolve) => setTimeout(resolve, pause));
    run = endedSchema.parse(await send(`?run=${run.id}`));
  }
  if (run.state !== "succeeded") {
    throw new Error(`Run ${run.id} is ${run.state}: ${JSON.stringify(run.error)}`);
  }
  return { ...run, seconds: (Date.parse(run.finished_at ?? "") - asked) / 1000 };
}
