/** The sheets of a workbook as XML, made while it is written. */
import type { Row } from "../register.ts";
import { HEADER, IMAGE_COLUMN, type Layout } from "./layout.ts";
import { attributeText, dateCell, formulaCell, numberCell, style, textCell } from "./xml.ts";

/** The beginning of every part. */
export const XML = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\n';
const MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main";
const RELATIONSHIPS = "http://schemas.openxmlformats.org/officeDocument/2006/relationships";
const HEADER_HEIGHT = 20; // pt

/** What is written of each row, and how. */
export type SheetOptions = {
  readonly layout: Layout;
  /** The rows from here to the sheet's end, in small lots. */
  readonly rows: AsyncIterable<readonly Row[]>;
  /** What shows a picture: a formula in its cell, or a drawing over it. */
  readonly pictures: "formula" | "drawing";
  /** Told how many rows there are when all are written. */
  readonly onRows: (count: number) => void;
  /** Whether this sheet is the one that is seen first. */
  readonly isFirst: boolean;
};

/** A sheet of the register: frozen header, filter, the URL as text, the picture beside it. */
export async function* registerSheet(options: SheetOptions): AsyncGenerator<string> {
  const { layout, rows, pictures, onRows, isFirst } = options;
  yield beginning(layout, isFirst);
  let last = 1;
  for await (const lot of rows) {
    yield lot.map((row) => registerRow(row, ++last, { layout, pictures })).join("");
  }
  onRows(last - 1);
  const whole = `A1:${letter(HEADER.length - 1)}${last}`;
  yield `</sheetData><autoFilter ref="${whole}"/>` +
    '<pageMargins left="0.5" right="0.5" top="0.75" bottom="0.75" header="0.3" footer="0.3"/>' +
    '<pageSetup orientation="landscape" fitToHeight="0"/>' +
    // Part numbers are text that looks like numbers, and meant to be.
    `<ignoredErrors><ignoredError sqref="A1:B${last}" numberStoredAsText="1"/></ignoredErrors>` +
    (pictures === "drawing" ? '<drawing r:id="rId1"/>' : "") +
    "</worksheet>";
}

function beginning({ widths, rowHeight }: Layout, isFirst: boolean): string {
  const columns = widths.map((width, index) =>
    `<col min="${index + 1}" max="${index + 1}" width="${width.toFixed(2)}" customWidth="1"/>`
  );
  const header = HEADER.map((name, index) => textCell(`${letter(index)}1`, name, style.heading));
  return `${XML}<worksheet xmlns="${MAIN}" xmlns:r="${RELATIONSHIPS}">` +
    '<sheetPr><pageSetUpPr fitToPage="1"/></sheetPr>' +
    `<sheetViews><sheetView workbookViewId="0"${isFirst ? ' tabSelected="1"' : ""}>` +
    '<pane ySplit="1" topLeftCell="A2" activePane="bottomLeft" state="frozen"/>' +
    '<selection pane="bottomLeft" activeCell="A2" sqref="A2"/></sheetView></sheetViews>' +
    `<sheetFormatPr defaultRowHeight="${rowHeight}" customHeight="1"/>` +
    `<cols>${columns.join("")}</cols><sheetData>` +
    `<row r="1" ht="${HEADER_HEIGHT}" customHeight="1">${header.join("")}</row>`;
}

function registerRow(
  { partNumber, fileName, signedUrl, expiresAt }: Row,
  number: number,
  { layout, pictures }: Pick<SheetOptions, "layout" | "pictures">,
): string {
  return `<row r="${number}" ht="${layout.rowHeight}" customHeight="1">` +
    textCell(`A${number}`, partNumber, style.text) +
    textCell(`B${number}`, fileName, style.text) +
    textCell(`C${number}`, signedUrl) +
    dateCell(`D${number}`, expiresAt) +
    // By reference: Excel refuses a literal of more than 255 characters.
    (pictures === "formula"
      ? formulaCell(`${letter(IMAGE_COLUMN)}${number}`, `_xlfn.IMAGE(C${number})`)
      : "") +
    "</row>";
}

/** A line of the sheet about the workbook. */
export type Line = readonly [label: string, value: string | number | Date | undefined];

/** The sheet that says where the register comes from, what its URLs are worth, and how to get a newer one. */
export function aboutSheet(lines: readonly Line[]): string {
  const rows = lines.map(([label, value], index) => {
    const number = index + 1;
    const labelled = textCell(`A${number}`, label, style.label);
    return `<row r="${number}">${labelled}${valueCell(`B${number}`, value)}</row>`;
  });
  return `${XML}<worksheet xmlns="${MAIN}"><cols><col min="1" max="1" width="24" customWidth="1"/>` +
    '<col min="2" max="2" width="110" customWidth="1"/></cols>' +
    `<sheetData>${rows.join("")}</sheetData></worksheet>`;
}

function valueCell(at: string, value: Line[1]): string {
  if (value === undefined) return "";
  if (typeof value === "number") return numberCell(at, value);
  return typeof value === "string" ? textCell(at, value, style.prose) : dateCell(at, value);
}

/** The letter of a column, from 0; none of ours lies beyond Z. */
function letter(column: number): string {
  return String.fromCharCode(65 + column);
}

/** A name in an attribute of the workbook. */
export function sheetElement(name: string, index: number): string {
  return `<sheet name="${attributeText(name)}" sheetId="${index + 1}" r:id="rId${index + 1}"/>`;
}
