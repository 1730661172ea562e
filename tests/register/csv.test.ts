/** register.csv: what it holds, who may read it, and what it costs. */
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { z } from "zod";
import { problemSchema } from "../../supabase/functions/image-sync/contract.ts";
import { createBucket } from "../sync/support/lab.ts";
import { counting, type LocalLab, openLocalLab } from "../sync/support/local_lab.ts";
import { readCsv } from "./support/readers.ts";
import { createMixedBucket, createRegister, hostileNumbers } from "./support/scene.ts";

let lab: LocalLab;
beforeAll(async () => {
  lab = await openLocalLab();
});
afterAll(() => lab?.close());

const path = "/functions/v1/image-sync/register.csv";
const ask = (query: string, headers: Record<string, string> = {}, method = "GET") =>
  fetch(`${lab.stack.url}${path}${query}`, { method, headers });
const withSecretKey = (query: string, headers: Record<string, string> = {}) =>
  ask(query, { apikey: lab.stack.secretKey, ...headers });
const basic = (key: string, user = "excel") => ({
  authorization: `Basic ${Buffer.from(`${user}:${key}`).toString("base64")}`,
});
const bytesOf = async (response: Response) => new Uint8Array(await response.arrayBuffer());

async function rowsOf(response: Response): Promise<readonly (readonly string[])[]> {
  expect(response.status).toBe(200);
  const [header, ...rows] = await readCsv(await bytesOf(response));
  expect(header).toEqual(["part_number", "file_name", "signed_url", "signed_url_expires_at"]);
  return rows;
}

async function addReader(bucket: string, name = `reader-${crypto.randomUUID().slice(0, 8)}`) {
  const response = await lab.call({
    query: "/readers",
    method: "POST",
    body: JSON.stringify({ name, bucket }),
  });
  expect(response.status).toBe(201);
  expect(response.headers.get("cache-control")).toBe("no-store");
  return z.object({ name: z.string(), key: z.string() }).parse(await response.json());
}

const revoke = (name: string) => lab.call({ query: `/readers?name=${name}`, method: "DELETE" });

async function problemOf(response: Response): Promise<{ status: number; code: string }> {
  const { status, code } = problemSchema.parse(await response.json());
  expect(status).toBe(response.status);
  return { status, code };
}

