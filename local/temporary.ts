/** Temporary directories that say in their name whose they are: what a killed stack leaves behind, the next one removes. */
import "./surroundings.mjs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { isAlive } from "./alive.ts";
import { type Account, isEnteredBy } from "./postgres/binaries.ts";

const PREFIX = "image-sync-";

/** Where another user gets to, whatever TMPDIR names. */
const OPEN_TO_ALL = "/tmp";

/**
 * Makes one: `image-sync-KIND-PID-...`.
 *
 * @param account who has to get there, if that is another user than this process's
 */
export async function makeTemporary(kind: "files" | "postgres-data", account?: Account): Promise<string> {
  const isReached = account === undefined || await isEnteredBy(account, tmpdir());
  return await Deno.makeTempDir({
    dir: isReached ? tmpdir() : OPEN_TO_ALL,
    prefix: `${PREFIX}${kind}-${Deno.pid}-`,
  });
}

/** Removes those of stacks that are gone, and ends a server that still runs on one of them. */
export async function sweepTemporary(): Promise<void> {
  for (const directory of new Set([tmpdir(), ...(Deno.uid() === 0 ? [OPEN_TO_ALL] : [])])) {
    await sweep(directory);
  }
}

async function sweep(directory: string): Promise<void> {
  for await (const { name, isDirectory } of Deno.readDir(directory)) {
    const owner = /^image-sync-(?:files|postgres-data)-(\d+)-[^-]+$/.exec(name)?.[1];
    if (!isDirectory || owner === undefined || isAlive(Number(owner))) continue;
    const path = join(directory, name);
    if (!await isOurs(path)) continue;
    await endServer(join(path, "data"));
    await Deno.remove(path, { recursive: true }).catch(() => {});
  }
}

// The first line of postmaster.pid is the server's process id, the second its data directory.
async function endServer(data: string): Promise<void> {
  const [pid, place] = (await Deno.readTextFile(join(data, "postmaster.pid")).catch(() => "")).split("\n");
  if (pid === undefined || place !== data || !isAlive(Number(pid))) return;
  const command = await Deno.readTextFile(`/proc/${pid}/cmdline`).catch(() => "");
  if (!command.includes(data)) return;
  Deno.kill(Number(pid), "SIGQUIT");
  for (let tries = 0; tries < 50 && isAlive(Number(pid)); tries++) {
    await new Promise((done) => setTimeout(done, 100));
  }
}

// In a folder that everybody writes to, others' are left alone; a data directory is given to the account that Postgres runs as.
async function isOurs(path: string): Promise<boolean> {
  const uid = Deno.uid();
  return uid === null || uid === 0 || (await Deno.lstat(path)).uid === uid;
}
