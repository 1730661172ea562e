/** Readers that we did not write: Debian's psqlODBC by way of unixODBC and pyodbc, and Python's csv. */
import { execFile, spawn } from "node:child_process";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { z } from "zod";

const answersSchema = z.array(z.union([
  z.object({ rows: z.array(z.array(z.string().nullable())) }),
  z.object({ error: z.string(), message: z.string() }),
]));

/** What a query over ODBC gave: rows of text, or the SQLSTATE of its refusal. */
export type OdbcAnswer = z.infer<typeof answersSchema>[number];

const driver = "PostgreSQL Unicode";
/** Debian's own, which has Debian's modules, whatever else is in the path. */
const python3 = "/usr/bin/python3";

/** Whether unixODBC, psqlODBC and pyodbc are there. */
export async function hasOdbc(): Promise<boolean> {
  const run = promisify(execFile);
  try {
    await run(python3, ["-c", "import pyodbc"]);
    return (await run("odbcinst", ["-q", "-d"])).stdout.includes(driver);
  } catch {
    return false;
  }
}

/** Whether a missing Debian package is a failure, as in CI, rather than a test left out. */
export const requiresOdbc: boolean = process.env["IMAGE_SYNC_REQUIRE_ODBC"] !== undefined;

/**
 * Runs queries as a role.
 *
 * @param options more of the connection string, as docs/spreadsheet.md has it
 */
export async function readOdbc(
  { dbUrl, role, password = "any", queries, options = "MaxVarcharSize=8190;UseDeclareFetch=1" }: {
    dbUrl: string;
    role: string;
    password?: string;
    queries: readonly string[];
    options?: string;
  },
): Promise<readonly OdbcAnswer[]> {
  const { hostname, port, pathname } = new URL(dbUrl);
  const connection = [
    `Driver={${driver}}`,
    `Server=${hostname}`,
    `Port=${port}`,
    `Database=${pathname.slice(1)}`,
    `UID=${role}`,
    `PWD=${password}`,
    options,
  ].join(";");
  const input = JSON.stringify({ connection, queries });
  return answersSchema.parse(JSON.parse(await python("read_odbc.py", input)));
}

/** The rows of a CSV, its header included. */
export async function readCsv(bytes: Uint8Array): Promise<readonly (readonly string[])[]> {
  return z.array(z.array(z.string())).parse(JSON.parse(await python("read_csv.py", bytes)));
}

async function python(script: string, input: string | Uint8Array): Promise<string> {
  const child = spawn(python3, [fileURLToPath(new URL(script, import.meta.url))]);
  const collect = async (stream: AsyncIterable<Buffer>) => {
    const parts: Buffer[] = [];
    for await (const part of stream) parts.push(part);
    return Buffer.concat(parts).toString("utf8");
  };
  const ended = new Promise<number | null>((resolve) => child.once("close", resolve));
  child.stdin.end(input);
  const [stdout, stderr, code] = await Promise.all([collect(child.stdout), collect(child.stderr), ended]);
  if (code !== 0) throw new Error(`${script} ended with ${code}: ${stderr}`);
  return stdout;
}
