/** Workbooks of `image-sync export`, read back by a reader that is not ours. */
import { spawn } from "node:child_process";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { pathToFileURL } from "node:url";
import { createWriteStream } from "node:fs";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import type { Row } from "../../cli/export/register.ts";
import { writeWorkbook } from "../../cli/export/xlsx/workbook.ts";
import { cellText } from "../../cli/export/xlsx/xml.ts";
import { denoPath, projectDirectory } from "../support/stack.ts";
import { exportTo, makeFolder } from "./support/export.ts";
import { KEY } from "./support/fake_function.ts";
import { plainRow, rowOf, serveRegister } from "./support/fake_register.ts";
import { type Book, countRows, missingReaders, readBook } from "./support/python.ts";

const missing = await missingReaders();
const readBack = describe.skipIf(missing !== undefined);
const unless = missing === undefined ? "" : ` (left out: ${missing})`;

/** Names that break what is careless: each stands in its own row. */
const hostileNames = [
  '4" pipe & <fitting>.jpg',
  "Größe ½ straße.jpg",
  "日本語.jpg",
  "😀👩‍👩‍👧.jpg",
  "=1+1.jpg",
  "+1.jpg",
  "-1.jpg",
  "@SUM(A1).jpg",
  '=HYPERLINK("http://evil.example","x").jpg',
  "two\nlines.jpg",
  "windows\r\nlines.jpg",
  "tab\there.jpg",
  "  spaces  .jpg",
  "bell\x07 and escape\x1b.jpg",
  "_x0041_.jpg",
  "_x005F_x0041_.jpg",
  "\ufffe\uffff.jpg",
  "]]>.jpg",
  "&amp;.jpg",
  "000001",
  "1e5",
  "TRUE",
  "2026-12-01",
  `${"n".repeat(4092)}.jpg`,
];

const sheetNamed = (book: Book, name: string) => {
  const sheet = book.sheets.find((sheet) => sheet.name === name);
  if (sheet === undefined) throw new Error(`There is no sheet ${name}`);
  return sheet;
};

