import { Hono } from "hono";
import { z } from "zod";
import type { FunctionProcess } from "../functions/function.ts";
import { roleOfKey, type StackKeys } from "./keys.ts";
import type { PostgresServer } from "../postgres/server.ts";
import type { RequestCounter } from "./request_counts.ts";
import type { Scheduler } from "../cron/scheduler.ts";
import type { Switches } from "./switches.ts";
import type { UrlSigner } from "../storage/signing.ts";

/** What the control endpoints act on. */
export type ControlOptions = {
  readonly keys: StackKeys;
  readonly counter: RequestCounter;
  readonly postgres: PostgresServer;
  readonly signer: UrlSigner;
  /** Absent when the function is not run. */
  readonly functionProcess: FunctionProcess | undefined;
  /** Absent when the real pg_cron runs the jobs. */
  readonly scheduler: Scheduler | undefined;
  readonly switches: Switches;
};

const latencySchema = z.object({ ms: z.number().min(0).max(60_000) });
const backendSchema = z.object({ backend: z.enum(["s3", "file"]) });
const injectionSchema = z.object({
  status: z.union([z.literal(401), z.literal(402), z.literal(403), z.literal(540), z.literal(546)]),
  path: z.string().startsWith("/"),
  times: z.int().positive().default(Infinity),
});

/** Makes the endpoints below `/_local`, for tests, the demo and measurements. Each needs a secret key in `apikey`. */
export function createControl(options: ControlOptions): Hono {
  const { keys, counter, postgres, signer, scheduler, switches } = options;
  const app = new Hono();
  app.use(async (context, next) => {
    if (roleOfKey(keys, context.req.header("apikey") ?? "") !== "service_role") {
      return context.json({ message: "Cannot use /_local without a secret key in the header apikey" }, 401);
    }
    await next();
  });
  app.onError((error, context) => context.json({ message: error.message }, 500));

  app.get("/requests", (context) => context.json(counter.read()));
  app.delete("/requests", (context) => {
    counter.reset();
    return context.body(null, 204);
  });
  const put = <T extends object>(path: string, schema: z.ZodType<T>, set: (value: T) => void) =>
    app.put(path, async (context) => {
      const body = schema.safeParse(await context.req.json().catch(() => undefined));
      if (!body.success) return context.json({ message: z.prettifyError(body.error) }, 400);
      set(body.data);
      return context.json(body.data);
    });
  put("/latency", latencySchema, ({ ms }) => switches.latency = ms);
  put("/storage/backend", backendSchema, ({ backend }) => switches.backend = backend);
  put("/answer", injectionSchema, (injection) => switches.injection = injection);
  app.delete("/answer", (context) => {
    switches.injection = undefined;
    return context.body(null, 204);
  });
  app.post("/cron/run", async (context) => {
    const job = context.req.query("job") ?? "";
    if (scheduler === undefined) {
      return context.json(
        { message: `Cannot run the job ${job} on request: the real pg_cron runs the jobs` },
        409,
      );
    }
    return context.json(await scheduler.run(job));
  });
  app.post("/storage/rotate-signing-key", (context) => {
    signer.rotate();
    return context.body(null, 204);
  });
  app.post("/postgres/crash", async (context) => {
    await postgres.crash();
    return context.body(null, 204);
  });
  app.post("/postgres/restart", async (context) => {
    await postgres.restart();
    return context.json({ pid: postgres.pid() });
  });
  app.route("/", functionControl(options.functionProcess));
  return app;
}

function functionControl(functionProcess: FunctionProcess | undefined): Hono {
  const app = new Hono();
  const describe = () => ({ pid: functionProcess?.pid() ?? null, starts: functionProcess?.starts() ?? 0 });
  app.get("/logs", (context) => context.json({ lines: functionProcess?.lines() ?? [] }));
  app.get("/function", (context) => context.json(describe()));
  app.post("/function/kill", async (context) => {
    await functionProcess?.kill();
    return context.json(describe());
  });
  app.post("/function/restart", async (context) => {
    await functionProcess?.kill();
    await functionProcess?.origin();
    return context.json(describe());
  });
  return app;
}
