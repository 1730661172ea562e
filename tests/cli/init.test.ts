/** `init`: what of ours goes into somebody's repository, and that nothing of theirs changes. */
import {
  chmod,
  lstat,
  mkdir,
  mkdtemp,
  readdir,
  readFile,
  rename,
  rm,
  symlink,
  writeFile,
} from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import process from "node:process";
import { parse } from "smol-toml";
import { beforeEach, describe, expect, onTestFinished, test } from "vitest";
import { withFunctionBlock, withoutFunctionBlock } from "../../cli/project/config.ts";
import { runCommand } from "./support/run_command.ts";

let directory: string;
beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), "image-sync-"));
  onTestFinished(() => rm(directory, { recursive: true }));
});

async function put(files: Record<string, string>): Promise<void> {
  for (const [path, text] of Object.entries(files)) {
    await mkdir(dirname(join(directory, path)), { recursive: true });
    await writeFile(join(directory, path), text);
  }
}

/** Every file below the directory, with its text. */
async function read(): Promise<Record<string, string>> {
  const names = await readdir(directory, { recursive: true, withFileTypes: true });
  const files = names.filter((entry) => entry.isFile()).map(async (entry) => {
    const path = join(entry.parentPath, entry.name);
    return [path.slice(directory.length + 1).replaceAll("\\", "/"), await readFile(path, "utf8")] as const;
  });
  return Object.fromEntries(await Promise.all(files));
}

const init = (...args: string[]) => runCommand(["init", ...args], { directory });
const config =
  `# The shop's own\nproject_id = "shop"\n\n[db]\nport = 54322 # as ever\n\n[functions.checkout]\nverify_jwt = true\n`;
const shop = {
  "supabase/config.toml": config,
  "supabase/migrations/20250101000000_parts.sql": "create table parts ();\n",
  "supabase/migrations/29991231235959_far.sql": "select 1;\n",
  "supabase/functions/checkout/index.ts": "export default {};\n",
  "package.json": "{}\n",
};
const migrationsOf = (files: Record<string, string>) =>
  Object.keys(files).filter((path) => path.endsWith("_image_sync.sql"));

