import { join } from "node:path";
import { makeTemporary } from "../temporary.ts";
import { storageFailures } from "./errors.ts";

/** The contents of objects, each under the random version that its row names. */
export type StorageFiles = {
  write(version: string, content: Uint8Array): Promise<void>;
  /** The content. Throws a StorageFailure, the one of its backend, when there is no such file. */
  read(version: string | null): Promise<Uint8Array<ArrayBuffer>>;
  /** Removes a file if it is there. */
  remove(version: string): Promise<void>;
  /** Removes all of them. */
  close(): Promise<void>;
};

/** Keeps files in a temporary directory; what is missing there is answered as `backend` says at that moment. */
export async function createStorageFiles(backend: () => "s3" | "file"): Promise<StorageFiles> {
  const directory = await makeTemporary("files");
  const pathOf = (version: string) => join(directory, version);
  return {
    write: (version, content) => Deno.writeFile(pathOf(version), content),
    read: async (version) => {
      const content = version === null
        ? undefined
        : await Deno.readFile(pathOf(version)).catch(undefinedWhenMissing);
      if (content !== undefined) return content;
      throw backend() === "s3"
        ? storageFailures.noSuchContent()
        : storageFailures.internal("Internal Server Error");
    },
    remove: (version) => Deno.remove(pathOf(version)).catch(undefinedWhenMissing),
    close: () => Deno.remove(directory, { recursive: true }).catch(undefinedWhenMissing),
  };
}

function undefinedWhenMissing(error: unknown): undefined {
  if (error instanceof Deno.errors.NotFound) return undefined;
  throw error;
}
