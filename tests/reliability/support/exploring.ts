/** Random exploration that keeps what it finds: a failing case is shrunk, saved as JSON, and replayed from then on. */
import { createHash } from "node:crypto";
import { mkdir, readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import fc from "fast-check";
import type { z } from "zod";

/** Options of {@linkcode explore}. */
export type Exploration<T> = {
  readonly arbitrary: fc.Arbitrary<T>;
  /** Rejects where the case fails. */
  readonly play: (drawn: T) => Promise<void>;
  readonly runs: number;
  readonly seed: number;
  /** Where the shortest failing case is kept. */
  readonly directory: string;
};

/**
 * Plays random cases.
 *
 * @throws {Error} with the shortest case that still fails, and the file that it is kept in
 */
export async function explore<T>({ arbitrary, play, runs, seed, directory }: Exploration<T>): Promise<void> {
  const result = await fc.check(fc.asyncProperty(arbitrary, play), { numRuns: runs, seed });
  if (!result.failed) return;
  const found = result.counterexample?.[0];
  if (found === undefined) throw new Error(fc.defaultReportMessage(result));
  const text = `${JSON.stringify(found, undefined, 2)}\n`;
  const name = `failed-${createHash("sha256").update(text).digest("hex").slice(0, 12)}.json`;
  await mkdir(directory, { recursive: true });
  await writeFile(join(directory, name), text);
  const reason = result.errorInstance instanceof Error
    ? result.errorInstance.message
    : String(result.errorInstance);
  throw new Error(
    `${reason}\n${fc.defaultReportMessage(result)}\n\nKept in ${
      join(directory, name)
    }: it is replayed from now on. Commit it with its mend`,
    { cause: result.errorInstance },
  );
}

/**
 * The cases that were kept, by the name of their file.
 *
 * @throws {Error} where a file is none: the cases have changed their shape since, so it has to be drawn again
 */
export async function readKept<T>(
  directory: string,
  schema: z.ZodType<T>,
): Promise<readonly (readonly [string, T])[]> {
  const names = (await readdir(directory).catch(() => [])).filter((name) => name.endsWith(".json")).sort();
  return await Promise.all(names.map(async (name) => {
    const read = schema.safeParse(JSON.parse(await readFile(join(directory, name), "utf8")));
    if (!read.success) throw new Error(`Cannot replay ${name}: ${read.error.issues[0]?.message}`);
    return [name, read.data] as const;
  }));
}
