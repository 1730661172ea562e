import type { Sql } from "postgres";
import { databaseErrorOf } from "./database_errors.ts";
import { storageFailures } from "./storage_errors.ts";
import { isBucketName } from "./storage_names.ts";

/** What a bucket is made or changed with. */
export type BucketRequest = {
  readonly id?: string | undefined;
  readonly name?: string | undefined;
  readonly public: boolean;
  readonly file_size_limit?: number | null | undefined;
  readonly allowed_mime_types?: string[] | null | undefined;
};

/** A row of `storage.buckets` as the API shows it. */
export type BucketRow = {
  readonly id: string;
  readonly name: string;
  readonly owner: string;
  readonly public: boolean;
  readonly file_size_limit: number | null;
  readonly allowed_mime_types: string[] | null;
  readonly created_at: string;
  readonly updated_at: string;
  readonly type: string;
};

/** The buckets, seen with one role's rights. */
export type StorageBuckets = {
  list(): Promise<BucketRow[]>;
  get(id: string): Promise<BucketRow>;
  /** Answers the new bucket's name. */
  create(request: BucketRequest): Promise<string>;
  update(id: string, request: BucketRequest): Promise<void>;
  /** Removes an empty bucket. */
  remove(id: string): Promise<void>;
  objectNames(id: string): Promise<string[]>;
};

/**
 * Makes the bucket operations. Each throws a StorageFailure where the service would refuse.
 *
 * @param sql a pool whose sessions have the caller's role
 */
export function createStorageBuckets(sql: Sql): StorageBuckets {
  const select = sql`
    select id, name, coalesce(owner::text, '') as owner, public, file_size_limit::float8 as file_size_limit,
      allowed_mime_types, created_at, updated_at, type::text as type
    from storage.buckets`;
  const get = async (id: string) => {
    const [bucket] = await sql<BucketRow[]>`${select} where id = ${id}`;
    if (bucket === undefined) throw storageFailures.noSuchBucket();
    return bucket;
  };
  return {
    get,
    list: async () => [...await sql<BucketRow[]>`${select} order by name`],
    create: (request) => create(sql, request),
    update: async (id, request) => {
      await get(id);
      await sql`
        update storage.buckets
        set public = ${request.public}, file_size_limit = ${request.file_size_limit ?? null},
          allowed_mime_types = ${request.allowed_mime_types ?? null}, updated_at = now()
        where id = ${id}`;
    },
    remove: async (id) => {
      await get(id);
      const [occupied] = await sql`select from storage.objects where bucket_id = ${id} limit 1`;
      if (occupied !== undefined) throw storageFailures.bucketNotEmpty();
      await sql.begin(async (transaction) => {
        await transaction`set local storage.allow_delete_query = 'true'`;
        await transaction`delete from storage.buckets where id = ${id}`;
      });
    },
    objectNames: async (id) => {
      await get(id);
      return (await sql<{ name: string }[]>`select name from storage.objects where bucket_id = ${id}`)
        .map(({ name }) => name);
    },
  };
}

async function create(sql: Sql, request: BucketRequest): Promise<string> {
  const id = request.id ?? request.name ?? "";
  if (!isBucketName(id)) throw storageFailures.invalidBucketName();
  try {
    await sql`
      insert into storage.buckets (id, name, public, file_size_limit, allowed_mime_types)
      values (
        ${id}, ${request.name ?? id}, ${request.public}, ${request.file_size_limit ?? null},
        ${request.allowed_mime_types ?? null}
      )`;
    return request.name ?? id;
  } catch (error) {
    const code = databaseErrorOf(error)?.code;
    if (code === "23505") throw storageFailures.duplicate();
    if (code === "42501") throw storageFailures.accessDenied();
    throw error;
  }
}
