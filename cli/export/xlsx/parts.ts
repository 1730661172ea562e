/** The small parts of a workbook, which hold it together. */
import { HEADER } from "./layout.ts";
import { sheetElement, XML } from "./sheets.ts";
import { attributeText } from "./xml.ts";

const MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main";
const OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships";
const PACKAGE = "http://schemas.openxmlformats.org/package/2006";
const SPREADSHEET = "application/vnd.openxmlformats-officedocument.spreadsheetml";

/**
 * What each part is. It comes first in the file, as programs that look at its first bytes expect, when nobody knows yet how many sheets
 * there will be: so a part of which nothing else is said is a sheet.
 */
export function contentTypes({ hasDrawing }: { readonly hasDrawing: boolean }): string {
  const drawings = "application/vnd.openxmlformats-officedocument.drawing+xml";
  const parts = [
    ...(hasDrawing ? [["/xl/drawings/drawing1.xml", drawings]] : []),
    ["/xl/workbook.xml", `${SPREADSHEET}.sheet.main+xml`],
    ["/xl/styles.xml", `${SPREADSHEET}.styles+xml`],
    ["/docProps/core.xml", "application/vnd.openxmlformats-package.core-properties+xml"],
  ];
  return `${XML}<Types xmlns="${PACKAGE}/content-types">` +
    '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>' +
    `<Default Extension="xml" ContentType="${SPREADSHEET}.worksheet+xml"/>` +
    '<Default Extension="jpeg" ContentType="image/jpeg"/>' +
    parts.map(([name, type]) => `<Override PartName="${name}" ContentType="${type}"/>`).join("") +
    "</Types>";
}

/** Relationships of a part, numbered from `rId1`. */
export function relationships(all: readonly { readonly type: string; readonly target: string }[]): string {
  const elements = all.map(({ type, target }, index) => {
    const kind = type === "core" ? `${PACKAGE}/relationships/metadata/core-properties` : `${OFFICE}/${type}`;
    return `<Relationship Id="rId${index + 1}" Type="${kind}" Target="${target}"/>`;
  });
  return `${XML}<Relationships xmlns="${PACKAGE}/relationships">${elements.join("")}</Relationships>`;
}

/** A sheet of the register and how many rows it has, or any other sheet. */
export type SheetEntry = { readonly name: string; readonly registerRows?: number };

/** The workbook: its sheets in their order, and where their filters are. */
export function workbook(sheets: readonly SheetEntry[]): string {
  const lastColumn = String.fromCharCode(64 + HEADER.length);
  const filters = sheets.flatMap(({ name, registerRows }, index) =>
    registerRows === undefined ? [] : [
      `<definedName name="_xlnm._FilterDatabase" localSheetId="${index}" hidden="1">` +
      `'${attributeText(name)}'!$A$1:$${lastColumn}$${registerRows + 1}</definedName>`,
    ]
  );
  return `${XML}<workbook xmlns="${MAIN}" xmlns:r="${OFFICE}">` +
    '<bookViews><workbookView xWindow="0" yWindow="0" windowWidth="28800" windowHeight="16000"/></bookViews>' +
    `<sheets>${sheets.map(({ name }, index) => sheetElement(name, index)).join("")}</sheets>` +
    `<definedNames>${filters.join("")}</definedNames>` +
    '<calcPr calcId="191029" fullCalcOnLoad="1"/></workbook>';
}

/** Who made it and when. */
export function properties(title: string, madeAt: Date): string {
  return `${XML}<cp:coreProperties xmlns:cp="${PACKAGE}/metadata/core-properties" ` +
    'xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:dcterms="http://purl.org/dc/terms/" ' +
    'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">' +
    `<dc:title>${attributeText(title)}</dc:title><dc:creator>image-sync</dc:creator>` +
    `<dcterms:created xsi:type="dcterms:W3CDTF">${madeAt.toISOString().slice(0, 19)}Z</dcterms:created>` +
    "</cp:coreProperties>";
}

const DATE_FORMAT = 164;
const TEXT_FORMAT = 49; // "@": stays text when somebody types over it

/** The cell formats, in the order of `style` in xml.ts. */
export function styles(): string {
  const middle = '<alignment vertical="center"/>';
  const format = (numberFormat: number, font: number, fill: number, alignment: string) =>
    `<xf numFmtId="${numberFormat}" fontId="${font}" fillId="${fill}" borderId="0" xfId="0" ` +
    `applyNumberFormat="1" applyFont="1" applyFill="1" applyAlignment="1">${alignment}</xf>`;
  const formats = [
    format(0, 0, 0, middle),
    format(TEXT_FORMAT, 0, 0, middle),
    format(DATE_FORMAT, 0, 0, '<alignment horizontal="left" vertical="center"/>'),
    format(0, 1, 2, middle),
    format(0, 1, 0, '<alignment vertical="top"/>'),
    format(0, 0, 0, '<alignment vertical="top" wrapText="1"/>'),
  ];
  const font = '<sz val="11"/><name val="Calibri"/><family val="2"/>';
  return `${XML}<styleSheet xmlns="${MAIN}">` +
    `<numFmts count="1"><numFmt numFmtId="${DATE_FORMAT}" formatCode="yyyy\\-mm\\-dd\\ hh:mm:ss"/></numFmts>` +
    `<fonts count="2"><font>${font}</font><font><b/>${font}</font></fonts>` +
    '<fills count="3"><fill><patternFill patternType="none"/></fill><fill><patternFill patternType="gray125"/></fill>' +
    '<fill><patternFill patternType="solid"><fgColor rgb="FFE7EDF3"/><bgColor indexed="64"/></patternFill></fill></fills>' +
    '<borders count="1"><border><left/><right/><top/><bottom/><diagonal/></border></borders>' +
    '<cellStyleXfs count="1"><xf numFmtId="0" fontId="0" fillId="0" borderId="0"/></cellStyleXfs>' +
    `<cellXfs count="${formats.length}">${formats.join("")}</cellXfs>` +
    '<cellStyles count="1"><cellStyle name="Normal" xfId="0" builtinId="0"/></cellStyles></styleSheet>';
}
