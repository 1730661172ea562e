/** `reader`: the right to read the register and nothing else, given, listed and taken away. */
import { execFile } from "node:child_process";
import { promisify } from "node:util";
import postgres from "postgres";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { createBucket } from "../sync/support/lab.ts";
import { type LocalLab, openLocalLab } from "../sync/support/local_lab.ts";
import { createRegister } from "../register/support/scene.ts";
import { runCommand } from "./support/run_command.ts";

let lab: LocalLab;
beforeAll(async () => {
  lab = await openLocalLab();
});
afterAll(() => lab?.close());

const run = (...args: readonly string[]) =>
  runCommand(["reader", ...args], {
    env: { SUPABASE_URL: lab.stack.url, SUPABASE_SECRET_KEY: lab.stack.secretKey },
  });

describe("by HTTPS", () => {
  test("the key is shown once with where to type it, opens the register, and is gone once it is revoked", async () => {
    const bucket = await createRegister(lab, ["1", "2"]);
    const added = await run("add", "excel-office", "--https", "--bucket", bucket);
    expect(added.status).toBe(0);
    const [, address = ""] = /Address: +(\S+)/.exec(added.stdout) ?? [];
    const [, key = ""] = /Password: +(\S+)/.exec(added.stdout) ?? [];
    expect(key).toMatch(/^isr_[\w-]{43}$/);
    expect(added.stderr).not.toContain(key);
    const read = () =>
      fetch(address, {
        headers: { authorization: `Basic ${Buffer.from(`excel-office:${key}`).toString("base64")}` },
      });
    expect((await (await read()).text()).split("\r\n")).toHaveLength(4);

    const listed = await run("list");
    expect(listed).toMatchObject({
      status: 0,
      stdout: expect.stringMatching(
        new RegExp(`^excel-office: HTTPS, register of ${bucket}, last used .* GMT$`, "m"),
      ),
    });
    expect(listed.stdout).not.toContain(key.slice(4));
    expect(await run("add", "excel-office", "--https", "--bucket", bucket)).toMatchObject({
      status: 2,
      stderr: expect.stringContaining("there is one. A key cannot be shown again"),
    });
    expect(await run("revoke", "excel-office")).toMatchObject({
      status: 0,
      stdout: "Reader excel-office is revoked: from now on the key opens nothing\n",
    });
    expect((await read()).status).toBe(401);
    expect((await run("revoke", "excel-office")).status).toBe(2);
  });

  test("--json is one document with the key in it", async () => {
    const bucket = await createBucket(lab);
    const { stdout } = await run("add", "machine", "--https", "--bucket", bucket, "--json");
    expect(JSON.parse(stdout)).toMatchObject({
      name: "machine",
      kind: "https",
      bucket_id: bucket,
      key: expect.stringMatching(/^isr_[\w-]{43}$/),
    });
  });
});

describe("by ODBC", () => {
  test("the SQL stands alone on standard output and holds no password; run, it makes the role", async () => {
    const bucket = await createRegister(lab, ["1"]);
    const added = await run("add", "shop", "--odbc", "--bucket", bucket);
    expect(added.status).toBe(0);
    const [, password = ""] = /Password: +(\S+)/.exec(added.stderr) ?? [];
    expect(password).toMatch(/^[\w-]{32}$/);
    expect(added.stdout).not.toContain(password);
    await lab.sql.unsafe(added.stdout).simple();
    const shop = postgres(lab.stack.dbUrl.replace("postgres:postgres", `shop:${password}`), { max: 1 });
    expect(await shop`select part_number from part_register`).toEqual([{ part_number: "1" }]);
    expect((await run()).stdout).toMatch(
      /^shop: ODBC, register of bucket-\S+, a database role: its last use is not known$/m,
    );

    const revoked = await run("revoke", "shop");
    expect(revoked).toMatchObject({
      status: 1,
      stderr: expect.stringContaining("which its owner has to drop"),
    });
    expect(await shop`select part_number from part_register`).toHaveLength(1);
    await lab.sql.unsafe(revoked.stdout).simple();
    await expect(shop`select part_number from part_register`).rejects.toBeTruthy();
    await shop.end({ timeout: 1 });
    expect((await run()).stdout).not.toContain("shop:");
  });

  test("a role that was dropped by hand is no reader any more once it is revoked", async () => {
    await lab
      .sql`insert into image_sync.readers (name, kind, bucket_id) values ('ghost', 'odbc', 'part-images')`;
    expect(await run("revoke", "ghost")).toMatchObject({ status: 0 });
  });
});

describe("what is asked wrongly is refused with what to type", () => {
  test.each([
    [["add", "x"], /say --https for Power Query, or --odbc/],
    [["add"], /without the name of a reader/],
    [["rename", "x"], /Cannot rename a reader/],
    [["add", "Robert'); drop", "--odbc"], /a name has 1 to 48 of a-z/],
    [["add", "x", "--odbc", "--https"], /cannot be used with option/],
  ])("%s", async (args, words) => {
    const result = await run(...args);
    expect(result).toMatchObject({ status: 2, stderr: expect.stringMatching(words) });
    expect(result.stdout).toBe("");
  });
});

test("it is a command and a script", async () => {
  const { stdout } = await promisify(execFile)("npm", ["run", "--silent", "reader", "--", "--help"]);
  expect(stdout).toContain("add or revoke");
});
