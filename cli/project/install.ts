/** Plans and makes the changes that bring image-sync into a project's repository. */
import {
  access,
  constants,
  lstat,
  mkdir,
  readdir,
  readFile,
  realpath,
  rename,
  rm,
  rmdir,
  stat,
  writeFile,
} from "node:fs/promises";
import { basename, dirname, join, relative, sep } from "node:path";
import process from "node:process";
import { VERSION } from "../../supabase/functions/image-sync/version.ts";
import { CommandError } from "../command_error.ts";
import { withAttributes, withoutAttributes } from "./attributes.ts";
import { withFunctionBlock, withoutFunctionBlock } from "./config.ts";
import {
  FUNCTION_DIRECTORY,
  hashOf,
  MANIFEST,
  type Manifest,
  manifestSchema,
  readFunctionFiles,
  readMigration,
  readRemoval,
} from "./files.ts";
import { compareVersions, readReleases } from "./schema.ts";

/** What becomes of a file, by its path below `supabase/`. `keep`: its owner edited it. */
export type Change = {
  readonly path: string;
  readonly kind: "create" | "update" | "delete" | "keep" | "same";
  readonly before: string | undefined;
  readonly after: string;
};

/** All that an installation would do. */
export type Plan = {
  /** The project's `supabase` directory. */
  readonly directory: string;
  readonly changes: readonly Change[];
  /** What is left for the owner to do by hand. */
  readonly advice: readonly string[];
};

const ATTRIBUTES = ".gitattributes";

/** Options of {@linkcode planInstall}. */
export type InstallOptions = {
  /** Where to look for a project, or to begin one. */
  readonly directory: string;
  /** Overwrite what was edited. */
  readonly force: boolean;
  /** The version that the database has, where the repository does not say: what a clone pushed. */
  readonly from?: string | undefined;
  readonly now: Date;
};

/**
 * Looks at the project and says what is to be done to bring image-sync into it; changes nothing.
 *
 * @throws {CommandError} `several_projects`, `invalid_config`, `foreign_manifest`; `other_version` where one is there
 */
export async function planInstall(options: InstallOptions): Promise<Plan> {
  const supabase = await findProject(options.directory);
  const manifest = await readManifest(join(supabase, MANIFEST));
  if (manifest !== undefined && manifest.version !== VERSION) {
    const way = isNewer(manifest.version)
      ? `use the commands of ${manifest.version}`
      : `npx image-sync upgrade goes on to ${VERSION}`;
    throw new CommandError(
      "other_version",
      `Cannot bring image-sync ${VERSION} into ${supabase}: version ${manifest.version} is there; ${way}`,
    );
  }
  return await planFiles(supabase, manifest, options);
}

/**
 * Says what is to be done to go on from the version that is there to this one; changes nothing.
 *
 * @throws {CommandError} `not_installed` where there is none, `other_version` where a newer one is, and what {@linkcode planInstall} throws
 */
export async function planUpgrade(options: InstallOptions): Promise<Plan> {
  const supabase = await findProject(options.directory);
  const released = ["1.0.0", "1.1.0", ...Object.keys(await readReleases())].filter((one) => one !== VERSION);
  if (options.from !== undefined && !released.includes(options.from)) {
    throw new CommandError(
      "other_version",
      `Cannot upgrade image-sync from ${options.from}: only ${released.join(" and ")} lead to ${VERSION}`,
    );
  }
  const pushed = options.from === undefined ? undefined : { version: options.from, migration: "", files: {} };
  const manifest = await readManifest(join(supabase, MANIFEST)) ?? pushed;
  if (manifest === undefined) {
    throw new CommandError(
      "not_installed",
      `Cannot upgrade image-sync in ${supabase}: it is not there; bring it in with npx image-sync init. Where a clone pushed its ` +
        "migrations to the database, say which version: --from 1.1.0",
    );
  }
  if (isNewer(manifest.version)) {
    throw new CommandError(
      "other_version",
      `Cannot upgrade image-sync in ${supabase} to ${VERSION}: version ${manifest.version} is there, which is newer; use its commands`,
    );
  }
  if (compareVersions(manifest.version, "1.0.0") < 0) {
    throw new CommandError(
      "other_version",
      `Cannot upgrade image-sync in ${supabase} to ${VERSION}: version ${manifest.version} is there; upgrade to 1.1.0 first`,
    );
  }
  return await planFiles(supabase, manifest, options);
}

function isNewer(version: string): boolean {
  return compareVersions(version, VERSION) > 0;
}

