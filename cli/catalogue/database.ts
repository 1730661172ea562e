import type { ClientConfig } from "pg";
import { CommandError } from "../command_error.ts";

/** Asks the database; the rows as they come. */
export type QueryDatabase = (sql: string) => Promise<readonly unknown[]>;

const CONNECT_TIMEOUT = 10_000; // ms
const STATEMENT_TIMEOUT = 30_000; // ms

/**
 * Reads from a database, in one transaction that can change nothing and names everything in full.
 *
 * @param url as the dashboard shows it, under Connect; what it holds beside the host is said nowhere
 * @throws {CommandError} `invalid_db_url`, `database_unreachable`, `database_refused`
 */
export async function readDatabase<T>(url: string, work: (query: QueryDatabase) => Promise<T>): Promise<T> {
  const { default: pg } = await import("pg");
  const client = new pg.Client({ ...configOf(url), connectionTimeoutMillis: CONNECT_TIMEOUT });
  // A connection that breaks is told by the query that it breaks.
  client.on("error", () => {});
  try {
    await client.connect();
  } catch (error) {
    throw new CommandError(
      "database_unreachable",
      `Cannot sign in to the database at ${hostOf(url)}: ${wordsOf(error)}`,
      {
        cause: error,
      },
    );
  }
  try {
    await client.query(
      `begin read only; set local search_path = ''; set local statement_timeout = ${STATEMENT_TIMEOUT}`,
    );
    return await work(async (sql) => (await client.query(sql)).rows);
  } catch (error) {
    if (error instanceof CommandError || !(error instanceof pg.DatabaseError)) throw error;
    throw new CommandError(
      "database_refused",
      `Cannot read the catalogue of ${hostOf(url)}: ${error.message}`,
      {
        cause: error,
      },
    );
  } finally {
    await client.end().catch(() => {});
  }
}

// Hosted databases speak TLS, with a certificate of Supabase's own authority: as with libpq's sslmode=require it is not asked for its
// chain unless the URL says so.
function configOf(url: string): ClientConfig {
  const parsed = parse(url);
  const isLoopback = /^(localhost|127\.\d+\.\d+\.\d+|\[?::1\]?)$/.test(parsed.hostname);
  if (isLoopback || parsed.searchParams.has("sslmode")) return { connectionString: url };
  return { connectionString: url, ssl: { rejectUnauthorized: false } };
}

function parse(url: string): URL {
  if (URL.canParse(url) && /^postgres(ql)?:$/.test(new URL(url).protocol)) return new URL(url);
  throw new CommandError(
    "invalid_db_url",
    "Cannot use the database's URL: it is not of the form postgresql://user:password@host:5432/postgres; take it from the " +
      "dashboard, Connect, and correct --db-url or SUPABASE_DB_URL",
  );
}

/** The part of a database's URL that may be shown. */
export function hostOf(url: string): string {
  return parse(url).host;
}

/** A database's URL and its password apart, for programs whose arguments every user can read. */
export function withoutPassword(url: string): { readonly url: string; readonly password: string } {
  const parsed = parse(url);
  const password = parsed.searchParams.get("password") ?? decoded(parsed.password);
  parsed.searchParams.delete("password");
  parsed.password = "";
  return { url: parsed.href, password };
}

function decoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

function wordsOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const code = "code" in error ? error.code : undefined;
  if (code === "ECONNREFUSED") return "the connection was refused; check the host and the port";
  if (code === "ENOTFOUND" || code === "EAI_AGAIN") return "there is no host of that name";
  if (code === "28P01" || code === "28000") {
    return "user or password is wrong; take the URL from the dashboard, Connect";
  }
  return error.message === "" ? "there is no connection" : error.message;
}
