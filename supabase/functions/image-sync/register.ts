/**
 * `register.csv`: the register of a bucket as a spreadsheet reads it (RFC 4180). It is streamed page by page, so that a hundred
 * thousand rows need no more memory than five thousand: what is sent is what the database made, and nothing of it is looked at here.
 */
import { cursorOf, MAX_REGISTER_ROWS, type RegisterQuery } from "./contract.ts";
import type { Database } from "./database.ts";
import { beginDownload, streamOf } from "./downloads.ts";
import { log, messageOf } from "./log.ts";

/** A spreadsheet tells UTF-8 by the byte order mark alone. */
const HEADER = "\ufeffpart_number,file_name,signed_url,signed_url_expires_at\r\n";
/** A page of tags, in rows. */
const TAG_ROWS = 20_000;

/** What an answer will hold: found out before its first byte is sent. */
type Extent = {
  readonly bucket: string;
  readonly etag: string;
  /** The key of its last row where more rows follow; null where it reaches to the end. */
  readonly last: string | null;
};

/**
 * Answers a request of the register: 304 where the caller has it already, else its rows, with a `Link` to the next page where more
 * follow. An error in the middle breaks the connection, so that nobody takes a part for the whole.
 *
 * @param path where the register lives, for the `Link`
 * @param key names the caller's key, for the bound of downloads side by side
 */
export async function answerRegister(
  request: Request,
  { query, database, path, key }: { query: RegisterQuery; database: Database; path: string; key: string },
): Promise<Response> {
  const end = beginDownload(key);
  try {
    return await answerDownload(request, { query, database, path, end });
  } catch (error) {
    end();
    throw error;
  }
}

async function answerDownload(
  request: Request,
  { query, database, path, end }: { query: RegisterQuery; database: Database; path: string; end: () => void },
): Promise<Response> {
  const extent = await measure(query, database);
  const headers = {
    ETag: extent.etag,
    "Cache-Control": "private, no-cache",
    Vary: "Authorization, apikey",
    ...(extent.last === null ? {} : { Link: linkTo(path, query, extent) }),
  };
  const known = request.headers.get("If-None-Match")?.split(",").map((tag) => tag.trim()) ?? [];
  if (known.includes(extent.etag) || known.includes("*")) {
    end();
    return new Response(null, { status: 304, headers });
  }
  const rows = streamOf(linesOf(query, extent, database), (error) => {
    end();
    if (error !== undefined) log("register_broke_off", { bucket: extent.bucket, error: messageOf(error) });
  });
  return new Response(rows, {
    headers: {
      ...headers,
      "Content-Type": "text/csv; charset=utf-8; header=present",
      "Content-Disposition": 'attachment; filename="part_register.csv"',
      "X-Content-Type-Options": "nosniff",
    },
  });
}

async function measure(query: RegisterQuery, database: Database): Promise<Extent> {
  const tags: string[] = [query.text];
  let bucket = query.bucket;
  let after = query.after ?? "";
  let left = query.limit;
  let last: string | null;
  do {
    const page = await database.readRegisterTag({ bucket, after, limit: Math.min(left, TAG_ROWS) });
    bucket = page.bucket_id;
    tags.push(page.tag);
    left -= page.rows;
    last = page.last;
    after = last ?? after;
  } while (last !== null && left > 0);
  if (last !== null && !(await follows(bucket, last, database))) last = null;
  return { bucket, last, etag: await etagOf([...tags, bucket, query.after ?? "", last ?? ""]) };
}

/** A page may be full and the last one all the same, and records follow that show nothing. */
async function follows(bucket: string, key: string, database: Database): Promise<boolean> {
  for (let after: string | null = key; after !== null;) {
    const page = await database.readRegisterTag({ bucket, after, limit: 1 });
    if (page.rows > 0) return true;
    after = page.last;
  }
  return false;
}

/** Weak: another reader may have got other bytes of the same rows, in other pages. */
async function etagOf(parts: readonly string[]): Promise<string> {
  const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(JSON.stringify(parts)));
  const hex = Array.from(new Uint8Array(digest, 0, 12), (byte) => byte.toString(16).padStart(2, "0"));
  return `W/"${hex.join("")}"`;
}

function linkTo(path: string, query: RegisterQuery, { bucket, last }: Extent): string {
  const next = new URLSearchParams({ bucket, after: cursorOf(last ?? "") });
  if (query.limit !== MAX_REGISTER_ROWS) next.set("limit", String(query.limit));
  if (query.text !== "escaped") next.set("text", query.text);
  return `<${path}?${next}>; rel="next"`;
}

async function* linesOf(query: RegisterQuery, extent: Extent, database: Database): AsyncGenerator<string> {
  yield HEADER;
  for (let after: string | null = query.after ?? ""; after !== null;) {
    const page = await database.readRegister({
      bucket: extent.bucket,
      after,
      until: extent.last,
      raw: query.text === "raw",
    });
    yield page.csv;
    after = page.last;
  }
}
