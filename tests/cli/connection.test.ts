import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { beforeEach, describe, expect, onTestFinished, test } from "vitest";
import { findConnection } from "../../cli/connection.ts";

const none = { url: undefined, key: undefined };
let directory: string;

beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), "image-sync-"));
  onTestFinished(() => rm(directory, { recursive: true }));
});

function host(env: Record<string, string> = {}) {
  return { env, directory, stackFile: join(directory, "stack.json") };
}

async function writeStack(pid: number): Promise<void> {
  const stack = {
    url: "http://127.0.0.1:54321",
    secret_key: "sb_secret_stack",
    source: "the embedded stack",
    publishable_key: "p",
    database_url: "d",
    pid,
  };
  await writeFile(join(directory, "stack.json"), JSON.stringify(stack));
}

describe("the project is found", () => {
  const env = { SUPABASE_URL: "https://env.supabase.co", SUPABASE_SECRET_KEY: "sb_secret_env" };
  const file =
    'SUPABASE_URL="https://file.supabase.co" # the project\nexport SUPABASE_SECRET_KEY=sb_secret_file\n';

  test("by flags before anything else", async () => {
    await writeFile(join(directory, ".env"), file);
    const flags = { url: "https://flag.supabase.co/", key: "sb_secret_flag" };
    expect(await findConnection(flags, host(env))).toEqual({
      url: "https://flag.supabase.co",
      key: "sb_secret_flag",
      source: "the flags",
    });
  });

  test("by the environment before .env", async () => {
    await writeFile(join(directory, ".env"), file);
    expect(await findConnection(none, host(env))).toEqual({
      url: "https://env.supabase.co",
      key: "sb_secret_env",
      source: "the environment",
    });
  });

  test("by .env before the embedded stack", async () => {
    await writeFile(join(directory, ".env"), file);
    await writeStack(process.pid);
    expect(await findConnection(none, host())).toEqual({
      url: "https://file.supabase.co",
      key: "sb_secret_file",
      source: ".env",
    });
  });

  test("by the embedded stack that runs", async () => {
    await writeStack(process.pid);
    expect(await findConnection(none, host())).toEqual({
      url: "http://127.0.0.1:54321",
      key: "sb_secret_stack",
      databaseUrl: "d",
      source: "the embedded stack",
    });
  });

  const bytesOf = (text: string, encoding: "utf16le" | "utf8", mark: readonly number[]) =>
    Buffer.concat([Buffer.from(mark), Buffer.from(text, encoding)]);
  test.each<[string, Uint8Array]>([
    ["with a byte order mark", bytesOf(file, "utf8", [0xef, 0xbb, 0xbf])],
    ["as UTF-16", bytesOf(file, "utf16le", [0xff, 0xfe])],
    ["as UTF-16, the other way round", bytesOf(file, "utf16le", [0xff, 0xfe]).swap16()],
    ["with Windows line ends", bytesOf(file.replaceAll("\n", "\r\n"), "utf8", [])],
    [
      "quoted with the other quotes",
      bytesOf(`SUPABASE_URL='https://file.supabase.co'\nSUPABASE_SECRET_KEY='sb_secret_file'`, "utf8", []),
    ],
  ])("by .env %s", async (_how, bytes) => {
    await writeFile(join(directory, ".env"), bytes);
    expect(await findConnection(none, host())).toMatchObject({
      url: "https://file.supabase.co",
      key: "sb_secret_file",
    });
  });
});

describe("it is said what to set", () => {
  test("when there is nothing", async () => {
    await expect(findConnection(none, host())).rejects.toThrow(
      /set SUPABASE_URL and SUPABASE_SECRET_KEY.*npm start/,
    );
  });

  test("when the embedded stack is gone", async () => {
    await writeStack(2 ** 22 + 1);
    await expect(findConnection(none, host())).rejects.toThrow(/Cannot tell which project/);
    await writeFile(join(directory, "stack.json"), "{");
    await expect(findConnection(none, host())).rejects.toThrow(/Cannot tell which project/);
  });

  // The embedded stack's key is of no use for another project, and must not be sent there.
  test.each([
    [
      { url: "https://x.supabase.co", key: undefined },
      /there is a URL in the flags, and no secret key; set --url and --key in the same place/,
    ],
    [{ url: undefined, key: "sb_secret_x" }, /a secret key in the flags, and no URL/],
    [{ url: "x.supabase.co", key: "sb_secret_x" }, /not of the form https:/],
    [{ url: "ftp://x.supabase.co", key: "sb_secret_x" }, /not of the form https:/],
    [{ url: "https://x.supabase.co", key: "sb_publishable_x" }, /secret keys only/],
    [{ url: "https://x.supabase.co", key: "sb_secret_x\n" }, /another character that no key has/],
    [{ url: "https://x.supabase.co", key: "eyJhbGciOiJIUzI1NiJ9.e30.x" }, /legacy key \(eyJ\.\.\.\)/],
    [{ url: "http://x.supabase.co", key: "sb_secret_x" }, /everybody on the way could read it: use https/],
    [{ url: "http://127.0.0.1.example.com", key: "sb_secret_x" }, /everybody on the way/],
  ])("for %j", async (flags, message) => {
    await writeStack(process.pid);
    await expect(findConnection(flags, host())).rejects.toThrow(message);
  });

  test("when URL and key stand in different places: no key is sent to another project", async () => {
    await writeFile(join(directory, ".env"), "SUPABASE_URL=http://127.0.0.1:54321/base/\n");
    await expect(findConnection(none, host({ SUPABASE_SECRET_KEY: "sb_secret_env" }))).rejects.toThrow(
      /a secret key in the environment, and no URL/,
    );
    await expect(findConnection(
      { url: "https://x.supabase.co", key: undefined },
      host({
        SUPABASE_URL: "https://y.supabase.co",
        SUPABASE_SECRET_KEY: "sb_secret_env",
      }),
    )).rejects.toThrow(/a URL in the flags, and no secret key/);
  });

  test("when .env is of no encoding", async () => {
    await writeFile(join(directory, ".env"), Buffer.from([0x53, 0x00, 0x55, 0x00]));
    await expect(findConnection(none, host())).rejects.toThrow(/neither UTF-8 nor UTF-16.*save it as UTF-8/);
    await writeFile(join(directory, ".env"), Buffer.from([0x53, 0xff, 0xfe, 0x80]));
    await expect(findConnection(none, host())).rejects.toThrow(/neither UTF-8 nor UTF-16/);
  });
});
