import { randomUUID } from "node:crypto";
import { databaseErrorOf, inTransaction, type Pool, type Session } from "../postgres/database.ts";
import { storageFailures } from "./errors.ts";
import type { StorageFiles } from "./files.ts";
import { isObjectName } from "./names.ts";

/** A row of `storage.objects` as the API shows it. */
export type ObjectRow = {
  readonly id: string;
  readonly bucket_id: string;
  readonly name: string;
  readonly owner: string | null;
  readonly created_at: string;
  readonly updated_at: string;
  readonly last_accessed_at: string;
  readonly metadata: ObjectMetadata | null;
  readonly user_metadata: Record<string, unknown> | null;
  readonly version: string | null;
};

/** What the service stores about a file. */
export type ObjectMetadata = {
  readonly eTag: string;
  readonly size: number;
  readonly mimetype: string;
  readonly cacheControl: string;
  readonly lastModified: string;
  readonly contentLength: number;
  readonly httpStatusCode: number;
};

const columns =
  "id, bucket_id, name, owner, created_at, updated_at, last_accessed_at, metadata, user_metadata, version";

/** A file on its way into a bucket. */
export type Upload = {
  readonly bucketId: string;
  readonly name: string;
  readonly content: Uint8Array;
  readonly mimetype: string;
  readonly cacheControl: string;
  readonly userMetadata: Record<string, unknown> | null;
  /** `create` refuses a name that exists, `replace` one that does not, `upsert` takes either. */
  readonly mode: "create" | "upsert" | "replace";
};

/** The objects of all buckets, seen with one role's rights. */
export type StorageObjects = {
  upload(upload: Upload): Promise<{ id: string }>;
  find(bucketId: string, name: string): Promise<ObjectRow | undefined>;
  /** Which of these names exist. */
  existing(bucketId: string, names: readonly string[]): Promise<Set<string>>;
  /** Removes rows and files; answers the rows that there were. */
  remove(bucketId: string, names: readonly string[]): Promise<ObjectRow[]>;
  move(source: ObjectPlace, destination: ObjectPlace): Promise<void>;
  copy(source: ObjectPlace, destination: ObjectPlace): Promise<{ id: string }>;
};

/** Where an object is. */
export type ObjectPlace = { readonly bucketId: string; readonly name: string };

/**
 * Makes the object operations.
 *
 * @param sql a pool whose sessions have the caller's role
 */
export function createStorageObjects(sql: Pool, files: StorageFiles): StorageObjects {
  const find = async (bucketId: string, name: string) => {
    const { rows: [row] } = await sql.query<ObjectRow>({
      // Planned once in a session: it is asked for every file that is opened.
      name: "find_object",
      text: `select ${columns} from storage.objects where bucket_id = $1 and name = $2`,
      values: [bucketId, name],
    });
    return row;
  };
  const copy = async (source: ObjectPlace, destination: ObjectPlace) => {
    const row = await find(source.bucketId, source.name);
    if (row === undefined) throw storageFailures.noSuchObject();
    return await upload(sql, files, {
      ...destination,
      content: await files.read(row.version),
      mimetype: row.metadata?.mimetype ?? "application/octet-stream",
      cacheControl: row.metadata?.cacheControl ?? "max-age=3600",
      userMetadata: row.user_metadata,
      mode: "create",
    });
  };
  return {
    find,
    copy,
    upload: (file) => upload(sql, files, file),
    existing: async (bucketId, names) => {
      const { rows } = await sql.query<{ name: string }>(
        "select name from storage.objects where bucket_id = $1 and name = any ($2::text[])",
        [bucketId, names],
      );
      return new Set(rows.map(({ name }) => name));
    },
    remove: (bucketId, names) => remove(sql, files, bucketId, names),
    move: async (source, destination) => {
      const row = await find(source.bucketId, source.name);
      if (row === undefined) throw storageFailures.noSuchObject();
      if (!isObjectName(destination.name)) throw storageFailures.invalidName(destination.name);
      await move(sql, files, row, destination);
    },
  };
}

