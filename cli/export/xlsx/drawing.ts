/** The pictures of a sheet as XML: each anchored in its row, so that it is sorted, filtered and hidden with it. */
import { emu, IMAGE_COLUMN, type Layout, placeIn } from "./layout.ts";
import { XML } from "./sheets.ts";
import { attributeText } from "./xml.ts";

/** A picture that is in the workbook already. */
export type PlacedPicture = {
  /** Its row in the sheet, from 1. */
  readonly row: number;
  /** In pixels. */
  readonly width: number;
  readonly height: number;
  /** What is said of it to those who cannot see it. */
  readonly name: string;
};

const NAMESPACES = 'xmlns:xdr="http://schemas.openxmlformats.org/drawingml/2006/spreadsheetDrawing" ' +
  'xmlns:a="http://schemas.openxmlformats.org/drawingml/2006/main" ' +
  'xmlns:r="http://schemas.openxmlformats.org/officeDocument/2006/relationships"';
const IMAGE_TYPE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/image";

/** The drawing part: a picture each. */
export function* drawing(pictures: readonly PlacedPicture[], layout: Layout): Generator<string> {
  yield `${XML}<xdr:wsDr ${NAMESPACES}>`;
  for (const [index, picture] of pictures.entries()) yield anchor(picture, index + 1, layout);
  yield "</xdr:wsDr>";
}

/** Which file each picture of the drawing is. */
export function* drawingRelationships(count: number): Generator<string> {
  yield `${XML}<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">`;
  for (let number = 1; number <= count; number++) {
    yield `<Relationship Id="rId${number}" Type="${IMAGE_TYPE}" Target="../media/${mediaName(number)}"/>`;
  }
  yield "</Relationships>";
}

/** The file of a picture, by its number from 1. */
export function mediaName(number: number): string {
  return `image${number}.jpeg`;
}

function anchor(picture: PlacedPicture, number: number, layout: Layout): string {
  const { left, top, right, bottom } = placeIn(layout, picture);
  const corner = (name: string, x: number, y: number) =>
    `<xdr:${name}><xdr:col>${IMAGE_COLUMN}</xdr:col><xdr:colOff>${emu(x)}</xdr:colOff>` +
    `<xdr:row>${picture.row - 1}</xdr:row><xdr:rowOff>${emu(y)}</xdr:rowOff></xdr:${name}>`;
  return '<xdr:twoCellAnchor editAs="twoCell">' + corner("from", left, top) + corner("to", right, bottom) +
    `<xdr:pic><xdr:nvPicPr><xdr:cNvPr id="${number + 1}" name="Picture ${number}" ` +
    `descr="${attributeText(picture.name)}"/>` +
    '<xdr:cNvPicPr><a:picLocks noChangeAspect="1"/></xdr:cNvPicPr></xdr:nvPicPr>' +
    `<xdr:blipFill><a:blip r:embed="rId${number}"/><a:stretch><a:fillRect/></a:stretch></xdr:blipFill>` +
    `<xdr:spPr><a:xfrm><a:off x="0" y="0"/><a:ext cx="${emu(picture.width)}" cy="${
      emu(picture.height)
    }"/></a:xfrm>` +
    '<a:prstGeom prst="rect"><a:avLst/></a:prstGeom></xdr:spPr></xdr:pic><xdr:clientData/></xdr:twoCellAnchor>';
}
