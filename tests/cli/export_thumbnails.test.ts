/** `image-sync export --thumbnails`: which pictures stand in which cells, and which files are named instead. */
import { readdir } from "node:fs/promises";
import type { ServerResponse } from "node:http";
import sharp from "sharp";
import { beforeAll, describe, expect, test } from "vitest";
import { THUMBNAIL_LIMITS } from "../../cli/export/thumbnails.ts";
import { exportTo, makeFolder } from "./support/export.ts";
import { plainRow, rowOf, serveRegister } from "./support/fake_register.ts";
import { missingReaders, readBook } from "./support/python.ts";
import { runCommand } from "./support/run_command.ts";

const missing = await missingReaders();
const readBack = describe.skipIf(missing !== undefined);
const unless = missing === undefined ? "" : ` (left out: ${missing})`;

const RED = { r: 200, g: 20, b: 20 };
const BLUE = { r: 20, g: 20, b: 200 };

const plain = (width: number, height: number, background = RED) =>
  sharp({ create: { width, height, channels: 3, background } });

/** Left half red, right half blue, turned by its EXIF so that red is above. */
async function turned(): Promise<Buffer> {
  const right = await plain(100, 100, BLUE).png().toBuffer();
  return await plain(200, 100).composite([{ input: right, left: 100, top: 0 }]).withMetadata({
    orientation: 6,
  })
    .jpeg().toBuffer();
}

/** What Storage answers for each name. */
type File = Buffer | ((response: ServerResponse) => void);

const files = new Map<string, File>();
beforeAll(async () => {
  const photo = await plain(400, 300).jpeg().toBuffer();
  const all: Record<string, File> = {
    "wide.jpg": photo,
    "tall.jpg": await plain(300, 400).jpeg().toBuffer(),
    "small.jpg": await plain(40, 30).jpeg().toBuffer(),
    "turned.jpg": await turned(),
    "clear.jpg": await sharp({ create: { width: 50, height: 50, channels: 4, background: "#00000000" } })
      .png().toBuffer(),
    "webp.jpg": await plain(100, 100).webp().toBuffer(),
    "empty.jpg": Buffer.alloc(0),
    "text.jpg": Buffer.from("no picture at all"),
    "cut.jpg": photo.subarray(0, photo.length / 2),
    "bomb.jpg": await plain(10_100, 10_100).png().toBuffer(),
    "large.jpg": (response) => {
      response.writeHead(200);
      for (let sent = 0; sent <= THUMBNAIL_LIMITS.fileBytes; sent += 1_000_000) {
        response.write(Buffer.alloc(1_000_000));
      }
      response.end();
    },
    "gone.jpg": (response) => response.writeHead(400).end('{"statusCode":"404","error":"not_found"}'),
    "moved.jpg": (response) =>
      response.writeHead(302, { location: "/storage/v1/object/sign/part-images/wide.jpg" }).end(),
  };
  for (const [name, file] of Object.entries(all)) files.set(name, file);
});

function answer(name: string, response: ServerResponse): void {
  const file = files.get(name);
  if (typeof file === "function") file(response);
  else if (file === undefined) response.writeHead(400).end();
  else response.writeHead(200, { "content-type": "image/jpeg" }).end(file);
}

const serveFiles = (names: readonly string[], onFile = answer) =>
  serveRegister({
    count: names.length,
    row: (index, origin) => rowOf(`p${index}`, names[index] ?? "", origin),
    onFile,
  });

