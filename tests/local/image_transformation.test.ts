/** The stand-in for Storage's image transformation: on where the stack has it, refused like on the Free plan where it has not. */
import type { SupabaseClient } from "@supabase/supabase-js";
import sharp from "sharp";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { createTestClient } from "../support/client.ts";
import { type LocalStack, startLocalStack } from "../support/stack.ts";

const BUCKET = "pictures";
let on: LocalStack;
let off: LocalStack;

const picture = (width: number, height: number) =>
  sharp({ create: { width, height, channels: 3, background: "#336699" } });

beforeAll(async () => {
  const flags = ["--no-function", "--no-migrate"];
  [on, off] = await Promise.all([
    startLocalStack([...flags, "--image-transformation"]),
    startLocalStack(flags),
  ]);
  const jpeg = await picture(1600, 1200).jpeg().toBuffer();
  for (const stack of [on, off]) {
    const { storage } = client(stack);
    await storage.createBucket(BUCKET, { public: false });
    for (const name of ["a.jpg", "shelf 1/b & c.jpg"]) {
      await storage.from(BUCKET).upload(name, jpeg, { contentType: "image/jpeg" });
    }
  }
});
afterAll(async () => {
  await on?.stop();
  await off?.stop();
});

const clients = new Map<LocalStack, SupabaseClient>();
function client(stack: LocalStack): SupabaseClient {
  const made = clients.get(stack) ?? createTestClient(stack.url, stack.secretKey);
  clients.set(stack, made);
  return made;
}

type Transform = {
  width?: number;
  height?: number;
  resize?: "cover" | "contain" | "fill";
  quality?: number;
  format?: "origin";
};

async function sign(stack: LocalStack, name: string, transform: Transform): Promise<string> {
  const { data, error } = await client(stack).storage.from(BUCKET).createSignedUrl(name, 60, { transform });
  if (error !== null) throw error;
  return data.signedUrl;
}

async function opened(url: string, headers: Record<string, string> = {}) {
  const response = await fetch(url, { headers });
  const content = new Uint8Array(await response.arrayBuffer());
  const { width, height, format } = response.ok ? await sharp(content).metadata() : {};
  return {
    status: response.status,
    type: response.headers.get("content-type"),
    width,
    height,
    format,
    answer: response.ok ? undefined : JSON.parse(new TextDecoder().decode(content)),
  };
}

describe("switched on", () => {
  test("a URL that is signed with a transform opens the picture scaled so, and never larger", async () => {
    const url = await sign(on, "a.jpg", { width: 400, height: 300, resize: "contain" });
    expect(new URL(url).pathname).toBe(`/storage/v1/render/image/sign/${BUCKET}/a.jpg`);
    expect(await opened(url)).toMatchObject({ status: 200, type: "image/jpeg", width: 400, height: 300 });
    expect(await opened(await sign(on, "a.jpg", { width: 100, height: 100, resize: "cover" })))
      .toMatchObject({ width: 100, height: 100 });
    expect(await opened(await sign(on, "a.jpg", { width: 800 }))).toMatchObject({ width: 800, height: 600 });
    expect(await opened(await sign(on, "a.jpg", { width: 2000 }))).toMatchObject({ width: 1600 });
  });

  test("who accepts WebP gets it, unless the origin's format was asked for", async () => {
    const accept = { accept: "image/avif,image/webp,*/*" };
    expect(await opened(await sign(on, "a.jpg", { width: 10 }), accept)).toMatchObject({
      type: "image/webp",
      format: "webp",
    });
  });

  test("names with spaces and characters that mean something in a URL are signed as they are", async () => {
    const url = await sign(on, "shelf 1/b & c.jpg", { width: 10 });
    expect(await opened(url)).toMatchObject({ status: 200, width: 10 });
  });

  test("edges are kept from 1 to 2,500, and a quality is from 20 to 100", async () => {
    const url = await sign(on, "a.jpg", { width: 9000, height: 9000, resize: "contain" });
    const [, claims = ""] = (new URL(url).searchParams.get("token") ?? "").split(".");
    expect(JSON.parse(Buffer.from(claims, "base64url").toString())).toMatchObject({
      transformations: "height:2500,width:2500,resize:contain",
    });
    await expect(sign(on, "a.jpg", { width: 10, quality: 19 })).rejects.toThrow(/quality must be >= 20/);
    await expect(sign(on, "a.jpg", { width: 10, quality: 101 })).rejects.toThrow(/quality must be <= 100/);
    await expect(sign(on, "a.jpg", { width: 10, resize: "stretch" as "fill" })).rejects.toThrow(
      /resize must be equal to one of the allowed values/,
    );
  });

  test("more than 25 MB, more than 50 megapixels, and what is no picture are refused", async () => {
    const { storage } = client(on);
    const huge = await picture(8000, 6300).png().toBuffer();
    await storage.from(BUCKET).upload("huge.png", huge, { contentType: "image/png" });
    await storage.from(BUCKET).upload("words.jpg", "no picture", { contentType: "image/jpeg" });
    const long = new Uint8Array(25_000_001);
    long.set(await picture(10, 10).jpeg().toBuffer());
    await storage.from(BUCKET).upload("long.jpg", long, { contentType: "image/jpeg" });
    for (const name of ["huge.png", "words.jpg", "long.jpg"]) {
      expect(await opened(await sign(on, name, { width: 10 })), name).toMatchObject({
        status: 400,
        answer: { statusCode: "422", error: "ImageProcessingError" },
      });
    }
  });

  test("many at once are signed without a transform, whatever is asked for", async () => {
    const response = await fetch(`${on.url}/storage/v1/object/sign/${BUCKET}`, {
      method: "POST",
      headers: { authorization: `Bearer ${on.secretKey}`, "content-type": "application/json" },
      body: JSON.stringify({ expiresIn: 60, paths: ["a.jpg"], transform: { width: 10 } }),
    });
    expect(await response.json()).toMatchObject([{
      signedURL: expect.stringMatching(/^\/object\/sign\//),
    }]);
  });
});

describe("switched off, as on the Free plan", () => {
  test("a transform is answered with a URL of the whole picture, without a word", async () => {
    const url = await sign(off, "a.jpg", { width: 400 });
    expect(new URL(url).pathname).toBe(`/storage/v1/object/sign/${BUCKET}/a.jpg`);
    expect(await opened(url)).toMatchObject({ status: 200, width: 1600 });
  });

  test("and opening a scaled one is refused", async () => {
    const url = (await sign(off, "a.jpg", {})).replace("/object/sign/", "/render/image/sign/");
    expect(await opened(url)).toMatchObject({ status: 403, answer: { error: "FeatureNotEnabled" } });
  });
});
