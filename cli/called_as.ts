import { basename, relative } from "node:path";
import type { Host } from "./host.ts";

/** What texts name the commands by until it is known how they were called. */
export const DEFAULT_PROGRAM = "npx image-sync";

/**
 * How somebody types the commands who called this one, but for npm scripts: `npx image-sync` where npm has it installed, and what they
 * typed elsewhere. Where npx does not find it, npx would ask a registry for a package of that name, which is not ours.
 *
 * @param host `IMAGE_SYNC_CALLED_AS` is the path of the script that was started, as `cli/image-sync.mjs` leaves word of it
 */
export function calledAs({ env, directory }: Pick<Host, "env" | "directory">): string {
  const script = env["IMAGE_SYNC_CALLED_AS"] ?? "";
  const isNpms = env["npm_command"] !== undefined || /[/\\]node_modules[/\\]/.test(script);
  if (script === "" || isNpms) return DEFAULT_PROGRAM;
  // A link on the PATH has the command's own name.
  if (basename(script) === "image-sync") return "image-sync";
  const path = relative(directory, script);
  return `node ${/\s/.test(path) ? `"${path}"` : path}`;
}
