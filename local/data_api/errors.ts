import { type DatabaseError, databaseErrorOf } from "../postgres/database.ts";
import type { ApiRole } from "../gateway/keys.ts";

/** An error as PostgREST answers it: the HTTP status and the JSON body. */
export type RestError = { readonly status: number; readonly body: DatabaseError };

// From PostgREST's documentation of errors; the first prefix that fits decides.
const statusBySqlstate: readonly (readonly [prefix: string, status: number])[] = [
  ["08", 503],
  ["09", 500],
  ["0L", 403],
  ["0P", 403],
  ["21000", 400],
  ["22023", 400],
  ["23503", 409],
  ["23505", 409],
  ["25006", 405],
  ["25", 500],
  ["28", 403],
  ["2D", 500],
  ["38", 500],
  ["39", 500],
  ["3B", 500],
  ["40", 500],
  ["42883", 404],
  ["42P01", 404],
  ["42P17", 500],
  ["53400", 500],
  ["53", 503],
  ["54", 500],
  ["55", 500],
  ["57", 500],
  ["58", 500],
  ["F0", 500],
  ["HV", 500],
  ["P0001", 400],
  ["P0", 500],
  ["XX", 500],
];

/** Turns whatever an RPC threw into PostgREST's answer. */
export function restErrorOf(error: unknown, role: ApiRole): RestError {
  const body = databaseErrorOf(error);
  if (body === undefined) return connectionError(error);
  return { status: statusOf(body.code, role), body };
}

/** The answer when no function fits the name and the arguments. */
export function functionNotFound(name: string, argumentNames: readonly string[]): RestError {
  const list = [...argumentNames].sort().join(", ");
  const wanted = argumentNames.length === 0 ? "without parameters" : `(${list})`;
  const searched = argumentNames.length === 0
    ? "without parameters"
    : `with parameter${argumentNames.length > 1 ? "s" : ""} ${list}`;
  const gap = argumentNames.length === 0 ? " " : "";
  return {
    status: 404,
    body: {
      code: "PGRST202",
      message: `Could not find the function public.${name}${gap}${wanted} in the schema cache`,
      details:
        `Searched for the function public.${name} ${searched} or with a single unnamed json/jsonb parameter, ` +
        "but no matches were found in the schema cache.",
      hint: null,
    },
  };
}

/** The answer when several functions fit. */
export function functionAmbiguous(candidates: readonly string[]): RestError {
  return {
    status: 300,
    body: {
      code: "PGRST203",
      message: `Could not choose the best candidate function between: ${candidates.join(", ")}`,
      details: null,
      hint:
        "Try renaming the parameters or the function itself in the database so function overloading can be resolved",
    },
  };
}

/** The answer to a body that is not a JSON object. */
export function invalidBody(message: string): RestError {
  return { status: 400, body: { code: "PGRST102", message, details: null, hint: null } };
}

function statusOf(code: string, role: ApiRole): number {
  // "raise sqlstate 'PT402'" chooses the status itself.
  const chosen = /^PT([1-5]\d\d)$/.exec(code)?.[1];
  if (chosen !== undefined) return Number(chosen);
  if (code === "42501") return role === "anon" ? 401 : 403;
  return statusBySqlstate.find(([prefix]) => code.startsWith(prefix))?.[1] ?? 400;
}

function connectionError(error: unknown): RestError {
  return {
    status: 503,
    body: {
      code: "PGRST001",
      message: "Database client error. Retrying the connection.",
      details: error instanceof Error ? error.message : String(error),
      hint: null,
    },
  };
}
