import type { SupabaseClient } from "@supabase/supabase-js";
import { beforeEach, describe, expect, test, vi } from "vitest";
import { workChunk } from "../../supabase/functions/image-sync/pipeline.ts";
import {
  createSigner,
  type Signed,
  SigningError,
  unopened,
} from "../../supabase/functions/image-sync/signer.ts";
import { createTestClient } from "../support/client.ts";

const projectUrl = "https://project.example.com";
const expiry = 1_900_000_000;

type Item = { path: string | null; error: string | null; signedURL: string | null };
type Answer = { data: unknown; error: unknown };

beforeEach(() => {
  vi.spyOn(console, "log").mockImplementation(() => {});
});

const tokenFor = (claims: unknown) => `e30.${Buffer.from(JSON.stringify(claims)).toString("base64url")}.x`;
const signedItem = (path: string, token = tokenFor({ exp: expiry, url: path })): Item => ({
  path,
  error: null,
  signedURL: `/object/sign/part-images/${path}?token=${token}`,
});
const allSigned = (paths: readonly string[]): Answer => ({
  data: paths.map((path) => signedItem(path)),
  error: null,
});
const refusal = (status: number, message: string) => ({
  name: "StorageApiError",
  message,
  status: 400,
  statusCode: String(status),
});

/** A Storage that answers as `answer` says, and what it was asked. */
function storageOf(answer: (paths: readonly string[]) => Answer) {
  const calls: { bucket: string; paths: readonly string[]; expiresIn: number }[] = [];
  const from = (bucket: string) => ({
    createSignedUrls: (paths: readonly string[], expiresIn: number) => {
      calls.push({ bucket, paths, expiresIn });
      return Promise.resolve(answer(paths));
    },
  });
  const client = { storage: { from } } as unknown as SupabaseClient;
  const sign = createSigner(client, projectUrl);
  return {
    calls,
    sign: (names: readonly string[]) =>
      sign({ bucket: "part-images", names, expiresIn: 60, publicUrl: null }),
    signer: sign,
  };
}

/** The URLs, put together. */
const urlsOf = ({ base, paths, tokens }: Signed) =>
  paths.map((path, place) => `${base}${path}?token=${tokens[place]}`);

const numbered = (count: number) => Array.from({ length: count }, (_, place) => `${place}.jpg`);

