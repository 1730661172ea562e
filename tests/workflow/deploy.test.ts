/**
 * A repository from nothing to its first report, with the real Supabase CLI: it is linked and deployed by the stand-in of the Management
 * API, to which a profile of the CLI points, and pushed to the stack's Postgres. What arrived is what runs then.
 */
import { execFile } from "node:child_process";
import { copyFile, mkdir, mkdtemp, readdir, readFile, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { promisify } from "node:util";
import postgres from "postgres";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { runCommand } from "../cli/support/run_command.ts";
import { type LocalManagementApi, startManagementApi } from "../support/management_api.ts";
import { denoPath, type LocalStack, projectDirectory, startLocalStack } from "../support/stack.ts";

const run = promisify(execFile);
const FUNCTION = "supabase/functions/image-sync";

let base: string;
let shop: string;
let arrived: string;
let api: LocalManagementApi;
let stack: LocalStack;
beforeAll(async () => {
  base = await mkdtemp(join(tmpdir(), "image-sync-deploy-"));
  shop = join(base, "shop");
  arrived = join(base, "image-sync/1", FUNCTION);
  await mkdir(join(shop, "node_modules/.bin"), { recursive: true });
  await symlink(
    join(projectDirectory, "node_modules/.bin/supabase"),
    join(shop, "node_modules/.bin/supabase"),
  );
  [api, stack] = await Promise.all([
    startManagementApi(base),
    // It runs what was deployed, once it was, with nothing but what the lock names.
    startLocalStack([
      "--no-migrate",
      "--no-call",
      "--function",
      join(arrived, "index.ts"),
      "--function-flag=--frozen",
    ]),
  ]);
}, 120_000);
afterAll(async () => {
  await Promise.all([api?.stop(), stack?.stop()]);
  if (base !== undefined) await rm(base, { recursive: true });
});

const environment = () => ({
  SUPABASE_ACCESS_TOKEN: api.token,
  SUPABASE_PROFILE: api.profile,
  SUPABASE_TELEMETRY_DISABLED: "1",
  PGSSLMODE: "disable",
});
const deploy = (args: readonly string[], env: Record<string, string> = {}) =>
  runCommand(["deploy", ...args], { directory: shop, env: { ...environment(), ...env } });
const here = () => ["--db-url", stack.dbUrl, "--url", stack.url, "--key", stack.secretKey];

describe("in this order", () => {
  test("init; before it is linked nothing is deployed", async () => {
    expect(await runCommand(["init", "--yes"], { directory: shop })).toMatchObject({ status: 0 });
    expect(await deploy(["--yes"])).toMatchObject({
      status: 2,
      stderr: expect.stringContaining("supabase link"),
    });
  });

  test("link, by the project's own CLI", async () => {
    const cli = join(shop, "node_modules/.bin/supabase");
    await run(cli, ["link", "--project-ref", api.ref, "--workdir", shop, "--yes"], {
      cwd: base,
      env: { ...process.env, ...environment() },
    });
    expect(await readFile(join(shop, "supabase/.temp/project-ref"), "utf8")).toBe(api.ref);
  }, 120_000);

  test("a dry run names the project and every command, without the database's password", async () => {
    const { status, stdout, stderr } = await deploy(["--dry-run", ...here()]);
    expect({ status, stdout }).toMatchObject({ status: 0, stdout: expect.stringContaining("dry run") });
    expect(stderr).toContain(`To project ${api.ref} (Shop, eu-central-1):`);
    expect(stderr).toMatch(/npx supabase db push --remote=postgresql:\/\/\.\.\.@127\.0\.0\.1:\d+ --yes/);
    expect(stderr).toContain("npx supabase functions deploy image-sync --use-api --yes");
    expect(stderr).not.toContain("postgres:postgres");
    expect((await api.asked()).filter((line) => line.startsWith("POST"))).toEqual([]);
  }, 120_000);

  test(
    "a token that is not the account's, and a variable that names another project, stop it first",
    async () => {
      const token = `sbp_${"f".repeat(40)}`;
      expect(await deploy(["--yes", ...here()], { SUPABASE_ACCESS_TOKEN: token })).toMatchObject({
        status: 2,
        stderr: expect.stringContaining("not signed in"),
      });
      const other = "zyxwvutsrqponmlkjihg";
      expect(await deploy(["--yes", ...here()], { SUPABASE_PROJECT_ID: other })).toMatchObject({
        status: 2,
        stderr: expect.stringContaining(other),
      });
      expect((await api.asked()).filter((line) => line.startsWith("POST"))).toEqual([]);
    },
    120_000,
  );

  test("deploy pushes the schema and the function, whose first call is the report", async () => {
    // The platform bundles what arrives; the lock says that nothing else is meant.
    await mkdir(arrived, { recursive: true });
    await copyFile(join(shop, FUNCTION, "deno.lock"), join(arrived, "deno.lock"));
    const { status, stdout, stderr } = await deploy(["--yes", "--json", ...here()]);
    const document = JSON.parse(stdout);
    expect({ status, document, stderr }).toMatchObject({
      // There is no bucket yet: deployed, and somebody has to look.
      status: 1,
      document: { project: api.ref, done: true, report: { healthy: false, bucket: { id: "part-images" } } },
    });
    expect(document.report.findings.map(({ code }: { code: string }) => code)).toContain("bucket_missing");
    expect(await api.asked()).toContain(`POST /v1/projects/${api.ref}/functions/deploy: 201`);
    const sql = postgres(stack.dbUrl, { max: 1 });
    expect(await sql`select p.url from image_sync.project p`).toEqual([{ url: stack.url }]);
    await sql.end();
  }, 300_000);

  test("doctor finds that all of the chain holds, but for the bucket", async () => {
    const { stdout } = await runCommand(["doctor"], {
      directory: shop,
      env: {
        ...environment(),
        SUPABASE_URL: stack.url,
        SUPABASE_SECRET_KEY: stack.secretKey,
        SUPABASE_DB_URL: stack.dbUrl,
      },
    });
    for (
      const link of [
        "Supabase CLI: 3.1.0",
        `link: the repository is linked to ${api.ref}`,
        "function",
        "versions",
      ]
    ) {
      expect(stdout).toContain(`✔ ${link}`);
    }
    expect(stdout).toMatch(/✔ catalogue: \d+ objects are as they were installed/);
    expect(stdout).toContain("✖ bucket");
  }, 120_000);
});

test(
  "the function that init copies is complete: its lock is of its imports, and nothing reaches out of its folder",
  async () => {
    const alone = join(base, "alone");
    await mkdir(alone);
    for (
      const entry of await readdir(join(projectDirectory, FUNCTION), { recursive: true, withFileTypes: true })
    ) {
      if (!entry.isFile()) continue;
      const path = join(entry.parentPath, entry.name);
      const target = join(alone, path.slice(join(projectDirectory, FUNCTION).length + 1));
      await mkdir(join(target, ".."), { recursive: true });
      await copyFile(path, target);
    }
    const lock = await readFile(join(alone, "deno.lock"), "utf8");
    await run(denoPath, ["install", "--quiet", "--frozen", "--entrypoint", "index.ts"], { cwd: alone });
    await run(denoPath, ["check", "--quiet", "--frozen", "index.ts"], { cwd: alone });
    expect(await readFile(join(alone, "deno.lock"), "utf8")).toBe(lock);
    // A version that the lock does not know is refused.
    const manifest = await readFile(join(alone, "deno.json"), "utf8");
    await writeFile(join(alone, "deno.json"), manifest.replace(/npm:p-limit@[\d.]+/, "npm:p-limit@7.3.0"));
    await expect(run(denoPath, ["check", "--quiet", "--frozen", "index.ts"], { cwd: alone })).rejects.toThrow(
      "lockfile",
    );
  },
  120_000,
);
