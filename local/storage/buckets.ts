import { databaseErrorOf, inTransaction, type Pool } from "../postgres/database.ts";
import { storageFailures } from "./errors.ts";
import { isBucketName } from "./names.ts";

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
export function createStorageBuckets(sql: Pool): StorageBuckets {
  const get = async (id: string) => {
    const { rows: [bucket] } = await sql.query<BucketRow>(`${selectBuckets} where id = $1`, [id]);
    if (bucket === undefined) throw storageFailures.noSuchBucket();
    return bucket;
  };
  return {
    get,
    list: async () => (await sql.query<BucketRow>(`${selectBuckets} order by name`)).rows,
    create: (request) => create(sql, request),
    update: async (id, request) => {
      await get(id);
      await sql.query(
        `update storage.buckets
        set public = $2, file_size_limit = $3, allowed_mime_types = $4, updated_at = now()
        where id = $1`,
        [id, request.public, request.file_size_limit ?? null, request.allowed_mime_types ?? null],
      );
    },
    remove: async (id) => {
      await get(id);
      const { rowCount } = await sql.query("select from storage.objects where bucket_id = $1 limit 1", [id]);
      if (rowCount !== 0) throw storageFailures.bucketNotEmpty();
      await inTransaction(sql, async (session) => {
        await session.query("set local storage.allow_delete_query = 'true'");
        await session.query("delete from storage.buckets where id = $1", [id]);
      });
    },
    objectNames: async (id) => {
      await get(id);
      const { rows } = await sql.query<{ name: string }>(
        "select name from storage.objects where bucket_id = $1",
        [id],
      );
      return rows.map(({ name }) => name);
    },
  };
}

const selectBuckets = `
  select id, name, coalesce(owner::text, '') as owner, public, file_size_limit::float8 as file_size_limit,
    allowed_mime_types, created_at, updated_at, type::text as type
  from storage.buckets`;

async function create(sql: Pool, request: BucketRequest): Promise<string> {
  const id = request.id ?? request.name ?? "";
  if (!isBucketName(id)) throw storageFailures.invalidBucketName();
  try {
    await sql.query(
      `insert into storage.buckets (id, name, public, file_size_limit, allowed_mime_types)
      values ($1, $2, $3, $4, $5)`,
      [
        id,
        request.name ?? id,
        request.public,
        request.file_size_limit ?? null,
        request.allowed_mime_types ?? null,
      ],
    );
    return request.name ?? id;
  } catch (error) {
    const code = databaseErrorOf(error)?.code;
    if (code === "23505") throw storageFailures.duplicate();
    if (code === "42501") throw storageFailures.accessDenied();
    throw error;
  }
}
