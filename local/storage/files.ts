import { join } from "node:path";
import { makeTemporary } from "../temporary.ts";

/** The contents of objects, each under the random version that its row names. */
export type StorageFiles = {
  write(version: string, content: Uint8Array): Promise<void>;
  /** The content, or `undefined` when there is no such file. */
  read(version: string): Promise<Uint8Array<ArrayBuffer> | undefined>;
  /** Removes a file if it is there. */
  remove(version: string): Promise<void>;
  /** Removes all of them. */
  close(): Promise<void>;
};

/** Keeps files in a temporary directory. */
export async function createStorageFiles(): Promise<StorageFiles> {
  const directory = await makeTemporary("files");
  const pathOf = (version: string) => join(directory, version);
  return {
    write: (version, content) => Deno.writeFile(pathOf(version), content),
    read: (version) => Deno.readFile(pathOf(version)).catch(undefinedWhenMissing),
    remove: (version) => Deno.remove(pathOf(version)).catch(undefinedWhenMissing),
    close: () => Deno.remove(directory, { recursive: true }).catch(undefinedWhenMissing),
  };
}

function undefinedWhenMissing(error: unknown): undefined {
  if (error instanceof Deno.errors.NotFound) return undefined;
  throw error;
}
