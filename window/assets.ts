/** The window's own files: one stylesheet, one script, one icon. */
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { packageRoot } from "../cli/package_root.ts";

const TYPES = {
  "window.css": "text/css; charset=utf-8",
  "window.js": "text/javascript; charset=utf-8",
  "icon.svg": "image/svg+xml",
} as const;

/** One of the files. */
export type Asset = keyof typeof TYPES;

type Read = { readonly text: string; readonly type: string; readonly version: string };
const files = new Map<string, Read>();

// Read when it is first asked for: the commands that open no window read none.
function read(name: Asset): Read {
  const known = files.get(name);
  if (known !== undefined) return known;
  const text = readFileSync(join(packageRoot, "window/assets", name), "utf8");
  const version = createHash("sha256").update(text).digest("hex").slice(0, 12);
  const file = { text, type: TYPES[name], version };
  files.set(name, file);
  return file;
}

/** Where a page finds a file: another path for another content, so that a browser may keep it. */
export function assetPath(name: Asset): string {
  return `/assets/${name}?${read(name).version}`;
}

/** A file, if there is one of that name. */
export function readAsset(name: string): Response | undefined {
  if (!isAsset(name)) return undefined;
  const file = read(name);
  return new Response(file.text, {
    headers: { "content-type": file.type, "cache-control": "private, max-age=31536000, immutable" },
  });
}

function isAsset(name: string): name is Asset {
  return Object.hasOwn(TYPES, name);
}
