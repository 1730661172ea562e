import postgres, { type Sql } from "postgres";
import type { SupabaseClient } from "@supabase/supabase-js";
import {
  afterAll,
  afterEach,
  beforeAll,
  beforeEach,
  describe,
  expect,
  onTestFinished,
  test,
  vi,
} from "vitest";
import { createTestClient } from "../support/client.ts";
import { type LocalStack, startLocalStack } from "../support/stack.ts";

const jpeg = new Uint8Array([0xff, 0xd8, 0xff, 0xd9]);
const missingObject = "Either the object does not exist or you do not have access to it";

let stack: LocalStack;
let supabase: SupabaseClient;
let sql: Sql;
let bucket: string;

beforeAll(async () => {
  stack = await startLocalStack(["--no-function", "--no-migrate"]);
  supabase = createTestClient(stack.url, stack.secretKey);
  sql = postgres(stack.adminDbUrl, { max: 2, onnotice: () => {} });
});
afterAll(async () => {
  await sql?.end();
  await stack?.stop();
});
beforeEach(async () => {
  bucket = `bucket-${crypto.randomUUID()}`;
  expect(await supabase.storage.createBucket(bucket, { public: false })).toMatchObject({ error: null });
});

async function post(path: string, body?: unknown, key = stack.secretKey): Promise<Response> {
  return await fetch(stack.url + path, {
    method: "POST",
    headers: { apikey: key, authorization: `Bearer ${key}`, "content-type": "application/json" },
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  });
}

/** What the real service has no endpoint for. */
async function setSwitch(method: "PUT" | "DELETE", path: string, body?: unknown): Promise<void> {
  const { ok } = await fetch(`${stack.url}/_local${path}`, {
    method,
    headers: { apikey: stack.secretKey },
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  });
  expect(ok).toBe(true);
}

async function upload(...names: readonly string[]): Promise<void> {
  for (const name of names) {
    const { error } = await supabase.storage.from(bucket).upload(name, jpeg, { contentType: "image/jpeg" });
    expect(error).toBeNull();
  }
}

/** Rows without a file, as many and as odd as needed. */
async function insertRows(names: readonly string[]): Promise<void> {
  await sql`insert into storage.objects (bucket_id, name) select ${bucket}, unnest(${[...names]}::text[])`;
}

async function sign(name: string, expiresIn = 60): Promise<string> {
  const { data, error } = await supabase.storage.from(bucket).createSignedUrls([name], expiresIn);
  expect(error).toBeNull();
  return data?.[0]?.signedUrl ?? "";
}

function claimsOf(url: string): unknown {
  const token = new URL(url).searchParams.get("token") ?? "";
  return JSON.parse(Buffer.from(token.split(".")[1] ?? "", "base64url").toString());
}

describe("uploading", () => {
  test("stores the file with its size and type, and serves it to a secret key", async () => {
    await upload("folder/001.jpg");
    const [row] = await sql`
      select metadata ->> 'size' as size, metadata ->> 'mimetype' as mimetype, path_tokens, version is null as unversioned
      from storage.objects where bucket_id = ${bucket}`;
    expect(row).toEqual({
      size: "4",
      mimetype: "image/jpeg",
      path_tokens: ["folder", "001.jpg"],
      unversioned: false,
    });
    const { data } = await supabase.storage.from(bucket).download("folder/001.jpg");
    expect(new Uint8Array(await data!.arrayBuffer())).toEqual(jpeg);
    expect(data!.type).toBe("image/jpeg");
  });

  test("refuses a name that exists unless the upload is an upsert", async () => {
    await upload("a.jpg");
    const again = await supabase.storage.from(bucket).upload("a.jpg", jpeg);
    expect(again.error).toMatchObject({
      message: "The resource already exists",
      statusCode: "409",
      status: 400,
    });
    const upsert = await supabase.storage.from(bucket).upload("a.jpg", jpeg, { upsert: true });
    expect(upsert.error).toBeNull();
  });

  test.each(["grün.jpg", "a#b.jpg", "a%b.jpg", "a\tb.jpg"])("refuses the name %j", async (name) => {
    const response = await fetch(`${stack.url}/storage/v1/object/${bucket}/${encodeURIComponent(name)}`, {
      method: "POST",
      headers: { apikey: stack.secretKey, authorization: `Bearer ${stack.secretKey}` },
      body: jpeg,
    });
    expect(response.status).toBe(400);
    expect(await response.json()).toMatchObject({ statusCode: "400", error: "InvalidKey" });
  });

  test("refuses a bucket that does not exist", async () => {
    const { error } = await supabase.storage.from("nowhere").upload("a.jpg", jpeg);
    expect(error).toMatchObject({ status: 400, statusCode: "404", message: "Bucket not found" });
  });
});

