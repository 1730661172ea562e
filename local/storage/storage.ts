import { isBucketName, isObjectName } from "./names.ts";
import { type Context, Hono } from "hono";
import { databaseErrorOf, type Pool } from "../postgres/database.ts";
import { type ApiRole, roleOfKey, type StackKeys } from "../gateway/keys.ts";
import type { RequestCounter } from "../gateway/request_counts.ts";
import { type BucketRequest, createStorageBuckets } from "./buckets.ts";
import { StorageFailure, storageFailures } from "./errors.ts";
import type { StorageFiles } from "./files.ts";
import { listFolder, listKeys } from "./listing.ts";
import { createStorageObjects, type ObjectRow, type Upload } from "./objects.ts";
import { render, toClaim } from "./rendering.ts";
import { readJson, requestSchemas } from "./requests.ts";
import type { UrlSigner } from "./signing.ts";

/** What the Storage endpoints need. */
export type StorageOptions = {
  /** A pool for each role, whose sessions have that role. */
  readonly sql: Readonly<Record<ApiRole, Pool>>;
  readonly keys: StackKeys;
  readonly files: StorageFiles;
  readonly signer: UrlSigner;
  readonly counter: RequestCounter;
  /** Whether pictures are scaled: the paid plans' image transformation, switched on. */
  readonly imageTransformation: boolean;
};

type ObjectPath = { readonly bucket: string; readonly name: string };

const missingObject = "Either the object does not exist or you do not have access to it";

/** Makes the stand-in for the Storage service: the endpoints that supabase-js calls, below `/storage/v1`. */
export function createStorage(options: StorageOptions): Hono {
  const app = new Hono();
  app.onError((error) => answerError(error));
  addSigning(app, options);
  addOpening(app, options);
  addListing(app, options);
  addRelocating(app, options);
  addBuckets(app, options);
  addObjects(app, options);
  return app;
}

function addSigning(app: Hono, options: StorageOptions): void {
  const { signer } = options;
  app.post("/object/sign/:bucket", async (context) => {
    const { objects } = enter(context, options, "sign_many");
    const { bucket } = context.req.param();
    if (!isBucketName(bucket)) throw storageFailures.invalidBucketName();
    const { expiresIn, paths } = await readJson(context.req.raw, requestSchemas.signMany);
    const existing = await objects.existing(bucket, paths);
    return context.json(
      paths.map((path) =>
        existing.has(path)
          ? { error: null, path, signedURL: signedUrl(signer, `${bucket}/${path}`, expiresIn) }
          : { error: missingObject, path, signedURL: null }
      ),
    );
  });
  app.post("/object/sign/:bucket/:name{.+}", async (context) => {
    const { objects } = enter(context, options, "sign_one");
    const { bucket, name } = context.req.param();
    if (!isBucketName(bucket)) throw storageFailures.invalidBucketName();
    const { expiresIn, transform = {} } = await readJson(context.req.raw, requestSchemas.signOne);
    if (await objects.find(bucket, name) === undefined) throw storageFailures.noSuchObject();
    // The service signs the path of the request, in which escaped characters that mean something in a URL stay escaped.
    const path = decodeURI(new URL(context.req.url).pathname.split("/object/sign/")[1] ?? "");
    // Where pictures are not scaled it answers, without a word, with a URL of the whole one.
    const transformations = options.imageTransformation ? toClaim(transform) : "";
    return context.json({ signedURL: signedUrl(signer, path, expiresIn, transformations) });
  });
}

function addOpening(app: Hono, options: StorageOptions): void {
  const { files, signer } = options;
  const open = async (context: Context, { bucket, name }: ObjectPath) => {
    const token = context.req.query("token");
    if (token === undefined) {
      throw storageFailures.invalidRequest("querystring must have required property 'token'");
    }
    const verified = signer.verify(token);
    if ("problem" in verified) throw storageFailures.invalidToken(verified.problem);
    if (verified.url !== `${bucket}/${name}`) throw storageFailures.tokenForAnotherPath();
    // The bulk endpoint signs any name without a word; opening is where the service looks at it.
    if (!isObjectName(name)) throw storageFailures.invalidName(name);
    // The token is the permission: the row is looked up with full rights.
    const row = await createStorageObjects(options.sql.service_role, files).find(bucket, name);
    return { row, claim: verified.transformations };
  };
  app.get("/object/sign/:bucket/:name{.+}", async (context) => {
    options.counter.countStorage("download_signed");
    const { row } = await open(context, context.req.param());
    return await serveFile(files, row, context.req.header("range"));
  });
  app.get("/render/image/sign/:bucket/:name{.+}", async (context) => {
    options.counter.countStorage("render_signed");
    if (!options.imageTransformation) throw storageFailures.featureNotEnabled();
    const { row, claim } = await open(context, context.req.param());
    if (row === undefined) throw storageFailures.noSuchObject();
    const accept = context.req.header("accept") ?? "";
    const { content, contentType } = await render(await files.read(row.version), { claim, accept });
    return new Response(content, {
      headers: {
        "content-type": contentType,
        "content-length": String(content.byteLength),
        "cache-control": row.metadata?.cacheControl ?? "no-cache",
        "x-transformations": claim,
      },
    });
  });
}

