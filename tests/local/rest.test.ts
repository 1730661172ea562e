import type { SupabaseClient } from "@supabase/supabase-js";
import postgres, { type Sql } from "postgres";
import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";
import { createTestClient } from "../support/client.ts";
import { type LocalStack, startLocalStack } from "../support/stack.ts";

const functions = `
  create function public.who_am_i() returns jsonb language sql as $$
    select jsonb_build_object('role', current_user, 'claims', current_setting('request.jwt.claims')::jsonb)
  $$;
  create function public.types(p_names text[], p_ids bigint[], p_at timestamptz, p_more jsonb, p_note text default 'none')
  returns jsonb language sql as $$
    select jsonb_build_object('names', to_jsonb(p_names), 'ids', to_jsonb(p_ids), 'more', p_more, 'note', p_note)
  $$;
  create function public.nothing() returns void language sql as $$ $$;
  create function public.numbers(p_count integer) returns setof integer language sql as $$
    select generate_series(1, p_count)
  $$;
  create function public.pairs() returns table (a integer, b text) language sql as $$ values (1, 'x'), (2, 'y') $$;
  create function public.one_row() returns storage.buckets language sql as $$
    select null::text, 'b', null::uuid, null::timestamptz, null::timestamptz, false, false, null::bigint, null::text[], null::text,
      'STANDARD'::storage.buckettype, 'DISABLED'
  $$;
  create function public.fail(p_sqlstate text) returns void language plpgsql as $$
  begin
    raise exception 'It failed' using errcode = p_sqlstate, detail = 'a detail', hint = 'a hint';
  end $$;
  create function public.timeout_of_role() returns text language sql as $$ select current_setting('statement_timeout') $$;
  create function public.timeout_of_its_own() returns text language sql set statement_timeout = '20s'
  as $$ select current_setting('statement_timeout') $$;
  create function public.secret_business() returns text language sql as $$ select 'done' $$;
  revoke execute on function public.secret_business() from public;
  create table public.ungranted (id integer);
  create function public.read_ungranted() returns bigint language sql as $$ select count(*) from public.ungranted $$;
`;

let stack: LocalStack;
let sql: Sql;
let service: SupabaseClient;
let anon: SupabaseClient;

beforeAll(async () => {
  stack = await startLocalStack(["--no-function", "--no-migrate"]);
  sql = postgres(stack.dbUrl, { max: 1, onnotice: () => {} });
  await sql.unsafe(functions).simple();
  service = createTestClient(stack.url, stack.secretKey);
  anon = createTestClient(stack.url, stack.publishableKey);
});
afterAll(async () => {
  await sql?.end();
  await stack?.stop();
});

describe("a call of a function", () => {
  test("runs as the role of the key", async () => {
    expect((await service.rpc("who_am_i")).data).toEqual({
      role: "service_role",
      claims: { role: "service_role" },
    });
    expect((await anon.rpc("who_am_i")).data).toMatchObject({ role: "anon" });
  });

  test("converts JSON to the types of the parameters and digits of large numbers survive", async () => {
    const response = await fetch(`${stack.url}/rest/v1/rpc/types`, {
      method: "POST",
      headers: { apikey: stack.secretKey, "content-type": "application/json" },
      body:
        `{"p_names": ["a", "b,c", null], "p_ids": [9007199254740993], "p_at": "2026-11-24T02:00:00Z", "p_more": {"x": [1]}}`,
    });
    expect(await response.text()).toBe(
      '{"ids": [9007199254740993], "more": {"x": [1]}, "note": "none", "names": ["a", "b,c", null]}',
    );
  });

  test("answers void with 204, a set with an array, a row with an object", async () => {
    expect(await service.rpc("nothing")).toMatchObject({ status: 204, data: null, error: null });
    expect((await service.rpc("numbers", { p_count: 3 })).data).toEqual([1, 2, 3]);
    expect((await service.rpc("pairs")).data).toEqual([{ a: 1, b: "x" }, { a: 2, b: "y" }]);
    expect((await service.rpc("one_row")).data).toMatchObject({ name: "b" });
  });

  test("cuts a set off at max_rows without a word", async () => {
    expect((await service.rpc("numbers", { p_count: 1001 })).data).toHaveLength(1000);
  });

  test("has 8 s, 3 s as anon, or what the function sets for itself", async () => {
    expect((await service.rpc("timeout_of_role")).data).toBe("8s");
    expect((await anon.rpc("timeout_of_role")).data).toBe("3s");
    expect((await service.rpc("timeout_of_its_own")).data).toBe("20s");
  });
});

