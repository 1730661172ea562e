import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import postgres, { type Sql } from "postgres";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test, vi } from "vitest";
import { type LocalStack, startLocalStack } from "../support/stack.ts";

type Received = {
  readonly method: string;
  readonly url: string;
  readonly type: string;
  readonly body: string;
};

let stack: LocalStack;
let sql: Sql;
let server: Server;
let address: string;
let received: Received[] = [];

beforeAll(async () => {
  stack = await startLocalStack(["--no-function", "--no-migrate"]);
  sql = postgres(stack.dbUrl, { max: 3 });
  server = createServer(async (request, response) => {
    const parts: Buffer[] = [];
    for await (const part of request) parts.push(part);
    const { method = "", url = "" } = request;
    const type = request.headers["content-type"] ?? "";
    received.push({ method, url, type, body: Buffer.concat(parts).toString() });
    if (url.startsWith("/slow")) return; // never answers
    if (url.startsWith("/elsewhere")) return void response.writeHead(307, { location: "/here" }).end();
    response.writeHead(url.startsWith("/busy") ? 503 : 200, { "content-type": "text/plain" }).end("noted");
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  address = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
});
afterAll(async () => {
  server?.closeAllConnections();
  server?.close();
  await sql?.end();
  await stack?.stop();
});
beforeEach(() => {
  received = [];
});
afterEach(() => sql`delete from net._http_response`);

async function post(url: string, timeout = 5000): Promise<string> {
  const [row] = await sql`
    select net.http_post(url := ${url}, body := '{"a": 1}', timeout_milliseconds := ${timeout}) as id`;
  return row?.["id"] as string;
}

async function responseTo(id: string): Promise<Record<string, unknown>> {
  return await vi.waitFor(async () => {
    const [row] = await sql`select * from net._http_response where id = ${id}`;
    expect(row).toBeDefined();
    return row as Record<string, unknown>;
  }, { timeout: 5000, interval: 20 });
}

describe("net.http_post", () => {
  test("sends the JSON body and keeps the response", async () => {
    const id = await post(`${address}/hook`);
    expect(await responseTo(id)).toMatchObject({
      status_code: 200,
      content_type: "text/plain",
      content: "noted",
      timed_out: false,
      error_msg: null,
    });
    expect(received).toEqual([{ method: "POST", url: "/hook", type: "application/json", body: '{"a": 1}' }]);
  });

  test("sends after the commit, and never what was rolled back", async () => {
    await sql.begin(async (transaction) => {
      await transaction`select net.http_post(url := ${`${address}/committed`})`;
      // What another transaction queued meanwhile goes out: the worker is awake, and has not seen ours.
      await responseTo(await post(`${address}/meanwhile`));
      expect(received.map(({ url }) => url)).toEqual(["/meanwhile"]);
    });
    await vi.waitFor(() => expect(received.map(({ url }) => url)).toContain("/committed"));
    await sql.begin(async (transaction) => {
      await transaction`select net.http_post(url := ${`${address}/rolled-back`})`;
      throw new Error("rolled back");
    }).catch(() => {});
    await responseTo(await post(`${address}/last`));
    expect(received.map(({ url }) => url)).toEqual(["/meanwhile", "/committed", "/last"]);
  });

  test("does not repeat a request that was refused or timed out; only the response tells", async () => {
    expect(await responseTo(await post(`${address}/busy`))).toMatchObject({ status_code: 503 });
    expect(await responseTo(await post(`${address}/slow`, 200))).toMatchObject({
      status_code: null,
      timed_out: true,
    });
    const refused = await responseTo(await post("http://127.0.0.1:1/"));
    expect(refused).toMatchObject({ status_code: null, timed_out: false, error_msg: expect.any(String) });
    expect(received).toHaveLength(2);
  });

  test("follows a redirect, with the body", async () => {
    expect(await responseTo(await post(`${address}/elsewhere`))).toMatchObject({ status_code: 200 });
    expect(received.map(({ url, body }) => [url, body])).toEqual([["/elsewhere", '{"a": 1}'], [
      "/here",
      '{"a": 1}',
    ]]);
  });

  test("shows the responses of a batch when its slowest request has ended", async () => {
    const ids = await sql.begin(async (transaction) => {
      const [row] = await transaction`
        select net.http_post(url := ${`${address}/quick`}) as quick,
          net.http_post(url := ${`${address}/slow`}, timeout_milliseconds := 700) as slow`;
      return row as { quick: string; slow: string };
    });
    await vi.waitFor(() => expect(received).toHaveLength(2));
    expect([...await sql`select from net._http_response where id = ${ids.quick}`]).toEqual([]);
    await responseTo(ids.quick);
    await responseTo(ids.slow);
  });

  test("takes no content type but application/json, to the letter", async () => {
    const call =
      sql`select net.http_post(${address}, headers := '{"Content-Type": "application/json; charset=utf-8"}')`;
    await expect(call).rejects.toThrow('Content-Type header must be "application/json"');
  });

  test("is not for service_role, who can read and write the queue as everybody can", async () => {
    const call = sql.begin(async (transaction) => {
      await transaction`set local role service_role`;
      await transaction`select net.http_post(${address})`;
    });
    await expect(call).rejects.toMatchObject({ code: "42501" });
    for (const role of ["service_role", "anon"]) {
      await sql.begin(async (transaction) => {
        await transaction.unsafe(`set local role ${role}`);
        await transaction`select * from net.http_request_queue`;
        await transaction`delete from net._http_response`;
        await transaction`select nextval('net.http_request_queue_id_seq')`;
      });
    }
  });

  test("forgets what it was to send when the database crashes, and counts from 1 again", async () => {
    await responseTo(await post(`${address}/before`));
    for (const step of ["crash", "restart"]) {
      const request = { method: "POST", headers: { apikey: stack.secretKey } };
      expect((await fetch(`${stack.url}/_local/postgres/${step}`, request)).ok).toBe(true);
    }
    const id = await vi.waitFor(() => post(`${address}/after`), { timeout: 10_000, interval: 100 });
    expect(id).toBe("1");
    expect(await responseTo(id)).toMatchObject({ status_code: 200 });
    expect([...await sql`select id from net._http_response`]).toEqual([{ id: "1" }]);
  });
});

test("net.http_get appends its parameters to the URL", async () => {
  const [row] = await sql`select net.http_get(${`${address}/get`}, params := '{"a b": "c&d"}') as id`;
  await responseTo(row?.["id"] as string);
  expect(received).toMatchObject([{ method: "GET", url: "/get?a%20b=c%26d" }]);
});
