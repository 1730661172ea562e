/** Readers of exports that are not ours: Python's csv, and openpyxl of Debian's `python3-openpyxl` (with `python3-pil`). */
import { execFile } from "node:child_process";
import { existsSync } from "node:fs";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { z } from "zod";

const run = promisify(execFile);
const script = fileURLToPath(new URL("read_export.py", import.meta.url));
// Debian's packages belong to Debian's Python, whatever stands before it in the path.
const python = existsSync("/usr/bin/python3") ? "/usr/bin/python3" : "python3";

const cellSchema = z.object({
  kind: z.string(),
  value: z.union([z.string(), z.number(), z.null()]),
  format: z.string(),
});
const pictureSchema = z.object({
  row: z.number(),
  column: z.number(),
  end: z.tuple([z.number(), z.number()]),
  moves: z.string(),
  size: z.tuple([z.number(), z.number()]),
  shown: z.tuple([z.number(), z.number()]),
  bottom: z.number(),
  corner: z.tuple([z.number(), z.number(), z.number()]),
  format: z.string(),
  name: z.string(),
});
const sheetSchema = z.object({
  name: z.string(),
  frozen: z.string().nullable(),
  filter: z.string().nullable(),
  hyperlinks: z.number(),
  widths: z.record(z.string(), z.number()),
  heights: z.record(z.string(), z.number().nullable()),
  rows: z.array(z.array(cellSchema)),
  pictures: z.array(pictureSchema),
});
const bookSchema = z.object({
  properties: z.object({ title: z.string() }),
  sheets: z.array(sheetSchema),
});
const countSchema = z.object({ rows: z.number(), last: z.string().nullable() });

/** A workbook as openpyxl has it. */
export type Book = z.infer<typeof bookSchema>;

/** Why the readers are not there; `undefined` where they are. */
export async function missingReaders(): Promise<string | undefined> {
  const missing = await run(python, ["-c", "import openpyxl, PIL"]).then(
    () => undefined,
    (error) => String(error),
  );
  if (missing === undefined) return undefined;
  if (process.env["IMAGE_SYNC_REQUIRE_OPENPYXL"] !== undefined) {
    throw new Error(`The reader of workbooks is required and not there: ${missing}`);
  }
  return "python3-openpyxl and python3-pil are not installed";
}

/** Every record of a CSV file, its header first. */
export async function readCsv(path: string): Promise<string[][]> {
  return z.array(z.array(z.string())).parse(await read(path));
}

/** Everything in a workbook. */
export async function readBook(path: string): Promise<Book> {
  return bookSchema.parse(await read(path));
}

/** How many rows the first sheet has, and the first cell of the last of them. */
export async function countRows(path: string): Promise<z.infer<typeof countSchema>> {
  return countSchema.parse(await read(path, "--count"));
}

async function read(...args: string[]): Promise<unknown> {
  const { stdout } = await run(python, [script, ...args], { maxBuffer: 500_000_000 });
  return JSON.parse(stdout);
}
