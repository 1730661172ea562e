/** Which way imports run: every file may import from its own layer and from those that its layer names, and from nothing else. */
import { readFileSync } from "node:fs";
import { dirname, join, normalize } from "node:path";

const FUNCTION = "supabase/functions/image-sync/";

/** The function's modules, lowest first: index → api → worker → pipeline → (database, signer) → what imports none of ours but shapes. */
const FLOORS = [
  ["contract"],
  [
    "background",
    "budget",
    "database.types",
    "downloads",
    "findings",
    "log",
    "problem",
    "reader_key",
    "request",
    "safe_text",
    "text",
    "version",
  ],
  ["database", "outbound", "reader", "signer"],
  ["faults", "pipeline", "register"],
  ["worker"],
  ["api"],
  ["index"],
];

/** Beside them: what stands outside of the function, and where it may look. Tests and measurements may look anywhere. */
const HOUSES = {
  // The command `open` serves the window, which asks through the commands' client.
  "cli/": [
    "cli/",
    "window/server",
    `${FUNCTION}contract`,
    `${FUNCTION}findings`,
    `${FUNCTION}text`,
    `${FUNCTION}version`,
  ],
  "window/": [
    "window/",
    "cli/",
    `${FUNCTION}contract`,
    `${FUNCTION}findings`,
    `${FUNCTION}text`,
    `${FUNCTION}version`,
  ],
  "local/": [
    "local/",
    "cli/",
    "window/",
    `${FUNCTION}contract`,
    `${FUNCTION}findings`,
    `${FUNCTION}text`,
    `${FUNCTION}version`,
  ],
  "bench/": [""],
  "tests/": [""],
};

/**
 * The imports that run the wrong way, a line each.
 *
 * @param {readonly string[]} files the project's TypeScript files, by their paths
 * @param {(path: string) => string} read what stands in one
 * @returns {string[]}
 */
export function wrongWays(files, read = (path) => readFileSync(path, "utf8")) {
  return files.flatMap((file) =>
    importsOf(read(file)).map((specifier) => normalize(join(dirname(file), specifier)).replaceAll("\\", "/"))
      .filter((target) => !mayImport(file, target))
      .map((target) => `${file} may not import ${target}`)
  );
}

function importsOf(text) {
  return [...text.matchAll(/(?:from|import)\s*\(?\s*"(\.[^"]+)"/g)].map(([, specifier]) => specifier);
}

function mayImport(file, target) {
  if (file.startsWith(FUNCTION)) {
    return target.startsWith(FUNCTION) && floorOf(target) <= floorOf(file);
  }
  const house = Object.keys(HOUSES).find((prefix) => file.startsWith(prefix));
  return house === undefined || HOUSES[house].some((prefix) => target.startsWith(prefix));
}

// A module in a folder stands where the folder does. One that nobody has given a floor stands on the top, so that nothing imports it.
function floorOf(path) {
  const name = path.slice(FUNCTION.length).replace(/\/.*|\.tsx?$/g, "");
  const floor = FLOORS.findIndex((modules) => modules.includes(name));
  return floor < 0 ? FLOORS.length : floor;
}
