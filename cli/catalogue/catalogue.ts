/** What of image-sync there should be in a database, object by object, what there is, and the SQL between the two. */
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { z } from "zod";
import { VERSION } from "../../supabase/functions/image-sync/version.ts";
import { packageRoot } from "../package_root.ts";
import { readSchema, setOf } from "../project/schema.ts";
import type { QueryDatabase } from "./database.ts";

const KINDS = [
  "table",
  "column",
  "default",
  "type",
  "constraint",
  "index",
  "function",
  "view",
  "trigger",
  "grant",
  "job",
] as const;

const objectSchema = z.strictObject({
  kind: z.enum(KINDS),
  name: z.string(),
  definition: z.string(),
  query: z.string().nullable().default(null),
  creation: z.string().nullable().default(null),
  correction: z.string().nullable().default(null),
});

/** An object of the database; what its parts mean stands in `catalogue.sql`. */
export type CatalogueObject = z.infer<typeof objectSchema>;

const catalogueSchema = z.strictObject({
  /** Of the schema; null where there is none. */
  version: z.string().nullable(),
  objects: z.array(objectSchema),
});
export type Catalogue = z.infer<typeof catalogueSchema>;

const home = join(packageRoot, "cli/catalogue");

/** Where the expectation stands, written by `npm run db:types`. */
export const EXPECTATION: string = join(home, "catalogue.json");

/** What a database has that this version was just installed into. */
export async function readExpected(): Promise<Catalogue> {
  return catalogueSchema.parse(JSON.parse(await readFile(EXPECTATION, "utf8")));
}

/** What a database has; changes nothing in it. */
export async function readCatalogue(query: QueryDatabase): Promise<Catalogue> {
  const [facts] = z.array(z.object({ is_there: z.boolean(), has_jobs: z.boolean() }))
    .parse(
      await query(`
      select
        to_regprocedure('image_sync.schema_version()') is not null as is_there,
        to_regclass('cron.job') is not null as has_jobs`),
    );
  const [version] = facts?.is_there === true
    ? z.array(z.object({ version: z.string() })).parse(
      await query("select image_sync.schema_version() as version"),
    )
    : [];
  const files = ["catalogue.sql", ...(facts?.has_jobs === true ? ["jobs.sql"] : [])];
  const objects: CatalogueObject[] = [];
  for (const file of files) {
    objects.push(...z.array(objectSchema).parse(await query(await readFile(join(home, file), "utf8"))));
  }
  return { version: version?.version ?? null, objects };
}

/** One object that is not as it should be. */
export type Drift = {
  readonly kind: CatalogueObject["kind"];
  readonly name: string;
  readonly state: "missing" | "changed" | "unexpected";
  /** What mends it; null: the schema's repeatable set does. */
  readonly sql: string | null;
};

/**
 * What differs, in the order in which it is mended. Both are of one version.
 *
 * @param query asks the database of `found`, in a transaction: it says whether two queries mean the same
 */
export async function compareCatalogues(
  expected: Catalogue,
  found: Catalogue,
  query: QueryDatabase,
): Promise<Drift[]> {
  const there = new Map(found.objects.map((object) => [keyOf(object), object]));
  const known = new Set(expected.objects.map(keyOf));
  const names = new Set(expected.objects.map(({ kind, name }) => `${kind} ${nameAlone(name)}`));
  const drifts: Drift[] = [];
  for (const object of expected.objects) {
    const { kind, name } = object;
    const other = there.get(keyOf(object));
    if (other === undefined) drifts.push({ kind, name, state: "missing", sql: object.creation });
    else if (other.definition !== object.definition || !await isSameQuery(query, object.query, other.query)) {
      drifts.push({ kind, name, state: "changed", sql: object.correction });
    }
  }
  const unexpected = found.objects.filter((object) => !known.has(keyOf(object))).flatMap(
    ({ kind, name }): Drift[] => {
      const sql = removalOf(kind, name);
      // A second function of the same name makes a call of the API ambiguous.
      const isOverload = kind === "function" && names.has(`${kind} ${nameAlone(name)}`);
      return sql === undefined && !isOverload
        ? []
        : [{ kind, name, state: "unexpected", sql: sql ?? `drop function ${name};` }];
    },
  );
  const all = [...drifts, ...unexpected];
  // What is gone, or has to go, is said once: not again for its default and grants, which come with it.
  const whole = new Set(
    all.filter(({ kind, state }) => ["function", "view", "column"].includes(kind) && state !== "changed").map(
      keyOf,
    ),
  );
  const isSaid = ({ kind, name }: Drift) => {
    const target = / on (?:function|table) (.*) to /.exec(name)?.[1] ?? name;
    if (kind === "grant") return whole.has(`function ${target}`) || whole.has(`view ${target}`);
    return kind === "default" && whole.has(`column ${name}`);
  };
  return all
    .filter((drift) => !isSaid(drift))
    .toSorted((one, other) => KINDS.indexOf(one.kind) - KINDS.indexOf(other.kind));
}