describe("an error of the database", () => {
  test.each([
    ["P0001", 400],
    ["22023", 400],
    ["23503", 409],
    ["23505", 409],
    ["25006", 405],
    ["40001", 500],
    ["40P01", 500],
    ["42883", 404],
    ["42P01", 404],
    ["53300", 503],
    ["54000", 500],
    ["55P03", 500],
    ["57014", 500],
    ["P0002", 500],
    ["PT418", 418],
  ])("%s is answered with %i and PostgREST's shape", async (sqlstate, status) => {
    const answer = await service.rpc("fail", { p_sqlstate: sqlstate });
    expect(answer.status).toBe(status);
    expect(answer.error).toMatchObject({
      code: sqlstate,
      message: "It failed",
      details: "a detail",
      hint: "a hint",
    });
  });

  test("a missing grant is 42501: 403 for service_role, 401 for anon", async () => {
    expect(await service.rpc("secret_business")).toMatchObject({ status: 403, error: { code: "42501" } });
    expect(await anon.rpc("secret_business")).toMatchObject({ status: 401, error: { code: "42501" } });
  });

  test("a new table is granted to nobody, service_role included", async () => {
    expect(await service.rpc("read_ungranted")).toMatchObject({ status: 403, error: { code: "42501" } });
  });
});

describe("a call that fits no function", () => {
  test("is PGRST202 for an unknown name, an unknown argument and a missing one", async () => {
    const unknown = await service.rpc("no_such_function", { b: 1, a: 2 });
    expect(unknown).toMatchObject({
      status: 404,
      error: {
        code: "PGRST202",
        message: "Could not find the function public.no_such_function(a, b) in the schema cache",
      },
    });
    expect(await service.rpc("numbers", { p_count: 1, more: 2 })).toMatchObject({
      status: 404,
      error: { code: "PGRST202" },
    });
    expect(await service.rpc("numbers")).toMatchObject({ status: 404, error: { code: "PGRST202" } });
  });

  test("finds a function that was made, and misses one that was dropped, since", async () => {
    expect(await service.rpc("latecomer")).toMatchObject({ status: 404 });
    await sql`create function public.latecomer() returns integer language sql as 'select 1'`;
    expect(await service.rpc("latecomer")).toMatchObject({ status: 200, data: 1 });
    await sql`drop function public.latecomer()`;
    await vi.waitFor(async () =>
      expect(await service.rpc("latecomer")).toMatchObject({ status: 404, error: { code: "PGRST202" } })
    );
  });

  test("is PGRST102 for a body that is no JSON", async () => {
    const response = await fetch(`${stack.url}/rest/v1/rpc/nothing`, {
      method: "POST",
      headers: { apikey: stack.secretKey },
      body: "{",
    });
    expect([response.status, await response.json()]).toMatchObject([400, { code: "PGRST102" }]);
  });
});

test("no key and an unknown key are refused", async () => {
  const call = (headers: Record<string, string>) =>
    fetch(`${stack.url}/rest/v1/rpc/who_am_i`, { method: "POST", headers, body: "{}" });
  expect((await call({})).status).toBe(401);
  const unknown = await call({ apikey: "sb_secret_unknown" });
  expect([unknown.status, await unknown.json()]).toMatchObject([401, { message: "Invalid API key" }]);
});

test("the calls of each function are counted", async () => {
  const headers = { apikey: stack.secretKey };
  await fetch(`${stack.url}/_local/requests`, { method: "DELETE", headers });
  await service.rpc("who_am_i");
  await service.rpc("who_am_i");
  const counts = await (await fetch(`${stack.url}/_local/requests`, { headers })).json();
  expect(counts).toMatchObject({ function: 0, rpc: { who_am_i: 2 }, storage: {} });
});
