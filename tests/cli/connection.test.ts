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
    });
  });

  test("by the environment before .env", async () => {
    await writeFile(join(directory, ".env"), file);
    expect(await findConnection(none, host(env))).toEqual({
      url: "https://env.supabase.co",
      key: "sb_secret_env",
    });
  });

  test("by .env before the embedded stack", async () => {
    await writeFile(join(directory, ".env"), file);
    await writeStack(process.pid);
    expect(await findConnection(none, host())).toEqual({
      url: "https://file.supabase.co",
      key: "sb_secret_file",
    });
  });

  test("by the embedded stack that runs", async () => {
    await writeStack(process.pid);
    expect(await findConnection(none, host())).toEqual({
      url: "http://127.0.0.1:54321",
      key: "sb_secret_stack",
    });
  });

  test("by a mixture: the key of a project is often in the environment alone", async () => {
    await writeFile(join(directory, ".env"), "SUPABASE_URL=http://127.0.0.1:54321/base/\n");
    const found = await findConnection(none, host({ SUPABASE_SECRET_KEY: "sb_secret_env" }));
    expect(found).toEqual({ url: "http://127.0.0.1:54321/base", key: "sb_secret_env" });
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
      /Cannot sign in at https:\/\/x\.supabase\.co without a key/,
    ],
    [{ url: undefined, key: "sb_secret_x" }, /set SUPABASE_URL or pass --url/],
    [{ url: "x.supabase.co", key: "sb_secret_x" }, /not of the form https:/],
    [{ url: "ftp://x.supabase.co", key: "sb_secret_x" }, /not of the form https:/],
    [{ url: "https://x.supabase.co", key: "sb_publishable_x" }, /secret keys only/],
    [{ url: "https://x.supabase.co", key: "sb_secret_x\n" }, /another character that no key has/],
  ])("for %j", async (flags, message) => {
    await writeStack(process.pid);
    await expect(findConnection(flags, host())).rejects.toThrow(message);
  });
});
