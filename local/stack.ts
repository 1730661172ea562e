import "./surroundings.mjs";
import { fileURLToPath } from "node:url";
import { createControl } from "./gateway/control.ts";
import { listen, openPool, type Pool } from "./postgres/database.ts";
import { createFunctionProcess, type FunctionProcess } from "./functions/function.ts";
import { createGateway } from "./gateway/gateway.ts";
import { startHttpQueue } from "./net/http_queue.ts";
import { createKeys, type StackKeys } from "./gateway/keys.ts";
import { findFreePort } from "./ports.ts";
import { startPrepared } from "./postgres/prepared.ts";
import { databaseUrl, type PostgresServer, superuser } from "./postgres/server.ts";
import { createRequestCounter, type RequestCounter } from "./gateway/request_counts.ts";
import { createRest } from "./data_api/data_api.ts";
import { type Scheduler, startScheduler } from "./cron/scheduler.ts";
import { defaultStateFile, readRunningStack, removeRunningStack, writeRunningStack } from "./state_file.ts";
import { createStorage } from "./storage/storage.ts";
import { createStorageFiles } from "./storage/files.ts";
import { createUrlSigner, type UrlSigner } from "./storage/signing.ts";
import { createSwitches } from "./gateway/switches.ts";
import { sweepTemporary } from "./temporary.ts";

/** Options of {@linkcode startStack}. */
export type StackOptions = {
  /** Port of the gateway; 0 picks a free one. Default 54321. */
  readonly port?: number;
  /** Port of Postgres; 0 picks a free one. Default 54322. */
  readonly dbPort?: number;
  /** Directory with `initdb` and `postgres`; default: the Postgres that npm installed. With pg_cron there, the real one runs the jobs. */
  readonly postgresBin?: string;
  /** Let the real pg_cron run the jobs where the server has it. Default true. */
  readonly realCron?: boolean;
  /** Apply `supabase/migrations`. Default true. */
  readonly migrate?: boolean;
  /** Run the Edge Function. Default true. */
  readonly withFunction?: boolean;
  /** The function's module. Default `supabase/functions/image-sync/index.ts`. */
  readonly functionEntry?: string;
  /** More environment variables for the function. */
  readonly functionEnv?: Readonly<Record<string, string>>;
  /** More flags for the function's Deno. */
  readonly functionFlags?: readonly string[];
  /** Scale pictures, as a project on a paid plan does that has image transformation switched on. Default false. */
  readonly imageTransformation?: boolean;
  /** Call the function once, as an operator does after deploying it, so that it announces where it lives. Default true. */
  readonly callOnce?: boolean;
  /** Leave out what protects data from a crash of the machine. Default false. */
  readonly fast?: boolean;
  /** Where to leave word of the stack; a second one refuses to start. Default `.local/stack.json`; false leaves none. */
  readonly stateFile?: string | false;
  /** Receives what the parts have to say. Default: nothing is logged. */
  readonly log?: (line: string) => void;
};

/** A running stack. */
export type Stack = {
  /** The gateway, to be used like a project's URL. */
  readonly url: string;
  /** The database as role postgres, which is not a superuser. */
  readonly dbUrl: string;
  /** The database as superuser, for tests. */
  readonly adminDbUrl: string;
  readonly secretKey: string;
  readonly publishableKey: string;
  readonly keys: StackKeys;
  /** Whether the real pg_cron runs the jobs. */
  readonly hasCron: boolean;
  readonly postgres: PostgresServer;
  /** Absent when the function is not run. */
  readonly functionProcess: FunctionProcess | undefined;
  /** Absent when the real pg_cron runs the jobs. */
  readonly scheduler: Scheduler | undefined;
  readonly counter: RequestCounter;
  readonly signer: UrlSigner;
  /** Stops everything that it started and removes its files. Repeating it is harmless. */
  stop(): Promise<void>;
};

const functionName = "image-sync";