function addListing(app: Hono, options: StorageOptions): void {
  app.post("/object/list/:bucket", async (context) => {
    const { sql } = enter(context, options, "list");
    const { sortBy, ...request } = await readJson(context.req.raw, requestSchemas.list);
    return context.json(await listFolder(sql, context.req.param("bucket"), { ...request, ...sortBy }));
  });
  app.post("/object/list-v2/:bucket", async (context) => {
    const { sql } = enter(context, options, "list_v2");
    const { with_delimiter: withDelimiter, cursor, ...request } = await readJson(
      context.req.raw,
      requestSchemas.listV2,
    );
    return context.json(
      await listKeys(sql, context.req.param("bucket"), { ...request, cursor, withDelimiter }),
    );
  });
}

function addRelocating(app: Hono, options: StorageOptions): void {
  app.post("/object/move", async (context) => {
    const { objects } = enter(context, options, "move");
    await objects.move(...await readPlaces(context.req.raw));
    return context.json({ message: "Successfully moved" });
  });
  app.post("/object/copy", async (context) => {
    const { objects } = enter(context, options, "copy");
    const [source, destination] = await readPlaces(context.req.raw);
    const { id } = await objects.copy(source, destination);
    return context.json({ Id: id, Key: `${destination.bucketId}/${destination.name}` });
  });
}

function addBuckets(app: Hono, options: StorageOptions): void {
  app.get("/bucket", async (context) => {
    const { sql } = enter(context, options, "bucket_list");
    return context.json(await createStorageBuckets(sql).list());
  });
  app.get("/bucket/:id", async (context) => {
    const { sql } = enter(context, options, "bucket_get");
    return context.json(await createStorageBuckets(sql).get(context.req.param("id")));
  });
  app.post("/bucket", async (context) => {
    const { sql } = enter(context, options, "bucket_create");
    const request: BucketRequest = await readJson(context.req.raw, requestSchemas.bucket);
    return context.json({ name: await createStorageBuckets(sql).create(request) });
  });
  app.put("/bucket/:id", async (context) => {
    const { sql } = enter(context, options, "bucket_update");
    const request: BucketRequest = await readJson(context.req.raw, requestSchemas.bucket);
    await createStorageBuckets(sql).update(context.req.param("id"), request);
    return context.json({ message: "Successfully updated" });
  });
  app.post("/bucket/:id/empty", async (context) => {
    const { sql, objects } = enter(context, options, "bucket_empty");
    const id = context.req.param("id");
    await objects.remove(id, await createStorageBuckets(sql).objectNames(id));
    return context.json({ message: "Successfully emptied" });
  });
  app.delete("/bucket/:id", async (context) => {
    const { sql } = enter(context, options, "bucket_delete");
    await createStorageBuckets(sql).remove(context.req.param("id"));
    return context.json({ message: "Successfully deleted" });
  });
}

function addObjects(app: Hono, options: StorageOptions): void {
  const { files } = options;
  app.get("/object/info/:bucket/:name{.+}", async (context) => {
    const { objects } = enter(context, options, "info");
    const { bucket, name } = context.req.param();
    const row = await objects.find(bucket, name);
    if (row === undefined) throw storageFailures.noSuchObject();
    const { metadata, user_metadata: userMetadata, ...rest } = row;
    return context.json({
      ...rest,
      size: metadata?.size,
      content_type: metadata?.mimetype,
      metadata: userMetadata,
    });
  });
  const download = async (context: Context, { bucket, name }: ObjectPath) => {
    const { objects } = enter(context, options, "download");
    return await serveFile(files, await objects.find(bucket, name), context.req.header("range"));
  };
  app.get("/object/authenticated/:bucket/:name{.+}", (context) => download(context, context.req.param()));
  app.get("/object/:bucket/:name{.+}", (context) => download(context, context.req.param()));
  const store = async (context: Context, { bucket, name }: ObjectPath, mode: Upload["mode"]) => {
    const { objects } = enter(context, options, "upload");
    const { id } = await objects.upload({
      ...await readUpload(context.req.raw),
      bucketId: bucket,
      name,
      mode,
    });
    return context.json({ Key: `${bucket}/${name}`, Id: id });
  };
  app.post("/object/:bucket/:name{.+}", (context) => {
    const mode = context.req.header("x-upsert") === "true" ? "upsert" : "create";
    return store(context, context.req.param(), mode);
  });
  app.put("/object/:bucket/:name{.+}", (context) => store(context, context.req.param(), "replace"));
  app.delete("/object/:bucket", async (context) => {
    const { objects } = enter(context, options, "remove");
    const { prefixes } = await readJson(context.req.raw, requestSchemas.remove);
    return context.json(await objects.remove(context.req.param("bucket"), prefixes));
  });
  app.delete("/object/:bucket/:name{.+}", async (context) => {
    const { objects } = enter(context, options, "remove_one");
    const { bucket, name } = context.req.param();
    const removed = await objects.remove(bucket, [name]);
    if (removed.length === 0) throw storageFailures.noSuchObject();
    return context.json({ message: "Successfully deleted" });
  });
}

