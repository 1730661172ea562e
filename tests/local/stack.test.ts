import { existsSync } from "node:fs";
import { mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import postgres from "postgres";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { type LocalStack, startLocalStack } from "../support/stack.ts";

const bare = ["--no-function", "--no-migrate"];
const started: LocalStack[] = [];

async function start(args: readonly string[]): Promise<LocalStack> {
  const stack = await startLocalStack(args);
  started.push(stack);
  return stack;
}

afterEach(async () => {
  for (const stack of started.splice(0)) await stack.stop();
});

function isAlive(pid: number): boolean {
  try {
    return process.kill(pid, 0);
  } catch {
    return false;
  }
}

async function dataDirectory(stack: LocalStack): Promise<string> {
  const sql = postgres(stack.adminDbUrl, { max: 1 });
  const [row] = await sql`select current_setting('data_directory') as directory`;
  await sql.end();
  return row?.["directory"] as string;
}

describe("a stack that is stopped", () => {
  test("leaves no process, no directory and no state file behind", async () => {
    const directory = await mkdtemp(join(tmpdir(), "image-sync-test-"));
    const stateFile = join(directory, "stack.json");
    const stack = await start([...bare, "--state-file", stateFile]);
    const data = await dataDirectory(stack);
    expect(JSON.parse(await readFile(stateFile, "utf8"))).toEqual({
      url: stack.url,
      database_url: stack.dbUrl,
      secret_key: stack.secretKey,
      publishable_key: stack.publishableKey,
      pid: stack.pids.serve,
    });
    await stack.stop();
    expect([isAlive(stack.pids.serve), isAlive(stack.pids.postgres)]).toEqual([false, false]);
    expect([existsSync(data), existsSync(stateFile)]).toEqual([false, false]);
    await rm(directory, { recursive: true });
  });

  test("leaves no file of its bucket behind", async () => {
    const files = async () =>
      (await readdir(tmpdir())).filter((name) => name.startsWith("image-sync-files-"));
    const before = await files();
    const stack = await start(bare);
    const own = (await files()).filter((name) => !before.includes(name));
    await stack.stop();
    // Another test file may start a stack meanwhile; of those seen here, this stack's one must be gone.
    const after = await files();
    expect(own.filter((name) => !after.includes(name)).length).toBeGreaterThanOrEqual(1);
  });

  test("by SIGKILL takes Postgres and the function with it", async () => {
    const stack = await start(["--no-migrate"]);
    const data = await dataDirectory(stack);
    process.kill(stack.pids.serve, "SIGKILL");
    await vi.waitFor(() => {
      expect([isAlive(stack.pids.postgres), existsSync(data)]).toEqual([false, false]);
      if (stack.pids.function !== null) expect(isAlive(stack.pids.function)).toBe(false);
    }, { timeout: 10_000 });
  });
});

describe("a stack that cannot start", () => {
  let taken: number;
  let close: () => void;
  beforeEach(async () => {
    const server = createServer();
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    const address = server.address();
    taken = typeof address === "object" && address !== null ? address.port : 0;
    close = () => server.close();
  });
  afterEach(() => close());

  test("says which port is in use and how to choose another one", async () => {
    await expect(start([...bare, "--port", String(taken)])).rejects.toThrow(
      `Cannot start the gateway on 127.0.0.1:${taken}: the port is in use. ` +
        "Stop what listens there, or choose another port with --port N",
    );
    await expect(start([...bare, "--db-port", String(taken)])).rejects.toThrow(/Postgres .* --db-port N/);
  });

  test("says so when another one runs in the checkout, but not for one that was killed", async () => {
    const directory = await mkdtemp(join(tmpdir(), "image-sync-test-"));
    const args = [...bare, "--state-file", join(directory, "stack.json")];
    const first = await start(args);
    await expect(start(args)).rejects.toThrow(
      `Cannot start a second stack in this checkout: one runs at ${first.url} (process ${first.pids.serve}). ` +
        "Use it, or stop it with Ctrl-C where it was started",
    );
    process.kill(first.pids.serve, "SIGKILL");
    await first.stop();
    const second = await start(args);
    expect(second.pids.serve).not.toBe(first.pids.serve);
    await second.stop();
    await rm(directory, { recursive: true });
  });

  test("says what is missing in a directory without Postgres", async () => {
    await expect(start(["--postgres", tmpdir()])).rejects.toThrow(
      `Cannot find ${
        join(tmpdir(), "initdb")
      }: --postgres needs the directory that holds initdb and postgres`,
    );
  });
});

describe("the database of a stack", () => {
  test("has a role postgres that is no superuser, as on the platform", async () => {
    const stack = await start(bare);
    const sql = postgres(stack.dbUrl, { max: 1 });
    const [role] =
      await sql`select rolsuper, rolbypassrls, rolcreaterole from pg_roles where rolname = current_user`;
    expect(role).toEqual({ rolsuper: false, rolbypassrls: true, rolcreaterole: true });
    await sql.end();
  });

  test("survives a crash with what was committed, and forgets queued calls", async () => {
    const stack = await start(bare);
    const sql = postgres(stack.dbUrl, { max: 1, onnotice: () => {} });
    await sql`create table public.kept as select 1 as one`;
    await sql`select net.http_post('http://127.0.0.1:1/', timeout_milliseconds := 60000)`;
    const control = (path: string) =>
      fetch(`${stack.url}/_local/postgres/${path}`, { method: "POST", headers: { apikey: stack.secretKey } });
    expect((await control("crash")).status).toBe(204);
    expect((await control("restart")).status).toBe(200);
    expect([...await sql`select one from public.kept`]).toEqual([{ one: 1 }]);
    expect([...await sql`select from net.http_request_queue`]).toEqual([]);
    await sql.end();
  });
});
