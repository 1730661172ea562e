/** The HTTP side: route, validate, act, answer. */
import { accepts } from "hono/accepts";
import { type Context, Hono } from "hono";
import {
  addReaderRequestSchema,
  archivedQuerySchema,
  archivesQuerySchema,
  bucketQuerySchema,
  bucketRequestSchema,
  bucketsQuerySchema,
  cancelQuerySchema,
  changeSettingsSchema,
  type FileStatus,
  historyQuerySchema,
  planQuerySchema,
  type Reader,
  readersQuerySchema,
  readQuerySchema,
  recordsQuerySchema,
  type RegisterQuery,
  registerQuerySchema,
  removeReaderQuerySchema,
  type Report,
  type Run,
  runsQuerySchema,
  startRequestSchema,
  wakeRequestSchema,
} from "./contract.ts";
import { type Database, DatabaseError } from "./database.ts";
import { faultOf } from "./faults.ts";
import { log, messageOf } from "./log.ts";
import { ProblemError, problemResponse, refuse } from "./problem.ts";
import { createReaderKey, hashReaderKey } from "./reader_key.ts";
import { answerRegister } from "./register.ts";
import { parse, readJson, readWaitSeconds } from "./request.ts";
import { renderFile, renderReport, renderRun } from "./text.ts";
import { renderBuckets, renderReaders, renderRuns } from "./text.ts";

/** What the API acts through; made for each request. */
export type Services = {
  readonly database: Database;
  /** The name of the key that it is made with. */
  readonly key: string;
  /** Sets a worker to an open run; it goes on after the response. */
  readonly work: (run: Run) => void;
};

/** How long a request that waits lets pass before it looks at its run: first and longest, in ms. */
const FIRST_POLL_MS = 50;
const LONGEST_POLL_MS = 1_000;

const FUNCTION_NAME = "image-sync";
/** The platform cuts `/functions/v1`; a plain server does not, or serves the function at its root. */
const PATHS = ["/", `/${FUNCTION_NAME}`, `/functions/v1/${FUNCTION_NAME}`].flatMap((path) =>
  path === "/" ? [path] : [path, `${path}/`]
);

/** Below each of them: lists. */
type List =
  | "plan"
  | "buckets"
  | "runs"
  | "readers"
  | "register.csv"
  | "records"
  | "expiry"
  | "history"
  | "settings"
  | "archives"
  | "archived";
const pathsOf = (list: List) =>
  ["", `/${FUNCTION_NAME}`, `/functions/v1/${FUNCTION_NAME}`].map((path) => `${path}/${list}`);

const REGISTER_PATHS = pathsOf("register.csv");

/** Whether a request reads the register: the one thing that a reader's key is good for. */
export function readsRegister(request: Request): boolean {
  return (request.method === "GET" || request.method === "HEAD") &&
    REGISTER_PATHS.includes(new URL(request.url).pathname);
}

/** Answers a reader who asks for the register of their bucket. Throws a problem where they ask for another one. */
export async function answerReader(request: Request, reader: Reader, database: Database): Promise<Response> {
  const query = parse(registerQuerySchema, Object.fromEntries(new URL(request.url).searchParams), "query");
  if (query.bucket !== undefined && query.bucket !== reader.bucket_id) {
    throw refuse(
      403,
      "wrong_bucket",
      "The key is for another bucket",
      `Cannot read the register of bucket ${query.bucket}: the key of reader ${reader.name} is for another one`,
    );
  }
  return await registerOf(request, { ...query, bucket: reader.bucket_id }, database, `reader ${reader.name}`);
}

async function registerOf(
  request: Request,
  query: RegisterQuery,
  database: Database,
  key: string,
): Promise<Response> {
  const path = `/functions/v1/${FUNCTION_NAME}/register.csv`;
  const response = await answerRegister(request, { query, database, path, key });
  if (request.method !== "HEAD") return response;
  await response.body?.cancel();
  return new Response(null, response);
}

/** Answers one authenticated request. Never throws. */
export async function answer(request: Request, services: Services): Promise<Response> {
  return await routes.fetch(request, services);
}

const routes = new Hono<{ Bindings: Services }>();

routes.on("POST", PATHS, async (context) => {
  const waitSeconds = readWaitSeconds(context.req.raw);
  const body = await readJson(context.req.raw);
  const { run, created } = await startOrWake(body, context.env.database);
  if (run.state === "open") context.env.work(run);
  const seen = run.state === "open" && waitSeconds > 0
    ? await waitForEnd(context.env.database, run, waitSeconds)
    : run;
  return Response.json({ ...seen, created }, {
    status: waitSeconds > 0 && seen.state !== "open" ? 200 : 202,
    headers: { Location: `/functions/v1/${FUNCTION_NAME}?run=${run.id}` },
  });
});

