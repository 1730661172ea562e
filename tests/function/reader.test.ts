import pLimit from "p-limit";
import { describe, expect, test } from "vitest";
import { limitOpen, openUrls, probe } from "../../supabase/functions/image-sync/reader.ts";

const base = "https://ref.example/storage/v1/object/sign/part-images/";
const jpeg = new Uint8Array([0xff, 0xd8, 0xff, 0xe0, 0, 16, 0x4a, 0x46, 0x49, 0x46, 0, 1, 1, 0]);
const answerOf = (body: BodyInit | null, status = 200, contentType: string | null = "image/jpeg") => () =>
  Promise.resolve(
    new Response(body, { status, headers: contentType === null ? {} : { "Content-Type": contentType } }),
  );
const image = answerOf(jpeg);

/** Probes one URL; what was fetched for it. */
async function probeUrl(url: string, answer: () => Promise<Response> = image) {
  const fetched: { url: string; redirect: string | undefined }[] = [];
  const result = await probe({ targets: [{ name: "a.jpg", url }], base }, (input, init) => {
    fetched.push({ url: String(input), redirect: init?.redirect });
    return answer();
  });
  return { fetched, result };
}

test("a URL of the bucket is fetched once, and no redirect followed", async () => {
  const { fetched, result } = await probeUrl(`${base}a.jpg?token=x`);
  expect(fetched).toEqual([{ url: `${base}a.jpg?token=x`, redirect: "manual" }]);
  expect(result).toEqual({ checked: 1, ok: 1, failures: [] });
});

test.each([
  "http://127.0.0.1/internal",
  "http://ref.example/storage/v1/object/sign/part-images/a.jpg",
  "https://ref.example:8443/storage/v1/object/sign/part-images/a.jpg",
  "https://ref.example.evil.example/storage/v1/object/sign/part-images/a.jpg",
  "https://ref.example@evil.example/storage/v1/object/sign/part-images/a.jpg",
  "https://user:secret@ref.example/storage/v1/object/sign/part-images/a.jpg",
  "https://ref.example/storage/v1/object/sign/other/a.jpg",
  "https://ref.example/storage/v1/object/sign/part-images/../other/a.jpg",
  "https://ref.example/storage/v1/object/sign/part-images/%2e%2e/%2e%2e/list/x",
  "https://ref.example/storage/v1/object/sign/part-images\\..\\other\\a.jpg",
  "https://ref.example/rest/v1/rpc/image_sync_report",
  "//evil.example/a.jpg",
  "file:///etc/passwd",
  "javascript:alert(1)",
  "",
])("a URL of another address is not fetched: %s", async (url) => {
  const { fetched, result } = await probeUrl(url);
  expect(fetched).toEqual([]);
  expect(result.failures).toEqual([{
    name: "a.jpg",
    code: "url_rejected",
    status: null,
    content_type: null,
    error: "foreign address",
  }]);
});

test("a redirect shows no image", async () => {
  const { result } = await probeUrl(
    `${base}a.jpg`,
    () => Promise.resolve(new Response(null, { status: 302, headers: { Location: "http://127.0.0.1/" } })),
  );
  expect(result.failures).toMatchObject([{ code: "unreachable", status: 302 }]);
});

const refusal = (statusCode: string, error: string, status = 400) =>
  answerOf(JSON.stringify({ statusCode, error, message: "words" }), status, "application/json");
const s3Missing = JSON.stringify({ statusCode: "404", error: "Not found", code: "NoSuchKey" });
const deletedWithCode = JSON.stringify({ statusCode: "404", error: "not_found", code: "NoSuchKey" });
const databaseError = JSON.stringify({ statusCode: "500", error: "DatabaseError", code: "DatabaseError" });
const text = (words: string) => new TextEncoder().encode(words);

