import { join } from "node:path";
import { type Child, startChild } from "../child_process.ts";
import { makeTemporary } from "../temporary.ts";
import { findPostgres, type PostgresBinaries, run } from "./binaries.ts";
import { copyCluster } from "./template.ts";

/** Options of {@linkcode startPostgres}. */
export type PostgresOptions = {
  /** A free port of 127.0.0.1. */
  readonly port: number;
  /** Directory with `initdb` and `postgres`; default: the programs that npm installed. */
  readonly postgresBin?: string;
  /** Load pg_cron where the server has it. */
  readonly realCron: boolean;
  /** Trade crash safety of the machine for speed: what is written survives a crash of Postgres, not of the operating system. */
  readonly durable: boolean;
  /** A data directory to begin with a copy of; default: a new cluster. */
  readonly template?: string;
  readonly log: (line: string) => void;
};

/** A running server, with its data in a temporary directory. */
export type PostgresServer = {
  readonly port: number;
  /** Whether the real pg_cron runs in it. */
  readonly hasCron: boolean;
  /** The postmaster's process id; another one after {@linkcode PostgresServer.restart}. */
  pid(): number;
  /** A connection URL for a role; any password is accepted from this machine. */
  url(role: string): string;
  /** Kills the server as `pg_ctl stop -m immediate` does: no checkpoint, open transactions lost. */
  crash(): Promise<void>;
  /** Starts it again on the same data. */
  restart(): Promise<void>;
  /** Stops it and leaves its data in this directory, to begin with for others. */
  leave(directory: string): Promise<void>;
  /** Stops it and removes its data. Repeating it is harmless. */
  stop(): Promise<void>;
};

/** The superuser, as on the hosted platform. */
export const superuser = "supabase_admin";

/** A connection URL for a role; any password is accepted from this machine. */
export function databaseUrl(port: number, role: string): string {
  return `postgresql://${role}:postgres@127.0.0.1:${port}/postgres`;
}

/**
 * Creates a database cluster in a temporary directory, or copies one there, and starts a server on it.
 *
 * @throws {Error} when the programs are missing, or the server does not start; the message has its last lines.
 */
export async function startPostgres(options: PostgresOptions): Promise<PostgresServer> {
  const binaries = await findPostgres(options.postgresBin);
  const hasCron = options.realCron && options.postgresBin !== undefined && await cronIsInstalled(binaries);
  const directory = await makeTemporary("postgres-data", binaries.account);
  const data = join(directory, "data");
  try {
    if (binaries.account !== undefined) {
      await Deno.chown(directory, binaries.account.uid, binaries.account.gid);
    }
    if (options.template === undefined) await initialise(binaries, directory, data);
    else await copyCluster(options.template, data);
  } catch (error) {
    await Deno.remove(directory, { recursive: true });
    throw error;
  }

  let running = await launch(binaries, directory, data, hasCron, options).catch(async (error) => {
    await Deno.remove(directory, { recursive: true });
    throw error;
  });
  let stopped = false;
  const stop = async (keep: () => Promise<void> = () => Promise.resolve()) => {
    if (stopped) return;
    stopped = true;
    running.signal("SIGINT"); // fast shutdown: sessions are ended, data is checkpointed
    await running.ended;
    await keep().finally(() => Deno.remove(directory, { recursive: true }));
  };
  return {
    port: options.port,
    hasCron,
    pid: () => running.pid,
    url: (role) => databaseUrl(options.port, role),
    crash: async () => {
      running.signal("SIGQUIT");
      await running.ended;
    },
    restart: async () => {
      if (!running.hasEnded()) {
        throw new Error("Cannot restart Postgres: it is running, stop it with crash()");
      }
      running = await launch(binaries, directory, data, hasCron, options);
    },
    leave: (to) => stop(() => copyCluster(data, to)),
    stop: () => stop(),
  };
}

async function initialise(binaries: PostgresBinaries, directory: string, data: string): Promise<void> {
  const { success, stdout, stderr } = await new Deno.Command(join(binaries.directory, "initdb"), {
    args: [
      `--pgdata=${data}`,
      `--username=${superuser}`,
      "--auth=trust", // listens on loopback only; pg_cron connects without a password
      "--encoding=UTF8",
      // A linguistic default collation, as hosted: code that forgets collate "C" is found out here.
      "--locale=C",
      "--locale-provider=icu",
      "--icu-locale=en-US",
      "--no-sync",
      "--no-instructions",
    ],
    ...binaries.account,
    cwd: directory,
    env: environment(),
    clearEnv: true,
  }).output();
  if (success) return;
  const output = [stdout, stderr].map((bytes) => new TextDecoder().decode(bytes)).join("\n").trim();
  throw new Error(`Cannot create a database cluster in ${data} with ${binaries.directory}/initdb: ${output}`);
}

async function launch(
  binaries: PostgresBinaries,
  directory: string,
  data: string,
  hasCron: boolean,
  options: PostgresOptions,
): Promise<Child> {
  const lastLines: string[] = [];
  let ready = () => {};
  const isReady = new Promise<void>((resolve) => ready = resolve);
  const child = startChild({
    command: join(binaries.directory, "postgres"),
    args: ["-D", data, ...serverSettings(hasCron, options).flatMap((setting) => ["-c", setting])],
    env: environment(),
    cwd: directory,
    ...binaries.account,
    stopSignal: "INT",
    removeAfterwards: directory,
    onLine: (line) => {
      lastLines.push(line);
      if (lastLines.length > 20) lastLines.shift();
      if (line.includes("database system is ready to accept connections")) ready();
      options.log(`postgres: ${line}`);
    },
  });
  const outcome = await Promise.race([isReady.then(() => "ready"), child.ended.then(() => "ended")]);
  if (outcome === "ready") return child;
  throw new Error(
    `Cannot start Postgres on 127.0.0.1:${options.port}: it ended with\n${lastLines.join("\n")}`,
  );
}

function serverSettings(hasCron: boolean, { port, durable }: PostgresOptions): string[] {
  return [
    `port=${port}`,
    "listen_addresses=127.0.0.1",
    "unix_socket_directories=", // nothing outside the temporary directory
    "max_connections=100",
    "shared_buffers=256MB",
    "max_wal_size=2GB",
    "wal_level=replica",
    "jit=off",
    "timezone=UTC",
    "log_timezone=UTC",
    ...(durable ? [] : ["fsync=off", "full_page_writes=off"]),
    ...(hasCron
      ? ["shared_preload_libraries=pg_cron", "cron.database_name=postgres", "cron.host=127.0.0.1"]
      : []),
  ];
}

async function cronIsInstalled(binaries: PostgresBinaries): Promise<boolean> {
  const config = join(binaries.directory, "pg_config");
  // What npm installs has none.
  if (!await Deno.stat(config).then((info) => info.isFile, () => false)) return false;
  const { success, said } = await run(config, ["--pkglibdir"]);
  if (!success) return false;
  const library = join(said, "pg_cron.so");
  return await Deno.stat(library).then((info) => info.isFile, () => false);
}

// Postgres reads many PG* variables, initdb the locale: neither is to come from the caller's shell.
function environment(): Record<string, string> {
  return { PATH: Deno.env.get("PATH") ?? "/usr/bin:/bin", LC_ALL: "C", TZ: "UTC" };
}