describe("signing", () => {
  test("takes one call for up to a thousand names", async () => {
    const storage = storageOf(allSigned);
    const signed = await storage.sign(numbered(1000));
    expect(storage.calls).toEqual([{ bucket: "part-images", paths: numbered(1000), expiresIn: 60 }]);
    expect(signed.names).toEqual(numbered(1000));
    expect(signed.failures).toEqual([]);
  });

  test("of nothing takes no call", async () => {
    const storage = storageOf(allSigned);
    expect(await storage.sign([])).toMatchObject({
      names: [],
      paths: [],
      tokens: [],
      expires: [],
      failures: [],
    });
    expect(storage.calls).toEqual([]);
  });

  test("never sends more than a thousand names or a body over 1,048,576 bytes", async () => {
    const names = Array.from({ length: 2500 }, (_, place) => `${"&".repeat(place % 1000)}${place}.jpg`);
    const storage = storageOf(allSigned);
    expect((await storage.sign(names)).names).toEqual(names);
    for (const { paths } of storage.calls) {
      expect(paths.length).toBeLessThanOrEqual(1000);
      expect(Buffer.byteLength(JSON.stringify({ expiresIn: 60, paths }))).toBeLessThanOrEqual(1_048_576);
    }
  });

  test.each([1e15, -1, 0, 1.5, "soon", null])(
    "fails a name whose token expires at no usable time: %s",
    async (exp) => {
      const storage = storageOf((paths) => ({
        data: paths.map((path) => signedItem(path, tokenFor(path === "a.jpg" ? { exp } : { exp: expiry }))),
        error: null,
      }));
      const signed = await storage.sign(["a.jpg", "b.jpg"]);
      expect(signed.names).toEqual(["b.jpg"]);
      expect(signed.failures).toMatchObject([{ name: "a.jpg" }]);
    },
  );

  test("reads the expiry from the token itself", async () => {
    const storage = storageOf((paths) => ({
      data: paths.map((path, place) => signedItem(path, tokenFor({ exp: expiry + place }))),
      error: null,
    }));
    expect((await storage.sign(["a.jpg", "b.jpg"])).expires).toEqual([expiry, expiry + 1]);
  });

  test("gives each name its own URL, in whatever order they come, and names those that did not", async () => {
    const storage = storageOf((paths) => ({
      data: paths.filter((path) => path !== "b.jpg").map((path) => signedItem(path)).reverse(),
      error: null,
    }));
    const signed = await storage.sign(["a.jpg", "b.jpg", "c.jpg"]);
    expect(signed.names).toEqual(["a.jpg", "c.jpg"]);
    expect(urlsOf(signed)).toEqual(
      signed.names.map((name) =>
        `${projectUrl}/storage/v1/object/sign/part-images/${name}?token=${
          tokenFor({ exp: expiry, url: name })
        }`
      ),
    );
    expect(signed.failures).toEqual([{ name: "b.jpg", error: expect.any(String) }]);
  });

  test("checks every item: an error inside a 200 is that file's failure alone", async () => {
    const missing = "Either the object does not exist or you do not have access to it";
    const items: Record<string, Item> = {
      "gone.jpg": { path: "gone.jpg", error: missing, signedURL: null },
      "empty.jpg": { path: "empty.jpg", error: null, signedURL: "" },
      "no token.jpg": {
        path: "no token.jpg",
        error: null,
        signedURL: "/object/sign/part-images/no token.jpg",
      },
      "garbage.jpg": signedItem("garbage.jpg", "not-a-token"),
      "timeless.jpg": signedItem("timeless.jpg", tokenFor({ url: "x" })),
    };
    const storage = storageOf((paths) => ({
      data: paths.map((path) => items[path] ?? signedItem(path)),
      error: null,
    }));
    const signed = await storage.sign(["a.jpg", ...Object.keys(items), "z.jpg"]);
    expect(signed.names).toEqual(["a.jpg", "z.jpg"]);
    expect(signed.failures.map(({ name }) => name)).toEqual(Object.keys(items));
    expect(signed.failures[0]?.error).toContain(missing);
  });

  test("builds URLs that lead to the file, whatever its name has in it", async () => {
    const names = [
      "what?.jpg",
      "a b+c&d.jpg",
      "x?token=y.jpg",
      "dots...jpg",
      "it's (1), $2 @ a=b;c:d!.jpg",
      "photos/*/ a_b-c .jpg",
    ];
    const signed = await storageOf(allSigned).sign(names);
    expect(signed.names).toEqual(names);
    urlsOf(signed).forEach((url, place) => {
      const { pathname, searchParams, hash } = new URL(url);
      expect(pathname.split("/").map(decodeURIComponent).join("/")).toBe(
        `/storage/v1/object/sign/part-images/${names[place]}`,
      );
      expect(searchParams.get("token")).toBe(tokenFor({ exp: expiry, url: names[place] }));
      expect([...searchParams.keys(), hash]).toEqual(["token", ""]);
    });
  });

  test("uses the readers' address where there is one", async () => {
    const request = {
      bucket: "a bucket",
      names: ["a.jpg"],
      expiresIn: 60,
      publicUrl: "https://cdn.example.com",
    };
    const signed = await storageOf(allSigned).signer(request);
    expect(urlsOf(signed)[0]).toMatch(
      /^https:\/\/cdn\.example\.com\/storage\/v1\/object\/sign\/a%20bucket\/a\.jpg\?token=/,
    );
  });

  test("names what no URL can reach and does not ask for it", async () => {
    const storage = storageOf(allSigned);
    const unreachable = ["..", ".", "a/../b.jpg", "./a.jpg", "a/./b.jpg", "a/.."];
    const signed = await storage.sign([...unreachable, "a..b.jpg", ".a/b.jpg", "a./b.jpg"]);
    expect(signed.failures.map(({ name }) => name)).toEqual(unreachable);
    expect(storage.calls[0]?.paths).toEqual(["a..b.jpg", ".a/b.jpg", "a./b.jpg"]);
  });
});

describe("a name that makes Storage refuse the whole call", () => {
  const refusing = (bad: readonly string[]) =>
    storageOf((paths) =>
      paths.some((path) => bad.includes(path))
        ? { data: null, error: refusal(400, "Invalid key") }
        : allSigned(paths)
    );

  test("is found and named, and the others are signed, in a few calls more", async () => {
    const storage = refusing(["637.jpg"]);
    const signed = await storage.sign(numbered(1000));
    expect(signed.failures).toMatchObject([{
      name: "637.jpg",
      error: expect.stringContaining("Invalid key"),
    }]);
    expect(signed.names).toEqual(numbered(1000).filter((name) => name !== "637.jpg"));
    expect(storage.calls.length).toBeLessThanOrEqual(21);
  });

  test("among very many costs a bounded number of calls; whoever is left is named", async () => {
    const storage = refusing(numbered(1000).filter((_, place) => place % 2 === 0));
    const signed = await storage.sign(numbered(1000));
    expect(storage.calls.length).toBeLessThanOrEqual(41);
    expect(signed.names.length + signed.failures.length).toBe(1000);
    expect(new Set([...signed.names, ...signed.failures.map(({ name }) => name)]).size).toBe(1000);
  });
});

