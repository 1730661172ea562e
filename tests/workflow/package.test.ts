/** The package as somebody installs it: the commands under plain Node, with neither Deno nor Postgres, in a folder that has nothing. */
import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { lstat, mkdir, mkdtemp, readdir, readFile, rm, symlink, writeFile } from "node:fs/promises";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from "vitest";
import { z } from "zod";
import { build } from "../../cli/build.mjs";
import { reportSchema } from "../../supabase/functions/image-sync/contract.ts";
import { VERSION } from "../../supabase/functions/image-sync/version.ts";
import { type LocalStack, projectDirectory, startLocalStack } from "../support/stack.ts";

const run = promisify(execFile);
const MEGABYTE = 1_000_000;

let directory: string;
let installed: string;
let path: string;
let stack: LocalStack;
beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), "image-sync-package-"));
  installed = join(directory, "shop/node_modules/image-sync");
  // What the commands may start: Node, and nothing of ours.
  path = join(directory, "bin");
  await mkdir(path);
  await symlink(process.execPath, join(path, "node"));
  await run("npm", ["pack", "--pack-destination", directory], { cwd: projectDirectory });
  await mkdir(join(directory, "shop"));
  await writeFile(join(directory, "shop/package.json"), '{ "name": "shop", "private": true }\n');
  const tarball = join(directory, `image-sync-${VERSION}.tgz`);
  // It has everything in it: the registry is not asked.
  await run("npm", ["install", "--save-dev", "--offline", tarball], { cwd: join(directory, "shop") });
  stack = await startLocalStack();
}, 240_000);
afterAll(async () => {
  await stack?.stop();
  if (directory !== undefined) await rm(directory, { recursive: true });
});

/** Runs a command of the installed package. */
async function type(
  args: readonly string[],
  env: Readonly<Record<string, string>> = {},
): Promise<{ status: number; stdout: string; stderr: string }> {
  const program = join(directory, "shop/node_modules/.bin/image-sync");
  const options = { cwd: join(directory, "shop"), env: { PATH: path, ...env } };
  return await run(program, args, options).then((ended) => ({ status: 0, ...ended }), (error: unknown) => {
    const schema = z.object({ code: z.number(), stdout: z.string(), stderr: z.string() });
    const { code, ...printed } = schema.parse(error);
    return { status: code, ...printed };
  });
}

const project = () => ({ SUPABASE_URL: stack.url, SUPABASE_SECRET_KEY: stack.secretKey });

/** Every file below a folder, by its path. */
async function read(folder: string): Promise<Record<string, string>> {
  const entries = await readdir(folder, { recursive: true, withFileTypes: true });
  const files = entries.filter((entry) => entry.isFile()).map(async (entry) => {
    const file = join(entry.parentPath, entry.name);
    return [file.slice(folder.length + 1), await readFile(file, "utf8")] as const;
  });
  return Object.fromEntries(await Promise.all(files));
}

describe("the package", () => {
  test("brings nothing else along and takes a few megabytes", async () => {
    const names = (await readdir(join(directory, "shop/node_modules"))).filter((name) =>
      !name.startsWith(".")
    );
    expect(names).toEqual(["image-sync"]);
    const files = Object.keys(await read(installed));
    const sizes = await Promise.all(files.map(async (file) => (await lstat(join(installed, file))).size));
    expect(sizes.reduce((sum, size) => sum + size)).toBeLessThan(3 * MEGABYTE);
    expect(files).toEqual(expect.arrayContaining([
      "CHANGELOG.md",
      "LICENSE",
      "README.md",
      "dist/licenses.txt",
      "docs/operations.md",
      "supabase/functions/image-sync/index.ts",
    ]));
    expect(files.filter((file) => /^(local|tests|bench)\/|\.env|stack\.json/.test(file))).toEqual([]);
  });

  test("has the commands that its source gives, to the byte, and no trace of the machine that built it", async () => {
    const again = join(directory, "again");
    await build(again);
    const built = await read(join(installed, "dist"));
    expect(await read(again)).toEqual(built);
    expect(built["image-sync.mjs"]).not.toContain(projectDirectory);
    // What it holds of others comes with their licences.
    for (const name of ["commander", "smol-toml", "zod"]) expect(built["licenses.txt"]).toContain(`${name} `);
  });
});

/** A proxy that connects nobody: what it was asked for, and what began behind its answer. */
async function serveProxy(answer: string) {
  const asked: { place: string | undefined; account: string | undefined; began: string }[] = [];
  const server = createServer().on("connect", ({ url, headers }, socket) => {
    const request = { place: url, account: headers["proxy-authorization"], began: "" };
    asked.push(request);
    socket.on("error", () => {}).once("data", (bytes: Buffer) => {
      request.began = bytes.toString("latin1");
      socket.destroy();
    });
    socket.write(`HTTP/1.1 ${answer}\r\n\r\n`);
  }).listen(0, "127.0.0.1");
  onTestFinished(() => void server.close());
  await once(server, "listening");
  return { asked, host: `127.0.0.1:${(server.address() as AddressInfo).port}` };
}

const PROXIES = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"].flatMap((name) => [name, name.toLowerCase()]);

