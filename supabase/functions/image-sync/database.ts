/** The database as the function uses it: a handful of RPCs, called by name, each answer parsed before it is believed. */
import type { SupabaseClient } from "@supabase/supabase-js";
import type { z } from "zod";
import {
  type Advance,
  advanceAnswerSchema,
  announceAnswerSchema,
  type Archived,
  archivedAnswerSchema,
  type ArchiveList,
  archiveListSchema,
  type BucketChange,
  bucketChangeAnswerSchema,
  type BucketList,
  type ChangeSettings,
  endAttemptAnswerSchema,
  type Expiry,
  expiryAnswerSchema,
  type Fault,
  fileAnswerSchema,
  type FileStatus,
  handOffAnswerSchema,
  type History,
  historyAnswerSchema,
  type Mode,
  type Plan,
  planAnswerSchema,
  type Probe,
  type Problem,
  type Reader,
  readerAnswerSchema,
  type ReaderList,
  readerListSchema,
  type ReaderRemoval,
  readerRemovalAnswerSchema,
  type RecordList,
  recordListAnswerSchema,
  type RecordsQuery,
  type RegisterPage,
  registerPageSchema,
  type RegisterTag,
  registerTagAnswerSchema,
  type Report,
  type Run,
  runAnswerSchema,
  type RunList,
  runListAnswerSchema,
  type RunsQuery,
  type Settings,
  settingsAnswerSchema,
  startAnswerSchema,
  type TokenRequest,
  type Unseen,
} from "./contract.ts";
import type { Database as Schema, Json } from "./database.types.ts";
import { foundBucketsSchema, foundReportAnswerSchema, tell, tellBuckets } from "./findings.ts";
import { messageOf } from "./log.ts";
import { ProblemError } from "./problem.ts";
import { explain } from "./text/unexplained.ts";

/** A call of the database that failed, retries included. */
export class DatabaseError extends Error {
  constructor(
    readonly rpc: string,
    /** SQLSTATE or PostgREST code; empty where the database did not answer. */
    readonly code: string,
    /** HTTP status; 0 where no answer came. */
    readonly status: number,
    readonly detail: string,
  ) {
    super(`${rpc} failed: ${detail}`);
  }

  /** Whether the database refused for a reason that another attempt will not mend. */
  get isRefusal(): boolean {
    // 413: the gateway does not let through what the call carries.
    return this.status === 413 ||
      this.code !== "" && this.status >= 400 && this.status < 500 && this.status !== 408 &&
        this.status !== 429;
  }
}

/** A file that could not be signed, or whose URL showed no image (`code` says why; `url` where Storage rejected that very URL). */
export type ItemFailure = {
  readonly name: string;
  readonly error: string;
  readonly code?: Unseen;
  readonly url?: string;
};

/** A chunk that is ready to be closed: its lease with what signing gave, or with why it gave nothing. */
export type Closing = {
  readonly lease: string;
  readonly number: number;
  /** What its URLs begin with: a URL is `base`, its path, `?token=` and its token. */
  readonly base: string;
  /** The names that were signed, or that a verify saw an image of; `paths`, `tokens` and `expires` are parallel. */
  readonly names: readonly string[];
  /** Each name as it stands in a URL. */
  readonly paths: readonly string[];
  readonly tokens: readonly string[];
  /** When the tokens expire, in seconds since 1970. */
  readonly expires: readonly number[];
  readonly failures: readonly ItemFailure[];
  readonly error: Fault | null;
  /** No other attempt would fare better: its records are written without URLs. */
  readonly isFinal?: boolean;
  readonly storageCalls: number;
  readonly retries: number;
};

/** The part of a closing that says what was signed, where nothing was. */
export const NOTHING_SIGNED = {
  base: "",
  names: [],
  paths: [],
  tokens: [],
  expires: [],
  failures: [],
} as const;

/** What to advance with. */
export type AdvanceRequest = {
  readonly run: string;
  readonly worker: string;
  /** The token for the next chunk; null closes without leasing another. */
  readonly lease: string | null;
  readonly closing: Closing | null;
};

/** An attempt that the database ended: at closing the chunk of a lease, or at getting one under a lease. */
export type EndedAttempt = {
  readonly run: string;
  readonly worker: string;
  readonly lease: string | null;
  readonly closing: string | null;
  readonly error: Fault;
  readonly storageCalls: number;
  readonly retries: number;
};

