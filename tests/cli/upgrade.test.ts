/** `upgrade`: from the version that a repository has to this one. */
import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { cp, mkdir, mkdtemp, readdir, readFile, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { promisify } from "node:util";
import { beforeEach, expect, onTestFinished, test } from "vitest";
import { VERSION } from "../../supabase/functions/image-sync/version.ts";
import { projectDirectory } from "../support/stack.ts";
import { runCommand } from "./support/run_command.ts";

const MANIFEST = "supabase/functions/image-sync/image-sync.json";
const OLD = "supabase/functions/image-sync/of_before.ts";

let directory: string;
beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), "image-sync-"));
  onTestFinished(() => rm(directory, { recursive: true }));
});

const upgrade = (...args: string[]) => runCommand(["upgrade", ...args], { directory });
const read = (path: string) => readFile(join(directory, path), "utf8");
const hashOf = (text: string) => createHash("sha256").update(text).digest("hex");
const migrations = async () => (await readdir(join(directory, "supabase/migrations"))).sort();

/** A repository that has another version, with a file that this one does not know. */
async function begin(version: string, old = "// of before\n"): Promise<void> {
  await mkdir(join(directory, "supabase"), { recursive: true });
  await writeFile(join(directory, "supabase/config.toml"), 'project_id = "shop"\n');
  await runCommand(["init", "--yes"], { directory });
  const manifest = JSON.parse(await read(MANIFEST));
  const text = "export const VERSION = 'of before';\n";
  await writeFile(join(directory, "supabase/functions/image-sync/version.ts"), text);
  await writeFile(join(directory, OLD), old);
  manifest.version = version;
  manifest.files["functions/image-sync/version.ts"] = hashOf(text);
  manifest.files["functions/image-sync/of_before.ts"] = hashOf("// of before\n");
  await writeFile(join(directory, MANIFEST), JSON.stringify(manifest));
}

test("writes one migration more, which goes on from that version, and the new function", async () => {
  await begin("1.0.0");
  const [first] = await migrations();
  const before = await read(`supabase/migrations/${first}`);
  const { status, stdout } = await upgrade("--yes");
  expect([status, stdout]).toEqual([0, expect.stringContaining("npx supabase db push --remote")]);
  const after = await migrations();
  expect(after).toEqual([
    first,
    expect.stringMatching(`^\\d{14}_image_sync_${VERSION.replaceAll(".", "_")}\\.sql$`),
  ]);
  expect(await read(`supabase/migrations/${first}`)).toBe(before);
  expect(await read(`supabase/migrations/${after[1]}`)).toContain(
    `Cannot upgrade image-sync from 1.0.0 to ${VERSION}`,
  );
  expect(await read("supabase/functions/image-sync/version.ts")).toContain(VERSION);
  await expect(read(OLD)).rejects.toThrow("ENOENT");
  expect(JSON.parse(await read(MANIFEST))).toMatchObject({
    version: VERSION,
    migration: `migrations/${after[1]}`,
  });
  // And again: nothing.
  expect((await upgrade("--yes")).stdout).toContain("Nothing to do");
  expect(await migrations()).toEqual(after);
});

test("keeps what was edited, and says so", async () => {
  await begin("1.0.0", "// mine\n");
  expect((await upgrade("--yes")).stdout).toContain("of_before.ts   (edited: --force");
  expect(await read(OLD)).toBe("// mine\n");
});

test("shows what the migration does and what differs, and changes nothing, with --dry-run; every line with --full", async () => {
  await begin("1.0.0");
  const { status, stdout } = await upgrade("--dry-run");
  expect(status).toBe(0);
  expect(stdout).toContain(`-- image-sync 1.0.0 to ${VERSION}: `);
  expect(stdout).toMatch(/^-- {3}yours {4}\S.*\bpublic\.part_images\b/m);
  expect(stdout).toContain("-export const VERSION = 'of before';\n+/** The version of the function");
  expect(stdout).not.toMatch(/^\+?create or replace function/m);
  const full = (await upgrade("--dry-run", "--full")).stdout;
  expect(full).toContain("\n+create or replace function public.image_sync_start");
  expect(full).toContain("+++ /dev/null\n@@ -1,1 +0,0 @@\n-// of before\n");
  expect(await migrations()).toHaveLength(1);
  expect(await read(OLD)).toBe("// of before\n");
});

