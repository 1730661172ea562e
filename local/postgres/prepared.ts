/** A server whose database has what the platform supplies and what the project's migrations make of it. */
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
  // The real pg_cron, which a server of somebody's choosing may have, writes the server's port into its jobs.
  if (options.postgresBin !== undefined) return await prepare(options);
  const template = await findTemplate({
    name: options.migrated ? "migrated" : "platform",
    make: async (directory) => await (await prepare(options)).leave(directory),
  });
  return await startPostgres({ ...options, template });
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
