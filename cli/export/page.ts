/** A page of the register as the function answers it. */
import { noSense } from "../failures.ts";

/** Which page of the register. */
export type PageQuery = {
  readonly bucket: string;
  /** The {@linkcode Page}`.next` of the page before it. */
  readonly after?: string;
  /** So many rows. */
  readonly limit: number;
  /** Values as they are, also those that a spreadsheet would run as a formula. */
  readonly raw: boolean;
};

/** A page of the register. */
export type Page = {
  /** CSV without header and byte order mark. */
  readonly rows: string;
  /** The `after` of the next page; `undefined` on the last one. */
  readonly next: string | undefined;
};

const HEADER = /^\ufeff?part_number,file_name,signed_url,signed_url_expires_at(\r?\n|$)/;

/**
 * Takes an answer apart.
 *
 * @param given `after` is the one that was asked with
 * @throws {CommandError} `not_understood` when it is no page, or its next page is none: a register that ends in the middle is worse than none.
 */
export function parsePage(
  { csv, link, after, url }: {
    readonly csv: string;
    readonly link: string | null;
    readonly after: string | undefined;
    readonly url: string;
  },
): Page {
  const header = HEADER.exec(csv)?.[0];
  if (header === undefined) throw noSense(url, new Error("The header is another"));
  const next = afterOfNext(link, url);
  if (next === null || (next !== undefined && next === after)) {
    throw noSense(url, new Error("The next page is none"));
  }
  return { rows: csv.slice(header.length), next };
}

// Of the next page's address only where that page begins, because the key is for this host alone; `null` where it does not say.
function afterOfNext(link: string | null, url: string): string | null | undefined {
  const target = /<([^>]*)>\s*;[^,]*\brel="?next"?/.exec(link ?? "")?.[1];
  if (target === undefined) return undefined;
  return URL.canParse(target, url) ? new URL(target, url).searchParams.get("after") : null;
}
