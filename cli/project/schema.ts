/**
 * The schema, a noun a file (`supabase/schemas/`), and the migrations that are made of it. A line `-- step 1.0.0` begins what is done
 * once, on the way to that version: tables, types, data. A line `-- set` begins what is said anew by every release: functions and
 * views, each with `create or replace`. A migration is the steps since a version, in the order of versions and files, and then the
 * whole set; an upgrade from 1.x begins with what follows `-- upgrade`, which makes room for the steps, one from a later version says of
 * the set what differs (`difference.ts`). Where a file says what a first installation makes of it (`-- fresh`), its steps are for
 * upgrades alone.
 */
import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { z } from "zod";
import { packageRoot } from "../package_root.ts";
import { differenceOf, type Objects } from "./difference.ts";
import { reviewOf } from "./review.ts";

/** A part of a file: what an upgrade begins with, a step on the way to a version, or a part of the set. */
export type SchemaPart =
  & { readonly file: string; readonly text: string }
  & ({ readonly kind: "upgrade" | "fresh" | "set" } | { readonly kind: "step"; readonly version: string });

const home = join(packageRoot, "supabase/schemas");
const MARK = /^-- (?:step (\d+\.\d+\.\d+)|(set|fresh|upgrade))$/;

/**
 * The parts of the schema, in the order of their files.
 *
 * @throws {Error} where a file does not begin with a mark.
 */
export async function readSchema(directory: string = home): Promise<readonly SchemaPart[]> {
  const names = (await readdir(directory)).filter((name) => name.endsWith(".sql")).sort();
  const files = await Promise.all(
    names.map(async (name) => [name, await readFile(join(directory, name), "utf8")] as const),
  );
  return files.flatMap(([name, text]) => partsOf(name, text));
}

function partsOf(file: string, text: string): SchemaPart[] {
  const parts: { mark: RegExpExecArray; lines: string[] }[] = [];
  for (const line of text.split("\n")) {
    const mark = MARK.exec(line);
    if (mark !== null) parts.push({ mark, lines: [] });
    else if (parts.length > 0) parts.at(-1)?.lines.push(line);
    else {
      throw new Error(
        `Cannot read ${file}: its first line is none of "-- step VERSION", "-- fresh", "-- set" and "-- upgrade"`,
      );
    }
  }
  return parts.map(({ mark: [, version, kind], lines }): SchemaPart => {
    const part = { file, text: lines.join("\n").trim() };
    if (version !== undefined) return { ...part, kind: "step", version };
    return { ...part, kind: kind === "upgrade" || kind === "fresh" ? kind : "set" };
  });
}

/** What every release says anew, as SQL. */
export function setOf(schema: readonly SchemaPart[]): readonly string[] {
  return schema.filter(({ kind }) => kind === "set").map(({ text }) => text);
}

/** Compares two versions: negative where the first is older. Source: https://semver.org, 11; without pre-releases. */
export function compareVersions(one: string, other: string): number {
  const [ones, others] = [one, other].map((version) => version.split(".").map(Number));
  return (ones ?? []).map((part, place) => part - (others?.[place] ?? 0)).find((part) => part !== 0) ?? 0;
}

/** Which way a migration goes: from nothing, or from an installed version, to a version. */
export type Way = {
  readonly from: string | null;
  readonly to: string;
  /** The objects of the version that it goes on from, where they are known: then no others than those that differ are said. */
  readonly before?: Objects | undefined;
};

/** Where the objects of each version stand, written by `npm run migration`. */
export const RELEASES: string = join(home, "releases.json");

/** The objects of each version that is known by them, in the order of versions. */
export async function readReleases(): Promise<Readonly<Record<string, Objects>>> {
  return z.record(z.string(), z.record(z.string(), z.string())).parse(
    JSON.parse(await readFile(RELEASES, "utf8")),
  );
}

/** The migration that goes this way, as it is shipped. */
export function migrationOf(schema: readonly SchemaPart[], way: Way): string {
  const body = bodyOf(schema, way).join("\n\n") + "\n";
  return `${reviewOf(body, way)}\n${body}`;
}

function bodyOf(schema: readonly SchemaPart[], { from, to, before }: Way): string[] {
  const steps = stepsOf(schema, from);
  const partsOfKind = (wanted: SchemaPart["kind"]) => schema.filter(({ kind }) => kind === wanted);
  const set = partsOfKind("set");
  if (from === null) return [...steps, ...set].map(textOf);
  if (before === undefined) {
    return [guard({ from, to }), ...[...partsOfKind("upgrade"), ...steps, ...set].map(textOf)];
  }
  const { drops, texts } = differenceOf(
    set.map(({ text }) => text),
    before,
    steps.map(({ text }) => text).join("\n"),
  );
  const changed = set.map((part, place) => ({ ...part, text: texts[place] ?? "" }))
    .filter(({ text }) => text !== "");
  return [
    guard({ from, to }),
    ...(drops === "" ? [] : [removal(drops)]),
    ...[...steps, ...changed].map(textOf),
  ];
}

function stepsOf(schema: readonly SchemaPart[], from: string | null): SchemaPart[] {
  const fresh = schema.filter(({ kind }) => kind === "fresh");
  const steps = from === null
    // What a file makes at once has the place of its first version.
    ? [...fresh, ...schema.filter(isStep).filter(({ file }) => !fresh.some((part) => part.file === file))]
    : schema.filter(isStep).filter(({ version }) => compareVersions(version, from) > 0);
  return steps.toSorted((one, other) =>
    compareVersions(versionOf(one), versionOf(other)) || one.file.localeCompare(other.file)
  );
}

const isStep = (part: SchemaPart) => part.kind === "step";
const versionOf = (part: SchemaPart) => part.kind === "step" ? part.version : "1.0.0";

const textOf = (part: SchemaPart) =>
  `-- ${nounOf(part.file)}${part.kind === "step" ? `, ${part.version}` : ""}\n\n${part.text}`;

// What goes, or is made anew because its head or columns are others, or because it is bound to such a one.
function removal(drops: string): string {
  return `do $$
declare
  v_detail text;
begin
${drops.replaceAll(/^/gm, "  ")}
exception
  when dependent_objects_still_exist then
    get stacked diagnostics v_detail = pg_exception_detail;
    raise exception E'Cannot upgrade image-sync: %\\nDrop it first, and make it again afterwards', v_detail
      using errcode = 'dependent_objects_still_exist',
        hint = 'Nothing has been changed.';
end;
$$;`;
}

// The steps of a migration are right behind one version alone.
function guard({ from, to }: { from: string; to: string }): string {
  return `do $$
declare
  v_installed text := 'none';
begin
  if to_regprocedure('image_sync.schema_version()') is not null then
    v_installed := image_sync.schema_version();
  end if;
  if v_installed <> '${from}' then
    raise exception E'Cannot upgrade image-sync from ${from} to ${to}: version % is installed\\nMake the migration that goes on from there: npx image-sync upgrade', v_installed
      using errcode = 'object_not_in_prerequisite_state',
        hint = 'Nothing has been changed.';
  end if;
end;
$$;`;
}

function nounOf(file: string): string {
  return file.replace(/^\d+_|\.sql$/g, "").replaceAll("_", " ");
}
