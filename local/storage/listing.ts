import { Buffer } from "node:buffer";
import type { Pool } from "../postgres/database.ts";

/** An entry of a listing: a file, or a folder, which has a name only. */
export type ListEntry = {
  readonly name: string;
  readonly id: string | null;
  readonly updated_at: string | null;
  readonly created_at: string | null;
  readonly last_accessed_at: string | null;
  readonly metadata: unknown;
};

/** What `list` is asked for. */
export type ListRequest = {
  /** A folder, without its trailing slash; "" is the root. */
  readonly prefix: string;
  readonly limit: number;
  readonly offset: number;
  readonly search: string;
  readonly column: "name" | "updated_at" | "created_at" | "last_accessed_at";
  readonly order: "asc" | "desc";
};

/** The service cuts a larger limit down without saying so. */
const maxListLimit = 1500;

/**
 * One folder's files and folders, a page by offset, sorted by `lower(name)`.
 *
 * The real one also loses files at page edges; this one does not, so it must not be taken for a proof that listing is safe.
 */
export async function listFolder(sql: Pool, bucketId: string, request: ListRequest): Promise<ListEntry[]> {
  const folder = request.prefix.replace(/\/$/, "");
  const start = folder === "" ? "" : `${folder}/`;
  const level = folder === "" ? 1 : folder.split("/").length + 1;
  const wanted = escapeLike(start + request.search);
  const sortKey = request.column === "name" ? `lower(name) collate "C"` : request.column;
  const { rows } = await sql.query<ListEntry>(
    `with found as (
      select name, id, updated_at, created_at, last_accessed_at, metadata, path_tokens
      from storage.objects
      where bucket_id = $1 and name ilike $2
    ),
    entries as (
      select path_tokens[$3] as name, id, updated_at, created_at, last_accessed_at, metadata
      from found where cardinality(path_tokens) = $3
      union all
      select distinct path_tokens[$3], null::uuid, null::timestamptz, null::timestamptz, null::timestamptz, null::jsonb
      from found where cardinality(path_tokens) > $3
    )
    select name, id, updated_at, created_at, last_accessed_at, metadata
    from entries
    order by ${sortKey} ${request.order}, name collate "C"
    limit $4 offset $5`,
    [bucketId, `${wanted}%`, level, Math.min(request.limit, maxListLimit), request.offset],
  );
  return rows;
}

/** What `list-v2` is asked for. */
export type ListV2Request = {
  readonly prefix: string;
  readonly limit: number;
  readonly cursor: string | undefined;
  readonly withDelimiter: boolean;
};

/** A page of `list-v2`. */
export type ListV2Page = {
  readonly hasNext: boolean;
  readonly nextCursor?: string;
  readonly folders: readonly { readonly name: string; readonly key: string }[];
  readonly objects: readonly (ListEntry & { readonly key: string })[];
};

/** The page of keys after `cursor`, in the order of bytes. With a delimiter, folders stand for what they hold. */
export async function listKeys(sql: Pool, bucketId: string, request: ListV2Request): Promise<ListV2Page> {
  const limit = Math.max(1, Math.min(request.limit, 1000));
  const after = request.cursor === undefined ? "" : Buffer.from(request.cursor, "base64url").toString();
  const rows = request.withDelimiter
    ? await groupedKeys(sql, bucketId, { ...request, after, limit: limit + 1 })
    : await flatKeys(sql, bucketId, { ...request, after, limit: limit + 1 });
  const page = rows.slice(0, limit);
  const last = page.at(-1);
  const hasNext = rows.length > limit;
  return {
    hasNext,
    ...(hasNext && last !== undefined ? { nextCursor: Buffer.from(last.name).toString("base64url") } : {}),
    folders: page.filter(({ id }) => id === null).map(({ name }) => ({
      name: name.replace(/\/$/, ""),
      key: name,
    })),
    objects: page.filter(({ id }) => id !== null).map((row) => ({ ...row, key: row.name })),
  };
}

type KeyRange = { readonly prefix: string; readonly after: string; readonly limit: number };

async function flatKeys(
  sql: Pool,
  bucketId: string,
  { prefix, after, limit }: KeyRange,
): Promise<ListEntry[]> {
  const { rows } = await sql.query<ListEntry>(
    `select name, id, updated_at, created_at, last_accessed_at, metadata
    from storage.objects
    where bucket_id = $1
      and name collate "C" > $3
      and name collate "C" >= $2
      and ($2 = '' or starts_with(name, $2))
    order by name collate "C"
    limit $4`,
    [bucketId, prefix, after, limit],
  );
  return rows;
}

async function groupedKeys(
  sql: Pool,
  bucketId: string,
  { prefix, after, limit }: KeyRange,
): Promise<ListEntry[]> {
  const { rows } = await sql.query<ListEntry>(
    `with keys as (
      select
        *,
        position('/' in substr(name, length($2) + 1)) as slash
      from storage.objects
      where bucket_id = $1 and ($2 = '' or starts_with(name, $2))
    ),
    entries as (
      select name, id, updated_at, created_at, last_accessed_at, metadata from keys where slash = 0
      union all
      select distinct left(name, length($2) + slash), null::uuid, null::timestamptz, null::timestamptz,
        null::timestamptz, null::jsonb
      from keys where slash > 0
    )
    select name, id, updated_at, created_at, last_accessed_at, metadata
    from entries
    where name collate "C" > $3
    order by name collate "C"
    limit $4`,
    [bucketId, prefix, after, limit],
  );
  return rows;
}

function escapeLike(text: string): string {
  return text.replace(/[\\%_]/g, "\\$&");
}