/** The RPCs. Each throws {@linkcode DatabaseError} when the call fails and {@linkcode ProblemError} when it is refused. */
export type Database = {
  start(
    request: { run: string; bucket: string; mode: Mode; options: Record<string, unknown> },
  ): Promise<{ run: Run; created: boolean }>;
  advance(request: AdvanceRequest): Promise<Advance>;
  /** Counts an attempt that the database ended; its transaction is gone. True where the same close is to be made again at once. */
  endAttempt(attempt: EndedAttempt): Promise<boolean>;
  /** Says where the function lives and which version it is. Returns the version of the schema. */
  announce(url: string, version: string): Promise<string>;
  /** The open run that a queued call's token is for. Throws a problem (401) for any other token. */
  wake(request: TokenRequest): Promise<Run>;
  finish(request: { run: string; probe: Probe | null; error: Fault | null }): Promise<Run>;
  handOff(request: { run: string; worker: string; leases: readonly string[] }): Promise<boolean>;
  cancel(run: string): Promise<Run>;
  readRun(run: string): Promise<Run>;
  readReport(bucket: string): Promise<Report>;
  readFile(bucket: string, file: string): Promise<FileStatus>;
  /** A page of a dry run's list: at most `limit` names behind `after`. */
  readPlan(request: { run: string; after: string; limit: number }): Promise<Plan>;
  /** A page of the buckets that are kept in step, each with its verdict. */
  readBuckets(request: { after: string; limit: number }): Promise<BucketList>;
  /** Gives a bucket settings; its files and records stay as they are. */
  addBucket(bucket: string): Promise<BucketChange>;
  /** Takes a bucket's settings away; its files, records and history stay. */
  removeBucket(bucket: string): Promise<BucketChange>;
  /** A page of the history of runs, newest first. */
  readRuns(query: RunsQuery): Promise<RunList>;
  /** A page of files and records by name, state and search; URLs only where they are asked for. */
  readRecords(query: RecordsQuery): Promise<RecordList>;
  /** How many URLs die on which day. */
  readExpiry(bucket: string): Promise<Expiry>;
  /** The days on which something ran, up to `days` back. */
  readHistory(request: { bucket: string; days: number }): Promise<History>;
  readSettings(bucket: string): Promise<Settings>;
  /** Changes all of these settings, or none. Throws a problem (400) that names the field. */
  changeSettings(request: ChangeSettings): Promise<Settings>;
  /** The cleanups that archived something, newest first. */
  readArchives(request: { bucket: string; limit: number }): Promise<ArchiveList>;
  /** A page of the records that a cleanup archived. */
  readArchived(request: { run: string; after: string; limit: number }): Promise<Archived>;
  /** What a page of the register holds, `limit` rows behind `after`; without a bucket it is that of `public.part_register`. */
  readRegisterTag(
    request: { bucket: string | undefined; after: string; limit: number },
  ): Promise<RegisterTag>;
  /** Lines of the register behind `after` and not behind `until` (null: to the end), as many as fit a page. */
  readRegister(
    request: { bucket: string; after: string; until: string | null; raw: boolean },
  ): Promise<RegisterPage>;
  /** The reader whose key has this hash, and a note of its use. Throws a problem (401) where there is none. */
  openRegister(keyHash: string): Promise<Reader>;
  /** Adds a reader by HTTPS, of whose key the hash is kept. */
  addReader(request: { name: string; bucket: string; keyHash: string }): Promise<Reader>;
  /** A page of the readers, with their last use. */
  readReaders(request: { after: string; limit: number }): Promise<ReaderList>;
  /** Takes a reader's right away; a database role is left to its owner. */
  removeReader(name: string): Promise<ReaderRemoval>;
};

type Rpcs = Schema["public"]["Functions"];

/**
 * The arguments of an RPC by name and type, as the database has them: readonly arrays will do, an item may be null, and any JSON
 * where it takes JSON.
 */
type Args<Name extends keyof Rpcs> = {
  readonly [Key in keyof Rpcs[Name]["Args"]]: Json extends Rpcs[Name]["Args"][Key] ? unknown
    : Rpcs[Name]["Args"][Key] extends (infer Item)[] | undefined ? readonly (Item | null)[]
    : Rpcs[Name]["Args"][Key];
};

