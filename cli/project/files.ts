/** What of ours goes into somebody's project: the function, one migration, a block of config.toml, and a manifest of what is ours. */
import { createHash } from "node:crypto";
import { readdir, readFile } from "node:fs/promises";
import { join, posix } from "node:path";
import { z } from "zod";
import { VERSION } from "../../supabase/functions/image-sync/version.ts";
import { packageRoot } from "../package_root.ts";
import { migrationOf, readReleases, readSchema } from "./schema.ts";

/** Where this package keeps what it installs. */
const source = join(packageRoot, "supabase");

/** Below `supabase/` of a project: the function, and the list of what is ours in it. */
export const FUNCTION_DIRECTORY = "functions/image-sync";
export const MANIFEST = `${FUNCTION_DIRECTORY}/image-sync.json`;

/** The block of `config.toml`: the function checks its callers itself. */
export const CONFIG_BLOCK = `[functions.image-sync]
# The function checks the caller itself: it accepts the project's secret keys alone, which are not JWTs.
verify_jwt = false
`;

/** What was installed, so that the next version knows what was edited since. */
export const manifestSchema = z.looseObject({
  version: z.string(),
  /** The name of the migration's file. */
  migration: z.string().regex(/^(migrations\/[^/\\]+)?$/),
  /** SHA-256 of each file by its path below `supabase/`. */
  files: z.record(z.string().refine(isOfFunction), z.string()),
});
export type Manifest = z.infer<typeof manifestSchema>;

// The list lies in the repository, where everybody edits: it is not what decides which other files go.
function isOfFunction(path: string): boolean {
  return path.startsWith(`${FUNCTION_DIRECTORY}/`) && posix.normalize(path) === path && !path.includes("\\");
}

/** The function's files by their path below `supabase/`. */
export async function readFunctionFiles(): Promise<ReadonlyMap<string, string>> {
  const names = (await readdir(join(source, FUNCTION_DIRECTORY), { recursive: true })).filter((name) =>
    /\.ts$|^deno\.(json|lock)$/.test(name)
  );
  const files = names.sort().map(async (name) => {
    const path = `${FUNCTION_DIRECTORY}/${name}`;
    return [path, await readFile(join(source, path), "utf8")] as const;
  });
  return new Map(await Promise.all(files));
}

/** The migration that installs the schema, or that goes on from an installed version of it. */
export async function readMigration(from: string | null = null): Promise<string> {
  const before = from === null ? undefined : (await readReleases())[from];
  return migrationOf(await readSchema(), { from, to: VERSION, before });
}

export function hashOf(text: string): string {
  return createHash("sha256").update(text).digest("hex");
}

/**
 * The migration that takes out what is ours and nothing else: jobs by what they do, functions by name, the schema with the archive. The
 * table stays with its rows, columns and unique key.
 */
export async function readRemoval(): Promise<string> {
  const functions = [
    ...(await readMigration()).matchAll(/^create or replace function public\.(image_sync_\w+)\(/gm),
  ]
    .map(([, name]) => `drop function if exists public.${name};`);
  return `-- Takes image-sync out. The table public.part_images stays, with its rows; their URLs are as good as their expiry.
-- With the schema goes the archive of what cleanups removed: restore first what should come back.

do $$
begin
  if to_regclass('cron.job') is not null then
    perform cron.unschedule(j.jobid)
    from image_sync.scheduled_jobs() j
    where j.jobid is not null;
  end if;
end;
$$;

${functions.join("\n")}
drop index if exists public.part_images_twins_idx, public.part_images_object_idx;
drop schema image_sync cascade;
`;
}