describe("under plain Node", () => {
  test("a project on this machine is asked itself, whatever proxy the environment names", async () => {
    const proxies = Object.fromEntries(PROXIES.map((name) => [name, "http://127.0.0.1:9"]));
    const { stdout } = await type(["status", "--json"], {
      ...project(),
      ...proxies,
      NODE_USE_ENV_PROXY: "1",
    });
    expect(reportSchema.parse(JSON.parse(stdout)).bucket.id).toBe("part-images");
  });

  const hosted = { SUPABASE_URL: "https://ref.example.test", SUPABASE_SECRET_KEY: "sb_secret_x" };

  test.each(PROXIES.filter((name) => !/^http_/i.test(name)))(
    "a hosted project is asked through the proxy that %s names, with its account and TLS to the project itself",
    async (name) => {
      const { asked, host } = await serveProxy("200 OK");
      expect(await type(["status"], { ...hosted, [name]: `http://me:p%40ss@${host}` })).toMatchObject({
        status: 2,
      });
      const account = `Basic ${btoa("me:p@ss")}`;
      expect(asked[0]).toMatchObject({ place: "ref.example.test:443", account });
      const hello = asked[0]?.began ?? "";
      expect(hello.charCodeAt(0)).toBe(22); // a handshake of TLS
      expect(hello).toContain("ref.example.test");
    },
  );

  test("a proxy that refuses, or is not there, is named; one that the project is excepted from is not asked", async () => {
    const { asked, host } = await serveProxy("407 Proxy Authentication Required");
    const refused = await type(["status"], { ...hosted, HTTPS_PROXY: `http://${host}` });
    expect(refused.stderr).toContain(
      `Cannot reach https://ref.example.test: the proxy ${host} answers HTTP 407;`,
    );
    const gone = await type(["status"], { ...hosted, HTTPS_PROXY: "127.0.0.1:9" });
    expect(gone.stderr).toContain("the proxy 127.0.0.1:9 cannot be reached;");
    const before = asked.length;
    for (const NO_PROXY of ["example.test", ".example.test", "*", "other, ref.example.test:443"]) {
      const direct = await type(["status"], { ...hosted, HTTPS_PROXY: `http://${host}`, NO_PROXY });
      expect(direct.stderr).not.toContain("proxy");
    }
    expect(asked).toHaveLength(before);
  });

  test("--version is the package's", async () => {
    expect(await type(["--version"])).toEqual({ status: 0, stdout: `${VERSION}\n`, stderr: "" });
  });

  test("init brings what a clone brings", async () => {
    const { status, stdout } = await type(["init", "--yes"]);
    expect({ status, stdout }).toMatchObject({
      status: 0,
      stdout: expect.stringContaining("npx image-sync status"),
    });
    const files = await read(join(directory, "shop/supabase"));
    const own = await read(join(projectDirectory, "supabase/functions/image-sync"));
    expect(Object.keys(files)).toEqual(expect.arrayContaining(["config.toml"]));
    for (const [name, text] of Object.entries(own).filter(([name]) => !name.endsWith(".md"))) {
      expect([name, files[`functions/image-sync/${name}`]]).toEqual([name, text]);
    }
    expect(Object.keys(files).filter((name) => name.startsWith("migrations/"))).toHaveLength(1);
    expect(await type(["init", "--yes"])).toMatchObject({
      status: 0,
      stdout: expect.stringContaining("Nothing to do"),
    });
  });

  test("status and doctor tell of a project", async () => {
    const status = await type(["status", "--json"], project());
    expect(reportSchema.parse(JSON.parse(status.stdout)).bucket.id).toBe("part-images");
    expect(status.stderr).toMatch(/^Project http:\/\/127\.0\.0\.1:\d+ \(the environment\)/);
    const doctor = await type(["doctor", "--json"], project());
    const { links } = z.object({
      links: z.array(z.looseObject({ looked_at: z.string(), state: z.string() })),
    })
      .parse(JSON.parse(doctor.stdout));
    expect(links).toContainEqual(expect.objectContaining({ looked_at: "function", state: "fine" }));
    expect(links).toContainEqual(expect.objectContaining({ looked_at: "versions", state: "fine" }));
  });

  test("export writes a workbook; what it leaves out of the package it asks for by name", async () => {
    const written = await type(["export", "register.xlsx", "--json"], project());
    expect(JSON.parse(written.stdout)).toMatchObject({ file: "register.xlsx", format: "xlsx" });
    expect((await readFile(join(directory, "shop/register.xlsx"))).subarray(0, 2).toString()).toBe("PK");
    const built = await readFile(join(installed, "dist/image-sync.mjs"), "utf8");
    expect(built).toContain('import("sharp")');
  });

  test("open serves the window, with its files, until it is told to stop", async () => {
    const program = join(directory, "shop/node_modules/.bin/image-sync");
    const child = spawn(program, ["open", "--no-browser", "--json"], {
      cwd: join(directory, "shop"),
      env: { PATH: path, ...project() },
      stdio: ["ignore", "pipe", "inherit"],
    });
    const ended = new Promise<number | null>((resolve) => child.once("close", resolve));
    onTestFinished(() => void child.kill("SIGKILL"));
    const address = await new Promise<string>((resolve) => {
      let text = "";
      child.stdout.on("data", (part) => {
        text += part;
        if (text.endsWith("}\n")) resolve(z.object({ address: z.string() }).parse(JSON.parse(text)).address);
      });
    });
    const signedIn = await fetch(address, { redirect: "manual" });
    const cookie = signedIn.headers.get("set-cookie")?.split(";")[0] ?? "";
    const page = await fetch(new URL("/", address), { headers: { cookie } });
    const html = await page.text();
    expect({ status: page.status, html }).toMatchObject({
      status: 200,
      html: expect.stringContaining("part-images"),
    });
    const [style] = /\/assets\/window\.css\?\w+/.exec(html) ?? [""];
    expect((await fetch(new URL(style, address), { headers: { cookie } })).status).toBe(200);
    child.kill("SIGINT");
    expect(await ended).toBe(0);
  }, 60_000);

  test("nothing that is said names what only a clone has", async () => {
    const { status, stderr } = await type(["status"]);
    expect(status).toBe(2);
    expect(stderr).toContain("SUPABASE_URL");
    expect(stderr).not.toContain("npm start");
  });
});
