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
  "body",
  "view",
  "trigger",
  "policy",
  "grant",
  "job",
] as const;

const objectSchema = z.strictObject({
  kind: z.enum(KINDS),
  name: z.string(),
  definition: z.string(),
  is_printed: z.boolean().default(false),
  creation: z.string().nullable().default(null),
  correction: z.string().nullable().default(null),
});

/** An object of the database; what its parts mean stands in `catalogue.sql`. */
export type CatalogueObject = z.infer<typeof objectSchema>;

const catalogueSchema = z.strictObject({
  /** Of the schema; null where there is none. */
  version: z.string().nullable(),
  /** The major version of Postgres that printed the definitions. */
  postgres: z.int(),
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
  const [facts] = z.array(z.object({ postgres: z.int(), is_there: z.boolean(), has_jobs: z.boolean() }))
    .parse(
      await query(`
      select
        current_setting('server_version_num')::integer / 10000 as postgres,
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
  return { version: version?.version ?? null, postgres: facts?.postgres ?? 0, objects };
}

/** One object that is not as it should be. */
export type Drift = {
  readonly kind: CatalogueObject["kind"];
  readonly name: string;
  readonly state: "missing" | "changed" | "unexpected";
  /** What mends it; null: the schema's repeatable set does. */
  readonly sql: string | null;
};

/** What differs, in the order in which it is mended. Both are of one version. */
export function compareCatalogues(expected: Catalogue, found: Catalogue): Drift[] {
  const there = new Map(found.objects.map((object) => [keyOf(object), object]));
  const known = new Set(expected.objects.map(keyOf));
  const names = new Set(expected.objects.map(({ kind, name }) => `${kind} ${nameAlone(name)}`));
  const isComparable = ({ is_printed: isPrinted }: CatalogueObject) =>
    !isPrinted || expected.postgres === found.postgres;
  const drifts = expected.objects.flatMap((object): Drift[] => {
    const { kind, name } = object;
    const other = there.get(keyOf(object));
    if (other === undefined) return [{ kind, name, state: "missing", sql: object.creation }];
    if (!isComparable(object) || other.definition === object.definition) return [];
    return [{ kind, name, state: "changed", sql: object.correction }];
  });
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
  // What is gone, or has to go, is said once: not again for its body, default and grants, which come with it.
  const whole = new Set(
    all.filter(({ kind, state }) => ["function", "view", "column"].includes(kind) && state !== "changed").map(
      keyOf,
    ),
  );
  const isSaid = ({ kind, name }: Drift) =>
    kind === "body" || kind === "grant"
      ? ["function", "view"].some((of) =>
        whole.has(`${of} ${/ on (?:function|table) (.*) to /.exec(name)?.[1] ?? name}`)
      )
      : kind === "default" && whole.has(`column ${name}`);
  return all
    .filter((drift) => !isSaid(drift))
    .toSorted((one, other) => KINDS.indexOf(one.kind) - KINDS.indexOf(other.kind));
}

/** The SQL that mends what differs: what is missing of the tables first, then the set of functions, views and grants, then the rest. */
export async function mendingSql(drifts: readonly Drift[]): Promise<string> {
  const isBefore = ({ kind }: Drift) => KINDS.indexOf(kind) < KINDS.indexOf("function");
  const sqlOf = (some: readonly Drift[]) => some.flatMap(({ sql }) => sql === null ? [] : [sql]);
  const set = drifts.some(({ sql, kind }) => sql === null || kind === "function" || kind === "view")
    ? setOf(await readSchema())
    : [];
  const statements = [
    ...sqlOf(drifts.filter(isBefore)),
    // What is in the way goes before it comes anew.
    ...sqlOf(drifts.filter((drift) => drift.kind === "function" && drift.state === "unexpected")),
    ...set,
    ...sqlOf(drifts.filter((drift) => !isBefore(drift) && drift.kind !== "function")),
  ];
  return `-- Brings what differs back to what image-sync ${VERSION} installs: all of it, or nothing where a line fails.
-- One statement, because that is what "supabase db query" takes.
do $image_sync_mend$
begin
execute $image_sync_sql$
${statements.join("\n\n")}
$image_sync_sql$;
end;
$image_sync_mend$;
`;
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
