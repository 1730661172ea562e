/**
 * `npm run migration`: writes from `supabase/schemas/` the migration of the version at hand, the whole schema, and the list of its objects,
 * by which later versions know what differs. With `--check` it writes nothing and fails where a file is not what it would write. Releases
 * of before are kept in `tests/schema/fixtures/releases/`.
 */
import { readdir, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { objectsOf } from "../cli/project/difference.ts";
import { migrationOf, readReleases, readSchema, RELEASES, setOf } from "../cli/project/schema.ts";
import { VERSION } from "../supabase/functions/image-sync/version.ts";

const directory = fileURLToPath(new URL("../supabase/migrations", import.meta.url));
const ending = `_image_sync_${VERSION.replaceAll(".", "_")}.sql`;

const schema = await readSchema();
const text = migrationOf(schema, { from: null, to: VERSION });
const releases = `${
  JSON.stringify({ ...await readReleases(), [VERSION]: objectsOf(setOf(schema)) }, undefined, 2)
}\n`;
const files = (await readdir(directory)).filter((name) => name.endsWith(".sql"));
const name = files.find((file) => file.endsWith(ending)) ??
  `${new Date().toISOString().replaceAll(/\D/g, "").slice(0, 14)}${ending}`;
const others = files.filter((file) => file !== name);

if (process.argv[2] !== "--check") {
  await writeFile(join(directory, name), text);
  await writeFile(RELEASES, releases);
  for (const other of others) await rm(join(directory, other));
} else if (
  others.length > 0 || await readFile(join(directory, name), "utf8").catch(() => "") !== text ||
  await readFile(RELEASES, "utf8") !== releases
) {
  console.error(
    `supabase/migrations/ or releases.json is not what supabase/schemas says. Run: npm run migration`,
  );
  process.exit(1);
}
