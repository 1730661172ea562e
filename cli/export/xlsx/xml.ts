/** Text and cells in the XML of a workbook (ECMA-376, part 1, SpreadsheetML). */

/** What a cell holds at most, in UTF-16 units; Excel repairs, and so loses, what is longer. */
export const LONGEST_TEXT = 32_767;

// Neither these nor half a surrogate pair may stand in XML at all; a carriage return would be read as a newline.
// deno-lint-ignore no-control-regex
const forbidden = /[\u0000-\u0008\u000b-\u001f\ufffe\uffff]|\p{Surrogate}/gu;
const looksEscaped = /_(?=x[0-9A-Fa-f]{4}_)/g;
const markup = /[&<>"]/g;
const entities: Readonly<Record<string, string>> = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" };

/** Text of a cell: what XML forbids is written `_x0001_`, and a text that looks like that is marked as none. */
export function cellText(text: string): string {
  return text
    .replace(looksEscaped, "_x005F_")
    .replace(forbidden, (unit) => `_x${unit.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}_`)
    .replace(markup, (sign) => entities[sign] ?? sign);
}

/** Text of an attribute, which has no such escape: what XML forbids is left out. */
export function attributeText(text: string): string {
  return text.replace(forbidden, " ").replace(/[\t\n]/g, " ").replace(
    markup,
    (sign) => entities[sign] ?? sign,
  );
}

/** Cell formats by their number in styles.xml. */
export const style = { plain: 0, text: 1, date: 2, heading: 3, label: 4, prose: 5 } as const;
type Style = typeof style[keyof typeof style];

/** A cell of text: never a formula, whatever it begins with. */
export function textCell(at: string, text: string, format: Style = style.plain): string {
  return `<c r="${at}" s="${format}" t="inlineStr"><is><t xml:space="preserve">${
    cellText(text)
  }</t></is></c>`;
}

const MS_PER_DAY = 86_400_000;
// Days from what Excel takes for 0 January 1900 to the beginning of 1970.
const EPOCH = 25_569;

/** A cell with a moment, in UTC as Excel knows no zones; empty without one. */
export function dateCell(at: string, moment: Date | undefined): string {
  if (moment === undefined) return "";
  return `<c r="${at}" s="${style.date}"><v>${moment.getTime() / MS_PER_DAY + EPOCH}</v></c>`;
}

/** A cell with a number. */
export function numberCell(at: string, number: number): string {
  return `<c r="${at}" s="${style.plain}"><v>${number}</v></c>`;
}

/** A cell with a formula, without a value: it is reckoned when the workbook is opened. */
export function formulaCell(at: string, formula: string): string {
  return `<c r="${at}" s="${style.plain}"><f>${cellText(formula)}</f></c>`;
}
