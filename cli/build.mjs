#!/usr/bin/env node
// `npm run build`: the commands as one file of plain JavaScript, dist/image-sync.mjs, which a package carries in place of Deno
// and of everything that it imports. The same source gives the same bytes.
import { readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { rolldown } from "rolldown";

const root = fileURLToPath(new URL("..", import.meta.url));
const manifest = JSON.parse(readFileSync(join(root, "package.json"), "utf8"));

// What is large and seldom needed stays outside: an optional peer dependency, imported where it is used (`await import(...)`).
const external = [/^node:/, "pg-native", ...Object.keys(manifest.peerDependencies ?? {})];

/**
 * Writes the bundle, and the licences of what it holds beside it.
 *
 * @param {string} directory where to; what stands there is replaced
 */
export async function build(directory = join(root, "dist")) {
  const bundle = await rolldown({
    input: join(root, "cli/image_sync.ts"),
    cwd: root,
    platform: "node",
    external,
    transform: { target: "node20", jsx: { runtime: "automatic", importSource: "hono/jsx" } },
    onLog: (level, log) => {
      throw new Error(`Cannot build the commands without a ${level}: ${log.message}`);
    },
  });
  rmSync(directory, { recursive: true, force: true });
  const { output } = await bundle.write({
    dir: directory,
    entryFileNames: "image-sync.mjs",
    format: "esm",
    codeSplitting: false,
  });
  await bundle.close();
  const names = new Set(output.flatMap(({ modules = {} }) => Object.keys(modules)).flatMap(packageOf));
  writeFileSync(join(directory, "licenses.txt"), [...names].sort().map(licenseOf).join("\n\n"));
}

/** @param {string} id a module's path */
function packageOf(id) {
  return /.*node_modules\/((?:@[^/]+\/)?[^/]+)/.exec(id.replaceAll("\\", "/"))?.[1] ?? [];
}

/** @param {string} name a package's */
function licenseOf(name) {
  const directory = join(root, "node_modules", name);
  const { version, license } = JSON.parse(readFileSync(join(directory, "package.json"), "utf8"));
  const file = readdirSync(directory).find((entry) => /^licen[cs]e/i.test(entry));
  const text = file === undefined ? "" : `\n\n${readFileSync(join(directory, file), "utf8").trim()}`;
  return `${name} ${version} (${license})${text}`;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) await build(process.argv[2]);
