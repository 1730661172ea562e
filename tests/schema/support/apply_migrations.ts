/** Applies the project's migrations as an operator does: `deno run -A apply_migrations.ts DATABASE_URL`. */
import { fileURLToPath } from "node:url";
import { migrate } from "../../../local/postgres/migrate.ts";

const [databaseUrl] = Deno.args;
if (databaseUrl === undefined) throw new Error("Cannot migrate: give the database URL as role postgres");
await migrate({ projectDirectory: fileURLToPath(new URL("../../..", import.meta.url)), databaseUrl });