describe("what it holds", () => {
  test("one row for each part with a URL that works, and each URL opens its image", async () => {
    const { bucket, shown } = await createMixedBucket(lab);
    const rows = await rowsOf(await withSecretKey(`?bucket=${bucket}`));
    expect(rows.map(([, file]) => file)).toEqual(shown);
    for (const [, , url] of rows) {
      const image = await fetch(url ?? "");
      expect([image.status, (await image.arrayBuffer()).byteLength]).toEqual([200, 4]);
    }
    const table = await lab.sql`
      select part_number, file_name, signed_url, to_char(signed_url_expires_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') as expires
      from public.part_images where bucket_id = ${bucket} and file_name = any (${[...shown]}::text[])`;
    expect([...table].map((row) => Object.values(row)).toSorted()).toEqual(rows.toSorted());
  });

  test("it is RFC 4180 in UTF-8 with a byte order mark, and says how long it may be kept", async () => {
    const bucket = await createRegister(lab, ["1"]);
    const response = await withSecretKey(`?bucket=${bucket}`);
    expect(response.headers.get("content-type")).toBe("text/csv; charset=utf-8; header=present");
    expect(response.headers.get("cache-control")).toBe("private, no-cache");
    const bytes = await bytesOf(response);
    expect([...bytes.slice(0, 3)]).toEqual([0xef, 0xbb, 0xbf]);
    const text = new TextDecoder().decode(bytes);
    expect(text).toMatch(
      /^part_number,file_name,signed_url,signed_url_expires_at\r\n"1","0\/1\.jpg","http[^"\r\n]+","\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"\r\n$/,
    );
  });

  test("an empty register is its header", async () => {
    expect(await rowsOf(await withSecretKey(`?bucket=${await createBucket(lab)}`))).toEqual([]);
  });

  test("what a spreadsheet would run begins with an apostrophe; text=raw leaves everything as it is", async () => {
    const bucket = await createRegister(lab, hostileNumbers);
    const raw = await rowsOf(await withSecretKey(`?bucket=${bucket}&text=raw`));
    expect(raw.map(([part]) => part).toSorted()).toEqual(hostileNumbers.toSorted());
    const escaped = await rowsOf(await withSecretKey(`?bucket=${bucket}`));
    const runs = hostileNumbers.slice(0, 10);
    expect(escaped.map(([part]) => part)).toEqual(
      raw.map(([part]) => runs.includes(part ?? "") ? `'${part}` : part),
    );
    const cells = escaped.flatMap(([part, file]) => [part ?? "", file ?? ""]);
    expect(cells.filter((cell) => /^[\s\p{Cc}\p{Cf}]*[=+\-@＝＋－＠]/u.test(cell))).toEqual([]);
    // All else is the same.
    expect(escaped.map(([, , ...rest]) => rest)).toEqual(raw.map(([, , ...rest]) => rest));
  });

  test("look-ups of 1,000 part numbers give what SQL gives", async () => {
    const numbers = Array.from({ length: 4000 }, (_, place) => `${place % 3 === 0 ? "-" : ""}Teil ${place}`);
    const bucket = await createRegister(lab, numbers);
    const rows = await rowsOf(await withSecretKey(`?bucket=${bucket}&text=raw`));
    expect(rows).toHaveLength(4000);
    const escaped = await rowsOf(await withSecretKey(`?bucket=${bucket}`));
    const lookUp = (rows: readonly (readonly string[])[]) =>
      new Map(rows.map(([part, , url]) => [part?.toLowerCase(), url]));
    const [rawUrls, escapedUrls] = [lookUp(rows), lookUp(escaped)];
    const wanted = numbers.filter((_, place) => place % 4 === 0);
    const found = await lab.sql<{ part_number: string; signed_url: string }[]>`
      select part_number, signed_url from public.part_images
      where bucket_id = ${bucket} and part_number = any (${wanted}::text[])`;
    expect(found).toHaveLength(1000);
    for (const { part_number: part, signed_url: url } of found) {
      expect(url).toHaveLength(400);
      expect(rawUrls.get(part.toLowerCase())).toBe(url);
      expect(escapedUrls.get((part.startsWith("-") ? `'${part}` : part).toLowerCase())).toBe(url);
    }
  }, 120_000);

  test("a second bucket changes nothing for whoever names none", async () => {
    const bucket = await createRegister(lab, ["of the register"]);
    await lab.sql`update image_sync.settings set register = bucket_id = ${bucket}`;
    const before = await bytesOf(await withSecretKey(""));
    await createRegister(lab, ["of another one"]);
    expect(await bytesOf(await withSecretKey(""))).toEqual(before);
    expect((await readCsv(before)).map(([part]) => part)).toEqual(["part_number", "of the register"]);
  });
});

describe("pages", () => {
  test("each says where the next one is, and together they hold every row once, in order", async () => {
    const numbers = Array.from({ length: 25 }, (_, place) => `ü ${String(place).padStart(3, "0")}/&?`);
    const bucket = await createRegister(lab, numbers);
    const seen: (string | undefined)[] = [];
    let next: string | undefined = `${path}?bucket=${bucket}&limit=10`;
    const sizes: number[] = [];
    while (next !== undefined) {
      const response: Response = await fetch(new URL(next, lab.stack.url), {
        headers: { apikey: lab.stack.secretKey },
      });
      next = /^<([^>]*register\.csv\?[^>]*after=[^>]*)>; rel="next"$/.exec(response.headers.get("link") ?? "")
        ?.[1];
      const rows = await rowsOf(response);
      sizes.push(rows.length);
      seen.push(...rows.map(([part]) => part));
    }
    expect(sizes).toEqual([10, 10, 5]);
    expect(seen).toEqual(numbers);
  });

  test("records that show nothing, however many, are passed over", async () => {
    const numbers = Array.from({ length: 12_000 }, (_, place) => String(place).padStart(6, "0"));
    const bucket = await createRegister(lab, numbers);
    await lab.sql`
      update public.part_images set signed_url_expires_at = now() - interval '1 day'
      where bucket_id = ${bucket} and part_number not in ('000001', '011998')`;
    const whole = await withSecretKey(`?bucket=${bucket}`);
    expect((await rowsOf(whole)).map(([part]) => part)).toEqual(["000001", "011998"]);
    const first = await withSecretKey(`?bucket=${bucket}&limit=1`);
    expect(first.headers.get("link")).toContain("after=");
    expect(await rowsOf(first)).toHaveLength(1);
    const both = await withSecretKey(`?bucket=${bucket}&limit=2`);
    expect(both.headers.get("link")).toBeNull();
    expect(await rowsOf(both)).toHaveLength(2);
  }, 120_000);

  test("a page that is full and the last one has no next one", async () => {
    const bucket = await createRegister(lab, ["1", "2"]);
    const response = await withSecretKey(`?bucket=${bucket}&limit=2`);
    expect(response.headers.get("link")).toBeNull();
    expect(await rowsOf(response)).toHaveLength(2);
  });

  test.each([
    ["a limit of none", "?limit=0"],
    ["a limit beyond what one answer holds", "?limit=100001"],
    ["a cursor that is none", "?after=*"],
    ["half a character", "?after=4A"],
    ["a text of another kind", "?text=html"],
    ["a question that there is not", "?colour=red"],
  ])("%s is refused", async (_, query) => {
    expect(await problemOf(await withSecretKey(query))).toEqual({ status: 400, code: "invalid_query" });
  });
});

