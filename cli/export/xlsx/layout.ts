/** How the register's sheet looks: widths, heights, where a picture stands. */
import { COLUMNS, type Row } from "../register.ts";

/** A sheet holds so many rows, the header among them. */
export const SHEET_ROWS = 1_048_576;

/** The header's names: the register's columns, then the picture. */
export const HEADER = [...COLUMNS, "image"] as const;
/** The column of the picture, from 0. */
export const IMAGE_COLUMN = HEADER.length - 1;

/** Pixels to points, as row heights are counted, at 96 dots an inch. */
const POINTS_PER_PIXEL = 0.75;
/** Pixels to the unit of drawings. */
const EMU_PER_PIXEL = 9_525;
/** Pixels of a digit in the workbook's font, which column widths are counted in. */
const DIGIT_PIXELS = 7;
/** Pixels between a picture and the edge of its cell. */
const MARGIN = 2;
/** What `=IMAGE()` has for its picture without thumbnails, in pixels. */
const FORMULA_PICTURE = 96;

const NARROWEST = 12;
const WIDEST = 60;
/** The URL is for formulas, not for eyes. */
const URL_WIDTH = 40;
const DATE_WIDTH = 22;

/** Measures of a sheet, in the units of its XML. */
export type Layout = {
  /** Column widths, in digits. */
  readonly widths: readonly number[];
  /** Of every row but the header, in points. */
  readonly rowHeight: number;
  /** Edge of the square that a picture fits into, in pixels. */
  readonly picture: number;
};

/** Widths that fit these rows, of which there may be more, and room for a picture of `size` pixels. */
export function layOutSheet(sample: readonly Row[], size: number = FORMULA_PICTURE): Layout {
  const fit = (name: string, values: readonly string[]) => {
    const longest = values.reduce((length, value) => Math.max(length, longestLine(value)), name.length + 3);
    return Math.min(Math.max(longest + 2, NARROWEST), WIDEST);
  };
  return {
    widths: [
      fit(HEADER[0], sample.map(({ partNumber }) => partNumber)),
      fit(HEADER[1], sample.map(({ fileName }) => fileName)),
      URL_WIDTH,
      DATE_WIDTH,
      Math.max((size + 2 * MARGIN) / DIGIT_PIXELS, HEADER[4].length + 3),
    ],
    rowHeight: (size + 2 * MARGIN) * POINTS_PER_PIXEL,
    picture: size,
  };
}

function longestLine(text: string): number {
  return text.split("\n").reduce((length, line) => Math.max(length, line.length), 0);
}

/** A length of a drawing. */
export function emu(pixels: number): number {
  return Math.round(pixels * EMU_PER_PIXEL);
}

/** Where a picture of this size begins and ends in its cell: in the middle, in pixels from its top left corner. */
export function placeIn(
  layout: Layout,
  { width, height }: { readonly width: number; readonly height: number },
) {
  const columnPixels = Math.floor((layout.widths[IMAGE_COLUMN] ?? 0) * DIGIT_PIXELS);
  const left = Math.max(MARGIN, Math.floor((columnPixels - width) / 2));
  const top = MARGIN + Math.floor((layout.picture - height) / 2);
  return { left, top, right: left + width, bottom: top + height };
}
