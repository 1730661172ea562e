/** What the database alone tells: whose it is, and whether what we installed is still as we installed it. */
import { writeFile } from "node:fs/promises";
import { z } from "zod";
import {
  compareCatalogues,
  type Drift,
  mendingSql,
  readCatalogue,
  readExpected,
} from "../catalogue/catalogue.ts";
import { hostOf, type QueryDatabase, readDatabase } from "../catalogue/database.ts";
import { quoted } from "../../supabase/functions/image-sync/text/commands.ts";
import { CommandError } from "../command_error.ts";
import { type Link, unknownLink } from "./link.ts";

/** Options of {@linkcode databaseLinks}. */
export type DatabaseOptions = {
  readonly databaseUrl: string;
  /** The project's URL, which the function should have announced to this database. */
  readonly projectUrl: string;
  /** Where to write what mends the catalogue, as a path that can be opened and as it was typed. */
  readonly sqlFile?: { readonly path: string; readonly name: string };
};

const CATALOGUE = "catalogue";
const SHOWN = 20;
const KIND_WORDS: Partial<Record<Drift["kind"], string>> = { default: "column" };

/** Reads the database; changes nothing in it. */
export async function databaseLinks(options: DatabaseOptions): Promise<Link[]> {
  try {
    return await readDatabase(options.databaseUrl, async (query) => [
      await ownerLink(query, options),
      await catalogueLink(query, options),
    ]);
  } catch (error) {
    if (!(error instanceof CommandError)) throw error;
    return [
      { looked_at: "database", state: "broken", found: error.message, remedy: null },
      unknownLink(CATALOGUE, "the database cannot be read"),
    ];
  }
}

/** Whether this database is the project's: its function has announced itself there. */
async function ownerLink(query: QueryDatabase, { databaseUrl, projectUrl }: DatabaseOptions): Promise<Link> {
  const link = { looked_at: "database", remedy: null };
  const [{ is_there: isThere }] = z.tuple([z.object({ is_there: z.boolean() })]).parse(
    await query("select to_regclass('image_sync.project') is not null as is_there"),
  );
  const announced = isThere
    ? z.array(z.object({ url: z.string() })).parse(await query("select p.url from image_sync.project p"))
    : [];
  const url = announced[0]?.url;
  if (url === undefined || url === new URL(projectUrl).origin) {
    return { ...link, state: "fine", found: `${hostOf(databaseUrl)} can be read` };
  }
  return {
    ...link,
    state: "broken",
    found: `${
      hostOf(databaseUrl)
    } is told of by a function at ${url}, not at ${projectUrl}: is it another project's, or a copy?`,
    remedy:
      "Take URL, key and database URL of one project. A copy is told by its own function: npx image-sync status",
  };
}

async function catalogueLink(query: QueryDatabase, { sqlFile }: DatabaseOptions): Promise<Link> {
  const [expected, found] = [await readExpected(), await readCatalogue(query)];
  const link = { looked_at: CATALOGUE, remedy: null };
  if (found.version === null) {
    return {
      ...link,
      state: "broken",
      found: "the schema image_sync is not there",
      remedy: "Run: npx image-sync init\nRun: npx supabase db push --remote",
    };
  }
  if (found.version !== expected.version) {
    return unknownLink(
      CATALOGUE,
      `the schema is of version ${found.version}, and this command knows ${expected.version} alone`,
    );
  }
  const drift = await compareCatalogues(expected, found, query);
  if (drift.length === 0) {
    return { ...link, state: "fine", found: `${expected.objects.length} objects are as they were installed` };
  }
  if (sqlFile !== undefined) await writeFile(sqlFile.path, await mendingSql(drift));
  const file = sqlFile?.name ?? "mend.sql";
  return {
    ...link,
    state: drift.some(isBreaking) ? "broken" : "warning",
    found: `${drift.length} of ${expected.objects.length} objects are not as they were installed: ${
      listOf(drift)
    }`,
    remedy: [
      sqlFile === undefined
        ? `Run: npx image-sync doctor --sql ${file}`
        : `${file} mends it: look at it first`,
      `Run: npx supabase db query --remote --file ${quoted(file)}`,
    ].join("\n"),
    drift,
  };
}

function listOf(drift: readonly Drift[]): string {
  const names = drift.slice(0, SHOWN).map(({ kind, name, state }) =>
    `${KIND_WORDS[kind] ?? kind} ${name} (${state})`
  );
  const rest = drift.length - names.length;
  return [...names, ...(rest > 0 ? [`${rest} more, with --json`] : [])].join(", ");
}

// What came to it may be meant so; what is gone or other is not what was tested. Rights of everybody are never meant so.
function isBreaking({ kind, state }: Drift): boolean {
  return state !== "unexpected" || kind === "grant" || kind === "function";
}
