/** The function's block in somebody's `config.toml`: put at its end, everything else kept to the byte. */
import { parse } from "smol-toml";
import { CommandError } from "../command_error.ts";
import { CONFIG_BLOCK } from "./files.ts";

const INLINE_BLOCK = "image-sync = { verify_jwt = false }, ";

/** A `config.toml` with the block in it, and what is left for its owner to do, if anything is. */
export type ConfigChange = { readonly text: string; readonly advice?: string };

/**
 * @param text the file as it is; empty where there is none
 * @throws {CommandError} `invalid_config` where it is no TOML, or the block cannot be added without changing what is there.
 */
export function withFunctionBlock(text: string): ConfigChange {
  const before = parsed(text);
  const functions = before["functions"];
  const own = isTable(functions) ? functions["image-sync"] : undefined;
  if (own !== undefined) {
    if (isTable(own) && own["verify_jwt"] === false) return { text };
    return {
      text,
      advice: "config.toml has a block [functions.image-sync] of yours: set verify_jwt = false in it",
    };
  }
  const expected = {
    ...before,
    functions: { ...(isTable(functions) ? functions : {}), "image-sync": { verify_jwt: false } },
  };
  const changed = [atEnd(text), inline(text)].find((candidate) => means(candidate, expected));
  if (changed === undefined) throw refusal();
  return { text: changed };
}

// Its own block, behind everything else.
function atEnd(text: string): string {
  const newline = text.includes("\r\n") ? "\r\n" : "\n";
  const gap = text === "" ? "" : text.endsWith("\n") ? newline : newline + newline;
  return text + gap + CONFIG_BLOCK.replaceAll("\n", newline);
}

// A table in braces can be added to in its braces alone.
function inline(text: string): string {
  return text.replace(
    /^([ \t]*functions[ \t]*=[ \t]*\{)([ \t]*)(\}?)/m,
    (_, opening: string, gap: string, closing: string) =>
      opening + gap + (closing === "" ? INLINE_BLOCK : INLINE_BLOCK.replace(/, $/, "")) +
      (closing === "" ? "" : gap + closing),
  );
}

function means(text: string, expected: unknown): boolean {
  try {
    return JSON.stringify(sorted(parse(text.replace(/^\ufeff/, "")))) === JSON.stringify(sorted(expected));
  } catch {
    return false;
  }
}

/** The file without the block, where it stands there as it was put; else as it is, with what is left to do. */
export function withoutFunctionBlock(text: string): ConfigChange {
  const newline = text.includes("\r\n") ? "\r\n" : "\n";
  const block = CONFIG_BLOCK.replaceAll("\n", newline);
  const at = text.indexOf(block);
  if (at < 0) {
    const bare = text.replace(INLINE_BLOCK, "").replace(
      /(\{[ \t]*)image-sync = \{ verify_jwt = false \}[ \t]*(?=\})/,
      "$1",
    );
    if (bare !== text) return { text: bare };
    return /functions\.("image-sync"|image-sync)/.test(text)
      ? { text, advice: "config.toml has a block [functions.image-sync] that was edited: remove it yourself" }
      : { text };
  }
  // With the empty line before it.
  const before = text.slice(0, at);
  return {
    text: (before.endsWith(newline + newline) ? before.slice(0, -newline.length) : before) +
      text.slice(at + block.length),
  };
}

function parsed(text: string): Record<string, unknown> {
  try {
    return parse(text.replace(/^\ufeff/, ""));
  } catch (error) {
    throw new CommandError(
      "invalid_config",
      `Cannot add the function to supabase/config.toml: it cannot be read as TOML (${
        error instanceof Error ? error.message.split("\n")[0] : String(error)
      }); correct it, or add this block to it yourself:\n${CONFIG_BLOCK}`,
      { cause: error },
    );
  }
}

function refusal(): CommandError {
  return new CommandError(
    "invalid_config",
    `Cannot add the function to supabase/config.toml without changing what is there; add this block to it yourself:\n${CONFIG_BLOCK}`,
  );
}

function isTable(value: unknown): value is Record<string, unknown> {
  return value !== null && typeof value === "object" && !Array.isArray(value);
}

function sorted(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(sorted);
  if (!isTable(value)) return typeof value === "bigint" ? String(value) : value;
  return Object.fromEntries(Object.keys(value).sort().map((key) => [key, sorted(value[key])]));
}
