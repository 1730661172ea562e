import { z } from "zod";
import { type LocalStack, startLocalStack } from "../../support/stack.ts";
import { createLab, type Lab } from "./lab.ts";

/** A lab on a local stack, which can be counted, slowed and killed. */
export type LocalLab = Lab & { readonly stack: LocalStack };

const countsSchema = z.object({
  function: z.number(),
  rpc: z.record(z.string(), z.number()),
  storage: z.record(z.string(), z.number()),
});

/** How many requests arrived. */
export type Counts = z.infer<typeof countsSchema>;

/**
 * Opens a lab on a stack of its own, whatever the environment names: for what only the local stack can show.
 *
 * @param args flags of `local/serve.ts`
 */
export async function openLocalLab(args: readonly string[] = []): Promise<LocalLab> {
  const stack = await startLocalStack(args);
  return { ...createLab({ ...stack, stack }), stack };
}

/** A request to an endpoint below `/_local`. */
export async function control(
  lab: LocalLab,
  method: string,
  path: string,
  body?: unknown,
): Promise<Response> {
  const response = await fetch(`${lab.stack.url}/_local${path}`, {
    method,
    headers: { apikey: lab.stack.secretKey, "content-type": "application/json" },
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  });
  if (!response.ok) {
    throw new Error(`Cannot ${method} /_local${path}: ${response.status} ${await response.text()}`);
  }
  return response;
}

/** What `act` gives, and the requests that arrived meanwhile. */
export async function counting<T>(
  lab: LocalLab,
  act: () => Promise<T>,
): Promise<{ result: T; counts: Counts }> {
  await control(lab, "DELETE", "/requests");
  const result = await act();
  return { result, counts: countsSchema.parse(await (await control(lab, "GET", "/requests")).json()) };
}

/** Makes every request of a client take longer, in ms. */
export async function setLatency(lab: LocalLab, ms: number): Promise<void> {
  await control(lab, "PUT", "/latency", { ms });
}

/** Objects with the content of one that is there: the stand-in finds a content by the version that an object's row names. */
export async function addCopies(
  lab: LocalLab,
  { bucket, of, names }: { readonly bucket: string; readonly of: string; readonly names: readonly string[] },
): Promise<void> {
  await lab.sql`
    insert into storage.objects (bucket_id, name, version, metadata)
    select o.bucket_id, n.name, o.version, o.metadata
    from storage.objects o
    cross join unnest(${[...names]}::text[]) as n (name)
    where o.bucket_id = ${bucket} and o.name = ${of}`;
}

/** Runs a cron job as if it were due. */
export async function runJob(lab: LocalLab, job: string): Promise<void> {
  await control(lab, "POST", `/cron/run?job=${job}`);
}
