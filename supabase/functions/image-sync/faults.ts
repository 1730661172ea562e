/** What went wrong in the database, in words an operator understands: what happened, and what to do. */
import type { Fault } from "./contract.ts";
import type { DatabaseError } from "./database.ts";

/** Errors that end an attempt and not the run: another attempt, smaller or later, may succeed. */
const PASSING = new Set(["database_timeout", "row_locked", "deadlock"]);

/** Codes of faults by SQLSTATE. Source: Postgres' manual, appendix A; 57014 is how a statement timeout arrives. */
const CODES: readonly (readonly [sqlstate: RegExp, code: string])[] = [
  [/^57014$/, "database_timeout"],
  [/^55P03$/, "row_locked"],
  [/^40(P01|001)$/, "deadlock"],
  [/^42501$/, "permission_denied"],
  [/^(08|53|57P)/, "database_unavailable"],
  [/^PGRST202$/, "schema_missing"],
  [/^PGRST00[0-3]$/, "database_unavailable"],
];

/** Whether another attempt may succeed: the statement timeout, or a lock that somebody else holds. */
export function isPassing(fault: Fault): boolean {
  return PASSING.has(fault.code);
}

/** The fault behind an error of the database. Its words never speak of Storage unless Storage's tables are refused. */
export function faultOf(error: DatabaseError): Fault {
  if (error.code === "" && error.status > 0 && !error.isRefusal) {
    return { code: "database_unavailable", title: "The database did not answer", detail: error.detail };
  }
  const code = CODES.find(([sqlstate]) => sqlstate.test(error.code))?.[1] ??
    (error.isRefusal || error.code !== "" ? "database_refused" : "database_unavailable");
  if (code === "permission_denied") return permissionFault(error.message);
  const [title, detail] = WORDS[code] ?? ["The database refused", `${error.message} (${error.code})`];
  return { code, title, detail };
}

const WORDS: Readonly<Record<string, readonly [title: string, detail: string]>> = {
  database_timeout: [
    "The database took too long",
    "A statement was ended by its timeout. Less is written at once until it fits; a slow trigger of the table or a busy disk is the usual cause",
  ],
  row_locked: [
    "Somebody else holds what is needed",
    "Another session holds a lock and keeps it. It is tried again; to see who: select pid, usename, application_name, xact_start, query from pg_stat_activity where state like 'idle in transaction%' order by xact_start;",
  ],
  deadlock: [
    "Another session was in the way",
    "The database ended the attempt to resolve a deadlock. It is tried again",
  ],
  database_unavailable: [
    "The database did not answer",
    "Try again in a minute; if it lasts, look at the project's status",
  ],
  schema_missing: [
    "The database has no image-sync schema, or an older one than the function",
    "Apply the migrations to the linked project: npx supabase db push --remote",
  ],
};

/** Whose right is missing stands in Postgres' message: `permission denied for table journal`. */
function permissionFault(message: string): Fault {
  const [, kind = "", name = ""] =
    /permission denied for (schema|table|view|materialized view|foreign table|sequence|function|relation) ("[^"]+"|[^\s.,]+)/
      .exec(message) ?? [];
  const object = name.replaceAll('"', "");
  if (["objects", "buckets"].includes(object) || (kind === "schema" && object === "storage")) {
    return {
      code: "listing_failed",
      title: "Error listing files",
      detail:
        `Cannot read the bucket's objects: ${message}. Run: grant usage on schema storage to service_role; grant select on storage.objects, storage.buckets to service_role;`,
    };
  }
  const remedy = object === "" || object === "part_images"
    ? "Run: grant select, insert, update, delete on public.part_images to service_role;"
    : `A trigger of part_images or a rule needs it: grant service_role what it does with ${kind} ${object} (${
      grantFor(kind, object)
    }), or make the trigger's function security definer`;
  return {
    code: "permission_denied",
    title: "The function may not do its work",
    detail: `${message}. ${remedy}`,
  };
}

function grantFor(kind: string, object: string): string {
  if (kind === "schema") return `grant usage on schema ${object} to service_role;`;
  if (kind === "function") return `grant execute on function ${object} to service_role;`;
  if (kind === "sequence") return `grant usage on sequence ${object} to service_role;`;
  return `for instance: grant select, insert, update on ${object} to service_role;`;
}