readBack(`a workbook, read by openpyxl${unless}`, () => {
  test("has every cell as in the register, its formulas as formulas, its dates as dates", async () => {
    const { url, pages } = await serveRegister({
      count: hostileNames.length,
      row: (index, origin) => rowOf(hostileNames[index] ?? "", hostileNames[index] ?? "", origin),
    });
    const { path, status, document } = await exportTo("parts.xlsx", { url });
    expect([status, document.rows, document.workbook?.sheets]).toEqual([0, hostileNames.length, 1]);
    expect(pages).toEqual([{ after: null, raw: true, attempt: 1 }]);
    const sheet = sheetNamed(await readBook(path), "Register");
    expect(sheet.rows[0]?.map(({ value }) => value)).toEqual([
      "part_number",
      "file_name",
      "signed_url",
      "signed_url_expires_at",
      "image",
    ]);
    expect(sheet.rows.slice(1)).toEqual(hostileNames.map((name, index) => [
      { kind: "str", value: name, format: "@" },
      { kind: "str", value: name, format: "@" },
      { kind: "str", value: rowOf(name, name, url).signed_url, format: "General" },
      { kind: "date", value: "2026-12-01T02:00:40Z", format: "yyyy\\-mm\\-dd\\ hh:mm:ss" },
      { kind: "formula", value: `=_xlfn.IMAGE(C${index + 2})`, format: "General" },
    ]));
  });

  test("has its header frozen, a filter, widths that fit, and no link that Excel would count", async () => {
    const { url } = await serveRegister({
      count: 12,
      row: (_index, origin) => rowOf("7", `${"w".repeat(33)}.jpg`, origin),
    });
    const sheet = sheetNamed(await readBook((await exportTo("parts.xlsx", { url })).path), "Register");
    expect(sheet).toMatchObject({ frozen: "A2", filter: "A1:E13", hyperlinks: 0, pictures: [] });
    expect(sheet.widths["B"]).toBe(39);
    expect(sheet.widths["A"]).toBeGreaterThanOrEqual("part_number".length);
    // Room for the picture that the formula shows.
    expect(sheet.heights["2"]).toBe(75);
  });

  test("says on its second sheet when, from which project, until when the URLs live, and how to refresh", async () => {
    const { url } = await serveRegister({
      count: 3,
      row: (index, origin) => ({
        ...plainRow(index, origin),
        signed_url_expires_at:
          ["2026-12-03T00:00:00Z", "2026-12-01T12:30:00Z", "2026-12-02T00:00:00Z"][index] ?? "",
      }),
    });
    const before = Date.now() - 1000;
    const { path, document } = await exportTo("my parts.xlsx", { url });
    const book = await readBook(path);
    expect(book.sheets.map(({ name }) => name)).toEqual(["Register", "About"]);
    expect(book.properties.title).toBe("Register of part-images");
    const about = new Map(
      sheetNamed(book, "About").rows.map(([label, value]) => [label?.value, value?.value]),
    );
    expect(about.get("Project")).toBe(url);
    expect(about.get("Register of bucket")).toBe("part-images");
    expect(about.get("Rows")).toBe(3);
    expect(Date.parse(String(about.get("Written at (UTC)")))).toBeGreaterThan(before);
    expect(about.get("URLs live until (UTC)")).toBe("2026-12-01T12:30:00Z");
    expect(about.get("How to refresh")).toContain("npx image-sync export 'my parts.xlsx' --force");
    expect(about.get("Pictures")).toContain("IMAGE opens https addresses only, and these are not");
    expect(document.workbook?.soonest_expiry).toBe("2026-12-01T12:30:00.000Z");
  });

  test("of an empty register has its header, its filter and its second sheet", async () => {
    const { url } = await serveRegister({ count: 0, row: plainRow });
    const { path, status } = await exportTo("none.xlsx", { url });
    expect(status).toBe(1);
    const sheet = sheetNamed(await readBook(path), "Register");
    expect([sheet.rows.length, sheet.filter]).toEqual([1, "A1:E1"]);
  });

  test("leaves out the one row that no cell can hold, and names it", async () => {
    const name = `${"n".repeat(32_768)}`;
    const { url } = await serveRegister({
      count: 3,
      row: (index, origin) => index === 1 ? rowOf("2", name, origin) : plainRow(index, origin),
    });
    const { path, status, document } = await exportTo("parts.xlsx", { url });
    expect(status).toBe(1);
    expect(document.workbook?.rows_left_out.map(({ file_name }) => file_name)).toEqual([name]);
    const sheet = sheetNamed(await readBook(path), "Register");
    expect(sheet.rows.map(([part]) => part?.value)).toEqual(["part_number", "000001", "000003"]);
  });

  test("goes on to further sheets, each with header and filter, when one is full", async () => {
    const folder = await makeFolder();
    const path = join(folder, "parts.xlsx");
    const rows = Array.from({ length: 23 }, (_, index): Row => ({
      partNumber: String(index),
      fileName: `${index}.jpg`,
      signedUrl: `https://x/${index}`,
      expiresAt: undefined,
    }));
    const written = await writeWorkbook(createWriteStream(path), {
      title: "Register",
      madeAt: new Date(),
      content: { lots: lotsOf(rows, 7) },
      about: (count) => [["Rows", count]],
      signal: new AbortController().signal,
      sheetRows: 10,
    });
    expect(written).toEqual({ rows: 23, sheets: 3 });
    const book = await readBook(path);
    expect(book.sheets.map(({ name, filter, frozen }) => [name, filter, frozen])).toEqual([
      ["Register", "A1:E11", "A2"],
      ["About", null, null],
      ["Register 2", "A1:E11", "A2"],
      ["Register 3", "A1:E4", "A2"],
    ]);
    const parts = book.sheets.filter(({ name }) => name !== "About").flatMap(({ rows }) => rows.slice(1));
    expect(parts.map(([part]) => part?.value)).toEqual(rows.map(({ partNumber }) => partNumber));
  });

  test("has 100,000 rows within a memory that does not grow with them", async () => {
    const small = await exportInProcess(10_000);
    const large = await exportInProcess(Number(process.env["IMAGE_SYNC_EXPORT_ROWS"] ?? 100_000));
    expect(large.count).toEqual({
      rows: large.rows + 1,
      last: String(large.rows).padStart(6, "0"),
    });
    // What is on its way, and what the collector has not taken yet: no row is kept.
    expect(large.peak - small.peak).toBeLessThan(150);
  }, 300_000);
});