test("a bucket's name has 1 to 100 characters of those that a key may have, and no space around it", async () => {
  const errorOf = async (name: string) => (await supabase.storage.createBucket(name)).error?.message;
  for (const name of ["x".repeat(100), `O'Brien & Co, ${bucket}`]) {
    expect(await errorOf(name)).toBeUndefined();
  }
  for (const name of ["x".repeat(101), "bücket", "a/b", " a", "100%"]) {
    expect(await errorOf(name)).toBe("Bucket name invalid");
  }
});

describe("signing many paths", () => {
  test("answers in the order of the paths, keeps duplicates, and tells a missing object apart", async () => {
    await upload("a.jpg", "b c.jpg");
    const response = await post(`/storage/v1/object/sign/${bucket}`, {
      expiresIn: 60,
      paths: ["b c.jpg", "gone.jpg", "a.jpg", "a.jpg"],
    });
    expect(response.status).toBe(200);
    expect(await response.json()).toEqual([
      {
        error: null,
        path: "b c.jpg",
        signedURL: expect.stringMatching(`^/object/sign/${bucket}/b c\\.jpg\\?token=`),
      },
      { error: missingObject, path: "gone.jpg", signedURL: null },
      ...Array(2).fill({ error: null, path: "a.jpg", signedURL: expect.any(String) }),
    ]);
  });

  test("makes a JWT whose claims name the object and its time", async () => {
    await upload("a.jpg");
    const before = Math.floor(Date.now() / 1000);
    const claims = claimsOf(await sign("a.jpg", 600)) as { iat: number; exp: number };
    expect(claims).toMatchObject({ url: `${bucket}/a.jpg`, scope: "download" });
    expect(claims.iat).toBeGreaterThanOrEqual(before);
    expect(claims.exp).toBe(claims.iat + 600);
  });

  test("takes 1 to 1,000 paths", async () => {
    const paths = Array.from({ length: 1001 }, (_, place) => `${place}.jpg`);
    await insertRows(paths);
    const most = await supabase.storage.from(bucket).createSignedUrls(paths.slice(0, 1000), 60);
    expect(most.data?.filter(({ error }) => error === null)).toHaveLength(1000);
    const tooMany = await supabase.storage.from(bucket).createSignedUrls(paths, 60);
    expect(tooMany.error).toMatchObject({
      status: 400,
      message: "body/paths must NOT have more than 1000 items",
    });
    const none = await supabase.storage.from(bucket).createSignedUrls([], 60);
    expect(none.error).toMatchObject({ message: "body/paths must NOT have fewer than 1 items" });
  });

  test("refuses a body over 1 MiB", async () => {
    const response = await post(`/storage/v1/object/sign/${bucket}`, {
      expiresIn: 60,
      paths: ["x".repeat(1_048_576)],
    });
    expect(response.status).toBe(413);
    expect(await response.json()).toMatchObject({ statusCode: "413", error: "EntityTooLarge" });
  });

  test("answers a key that it does not know with 400, and the truth in the body", async () => {
    const response = await post(
      `/storage/v1/object/sign/${bucket}`,
      { expiresIn: 60, paths: ["a"] },
      "sb_secret_x",
    );
    expect(response.status).toBe(400);
    expect(await response.json()).toEqual({
      statusCode: "403",
      error: "Unauthorized",
      message: "Invalid Compact JWS",
    });
  });

  test("does not tell a missing bucket, or a key without rights, from a missing object", async () => {
    await upload("a.jpg");
    const perPath = [{ error: missingObject, path: "a.jpg", signedURL: null }];
    const nowhere = await post("/storage/v1/object/sign/nowhere", { expiresIn: 60, paths: ["a.jpg"] });
    expect([nowhere.status, await nowhere.json()]).toEqual([200, perPath]);
    const body = { expiresIn: 60, paths: ["a.jpg"] };
    const anon = await post(`/storage/v1/object/sign/${bucket}`, body, stack.publishableKey);
    expect([anon.status, await anon.json()]).toEqual([200, perPath]);
    const asked = await supabase.storage.getBucket("nowhere");
    expect(asked.error).toMatchObject({ status: 400, statusCode: "404" });
  });

  test("refuses a bucket whose name is not of its characters", async () => {
    const { error } = await supabase.storage.from("büro").createSignedUrls(["a.jpg"], 60);
    expect(error).toMatchObject({ status: 400, code: "InvalidBucketName" });
  });

  test("signs a thousand paths about as fast as the real service", async () => {
    const paths = Array.from({ length: 1000 }, (_, place) => `${place}.jpg`);
    await insertRows(paths);
    const times = [];
    for (let round = 0; round < 5; round++) {
      const start = performance.now();
      await supabase.storage.from(bucket).createSignedUrls(paths, 60);
      times.push(performance.now() - start);
    }
    expect(Math.min(...times)).toBeLessThan(100); // 17 ms on the real one; a generous bound for a busy machine
  });
});

