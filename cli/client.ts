import { z } from "zod";
import {
  type Archived,
  archivedSchema,
  type ArchiveList,
  archiveListSchema,
  type BucketChange,
  bucketChangeSchema,
  type BucketList,
  bucketListSchema,
  type ChangeSettings,
  type Expiry,
  expirySchema,
  fileSchema,
  type FileStatus,
  type History,
  historySchema,
  type NewReader,
  newReaderSchema,
  type Plan,
  planSchema,
  type ReaderList,
  readerListSchema,
  type ReaderRemoval,
  readerRemovalSchema,
  type RecordList,
  recordListSchema,
  type RecordsQuery,
  type Report,
  reportSchema,
  type Run,
  type RunList,
  runListSchema,
  runSchema,
  type RunsQuery,
  type Settings,
  settingsSchema,
  type startRequestSchema,
} from "../supabase/functions/image-sync/contract.ts";
import { CommandError } from "./command_error.ts";
import type { Connection } from "./connection.ts";
import { type Page, type PageQuery, parsePage } from "./export/page.ts";
import { noAnswer, noSense, refusal } from "./failures.ts";

/** The body of a start, with what has a default left out at will. */
export type StartBody = z.input<typeof startRequestSchema>;

/** The function's HTTP API. Every call throws a {@linkcode CommandError} that says what to do. */
export type Client = {
  /** Starts a run, or finds the one that is open in its mode (`created` is false then). */
  start(body: StartBody): Promise<{ readonly run: Run; readonly created: boolean }>;
  run(id: string): Promise<Run>;
  /** Sets a worker to a run that is open. Starts nothing. */
  wake(id: string): Promise<Run>;
  cancel(id: string): Promise<Run>;
  report(bucket: string, signal?: AbortSignal): Promise<Report>;
  file(bucket: string, name: string): Promise<FileStatus>;
  /** All names of a dry run's list, in byte order. */
  plan(run: string): Promise<string[]>;
  /** A page of them, behind `after`. */
  planPage(page: { run: string; after: string; limit: number }): Promise<Plan>;
  /** Every bucket that is kept in step, with its verdict. */
  buckets(): Promise<BucketList>;
  addBucket(bucket: string): Promise<BucketChange>;
  removeBucket(bucket: string): Promise<BucketChange>;
  /** A page of the history of runs, newest first. */
  runs(query: RunsQuery): Promise<RunList>;
  /** A page of files and records by name, state and search. */
  records(query: Partial<RecordsQuery>): Promise<RecordList>;
  /** How many URLs die on which day. */
  expiry(bucket: string): Promise<Expiry>;
  /** The days on which something ran. */
  history(bucket: string, days: number): Promise<History>;
  settings(bucket: string): Promise<Settings>;
  /** Changes all of these settings, or none. */
  changeSettings(change: ChangeSettings): Promise<Settings>;
  /** The cleanups that archived something, newest first. */
  archives(bucket: string): Promise<ArchiveList>;
  /** A page of the records that a cleanup archived. */
  archived(page: { run: string; after: string; limit: number }): Promise<Archived>;
  /** Everybody who has a right to read the register and nothing else. */
  readers(): Promise<ReaderList>;
  /** Adds a reader by HTTPS, with a key that is shown this once. */
  addReader(name: string, bucket: string): Promise<NewReader>;
  removeReader(name: string): Promise<ReaderRemoval>;
  /** A page of the register. `signal` gives it up. */
  register(query: PageQuery, signal: AbortSignal): Promise<Page>;
};

/** Options of {@linkcode createClient}. */
export type ClientOptions = {
  /** For one request and its whole answer, in ms. */
  readonly timeout: number;
  /** Gives every request up. */
  readonly signal?: AbortSignal;
};

type Request = {
  readonly method: "GET" | "POST" | "PATCH" | "DELETE";
  /** Below the function's address. */
  readonly path?: `/${string}`;
  /** What is undefined is left out. */
  readonly query?: Record<string, string | number | boolean | undefined>;
  readonly body?: unknown;
  /** What is understood, where that is no JSON. */
  readonly accept?: string;
  readonly signal?: AbortSignal;
};

const startedSchema = runSchema.extend({ created: z.boolean() });

