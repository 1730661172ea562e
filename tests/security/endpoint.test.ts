import { randomUUID } from "node:crypto";
import fc from "fast-check";
import postgres, { type Sql } from "postgres";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { z } from "zod";
import { type LocalStack, startLocalStack } from "../support/stack.ts";

const seed = 20_261_124;
const requests = 10_000;
const names = 10_000;

let stack: LocalStack;
let admin: Sql;
beforeAll(async () => {
  stack = await startLocalStack();
  admin = postgres(stack.adminDbUrl, { max: 3, onnotice: () => {} });
  await admin`select 1`;
});
afterAll(async () => {
  await admin?.end();
  await stack?.stop();
});

const call = (init: RequestInit = {}, query = "") =>
  fetch(`${stack.url}/functions/v1/image-sync${query}`, init);
const withKey = (headers: Record<string, string> = {}) => ({ apikey: stack.secretKey, ...headers });

describe("the endpoint", () => {
  const cases: readonly { readonly who: string; readonly headers: () => Record<string, string> }[] = [
    { who: "no key", headers: () => ({}) },
    { who: "an empty key", headers: () => ({ apikey: "" }) },
    { who: "the publishable key", headers: () => ({ apikey: stack.publishableKey }) },
    {
      who: "a secret key of another project",
      headers: () => ({ apikey: "sb_secret_0123456789abcdefghijkl_01234567" }),
    },
    { who: "a secret key with a character too many", headers: () => ({ apikey: `${stack.secretKey}x` }) },
    {
      who: "a secret key with a character too few",
      headers: () => ({ apikey: stack.secretKey.slice(0, -1) }),
    },
    { who: "a malformed key", headers: () => ({ apikey: "sb_secret_" }) },
    { who: "an expired token", headers: () => ({ authorization: `Bearer ${expiredToken()}` }) },
    {
      who: "an unsigned token that claims service_role",
      headers: () => ({ apikey: unsignedToken(), authorization: `Bearer ${unsignedToken()}` }),
    },
    {
      who: "the secret key in Authorization instead of apikey",
      headers: () => ({ authorization: `Bearer ${stack.secretKey}` }),
    },
  ];
  test.each(cases)("answers 401 to $who, whatever is asked, and does nothing", async ({ headers }) => {
    const before = await countRuns();
    for (const method of ["GET", "POST", "DELETE"]) {
      const response = await call(
        { method, headers: headers() },
        method === "DELETE" ? `?run=${randomUUID()}` : "",
      );
      expect(response.status).toBe(401);
      expect(response.headers.get("content-type")).toBe("application/problem+json");
      const text = await response.text();
      expect(JSON.parse(text)).toMatchObject({ code: "unauthorized", status: 401 });
      expect(text).not.toContain(stack.secretKey);
    }
    expect(await countRuns()).toBe(before);
  });

  test("takes each of the project's secret keys", async () => {
    for (const apikey of [stack.secretKey, stack.scheduleKey]) {
      expect((await call({ headers: { apikey } })).status).toBe(200);
    }
  });

  test("answers a preflight without a key, and nothing else", async () => {
    const response = await call({
      method: "OPTIONS",
      headers: { origin: "https://example.com", "access-control-request-method": "POST" },
    });
    expect(response.ok).toBe(true);
    expect(response.headers.get("access-control-allow-origin")).toBe("*");
    expect(await response.text()).not.toContain("part-images");
  });
});

const encode = (value: unknown) => Buffer.from(JSON.stringify(value)).toString("base64url");
const expiredToken = () =>
  `${encode({ alg: "HS256", typ: "JWT" })}.${encode({ role: "service_role", exp: 1 })}.c2lnbmF0dXJl`;
const unsignedToken = () =>
  `${encode({ alg: "none", typ: "JWT" })}.${encode({ role: "service_role", exp: 9_999_999_999 })}.`;

async function countRuns(): Promise<number> {
  const [row] = await admin<{ runs: number }[]>`select count(*)::int as runs from image_sync.runs`;
  return row?.runs ?? -1;
}

