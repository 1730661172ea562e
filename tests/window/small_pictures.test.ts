/** The gallery's pictures as small as they are shown: where the operator asks for it, and Storage does it. */
import { createServer, type IncomingMessage, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import sharp from "sharp";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import type { RecordItem } from "../../supabase/functions/image-sync/contract.ts";
import type { OpenWindow } from "../../window/server.ts";
import { createSmallPictures } from "../../window/small_pictures.ts";
import { createBucket, runToEnd, upload } from "../sync/support/lab.ts";
import { counting, type LocalLab, openLocalLab } from "../sync/support/local_lab.ts";
import { mustHaveBrowser, openBrowser, type TestBrowser, withoutBrowser } from "./support/browser.ts";
import { enter, openTestWindow } from "./support/window.ts";

const NAMES = ["a.jpg", "shelf 1/b & c.jpg"];
const windows: OpenWindow[] = [];

/** A bucket of pictures of 1600 by 1200, synced. */
async function createPictures(lab: LocalLab, names: readonly string[] = NAMES): Promise<string> {
  const jpeg = await sharp({ create: { width: 1600, height: 1200, channels: 3, background: "#336699" } })
    .jpeg().toBuffer();
  const bucket = await createBucket(lab);
  for (const name of names) await upload(lab, bucket, name, new Uint8Array(jpeg));
  await runToEnd(lab, bucket);
  return bucket;
}

async function openWindowOn(lab: LocalLab, smallPictures: boolean): Promise<OpenWindow> {
  const window = await openTestWindow(lab.stack, { smallPictures });
  windows.push(window);
  return window;
}

afterEach(async () => {
  for (const window of windows.splice(0)) await window.close();
});

/** The gallery as a browser is sent it. */
async function gallery(window: OpenWindow, bucket: string, cookie?: string) {
  const headers = { cookie: cookie ?? await enter(window) };
  const response = await fetch(`${window.origin}/pictures?bucket=${bucket}`, { headers });
  const body = await response.text();
  const unescaped = (text: string) => text.replaceAll("&amp;", "&");
  const sources = [...body.matchAll(/<img src="([^"]+)"/g)].map(([, source = ""]) => unescaped(source));
  return { body, sources, policy: response.headers.get("content-security-policy") ?? "" };
}

describe("with a Storage that scales", () => {
  let lab: LocalLab;
  let browser: TestBrowser | undefined;
  beforeAll(async () => {
    lab = await openLocalLab(["--image-transformation"]);
    if (withoutBrowser === undefined) browser = await openBrowser();
  });
  afterAll(async () => {
    await browser?.close();
    await lab?.close();
  });

  test("pictures come whole unless the operator asks: nothing is billed by default", async () => {
    const bucket = await createPictures(lab);
    const window = await openWindowOn(lab, false);
    const { result, counts } = await counting(lab, () => gallery(window, bucket));
    expect(result.sources.map((source) => new URL(source).pathname)).toEqual(
      NAMES.map((name) =>
        `/storage/v1/object/sign/${bucket}/${name.split("/").map(encodeURIComponent).join("/")}`
      ),
    );
    expect(counts.storage).toEqual({});
  });

  test("pictures come as small as they are shown, signed one by one, from where they came whole", async () => {
    const bucket = await createPictures(lab);
    const window = await openWindowOn(lab, true);
    const { result: { sources, policy, body }, counts } = await counting(lab, () => gallery(window, bucket));
    expect(counts.storage).toEqual({ sign_one: 2 });
    for (const source of sources) {
      expect(source).toContain(`${lab.stack.url}/storage/v1/render/image/sign/${bucket}/`);
      const response = await fetch(source);
      expect(response.status, source).toBe(200);
      const { width, height } = await sharp(new Uint8Array(await response.arrayBuffer())).metadata();
      expect({ width, height }).toEqual({ width: 400, height: 300 });
    }
    expect(sources).toHaveLength(2);
    expect(policy).toContain(`img-src 'self' ${lab.stack.url};`);
    expect(body).not.toContain(lab.stack.secretKey);
    expect(body).toMatch(/id="whole" hidden/);
  });

  test("the page of a picture shows it whole", async () => {
    const bucket = await createPictures(lab);
    const window = await openWindowOn(lab, true);
    const response = await fetch(`${window.origin}/picture?bucket=${bucket}&file=a.jpg`, {
      headers: { cookie: await enter(window) },
    });
    expect(await response.text()).toContain("/object/sign/");
  });

  test("nothing of them stays in the database", async () => {
    const bucket = await createPictures(lab);
    const before = await lab.sql`select signed_url from public.part_images where bucket_id = ${bucket}`;
    await gallery(await openWindowOn(lab, true), bucket);
    expect(await lab.sql`select signed_url from public.part_images where bucket_id = ${bucket}`).toEqual(
      before,
    );
  });

  test.skipIf(withoutBrowser !== undefined && !mustHaveBrowser)(
    "one that Storage does not scale is shown whole, and the page says so",
    async () => {
      const bucket = await createPictures(lab, ["a.jpg"]);
      const huge = await sharp({ create: { width: 8000, height: 6300, channels: 3, background: "#369" } })
        .jpeg().toBuffer();
      await upload(lab, bucket, "huge.jpg", new Uint8Array(huge));
      await runToEnd(lab, bucket);
      const window = await openWindowOn(lab, true);
      const page = await browser?.context.newPage();
      if (page === undefined) throw new Error(withoutBrowser);
      await page.goto(window.address);
      await page.goto(`${window.origin}/pictures?bucket=${bucket}`);
      await page.locator("#whole", { hasText: "are shown whole" }).waitFor();
      // Asked from outside: inside the page its policy forbids what is made of text.
      const areShown = () =>
        page.evaluate<boolean>("[...document.images].every((image) => image.naturalWidth > 0)");
      await expect.poll(areShown, { timeout: 10_000 }).toBe(true);
      const sources = await page.evaluate<string[]>("[...document.images].map((image) => image.src)");
      expect(sources.map((source) => /render\/image|object/.exec(source)?.[0])).toEqual([
        "render/image",
        "object",
      ]);
      await page.close();
    },
  );
});

describe("with a Storage that does not scale", () => {
  let lab: LocalLab;
  beforeAll(async () => {
    lab = await openLocalLab();
  });
  afterAll(() => lab?.close());

  test("they are shown whole, which is said once, and Storage is not asked for each", async () => {
    const bucket = await createPictures(lab);
    const window = await openWindowOn(lab, true);
    const cookie = await enter(window);
    const { result, counts } = await counting(lab, () => gallery(window, bucket, cookie));
    expect(result.sources.map((source) => new URL(source).pathname.includes("/object/sign/"))).toEqual([
      true,
      true,
    ]);
    expect(result.body).toContain("Storage of this project does not scale pictures");
    expect(counts.storage).toEqual({ sign_one: 1 });
    expect((await gallery(window, bucket, cookie)).body).not.toContain("does not scale pictures");
  });
});

describe("what Storage answers", () => {
  let server: Server;
  let asked: IncomingMessage[];
  let answer: string;
  let projectUrl: string;
  beforeAll(async () => {
    server = createServer((request, response) => {
      asked.push(request);
      response.setHeader("content-type", "application/json");
      response.end(answer);
    });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    projectUrl = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  });
  afterAll(() => new Promise((resolve) => server.close(resolve)));

  const item = (name: string): RecordItem => ({
    file_name: name,
    state: "working",
    url: `https://files.example.com/storage/v1/object/sign/b/${encodeURIComponent(name)}?token=whole`,
  });
  const ask = async (given: string, records: readonly RecordItem[] = [item("a.jpg")]) => {
    [asked, answer] = [[], given];
    return await createSmallPictures({ projectUrl, key: "sb_secret_x" }).of("b", records);
  };

  test("sends nobody elsewhere: of it only the token is taken", async () => {
    const { urls } = await ask('{"signedURL": "/render/image/sign/b/a.jpg?token=aa.bb.cc"}');
    expect(urls.get("a.jpg")).toBe(
      "https://files.example.com/storage/v1/render/image/sign/b/a.jpg?token=aa.bb.cc",
    );
    for (
      const evil of [
        '{"signedURL": "https://evil.example/render/image/sign/b/a.jpg?token=aa.bb.cc"}',
        '{"signedURL": "/render/image/sign/b/a.jpg?token=aa.bb.cc\\" onerror=\\"x"}',
        '{"signedURL": "//evil.example/render/image/sign/b/a.jpg?token=aa.bb.cc"}',
      ]
    ) {
      expect((await ask(evil)).urls.size, evil).toBe(0);
    }
  });

  test("and makes no sense is asked three times at most, and said", async () => {
    const records = ["a", "b", "c", "d", "e"].map((name) => item(`${name}.jpg`));
    const { urls, problem } = await ask("<html>", records);
    expect({ size: urls.size, problem }).toEqual({
      size: 0,
      problem: "Storage did not sign the small pictures: they are shown whole.",
    });
    expect(asked).toHaveLength(3);
  });

  test("is not asked about names with a question mark, and files of more than 25 MB", async () => {
    const { urls } = await ask("{}", [item("a?.jpg"), { ...item("b.jpg"), bytes: 25_000_001 }]);
    expect(urls.size).toBe(0);
    expect(asked).toEqual([]);
  });
});
