/** A project with a register of the test's choice, behind the addresses and in the format of the function and of Storage. */
import { createHash } from "node:crypto";
import type { IncomingMessage, ServerResponse } from "node:http";
import { makeReport } from "./documents.ts";
import { KEY, serve } from "./fake_function.ts";

/** A row of it. */
export type RegisterRow = {
  readonly part_number: string;
  readonly file_name: string;
  readonly signed_url: string;
  readonly signed_url_expires_at: string;
};

/** What the project answers. */
export type Register = {
  /** So many rows, each made when it is asked for. */
  readonly count: number;
  /** The row at an index from 0; `origin` is the project's address. */
  readonly row: (index: number, origin: string) => RegisterRow;
  /** Rows per page, where fewer than are asked for. */
  readonly pageRows?: number;
  /** Answers a request for a page instead; `undefined` lets it be answered. */
  readonly onPage?: (asked: Asked) => { status: number; body: string } | undefined;
  /** Answers a signed URL. */
  readonly onFile?: (path: string, response: ServerResponse) => void;
};

/** A request for a page. */
export type Asked = { readonly after: string | null; readonly raw: boolean; readonly attempt: number };

/** What a fake project tells. */
export type FakeRegister = { readonly url: string; readonly pages: readonly Asked[] };

const EXPIRY = "2026-12-01T02:00:40+00:00";

/** A row of a plain part: `000001.jpg` and so on, with a URL as long as a real one. */
export function plainRow(index: number, origin: string): RegisterRow {
  const part = String(index + 1).padStart(6, "0");
  return rowOf(part, `${part}.jpg`, origin);
}

/** A row of these names. */
export function rowOf(partNumber: string, fileName: string, origin: string): RegisterRow {
  // No two tokens are alike, as with real ones.
  const token = ["a", "b", "c", "d", "e"].map((salt) =>
    createHash("sha256").update(fileName + salt).digest("base64url")
  ).join("");
  const path = `part-images/${encodeURIComponent(fileName)}`;
  return {
    part_number: partNumber,
    file_name: fileName,
    signed_url: `${origin}/storage/v1/object/sign/${path}?token=eyJhbGciOiJIUzI1NiJ9.${token}`,
    signed_url_expires_at: EXPIRY,
  };
}

/** Serves a project until the test is over. */
export async function serveRegister(register: Register): Promise<FakeRegister> {
  const pages: Asked[] = [];
  let origin = "";
  origin = await serve((request, response) => {
    const url = new URL(request.url ?? "/", origin);
    if (url.pathname.startsWith("/storage/v1/object/sign/")) {
      const path = decodeURIComponent(url.pathname.slice("/storage/v1/object/sign/part-images/".length));
      if (register.onFile === undefined) response.writeHead(404).end();
      else register.onFile(path, response);
    } else if (request.headers["apikey"] !== KEY) response.writeHead(401).end();
    else if (url.pathname === "/functions/v1/image-sync/register.csv") {
      answerPage({ register, pages, origin }, url, response);
    } else answerReport(register, request, response);
  });
  return { url: origin, pages };
}

function answerReport({ count }: Register, _request: IncomingMessage, response: ServerResponse): void {
  const report = makeReport();
  response.writeHead(200, { "content-type": "application/json" })
    .end(JSON.stringify({ ...report, records: { ...report.records, signed: count } }));
}

function answerPage(
  { register, pages, origin }: { register: Register; pages: Asked[]; origin: string },
  url: URL,
  response: ServerResponse,
): void {
  const after = url.searchParams.get("after");
  const raw = url.searchParams.get("text") === "raw";
  const attempt = pages.filter((page) => page.after === after).length + 1;
  const asked = { after, raw, attempt };
  pages.push(asked);
  const other = register.onPage?.(asked);
  if (other !== undefined) {
    response.writeHead(other.status, { "content-type": "text/csv" }).end(other.body);
    return;
  }
  const limit = Math.min(Number(url.searchParams.get("limit")), register.pageRows ?? Infinity);
  const from = Number(after ?? 0);
  const to = Math.min(from + limit, register.count);
  const lines = Array.from(
    { length: to - from },
    (_, index) => line(register.row(from + index, origin), raw),
  );
  response.writeHead(200, {
    "content-type": "text/csv; charset=utf-8",
    ...(to < register.count ? { link: `</register.csv?after=${to}>; rel="next"` } : {}),
  });
  response.end(`\ufeffpart_number,file_name,signed_url,signed_url_expires_at\r\n${lines.join("")}`);
}

function line(row: RegisterRow, raw: boolean): string {
  const { part_number, file_name, signed_url, signed_url_expires_at } = row;
  const values = [part_number, file_name, signed_url, signed_url_expires_at];
  return values.map((value) => field(!raw && /^[=+\-@\t\r]/.test(value) ? `'${value}` : value)).join(",") +
    "\r\n";
}

function field(value: string): string {
  return /[",\r\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value;
}
