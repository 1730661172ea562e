/** The window's own files: one stylesheet, one script, one icon. */
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";

const TYPES = {
  "window.css": "text/css; charset=utf-8",
  "window.js": "text/javascript; charset=utf-8",
  "icon.svg": "image/svg+xml",
} as const;

/** One of the files. */
export type Asset = keyof typeof TYPES;

const files = new Map<string, { text: string; type: string; version: string }>(
  Object.entries(TYPES).map(([name, type]) => {
    const text = readFileSync(new URL(`assets/${name}`, import.meta.url), "utf8");
    return [name, { text, type, version: createHash("sha256").update(text).digest("hex").slice(0, 12) }];
  }),
);

/** Where a page finds a file: another path for another content, so that a browser may keep it. */
export function assetPath(name: Asset): string {
  return `/assets/${name}?${files.get(name)?.version ?? ""}`;
}

/** A file, if there is one of that name. */
export function readAsset(name: string): Response | undefined {
  const file = files.get(name);
  if (file === undefined) return undefined;
  return new Response(file.text, {
    headers: { "content-type": file.type, "cache-control": "private, max-age=31536000, immutable" },
  });
}
