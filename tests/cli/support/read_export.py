"""Reads an export as Python's own readers do, and prints what is in it as JSON.

read_export.py FILE.csv            every record
read_export.py FILE.xlsx           every cell, format, width, height and picture
read_export.py FILE.xlsx --count   the number of rows of the first sheet, and its last part number
"""

import csv
import json
import sys
import warnings

# A picture that is left out, a part that is not understood: openpyxl warns where Excel would repair.
warnings.simplefilter("error")


def read_csv(path):
    with open(path, newline="", encoding="utf-8-sig") as file:
        return list(csv.reader(file, strict=True))


def read_workbook(path):
    from openpyxl import load_workbook

    book = load_workbook(path)
    return {"properties": {"title": book.properties.title}, "sheets": [read_sheet(sheet) for sheet in book]}


def read_sheet(sheet):
    return {
        "name": sheet.title,
        "frozen": sheet.freeze_panes,
        "filter": sheet.auto_filter.ref,
        "hyperlinks": len(sheet._hyperlinks),
        "widths": {name: column.width for name, column in sheet.column_dimensions.items()},
        "heights": {row: sheet.row_dimensions[row].height for row in range(1, sheet.max_row + 1)},
        "rows": [[read_cell(cell) for cell in row] for row in sheet.iter_rows()],
        "pictures": [read_picture(picture) for picture in sheet._images],
    }


def read_cell(cell):
    from openpyxl.utils.escape import unescape

    kind = "formula" if cell.data_type == "f" else "date" if cell.is_date else type(cell.value).__name__
    value = cell.value
    if kind == "date":
        value = value.isoformat() + "Z"
    elif kind == "str":
        # openpyxl decodes Excel's escapes of control characters when it is asked to.
        value = unescape(value)
    return {"kind": kind, "value": value, "format": cell.number_format}


def read_picture(picture):
    from PIL import Image

    start, end = picture.anchor._from, picture.anchor.to
    opened = Image.open(picture.ref)
    opened.load()
    red, green, blue = opened.convert("RGB").getpixel((2, 2))
    return {
        "row": start.row + 1,
        "column": start.col + 1,
        "end": [end.row + 1, end.col + 1],
        "moves": picture.anchor.editAs,
        "size": [opened.width, opened.height],
        "shown": [(end.colOff - start.colOff) // 9525, (end.rowOff - start.rowOff) // 9525],
        "bottom": end.rowOff / 12700,
        "corner": [red, green, blue],
        "format": opened.format,
        "name": picture.anchor.pic.nvPicPr.cNvPr.descr,
    }


def count_rows(path):
    """By Python's own zip and XML, which keep up with a hundred thousand rows."""
    from xml.etree.ElementTree import iterparse
    from zipfile import ZipFile

    space = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
    rows = 0
    last = None
    with ZipFile(path) as book, book.open("xl/worksheets/sheet1.xml") as sheet:
        for _, element in iterparse(sheet):
            if element.tag == space + "row":
                rows += 1
                last = element.find(f"{space}c/{space}is/{space}t").text
                element.clear()
    return {"rows": rows, "last": last}


def main():
    path = sys.argv[1]
    if path.lower().endswith(".csv"):
        found = read_csv(path)
    elif "--count" in sys.argv:
        found = count_rows(path)
    else:
        found = read_workbook(path)
    json.dump(found, sys.stdout)


main()