/** What the database or PostgREST calls an error by; anything else was said by somebody in front of them. */
const OWN_CODE = /^([0-9A-Z]{5}|PGRST\w+)$/;

function databaseError(
  rpc: string,
  error: { readonly code?: string; readonly message: string },
  status: number,
): DatabaseError {
  const code = OWN_CODE.exec(error.code ?? "")?.[0] ?? "";
  const isExplained = code !== "" || status === 0;
  const detail = isExplained ? messageOf(error) : explain({ status, text: error.message });
  return new DatabaseError(rpc, code, status, detail);
}

/** Speaks to the database through the Data API with the client's secret key. */
export function createDatabase(client: SupabaseClient<Schema>): Database {
  async function call<Name extends keyof Rpcs & string, T>(
    rpc: Name,
    args: Args<Name>,
    schema: z.ZodType<T>,
  ): Promise<T> {
    const { data, error, status } = await client.rpc(rpc, args as Rpcs[Name]["Args"]);
    if (error) throw databaseError(rpc, error, status);
    const parsed = schema.safeParse(data);
    if (parsed.success) return parsed.data;
    throw new DatabaseError(
      rpc,
      "unexpected_answer",
      status,
      "the answer has another shape than this version expects",
    );
  }

  return {
    async start({ run, bucket, mode, options }) {
      const args = { p_run: run, p_bucket: bucket, p_mode: mode, p_options: options };
      return unwrap(await call("image_sync_start", args, startAnswerSchema));
    },
    advance({ run, worker, lease, closing }) {
      return call("image_sync_advance", {
        p_run: run,
        p_worker: worker,
        ...(lease === null ? {} : { p_lease: lease }),
        ...(closing === null ? {} : {
          p_closing: closing.lease,
          p_number: closing.number,
          ...compactUrls(closing),
          p_failures: closing.failures,
          p_error: closing.error === null ? null : { ...closing.error, is_final: closing.isFinal ?? false },
          p_storage_calls: closing.storageCalls,
          p_retries: closing.retries,
        }),
      }, advanceAnswerSchema);
    },
    async endAttempt({ run, worker, lease, closing, error, storageCalls, retries }) {
      const answer = await call("image_sync_end_attempt", {
        p_run: run,
        p_worker: worker,
        ...(lease === null ? {} : { p_lease: lease }),
        ...(closing === null ? {} : { p_closing: closing }),
        p_error: error,
        p_storage_calls: storageCalls,
        p_retries: retries,
      }, endAttemptAnswerSchema);
      return answer.more;
    },
    async announce(url, version) {
      const args = { p_url: url, p_version: version };
      return (await call("image_sync_announce", args, announceAnswerSchema)).schema_version;
    },
    async wake({ run, token }) {
      return unwrap(await call("image_sync_wake", { p_run: run, p_token: token }, runAnswerSchema)).run;
    },
    async finish({ run, probe, error }) {
      const args = { p_run: run, p_probe: probe, p_error: error };
      return unwrap(await call("image_sync_finish", args, runAnswerSchema)).run;
    },
    async handOff({ run, worker, leases }) {
      const args = { p_run: run, p_worker: worker, p_leases: leases };
      return (await call("image_sync_hand_off", args, handOffAnswerSchema)).kicked;
    },
    async cancel(run) {
      return unwrap(await call("image_sync_cancel", { p_run: run }, runAnswerSchema)).run;
    },
    async readRun(run) {
      return unwrap(await call("image_sync_run", { p_run: run }, runAnswerSchema)).run;
    },
    async readReport(bucket) {
      return tell(
        unwrap(await call("image_sync_report", { p_bucket: bucket }, foundReportAnswerSchema)).report,
      );
    },
    async readFile(bucket, file) {
      return unwrap(await call("image_sync_file", { p_bucket: bucket, p_file: file }, fileAnswerSchema)).file;
    },
    async readPlan({ run, after, limit }) {
      const args = { p_run: run, p_after: after, p_limit: limit };
      return unwrap(await call("image_sync_plan", args, planAnswerSchema)).plan;
    },
    async readBuckets({ after, limit }) {
      return tellBuckets(
        await call("image_sync_buckets", { p_after: after, p_limit: limit }, foundBucketsSchema),
      );
    },
    async addBucket(bucket) {
      return unwrap(await call("image_sync_add_bucket", { p_bucket: bucket }, bucketChangeAnswerSchema))
        .bucket;
    },
    async removeBucket(bucket) {
      const answer = await call("image_sync_remove_bucket", { p_bucket: bucket }, bucketChangeAnswerSchema);
      return unwrap(answer).bucket;
    },
    async readRuns({ bucket, mode, state, after, limit }) {
      return unwrap(
        await call("image_sync_runs", {
          ...(bucket === undefined ? {} : { p_bucket: bucket }),
          ...(mode === undefined ? {} : { p_mode: mode }),
          ...(state === undefined ? {} : { p_state: state }),
          ...(after === undefined ? {} : { p_after: after }),
          p_limit: limit,
        }, runListAnswerSchema),
      );
    },
    async readRecords({ bucket, state, search, after, limit, urls }) {
      return unwrap(
        await call("image_sync_records", {
          p_bucket: bucket,
          p_state: state,
          p_search: search,
          p_after: after,
          p_limit: limit,
          p_urls: urls,
        }, recordListAnswerSchema),
      );
    },
    async readExpiry(bucket) {
      return unwrap(await call("image_sync_expiry", { p_bucket: bucket }, expiryAnswerSchema)).expiry;
    },
    async readHistory({ bucket, days }) {
      const args = { p_bucket: bucket, p_days: days };
      return unwrap(await call("image_sync_history", args, historyAnswerSchema)).history;
    },
    async readSettings(bucket) {
      return unwrap(await call("image_sync_settings", { p_bucket: bucket }, settingsAnswerSchema)).settings;
    },
    async changeSettings({ bucket, changes }) {
      const args = { p_bucket: bucket, p_changes: changes };
      return unwrap(await call("image_sync_change_settings", args, settingsAnswerSchema)).settings;
    },
    readArchives({ bucket, limit }) {
      return call("image_sync_archives", { p_bucket: bucket, p_limit: limit }, archiveListSchema);
    },
    async readArchived({ run, after, limit }) {
      const args = { p_run: run, p_after: after, p_limit: limit };
      return (await call("image_sync_archived", args, archivedAnswerSchema)).archived;
    },
    async readRegisterTag({ bucket, after, limit }) {
      const args = { ...(bucket === undefined ? {} : { p_bucket: bucket }), p_after: after, p_limit: limit };
      return unwrap(await call("image_sync_register_tag", args, registerTagAnswerSchema));
    },
    readRegister({ bucket, after, until, raw }) {
      return call("image_sync_register", {
        p_bucket: bucket,
        p_after: after,
        ...(until === null ? {} : { p_until: until }),
        p_raw: raw,
      }, registerPageSchema);
    },
    async openRegister(keyHash) {
      const answer = await call("image_sync_open_register", { p_key_hash: keyHash }, readerAnswerSchema);
      return unwrap(answer).reader;
    },
    async addReader({ name, bucket, keyHash }) {
      const args = { p_name: name, p_bucket: bucket, p_key_hash: keyHash };
      return unwrap(await call("image_sync_add_reader", args, readerAnswerSchema)).reader;
    },
    readReaders({ after, limit }) {
      return call("image_sync_readers", { p_after: after, p_limit: limit }, readerListSchema);
    },
    async removeReader(name) {
      const args = { p_name: name };
      const { reader, revoked } = unwrap(
        await call("image_sync_remove_reader", args, readerRemovalAnswerSchema),
      );
      return { ...reader, revoked };
    },
  };
}

/**
 * The URLs of a closing, what they share said once: half the bytes. `p_around` is what stands before the path, and between it and
 * the rest of the token; a path is null where it is the name itself.
 */
function compactUrls({ base, names, paths, tokens, expires }: Closing) {
  const [first = ""] = tokens;
  // A JWT's header says which key and algorithm: the same in all tokens of one key.
  const header = first.slice(0, first.indexOf(".") + 1);
  const shared = tokens.every((token) => token.slice(0, header.length) === header) ? header : "";
  return {
    p_names: names,
    p_around: [base, `?token=${shared}`],
    p_paths: paths.map((path, place) => path === names[place] ? null : path),
    p_tokens: tokens.map((token) => token.slice(shared.length)),
    p_expires: expires,
  };
}

function unwrap<T extends object>(answer: { problem: Problem } | T): T {
  if ("problem" in answer) throw new ProblemError(answer.problem);
  return answer;
}