test.each<[string, () => Promise<Response>, string | null]>([
  ["an image", image, null],
  ["the first bytes of one", answerOf(jpeg, 206), null],
  ["a drawing", answerOf(text(`<?xml version="1.0"?>\n<svg xmlns="x"/>`), 200, "image/svg+xml"), null],
  ["a page that says it is an image", answerOf(text("<!doctype html><p>"), 200), "not_an_image"],
  ["a document", answerOf(text("%PDF-1.7"), 200, "application/pdf"), "not_an_image"],
  [
    "one that was uploaded without its type",
    answerOf(jpeg, 200, "application/octet-stream"),
    "wrong_content_type",
  ],
  ["one without any type", answerOf(jpeg, 200, null), "wrong_content_type"],
  ["nothing", answerOf(null), "file_lost"],
  ["no first byte", refusal("416", "InvalidRange", 416), "file_lost"],
  ["no first byte, in S3's words", refusal("416", "The requested range is not satisfiable"), "file_lost"],
  ["a row without a file", answerOf(s3Missing, 400, "application/json"), "file_lost"],
  ["the same on a file system", refusal("500", "Internal", 500), "file_lost"],
  ["a file that was deleted", refusal("404", "not_found"), "file_gone"],
  ["the same with a code", answerOf(deletedWithCode, 400, "application/json"), "file_gone"],
  ["a token of another key", refusal("400", "InvalidJWT"), "url_rejected"],
  ["a token of another file", refusal("400", "InvalidSignature"), "url_rejected"],
  ["a name that Storage does not open", refusal("400", "InvalidKey"), "url_rejected"],
  ["a gateway that says no", answerOf("no", 403, "text/plain"), "unreachable"],
  [
    "a page in place of the image",
    answerOf(text("<!doctype html><p>Sign in"), 200, "text/html"),
    "unreachable",
  ],
  ["a page in place of an error", answerOf("<h1>Not here</h1>", 404, "text/html"), "unreachable"],
  ["a gateway that knows no such path", answerOf(`{"message":"no Route matched"}`, 404), "unreachable"],
  ["an error of Storage that says nothing of the file", refusal("400", "TenantNotFound"), "unreachable"],
  ["a database that fails Storage", answerOf(databaseError, 500, "application/json"), "unreachable"],
  [
    "a code that Storage might have, from somebody else",
    answerOf(`{"error":"InvalidJWT"}`, 401),
    "unreachable",
  ],
  ["a Storage that is away", answerOf("away", 503, "text/plain"), "unreachable"],
  ["a database that is slow", refusal("544", "DatabaseTimeout", 544), "unreachable"],
  ["too many requests", refusal("429", "ResourceLocked"), "unreachable"],
  ["no answer", () => Promise.reject(new TypeError("fetch failed")), "unreachable"],
])("%s is told by its cause", async (_what, answer, code) => {
  const { result } = await probeUrl(`${base}a.jpg?token=x`, answer);
  expect(result.failures.map((failure) => failure.code)).toEqual(code === null ? [] : [code]);
  expect(JSON.stringify(result)).not.toContain("token=");
});

test("a Storage that stumbled once is asked again", async () => {
  const answers = [answerOf("away", 503, "text/plain"), image];
  const { result } = await probeUrl(`${base}a.jpg`, () => (answers.shift() ?? image)());
  expect(result.failures).toEqual([]);
});

describe("where nothing reaches Storage", () => {
  const blocked = answerOf("<html><style>p{}</style><h1>Blocked</h1> by\n a firewall", 403, "text/html");
  const targets = Array.from(
    { length: 500 },
    (_, place) => ({ name: `${place}`, url: `${base}${place}?token=x` }),
  );

  test("no more is opened, and one failure says what answered and what that means", async () => {
    let sent = 0;
    const sight = await openUrls({ targets, base }, () => {
      sent++;
      return blocked();
    });
    expect(sight.shown).toEqual([]);
    expect(sight.failures).toEqual([sight.end]);
    expect(sight.end?.error).toBe(
      'HTTP 403: "Blocked by a firewall". 403 usually means that a firewall or proxy in front of the project blocks the request: allow it there',
    );
    expect(sent).toBeLessThanOrEqual(30);
  });

  test("a moment that passes ends nothing", async () => {
    let sent = 0;
    const sight = await openUrls({ targets, base }, () => (++sent <= 10 ? blocked() : image()));
    expect(sight).toMatchObject({ failures: [], end: null });
    expect(sight.shown).toHaveLength(500);
  });

  test("one file alone that is kept from us is named, and the others are opened", async () => {
    const sight = await openUrls(
      { targets, base, rate: 150 },
      (url) => String(url).includes("/7?") ? blocked() : image(),
    );
    expect(sight).toMatchObject({ end: null, failures: [{ name: "7", code: "unreachable", status: 403 }] });
    expect(sight.shown).toHaveLength(499);
  });

  test("what was seen before is kept", async () => {
    let sent = 0;
    const sight = await openUrls(
      { targets, base, limit: pLimit(1) },
      () => (++sent <= 40 ? image() : blocked()),
    );
    expect(sight.shown).toHaveLength(40);
    expect(sight.end).toMatchObject({ name: "40", code: "unreachable" });
  });

  test("nothing of a key or a token is quoted", async () => {
    const words = `{"message":"sb_secret_abcdef at ?token=eyJh.eyJi.c ${"long ".repeat(200)}"}`;
    const { end } = await openUrls({ targets, base }, answerOf(words, 402, "application/json"));
    expect(end?.error).toMatch(
      /^HTTP 402: ".*…"\. 402 usually means that the organisation has exceeded its quota/,
    );
    expect(end?.error?.length).toBeLessThan(400);
    expect(end?.error).not.toMatch(/abcdef|eyJ/);
  });
});

