import postgres from "postgres";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type LocalStack, startLocalStack } from "../support/stack.ts";

describe("the stand-in for Vault", () => {
  let stack: LocalStack;
  beforeAll(async () => {
    stack = await startLocalStack(["--no-function", "--no-migrate"]);
  });
  afterAll(() => stack?.stop());

  test("holds what is put into it, which postgres can read", async () => {
    const sql = postgres(stack.dbUrl, { max: 1 });
    await sql`select vault.create_secret('https://shop.example.com', 'project_url')`;
    const rows = await sql`select name, decrypted_secret from vault.decrypted_secrets order by name`;
    expect([...rows]).toEqual([{ name: "project_url", decrypted_secret: "https://shop.example.com" }]);
    await sql.end();
  });

  test("shows service_role nothing", async () => {
    const sql = postgres(stack.dbUrl, { max: 1 });
    await sql`set role service_role`;
    await expect(sql`select * from vault.decrypted_secrets`).rejects.toMatchObject({ code: "42501" });
    await sql.end();
  });
});
