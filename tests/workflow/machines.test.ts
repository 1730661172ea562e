/** Both commands of the README on ordinary machines, from a downloaded archive: as root and as a plain user, whatever surrounds them. */
import { execFileSync, spawn } from "node:child_process";
import { chmod, copyFile, mkdir, mkdtemp, readdir, rm, symlink } from "node:fs/promises";
import { tmpdir } from "node:os";
import { delimiter, dirname, join } from "node:path";
import process from "node:process";
import { beforeEach, expect, onTestFinished, test } from "vitest";
import { projectFiles } from "../../local/files.mjs";
import { projectDirectory } from "../support/stack.ts";

const isRoot = process.getuid?.() === 0;
const isRequired = process.env["IMAGE_SYNC_REQUIRE_ROOT"] !== undefined;
/** Debian's `nobody`. */
const PLAIN_USER = 65_534;
const DEAD_PROXY = "http://127.0.0.1:9";

let place: string;
beforeEach(async () => {
  place = await mkdtemp(join(tmpdir(), "image-sync-machine-")); // only its owner may enter
  onTestFinished(() => rm(place, { recursive: true, force: true }));
});

/** The project as it is downloaded: without `.git`, and without packages. */
async function download(name: string): Promise<string> {
  const archive = join(place, name);
  for (const path of projectFiles(/./)) {
    await mkdir(dirname(join(archive, path)), { recursive: true });
    await copyFile(join(projectDirectory, path), join(archive, path));
  }
  return archive;
}

/** The programs of this machine but for git. */
async function withoutGit(): Promise<string> {
  const programs = join(place, "programs");
  await mkdir(programs);
  for (const folder of (process.env["PATH"] ?? "").split(delimiter)) {
    for (const name of await readdir(folder).catch(() => [])) {
      if (!/^git/.test(name)) await symlink(join(folder, name), join(programs, name)).catch(() => {});
    }
  }
  return programs;
}

type Machine = {
  readonly archive: string;
  readonly env: Readonly<Record<string, string>>;
  readonly umask?: string;
  readonly user?: number;
};
type Ended = { readonly code: number | null; readonly stdout: string; readonly stderr: string };

/** Types a command of npm there; what npm and vitest tell the tests is not passed on. */
function type({ archive, env, umask = "022", user }: Machine, ...args: string[]): Promise<Ended> {
  const ours = Object.entries(process.env).filter(([name]) =>
    !/^(npm_|VITEST|IMAGE_SYNC_|NODE_ENV$)/i.test(name) ||
    /^npm_config_(registry|cache|userconfig)$/i.test(name)
  );
  const child = spawn("sh", ["-c", `umask ${umask}; exec npm "$@"`, "sh", ...args], {
    cwd: archive,
    env: { ...Object.fromEntries(ours), ...env },
    stdio: ["ignore", "pipe", "pipe"],
    ...(user === undefined ? {} : { uid: user, gid: user }),
  });
  const text = { stdout: "", stderr: "" };
  child.stdout.on("data", (part) => text.stdout += part);
  child.stderr.on("data", (part) => text.stderr += part);
  return new Promise((resolve) => child.on("close", (code) => resolve({ code, ...text })));
}

/** What `npm start` makes of its bucket, and `npm test` of two small files behind its checks, of which one starts a stack. */
async function expectBothToWork(machine: Machine): Promise<void> {
  const started = await type(machine, "start", "--", "--once", "--json", "--port", "0", "--db-port", "0");
  expect(started.code, started.stderr).toBe(0);
  expect(JSON.parse(started.stdout)).toMatchObject({
    run: { state: "succeeded", totals: { images: 400, signed: 400 } },
    after: { healthy: true },
  });
  const files = ["tests/house/pages.test.ts", "tests/database/next_time.test.ts"];
  const tested = await type(machine, "test", "--", ...files);
  expect(tested.code, tested.stdout + tested.stderr).toBe(0);
  expect(tested.stdout).toContain("Checked format, lint, types, imports, migration: all is well");
  for (const file of files) expect(tested.stdout).toContain(file);
}

test.runIf(isRoot || isRequired)(
  "as root, where only root may enter, under umask 077, in production, with LC_ALL=C, far away, with nothing installed",
  async () => {
    if (!isRoot) throw new Error("Cannot test what root meets: run the tests as root");
    const archive = await download("image-sync");
    await chmod(archive, 0o700);
    await expectBothToWork({
      archive,
      umask: "077",
      env: {
        NODE_ENV: "production",
        LC_ALL: "C",
        TZ: "Pacific/Chatham",
        TMPDIR: place, // as pam_tmpdir gives root one
        // What was installed here is in npm's cache.
        npm_config_prefer_offline: "true",
      },
    });
  },
  240_000,
);

test(
  "as a plain user, in a folder with spaces and letters of other languages, behind a dead proxy, without TMPDIR and git",
  async () => {
    const archive = await download("Bilder für 部品/image sync");
    execFileSync("cp", ["-R", join(projectDirectory, "node_modules"), archive]);
    const env: Record<string, string> = {
      PATH: await withoutGit(),
      HOME: place,
      TMPDIR: join(place, "not there"),
    };
    for (const name of ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"]) {
      env[name] = DEAD_PROXY;
      env[name.toLowerCase()] = DEAD_PROXY;
    }
    if (!isRoot) return await expectBothToWork({ archive, env });
    execFileSync("chown", ["-R", `${PLAIN_USER}:${PLAIN_USER}`, place]);
    await expectBothToWork({ archive, env, user: PLAIN_USER });
  },
  240_000,
);