test("from this version to a made-up next one that changes a function, what it writes is short", async () => {
  const copy = await mkdtemp(join(tmpdir(), "image-sync-next-"));
  onTestFinished(() => rm(copy, { recursive: true }));
  for (const name of ["cli", "supabase", "window", "package.json", "deno.json"]) {
    await cp(join(projectDirectory, name), join(copy, name), { recursive: true });
  }
  await symlink(join(projectDirectory, "node_modules"), join(copy, "node_modules"));
  const edit = async (path: string, ...[from, to]: [string, string]) => {
    const text = await readFile(join(copy, path), "utf8");
    expect(text).toContain(from);
    await writeFile(join(copy, path), text.replace(from, to));
  };
  await edit("supabase/functions/image-sync/version.ts", `"${VERSION}"`, '"99.0.0"');
  await edit("supabase/schemas/040_project.sql", `select '${VERSION}'`, "select '99.0.0'");
  await edit("supabase/schemas/020_redaction.sql", "as $$\n", "as $$\n  -- Of the next version.\n");

  await mkdir(join(directory, "supabase"));
  await writeFile(join(directory, "supabase/config.toml"), 'project_id = "shop"\n');
  await runCommand(["init", "--yes"], { directory });
  const [first] = await migrations();
  await promisify(execFile)(process.execPath, [join(copy, "cli/image-sync.mjs"), "upgrade", "--yes"], {
    cwd: directory,
  });
  const [, second, ...others] = await migrations();
  expect([first, second, others]).toEqual([first, expect.stringMatching(/_image_sync_99_0_0\.sql$/), []]);
  const text = await read(`supabase/migrations/${second}`);
  expect(text.split("\n").length).toBeLessThan(100);
  expect([...text.matchAll(/^create or replace function (\S+)\(/gm)].map(([, name]) => name))
    .toEqual(["image_sync.redact", "image_sync.schema_version"]);
  expect(text).toContain(`Cannot upgrade image-sync from ${VERSION} to 99.0.0`);
});

test("from before the first release the way leads over 1.1.0", async () => {
  await begin("0.1.0");
  expect(await upgrade("--yes")).toMatchObject({
    status: 2,
    stderr: expect.stringContaining("upgrade to 1.1.0 first"),
  });
  expect(await migrations()).toHaveLength(1);
});

test("goes on from what a clone pushed where the repository does not know of it", async () => {
  await mkdir(join(directory, "supabase"), { recursive: true });
  await writeFile(join(directory, "supabase/config.toml"), 'project_id = "shop"\n');
  expect(await upgrade("--yes", "--from", "2.1.0")).toMatchObject({
    status: 2,
    stderr: expect.stringContaining("only 1.0.0 and 1.1.0 lead to"),
  });
  expect(await upgrade("--yes", "--from", "1.1.0")).toMatchObject({ status: 0 });
  const [only, ...others] = await migrations();
  expect(others).toEqual([]);
  expect(await read(`supabase/migrations/${only}`)).toContain(
    `Cannot upgrade image-sync from 1.1.0 to ${VERSION}`,
  );
  expect(JSON.parse(await read(MANIFEST))).toMatchObject({ version: VERSION });
  expect(await read("supabase/.gitattributes")).toContain(
    "migrations/*_image_sync_[0-9]*.sql linguist-generated",
  );
});

test("refuses a newer one, and where there is none; init refuses another version", async () => {
  expect(await upgrade("--yes")).toMatchObject({
    status: 2,
    stderr: expect.stringContaining("npx image-sync init"),
  });
  await begin("99.0.0");
  expect(await upgrade("--yes")).toMatchObject({
    status: 2,
    stderr: expect.stringContaining("which is newer"),
  });
  expect(await runCommand(["init", "--yes"], { directory }))
    .toMatchObject({ status: 2, stderr: expect.stringContaining("use the commands of 99.0.0") });
  await begin("1.0.0").catch(() => {});
  const manifest = JSON.parse(await read(MANIFEST));
  await writeFile(join(directory, MANIFEST), JSON.stringify({ ...manifest, version: "1.0.0" }));
  expect(await runCommand(["init", "--yes"], { directory }))
    .toMatchObject({ status: 2, stderr: expect.stringContaining("npx image-sync upgrade goes on to") });
  expect(await migrations()).toHaveLength(1);
});
