import { Buffer } from "node:buffer";
import { inTransaction, listen, type Pool } from "../postgres/database.ts";

/** The worker that sends what `net.http_post` and `net.http_get` queued. */
export type HttpQueue = {
  /** Stops sending. A batch under way is given up: its requests are queued again. */
  stop(): Promise<void>;
};

type QueuedRequest = {
  readonly id: string;
  readonly method: string;
  readonly url: string;
  readonly headers: Record<string, string> | null;
  readonly body: Uint8Array | null;
  readonly timeout_milliseconds: number;
};

type QueuedResponse = {
  readonly id: string;
  readonly status_code: number | null;
  readonly content_type: string | null;
  readonly headers: Record<string, string> | null;
  readonly content: string | null;
  readonly timed_out: boolean;
  readonly error_msg: string | null;
};

const batchSize = 200;
const pollInterval = 1000; // ms; a notification comes first, unless the database was away
const responsesKept = "6 hours";

/**
 * Starts the worker. As pg_net does, it takes up to 200 requests in one transaction, sends them at once, never again, and
 * stores all their responses when the last of them has come.
 *
 * @param sql a pool as the superuser
 * @param url where to connect as the superuser
 */
export async function startHttpQueue(
  sql: Pool,
  url: string,
  log: (line: string) => void,
): Promise<HttpQueue> {
  const stopping = new AbortController();
  let wake = () => {};
  const stopListening = await listen(url, "net_wake", () => wake());
  const work = async () => {
    while (!stopping.signal.aborted) {
      const woken = new Promise<void>((resolve) => wake = resolve);
      const sent = await sendBatch(sql, stopping.signal).catch((error: unknown) => {
        if (!stopping.signal.aborted) log(`net: Cannot send queued requests: ${String(error)}`);
        return 0;
      });
      if (sent === 0 && !stopping.signal.aborted) await Promise.race([woken, delay(pollInterval)]);
    }
  };
  const working = work();
  return {
    stop: async () => {
      stopping.abort();
      wake();
      await stopListening();
      await working;
    },
  };
}

async function sendBatch(sql: Pool, stopping: AbortSignal): Promise<number> {
  return await inTransaction(sql, async (session) => {
    const { rows: requests } = await session.query<QueuedRequest>(
      `delete from net.http_request_queue
      where id in (select id from net.http_request_queue order by id limit $1 for update skip locked)
      returning id, method, url, headers, body, timeout_milliseconds`,
      [batchSize],
    );
    if (requests.length === 0) return 0;
    const responses = await Promise.all(requests.map((request) => send(request, stopping)));
    if (stopping.aborted) throw new Error("the worker was stopped");
    await session.query(
      `insert into net._http_response (id, status_code, content_type, headers, content, timed_out, error_msg)
      select id, status_code, content_type, headers, content, timed_out, error_msg
      from json_populate_recordset(null::net._http_response, $1)`,
      [JSON.stringify(responses)],
    );
    await session.query("delete from net._http_response where created < now() - $1::interval", [
      responsesKept,
    ]);
    return requests.length;
  });
}

async function send(request: QueuedRequest, stopping: AbortSignal): Promise<QueuedResponse> {
  const timeout = AbortSignal.timeout(request.timeout_milliseconds);
  try {
    const response = await fetch(request.url, {
      method: request.method,
      headers: { "user-agent": "pg_net/0.20.0", ...request.headers },
      body: request.body === null ? null : Buffer.from(request.body),
      redirect: "follow", // as pg_net does
      signal: AbortSignal.any([timeout, stopping]),
    });
    return {
      id: request.id,
      status_code: response.status,
      content_type: response.headers.get("content-type"),
      headers: Object.fromEntries(response.headers),
      content: (await response.text()).replaceAll("\0", ""),
      timed_out: false,
      error_msg: null,
    };
  } catch (error) {
    const message = timeout.aborted
      ? `Timeout of ${request.timeout_milliseconds} ms reached`
      : `Couldn't connect to server: ${String(error)}`;
    return {
      id: request.id,
      status_code: null,
      content_type: null,
      headers: null,
      content: null,
      timed_out: timeout.aborted,
      error_msg: message,
    };
  }
}

function delay(milliseconds: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}
