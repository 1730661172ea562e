/** A file that is there whole, or not at all. */
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { createWriteStream } from "node:fs";
import { lstat, open, realpath, rename, rm } from "node:fs/promises";
import { dirname, join } from "node:path";
import type { Writable } from "node:stream";
import { safeText } from "../../supabase/functions/image-sync/text/safe_text.ts";
import { CommandError } from "../command_error.ts";

/** Options of {@linkcode writeWhole}. */
export type WholeFile = {
  readonly path: string;
  /** Take the place of a file that is there. */
  readonly force: boolean;
};

/**
 * Writes to a temporary file beside `path` and renames it at the end, so that whoever opens the path finds the old file or the new one.
 * Whatever goes wrong, the temporary file goes too.
 *
 * @param write writes all of it and returns when the stream has taken it and ended
 * @returns what `write` returned
 * @throws {CommandError} `file_exists` or `cannot_write`, or what `write` throws.
 */
export async function writeWhole<T>(
  { path, force }: WholeFile,
  write: (stream: Writable) => Promise<T>,
): Promise<T> {
  await refuseExisting({ path, force });
  const target = await realpath(path).catch(() => path); // a link stays a link
  const temporary = join(dirname(target), `.image-sync-${randomBytes(6).toString("hex")}.part`);
  const stream = createWriteStream(temporary, { flags: "wx" });
  const closed = new Promise<void>((resolve) => stream.once("close", resolve));
  try {
    await once(stream, "open");
    const result = await write(stream);
    await closed;
    await toDisk(temporary);
    await refuseExisting({ path, force });
    await rename(temporary, target);
    return result;
  } catch (error) {
    throw asRefusal(error, path);
  } finally {
    stream.destroy();
    await closed;
    await rm(temporary, { force: true });
  }
}

/** Refuses a path where something stands that is not to be replaced. */
export async function refuseExisting({ path, force }: WholeFile): Promise<void> {
  const there = await lstat(path).catch((error: unknown) => {
    if (codeOf(error) === "ENOENT") return undefined;
    throw asRefusal(error, path);
  });
  if (there === undefined) return;
  if (there.isDirectory()) {
    throw new CommandError("cannot_write", `Cannot write ${safeText(path)}: it is a folder; name a file`);
  }
  if (force) return;
  throw new CommandError(
    "file_exists",
    `Cannot write ${
      safeText(path)
    }: it exists, and may hold somebody's work; add --force to replace it, or name another file`,
  );
}

async function toDisk(path: string): Promise<void> {
  const file = await open(path, "r+");
  try {
    await file.sync();
  } finally {
    await file.close();
  }
}

const REASONS: Readonly<Record<string, string>> = {
  ENOENT: "its folder does not exist; make it first",
  ENOTDIR: "its folder is a file; name another place",
  EACCES: "the folder or the file may not be written to; if it is open in Excel, close it there",
  EPERM: "the folder or the file may not be written to; if it is open in Excel, close it there",
  EBUSY: "another program holds it; if it is open in Excel, close it there",
  EROFS: "the disk is read-only; name another place",
  ENOSPC: "the disk is full; make room or name another place",
  EDQUOT: "the disk is full; make room or name another place",
  ENAMETOOLONG: "its name is too long; name it shorter",
};

function asRefusal(error: unknown, path: string): unknown {
  const reason = REASONS[codeOf(error) ?? ""];
  if (reason === undefined) return error;
  return new CommandError("cannot_write", `Cannot write ${safeText(path)}: ${reason}`, { cause: error });
}

function codeOf(error: unknown): string | undefined {
  return error instanceof Error && "code" in error ? String(error.code) : undefined;
}