/**
 * Starts a whole Supabase project in miniature on loopback: database, function, gateway, queue and schedule.
 *
 * @throws {Error} when a port is taken, a stack runs already, or a part does not start; whatever had started is stopped.
 */
export async function startStack(options: StackOptions = {}): Promise<Stack> {
  const cleanups: (() => Promise<void>)[] = [];
  let stopping: Promise<void> | undefined;
  const stop = () => stopping ??= runBackwards(cleanups);
  try {
    return await start(options, (cleanup) => cleanups.push(cleanup), stop);
  } catch (error) {
    await stop();
    throw error;
  }
}

type OnStop = (cleanup: () => Promise<void>) => void;

async function start(options: StackOptions, onStop: OnStop, stop: () => Promise<void>): Promise<Stack> {
  const stateFile = options.stateFile ?? defaultStateFile;
  if (stateFile !== false) await refuseSecondStack(stateFile);
  await sweepTemporary();
  const log = options.log ?? (() => {});
  const keys = createKeys();
  const ports = choosePorts(options);
  const url = `http://127.0.0.1:${ports.gateway}`;

  // Starts meanwhile: it asks nothing of the others before its first request.
  const functionProcess = options.withFunction === false
    ? undefined
    : startFunction({ options, keys, url, dbUrl: databaseUrl(ports.database, "postgres"), log });
  if (functionProcess !== undefined) onStop(functionProcess.kill);
  const server = await startPrepared({
    port: ports.database,
    durable: options.fast !== true,
    migrated: options.migrate !== false,
    realCron: options.realCron !== false,
    log,
    ...(options.postgresBin === undefined ? {} : { postgresBin: options.postgresBin }),
  });
  onStop(server.stop);
  const superuserSql = connect(server.url(superuser), { onStop, max: 5 });
  const scheduler = server.hasCron
    ? undefined
    : startScheduler({ sql: superuserSql, urlOf: server.url, log });
  if (scheduler !== undefined) onStop(scheduler.stop);
  const queue = await startHttpQueue(superuserSql, server.url(superuser), log);
  onStop(queue.stop);

  const counter = createRequestCounter();
  const signer = createUrlSigner();
  const context = {
    keys,
    counter,
    signer,
    server,
    functionProcess,
    scheduler,
    imageTransformation: options.imageTransformation === true,
    onStop,
  };
  await openGateway(ports.gateway, context);

  const stack: Stack = {
    url,
    dbUrl: server.url("postgres"),
    adminDbUrl: server.url(superuser),
    secretKey: keys.secret.default,
    publishableKey: keys.publishable.default,
    keys,
    hasCron: server.hasCron,
    postgres: server,
    functionProcess,
    scheduler,
    counter,
    signer,
    stop,
  };
  if (functionProcess !== undefined && options.migrate !== false && options.callOnce !== false) {
    await callOnce(url, keys.secret.default, log);
  }
  if (stateFile !== false) await announce(stateFile, stack, onStop);
  return stack;
}

async function refuseSecondStack(stateFile: string): Promise<void> {
  const running = await readRunningStack(stateFile);
  if (running === undefined) return;
  throw new Error(
    `Cannot start a second stack in this checkout: one runs at ${running.url} (process ${running.pid}). ` +
      "Use it, or stop it with Ctrl-C where it was started",
  );
}

function choosePorts(options: StackOptions): { gateway: number; database: number } {
  return {
    gateway: findFreePort({ port: options.port ?? 54321, purpose: "the gateway", flag: "--port N" }),
    database: findFreePort({ port: options.dbPort ?? 54322, purpose: "Postgres", flag: "--db-port N" }),
  };
}

function connect(url: string, { onStop, ...options }: { onStop: OnStop; max: number; role?: string }): Pool {
  const pool = openPool(url, options);
  onStop(() => pool.end());
  return pool;
}

// As an operator does once after deploying. What is wrong with the function its next caller is told.
async function callOnce(url: string, key: string, log: (line: string) => void): Promise<void> {
  try {
    const response = await fetch(`${url}/functions/v1/${functionName}/buckets`, { headers: { apikey: key } });
    await response.body?.cancel();
  } catch (error) {
    log(`stack: Cannot call the function: ${String(error)}`);
  }
}