async function planFiles(
  supabase: string,
  manifest: Manifest | undefined,
  { directory, force, now }: InstallOptions,
): Promise<Plan> {
  const files = await readFunctionFiles();
  const migration = await planMigration(supabase, manifest, now);
  const config = await readOptional(join(supabase, "config.toml"));
  const { text: configText, advice } = withFunctionBlock(config ?? newConfig(directory));
  const changes: Change[] = [];
  for (const [path, after] of files) {
    const before = await readOptional(join(supabase, path));
    changes.push(compare({ path, before, after, known: manifest?.files[path], force }));
  }
  // What the version before had and this one has not.
  for (const [path, hash] of Object.entries(manifest?.files ?? {})) {
    const before = files.has(path) ? undefined : await readOptional(join(supabase, path));
    if (before === undefined) continue;
    changes.push({ path, kind: hashOf(before) === hash || force ? "delete" : "keep", before, after: "" });
  }
  if (migration !== undefined) changes.push(migration);
  const attributes = await readOptional(join(supabase, ATTRIBUTES));
  changes.push(changeOf(ATTRIBUTES, attributes, withAttributes(attributes ?? "")));
  changes.push(changeOf("config.toml", config, configText));
  const installed: Manifest = {
    version: VERSION,
    migration: migration?.path ?? manifest?.migration ?? "",
    files: Object.fromEntries([...files].map(([path, text]) => [path, hashOf(text)])),
  };
  const manifestText = `${JSON.stringify(installed, undefined, 2)}\n`;
  changes.push(changeOf(MANIFEST, await readOptional(join(supabase, MANIFEST)), manifestText));
  await expectInside(directory, supabase, changes);
  return { directory: supabase, changes, advice: advice === undefined ? [] : [advice] };
}

/**
 * Says what is to be done to take image-sync out of a project again; changes nothing. Files that were edited are kept.
 *
 * @throws {CommandError} `not_installed` where there is nothing of it, and what {@linkcode planInstall} throws.
 */
export async function planRemoval({ directory, force, now }: InstallOptions): Promise<Plan> {
  const supabase = await findProject(directory);
  const manifest = await readManifest(join(supabase, MANIFEST));
  if (manifest === undefined) {
    throw new CommandError(
      "not_installed",
      `Cannot take image-sync out of ${supabase}: ${MANIFEST} is not there, so nobody knows what of it is ours`,
    );
  }
  const changes: Change[] = [];
  for (const [path, hash] of Object.entries(manifest.files)) {
    const before = await readOptional(join(supabase, path));
    if (before === undefined) continue;
    changes.push({ path, kind: hashOf(before) === hash || force ? "delete" : "keep", before, after: "" });
  }
  changes.push({
    path: MANIFEST,
    kind: "delete",
    before: await readOptional(join(supabase, MANIFEST)),
    after: "",
  });
  const stamp = await nextStamp(supabase, now);
  const after = await readRemoval();
  changes.push({
    path: `migrations/${stamp}_remove_image_sync.sql`,
    kind: "create",
    before: undefined,
    after,
  });
  const config = await readOptional(join(supabase, "config.toml")) ?? "";
  const { text, advice } = withoutFunctionBlock(config);
  changes.push(changeOf("config.toml", config, text));
  const attributes = await readOptional(join(supabase, ATTRIBUTES));
  const attributesLeft = withoutAttributes(attributes ?? "");
  if (attributes !== undefined) {
    changes.push({
      ...changeOf(ATTRIBUTES, attributes, attributesLeft),
      ...attributesLeft === "" ? { kind: "delete" } : {},
    });
  }
  await expectInside(directory, supabase, changes);
  return { directory: supabase, changes, advice: advice === undefined ? [] : [advice] };
}

/** Refuses to follow a link out of the repository: what lies elsewhere is somebody else's. */
async function expectInside(directory: string, supabase: string, changes: readonly Change[]): Promise<void> {
  const folder = await placeOf(directory === supabase ? dirname(directory) : directory);
  const repository = await findRoot(folder) ?? folder;
  for (const { path, kind } of changes) {
    const place = kind === "same" || kind === "keep" ? repository : await placeOf(join(supabase, path));
    if (place === repository || place.startsWith(join(repository, sep))) continue;
    throw new CommandError(
      "outside",
      `Cannot ${kind} ${
        join(supabase, path)
      }: a link leads to ${place}, outside of ${repository}; put the file or folder itself in ` +
        "its place. Nothing was changed",
    );
  }
}

/** The folder with `.git`: this one, or the closest above. */
async function findRoot(folder: string): Promise<string | undefined> {
  if (await lstat(join(folder, ".git")).then(() => true, () => false)) return folder;
  return folder === dirname(folder) ? undefined : await findRoot(dirname(folder));
}

