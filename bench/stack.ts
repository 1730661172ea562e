import "../local/surroundings.mjs";
import { fileURLToPath } from "node:url";
import postgres, { type Sql } from "postgres";
import { z } from "zod";
import { createFunctionProcess } from "../local/functions/function.ts";

const readySchema = z.object({
  url: z.string(),
  adminDbUrl: z.string(),
  secretKey: z.string(),
  pids: z.object({ function: z.number(), postgres: z.number() }),
});

const countsSchema = z.object({
  function: z.number(),
  rpc: z.record(z.string(), z.number()),
  rpc_slowest_ms: z.record(z.string(), z.number()),
  storage: z.record(z.string(), z.number()),
});

/** Requests that arrived at the gateway. */
export type Requests = z.infer<typeof countsSchema>;

/** An embedded stack in a process of its own, so that measuring it takes no time of its threads. */
export type BenchStack = {
  readonly url: string;
  readonly key: string;
  readonly functionPid: number;
  readonly postgresPid: number;
  readonly sql: Sql;
  /** Calls the obvious function, which runs as ours does: in a process of its own with the platform's limits. */
  runObviousFunction(): Promise<void>;
  setLatency(ms: number): Promise<void>;
  resetRequests(): Promise<void>;
  readRequests(): Promise<Requests>;
  stop(): Promise<void>;
};

/** Starts a stack with the measurements' own RPCs, for approaches that write to tables. */
export async function startBenchStack(): Promise<BenchStack> {
  const child = new Deno.Command(Deno.execPath(), {
    args: ["run", "-A", fileURLToPath(new URL("../local/serve.ts", import.meta.url)), "--fast", "--quiet"],
    stdin: "piped",
    stdout: "piped",
    stderr: "inherit",
  }).spawn();
  const ready = readySchema.parse(JSON.parse(await firstLine(child.stdout)));
  // Filling a bucket of ten million takes longer than the platform lets a statement run: an hour, in ms.
  const sql = postgres(ready.adminDbUrl, {
    max: 2,
    onnotice: () => {},
    connection: { statement_timeout: 3_600_000 },
  });
  await sql.unsafe(await Deno.readTextFile(new URL("./table_rpcs.sql", import.meta.url))).simple();
  const control = (method: string, path: string, body?: unknown) =>
    fetch(`${ready.url}/_local/${path}`, {
      method,
      headers: { apikey: ready.secretKey },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    });
  const obvious = createFunctionProcess({
    entry: fileURLToPath(new URL("./obvious_function.ts", import.meta.url)),
    env: { SUPABASE_URL: ready.url, SUPABASE_SECRET_KEY: ready.secretKey },
    log: () => {},
  });
  return {
    url: ready.url,
    key: ready.secretKey,
    functionPid: ready.pids.function,
    postgresPid: ready.pids.postgres,
    sql,
    async runObviousFunction() {
      const response = await fetch(await obvious.origin(), { method: "POST" });
      if (await response.text() !== "done") {
        throw new Error(`The obvious function failed:\n${obvious.lines().join("\n")}`);
      }
    },
    setLatency: async (ms) => void (await control("PUT", "latency", { ms })).body?.cancel(),
    resetRequests: async () => void (await control("DELETE", "requests")).body?.cancel(),
    readRequests: async () => countsSchema.parse(await (await control("GET", "requests")).json()),
    async stop() {
      await obvious.kill();
      await sql.end();
      await child.stdin.close();
      await child.status;
    },
  };
}

async function firstLine(stream: ReadableStream<Uint8Array<ArrayBuffer>>): Promise<string> {
  let text = "";
  for await (const part of stream.pipeThrough(new TextDecoderStream())) {
    text += part;
    const end = text.indexOf("\n");
    if (end >= 0) return text.slice(0, end);
  }
  throw new Error("Cannot start the stack to measure: it ended before it was ready");
}
