import { createHash } from "node:crypto";
import type { Context } from "hono";
import { Hono } from "hono";
import { z } from "zod";
import type { Pool } from "../postgres/database.ts";
import { type ApiRole, roleOfKey, type StackKeys } from "../gateway/keys.ts";
import type { RequestCounter } from "../gateway/request_counts.ts";
import { functionAmbiguous, functionNotFound, invalidBody, type RestError, restErrorOf } from "./errors.ts";
import { createRoutineCache, type Routine, type RoutineCache, takesWholeBody } from "./routines.ts";

/** What the RPC endpoint needs. */
export type RestOptions = {
  /** A pool as role `authenticator`. */
  readonly sql: Pool;
  readonly keys: StackKeys;
  readonly counter: RequestCounter;
};

/** The stand-in for PostgREST. */
export type RestApi = {
  /** Serves `POST /rpc/NAME`. */
  readonly app: Hono;
  /** Forgets what it knows of the database's functions. */
  reloadSchema(): void;
};

/** Rows of a set-returning function beyond this many are cut off, as `max_rows` in `config.toml` says. */
export const maxRows = 1000;

// An API role's own settings do not apply by "set role": PostgREST copies them, and so does this.
const statementTimeoutOfRole: Readonly<Record<ApiRole, string | undefined>> = {
  anon: "3s",
  service_role: undefined,
};

const bodySchema = z.record(z.string(), z.unknown());

/** Makes the RPC endpoint: it calls functions of schema public as the role of the request's key. */
export function createRest({ sql, keys, counter }: RestOptions): RestApi {
  const routines = createRoutineCache(sql);
  const app = new Hono();
  app.post("/rpc/:name", async (context) => {
    const name = context.req.param("name");
    counter.countRpc(name);
    const role = authenticate(context, keys);
    if (role instanceof Response) return role;
    const text = await context.req.text();
    const argumentNames = readArgumentNames(text);
    if (argumentNames === undefined) return answerError(context, invalidBody("Empty or invalid json"));
    const started = performance.now();
    try {
      const routine = await chooseRoutine(routines, name, argumentNames);
      if ("status" in routine) return answerError(context, routine);
      return answer(context, routine, await call(sql, routine, { role, text, argumentNames }));
    } catch (error) {
      return answerError(context, restErrorOf(error, role));
    } finally {
      counter.timeRpc(name, performance.now() - started);
    }
  });
  return { app, reloadSchema: routines.clear };
}

function authenticate(context: Context, keys: StackKeys): ApiRole | Response {
  const apiKey = context.req.header("apikey");
  const bearer = context.req.header("authorization")?.replace(/^Bearer /i, "");
  const key = apiKey ?? bearer;
  if (key === undefined) {
    return context.json({
      message: "No API key found in request",
      hint: "No `apikey` request header or url param was found.",
    }, 401);
  }
  const role = roleOfKey(keys, key);
  if (role === undefined) {
    return context.json({
      message: "Invalid API key",
      hint: "Double check your Supabase `anon` or `service_role` API key.",
    }, 401);
  }
  if (bearer !== undefined && bearer !== key) {
    return answerError(context, {
      status: 401,
      body: {
        code: "PGRST301",
        message: "Expected 3 parts in JWT; got " + bearer.split(".").length,
        details: null,
        hint: null,
      },
    });
  }
  return role;
}

// The body goes to the database as it came, so that numbers keep their digits: only its keys are read here.
function readArgumentNames(text: string): string[] | undefined {
  if (text === "") return [];
  try {
    const parsed = bodySchema.safeParse(JSON.parse(text));
    return parsed.success ? Object.keys(parsed.data) : undefined;
  } catch {
    return undefined;
  }
}

async function chooseRoutine(
  routines: RoutineCache,
  name: string,
  argumentNames: readonly string[],
): Promise<Routine | RestError> {
  const fitting = await routines.find(name, argumentNames);
  const byName = fitting.filter((routine) => !takesWholeBody(routine));
  const candidates = byName.length > 0 ? byName : fitting;
  const [routine, another] = candidates;
  if (routine === undefined) return functionNotFound(name, argumentNames);
  if (another !== undefined) {
    return functionAmbiguous(candidates.map(({ description }) => `public.${description}`));
  }
  return routine;
}

type Call = { readonly role: ApiRole; readonly text: string; readonly argumentNames: readonly string[] };

async function call(sql: Pool, routine: Routine, { role, text, argumentNames }: Call): Promise<string> {
  const timeout = routine.statement_timeout ?? statementTimeoutOfRole[role];
  const statement = callStatement(routine, argumentNames);
  const session = await sql.connect();
  try {
    // All four are sent at once: a transaction that holds a lock must not wait for this process to say commit. After an
    // error the rest is refused by the server, and commit rolls back.
    const outcomes = await Promise.allSettled([
      session.query("begin"),
      session.query(
        `select
          set_config('role', $1, true),
          set_config('request.jwt.claims', $2, true),
          set_config('statement_timeout', coalesce($3, current_setting('statement_timeout')), true)`,
        [role, JSON.stringify({ role }), timeout ?? null],
      ),
      session.query<{ body: string }>({
        // Prepared once in a session, as PostgREST does.
        name: createHash("md5").update(statement).digest("hex"),
        text: statement,
        values: takesWholeBody(routine) || argumentNames.length > 0 ? [text === "" ? "{}" : text] : [],
      }),
      session.query("commit"),
    ]);
    for (const outcome of outcomes) if (outcome.status === "rejected") throw outcome.reason;
    const called = outcomes[2];
    return called.status === "fulfilled" ? called.value.rows[0]?.body ?? "null" : "null";
  } finally {
    session.release();
  }
}

// json_to_record converts each argument to the parameter's type as PostgREST does: a JSON array becomes text[].
function callStatement(routine: Routine, argumentNames: readonly string[]): string {
  const given = routine.parameters.filter(({ name }) => argumentNames.includes(name));
  const columns = given.map(({ name, type }) => `${quote(name)} ${type}`).join(", ");
  const passed = given.map(({ name }) => `${quote(name)} := arguments.${quote(name)}`).join(", ");
  const source = takesWholeBody(routine)
    ? "(select $1::text::json as body) as arguments, "
    : given.length === 0
    ? ""
    : `json_to_record($1::text::json) as arguments (${columns}), `;
  const call = `public.${quote(routine.name)}(${takesWholeBody(routine) ? "arguments.body" : passed})`;
  const rows = `select result.* from ${source}lateral ${call} as result limit ${maxRows}`;
  if (routine.returns_rows) {
    const list = `select coalesce(json_agg(row_to_json(called)), '[]') as list from (${rows}) as called`;
    return routine.returns_set
      ? `select list::text as body from (${list}) as collected`
      : `select (list -> 0)::text as body from (${list}) as collected`;
  }
  const values = `select value from ${source}lateral ${call} as result (value) limit ${maxRows}`;
  return routine.returns_set
    ? `select coalesce(json_agg(value), '[]')::text as body from (${values}) as called`
    : `select to_json(value)::text as body from (${values}) as called`;
}

function answer(context: Context, routine: Routine, body: string): Response {
  if (routine.returns_void) return context.body(null, 204);
  return context.body(body, 200, { "content-type": "application/json; charset=utf-8" });
}

function answerError(_context: Context, { status, body }: RestError): Response {
  return Response.json(body, {
    status,
    headers: { "proxy-status": `PostgREST; error=${body.code}` },
  });
}

function quote(identifier: string): string {
  return `"${identifier.replaceAll('"', '""')}"`;
}