async function* lotsOf<T>(rows: readonly T[], size: number): AsyncGenerator<readonly T[]> {
  for (let at = 0; at < rows.length; at += size) yield rows.slice(at, at + size);
}

/** Exports so many rows in a process of its own; `peak` is the memory that it had at most, in MB. */
async function exportInProcess(rows: number) {
  const { url } = await serveRegister({ count: rows, row: plainRow });
  const folder = await mkdtemp(join(tmpdir(), "image-sync-export-"));
  try {
    const file = join(folder, "parts.xlsx");
    const command = `
      import process from "node:process";
      process.argv = [process.argv[0], "image-sync", "export", ${JSON.stringify(file)}];
      await import(${JSON.stringify(pathToFileURL(join(projectDirectory, "cli/image_sync.ts")).href)});
      process.stderr.write("\\npeak " + process.resourceUsage().maxRSS);`;
    const child = spawn(denoPath, ["eval", "--quiet", command], {
      cwd: projectDirectory,
      env: { ...process.env, SUPABASE_URL: url, SUPABASE_SECRET_KEY: KEY },
    });
    let stderr = "";
    child.stderr.on("data", (part) => stderr += part);
    const code = await new Promise((resolve) => child.on("close", resolve));
    if (code !== 0) throw new Error(`The export failed: ${stderr}`);
    const peak = Number(/peak (\d+)/.exec(stderr)?.[1]) / 1024;
    return { rows, peak, count: await countRows(file) };
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

// Every UTF-16 unit is as likely: controls, halves of pairs, what is no character.
const anyText = fc.string({
  unit: fc.integer({ min: 0, max: 0xffff }).map((unit) => String.fromCharCode(unit)),
});
const controls = fc.string({
  unit: fc.integer({ min: 0, max: 0x7f }).map((unit) => String.fromCharCode(unit)),
});

describe("text of a cell", () => {
  test("holds nothing that XML forbids, whatever it is made of", () => {
    fc.assert(fc.property(fc.oneof(anyText, controls), (text) => {
      // deno-lint-ignore no-control-regex
      expect(cellText(text)).not.toMatch(/[\u0000-\u0008\u000b-\u001f\ufffe\uffff<>"]|\p{Surrogate}/u);
    }));
  });

  test("reads back as what it was", () => {
    fc.assert(
      fc.property(
        fc.oneof(anyText, controls),
        fc.constantFrom("", "_x0041_", "_x005F_", "_x", "\r"),
        (a, b) => {
          const text = a + b + a;
          expect(decoded(cellText(text))).toBe(text);
        },
      ),
    );
  });
});

/** As Excel reads it: markup first, then its own escape. */
function decoded(xml: string): string {
  const entities: Readonly<Record<string, string>> = { amp: "&", lt: "<", gt: ">", quot: '"' };
  return xml.replace(/&(\w+);/g, (_, name: string) => entities[name] ?? "")
    .replace(/_x([0-9A-Fa-f]{4})_/g, (_, hex: string) => String.fromCharCode(parseInt(hex, 16)));
}