// Every operation begins here: it is counted, and its key decides whose rights it has.
function enter(context: Context, { sql, keys, files, counter }: StorageOptions, operation: string) {
  counter.countStorage(operation);
  const bearer = context.req.header("authorization")?.replace(/^Bearer /i, "") ??
    context.req.header("apikey");
  if (bearer === undefined) throw storageFailures.missingAuthorization();
  const role = roleOfKey(keys, bearer);
  if (role === undefined) throw storageFailures.invalidKey();
  return { sql: sql[role], objects: createStorageObjects(sql[role], files) };
}

// The service puts the path into the URL as it is: escaping it is the client's business.
function signedUrl(signer: UrlSigner, path: string, expiresIn: number, transformations = ""): string {
  const kind = transformations === "" ? "object" : "render/image";
  return `/${kind}/sign/${path}?token=${signer.sign(path, expiresIn, transformations)}`;
}

async function serveFile(
  files: StorageFiles,
  row: ObjectRow | undefined,
  range: string | undefined,
): Promise<Response> {
  if (row === undefined) throw storageFailures.noSuchObject();
  const whole = await files.read(row.version);
  const [from, to] = readRange(range, whole.byteLength);
  const content = whole.subarray(from, to);
  const isPart = content.byteLength < whole.byteLength;
  return new Response(content, {
    status: isPart ? 206 : 200,
    headers: {
      ...(isPart ? { "content-range": `bytes ${from}-${to - 1}/${whole.byteLength}` } : {}),
      "accept-ranges": "bytes",
      "content-type": row.metadata?.mimetype ?? "application/octet-stream",
      "content-length": String(content.byteLength),
      "cache-control": row.metadata?.cacheControl ?? "no-cache",
      "last-modified": new Date(row.updated_at).toUTCString(),
      ...(row.metadata === null ? {} : { etag: row.metadata.eTag }),
    },
  });
}

/** Where a part begins and ends (exclusive), as `Range: bytes=from-to` asks for it; all of the file without one. */
function readRange(range: string | undefined, size: number): readonly [from: number, to: number] {
  const [, first, last] = /^bytes=(\d+)-(\d*)$/.exec(range ?? "") ?? [];
  if (first === undefined) return [0, size];
  if (Number(first) >= size) throw storageFailures.rangeNotSatisfiable();
  return [Number(first), last === "" ? size : Math.min(Number(last) + 1, size)];
}

async function readPlaces(request: Request) {
  const body = await readJson(request, requestSchemas.relocate);
  return [
    { bucketId: body.bucketId, name: body.sourceKey },
    { bucketId: body.destinationBucket ?? body.bucketId, name: body.destinationKey },
  ] as const;
}

// supabase-js sends a Blob or File as a form with the file in a field without a name, anything else as the body itself.
async function readUpload(request: Request): Promise<Omit<Upload, "bucketId" | "name" | "mode">> {
  const type = request.headers.get("content-type") ?? "application/octet-stream";
  if (!type.startsWith("multipart/form-data")) {
    return {
      content: new Uint8Array(await request.arrayBuffer()),
      mimetype: type,
      cacheControl: request.headers.get("cache-control") ?? "no-cache",
      userMetadata: null,
    };
  }
  const form = await request.formData();
  const file = [...form.values()].find((value) => value instanceof File);
  if (file === undefined) throw storageFailures.invalidRequest("No content provided");
  const seconds = form.get("cacheControl");
  return {
    content: new Uint8Array(await file.arrayBuffer()),
    mimetype: file.type === "" ? "application/octet-stream" : file.type,
    cacheControl: typeof seconds === "string" ? `max-age=${seconds}` : "no-cache",
    userMetadata: null,
  };
}

function answerError(error: unknown): Response {
  if (error instanceof StorageFailure) return describe(error);
  const { code, message } = databaseErrorOf(error) ?? { code: "", message: String(error) };
  // 57014: cancelled by a timeout. No code: the connection failed.
  return describe(
    code === "57014" || code === "" ? storageFailures.databaseTimeout() : storageFailures.internal(message),
  );
}

function describe({ answer: { httpStatus, ...body } }: StorageFailure): Response {
  return Response.json(body, { status: httpStatus });
}