type FunctionContext = {
  readonly options: StackOptions;
  readonly keys: StackKeys;
  readonly url: string;
  readonly dbUrl: string;
  readonly log: (line: string) => void;
};

function startFunction({ options, keys, url, dbUrl, log }: FunctionContext): FunctionProcess {
  const functionProcess = createFunctionProcess({
    entry: options.functionEntry ??
      fileURLToPath(new URL(`../supabase/functions/${functionName}/index.ts`, import.meta.url)),
    env: {
      SUPABASE_URL: url,
      SUPABASE_SECRET_KEYS: JSON.stringify(keys.secret),
      SUPABASE_PUBLISHABLE_KEYS: JSON.stringify(keys.publishable),
      SUPABASE_DB_URL: dbUrl,
      SB_EXECUTION_ID: crypto.randomUUID(),
      SB_REGION: "local",
      ...options.functionEnv,
    },
    ...(options.functionFlags === undefined ? {} : { denoFlags: options.functionFlags }),
    log,
  });
  // Started ahead of the first request, which would wait for it; a failure is told then, and logged now.
  functionProcess.origin().catch((error: unknown) => log(String(error)));
  return functionProcess;
}

type GatewayContext = {
  readonly keys: StackKeys;
  readonly counter: RequestCounter;
  readonly signer: UrlSigner;
  readonly server: PostgresServer;
  readonly functionProcess: FunctionProcess | undefined;
  readonly scheduler: Scheduler | undefined;
  readonly imageTransformation: boolean;
  readonly onStop: OnStop;
};

async function openGateway(port: number, context: GatewayContext): Promise<void> {
  const { keys, counter, signer, server, functionProcess, scheduler, onStop } = context;
  const storageUrl = server.url("supabase_storage_admin");
  const switches = createSwitches();
  const files = await createStorageFiles(() => switches.backend);
  onStop(files.close);
  const rest = createRest({
    sql: connect(server.url("authenticator"), { onStop, max: 20 }),
    keys,
    counter,
  });
  onStop(await listen(server.url(superuser), "pgrst", rest.reloadSchema));
  const storage = createStorage({
    sql: {
      service_role: connect(storageUrl, { onStop, max: 10, role: "service_role" }),
      anon: connect(storageUrl, { onStop, max: 2, role: "anon" }),
    },
    keys,
    files,
    signer,
    counter,
    imageTransformation: context.imageTransformation,
  });
  const control = createControl({
    keys,
    counter,
    postgres: server,
    signer,
    functionProcess,
    scheduler,
    switches,
  });
  const app = createGateway({
    functions: functionProcess === undefined ? {} : { [functionName]: functionProcess },
    rest: rest.app,
    storage,
    control,
    counter,
    switches,
  });
  const http = Deno.serve({ hostname: "127.0.0.1", port, onListen: () => {} }, app.fetch);
  onStop(async () => {
    // A client that keeps a request open must not keep the stack from stopping.
    const patience = new Promise((resolve) => setTimeout(resolve, 1000));
    await Promise.race([http.shutdown(), patience]);
  });
}

async function announce(stateFile: string, stack: Stack, onStop: OnStop): Promise<void> {
  onStop(() => removeRunningStack(stateFile));
  await writeRunningStack(stateFile, {
    url: stack.url,
    database_url: stack.dbUrl,
    secret_key: stack.secretKey,
    publishable_key: stack.publishableKey,
    pid: Deno.pid,
  });
}

// In the opposite order of starting; one part that fails to stop does not keep the others from it.
async function runBackwards(cleanups: (() => Promise<void>)[]): Promise<void> {
  const problems: unknown[] = [];
  for (const cleanup of cleanups.toReversed()) {
    await cleanup().catch((error: unknown) => problems.push(error));
  }
  if (problems.length > 0) throw new AggregateError(problems, "Cannot stop every part of the stack");
}
