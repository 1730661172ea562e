/**
 * How the stack's parts speak to Postgres: through pools that outlive it. Whichever connection is lost, its calls fail and the
 * next call gets another one, as the services behind a hosted project do it.
 */
import pg from "pg";

/** A pool of connections. */
export type Pool = pg.Pool;
/** One session: a connection that its holder has to itself. */
export type Session = pg.PoolClient;
/** Whatever statements can be sent to. */
export type Queryable = Pick<pg.Pool | pg.PoolClient, "query">;

/** An error that Postgres reported, with the parts that an API passes on. */
export type DatabaseError = {
  readonly code: string;
  readonly message: string;
  readonly details: string | null;
  readonly hint: string | null;
};

/** How a stand-in's sessions name themselves in `pg_stat_activity`. */
const APPLICATION = "local";
const RECONNECT_MS = 500;
/** PostgREST's own default (db-pool-max-idletime). */
const IDLE_MS = 30_000;

/** Opens a pool of at most `max` connections; with `role` they have that role's rights. Nothing connects before the first call. */
export function openPool(url: string, { max, role }: { max: number; role?: string }): Pool {
  const pool = new pg.Pool({
    connectionString: url,
    application_name: APPLICATION,
    max,
    idleTimeoutMillis: IDLE_MS,
    pipeline: true,
    ...(role === undefined ? {} : { options: `-c role=${role}` }),
  });
  // The calls of a lost connection fail by themselves; its event, unheard, would end this process too.
  pool.on("error", () => {});
  pool.on("connect", (session) => session.on("error", () => {}));
  return pool;
}

/** Runs `act` in a transaction. A session whose transaction fails is closed, whatever its state. */
export async function inTransaction<T>(pool: Pool, act: (session: Session) => Promise<T>): Promise<T> {
  const session = await pool.connect();
  try {
    await session.query("begin");
    const result = await act(session);
    await session.query("commit");
    session.release();
    return result;
  } catch (error) {
    session.release(true);
    throw error;
  }
}

/** Runs `act` with a pool of one connection, which is closed afterwards. */
export async function withDatabase<T>(url: string, act: (sql: Pool) => Promise<T>): Promise<T> {
  const pool = openPool(url, { max: 1 });
  try {
    return await act(pool);
  } finally {
    await pool.end();
  }
}

/**
 * Calls `heard` for every notification of a channel, and after every interruption, in which some may have been missed.
 * Returns what ends it.
 */
export async function listen(url: string, channel: string, heard: () => void): Promise<() => Promise<void>> {
  let stopped = false;
  let client: pg.Client;
  const connect = async () => {
    client = new pg.Client({ connectionString: url, application_name: APPLICATION });
    client.on("error", () => {});
    client.on("end", () => void (stopped || setTimeout(reconnect, RECONNECT_MS)));
    client.on("notification", heard);
    await client.connect();
    await client.query(`listen ${pg.escapeIdentifier(channel)}`);
  };
  // While Postgres is away each attempt ends its client, and that calls for the next.
  const reconnect = () => void (stopped || connect().then(heard, () => {}));
  await connect().catch((error: unknown) => {
    stopped = true;
    throw error;
  });
  return async () => {
    stopped = true;
    await client.end().catch(() => {});
  };
}

/** Reads what Postgres reported from a thrown value; `undefined` when the database could not be talked to. */
export function databaseErrorOf(error: unknown): DatabaseError | undefined {
  if (!(error instanceof pg.DatabaseError)) return undefined;
  return {
    code: error.code ?? "XX000",
    message: error.message,
    details: error.detail ?? null,
    hint: error.hint ?? null,
  };
}
