/** The project's own files, as they stand in its folders: a downloaded archive has no list of them, and not every machine has git. */
import { readdirSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));
const ignored = readFileSync(`${root}.gitignore`, "utf8").split("\n").map((line) => line.replace(/\/$/, ""));

/**
 * Their paths below the project's root, with slashes, sorted; without what `.gitignore` names.
 *
 * @param {RegExp} pattern what a path has to match
 * @returns {string[]}
 */
export function projectFiles(pattern) {
  return filesIn("").filter((path) => pattern.test(path)).sort();
}

function filesIn(folder) {
  return readdirSync(root + folder, { withFileTypes: true }).flatMap((entry) => {
    const path = folder + entry.name;
    if ([".git", ...ignored].some((name) => name === entry.name || name === path)) return [];
    if (entry.isDirectory()) return filesIn(`${path}/`);
    return entry.isFile() ? [path] : [];
  });
}
