/**
 * `deploy`: what it tells the project's own CLI, in which order, and what it does not do. A program that answers as the CLI does stands
 * in for it, where it fails too; tests/workflow/deploy.test.ts has the real one.
 */
import { chmod, mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { beforeEach, describe, expect, onTestFinished, test } from "vitest";
import { runCommand, type Settings } from "./support/run_command.ts";

const ref = "abcdefghijklmnopqrst";
let directory: string;
beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), "image-sync-"));
  onTestFinished(() => rm(directory, { recursive: true }));
  await runCommand(["init", "--yes"], { directory });
  await mkdir(join(directory, "supabase/.temp"), { recursive: true });
  await writeFile(join(directory, "supabase/.temp/project-ref"), `${ref}\n`);
  await putCli();
});

/** A CLI that writes down what it is told; `answers` by its first word. */
async function putCli(answers: { projects?: string; db?: string; functions?: string } = {}): Promise<void> {
  const projects = answers.projects ??
    `echo '{"projects":[{"id":"${ref}","name":"Shop","region":"eu-central-1"}]}'`;
  await mkdir(join(directory, "node_modules/.bin"), { recursive: true });
  const path = join(directory, "node_modules/.bin/supabase");
  await writeFile(
    path,
    `#!/bin/sh
echo "$@" >> "${join(directory, "told")}"
case "$1" in
  projects) ${projects} ;;
  db) ${answers.db ?? "echo Finished"} ;;
  functions) ${answers.functions ?? "echo Deployed"} ;;
esac
`,
  );
  await chmod(path, 0o755);
}

const told = async () =>
  (await readFile(join(directory, "told"), "utf8").catch(() => "")).trim().split("\n").filter((line) =>
    line !== ""
  );
const deploy = (args: readonly string[] = ["--yes"], settings: Settings = {}) =>
  runCommand(["deploy", ...args], { directory, ...settings });

describe("deploy", () => {
  test("says to which project, pushes, deploys, and says what comes next", async () => {
    const { status, stdout, stderr } = await deploy();
    expect({ status, stderr }).toEqual({
      status: 0,
      stderr: expect.stringContaining(`${ref} (Shop, eu-central-1)`),
    });
    expect(await told()).toEqual([
      "projects list --output-format json",
      "db push --remote --yes",
      "functions deploy image-sync --use-api --yes",
    ]);
    expect(stderr).toContain("database_write");
    expect(stdout).toContain(`SUPABASE_URL=https://${ref}.supabase.co`);
    expect(stdout).toContain("Next: npx image-sync status");
  });

  test.each([
    [
      "postgresql://postgres:p%40ss%20w%C3%B6rd@db.example.com:6543/postgres?sslmode=require",
      "p@ss wörd",
      "?sslmode=require",
    ],
    ["postgresql://postgres:100%@db.example.com:6543/postgres", "100%", ""],
    ["postgresql://postgres@db.example.com:6543/postgres?password=p%40ss", "p@ss", ""],
    ["postgresql://postgres@db.example.com:6543/postgres", "", ""],
  ])("gives the password of %s to the CLI where no other user reads it", async (dbUrl, password, rest) => {
    await putCli({ db: `echo "password $PGPASSWORD" >> "${join(directory, "told")}"` });
    expect(await deploy(["--yes", "--db-url", dbUrl], { env: { PGPASSWORD: "" } })).toMatchObject({
      status: 0,
    });
    expect((await told()).slice(1, 3)).toEqual([
      `db push --remote=postgresql://postgres@db.example.com:6543/postgres${rest} --yes`,
      `password ${password}`,
    ]);
  });

  test("does nothing in a dry run, or before somebody agreed", async () => {
    expect((await deploy(["--dry-run"])).stdout).toContain("dry run");
    expect(await deploy([])).toMatchObject({ status: 2, stderr: expect.stringContaining("add --yes") });
    expect(await told()).toEqual([
      "projects list --output-format json",
      "projects list --output-format json",
    ]);
  });

  test("deploys no function where the push was refused, and warns of the way that costs one's history", async () => {
    await putCli({ db: "echo refused >&2; exit 1" });
    const { status, stderr } = await deploy();
    expect(status).toBe(2);
    expect(stderr).toContain("never repair your own history away");
    expect(await told()).not.toContain("functions deploy image-sync --use-api --yes");
  });

  test.each([
    [
      "is not signed in",
      `echo '{"_tag":"Error","error":{"code":"AccessTokenRequiredError"}}'; exit 1`,
      /not signed in; use npx supabase login/,
    ],
    ["is signed in as somebody else", `echo '{"projects":[{"id":"other"}]}'`, /does not see it/],
  ])("stops first where the CLI %s", async (_how, projects, says) => {
    await putCli({ projects });
    const { status, stderr } = await deploy();
    expect(status).toBe(2);
    expect(stderr).toMatch(says);
    expect(await told()).toHaveLength(1);
  });

  test("stops first where the repository is not linked, or has no function", async () => {
    await rm(join(directory, "supabase/.temp"), { recursive: true });
    expect(await deploy()).toMatchObject({ status: 2, stderr: expect.stringContaining("npx supabase link") });
    await rm(join(directory, "supabase/functions"), { recursive: true });
    expect(await deploy()).toMatchObject({
      status: 2,
      stderr: expect.stringContaining("npx image-sync init"),
    });
    expect(await told()).toEqual([]);
  });
});
