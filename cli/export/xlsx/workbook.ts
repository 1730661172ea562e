/** The register as a workbook: sheets of rows, and one that says what they are. */
import type { Writable } from "node:stream";
import type { Row } from "../register.ts";
import { drawing, drawingRelationships, mediaName, type PlacedPicture } from "./drawing.ts";
import { type Layout, layOutSheet, SHEET_ROWS } from "./layout.ts";
import { type AddPart, writePackage } from "./package.ts";
import { contentTypes, properties, relationships, type SheetEntry, styles, workbook } from "./parts.ts";
import { aboutSheet, type Line, registerSheet } from "./sheets.ts";

/** A picture to put into a row's cell. */
export type Picture = { readonly jpeg: Uint8Array; readonly width: number; readonly height: number };

/** Pictures instead of formulas: the rows they belong to, each with its picture where it has one. */
export type PicturesOption = {
  /** Edge of the square that every picture fits into, in pixels. */
  readonly size: number;
  /** All rows, with their pictures: one sheet of them at most, and all of them in memory, but for the pictures. */
  readonly rows: AsyncIterable<{ readonly row: Row; readonly picture: Picture | undefined }>;
};

/** What a workbook is made of. */
export type WorkbookOptions = {
  readonly title: string;
  readonly madeAt: Date;
  /** The rows in lots, or all of them with pictures. */
  readonly content: { readonly lots: AsyncIterable<readonly Row[]> } | PicturesOption;
  /** The lines of the sheet about it, asked for when all rows are written. */
  readonly about: (rows: number) => readonly Line[];
  readonly signal: AbortSignal;
  /** Data rows on one sheet; the rest goes on to further ones. For tests. */
  readonly sheetRows?: number;
};

const FIRST_SHEET = "Register";

/**
 * Writes a workbook to a stream, in flat memory whatever the number of rows.
 *
 * @returns how many rows it has, and on how many sheets
 */
export async function writeWorkbook(
  stream: Writable,
  options: WorkbookOptions,
): Promise<{ readonly rows: number; readonly sheets: number }> {
  return await writePackage(stream, options.signal, async (add) => {
    await add("[Content_Types].xml", contentTypes({ hasDrawing: "size" in options.content }));
    await add(
      "_rels/.rels",
      relationships([
        { type: "officeDocument", target: "xl/workbook.xml" },
        { type: "core", target: "docProps/core.xml" },
      ]),
    );
    await add("docProps/core.xml", properties(options.title, options.madeAt));
    await add("xl/styles.xml", styles());
    const { content } = options;
    const sheets = "lots" in content
      ? await addSheets(add, content.lots, options.sheetRows ?? SHEET_ROWS - 1)
      : await addPictureSheet(add, content);
    const rows = sheets.reduce((sum, { registerRows }) => sum + registerRows, 0);
    await add("xl/worksheets/about.xml", aboutSheet(options.about(rows)));
    await addIndex(add, sheets);
    return { rows, sheets: sheets.length };
  });
}

type RegisterSheet = SheetEntry & { readonly registerRows: number };

// As many sheets as the rows need; the first one is there even without any.
async function addSheets(
  add: AddPart,
  lots: AsyncIterable<readonly Row[]>,
  sheetRows: number,
): Promise<RegisterSheet[]> {
  const cursor = createCursor(lots);
  const sheets: RegisterSheet[] = [];
  const layout = layOutSheet(await cursor.peek());
  do {
    const number = sheets.length + 1;
    let registerRows = 0;
    await add(
      `xl/worksheets/sheet${number}.xml`,
      registerSheet({
        layout,
        rows: cursor.take(sheetRows),
        pictures: "formula",
        onRows: (count) => registerRows = count,
        isFirst: number === 1,
      }),
    );
    sheets.push({ name: number === 1 ? FIRST_SHEET : `${FIRST_SHEET} ${number}`, registerRows });
  } while ((await cursor.peek()).length > 0);
  return sheets;
}

// Pictures come before the sheet, each written when it is there; what the sheet needs of them is small.
async function addPictureSheet(
  add: AddPart,
  { rows: source, size }: PicturesOption,
): Promise<RegisterSheet[]> {
  const rows: Row[] = [];
  const placed: PlacedPicture[] = [];
  for await (const { row, picture } of source) {
    rows.push(row);
    if (picture === undefined) continue;
    placed.push({ row: rows.length + 1, width: picture.width, height: picture.height, name: row.fileName });
    await add(`xl/media/${mediaName(placed.length)}`, picture.jpeg);
  }
  const layout = layOutSheet(rows, size);
  const lots = createCursor(once(rows)).take(rows.length);
  await add(
    "xl/worksheets/sheet1.xml",
    registerSheet({ layout, rows: lots, pictures: "drawing", onRows: () => {}, isFirst: true }),
  );
  await addDrawing(add, placed, layout);
  return [{ name: FIRST_SHEET, registerRows: rows.length }];
}

async function addDrawing(add: AddPart, placed: readonly PlacedPicture[], layout: Layout): Promise<void> {
  await add(
    "xl/worksheets/_rels/sheet1.xml.rels",
    relationships([{ type: "drawing", target: "../drawings/drawing1.xml" }]),
  );
  await add("xl/drawings/drawing1.xml", drawing(placed, layout));
  await add("xl/drawings/_rels/drawing1.xml.rels", drawingRelationships(placed.length));
}

async function addIndex(add: AddPart, sheets: readonly RegisterSheet[]): Promise<void> {
  const [first, ...further] = sheets.map((sheet, index) => ({
    sheet,
    target: `worksheets/sheet${index + 1}.xml`,
  }));
  const about = { sheet: { name: "About" }, target: "worksheets/about.xml" };
  const all = [...(first === undefined ? [] : [first]), about, ...further];
  await add("xl/workbook.xml", workbook(all.map(({ sheet }) => sheet)));
  await add(
    "xl/_rels/workbook.xml.rels",
    relationships([
      ...all.map(({ target }) => ({ type: "worksheet", target })),
      { type: "styles", target: "styles.xml" },
    ]),
  );
}

/** Rows that come in lots of any size, taken in small ones. */
type Cursor = {
  /** What comes next; nothing at the end. */
  peek(): Promise<readonly Row[]>;
  /** So many rows, or as many as there are. */
  take(count: number): AsyncIterable<readonly Row[]>;
};

// Few enough that the XML of a lot is small, many enough that what waits for it does not count.
const LOT = 250;

function createCursor(lots: AsyncIterable<readonly Row[]>): Cursor {
  const source = lots[Symbol.asyncIterator]();
  let lot: readonly Row[] = [];
  let at = 0;
  const refill = async () => {
    while (at >= lot.length) {
      const { value, done } = await source.next();
      if (done === true) return;
      lot = value;
      at = 0;
    }
  };
  return {
    async peek() {
      await refill();
      return lot.slice(at);
    },
    async *take(count) {
      for (let left = count; left > 0;) {
        await refill();
        const taken = lot.slice(at, at + Math.min(LOT, left));
        if (taken.length === 0) return;
        at += taken.length;
        left -= taken.length;
        yield taken;
      }
    },
  };
}

async function* once<T>(value: T): AsyncGenerator<T> {
  yield value;
}