describe("a refusal of the whole call", () => {
  test.each([[401, true], [403, true], [404, true], [500, false], [503, false], [429, false]])(
    "with %i is final: %s",
    async (status, isFinal) => {
      const storage = storageOf(() => ({ data: null, error: refusal(status, "No way") }));
      const error = await storage.sign(numbered(4)).catch((error: unknown) => error);
      expect(error).toBeInstanceOf(SigningError);
      expect(error).toMatchObject({
        isFinal,
        fault: { code: "signing_failed", detail: expect.stringMatching(`part-images.*No way.*${status}`) },
      });
      expect(storage.calls).toHaveLength(1);
    },
  );
});

describe("an answer that Storage did not give", () => {
  const signThrough = (status: number, body: string, type = "text/html") => {
    const send = () => Promise.resolve(new Response(body, { status, headers: { "content-type": type } }));
    const client = createTestClient(projectUrl, "sb_secret_x", unopened(send));
    return createSigner(client, projectUrl)({
      bucket: "part-images",
      names: numbered(4),
      expiresIn: 60,
      publicUrl: null,
    }).catch((error: unknown) => error);
  };

  test.each([
    [401, true, "verify_jwt"],
    [402, true, "exceeded its quota"],
    [403, true, "firewall"],
    [540, true, "paused"],
    [546, true, "compute limit"],
    [502, false, "overloaded or away"],
  ])("is told in its words and what it means: %i, final: %s", async (status, isFinal, meaning) => {
    const error = await signThrough(status, "<h1>Words of a page</h1>");
    expect(error).toBeInstanceOf(SigningError);
    expect(error).toMatchObject({
      isFinal,
      fault: {
        code: "signing_failed",
        title: "Storage did not answer",
        detail: expect.stringContaining(`HTTP ${status}: "Words of a page"`),
      },
    });
    expect((error as SigningError).fault.detail).toContain(meaning);
  });

  test("is none where the bucket's name is refused: that is final, and says what to do", async () => {
    const body = {
      statusCode: "400",
      error: "InvalidBucketName",
      code: "InvalidBucketName",
      message: "Bucket name invalid",
    };
    expect(await signThrough(400, JSON.stringify(body), "application/json")).toMatchObject({
      isFinal: true,
      fault: {
        title: "Storage refused to sign",
        detail: expect.stringMatching(/Bucket name invalid.*letters a to z/),
      },
    });
  });
});

describe("a chunk", () => {
  const chunk = {
    number: 3,
    names: ["a.jpg", "b.jpg"],
    expiresIn: 60,
    leaseMs: 1000,
    publicUrl: null,
    moreLanes: 0,
  };
  const takeCounts = () => ({ storageCalls: 2, retries: 1 });

  test("is closed with what signing gave and what it cost", async () => {
    const { signer } = storageOf(allSigned);
    expect(await workChunk({ bucket: "part-images", sign: signer, takeCounts }, "a lease", chunk))
      .toMatchObject({
        lease: "a lease",
        number: chunk.number,
        names: ["a.jpg", "b.jpg"],
        failures: [],
        error: null,
        storageCalls: 2,
        retries: 1,
      });
  });

  test.each([
    ["a refusal that is final", () => ({ data: null, error: refusal(403, "No") }), true],
    ["a refusal that may pass", () => ({ data: null, error: refusal(503, "Later") }), false],
    ["an answer that is none", () => ({ data: { not: "a list" }, error: null }), false],
    ["a failed connection", () => {
      throw new TypeError("fetch failed");
    }, false],
  ])("is closed with its error after %s", async (_, answer: () => Answer, isFinal) => {
    const { signer } = storageOf(answer);
    expect(await workChunk({ bucket: "part-images", sign: signer, takeCounts }, "a lease", chunk))
      .toMatchObject({
        isFinal,
        names: [],
        tokens: [],
        error: { code: "signing_failed" },
        storageCalls: 2,
      });
  });
});
