#!/usr/bin/env node
// Sees to what `npm start` and `npm test` need before anything of ours can run: plain Node, no dependencies.
import "./surroundings.mjs";
import { spawnSync } from "node:child_process";
import { statSync } from "node:fs";
import { fileURLToPath } from "node:url";

const OLDEST_NODE = 20;
const root = fileURLToPath(new URL("..", import.meta.url));

/** Checks Node and installs what is missing, with npm's own words. Ends the process where that fails. */
export function makeReady() {
  if (Number(process.versions.node.split(".")[0]) < OLDEST_NODE) {
    end(
      `Cannot run on Node ${process.versions.node}: install Node ${OLDEST_NODE} or newer, from https://nodejs.org`,
    );
  }
  if (isInstalled()) return;
  console.error("Installing what is needed (npm ci) ...");
  // Standard output may be somebody's JSON. The level, because .npmrc has npm say nothing of its own.
  const npm = process.env.npm_execpath;
  // What only development needs is what a clone is for.
  const args = ["ci", "--include=dev", "--loglevel=warn"];
  const { status } = npm === undefined
    ? spawnSync("npm", args, { cwd: root, stdio: ["ignore", 2, 2], shell: process.platform === "win32" })
    : spawnSync(process.execPath, [npm, ...args], { cwd: root, stdio: ["ignore", 2, 2] });
  if (status !== 0) end("Cannot install what is needed: npm says above why; npm ci tries again");
}

// npm writes its own list last of all.
function isInstalled() {
  try {
    return statSync(`${root}node_modules/.package-lock.json`).mtimeMs >=
      statSync(`${root}package-lock.json`).mtimeMs;
  } catch {
    return false;
  }
}

function end(message) {
  console.error(message);
  process.exit(2);
}

if (process.argv[1] === fileURLToPath(import.meta.url)) makeReady();
