/** A fresh clone, before anything is installed: what `npm start` and `npm test` say where that fails, and that JSON stays alone. */
import { spawn } from "node:child_process";
import { copyFile, mkdir, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import process from "node:process";
import { afterAll, beforeAll, expect, test } from "vitest";
import { projectDirectory } from "../support/stack.ts";

let clone: string;
beforeAll(async () => {
  clone = await mkdtemp(join(tmpdir(), "image-sync-clone-"));
  const files = ["start", "ready", "check", "directions", "files", "surroundings"].map((name) =>
    `local/${name}.mjs`
  );
  const commands = ["cli/image-sync.mjs", "cli/loopback.mjs"];
  for (const path of ["package.json", "package-lock.json", ".npmrc", ...commands, ...files]) {
    await mkdir(join(clone, dirname(path)), { recursive: true });
    await copyFile(join(projectDirectory, path), join(clone, path));
  }
});
afterAll(() => rm(clone, { recursive: true }));

type Ended = { readonly code: number | null; readonly stdout: string; readonly stderr: string };

/** Types a command in the clone; nobody answers where packages come from. */
function type(program: string, ...args: string[]): Promise<Ended> {
  const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => !/^npm_/i.test(name)));
  const child = spawn(program, args, {
    cwd: clone,
    env: {
      ...env,
      npm_config_registry: "http://127.0.0.1:1/",
      npm_config_cache: join(clone, "cache"),
      npm_config_fetch_retries: "0",
    },
    stdio: ["ignore", "pipe", "pipe"],
  });
  const text = { stdout: "", stderr: "" };
  child.stdout.on("data", (part) => text.stdout += part);
  child.stderr.on("data", (part) => text.stderr += part);
  return new Promise((resolve) => child.on("close", (code) => resolve({ code, ...text })));
}

test.each([
  ["npm start", ["start", "--", "--once", "--json"]],
  ["npm test", ["test"]],
])(
  "%s shows npm's own errors where the install fails, and nothing on standard output",
  async (_what, args) => {
    const { code, stdout, stderr } = await type("npm", ...args);
    expect({ code, stdout }).toEqual({ code: 2, stdout: "" });
    expect(stderr).toContain("Installing what is needed (npm ci) ...");
    expect(stderr).toMatch(/npm error.*(ECONNREFUSED|127\.0\.0\.1:1)/s);
    expect(stderr).toContain("Cannot install what is needed: npm says above why");
  },
  60_000,
);

// As an older Node would see itself.
const asNode18 =
  'data:text/javascript,Object.defineProperty(process,"versions",{value:{...process.versions,node:"18.20.8"}})';
test.each(["local/start.mjs", "local/ready.mjs", "cli/image-sync.mjs"])(
  "%s says in a sentence which Node it needs",
  async (script) => {
    const { code, stdout, stderr } = await type(process.execPath, "--import", asNode18, script);
    expect({ code, stdout, stderr }).toEqual({
      code: 2,
      stdout: "",
      stderr: "Cannot run on Node 18.20.8: install Node 20 or newer, from https://nodejs.org\n",
    });
  },
);
