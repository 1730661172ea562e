/** A server whose database has what the platform supplies and what the project's migrations make of it. */
import { createHash } from "node:crypto";
import { join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { withDatabase } from "./database.ts";
import { migrate } from "./migrate.ts";
import { createPlatform } from "./platform.ts";
import { type PostgresOptions, type PostgresServer, startPostgres, superuser } from "./server.ts";
import { findTemplate } from "./template.ts";

/** Options of {@linkcode startPrepared}. */
export type PreparedOptions = Omit<PostgresOptions, "template"> & {
  /** Apply `supabase/migrations`; otherwise the database is that of a project in which nothing happened yet. */
  readonly migrated: boolean;
};

const projectDirectory = fileURLToPath(new URL("../..", import.meta.url));

/**
 * Starts a server on a database of its own that has the platform and the migrations.
 *
 * @throws {Error} as `startPostgres` and `migrate` do; nothing is left running then.
 */
export async function startPrepared(options: PreparedOptions): Promise<PostgresServer> {
  const template = await findTemplate({
    name: `${options.migrated ? "migrated" : "platform"}${await nameOf(options)}`,
    make: async (directory) => await (await prepare(options)).leave(directory),
  });
  const server = await startPostgres({ ...options, template });
  try {
    // The real pg_cron writes the server's port into its jobs: here it is that of the server that made the template.
    if (server.hasCron) {
      const moved = { text: "update cron.job set nodeport = $1", values: [server.port] };
      await withDatabase(server.url(superuser), (sql) => sql.query(moved));
    }
    return server;
  } catch (error) {
    await server.stop();
    throw error;
  }
}

// Another release of it, or the same elsewhere with other extensions, is another server.
async function nameOf({ postgresBin, realCron }: PreparedOptions): Promise<string> {
  if (postgresBin === undefined) return "";
  const info = await Deno.stat(join(postgresBin, "postgres")).catch(() => undefined);
  const facts = `${resolve(postgresBin)} ${info?.size} ${info?.mtime?.getTime()} ${realCron}`;
  return `-${createHash("sha256").update(facts).digest("hex").slice(0, 8)}`;
}

async function prepare(options: PreparedOptions): Promise<PostgresServer> {
  const server = await startPostgres(options);
  try {
    await withDatabase(server.url(superuser), (sql) => createPlatform(sql, server));
    if (options.migrated) await migrate({ projectDirectory, databaseUrl: server.url("postgres") });
    return server;
  } catch (error) {
    await server.stop();
    throw error;
  }
}