/** The row stays, with its id; the content is copied to a version of its own, and the old one goes. */
async function move(
  sql: Pool,
  files: StorageFiles,
  row: ObjectRow,
  { bucketId, name }: ObjectPlace,
): Promise<void> {
  const version = randomUUID();
  await files.write(version, await files.read(row.version));
  try {
    await sql.query("update storage.objects set bucket_id = $2, name = $3, version = $4 where id = $1", [
      row.id,
      bucketId,
      name,
      version,
    ]);
  } catch (error) {
    await files.remove(version);
    return explainConflict(error);
  }
  if (row.version !== null) await files.remove(row.version);
}

async function upload(sql: Pool, files: StorageFiles, file: Upload): Promise<{ id: string }> {
  if (!isObjectName(file.name)) throw storageFailures.invalidName(file.name);
  await checkBucketLimits(sql, file);
  const version = randomUUID();
  await files.write(version, file.content);
  try {
    const { id, replaced } = await inTransaction(sql, (session) => storeRow(session, file, version));
    if (replaced !== null) await files.remove(replaced);
    return { id };
  } catch (error) {
    await files.remove(version);
    return explainConflict(error);
  }
}

async function storeRow(
  session: Session,
  file: Upload,
  version: string,
): Promise<{ id: string; replaced: string | null }> {
  const values = [file.bucketId, file.name, metadataOf(file), file.userMetadata, version];
  const { rows: [existing] } = await session.query<{ id: string; version: string | null }>(
    "select id, version from storage.objects where bucket_id = $1 and name = $2 for update",
    values.slice(0, 2),
  );
  if (existing === undefined) {
    if (file.mode === "replace") throw storageFailures.noSuchObject();
    const { rows: [made] } = await session.query<{ id: string }>(
      `insert into storage.objects (bucket_id, name, metadata, user_metadata, version)
      values ($1, $2, $3, $4, $5)
      returning id`,
      values,
    );
    if (made === undefined) throw storageFailures.accessDenied();
    return { id: made.id, replaced: null };
  }
  if (file.mode === "create") throw storageFailures.duplicate();
  await session.query(
    `update storage.objects
    set metadata = $3, user_metadata = $4, version = $5, last_accessed_at = now()
    where bucket_id = $1 and name = $2`,
    values,
  );
  return { id: existing.id, replaced: existing.version };
}

type BucketLimits = { readonly file_size_limit: string | null; readonly allowed_mime_types: string[] | null };

async function checkBucketLimits(sql: Pool, file: Upload): Promise<void> {
  const { rows: [bucket] } = await sql.query<BucketLimits>(
    "select file_size_limit, allowed_mime_types from storage.buckets where id = $1",
    [file.bucketId],
  );
  if (bucket === undefined) throw storageFailures.noSuchBucket();
  const { file_size_limit: limit, allowed_mime_types: types } = bucket;
  if (limit !== null && file.content.byteLength > Number(limit)) throw storageFailures.fileTooLarge();
  const isAllowed = types === null ||
    types.some((type) =>
      type === file.mimetype || (type.endsWith("/*") && file.mimetype.startsWith(type.slice(0, -1)))
    );
  if (!isAllowed) throw storageFailures.invalidMimeType(file.mimetype);
}

async function remove(
  sql: Pool,
  files: StorageFiles,
  bucketId: string,
  names: readonly string[],
): Promise<ObjectRow[]> {
  const { rows } = await inTransaction(sql, async (session) => {
    await session.query("set local storage.allow_delete_query = 'true'");
    return await session.query<ObjectRow>(
      `delete from storage.objects where bucket_id = $1 and name = any ($2::text[]) returning ${columns}`,
      [bucketId, names],
    );
  });
  await Promise.all(rows.map(({ version }) => version === null ? undefined : files.remove(version)));
  return rows;
}

function metadataOf({ content, mimetype, cacheControl }: Upload): ObjectMetadata {
  return {
    eTag: `"${randomUUID().replaceAll("-", "")}"`,
    size: content.byteLength,
    mimetype,
    cacheControl,
    lastModified: new Date().toISOString(),
    contentLength: content.byteLength,
    httpStatusCode: 200,
  };
}

function explainConflict(error: unknown): never {
  const code = databaseErrorOf(error)?.code;
  if (code === "23505") throw storageFailures.duplicate();
  if (code === "23503") throw storageFailures.noSuchBucket();
  if (code === "42501") throw storageFailures.accessDenied();
  throw error;
}