/** Makes a client of the project's function `image-sync`. */
export function createClient(connection: Connection, options: ClientOptions): Client {
  const ask = async <T>(schema: z.ZodType<T>, request: Request): Promise<T> => {
    const { text } = await send(connection, request, options);
    const parsed = schema.safeParse(parseJson(text));
    if (parsed.success) return parsed.data;
    throw noSense(connection.url, parsed.error);
  };
  return {
    start: async (body) => {
      const { created, ...run } = await ask(startedSchema, { method: "POST", body });
      return { run: runSchema.parse(run), created };
    },
    run: (id) => ask(runSchema, { method: "GET", query: { run: id } }),
    wake: (id) => ask(runSchema, { method: "POST", body: { run: id } }),
    cancel: (id) => ask(runSchema, { method: "DELETE", query: { run: id } }),
    report: (bucket, signal) =>
      ask(reportSchema, { method: "GET", query: { bucket }, ...(signal === undefined ? {} : { signal }) }),
    file: (bucket, name) => ask(fileSchema, { method: "GET", query: { bucket, file: name } }),
    async plan(run) {
      const names: string[] = [];
      for (let after: string | null = ""; after !== null;) {
        const page: Plan = await ask(planSchema, { method: "GET", path: "/plan", query: { run, after } });
        names.push(...page.names);
        after = page.next;
      }
      return names;
    },
    planPage: (page) => ask(planSchema, { method: "GET", path: "/plan", query: page }),
    async buckets() {
      const all: BucketList = { buckets: [], next: null };
      for (let after: string | null = ""; after !== null;) {
        const page: BucketList = await ask(bucketListSchema, {
          method: "GET",
          path: "/buckets",
          query: { after },
        });
        all.buckets.push(...page.buckets);
        after = page.next;
      }
      return all;
    },
    async readers() {
      const all: ReaderList = { readers: [], next: null };
      for (let after: string | null = ""; after !== null;) {
        const page: ReaderList = await ask(readerListSchema, {
          method: "GET",
          path: "/readers",
          query: { after },
        });
        all.readers.push(...page.readers);
        after = page.next;
      }
      return all;
    },
    addReader: (name, bucket) =>
      ask(newReaderSchema, { method: "POST", path: "/readers", body: { name, bucket } }),
    removeReader: (name) => ask(readerRemovalSchema, { method: "DELETE", path: "/readers", query: { name } }),
    addBucket: (bucket) => ask(bucketChangeSchema, { method: "POST", path: "/buckets", body: { bucket } }),
    removeBucket: (bucket) =>
      ask(bucketChangeSchema, { method: "DELETE", path: "/buckets", query: { bucket } }),
    runs: (query) => ask(runListSchema, { method: "GET", path: "/runs", query }),
    records: (query) => ask(recordListSchema, { method: "GET", path: "/records", query }),
    expiry: (bucket) => ask(expirySchema, { method: "GET", path: "/expiry", query: { bucket } }),
    history: (bucket, days) =>
      ask(historySchema, { method: "GET", path: "/history", query: { bucket, days } }),
    settings: (bucket) => ask(settingsSchema, { method: "GET", path: "/settings", query: { bucket } }),
    changeSettings: (change) => ask(settingsSchema, { method: "PATCH", path: "/settings", body: change }),
    archives: (bucket) => ask(archiveListSchema, { method: "GET", path: "/archives", query: { bucket } }),
    archived: (page) => ask(archivedSchema, { method: "GET", path: "/archived", query: page }),
    async register({ bucket, after, limit, raw }, signal) {
      const { text, headers } = await send(connection, {
        method: "GET",
        path: "/register.csv",
        query: {
          bucket,
          limit: String(limit),
          ...(after === undefined ? {} : { after }),
          text: raw ? "raw" : "escaped",
        },
        accept: "text/csv, application/problem+json",
        signal,
      }, options);
      return parsePage({ csv: text, link: headers.get("link"), after, url: connection.url });
    },
  };
}

type Answer = { readonly text: string; readonly headers: Headers };

async function send(connection: Connection, request: Request, options: ClientOptions): Promise<Answer> {
  const timeout = AbortSignal.timeout(options.timeout);
  const given = [options.signal, request.signal].filter((signal) => signal !== undefined);
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(request.query ?? {})) {
    if (value !== undefined) query.set(name, String(value));
  }
  const url = `${connection.url}/functions/v1/image-sync${request.path ?? ""}?${query}`;
  try {
    const response = await fetch(url, {
      method: request.method,
      headers: {
        apikey: connection.key,
        accept: request.accept ?? "application/json, application/problem+json",
        ...(request.body === undefined ? {} : { "content-type": "application/json" }),
      },
      ...(request.body === undefined ? {} : { body: JSON.stringify(request.body) }),
      redirect: "manual", // the key is for this host alone
      signal: AbortSignal.any([timeout, ...given]),
    });
    const text = await response.text();
    if (!response.ok) throw refusal(connection.url, response.status, text);
    return { text, headers: response.headers };
  } catch (error) {
    if (error instanceof CommandError || given.some(({ aborted }) => aborted)) throw error;
    throw noAnswer({ url: connection.url, error, timeout: timeout.aborted ? options.timeout : undefined });
  }
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