describe("side by side", () => {
  test("forty downloads with one key are two, and the others are told when to ask again", async () => {
    const bucket = await createRegister(lab, Array.from({ length: 12_000 }, (_, place) => `part ${place}`));
    const { key } = await addReader(bucket);
    const answers = await Promise.all(Array.from({ length: 40 }, () => ask("", basic(key))));
    const sent = answers.filter(({ status }) => status === 200);
    const refused = answers.filter(({ status }) => status === 429);
    expect([sent.length, refused.length]).toEqual([2, 38]);
    expect(refused[0]?.headers.get("retry-after")).toBe("5");
    // Somebody else's download, and everything else, go on meanwhile.
    const other = await withSecretKey(`?bucket=${bucket}`);
    expect((await lab.call({ query: `?bucket=${bucket}` })).status).toBe(200);
    for (const answer of [...sent, other]) expect(await rowsOf(answer)).toHaveLength(12_000);
    for (const answer of refused) expect((await problemOf(answer)).code).toBe("too_many_downloads");
    expect(await rowsOf(await ask("", basic(key)))).toHaveLength(12_000);
  }, 120_000);
});

describe("asked again", () => {
  test("it answers 304 while nothing has changed, and other rows have another tag", async () => {
    const bucket = await createRegister(lab, ["1", "2"]);
    const tagOf = async () => (await withSecretKey(`?bucket=${bucket}`)).headers.get("etag") ?? "";
    const etag = await tagOf();
    expect(etag).toMatch(/^W\/"[0-9a-f]{24}"$/);
    const again = await withSecretKey(`?bucket=${bucket}`, { "if-none-match": `"other", ${etag}` });
    expect([again.status, await again.text()]).toEqual([304, ""]);
    expect((await withSecretKey(`?bucket=${bucket}&text=raw`, { "if-none-match": etag })).status).toBe(200);
    const changes = ["part_number = 'three'", "signed_url_expires_at = now()"];
    const tags = [etag];
    for (const change of changes) {
      await lab.sql.unsafe(
        `update public.part_images set ${change} where bucket_id = $1 and file_name = '1/2.jpg'`,
        [bucket],
      );
      tags.push(await tagOf());
    }
    expect(new Set(tags).size).toBe(3);
  });

  test("HEAD answers as GET does, without the rows", async () => {
    const bucket = await createRegister(lab, ["1"]);
    const { key } = await addReader(bucket);
    for (const headers of [{ apikey: lab.stack.secretKey }, basic(key)]) {
      const response = await ask(`?bucket=${bucket}`, headers, "HEAD");
      expect([response.status, await response.text()]).toEqual([200, ""]);
      expect(response.headers.get("etag")).toBe(
        (await withSecretKey(`?bucket=${bucket}`)).headers.get("etag"),
      );
    }
  });
});

