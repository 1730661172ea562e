import { fileURLToPath } from "node:url";

const supabaseCli = fileURLToPath(new URL("../../node_modules/.bin/supabase", import.meta.url));

/**
 * Applies the migrations of a project with the Supabase CLI, as an operator does against a hosted database.
 *
 * @param options `projectDirectory`: holds `supabase/migrations`; `databaseUrl`: as role postgres
 * @throws {Error} when the CLI fails, with what it printed.
 */
export async function migrate(
  { projectDirectory, databaseUrl }: { projectDirectory: string; databaseUrl: string },
): Promise<void> {
  const { success, code, stdout, stderr } = await new Deno.Command(supabaseCli, {
    args: ["migration", "up", `--remote=${databaseUrl}`, "--yes", `--workdir=${projectDirectory}`],
    env: {
      SUPABASE_TELEMETRY_DISABLED: "1",
      DO_NOT_TRACK: "1",
      PGSSLMODE: "disable", // the embedded server speaks no TLS; asking for it first prints a warning
    },
  }).output();
  if (success) return;
  const output = [stdout, stderr].map((bytes) => new TextDecoder().decode(bytes).trim()).join("\n");
  throw new Error(
    `Cannot apply the migrations of ${projectDirectory}/supabase/migrations: ` +
      `"supabase migration up" ended with status ${code}:\n${output}`,
  );
}
