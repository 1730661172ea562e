/** The schedule's calls carry no key: what a token is good for, and what everybody who can read the queue is not. */
import { createHash, randomBytes } from "node:crypto";
import pLimit from "p-limit";
import postgres, { type Sql } from "postgres";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { createBucket, numberedNames, openRun, waitForEnd } from "../sync/support/lab.ts";
import { control, counting, type LocalLab, openLocalLab } from "../sync/support/local_lab.ts";

let lab: LocalLab;
let admin: Sql;
beforeAll(async () => {
  lab = await openLocalLab();
  admin = postgres(lab.stack.adminDbUrl, { max: 2, onnotice: () => {} });
});
afterAll(async () => {
  await admin?.end({ timeout: 5 });
  await lab?.close();
});

/** Calls the function without a key. */
async function callWithout(body: unknown, init: RequestInit = {}) {
  const response = await fetch(`${lab.stack.url}/functions/v1/image-sync`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: typeof body === "string" ? body : JSON.stringify(body),
    ...init,
  });
  const text = await response.text();
  return { status: response.status, body: text === "" ? null : JSON.parse(text) };
}

/** Queues a call and reads its body from the queue, as any role could, before it is sent: the transaction is not committed. */
async function readQueued(run: string): Promise<{ run: string; token: string }> {
  let queued: { body: Uint8Array; headers: unknown; url: string } | undefined;
  await admin.begin(async (sql) => {
    await sql`select image_sync.kick(${run})`;
    [queued] = await sql<{ body: Uint8Array; headers: unknown; url: string }[]>`
      delete from net.http_request_queue where convert_from(body, 'UTF8') like ${`%${run}%`} returning body, headers, url`;
  });
  expect(queued?.headers).toEqual({ "Content-Type": "application/json" });
  expect(queued?.url).toBe(`${lab.stack.url}/functions/v1/image-sync`);
  const text = new TextDecoder().decode(queued?.body);
  expect(text).not.toContain("sb_secret");
  return JSON.parse(text);
}

const openOne = async () => {
  const bucket = await createBucket(lab, { objects: numberedNames(3) });
  return await openRun(lab, bucket);
};

describe("a token from the queue", () => {
  test("wakes its run, once, and says nothing of it", async () => {
    const { id } = await openOne();
    const body = await readQueued(id);
    expect(body.token).toMatch(/^[0-9a-f]{64}$/);
    expect(await callWithout(body)).toEqual({ status: 202, body: { id, state: "open" } });
    expect(await callWithout(body)).toMatchObject({ status: 401, body: { code: "unauthorized" } });
    expect(await waitForEnd(lab, id)).toMatchObject({ state: "succeeded", totals: { signed: 3 } });
  });

  test("is good for nothing else", async () => {
    const { id } = await openOne();
    const other = await openOne();
    const { token } = await readQueued(id);
    for (
      const body of [
        { run: other.id, token },
        { run: id, token, mode: "cleanup" },
        { mode: "sync", token },
        { token },
        { run: id },
        [{ run: id, token }],
        { run: id, token: token.toUpperCase() },
        { run: id, token: ` ${token}` },
      ]
    ) {
      expect((await callWithout(body)).status, JSON.stringify(body)).toBe(401);
    }
    for (const method of ["GET", "DELETE"]) {
      const response = await fetch(`${lab.stack.url}/functions/v1/image-sync?run=${id}&token=${token}`, {
        method,
      });
      expect(response.status).toBe(401);
      await response.body?.cancel();
    }
    expect((await callWithout({ run: id, token })).status).toBe(202);
    await waitForEnd(lab, id);
    await lab.database.cancel(other.id);
  });

  test("of a run that is finished is none", async () => {
    const { id } = await openOne();
    const body = await readQueued(id);
    await lab.database.cancel(id);
    expect((await callWithout(body)).status).toBe(401);
  });

  test("that comes after the next one is as good; one that comes after two is not", async () => {
    const { id } = await openOne();
    const [first, second, third] = [await readQueued(id), await readQueued(id), await readQueued(id)];
    expect((await callWithout(first)).status).toBe(401);
    await lab.sql`update image_sync.settings set nightly = false`;
    expect((await callWithout(third)).status).toBe(202);
    expect((await callWithout(second)).status).toBeOneOf([202, 401]);
    await waitForEnd(lab, id);
  });

  test("stands nowhere but in the queue: the run keeps its hash", async () => {
    const { id } = await openOne();
    const { token } = await readQueued(id);
    const [row] =
      await admin`select to_jsonb(r)::text as text, wake_hashes from image_sync.runs r where id = ${id}`;
    expect(row?.["text"]).not.toContain(token);
    expect(row?.["wake_hashes"]).toEqual([createHash("sha256").update(Buffer.from(token, "hex")).digest()]);
    expect(JSON.stringify(await lab.database.readRun(id))).not.toContain(token);
    await lab.database.cancel(id);
    expect(lab.stack.log.join("\n")).not.toContain(token);
  });
});

test(
  "ten thousand wrong tokens wake nothing; each costs one call of the database, and one of another shape none",
  async () => {
    // A worker of the runs before may look once more what there is for it.
    await control(lab, "POST", "/function/kill");
    const { id } = await openOne();
    // The watchdog has nothing to call for meanwhile.
    await lab.sql`update image_sync.runs set moved_at = now() + interval '1 hour' where id = ${id}`;
    const limit = pLimit(50);
    const guess = () => callWithout({ run: id, token: randomBytes(32).toString("hex") });
    const { result, counts } = await counting(
      lab,
      () => Promise.all(Array.from({ length: 10_000 }, () => limit(guess))),
    );
    expect(new Set(result.map(({ status }) => status))).toEqual(new Set([401]));
    expect(counts.rpc).toEqual({ image_sync_wake: 10_000 });
    const shapeless = await counting(lab, async () => {
      for (
        const body of [
          "",
          "{",
          "null",
          '{"run": 1}',
          "x".repeat(100_000),
          JSON.stringify({ run: id, token: "a" }),
        ]
      ) {
        expect((await callWithout(body)).status).toBe(401);
      }
    });
    expect(shapeless.counts.rpc).toEqual({});
    expect((await lab.database.readRun(id)).chunks).toBe(0);
    await lab.database.cancel(id);
  },
  120_000,
);

test("a database that was restored into another project calls the old one in vain, and its own once that has spoken", async () => {
  // The old project's function looks into its own database, which knows no such run.
  expect((await callWithout({ run: crypto.randomUUID(), token: "0".repeat(64) })).status).toBe(401);
  await admin`update image_sync.project set url = 'http://127.0.0.1:9'`;
  const bucket = await createBucket(lab, { objects: numberedNames(2) });
  const response = await lab.call({
    method: "POST",
    headers: { apikey: lab.stack.secretKey, prefer: "wait=30" },
    body: JSON.stringify({ bucket }),
  });
  expect(await response.json()).toMatchObject({ state: "succeeded" });
  await expect.poll(() => admin`select url from image_sync.project`).toEqual([{ url: lab.stack.url }]);
});

test("of two functions that announce themselves the last one is called", async () => {
  const announce = (url: string) => lab.sql`select public.image_sync_announce(${url}, '1.0.0')`;
  await announce("https://one.example.com");
  await announce("https://two.example.com");
  const { id } = await openOne();
  await admin.begin(async (sql) => {
    await sql`select image_sync.kick(${id})`;
    expect(await sql`delete from net.http_request_queue returning url`).toMatchObject([
      { url: "https://two.example.com/functions/v1/image-sync" },
    ]);
  });
  await announce(lab.stack.url);
  await lab.database.cancel(id);
});