test("no more than its first bytes are fetched of an endless file", async () => {
  let pulled = 0;
  const endless = new ReadableStream({
    pull(controller) {
      pulled++;
      controller.enqueue(pulled === 1 ? jpeg : new Uint8Array(1024));
    },
  });
  const { result } = await probeUrl(`${base}a.jpg`, answerOf(endless));
  expect(result.ok).toBe(1);
  expect(pulled).toBeLessThan(10);
});

test("URLs are opened no faster than the rate, and each has a place in the result", async () => {
  const targets = Array.from({ length: 30 }, (_, index) => ({ name: `${index}`, url: `${base}${index}` }));
  const started = Date.now();
  const sight = await openUrls({ targets, base, rate: 100 }, image);
  expect(Date.now() - started).toBeGreaterThanOrEqual(280);
  expect(sight).toEqual({ shown: targets.map(({ name }) => name), failures: [], end: null });
});

test("what cannot be opened before the deadline is said to be so", async () => {
  const targets = Array.from({ length: 30 }, (_, index) => ({ name: `${index}`, url: `${base}${index}` }));
  const { shown, failures } = await openUrls({ targets, base, rate: 100, deadlineMs: 100 }, image);
  expect(shown.length + failures.length).toBe(30);
  expect(failures.length).toBeGreaterThan(10);
  expect(failures.at(-1)).toMatchObject({ code: "unreachable", error: "not opened in time" });
});

test("requests that share a limit open no more at once than one does", async () => {
  const targets = Array.from({ length: 40 }, (_, index) => ({ name: `${index}`, url: `${base}${index}` }));
  const seen = { now: 0, most: 0 };
  const slow: typeof fetch = async () => {
    seen.most = Math.max(seen.most, ++seen.now);
    await new Promise((resolve) => setTimeout(resolve, 2));
    seen.now--;
    return await image();
  };
  const limit = limitOpen();
  const sights = await Promise.all([1, 2].map(() => openUrls({ targets, base, limit }, slow)));
  expect(seen.most).toBe(10);
  expect(sights.map(({ shown }) => shown.length)).toEqual([40, 40]);
});

// Of 40 that take 200 ms, ten at once, the last ten take less than 250; of as many that take 5 none take longer.
test.each([[200, 40, 28, 30], [5, 40, 9, 11], [200, 3, 2, 3], [200, 1, 0, 1]])(
  "of URLs of %i ms and %i of them the end is near once, when %i to %i have had their turn",
  async (ms, count, soonest, latest) => {
    const targets = Array.from(
      { length: count },
      (_, index) => ({ name: `${index}`, url: `${base}${index}` }),
    );
    let begun = 0;
    const slow: typeof fetch = async () => {
      begun++;
      await new Promise((resolve) => setTimeout(resolve, ms));
      return await image();
    };
    const ends: number[] = [];
    await openUrls({ targets, base, onEndNear: () => ends.push(begun) }, slow);
    expect(ends).toHaveLength(1);
    expect(ends[0]).toBeGreaterThanOrEqual(soonest);
    expect(ends[0]).toBeLessThanOrEqual(latest);
  },
);