describe("opening a signed URL", () => {
  test("serves the file with its type, whoever asks", async () => {
    await upload("a.jpg");
    const response = await fetch(await sign("a.jpg"));
    expect(response.status).toBe(200);
    expect(response.headers.get("content-type")).toBe("image/jpeg");
    expect(new Uint8Array(await response.arrayBuffer())).toEqual(jpeg);
  });

  test("refuses a forged token, an expired one, and one signed before the key was rotated", async () => {
    await upload("a.jpg");
    const url = await sign("a.jpg", 1);
    const forged = await fetch(url.replace(/.{4}$/, "AAAA"));
    expect([forged.status, await forged.json()]).toMatchObject([400, { error: "InvalidJWT" }]);
    await vi.waitFor(async () => {
      const expired = await fetch(url);
      expect([expired.status, await expired.json()]).toMatchObject([400, { error: "InvalidJWT" }]);
    }, { timeout: 5000, interval: 100 });
    const rotated = await sign("a.jpg");
    await post("/_local/storage/rotate-signing-key");
    expect(await (await fetch(rotated)).json()).toMatchObject({ error: "InvalidJWT" });
  });

  test("goes on working after an overwrite, and after a delete and a new upload", async () => {
    await upload("a.jpg");
    const url = await sign("a.jpg");
    await supabase.storage.from(bucket).upload("a.jpg", jpeg, { upsert: true });
    expect((await fetch(url)).status).toBe(200);
    await supabase.storage.from(bucket).remove(["a.jpg"]);
    await upload("a.jpg");
    expect((await fetch(url)).status).toBe(200);
  });

  test("says not_found when the object is gone, and breaks on a move", async () => {
    await upload("a.jpg", "b.jpg");
    const [gone, moved] = [await sign("a.jpg"), await sign("b.jpg")];
    await supabase.storage.from(bucket).remove(["a.jpg"]);
    await supabase.storage.from(bucket).move("b.jpg", "c.jpg");
    for (const url of [gone, moved]) {
      const response = await fetch(url);
      expect([response.status, await response.json()]).toMatchObject([400, { error: "not_found" }]);
    }
  });

  test("shows a moved file under its new name: the row keeps its id and gets another version", async () => {
    await upload("b.jpg");
    const look = () =>
      sql<
        { id: string; version: string }[]
      >`select id, version from storage.objects where bucket_id = ${bucket}`;
    const [before] = await look();
    await supabase.storage.from(bucket).move("b.jpg", "c.jpg");
    const [after] = await look();
    expect(after?.id).toBe(before?.id);
    expect(after?.version).not.toBe(before?.version);
    expect((await fetch(await sign("c.jpg"))).status).toBe(200);
    await insertRows(["ghost.jpg"]);
    const { error } = await supabase.storage.from(bucket).move("ghost.jpg", "d.jpg");
    expect(error).not.toBeNull();
  });

  test("is refused in S3's words for a row without a file, which lists and signs all the same", async () => {
    await insertRows(["ghost.jpg"]);
    const { data } = await supabase.storage.from(bucket).list();
    expect(data?.map(({ name }) => name)).toEqual(["ghost.jpg"]);
    const response = await fetch(await sign("ghost.jpg"));
    expect([response.status, await response.json()]).toEqual([
      400,
      { statusCode: "404", error: "Not found", code: "NoSuchKey" },
    ]);
  });

  test("is a 500 for a row without a file where files lie on a file system", async () => {
    await insertRows(["ghost.jpg"]);
    await setSwitch("PUT", "/storage/backend", { backend: "file" });
    onTestFinished(() => setSwitch("PUT", "/storage/backend", { backend: "s3" }));
    const response = await fetch(await sign("ghost.jpg"));
    expect([response.status, await response.json()]).toMatchObject([500, { statusCode: "500" }]);
  });
});