describe("a reader's key", () => {
  test("opens the register of its bucket as the password of HTTP Basic, whatever the user is called", async () => {
    const bucket = await createRegister(lab, ["1", "2"]);
    const { key } = await addReader(bucket);
    expect(key).toMatch(/^isr_[A-Za-z0-9_-]{43}$/);
    for (const user of ["excel", "", "ü b"]) {
      expect(await rowsOf(await ask("", basic(key, user)))).toHaveLength(2);
    }
    expect(await rowsOf(await ask(`?bucket=${bucket}&limit=1`, basic(key)))).toHaveLength(1);
  });

  test("is kept as its hash alone", async () => {
    const { name, key } = await addReader(await createBucket(lab));
    const [row] = await lab.sql<{ text: string; hash: string }[]>`
      select r::text as text, encode(r.key_hash, 'hex') as hash from image_sync.readers r where name = ${name}`;
    const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(key));
    expect(row?.hash).toBe(Buffer.from(digest).toString("hex"));
    expect(row?.text).not.toContain(key.slice(4));
  });

  test("opens no other bucket", async () => {
    const { key } = await addReader(await createBucket(lab));
    const other = await createRegister(lab, ["secret"]);
    expect(await problemOf(await ask(`?bucket=${other}`, basic(key)))).toEqual({
      status: 403,
      code: "wrong_bucket",
    });
  });

  test("opens no other address, and nothing but reading", async () => {
    const bucket = await createBucket(lab);
    const { key } = await addReader(bucket);
    const asked = [
      ["GET", ""],
      ["POST", ""],
      ["DELETE", `?run=${crypto.randomUUID()}`],
      ["GET", "/buckets"],
      ["GET", "/runs"],
      ["GET", "/readers"],
      ["POST", "/readers"],
      ["GET", "/register"],
      ["POST", "/register.csv"],
      ["PUT", "/register.csv"],
      ["DELETE", "/register.csv"],
    ] as const;
    for (const [method, query] of asked) {
      const url = `${lab.stack.url}/functions/v1/image-sync${query}`;
      for (const headers of [basic(key), { authorization: `Bearer ${key}` }, { apikey: key }]) {
        const response = await fetch(url, { method, headers });
        expect([method, query, response.status]).toEqual([method, query, 401]);
        await response.body?.cancel();
      }
    }
    for (const headers of [{ apikey: key }, { authorization: `Bearer ${key}` }]) {
      expect((await ask("", headers)).status).toBe(401);
    }
  });

  test("says when it was used last, and writes that once an hour", async () => {
    const bucket = await createBucket(lab);
    const { name, key } = await addReader(bucket);
    const read = async () => {
      const [row] = await lab.sql<{ at: Date | null; version: string }[]>`
        select last_used_at as at, xmin::text as version from image_sync.readers where name = ${name}`;
      return row;
    };
    expect((await read())?.at).toBeNull();
    await ask("", basic(key));
    const first = await read();
    expect(first?.at).toBeInstanceOf(Date);
    await Promise.all([1, 2, 3].map(() => ask("", basic(key))));
    expect(await read()).toEqual(first);
    await lab
      .sql`update image_sync.readers set last_used_at = now() - interval '61 minutes' where name = ${name}`;
    await ask("", basic(key));
    expect((await read())?.at?.getTime()).toBeGreaterThanOrEqual(first?.at?.getTime() ?? Infinity);
    const list = await (await lab.call({ query: "/readers" })).json();
    expect(JSON.stringify(list)).not.toContain(key.slice(4));
    expect(list.readers.find((reader: { name: string }) => reader.name === name)).toMatchObject({
      kind: "https",
      bucket_id: bucket,
      last_used_at: expect.any(String),
    });
  });

  test("that is held by somebody else's transaction opens all the same", async () => {
    const { name, key } = await addReader(await createBucket(lab));
    await lab.sql.begin(async (sql) => {
      await sql`select from image_sync.readers where name = ${name} for update`;
      expect((await ask("", basic(key))).status).toBe(200);
    });
  });

  test("opens nothing once it is revoked; a download that runs is sent to its end", async () => {
    const bucket = await createRegister(lab, Array.from({ length: 12_000 }, (_, place) => `part ${place}`));
    const { name, key } = await addReader(bucket);
    const running = await ask("", basic(key));
    expect(await (await revoke(name)).json()).toMatchObject({ name, revoked: true });
    expect(await problemOf(await ask("", basic(key)))).toEqual({ status: 401, code: "unauthorized" });
    expect(await rowsOf(running)).toHaveLength(12_000);
    expect(await problemOf(await revoke(name))).toEqual({ status: 404, code: "unknown_reader" });
  }, 120_000);

  test("is not made twice for a name, nor for a bucket without settings, nor for a name of another kind", async () => {
    const bucket = await createBucket(lab);
    const { name } = await addReader(bucket);
    const add = (body: object) => lab.call({ query: "/readers", method: "POST", body: JSON.stringify(body) });
    expect(await problemOf(await add({ name, bucket }))).toEqual({ status: 409, code: "reader_exists" });
    expect(await problemOf(await add({ name: "new", bucket: "none" }))).toEqual({
      status: 404,
      code: "unknown_bucket",
    });
    expect(await problemOf(await add({ name: "New One", bucket }))).toEqual({
      status: 400,
      code: "invalid_body",
    });
  });

  test("stands in no log line, also where somebody sends it the wrong way", async () => {
    const { key } = await addReader(await createBucket(lab));
    await ask(`?key=${key}`, basic(key));
    await fetch(`${lab.stack.url}/functions/v1/image-sync/${key}`, {
      headers: { apikey: lab.stack.secretKey },
    });
    expect(lab.stack.log.join("\n")).not.toContain(key.slice(4));
  });
});

