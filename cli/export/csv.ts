import { Readable, type Writable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { COLUMNS } from "./register.ts";

// Excel takes a CSV without it for one in the encoding of the country.
const BYTE_ORDER_MARK = "\ufeff";

/** Writes the register as CSV: what the function answers, its pages put together. */
export async function writeCsv(
  stream: Writable,
  { pages, signal }: { readonly pages: AsyncIterable<string>; readonly signal: AbortSignal },
): Promise<void> {
  await pipeline(Readable.from(lines(pages), { objectMode: false }), stream, { signal });
}

async function* lines(pages: AsyncIterable<string>): AsyncGenerator<Buffer> {
  yield Buffer.from(`${BYTE_ORDER_MARK}${COLUMNS.join(",")}\r\n`);
  for await (const page of pages) {
    yield Buffer.from(page === "" || page.endsWith("\n") ? page : `${page}\r\n`);
  }
}
