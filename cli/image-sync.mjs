#!/usr/bin/env node
// What npm links as `image-sync`: in a package the commands as they were built for Node, in the clone their source, with the Deno
// that npm installed there.
import { existsSync } from "node:fs";
import process from "node:process";
import { fileURLToPath } from "node:url";

const OLDEST_NODE = 20;
if (Number(process.versions.node.split(".")[0]) < OLDEST_NODE) {
  console.error(
    `Cannot run on Node ${process.versions.node}: install Node ${OLDEST_NODE} or newer, from https://nodejs.org`,
  );
  process.exit(2);
}

process.env.IMAGE_SYNC_CALLED_AS = process.argv[1];
const source = new URL("image_sync.ts", import.meta.url);
if (existsSync(source)) {
  const { runWithDeno } = await import("./with_deno.mjs");
  runWithDeno(fileURLToPath(source), process.argv.slice(2));
} else await import(new URL("../dist/image-sync.mjs", import.meta.url).href);