routes.on("GET", PATHS, async (context) => {
  const { bucket, run, file } = parse(readQuerySchema, context.req.query(), "query");
  const { database } = context.env;
  const isText = wantsText(context);
  if (run !== undefined) {
    return await present(context.req.raw, await database.readRun(run), isText && renderRun);
  }
  if (file !== undefined) {
    return await present(context.req.raw, await database.readFile(bucket, file), isText && renderFile);
  }
  return await present(context.req.raw, await database.readReport(bucket), isText && renderReport);
});

routes.on("GET", pathsOf("plan"), async (context) => {
  const page = parse(planQuerySchema, context.req.query(), "query");
  return listed(await context.env.database.readPlan(page), false);
});

routes.on("GET", pathsOf("buckets"), async (context) => {
  const page = parse(bucketsQuerySchema, context.req.query(), "query");
  return listed(await context.env.database.readBuckets(page), wantsText(context) && renderBuckets);
});

routes.on("POST", pathsOf("buckets"), async (context) => {
  const { bucket } = parse(bucketRequestSchema, await readJson(context.req.raw), "body");
  return Response.json(await context.env.database.addBucket(bucket));
});

routes.on("DELETE", pathsOf("buckets"), async (context) => {
  const { bucket } = parse(bucketRequestSchema, context.req.query(), "query");
  return Response.json(await context.env.database.removeBucket(bucket));
});

routes.on("GET", pathsOf("runs"), async (context) => {
  const query = parse(runsQuerySchema, context.req.query(), "query");
  return listed(await context.env.database.readRuns(query), wantsText(context) && renderRuns);
});

routes.on("GET", pathsOf("records"), async (context) => {
  const query = parse(recordsQuerySchema, context.req.query(), "query");
  return listed(await context.env.database.readRecords(query), false);
});

routes.on("GET", pathsOf("expiry"), async (context) => {
  const { bucket } = parse(bucketQuerySchema, context.req.query(), "query");
  return listed(await context.env.database.readExpiry(bucket), false);
});

routes.on("GET", pathsOf("history"), async (context) => {
  const query = parse(historyQuerySchema, context.req.query(), "query");
  return listed(await context.env.database.readHistory(query), false);
});

routes.on("GET", pathsOf("settings"), async (context) => {
  const { bucket } = parse(bucketQuerySchema, context.req.query(), "query");
  return listed(await context.env.database.readSettings(bucket), false);
});

routes.on("PATCH", pathsOf("settings"), async (context) => {
  const change = parse(changeSettingsSchema, await readJson(context.req.raw), "body");
  return Response.json(await context.env.database.changeSettings(change));
});

routes.on("GET", pathsOf("archives"), async (context) => {
  const query = parse(archivesQuerySchema, context.req.query(), "query");
  return listed(await context.env.database.readArchives(query), false);
});

routes.on("GET", pathsOf("archived"), async (context) => {
  const query = parse(archivedQuerySchema, context.req.query(), "query");
  return listed(await context.env.database.readArchived(query), false);
});

routes.on("GET", pathsOf("readers"), async (context) => {
  const page = parse(readersQuerySchema, context.req.query(), "query");
  return listed(await context.env.database.readReaders(page), wantsText(context) && renderReaders);
});

routes.on("POST", pathsOf("readers"), async (context) => {
  const request = parse(addReaderRequestSchema, await readJson(context.req.raw), "body");
  const key = createReaderKey();
  const reader = await context.env.database.addReader({ ...request, keyHash: await hashReaderKey(key) });
  return Response.json({ ...reader, key }, { status: 201, headers: { "Cache-Control": "no-store" } });
});

routes.on("DELETE", pathsOf("readers"), async (context) => {
  const { name } = parse(removeReaderQuerySchema, context.req.query(), "query");
  return Response.json(await context.env.database.removeReader(name));
});

routes.on("GET", REGISTER_PATHS, async (context) => {
  const query = parse(registerQuerySchema, context.req.query(), "query");
  return await registerOf(context.req.raw, query, context.env.database, context.env.key);
});

routes.on(["POST", "PUT", "PATCH", "DELETE"], REGISTER_PATHS, (context) => {
  const problem = refuse(
    405,
    "method_not_allowed",
    "The method is not allowed",
    `Cannot ${context.req.method} the register: use GET`,
  );
  return problemResponse(problem.problem, { Allow: "GET, HEAD, OPTIONS" });
});

