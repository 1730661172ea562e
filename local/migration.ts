/**
 * `npm run migration`: writes the migration of the version at hand from `supabase/schemas/`. With `--check` it writes nothing and fails
 * where the file is not what it would write; with `--release` it notes the file's hash, after which the file never changes.
 */
import { createHash } from "node:crypto";
import { readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { z } from "zod";
import { compareVersions, migrationOf, readSchema } from "../cli/project/schema.ts";
import { VERSION } from "../supabase/functions/image-sync/version.ts";

const directory = fileURLToPath(new URL("../supabase/migrations", import.meta.url));
const releasesPath = fileURLToPath(new URL("../supabase/schemas/releases.json", import.meta.url));

const releasesSchema = z.array(
  z.strictObject({ version: z.string(), migration: z.string(), sha256: z.string() }),
);

const flag = process.argv[2];
const releases = releasesSchema.parse(JSON.parse(await readFile(releasesPath, "utf8")));
const released = releases.find(({ version }) => version === VERSION);
const before = releases.filter(({ version }) => compareVersions(version, VERSION) < 0)
  .toSorted((one, other) => compareVersions(one.version, other.version)).at(-1);
const text = migrationOf(await readSchema(), { from: before?.version ?? null, to: VERSION });
const name = released?.migration ?? await fileName();
const path = join(directory, name);
const current = await readFile(path, "utf8").catch(() => "");

if (flag === "--check") {
  if (current !== text) fail(`${name} is not what supabase/schemas says. Run: npm run migration`);
} else if (released !== undefined) {
  if (current !== text) {
    fail(
      `Cannot write the migration of ${VERSION}: it is released, and released migrations never change. Begin the next version: in ` +
        "package.json, supabase/functions/image-sync/version.ts and supabase/schemas/040_project.sql",
    );
  }
} else {
  await writeFile(path, text);
  if (flag === "--release") {
    const release = {
      version: VERSION,
      migration: name,
      sha256: createHash("sha256").update(text).digest("hex"),
    };
    await writeFile(releasesPath, `${JSON.stringify([...releases, release], undefined, 2)}\n`);
  }
}

/** The file of the version at hand, or the name that it gets: stamped now. */
async function fileName(): Promise<string> {
  const ending = `_image_sync_${VERSION.replaceAll(".", "_")}.sql`;
  const there = (await readdir(directory)).find((file) => file.endsWith(ending));
  return there ?? `${new Date().toISOString().replaceAll(/\D/g, "").slice(0, 14)}${ending}`;
}

function fail(words: string): never {
  console.error(words);
  process.exit(1);
}