describe("into a repository", () => {
  test("come the function, one migration behind the newest, a block of config.toml and a list of what is ours", async () => {
    await put(shop);
    const { status, stdout } = await init("--yes");
    expect(status).toBe(0);
    expect(stdout).toContain("npx supabase db push --remote");
    const files = await read();
    expect(files).toMatchObject({
      ...shop,
      "supabase/config.toml": expect.stringMatching(/^# The shop's own/),
    });
    expect(files["supabase/config.toml"]?.startsWith(config)).toBe(true);
    expect(parse(files["supabase/config.toml"] ?? "")).toEqual({
      project_id: "shop",
      db: { port: 54322 },
      functions: { checkout: { verify_jwt: true }, "image-sync": { verify_jwt: false } },
    });
    expect(migrationsOf(files)).toEqual(["supabase/migrations/30000101000000_image_sync.sql"]);
    expect(files[migrationsOf(files)[0] ?? ""]).toContain("create schema image_sync");
    expect(Object.keys(files)).toEqual(expect.arrayContaining([
      "supabase/functions/image-sync/index.ts",
      "supabase/functions/image-sync/deno.json",
      "supabase/functions/image-sync/image-sync.json",
    ]));
  });

  test("a second time nothing changes; what was edited is kept and named, until it is forced", async () => {
    await put(shop);
    await init("--yes");
    const before = await read();
    const again = await init("--yes");
    expect(again).toMatchObject({ status: 0 });
    expect(again.stdout).toContain("Nothing to do");
    expect(await read()).toEqual(before);

    const edited = "supabase/functions/image-sync/text/words.ts";
    await put({ [edited]: "// mine\n" });
    const kept = await init("--yes");
    expect(kept.stdout).toContain("words.ts   (edited: --force overwrites it)");
    expect((await read())[edited]).toBe("// mine\n");
    await init("--yes", "--force");
    expect(await read()).toEqual(before);
  });

  test("a file of an older version that nobody edited is updated", async () => {
    await put(shop);
    await init("--yes");
    const path = "supabase/functions/image-sync/text/words.ts";
    const manifestPath = "supabase/functions/image-sync/image-sync.json";
    const manifest = JSON.parse((await read())[manifestPath] ?? "");
    const { createHash } = await import("node:crypto");
    manifest.files["functions/image-sync/text/words.ts"] = createHash("sha256").update("// of before\n")
      .digest(
        "hex",
      );
    await put({ [path]: "// of before\n", [manifestPath]: JSON.stringify(manifest) });
    expect((await init("--yes")).stdout).toContain("update functions/image-sync/text/words.ts");
    expect((await read())[path]).not.toContain("of before");
  });

  test("nothing comes before it was agreed to", async () => {
    await put(shop);
    const unasked = await init();
    expect(unasked).toMatchObject({ status: 2, stdout: "" });
    expect(unasked.stderr).toContain("add --yes");
    const dry = await init("--dry-run");
    expect(dry.status).toBe(0);
    expect(dry.stdout).toContain("\n+[functions.image-sync]\n");
    expect(dry.stdout).toMatch(/_image_sync\.sql\n-- image-sync [\d.]+: /);
    expect(dry.stdout).not.toContain("create schema image_sync");
    expect((await init("--dry-run", "--full")).stdout).toContain("\n+create schema image_sync;\n");
    expect(await read()).toEqual(shop);
  });

  test("what --dry-run --full shows is every byte that comes", async () => {
    await put(shop);
    const { stdout } = await runCommand(["init", "--dry-run", "--full"], {
      directory,
      program: "npm run image-sync",
    });
    await init("--yes");
    for (const [path, text] of Object.entries(await read())) {
      if (path in shop || path.endsWith("image-sync.json")) continue;
      const lines = text.trimEnd().split("\n").map((line) => `+${line}`).join("\n");
      expect(stdout.includes(`--- /dev/null\n+++ b/${path}\n@@ -0,0 +1,`), path).toBe(true);
      expect(stdout.includes(`@@\n${lines}\n`), path).toBe(true);
    }
  });

  test.each([
    ["none", undefined],
    ["one of its owner's", "*.png binary\n"],
    ["one without a newline at its end", "*.png binary"],
    ["one with Windows line ends", "*.png binary\r\n"],
    ["an empty one", ""],
  ])(
    "where there is %s, .gitattributes marks the migrations as generated, until they are taken out",
    async (_what, text) => {
      await put({ ...shop, ...text === undefined ? {} : { "supabase/.gitattributes": text } });
      await init("--yes");
      const after = (await read())["supabase/.gitattributes"] ?? "";
      expect(after.startsWith(text ?? "")).toBe(true);
      expect(after.split(/\r?\n/).filter((line) => line.endsWith(" linguist-generated"))).toEqual([
        "migrations/*_image_sync.sql linguist-generated",
        "migrations/*_image_sync_[0-9]*.sql linguist-generated",
      ]);
      await runCommand(["uninstall", "--yes"], { directory });
      expect((await read())["supabase/.gitattributes"]?.trimEnd()).toBe(text?.trimEnd() || undefined);
    },
  );

  test("below another folder it is found; of several one has to be named; where there is none one begins", async () => {
    await put(Object.fromEntries(Object.entries(shop).map(([path, text]) => [`apps/shop/${path}`, text])));
    await init("--yes");
    expect(Object.keys(await read())).toContain("apps/shop/supabase/functions/image-sync/index.ts");
    await put({ "apps/other/supabase/config.toml": 'project_id = "other"\n' });
    const several = await init("--yes");
    expect(several.status).toBe(2);
    expect(several.stderr).toMatch(/apps\/(shop|other), apps\/(shop|other); name one of them/);
    expect((await init("apps/other", "--yes")).status).toBe(0);
    expect((await init("new folder", "--yes")).status).toBe(0);
    const files = await read();
    expect(files["new folder/supabase/config.toml"]).toContain('project_id = "new-folder"');
    expect(files["new folder/supabase/functions/image-sync/index.ts"]).toBeDefined();
  });

  test("--json says what was done as one document", async () => {
    await put(shop);
    const { stdout } = await init("--yes", "--json");
    expect(JSON.parse(stdout)).toMatchObject({ done: true, advice: [] });
  });
});

describe("wherever it is", () => {
  test("called in a folder of the repository, it is the repository that is meant", async () => {
    await put({ ...shop, "src/deep/index.ts": "\n", ".git/HEAD": "ref: refs/heads/main\n" });
    const { status, stderr } = await runCommand(["init", "--yes"], {
      directory: join(directory, "src/deep"),
    });
    expect({ status, stderr }).toEqual({
      status: 0,
      stderr: `Repository ${directory}, not linked to a project\n`,
    });
    expect(migrationsOf(await read())).toHaveLength(1);
    expect(Object.keys(await read()).filter((path) => path.startsWith("src/"))).toEqual([
      "src/deep/index.ts",
    ]);
  });

  test("which project it is, is said first, also with --json", async () => {
    await put({
      ...shop,
      "supabase/.temp/project-ref": "abcdefghijklmnopqrst",
      "supabase/.temp/linked-project.json": '{"ref":"abcdefghijklmnopqrst","name":"Shop"}',
    });
    for (const command of ["init", "upgrade", "uninstall"]) {
      const { stderr } = await runCommand([command, "--yes", "--json"], { directory });
      expect(stderr).toBe(`Repository ${directory}, of project abcdefghijklmnopqrst (Shop)\n`);
    }
  });

  test("a path with spaces and umlauts is one like any other", async () => {
    const place = "Ünser Shop (neu)";
    await put(Object.fromEntries(Object.entries(shop).map(([path, text]) => [`${place}/${path}`, text])));
    expect((await init(place, "--yes")).status).toBe(0);
    expect(Object.keys(await read())).toContain(`${place}/supabase/functions/image-sync/index.ts`);
  });

  test("links are written through and stay links", async () => {
    await put({ "shared/config.toml": config, "functions/checkout/index.ts": "export default {};\n" });
    await mkdir(join(directory, "supabase"));
    await symlink(join(directory, "shared/config.toml"), join(directory, "supabase/config.toml"));
    await symlink(join(directory, "functions"), join(directory, "supabase/functions"));
    expect((await init("--yes")).status).toBe(0);
    expect((await lstat(join(directory, "supabase/config.toml"))).isSymbolicLink()).toBe(true);
    const files = await read();
    expect(files["shared/config.toml"]).toContain("[functions.image-sync]");
    expect(files["functions/image-sync/index.ts"]).toBeDefined();
  });

  describe("a link that leads out of the repository is not followed", () => {
    let outside: string;
    beforeEach(async () => {
      outside = await mkdtemp(join(tmpdir(), "image-sync-outside-"));
      onTestFinished(() => rm(outside, { recursive: true }));
      await mkdir(join(outside, "project/supabase"), { recursive: true });
      await writeFile(join(outside, "project/supabase/config.toml"), config);
    });
    const outsideNow = async () => (await readdir(outside, { recursive: true })).sort();

    test.each([
      ["its folder supabase", "supabase", "project/supabase"],
      ["its functions", "supabase/functions", "project"],
      ["the function's own folder", "supabase/functions/image-sync", "project"],
      ["its migrations", "supabase/migrations", "project"],
      ["its configuration", "supabase/config.toml", "project/supabase/config.toml"],
      ["an application in it", "apps/shop", "project"],
    ])("%s", async (_what, path, target) => {
      await put({ "package.json": "{}\n" });
      await mkdir(join(directory, dirname(path)), { recursive: true });
      if (path.startsWith("supabase/functions") || path.startsWith("supabase/migrations")) {
        await put({ "supabase/config.toml": config });
      }
      await symlink(join(outside, target), join(directory, path));
      const [before, there] = [await read(), await outsideNow()];
      for (const args of [["--dry-run"], ["--yes"], ["--yes", "--force"]]) {
        const { status, stderr } = await init(...args);
        expect({ status, stderr }).toMatchObject({
          status: 2,
          stderr: expect.stringMatching(
            /Cannot (create|update) .*: a link leads to .*, outside of .*Nothing was changed/,
          ),
        });
      }
      expect([await read(), await outsideNow()]).toEqual([before, there]);
      expect(await readFile(join(outside, "project/supabase/config.toml"), "utf8")).toBe(config);
    });

    test("nor by uninstall", async () => {
      await put(shop);
      await init("--yes");
      const ours = join(directory, "supabase/functions/image-sync");
      await rename(ours, join(outside, "image-sync"));
      await symlink(join(outside, "image-sync"), ours);
      const there = await outsideNow();
      const { status, stderr } = await runCommand(["uninstall", "--yes", "--force"], { directory });
      expect({ status, stderr }).toMatchObject({
        status: 2,
        stderr: expect.stringContaining("a link leads to"),
      });
      expect(await outsideNow()).toEqual(there);
    });
  });

  test("from a folder deep in a repository a link leads anywhere in it", async () => {
    await put({
      ".git/HEAD": "ref: refs/heads/main\n",
      "shared/supabase/config.toml": config,
      "apps/shop/package.json": "{}\n",
    });
    await symlink("../../shared/supabase", join(directory, "apps/shop/supabase"));
    expect((await init("apps/shop", "--yes")).status).toBe(0);
    expect(Object.keys(await read())).toContain("shared/supabase/functions/image-sync/index.ts");
  });

  test.each([
    ["../../x"],
    ["../../../etc/x"],
    ["functions/image-sync/../../../x"],
    ["functions/image-sync/../../functions/checkout/index.ts"],
    ["functions/checkout/index.ts"],
    ["functions/image-sync-of-mine/index.ts"],
    ["functions/image-sync/..\\..\\..\\x"],
    ["functions/image-sync//index.ts"],
    ["/x"],
  ])("a list of what is ours that names %s deletes nothing", async (path) => {
    await put({ ...shop, x: "mine\n", "functions/image-sync-of-mine/index.ts": "mine\n" });
    await init("--yes");
    const manifestPath = "supabase/functions/image-sync/image-sync.json";
    const manifest = JSON.parse((await read())[manifestPath] ?? "");
    const { createHash } = await import("node:crypto");
    manifest.files[path] = createHash("sha256").update("mine\n").digest("hex");
    manifest.version = "1.0.0";
    await put({ [manifestPath]: JSON.stringify(manifest) });
    const before = await read();
    for (const command of ["upgrade", "uninstall"]) {
      const { status, stderr } = await runCommand([command, "--yes", "--force"], { directory });
      expect({ status, stderr }).toMatchObject({
        status: 2,
        stderr: expect.stringContaining("is not as image-sync writes it"),
      });
    }
    expect(await read()).toEqual(before);
  });

  test("what cannot be written is found out before anything is", async () => {
    await put({ ...shop, "supabase/functions/image-sync": "a file\n" });
    const before = await read();
    const { status, stderr } = await init("--yes");
    expect({ status, stderr }).toMatchObject({
      status: 2,
      stderr: expect.stringMatching(/Cannot (write|read) /),
    });
    expect(await read()).toEqual(before);
  });

  test.runIf(process.getuid?.() !== 0)(
    "a file that may only be read stays as it is (not as root)",
    async () => {
      await put(shop);
      await chmod(join(directory, "supabase/config.toml"), 0o444);
      expect(await init("--yes")).toMatchObject({
        status: 2,
        stderr: expect.stringContaining("nothing was changed"),
      });
      expect(await read()).toEqual(shop);
    },
  );

  test("an init that was cut off anywhere is brought to its end by the next, with one migration", async () => {
    await put(shop);
    await init("--yes");
    const whole = await read();
    const manifest = "supabase/functions/image-sync/image-sync.json";
    const ours = Object.keys(whole).filter((path) => !(path in shop));
    // The manifest comes last; of all others any may be missing.
    for (const missing of [ours.slice(0, 3), ours.slice(5), [...migrationsOf(whole)], []]) {
      for (const path of [...missing, manifest]) await rm(join(directory, path), { force: true });
      await put({ "supabase/config.toml": config });
      expect((await init("--yes")).status).toBe(0);
      const files = await read();
      expect(migrationsOf(files)).toHaveLength(1);
      expect({ ...files, [migrationsOf(files)[0] ?? ""]: "" }).toEqual({
        ...whole,
        [migrationsOf(files)[0] ?? ""]: "",
      });
    }
  });

  test("taken out, nothing is left but the migrations; brought in again, it comes by another one", async () => {
    await put(shop);
    await init("--yes");
    await runCommand(["uninstall", "--yes"], { directory });
    const left = Object.keys(await read()).filter((path) => !(path in shop));
    expect(left.every((path) => /migrations\/\d{14}_(remove_)?image_sync\.sql$/.test(path))).toBe(true);
    expect((await read())["supabase/config.toml"]).toBe(config);
    expect(await readdir(join(directory, "supabase/functions"))).toEqual(["checkout"]);
    await init("--yes");
    const names = migrationsOf(await read()).filter((path) => !path.includes("remove"));
    expect(names).toHaveLength(2);
  });
});

describe("config.toml", () => {
  test.each<[string, string]>([
    ["an empty one", ""],
    ["one without a newline at its end", 'project_id = "x"'],
    ["one with Windows line ends", 'project_id = "x"\r\n[api]\r\nport = 1\r\n'],
    ["one with a byte order mark", '\ufeffproject_id = "x"\n'],
    ["one that ends in a table", '[api]\nport = 1\nschemas = ["public", "graphql_public"]\n'],
    ["one that ends in an array of tables", '[[db.seeds]]\npath = "a"\n[[db.seeds]]\npath = "b"\n'],
    [
      "one with functions of its own",
      '[functions.a]\nverify_jwt = true\n[functions."b-c"]\nenabled = false\n',
    ],
    ["one with text over several lines", 'a = """\n[functions.image-sync]\n"""\n'],
    ["one with dotted keys", "functions.a.verify_jwt = true\napi.port = 54321\n"],
    ["one with dates and large numbers", "at = 2026-01-01T00:00:00Z\nbig = 9007199254740991\nratio = 0.5\n"],
    [
      "one with comments and no newline at its end",
      "[auth]\nenabled = true\n[auth.external.apple] # later\nenabled = false\n# the end",
    ],
    [
      "one with a byte order mark and Windows line ends",
      "\ufeff[db]\r\nport = 1\r\n\r\n[functions.a]\r\nenabled = true",
    ],
    [
      "one as the CLI writes it, with secrets of the environment",
      '# For detailed configuration reference documentation, visit:\nproject_id = "shop"\n\n[api]\nenabled = true\nschemas = ["public", "graphql_public"] # exposed\n\n[auth.sms.twilio]\nenabled = false\nauth_token = "env(SUPABASE_AUTH_SMS_TWILIO_AUTH_TOKEN)"\n\n[edge_runtime]\npolicy = "per_worker"\n\n[analytics]\nenabled = true\n\n[experimental]\ns3_host = "env(S3_HOST)"\n',
    ],
    [
      "one with remotes that have functions of their own",
      '[functions.a]\nverify_jwt = true\n\n[remotes.staging]\nproject_id = "abcdefghijklmnopqrst"\n[remotes.staging.functions.image-sync]\nverify_jwt = true\n',
    ],
    [
      "one with quoted and literal keys",
      "['db']\n\"port\" = 1\n[ \"functions\" . 'a' ]\nverify_jwt = false\n",
    ],
    [
      "one with comments at its end",
      "[auth]\nenabled = true\n# [functions.image-sync]\n# verify_jwt = true\n",
    ],
  ])("%s keeps every byte and gets the block", (_what, text) => {
    const { text: changed, advice } = withFunctionBlock(text);
    expect(advice).toBeUndefined();
    expect(changed.startsWith(text)).toBe(true);
    const clean = (toml: string) => toml.replace(/^\ufeff/, "");
    const [before, after] = [parse(clean(text)), parse(clean(changed))];
    expect(after["functions"]).toMatchObject({ "image-sync": { verify_jwt: false } });
    expect({ ...after, functions: { ...(after["functions"] as object), "image-sync": undefined } }).toEqual({
      ...before,
      functions: { ...(before["functions"] as object | undefined), "image-sync": undefined },
    });
    expect(withFunctionBlock(changed)).toEqual({ text: changed });
    expect(withoutFunctionBlock(changed).text.trimEnd()).toBe(text.trimEnd());
  });

  test.each<[string, string, string]>([
    [
      "whose functions are in braces",
      'project_id = "x"\nfunctions = { a = { verify_jwt = true } } # ours\n\n[api]\nport = 1\n',
      'project_id = "x"\nfunctions = { image-sync = { verify_jwt = false }, a = { verify_jwt = true } } # ours\n\n[api]\nport = 1\n',
    ],
    ["whose braces are empty", "functions = {}\n", "functions = {image-sync = { verify_jwt = false }}\n"],
  ])("%s gets it in them, and is as before once it is taken out", (_what, text, changed) => {
    expect(withFunctionBlock(text)).toEqual({ text: changed });
    expect(withFunctionBlock(changed)).toEqual({ text: changed });
    expect(withoutFunctionBlock(changed)).toEqual({ text });
  });

  test("with a block of its owner's is left alone, and it is said what is missing in it", () => {
    const text = '[functions.image-sync]\nimport_map = "x"\n';
    expect(withFunctionBlock(text)).toEqual({ text, advice: expect.stringContaining("verify_jwt = false") });
  });

  test.each([
    ["that is no TOML", "project_id = \n"],
  ])("%s is left alone with the block to be added by hand", (_what, text) => {
    expect(() => withFunctionBlock(text)).toThrow(
      /add this block to it yourself:\n\[functions\.image-sync\]/,
    );
  });
});