routes.on("DELETE", PATHS, async (context) => {
  const { run } = parse(cancelQuerySchema, context.req.query(), "query");
  return Response.json(await context.env.database.cancel(run));
});

routes.on(["PUT", "PATCH", "HEAD", "TRACE", "CONNECT"], PATHS, (context) => {
  const problem = refuse(
    405,
    "method_not_allowed",
    "The method is not allowed",
    `Cannot ${context.req.method}: use GET, POST or DELETE`,
  );
  return problemResponse(problem.problem, { Allow: "GET, POST, DELETE, OPTIONS" });
});

routes.notFound((context) => {
  const path = new URL(context.req.url).pathname.slice(0, 200);
  return problemResponse(
    refuse(
      404,
      "unknown_path",
      "There is nothing at this path",
      `Cannot find ${path}: the API is /functions/v1/${FUNCTION_NAME}, with /buckets, /runs, /plan, /readers, /register.csv, /records, /expiry, /history, /settings, /archives and /archived below it`,
    )
      .problem,
  );
});

routes.onError(failed);

/** Answers with what `act` gives, or with the problem that it throws. Never throws. */
export async function answering(act: () => Promise<Response>): Promise<Response> {
  try {
    return await act();
  } catch (error) {
    return failed(error);
  }
}

function failed(error: unknown): Response {
  if (error instanceof ProblemError) return problemResponse(error.problem, error.headers);
  log("request_failed", { error: messageOf(error) });
  if (error instanceof DatabaseError) return problemResponse(databaseProblem(error));
  return problemResponse(
    refuse(
      500,
      "internal_error",
      "The function failed",
      "An unexpected error occurred; the function's log says more",
    ).problem,
  );
}

function wantsText(context: Context): boolean {
  const supports = ["application/json", "text/plain"];
  return accepts(context, { header: "Accept", supports, default: "application/json" }) === "text/plain";
}

/** A page of a list, as JSON or text. */
function listed<T extends object>(page: T, render: ((page: T) => string) | false): Response {
  const headers = { Vary: "Accept", "Cache-Control": "private, no-cache" };
  if (!render) return Response.json(page, { headers });
  return new Response(render(page), {
    headers: { ...headers, "Content-Type": "text/plain; charset=utf-8" },
  });
}

async function startOrWake(body: unknown, database: Database): Promise<{ run: Run; created: boolean }> {
  // A wake-up starts nothing, so that a call that comes late or twice is harmless.
  if (body !== null && typeof body === "object" && "run" in body) {
    const { run } = parse(wakeRequestSchema, body, "body");
    return { run: await database.readRun(run), created: false };
  }
  const { mode, bucket, ...options } = parse(startRequestSchema, body, "body");
  return await database.start({ run: crypto.randomUUID(), bucket, mode, options });
}

async function waitForEnd(database: Database, run: Run, seconds: number): Promise<Run> {
  const deadline = Date.now() + seconds * 1000;
  let seen = run;
  for (let pollMs = FIRST_POLL_MS; seen.state === "open" && Date.now() < deadline; pollMs *= 1.5) {
    await new Promise((resolve) =>
      setTimeout(resolve, Math.min(pollMs, LONGEST_POLL_MS, deadline - Date.now()))
    );
    seen = await database.readRun(run.id);
  }
  return seen;
}

/** JSON or text, with an `ETag` over everything but the time of asking, so that a poller can be told that nothing changed. */
async function present<T extends Report | Run | FileStatus>(
  request: Request,
  document: T,
  render: ((document: T) => string) | false,
): Promise<Response> {
  const etag = await etagOf(document, render ? "text" : "json");
  const headers = { ETag: etag, Vary: "Accept", "Cache-Control": "private, no-cache" };
  const known = request.headers.get("If-None-Match")?.split(",").map((tag) => tag.trim()) ?? [];
  if (known.includes(etag) || known.includes("*")) return new Response(null, { status: 304, headers });
  if (!render) return Response.json(document, { headers });
  return new Response(render(document), {
    headers: { ...headers, "Content-Type": "text/plain; charset=utf-8" },
  });
}

async function etagOf(document: object, form: string): Promise<string> {
  const { generated_at: _, ...lasting } = document as { generated_at?: string };
  const digest = await crypto.subtle.digest(
    "SHA-256",
    new TextEncoder().encode(form + JSON.stringify(lasting)),
  );
  const hex = Array.from(new Uint8Array(digest, 0, 12), (byte) => byte.toString(16).padStart(2, "0")).join(
    "",
  );
  return `W/"${hex}"`;
}

function databaseProblem(error: DatabaseError) {
  const { code, title, detail } = faultOf(error);
  return refuse(503, code, title, detail).problem;
}
