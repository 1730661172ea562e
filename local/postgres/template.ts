/**
 * Data directories that already hold what every stack begins with. One is made once and copied for each stack, because making it takes
 * seconds and copying it a tenth of one. It is kept under a hash of all that it was made of: whoever changes that gets another one.
 */
import { createHash } from "node:crypto";
import { fileURLToPath } from "node:url";
import { join } from "node:path";
import { isAlive } from "../alive.ts";

const root = fileURLToPath(new URL("../..", import.meta.url));
const kept = join(root, ".local", "clusters");
const LONGEST_UNUSED_MS = 24 * 60 * 60 * 1000;

/** What a template is made of: programs by their versions, the platform and the code that makes it, the migrations. */
const SOURCES = ["package-lock.json", "local/postgres", "supabase/config.toml", "supabase/migrations"];

/** Which template is wanted. */
export type TemplateRequest = {
  readonly name: string;
  /** Leaves the data of a server that was stopped in this directory, which is not there yet. */
  readonly make: (directory: string) => Promise<void>;
};

/**
 * Where the template stands, after making it where there is none. Two that want it at once both make it; the second one's
 * is thrown away.
 */
export async function findTemplate({ name, make }: TemplateRequest): Promise<string> {
  const place = join(kept, `${name}-${await hashOf(SOURCES)}`);
  const now = new Date();
  // A template that is used stays; what nobody used for a day was made of something that has changed since.
  if (await Deno.utime(place, now, now).then(() => true, () => false)) return place;
  await Deno.mkdir(kept, { recursive: true });
  await sweep();
  const unfinished = `${place}.${Deno.pid}`;
  await make(unfinished);
  await Deno.rename(unfinished, place).catch(() => Deno.remove(unfinished, { recursive: true }));
  return place;
}

/**
 * Copies a data directory, with its owners and rights. On a file system that can, nothing is written for it.
 *
 * @throws {Error} when it cannot be copied.
 */
export async function copyCluster(from: string, to: string): Promise<void> {
  const share = Deno.build.os === "linux" ? ["--reflink=auto"] : [];
  const { success, stderr } = await new Deno.Command("cp", { args: ["-Rp", ...share, from, to] }).output();
  if (success) return;
  throw new Error(`Cannot copy ${from} to ${to}: ${new TextDecoder().decode(stderr).trim()}`);
}

async function sweep(): Promise<void> {
  for await (const { name } of Deno.readDir(kept)) {
    const path = join(kept, name);
    const maker = /\.(\d+)$/.exec(name)?.[1];
    const used = (await Deno.stat(path).catch(() => null))?.mtime?.getTime() ?? 0;
    const isLeft = maker === undefined ? Date.now() - used > LONGEST_UNUSED_MS : !isAlive(Number(maker));
    if (isLeft) await Deno.remove(path, { recursive: true }).catch(() => {});
  }
}

async function hashOf(sources: readonly string[]): Promise<string> {
  const hash = createHash("sha256");
  for (const source of sources) {
    for (const path of await filesOf(join(root, source))) {
      hash.update(`${path}\0`).update(await Deno.readFile(path)).update("\0");
    }
  }
  return hash.digest("hex").slice(0, 16);
}

async function filesOf(path: string): Promise<string[]> {
  if (!(await Deno.stat(path)).isDirectory) return [path];
  const entries = (await Array.fromAsync(Deno.readDir(path))).map(({ name }) => join(path, name));
  return (await Promise.all(entries.toSorted().map(filesOf))).flat();
}
