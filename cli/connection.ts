import { readFile } from "node:fs/promises";
import { join } from "node:path";
import process from "node:process";
import { parseEnv } from "node:util";
import { z } from "zod";
import { CommandError } from "./command_error.ts";
import type { Host } from "./host.ts";
import { isClone } from "./package_root.ts";

/** Which project to talk to, and as whom. */
export type Connection = {
  /** The project's URL, without a slash at its end. */
  readonly url: string;
  /** One of its secret keys. */
  readonly key: string;
  /** Where that was found: a flag, the environment, a file. */
  readonly source: string;
  /** The project's database, where it stands in the same place. */
  readonly databaseUrl?: string;
};

type Source = Pick<Host, "env" | "directory" | "stackFile">;
type Found = {
  readonly url: string | undefined;
  readonly key: string | undefined;
  readonly databaseUrl?: string | undefined;
};

const stackSchema = z.object({
  url: z.string(),
  secret_key: z.string(),
  database_url: z.string().optional(),
  pid: z.int(),
});

/**
 * Finds the project: flags come first, then the environment, then `.env` in the working directory, then the embedded stack
 * if one runs. URL and key come from one source together: a key is for the project that stands beside it.
 *
 * @throws {CommandError} `not_configured`, `invalid_url` or `invalid_key`, with what to set.
 */
export async function findConnection(flags: Found, host: Source): Promise<Connection> {
  const places = [
    { source: "the flags", names: "--url and --key", ...flags },
    { source: "the environment", names: "SUPABASE_URL and SUPABASE_SECRET_KEY", ...foundIn(host.env) },
    {
      source: ".env",
      names: "SUPABASE_URL and SUPABASE_SECRET_KEY",
      ...foundIn(await readEnvFile(join(host.directory, ".env"))),
    },
  ];
  const found = places.find(({ url, key }) => url || key);
  if (found !== undefined) return { ...checked(found), source: found.source };
  const stack = await readRunningStack(host.stackFile);
  if (stack !== undefined) {
    const source = "the embedded stack";
    return { ...checked({ ...stack, source, names: "both" }), source };
  }
  throw new CommandError(
    "not_configured",
    "Cannot tell which project to talk to: set SUPABASE_URL and SUPABASE_SECRET_KEY, in the environment or in a file " +
      `.env here, or pass --url and --key${isClone ? ", or start the embedded stack with npm start" : ""}`,
  );
}

function foundIn(variables: Readonly<Record<string, string | undefined>>): Found {
  return {
    url: variables["SUPABASE_URL"] || undefined,
    key: variables["SUPABASE_SECRET_KEY"] || undefined,
    databaseUrl: variables["SUPABASE_DB_URL"] || undefined,
  };
}

type Place = Found & { readonly source: string; readonly names: string };

function checked({ url, key, databaseUrl, source, names }: Place): Omit<Connection, "source"> {
  if (!url || !key) {
    const [there, missing] = url ? ["URL", "secret key"] : ["secret key", "URL"];
    throw new CommandError(
      "not_configured",
      `Cannot tell which project to talk to: there is a ${there} in ${source}, and no ${missing}; set ${names} in the same place, ` +
        "so that no key is sent to another project",
    );
  }
  const origin = originOf(url);
  const { protocol, hostname, pathname } = new URL(url);
  if (protocol === "http:" && !/^(localhost|127\.\d+\.\d+\.\d+|\[::1\])$/.test(hostname)) {
    throw new CommandError(
      "invalid_url",
      `Cannot send a secret key to ${origin}, where everybody on the way could read it: use https://`,
    );
  }
  return {
    url: origin + pathname.replace(/\/+$/, ""),
    key: checkedKey(key),
    ...(databaseUrl === undefined ? {} : { databaseUrl }),
  };
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
  if (key.startsWith("eyJ")) {
    throw new CommandError(
      "invalid_key",
      "Cannot use a legacy key (eyJ...): the function answers to the new secret keys only; make one in the dashboard, " +
        "Project Settings, API Keys (sb_secret_...), and set SUPABASE_SECRET_KEY or --key",
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
  let bytes: Uint8Array;
  try {
    bytes = await readFile(path);
  } catch (error) {
    if (isCode(error, "ENOENT")) return {};
    throw new CommandError("not_configured", `Cannot read ${path}: make it readable, or remove it`, {
      cause: error,
    });
  }
  return parseEnv(decodeText(bytes, path).replaceAll("\r\n", "\n"));
}

// Editors on Windows write a byte order mark, and some of them UTF-16.
function decodeText(bytes: Uint8Array, path: string): string {
  const [first, second] = bytes;
  const encoding = first === 0xff && second === 0xfe
    ? "utf-16le"
    : first === 0xfe && second === 0xff
    ? "utf-16be"
    : "utf-8";
  const isMarked = encoding !== "utf-8";
  try {
    if (!isMarked && bytes.includes(0)) throw new Error("it holds the character U+0000");
    // The decoder takes the mark away.
    return new TextDecoder(encoding, { fatal: true }).decode(bytes);
  } catch (error) {
    throw new CommandError(
      "not_configured",
      `Cannot read ${path}: it is neither UTF-8 nor UTF-16 with a byte order mark; save it as UTF-8`,
      { cause: error },
    );
  }
}

// The file of a process that is gone counts for nothing.
async function readRunningStack(path: string): Promise<Found | undefined> {
  const text = await readFile(path, "utf8").catch(() => "");
  const stack = z.string().transform(parseJson).pipe(stackSchema).safeParse(text);
  return stack.success && isAlive(stack.data.pid)
    ? { url: stack.data.url, key: stack.data.secret_key, databaseUrl: stack.data.database_url }
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
