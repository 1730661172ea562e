import { readFile } from "node:fs/promises";
import { join } from "node:path";
import process from "node:process";
import { parseEnv } from "node:util";
import { z } from "zod";
import { CommandError } from "./command_error.ts";
import type { Host } from "./host.ts";

/** Which project to talk to, and as whom. */
export type Connection = {
  /** The project's URL, without a slash at its end. */
  readonly url: string;
  /** One of its secret keys. */
  readonly key: string;
};

type Source = Pick<Host, "env" | "directory" | "stackFile">;
type Found = { readonly url: string | undefined; readonly key: string | undefined };

const stackSchema = z.object({ url: z.string(), secret_key: z.string(), pid: z.int() });

/**
 * Finds the project: flags come first, then the environment, then `.env` in the working directory, then the embedded stack
 * if one runs.
 *
 * @throws {CommandError} `not_configured`, `invalid_url` or `invalid_key`, with what to set.
 */
export async function findConnection(flags: Found, host: Source): Promise<Connection> {
  const file = await readEnvFile(join(host.directory, ".env"));
  const found: Found = {
    url: flags.url ?? (host.env["SUPABASE_URL"] || file["SUPABASE_URL"]),
    key: flags.key ?? (host.env["SUPABASE_SECRET_KEY"] || file["SUPABASE_SECRET_KEY"]),
  };
  if (found.url || found.key) return checked(found);
  const stack = await readRunningStack(host.stackFile);
  if (stack !== undefined) return checked(stack);
  throw new CommandError(
    "not_configured",
    "Cannot tell which project to talk to: set SUPABASE_URL and SUPABASE_SECRET_KEY, in the environment or in a file " +
      ".env here, or pass --url and --key, or start the embedded stack with npm start",
  );
}

function checked({ url, key }: Found): Connection {
  if (!url) {
    throw new CommandError(
      "not_configured",
      "Cannot tell which project the key is for: set SUPABASE_URL or pass --url",
    );
  }
  if (!key) {
    throw new CommandError(
      "not_configured",
      `Cannot sign in at ${originOf(url)} without a key: set SUPABASE_SECRET_KEY or pass --key`,
    );
  }
  const origin = originOf(url);
  const { pathname } = new URL(url);
  return { url: origin + pathname.replace(/\/+$/, ""), key: checkedKey(key) };
}

// What errors show of a URL, which might hold a password.
function originOf(url: string): string {
  if (URL.canParse(url) && /^https?:$/.test(new URL(url).protocol)) return new URL(url).origin;
  throw new CommandError(
    "invalid_url",
    "Cannot use the project's URL: it is not of the form https://abcdefgh.supabase.co; correct SUPABASE_URL or --url",
  );
}

function checkedKey(key: string): string {
  if (key.startsWith("sb_publishable_")) {
    throw new CommandError(
      "invalid_key",
      "Cannot use a publishable key: image-sync answers to secret keys only (sb_secret_...); correct SUPABASE_SECRET_KEY or --key",
    );
  }
  if (!/^[\x21-\x7e]+$/.test(key)) {
    throw new CommandError(
      "invalid_key",
      "Cannot use the key: it holds a space or another character that no key has; correct SUPABASE_SECRET_KEY or --key",
    );
  }
  return key;
}

async function readEnvFile(path: string): Promise<Readonly<Record<string, string | undefined>>> {
  try {
    return parseEnv(await readFile(path, "utf8"));
  } catch (error) {
    if (isCode(error, "ENOENT")) return {};
    throw new CommandError("not_configured", `Cannot read ${path}: make it readable, or remove it`, {
      cause: error,
    });
  }
}

// The file of a process that is gone counts for nothing.
async function readRunningStack(path: string): Promise<Found | undefined> {
  const text = await readFile(path, "utf8").catch(() => "");
  const stack = z.string().transform(parseJson).pipe(stackSchema).safeParse(text);
  return stack.success && isAlive(stack.data.pid)
    ? { url: stack.data.url, key: stack.data.secret_key }
    : undefined;
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

function isAlive(pid: number): boolean {
  try {
    return process.kill(pid, 0);
  } catch (error) {
    return isCode(error, "EPERM");
  }
}

function isCode(error: unknown, code: string): boolean {
  return error instanceof Error && "code" in error && error.code === code;
}