const nasty = fc.constantFrom(
  "",
  "'; drop table public.part_images; --",
  "$(id)",
  "../../etc/passwd",
  "%00",
  "\u0000",
  "\ud800",
  "\udc00\ud800",
  "\u202e\u0301",
  "{{7*7}}",
  "=cmd|' /C calc'!A0",
  "\u001b[2J",
  "1e999",
  "-0",
  "null",
  "__proto__",
  "constructor",
);
const text = fc.oneof(nasty, fc.string({ unit: "binary", maxLength: 30 }), fc.string({ maxLength: 30 }));
const field = fc.oneof(
  {
    weight: 4,
    arbitrary: fc.constantFrom(
      "mode",
      "bucket",
      "confirm",
      "restore",
      "run",
      "file",
      "renew",
      "max_delete_count",
      "max_delete_fraction",
      "allow_empty_bucket",
    ),
  },
  { weight: 1, arbitrary: text },
);
// No mode that starts something: what these bodies name does not exist, so nothing may begin.
const value: fc.Arbitrary<unknown> = fc.oneof(
  text,
  fc.uuid(),
  fc.integer(),
  fc.double(),
  fc.boolean(),
  fc.constant(null),
  fc.constantFrom("sync", "analyze", "cleanup", "restore", "all"),
  fc.array(text, { maxLength: 3 }),
  fc.dictionary(text, fc.integer(), { maxKeys: 3 }),
);
const body = fc.oneof(
  {
    weight: 5,
    arbitrary: fc.array(fc.tuple(field, value), { minLength: 1, maxLength: 4 }).map((pairs) =>
      JSON.stringify({ bucket: "nobody", ...Object.fromEntries(pairs) })
    ),
  },
  { weight: 1, arbitrary: fc.json().filter((json) => json !== "{}") },
  { weight: 1, arbitrary: text.filter((raw) => raw.trim() !== "").map((raw) => `{${raw}`) },
);
const headerValue = fc.string({ maxLength: 40 }).map((raw) => raw.replace(/[^\x20-\x7e]/g, "").trim());
const request = fc.record({
  method: fc.constantFrom("GET", "POST", "DELETE", "PUT", "PATCH"),
  query: fc.array(fc.tuple(field, text), { maxLength: 3 }),
  body,
  headers: fc.record({
    accept: fc.oneof(
      fc.constantFrom("text/plain", "application/json", "*/*", "text/plain;q=9, ;;"),
      headerValue,
    ),
    prefer: fc.oneof(
      fc.constantFrom("wait=0", "wait=-1", "wait=1e3", "wait=99999999999", "wait=", "respond-async"),
      headerValue,
    ),
    "if-none-match": headerValue,
    "content-type": headerValue,
  }, { requiredKeys: [] }),
});

const problemSchema = z.looseObject({
  status: z.number(),
  code: z.string(),
  title: z.string(),
  detail: z.string(),
});

test(`${requests} generated requests never get a 5xx, and change nothing`, { timeout: 300_000 }, async () => {
  const drawn = fc.sample(request, { numRuns: requests, seed });
  const unexpected: unknown[] = [];
  const queue = drawn.values();
  await Promise.all(Array.from({ length: 8 }, async () => {
    for (const { method, query, body: sent, headers } of queue) {
      const search = new URLSearchParams(
        query.map(([key, item]): [string, string] => [key.toWellFormed(), item.toWellFormed()]),
      );
      const response = await call({
        method,
        headers: withKey(headers),
        ...(method === "GET" ? {} : { body: sent }),
      }, `?${search}`);
      const answer = await response.text();
      const isProblem = response.status >= 400;
      const isExpected = response.status < 500 &&
        (!isProblem || problemSchema.safeParse(JSON.parse(answer)).success) && !/\n\s+at /.test(answer);
      if (!isExpected) {
        unexpected.push({
          status: response.status,
          method,
          query,
          sent,
          headers,
          answer: answer.slice(0, 300),
        });
      }
    }
  }));
  expect(unexpected.slice(0, 5)).toEqual([]);
  const started =
    await admin`select mode, bucket_id, options from image_sync.runs where bucket_id <> 'part-images'`;
  expect([...started]).toEqual([]);
  // An empty object or a list without fields may be a request to sync the default bucket, and nothing more than that.
  const begun = await admin`select distinct mode from image_sync.runs where mode in ('cleanup', 'restore')`;
  expect([...begun]).toEqual([]);
});

// Drawn one at a time, so that the rest of the request is good and the value gets as far as it can.
test(
  "a single hostile value in an otherwise good request is a 4xx or an answer",
  { timeout: 60_000 },
  async () => {
    const fields = [
      "mode",
      "bucket",
      "confirm",
      "restore",
      "run",
      "renew",
      "max_delete_count",
      "allow_empty_bucket",
    ];
    const values = [
      "",
      "\u0000",
      "\ud800",
      "x\udc00",
      "\uffff",
      "\u202e",
      "'; drop table x; --",
      "__proto__",
      {},
      [],
      null,
      -1,
      1e308,
      true,
    ];
    for (const name of fields) {
      for (const item of values) {
        const sent = JSON.stringify({
          bucket: "nobody",
          mode: name.startsWith("max") || name === "confirm" ? "cleanup" : "analyze",
          [name]: item,
        });
        const response = await call({ method: "POST", headers: withKey(), body: sent });
        expect([sent, response.status < 500]).toEqual([sent, true]);
        expect([sent, response.status >= 400]).toEqual([sent, true]);
      }
    }
    for (const escaped of ["%00", "%ED%A0%80", "%FF", "%E2%80%AE", "%C0%AF", "%"]) {
      for (const query of [`?file=${escaped}`, `?bucket=${escaped}`, `?run=${escaped}`]) {
        expect([query, (await call({ headers: withKey() }, query)).status < 500]).toEqual([query, true]);
      }
    }
  },
);