describe("listing", () => {
  test("gives 100 names unless told, cuts larger limits down silently, and pages by offset", async () => {
    await insertRows(Array.from({ length: 1600 }, (_, place) => `${String(place).padStart(6, "0")}.jpg`));
    const list = async (options: { limit?: number; offset?: number }) =>
      (await supabase.storage.from(bucket).list("", options)).data?.map(({ name }) => name) ?? [];
    expect(await list({})).toHaveLength(100);
    const largest = await list({ limit: 1_000_000 });
    expect(largest.length).toBeLessThan(1600);
    expect(await list({ limit: 2, offset: 100 })).toEqual(["000100.jpg", "000101.jpg"]);
  });

  test("shows folders as entries without an id", async () => {
    await upload("folder/a.jpg", "b.jpg");
    const { data } = await supabase.storage.from(bucket).list();
    expect(data?.map(({ name, id }) => [name, id === null])).toEqual([["b.jpg", false], ["folder", true]]);
  });

  test("of a missing bucket is empty, not an error", async () => {
    expect(await supabase.storage.from("nowhere").list()).toEqual({ data: [], error: null });
  });

  test("listV2 walks every key with a cursor", async () => {
    const names = ["001000.JPG", "001000.jpg", "001000.jpg (1)", "x/1.jpg"];
    await insertRows(names);
    const seen: string[] = [];
    let cursor: string | undefined;
    do {
      const { data, error } = await supabase.storage.from(bucket).listV2({
        limit: 1,
        with_delimiter: false,
        ...(cursor === undefined ? {} : { cursor }),
      });
      expect(error).toBeNull();
      seen.push(...data?.objects.map(({ key, name }) => key ?? name) ?? []);
      cursor = data?.hasNext ? data.nextCursor : undefined;
    } while (cursor !== undefined);
    expect(seen).toEqual(names);
  });
});

describe("the table storage.objects", () => {
  test("refuses a delete by SQL, even to its owner's superior", async () => {
    await insertRows(["a.jpg"]);
    const asPostgres = postgres(stack.dbUrl, { max: 1 });
    await expect(asPostgres`delete from storage.objects where bucket_id = ${bucket}`)
      .rejects.toMatchObject({ code: "42501", message: expect.stringContaining("Storage API") });
    await asPostgres.end();
  });

  test("is open to service_role and, without policies, closed to anon", async () => {
    await insertRows(["a.jpg"]);
    const countAs = (role: string) =>
      sql.begin(async (transaction) => {
        await transaction.unsafe(`set local role ${role}`);
        const rows = await transaction`select from storage.objects where bucket_id = ${bucket}`;
        return rows.length;
      });
    expect([await countAs("service_role"), await countAs("anon")]).toEqual([1, 0]);
  });

  test("has the index of a keyset walk, in byte order", async () => {
    const [index] = await sql`
      select indexdef from pg_indexes where indexname = 'idx_objects_bucket_id_name'`;
    expect(index?.indexdef).toMatch(/\(bucket_id, name COLLATE "C"\)/);
  });
});

test.each([["end.jpg ", "end.jpg"], ["a#b.jpg", "a"], ["a\\b.jpg", "a/b.jpg"], ["dir//x.jpg", "dir/x.jpg"]])(
  "a file that is uploaded as %j is stored as %j",
  async (name, stored) => {
    const { data } = await supabase.storage.from(bucket).upload(name, jpeg, { contentType: "image/jpeg" });
    expect(data?.fullPath).toBe(`${bucket}/${stored}`);
  },
);

describe("an answer that the platform gives in place of a service", () => {
  const look = async (path: string) => {
    const response = await fetch(stack.url + path, { headers: { apikey: stack.secretKey } });
    return [response.status, response.headers.get("content-type"), await response.text()];
  };
  afterEach(() => setSwitch("DELETE", "/answer"));

  test.each([
    [401, "application/json", "Missing authorization header"],
    [402, "application/json", "exceed_egress_quota"],
    [403, "text/html; charset=UTF-8", "<!DOCTYPE html>"],
    [540, "application/json", "Project paused"],
    [546, "application/json", "WORKER_LIMIT"],
  ])("is a %i for every path, until it is switched off", async (status, type, words) => {
    await setSwitch("PUT", "/answer", { status, path: "/" });
    for (const path of ["/storage/v1/bucket", "/rest/v1/rpc/x", "/functions/v1/image-sync", "/elsewhere"]) {
      expect(await look(path)).toEqual([status, type, expect.stringContaining(words)]);
    }
    await setSwitch("DELETE", "/answer");
    expect((await look("/storage/v1/bucket"))[0]).toBe(200);
  });

  test("comes below one path alone, and as often as it is told", async () => {
    await setSwitch("PUT", "/answer", { status: 402, path: "/storage/v1/bucket", times: 2 });
    expect((await look("/storage/v1/object/x"))[0]).not.toBe(402);
    for (const status of [402, 402, 200]) expect((await look("/storage/v1/bucket"))[0]).toBe(status);
  });
});

test("the requests of each operation are counted until the count is reset", async () => {
  const control = async (method: string) =>
    await fetch(`${stack.url}/_local/requests`, { method, headers: { apikey: stack.secretKey } });
  await control("DELETE");
  await supabase.storage.from(bucket).createSignedUrls(["a.jpg"], 60);
  await supabase.storage.from(bucket).list();
  expect(await (await control("GET")).json()).toEqual({
    function: 0,
    rpc: {},
    rpc_slowest_ms: {},
    storage: { sign_many: 1, list: 1 },
  });
});
