import { existsSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

/** The folder that this runs from: the clone, or the package as it was installed. Its `supabase/` is what `init` copies. */
export const packageRoot: string = findRoot(dirname(fileURLToPath(import.meta.url)));

/** Whether it is a clone, which has the embedded stack to start. */
export const isClone: boolean = existsSync(join(packageRoot, "local"));

// The commands lie at different depths below it: `cli/` in the clone, `dist/` in the package.
function findRoot(directory: string): string {
  if (existsSync(join(directory, "package.json"))) return directory;
  const parent = dirname(directory);
  if (parent === directory) throw new Error("Cannot find the package of these commands: install it again");
  return findRoot(parent);
}
