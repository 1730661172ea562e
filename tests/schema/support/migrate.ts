import { execFile } from "node:child_process";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { denoPath } from "../../support/stack.ts";

const program = fileURLToPath(new URL("./apply_migrations.ts", import.meta.url));

/**
 * Applies the project's migrations to a database with the Supabase CLI.
 *
 * @throws {Error} when they do not apply; the message has what the CLI printed.
 */
export async function migrate(databaseUrl: string): Promise<void> {
  await promisify(execFile)(denoPath, ["run", "-A", program, databaseUrl]);
}