describe("nobody else", () => {
  test("gets in, and is told how to", async () => {
    const attempts: readonly Record<string, string>[] = [
      {},
      { apikey: lab.stack.publishableKey },
      { apikey: "" },
      { authorization: "Basic" },
      { authorization: "Basic !!!" },
      { authorization: `Basic ${"A".repeat(10_000)}` },
      basic(""),
      basic(lab.stack.secretKey),
      basic(`isr_${"A".repeat(43)}`),
      { authorization: `Bearer ${lab.stack.secretKey}` },
    ];
    for (const headers of attempts) {
      const response = await ask("", headers);
      expect(response.headers.get("www-authenticate")).toBe(
        'Basic realm="image-sync register", charset="UTF-8"',
      );
      expect(response.headers.get("content-type")).toBe("application/problem+json");
      expect(await problemOf(response)).toEqual({ status: 401, code: "unauthorized" });
    }
  });

  test("10,000 guesses cost one look-up each, and what is no key costs none", async () => {
    const guess = (headers: Record<string, string>) => ask("", headers).then((r) => r.body?.cancel());
    const many = async (count: number, headers: () => Record<string, string>) => {
      for (let done = 0; done < count; done += 100) {
        await Promise.all(Array.from({ length: Math.min(100, count - done) }, () => guess(headers())));
      }
    };
    const key = () =>
      basic(`isr_${Buffer.from(crypto.getRandomValues(new Uint8Array(32))).toString("base64url")}`);
    const wrong = await counting(lab, () => many(10_000, key));
    expect(wrong.counts.rpc).toEqual({ image_sync_open_register: 10_000 });
    const shapeless = await counting(lab, () => many(1_000, () => basic("hunter2")));
    expect(shapeless.counts.rpc).toEqual({});
    const plan = await lab.sql.begin(async (sql) => {
      await sql`set local enable_seqscan = off`;
      return await sql`explain select r.* from image_sync.readers r where r.key_hash = '\\x00'`;
    });
    expect(JSON.stringify(plan)).toContain("readers_key_hash_key");
  }, 240_000);

  test("with a secret key other methods are told which there are", async () => {
    for (const method of ["POST", "PUT", "PATCH", "DELETE"]) {
      const response = await ask("", { apikey: lab.stack.secretKey }, method);
      expect([response.status, response.headers.get("allow")]).toEqual([405, "GET, HEAD, OPTIONS"]);
      await response.body?.cancel();
    }
  });

  test("a bucket without settings is not known", async () => {
    expect(await problemOf(await withSecretKey("?bucket=none"))).toEqual({
      status: 404,
      code: "unknown_bucket",
    });
  });
});
