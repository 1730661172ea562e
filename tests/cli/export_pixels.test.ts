/** `image-sync export --thumbnails`: however many huge pictures there are, only so many pixels are decoded at once. */
import fc from "fast-check";
import { beforeEach, expect, test, vi } from "vitest";
import { makeThumbnails, THUMBNAIL_LIMITS } from "../../cli/export/thumbnails.ts";
import type { Row } from "../../cli/export/register.ts";
import { rowOf, serveRegister } from "./support/fake_register.ts";

const decoded = { now: 0, most: 0, pictures: 0 };
beforeEach(() => void Object.assign(decoded, { now: 0, most: 0, pictures: 0 }));

// A library that decodes nothing: a file says how many pixels it has, or that it is damaged, and takes a moment.
vi.mock("sharp", () => {
  const sharp = (file: Uint8Array) => {
    const [pixels = 0, isDamaged = false] = JSON.parse(new TextDecoder().decode(file));
    const picture = {
      metadata: () =>
        pixels > THUMBNAIL_LIMITS.pixels
          ? Promise.reject(new Error("Input image exceeds pixel limit"))
          : Promise.resolve({ width: pixels, height: 1 }),
      toBuffer: async () => {
        decoded.now += pixels;
        decoded.most = Math.max(decoded.most, decoded.now);
        decoded.pictures++;
        await new Promise((resolve) => setTimeout(resolve, Math.random() * 4));
        decoded.now -= pixels;
        if (isDamaged) throw new Error("damaged");
        return { data: new Uint8Array(), info: { width: 1, height: 1 } };
      },
    };
    const same = () =>
      Object.assign(picture, {
        autoOrient: same,
        resize: same,
        flatten: same,
        toColorspace: same,
        jpeg: same,
      });
    return same();
  };
  return { default: Object.assign(sharp, { cache: () => {} }) };
});

/** Makes the thumbnails of files of so many pixels each; what became of them, in their order. */
async function thumbnailsOf(files: readonly (readonly [pixels: number, isDamaged: boolean])[]) {
  const { url } = await serveRegister({
    count: 0,
    row: () => rowOf("", "", ""),
    onFile: (name, response) => response.writeHead(200).end(JSON.stringify(files[Number(name)])),
  });
  const rows = files.map((_, index): Row => {
    const row = rowOf(String(index), String(index), url);
    return {
      partNumber: row.part_number,
      fileName: row.file_name,
      signedUrl: row.signed_url,
      expiresAt: undefined,
    };
  });
  const ended: string[] = [];
  for await (
    const { reason } of makeThumbnails(rows, { project: url, size: 96, signal: new AbortController().signal })
  ) {
    ended.push(reason ?? "made");
  }
  return ended;
}

test("24 pictures of 98 million pixels are decoded one after the other", async () => {
  expect(await thumbnailsOf(Array.from({ length: 24 }, () => [98_000_000, false]))).toEqual(
    Array(24).fill("made"),
  );
  expect(decoded).toEqual({ now: 0, most: 98_000_000, pictures: 24 });
});

test("small ones are decoded side by side", async () => {
  await thumbnailsOf(Array.from({ length: 64 }, () => [12_000_000, false]));
  expect(decoded.most).toBeGreaterThan(24_000_000);
  expect(decoded.most).toBeLessThanOrEqual(THUMBNAIL_LIMITS.pixels);
});

test("whatever their sizes and damages, no more pixels than the bound are decoded at once, and every file comes to its end", async () => {
  const file = fc.tuple(fc.integer({ min: 1, max: 110_000_000 }), fc.boolean());
  await fc.assert(
    fc.asyncProperty(fc.array(file, { maxLength: 40 }), async (files) => {
      const reasons = files.map(([pixels, isDamaged]) =>
        pixels > THUMBNAIL_LIMITS.pixels
          ? "the picture has more than 100 million pixels"
          : isDamaged
          ? "the picture is damaged"
          : "made"
      );
      expect(await thumbnailsOf(files)).toEqual(reasons);
      expect(decoded.most).toBeLessThanOrEqual(THUMBNAIL_LIMITS.pixels);
    }),
    { numRuns: 15 },
  );
});