/** Where a path leads once its links were followed, also one that is still to be made. */
async function placeOf(path: string): Promise<string> {
  return await realpath(path).catch(async () => join(await placeOf(dirname(path)), basename(path)));
}

/**
 * The `supabase` directory of a project that image-sync was brought into.
 *
 * @throws {CommandError} `not_installed`
 */
export async function findInstallation(directory: string): Promise<string> {
  const supabase = await findProject(directory);
  if (await exists(join(supabase, "functions", "image-sync", "index.ts"))) return supabase;
  throw new CommandError(
    "not_installed",
    `Cannot deploy from ${directory}: it has no function image-sync; bring it in first, with npx image-sync init`,
  );
}

/**
 * Makes the changes of a plan. Each file is there whole or not at all, the manifest last; what cannot be written is found out before
 * anything is.
 *
 * @throws {CommandError} `not_writable`
 */
export async function applyPlan({ directory, changes }: Plan): Promise<void> {
  const written = changes.filter(({ kind }) => kind === "create" || kind === "update");
  for (const { path } of written) await expectWritable(join(directory, path));
  for (const { path, after } of written) await writeWhole(join(directory, path), after);
  for (const { path, kind } of changes) {
    if (kind !== "delete") continue;
    await rm(join(directory, path), { force: true });
    await removeEmpty(dirname(join(directory, path)), join(directory, FUNCTION_DIRECTORY));
  }
}

async function expectWritable(path: string): Promise<void> {
  try {
    const there = await stat(path).catch(() => undefined);
    if (there !== undefined && !there.isFile()) throw new Error("it is no file");
    if (there !== undefined) return await access(path, constants.W_OK);
    const folder = await closest(dirname(path));
    if (!(await stat(folder)).isDirectory()) throw new Error(`${folder} is no folder`);
    await access(folder, constants.W_OK);
  } catch (error) {
    throw new CommandError(
      "not_writable",
      `Cannot write ${path}: ${error instanceof Error ? error.message : String(error)}; nothing was changed`,
      { cause: error },
    );
  }
}

/** The folder, or what there is above where it will be made. */
async function closest(folder: string): Promise<string> {
  return await lstat(folder).then(() => folder, () => closest(dirname(folder)));
}

// Beside it first: a crash in between leaves what was there. A link stays one.
async function writeWhole(path: string, text: string): Promise<void> {
  await mkdir(dirname(path), { recursive: true });
  const target = await realpath(path).catch(() => path);
  const unfinished = `${target}.${process.pid}.unfinished`;
  await rm(unfinished, { force: true }); // a link, or what another crash left
  await writeFile(unfinished, text, { flag: "wx" });
  await rename(unfinished, target);
}

/** Removes a folder and those above it, up to `last`, as far as they are empty. */
async function removeEmpty(folder: string, last: string): Promise<void> {
  if (!folder.startsWith(last)) return;
  await rmdir(folder).then(() => removeEmpty(dirname(folder), last), () => {});
}

function changeOf(path: string, before: string | undefined, after: string): Change {
  return {
    path,
    kind: before === undefined ? "create" : before === after ? "same" : "update",
    before,
    after,
  };
}

function compare(
  { path, before, after, known, force }: {
    path: string;
    before: string | undefined;
    after: string;
    known: string | undefined;
    force: boolean;
  },
): Change {
  if (before === undefined) return { path, kind: "create", before, after };
  if (before === after) return { path, kind: "same", before, after };
  const isOurs = known !== undefined && hashOf(before) === known;
  return { path, kind: isOurs || force ? "update" : "keep", before, after };
}

/**
 * One migration, stamped now: behind the newest that is there, so that every project applies it. The whole schema, or what leads on from
 * the version that is there; none where this version's is there.
 */
async function planMigration(
  supabase: string,
  manifest: Manifest | undefined,
  now: Date,
): Promise<Change | undefined> {
  const names = await readdir(join(supabase, "migrations")).catch(() => []);
  if (names.some((name) => /^20261124\d{6}_rpc\.sql$/.test(name))) {
    throw new CommandError(
      "installed_by_hand",
      `Cannot add a migration: ${
        join(supabase, "migrations")
      } holds image-sync's migrations already, copied one by one; ` +
        "they are all that is needed",
    );
  }
  if (manifest?.version === VERSION) {
    const before = await readOptional(join(supabase, manifest.migration));
    // A migration that was pushed is history: never edited, never written again.
    if (before !== undefined) return { path: manifest.migration, kind: "same", before, after: before };
  }
  const stamp = await nextStamp(supabase, now);
  const from = manifest === undefined || manifest.version === VERSION ? null : manifest.version;
  const name = from === null ? "image_sync" : `image_sync_${VERSION.replaceAll(".", "_")}`;
  const after = await readMigration(from);
  const written = manifest === undefined
    ? await findWritten(supabase, names, `_${name}.sql`, after)
    : undefined;
  if (written !== undefined) return { path: written, kind: "same", before: after, after };
  return { path: `migrations/${stamp}_${name}.sql`, kind: "create", before: undefined, after };
}