readBack(`a workbook with thumbnails, read by openpyxl${unless}`, () => {
  test("has each picture in the cell of its row, upright, within the size, and moving with the row", async () => {
    const names = ["wide.jpg", "tall.jpg", "small.jpg", "turned.jpg", "clear.jpg", "webp.jpg"];
    const { url } = await serveFiles(names);
    const { path, status, document } = await exportTo("parts.xlsx", {
      url,
      args: ["--thumbnails", "--size", "80"],
    });
    expect([status, document.thumbnails]).toEqual([0, { placed: 6, left_out: [] }]);
    const [sheet] = (await readBook(path)).sheets;
    expect(sheet?.pictures.map(({ row, name, size }) => [row, name, size])).toEqual([
      [2, "wide.jpg", [80, 60]],
      [3, "tall.jpg", [60, 80]],
      [4, "small.jpg", [40, 30]],
      [5, "turned.jpg", [40, 80]],
      [6, "clear.jpg", [50, 50]],
      [7, "webp.jpg", [80, 80]],
    ]);
    for (const { row, column, end, moves, size, shown, bottom, format } of sheet?.pictures ?? []) {
      expect({ column, end, moves, format }).toEqual({
        column: 5,
        end: [row, 5],
        moves: "twoCell",
        format: "JPEG",
      });
      expect(shown).toEqual(size);
      expect(bottom).toBeLessThanOrEqual(sheet?.heights[row] ?? 0);
    }
    const [red, green, blue] = sheet?.pictures[3]?.corner ?? [];
    expect([red, green, blue].map((part) => (part ?? 0) > 128)).toEqual([true, false, false]);
    // What is clear is white, as the cell behind it.
    expect(sheet?.pictures[4]?.corner).toEqual([255, 255, 255]);
    // A picture that is there needs no formula that fetches it.
    expect(sheet?.rows.slice(1).map((row) => row[4]?.value ?? null)).toEqual(names.map(() => null));
    expect(sheet?.rows.slice(1).map((row) => row[1]?.value)).toEqual(names);
  });

  test("leaves out what is no picture, names it and why, and has its row all the same", async () => {
    const reasons = {
      "empty.jpg": "the file is empty",
      "text.jpg": "the file is no picture",
      "cut.jpg": "the picture is damaged",
      "bomb.jpg": "the picture has more than 100 million pixels",
      "large.jpg": "the file has more than 25 MB",
      "gone.jpg": "Storage answers HTTP 400 instead of the file",
      "moved.jpg":
        "HTTP 302, a redirect to another address. The address is not the project's own: check it, and the setting public_url",
    };
    const names = ["wide.jpg", ...Object.keys(reasons), "tall.jpg"];
    const { url } = await serveFiles(names);
    const { path, status, document } = await exportTo("parts.xlsx", { url, args: ["--thumbnails"] });
    expect(status).toBe(1);
    expect(document.thumbnails).toEqual({
      placed: 2,
      left_out: Object.entries(reasons).map(([file_name, reason]) => ({ file_name, reason })),
    });
    const [sheet, about] = (await readBook(path)).sheets;
    expect(sheet?.pictures.map(({ row, name }) => [row, name])).toEqual([[2, "wide.jpg"], [10, "tall.jpg"]]);
    expect(sheet?.rows.slice(1).map((row) => row[1]?.value)).toEqual(names);
    const said = about?.rows.map(([label, value]) => [label?.value, value?.value]) ?? [];
    expect(said).toEqual(
      expect.arrayContaining([["Files without a picture", 7], ...Object.entries(reasons)]),
    );
  });

  test("is whole where every file is broken", async () => {
    const { url } = await serveFiles(["text.jpg", "gone.jpg"]);
    const { path } = await exportTo("parts.xlsx", { url, args: ["--thumbnails"] });
    const [sheet] = (await readBook(path)).sheets;
    expect([sheet?.rows.length, sheet?.pictures]).toEqual([3, []]);
  });
});

test("tells a person which files have no picture, and how many", async () => {
  const { url } = await serveFiles(["wide.jpg", "text.jpg"]);
  const result = await runCommand(["export", "a.xlsx", "--thumbnails"], {
    url,
    directory: await makeFolder(),
  });
  expect(result.stdout).toContain("Wrote a.xlsx: 2 rows, 1 picture");
  expect(result.stdout).toContain("1 file without a picture");
  expect(result.stdout).toContain("text.jpg: the file is no picture");
});

test("a file that does not come at once is asked for again", async () => {
  const asked = new Map<string, number>();
  const { url } = await serveFiles(["wide.jpg", "tall.jpg"], (name, response) => {
    const times = (asked.get(name) ?? 0) + 1;
    asked.set(name, times);
    if (times === 1) response.writeHead(503).end();
    else if (times === 2) response.destroy();
    else answer(name, response);
  });
  const { document } = await exportTo("a.xlsx", { url, args: ["--thumbnails"] });
  expect(document.thumbnails).toEqual({ placed: 2, left_out: [] });
});

test("ends when Storage answers no more, instead of a workbook of gaps", async () => {
  const { url } = await serveRegister({
    count: 200,
    row: plainRow,
    onFile: (_name, response) => response.writeHead(503).end(),
  });
  const folder = await makeFolder();
  const result = await runCommand(["export", "a.xlsx", "--thumbnails", "--json"], { url, directory: folder });
  expect(JSON.parse(result.stdout).error.code).toBe("storage_unavailable");
  expect(await readdir(folder)).toEqual([]);
});

test("more pictures than a workbook is good for are refused before any is fetched", async () => {
  let fetched = 0;
  const { url } = await serveRegister({
    count: THUMBNAIL_LIMITS.pictures + 1,
    row: plainRow,
    onFile: (_name, response) => {
      fetched++;
      response.writeHead(400).end();
    },
  });
  const result = await runCommand(["export", "a.xlsx", "--thumbnails", "--json"], {
    url,
    directory: await makeFolder(),
  });
  expect(JSON.parse(result.stdout).error.code).toBe("too_many_pictures");
  expect(fetched).toBe(0);
});

test("no more files are on their way at once than Storage bears", async () => {
  let now = 0;
  let most = 0;
  const { url } = await serveRegister({
    count: 100,
    row: plainRow,
    onFile: (_name, response) => {
      most = Math.max(most, ++now);
      setTimeout(() => {
        now--;
        answer("small.jpg", response);
      }, 5);
    },
  });
  const { document } = await exportTo("a.xlsx", { url, args: ["--thumbnails"] });
  expect(document.thumbnails?.placed).toBe(100);
  expect(most).toBeGreaterThan(1);
  expect(most).toBeLessThanOrEqual(16);
});

test("Ctrl-C while pictures come leaves nothing", async () => {
  let interrupt = () => {};
  let fetched = 0;
  const { url } = await serveRegister({
    count: 500,
    row: plainRow,
    onFile: (_name, response) => {
      if (++fetched === 100) interrupt();
      answer("small.jpg", response);
    },
  });
  const folder = await makeFolder();
  const result = await runCommand(["export", "a.xlsx", "--thumbnails"], {
    url,
    directory: folder,
    onReady: (press) => interrupt = press,
  });
  expect(result.status).toBe(130);
  expect(fetched).toBeLessThan(200);
  expect(await readdir(folder)).toEqual([]);
});