/** The SQL that mends what differs: what is missing of the tables first, then the set of functions, views and grants, then the rest. */
export async function mendingSql(drifts: readonly Drift[]): Promise<string> {
  const isBefore = ({ kind }: Drift) => KINDS.indexOf(kind) < KINDS.indexOf("function");
  const isOfSet = ({ kind }: Drift) => kind === "function" || kind === "view";
  const sqlOf = (some: readonly Drift[]) => some.flatMap(({ sql }) => sql === null ? [] : [sql]);
  const set = drifts.some((drift) => drift.sql === null || isOfSet(drift)) ? setOf(await readSchema()) : [];
  const statements = [
    ...sqlOf(drifts.filter(isBefore)),
    // What is in the way goes before it comes anew.
    ...sqlOf(drifts.filter(isOfSet)),
    ...set,
    ...sqlOf(drifts.filter((drift) => !isBefore(drift) && !isOfSet(drift))),
  ];
  return `-- Brings what differs back to what image-sync ${VERSION} installs: all of it, or nothing where a line fails.
-- One statement, because that is what "supabase db query" takes.
do $image_sync_mend$
begin
execute $image_sync_sql$
${statements.join("\n\n")}
$image_sync_sql$;
-- What readers had been granted of a view that was made anew.
execute coalesce(current_setting('image_sync.grants', true), '');
end;
$image_sync_mend$;
`;
}

// A string, a cast, or a name without what qualifies it.
const WORD =
  /'(?:[^']|'')*'|::(?:time(?:stamp)? with(?:out)? time zone|character varying|double precision|\w+)|(?:"[^"]*"|\w+)(?![\w.])/g;

/**
 * Whether two queries mean the same to the server, whichever ones have printed them: both have the same words but for casts, optional
 * ones and qualifiers, and the server would execute both in the same way. Their words alone would not tell "a and (b or c)" from
 * "(a and b) or c", the way alone not "limit 1" from "limit 2".
 */
async function isSameQuery(
  query: QueryDatabase,
  expected: string | null,
  found: string | null,
): Promise<boolean> {
  if (expected === found) return true;
  if (expected === null || found === null || wordsOf(expected) !== wordsOf(found)) return false;
  // Older releases of Storage lack these columns, and our views give them a value then.
  const meant = expected.replaceAll(/\w+\.(is_delete_marker|archived_at)\b/g, "$1");
  const plan = await planOf(query, meant);
  return plan !== undefined && plan === await planOf(query, found);
}

function wordsOf(text: string): string {
  const words = (text.match(WORD) ?? []).filter((word) => !word.startsWith("::"))
    .map((word) => word.startsWith("'") ? word : word.replaceAll('"', "").toLowerCase());
  return words.filter((word) => word !== "as").join(" ");
}

/** How the server would execute a query; undefined where it cannot. */
async function planOf(query: QueryDatabase, text: string): Promise<string | undefined> {
  await query("savepoint before_plan");
  const plan = await query(`explain (verbose, costs off) ${text}`).catch(() => undefined);
  await query("rollback to savepoint before_plan");
  return plan === undefined ? undefined : JSON.stringify(plan);
}

function keyOf({ kind, name }: Pick<CatalogueObject, "kind" | "name">): string {
  return `${kind} ${name}`;
}

function nameAlone(name: string): string {
  return name.replace(/\(.*/, "");
}

// Who must not have it has got it; or something of another's works on our tables. Whatever else there is, is its owner's business.
function removalOf(kind: CatalogueObject["kind"], name: string): string | undefined {
  const [, privilege, target, role] = /^(\w+) on (.*) to (public|anon|authenticated)$/.exec(name) ?? [];
  if (kind === "grant" && role !== undefined) return `revoke ${privilege} on ${target} from ${role};`;
  const [, table, own] = /^(image_sync\.\S+?)\.(.*)$/.exec(name) ?? [];
  if (kind === "trigger" && table !== undefined) return `drop trigger ${own} on ${table};`;
  if (kind === "constraint" && table !== undefined) return `alter table ${table} drop constraint ${own};`;
  return undefined;
}
