import { Readable, type Writable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { type Job, tallied, type Written } from "./job.ts";
import { COLUMNS, countRows, readPages } from "./register.ts";

// Excel takes a CSV without it for one in the encoding of the country.
const BYTE_ORDER_MARK = "\ufeff";

/** Writes the register as CSV: what the function answers, its pages put together. */
export async function exportCsv(stream: Writable, job: Job): Promise<Written> {
  const { context: { client, bucket }, signal } = job;
  let rows = 0;
  const rowsOf = (page: string) => {
    const count = countRows(page);
    rows += count;
    return count;
  };
  const pages = tallied(readPages({ client, bucket, raw: false, signal }), rowsOf, job);
  await pipeline(Readable.from(lines(pages), { objectMode: false }), stream, { signal });
  return { rows };
}

async function* lines(pages: AsyncIterable<string>): AsyncGenerator<Buffer> {
  yield Buffer.from(`${BYTE_ORDER_MARK}${COLUMNS.join(",")}\r\n`);
  for await (const page of pages) {
    yield Buffer.from(page === "" || page.endsWith("\n") ? page : `${page}\r\n`);
  }
}
