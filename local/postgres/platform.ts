import type { Pool } from "./database.ts";

/**
 * Creates what the hosted platform supplies: roles, schemas, the Storage tables, Vault, pg_net and pg_cron.
 *
 * @param superuserSql a connection as the superuser
 * @param options `hasCron`: the server has the real pg_cron
 */
export async function createPlatform(superuserSql: Pool, { hasCron }: { hasCron: boolean }): Promise<void> {
  const files = [
    "01_roles.sql",
    "02_schemas.sql",
    "03_storage.sql",
    "04_vault.sql",
    "05_net.sql",
    hasCron ? "06_cron_real.sql" : "06_cron_stand_in.sql",
    "07_extensions.sql",
    "08_linter.sql",
  ];
  for (const file of files) {
    const text = await Deno.readTextFile(new URL(`./platform/${file}`, import.meta.url));
    await superuserSql.query(text);
  }
}
