/** The register as the function hands it out: CSV, page by page, each page whole before it is used. */
import pRetry from "p-retry";
import { z } from "zod";
import type { Client } from "../client.ts";
import { CommandError } from "../command_error.ts";
import type { Page } from "./page.ts";

/** The register's columns, in their order. */
export const COLUMNS = ["part_number", "file_name", "signed_url", "signed_url_expires_at"] as const;

/** A row of the register: one part with its working URL. */
export type Row = {
  readonly partNumber: string;
  readonly fileName: string;
  readonly signedUrl: string;
  /** When the URL dies; `undefined` where nobody knows. */
  readonly expiresAt: Date | undefined;
};

/**
 * Rows per request, of 100,000 that the function would give: 5 MB, which a slow line carries within one timeout, and which can be asked
 * for again when it was cut.
 */
const PAGE_ROWS = 10_000;
const ATTEMPTS = 5;

/** Options of {@linkcode readPages}. */
export type ReadOptions = {
  readonly client: Pick<Client, "register">;
  readonly bucket: string;
  /** Values as they are; without it those that a spreadsheet would run as a formula are marked as text. */
  readonly raw: boolean;
  /** Aborted by Ctrl-C. */
  readonly signal: AbortSignal;
};

/**
 * The register's pages as CSV without header and byte order mark. The next one is on its way while one is used: memory holds two.
 *
 * @throws {CommandError} what the client throws when it throws that again and again.
 */
export async function* readPages({ client, bucket, raw, signal }: ReadOptions): AsyncGenerator<string> {
  const ask = (after: string | undefined) => {
    const page = pRetry(
      () =>
        client.register({ bucket, raw, limit: PAGE_ROWS, ...(after === undefined ? {} : { after }) }, signal),
      {
        retries: ATTEMPTS - 1,
        minTimeout: 500,
        signal,
        shouldRetry: ({ error }) => error instanceof CommandError && error.transient,
      },
    );
    page.catch(() => {}); // whoever waits for it hears of it; nobody does once they have left
    return page;
  };
  let next: Promise<Page> | undefined = ask(undefined);
  while (next !== undefined) {
    const page: Page = await next;
    next = page.next === undefined ? undefined : ask(page.next);
    yield page.rows;
  }
}

const rowSchema = z.tuple([z.string(), z.string(), z.string(), z.string()]).transform(
  ([partNumber, fileName, signedUrl, expiresAt]): Row => ({
    partNumber,
    fileName,
    signedUrl,
    expiresAt: expiresAt === "" ? undefined : new Date(expiresAt),
  }),
).refine(({ expiresAt }) => !Number.isNaN(expiresAt?.getTime()), "signed_url_expires_at is no time");
const rowsSchema = z.array(rowSchema);

/** The rows of each page. */
export async function* readRows(pages: AsyncIterable<string>): AsyncGenerator<readonly Row[]> {
  const { parse } = await import("csv-parse/sync");
  for await (const page of pages) {
    const rows = rowsSchema.safeParse(parse(page, { relaxColumnCount: true }));
    if (rows.success) yield rows.data;
    else throw notUnderstood(rows.error);
  }
}

/** How many rows a page of CSV has: line ends outside of quotes. */
export function countRows(page: string): number {
  let rows = 0;
  let isQuoted = false;
  for (let at = 0; at < page.length; at++) {
    const code = page.charCodeAt(at);
    if (code === QUOTE) isQuoted = !isQuoted;
    else if (code === NEWLINE && !isQuoted) rows++;
  }
  return page === "" || page.endsWith("\n") ? rows : rows + 1;
}

const QUOTE = 0x22;
const NEWLINE = 0x0a;

function notUnderstood(cause: unknown): CommandError {
  return new CommandError(
    "not_understood",
    "Cannot understand the register: a row is not what this command knows; bring function and commands to one version",
    { cause },
  );
}