/** The migration, where an init wrote it that did not come to its end, or whose manifest was lost; not one that was taken back since. */
async function findWritten(
  supabase: string,
  names: readonly string[],
  ending: string,
  text: string,
): Promise<string | undefined> {
  const removed = names.filter((name) => name.endsWith("_remove_image_sync.sql")).sort().at(-1) ?? "";
  for (const name of names.filter((name) => name.endsWith(ending) && name > removed)) {
    const path = `migrations/${name}`;
    if (await readOptional(join(supabase, path)) === text) return path;
  }
  return undefined;
}

/** Now, or behind the newest migration that is there. */
async function nextStamp(supabase: string, now: Date): Promise<string> {
  const names = await readdir(join(supabase, "migrations")).catch(() => []);
  const stamps = names.flatMap((name) => /^(\d{14})_.*\.sql$/.exec(name)?.[1] ?? []);
  return [stampOf(now), ...stamps.map(next)].sort().at(-1) ?? stampOf(now);
}

function stampOf(time: Date): string {
  return time.toISOString().replaceAll(/\D/g, "").slice(0, 14);
}

function next(stamp: string): string {
  const [, year, month, day, hour, minute, second] = /^(\d{4})(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)$/.exec(stamp) ??
    [];
  const time = Date.parse(`${year}-${month}-${day}T${hour}:${minute}:${second}Z`);
  // A stamp that is no time is counted up as a number.
  if (Number.isNaN(time)) return String(BigInt(stamp) + 1n);
  return stampOf(new Date(time + 1000));
}

/**
 * The `supabase` folder that a command means which was called without naming one: of the folder, of one below, or of one above up to
 * the repository's root.
 */
export async function findRepository(here: string): Promise<string> {
  if (await exists(join(await findProject(here), "config.toml"))) return here;
  for (let folder = here; folder !== dirname(folder); folder = dirname(folder)) {
    if (await exists(join(folder, "supabase", "config.toml"))) return folder;
    if (await lstat(join(folder, ".git")).then(() => true, () => false)) break;
  }
  return here;
}

/** The project's `supabase` directory: here, or the only one in a folder below. Where there is none, one begins here. */
async function findProject(directory: string): Promise<string> {
  if (basename(directory) === "supabase" && await exists(join(directory, "config.toml"))) return directory;
  if (await exists(join(directory, "supabase", "config.toml"))) return join(directory, "supabase");
  const found: string[] = [];
  for (const depth of ["", "apps", "packages", "services"]) {
    const parent = join(directory, depth);
    for (const name of await readdir(parent).catch(() => [])) {
      const candidate = join(parent, name, "supabase");
      if (name !== "node_modules" && await exists(join(candidate, "config.toml"))) found.push(candidate);
    }
  }
  if (found.length > 1) {
    throw new CommandError(
      "several_projects",
      `Cannot tell which project is meant: ${
        found.map((path) => relative(directory, dirname(path))).join(", ")
      }; name one of them`,
    );
  }
  return found[0] ?? join(directory, "supabase");
}

function newConfig(directory: string): string {
  const name = basename(directory).toLowerCase().replaceAll(/[^a-z0-9-]+/g, "-").replaceAll(/^-+|-+$/g, "");
  return `project_id = "${name || "image-sync"}"\n`;
}

async function readManifest(path: string): Promise<Manifest | undefined> {
  const text = await readOptional(path);
  if (text === undefined) return undefined;
  try {
    return manifestSchema.parse(JSON.parse(text));
  } catch (error) {
    throw new CommandError(
      "foreign_manifest",
      `Cannot tell what was edited: ${path} is not as image-sync writes it; remove it, and everything that differs is kept`,
      { cause: error },
    );
  }
}

async function readOptional(path: string): Promise<string | undefined> {
  try {
    return await readFile(path, "utf8");
  } catch (error) {
    if (error instanceof Error && "code" in error && error.code === "ENOENT") return undefined;
    throw new CommandError("unreadable", `Cannot read ${path}: make it readable, or remove it`, {
      cause: error,
    });
  }
}

async function exists(path: string): Promise<boolean> {
  return await readOptional(path).then((text) => text !== undefined, () => false);
}