// What storage.objects takes: any text but control characters and two code points (its own check constraint).
const storable = (name: string) =>
  name.toWellFormed().replace(/(?![\t\n\r\u007f-\u009f])[\p{Cc}\ufffe\uffff]/gu, "_");
const objectName = fc.oneof(
  text,
  fc.string({ unit: "grapheme", maxLength: 40 }),
  fc.array(
    fc.constantFrom(
      "..",
      ".",
      "",
      "a",
      "/",
      "//",
      "é",
      "é",
      "%2e%2e",
      "?token=x",
      "#",
      "&",
      "+",
      " ",
      "\\",
      "'",
      '"',
      ";--",
    ),
    { maxLength: 8 },
  ).map((parts) => parts.join("/")),
  fc.string({ unit: "binary", minLength: 200, maxLength: 250 }),
).map(storable);

/** Whether Storage opens a URL of this name: the characters of an S3 object key, and no segment that means a place. */
const opens = (name: string) => /^[\w/!\-.*'() &$@=;:+,?]+$/.test(name) && !/(^|\/)\.{1,2}(\/|$)/.test(name);

test(`${names} generated names come back unharmed`, { timeout: 300_000 }, async () => {
  const bucket = "hostile";
  const drawn = fc.sample(objectName, { numRuns: names, seed });
  // Each is an image of its own; some have the longest name that Storage takes.
  const unique = [
    ...new Set(drawn.map((name, index) =>
      storable(
        `${name}-${index}${
          index % 100 === 0 ? "x".repeat(1024 - Math.min(1000, Buffer.byteLength(name) + 12)) : ""
        }.jpg`,
      )
    )),
  ];
  await admin`insert into storage.buckets (id, name) values (${bucket}, ${bucket})`;
  await admin`insert into image_sync.settings (bucket_id, probe_size) values (${bucket}, 0)`;
  await admin`insert into storage.objects (bucket_id, name) select ${bucket}, n from unnest(${
    admin.array(unique)
  }::text[]) as n`;
  const response = await call({
    method: "POST",
    headers: withKey({ prefer: "wait=100" }),
    body: JSON.stringify({ bucket }),
  });
  const run = await response.json();
  // Hidden files are left out; what Storage opens no URL of has a record and none.
  const images = unique.filter((name) => !/(^|\/)\./.test(name));
  expect(images.length).toBeLessThan(unique.length);
  expect(run).toMatchObject({ balanced: true, totals: { listed: unique.length, inserted: images.length } });
  expect(["succeeded", "partial"]).toContain(run.state);
  const rows = await admin<
    { file_name: string; signed_url: string | null }[]
  >`select file_name, signed_url from public.part_images where bucket_id = ${bucket}`;
  expect(new Set(rows.map((row) => row.file_name))).toEqual(new Set(images));
  // A URL shows the path that it was made for, to every parser of URLs.
  const wrong = rows.filter(({ file_name: name, signed_url: url }) => {
    if (url === null) return opens(name) && run.state === "succeeded";
    const path = new URL(url).pathname.replace(`/storage/v1/object/sign/${bucket}/`, "");
    return path.split("/").map(decodeURIComponent).join("/") !== name;
  });
  expect(wrong.slice(0, 5)).toEqual([]);
  const asked = fc.sample(fc.constantFrom(...unique), { numRuns: 200, seed });
  for (const name of asked) {
    const answer = await call({ headers: withKey() }, `?${new URLSearchParams({ bucket, file: name })}`);
    expect(await answer.json()).toMatchObject({ file_name: name });
  }
  const report = await (await call({ headers: withKey() }, `?bucket=${bucket}`)).text();
  expect(report).not.toMatch(/token=ey|sb_secret_/);
  const samples = z.object({ findings: z.array(z.object({ samples: z.array(z.string()) })) }).parse(
    JSON.parse(report),
  );
  expect(samples.findings.length).toBeGreaterThan(0);
});

test("neither keys nor tokens stand in the log", () => {
  const log = stack.log.filter((line) => line.startsWith("function:")).join("\n");
  expect(log).toContain("worker_ended");
  for (const secret of [stack.secretKey, stack.scheduleKey, "token=ey"]) expect(log).not.toContain(secret);
});
