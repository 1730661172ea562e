import { randomUUID } from "node:crypto";
import type { Sql, TransactionSql } from "postgres";
import { storageFailures } from "./storage_errors.ts";
import type { StorageFiles } from "./storage_files.ts";
import { isObjectName } from "./storage_names.ts";

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
export function createStorageObjects(sql: Sql, files: StorageFiles): StorageObjects {
  const find = async (bucketId: string, name: string) => {
    const [row] = await sql<ObjectRow[]>`
      select id, bucket_id, name, owner, created_at, updated_at, last_accessed_at, metadata, user_metadata, version
      from storage.objects where bucket_id = ${bucketId} and name = ${name}`;
    return row;
  };
  const copy = async (source: ObjectPlace, destination: ObjectPlace) => {
    const row = await find(source.bucketId, source.name);
    if (row === undefined) throw storageFailures.noSuchObject();
    return await upload(sql, files, {
      ...destination,
      content: await contentOf(files, row),
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
      const rows = await sql<{ name: string }[]>`
        select name from storage.objects where bucket_id = ${bucketId} and name = any (${
        sql.array([...names])
      }::text[])`;
      return new Set(rows.map(({ name }) => name));
    },
    remove: (bucketId, names) => remove(sql, files, bucketId, names),
    move: async (source, destination) => {
      const row = await find(source.bucketId, source.name);
      if (row === undefined) throw storageFailures.noSuchObject();
      if (!isObjectName(destination.name)) throw storageFailures.invalidName(destination.name);
      await sql`
        update storage.objects set bucket_id = ${destination.bucketId}, name = ${destination.name}
        where id = ${row.id}`.catch(explainConflict);
    },
  };
}

/** The content of an object; a row without a file is the service's fault, not the caller's. */
export async function contentOf(files: StorageFiles, row: ObjectRow): Promise<Uint8Array<ArrayBuffer>> {
  const content = row.version === null ? undefined : await files.read(row.version);
  if (content === undefined) {
    throw storageFailures.internal(`The file of ${row.bucket_id}/${row.name} does not exist`);
  }
  return content;
}

async function upload(sql: Sql, files: StorageFiles, file: Upload): Promise<{ id: string }> {
  if (!isObjectName(file.name)) throw storageFailures.invalidName(file.name);
  await checkBucketLimits(sql, file);
  const version = randomUUID();
  await files.write(version, file.content);
  try {
    const { id, replaced } = await sql.begin((transaction) => storeRow(transaction, file, version));
    if (replaced !== null) await files.remove(replaced);
    return { id };
  } catch (error) {
    await files.remove(version);
    return explainConflict(error);
  }
}

async function storeRow(
  sql: TransactionSql,
  file: Upload,
  version: string,
): Promise<{ id: string; replaced: string | null }> {
  const metadata = sql.json(metadataOf(file));
  const userMetadata = file.userMetadata === null ? null : JSON.stringify(file.userMetadata);
  const [existing] = await sql<{ id: string; version: string | null }[]>`
    select id, version from storage.objects
    where bucket_id = ${file.bucketId} and name = ${file.name} for update`;
  if (existing === undefined) {
    if (file.mode === "replace") throw storageFailures.noSuchObject();
    const [made] = await sql<{ id: string }[]>`
      insert into storage.objects (bucket_id, name, metadata, user_metadata, version)
      values (${file.bucketId}, ${file.name}, ${metadata}, ${userMetadata}::text::jsonb, ${version})
      returning id`;
    if (made === undefined) throw storageFailures.accessDenied();
    return { id: made.id, replaced: null };
  }
  if (file.mode === "create") throw storageFailures.duplicate();
  await sql`
    update storage.objects
    set metadata = ${metadata}, user_metadata = ${userMetadata}::text::jsonb, version = ${version},
      last_accessed_at = now()
    where id = ${existing.id}`;
  return { id: existing.id, replaced: existing.version };
}

async function checkBucketLimits(sql: Sql, file: Upload): Promise<void> {
  const [bucket] = await sql<{ file_size_limit: string | null; allowed_mime_types: string[] | null }[]>`
    select file_size_limit, allowed_mime_types from storage.buckets where id = ${file.bucketId}`;
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
  sql: Sql,
  files: StorageFiles,
  bucketId: string,
  names: readonly string[],
): Promise<ObjectRow[]> {
  const rows = await sql.begin(async (transaction) => {
    await transaction`set local storage.allow_delete_query = 'true'`;
    return await transaction<ObjectRow[]>`
      delete from storage.objects
      where bucket_id = ${bucketId} and name = any (${sql.array([...names])}::text[])
      returning id, bucket_id, name, owner, created_at, updated_at, last_accessed_at, metadata, user_metadata, version`;
  });
  await Promise.all(rows.map(({ version }) => version === null ? undefined : files.remove(version)));
  return [...rows];
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
  if (error instanceof Error && "code" in error) {
    if (error.code === "23505") throw storageFailures.duplicate();
    if (error.code === "23503") throw storageFailures.noSuchBucket();
    if (error.code === "42501") throw storageFailures.accessDenied();
  }
  throw error;
}
