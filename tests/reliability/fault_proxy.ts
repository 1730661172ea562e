/**
 * A proxy between the function and the gateway that misbehaves by script: per route, bucket and call number. It also
 * holds a call at a known point until the test lets it go, which makes the moment of a crash exact.
 */
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { z } from "zod";

/** The calls that the function makes. */
export type Route = "start" | "advance" | "sign" | "hand_off" | "finish" | "run" | "probe" | "report";

/** What is done to a call. `before` and `after`: before it reaches the server, or after the server did the work. */
export type Fault =
  | {
    readonly kind: "status";
    readonly status: number;
    readonly headers?: Readonly<Record<string, string>>;
    readonly body?: unknown;
  }
  | { readonly kind: "delay"; readonly ms: number }
  | { readonly kind: "cut"; readonly when: "before" | "after" }
  | { readonly kind: "truncate" }
  | { readonly kind: "garble" }
  | { readonly kind: "rewrite"; readonly rewrite: (body: string) => string }
  | {
    readonly kind: "hold";
    readonly when: "before" | "after";
    readonly reached: () => void;
    readonly released: Promise<void>;
  };

/** Which calls a fault is for. */
export type Rule = {
  readonly route: Route;
  /** Only calls for this bucket (its run, its files). */
  readonly bucket: string;
  readonly fault: Fault;
  /** How many calls it meets, from the first that fits; default 1. */
  readonly times?: number;
  /** Only calls whose body contains this. */
  readonly containing?: string;
};

/** A call that waits at a known point. */
export type Held = {
  /** Resolves when the call is there. */
  readonly reached: Promise<void>;
  /** Lets it go on; what its dead sender had not sent yet stays unsent. */
  release(): void;
};

/** A running proxy. */
export type FaultProxy = {
  readonly url: string;
  /** Where calls are passed on to; set once the stack runs. */
  setTarget(url: string): void;
  /** Adds a rule; the first that fits a call is applied. Returns how often it was applied so far. */
  add(rule: Rule): () => number;
  /** Holds the first call that fits. */
  hold(rule: Omit<Rule, "fault"> & { readonly when: "before" | "after" }): Held;
  /** Forgets the rules of a bucket. */
  clear(bucket: string): void;
  close(): Promise<void>;
};

type Call = {
  readonly method: string;
  readonly path: string;
  readonly body: Buffer;
  readonly headers: Record<string, string>;
};
type Answer = { readonly status: number; readonly headers: Headers; readonly body: Buffer };
type Entry = { readonly rule: Rule; met: number };

const rpcBodySchema = z.looseObject({ p_run: z.string().optional(), p_bucket: z.string().optional() });

/** Starts the proxy on a free port of loopback. */
export async function startFaultProxy(): Promise<FaultProxy> {
  const entries: Entry[] = [];
  const bucketOfRun = new Map<string, string>();
  let target = "";
  const server = createServer((request, response) => {
    // A connection of its own for every call: what is cut on a connection that was used before, Deno's fetch repeats by itself,
    // without a word to whoever called it.
    response.shouldKeepAlive = false;
    serve(request, response).catch(() => request.socket.destroy());
  });

  async function serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const call = await readCall(request);
    const text = call.body.toString();
    const place = placeOf(call, text, bucketOfRun);
    const fault = place === undefined ? undefined : choose(place, text);
    await perform({ fault, call, request, response, forward: () => forward(target, call) });
  }

  function choose(place: { route: Route; bucket: string }, text: string): Fault | undefined {
    const entry = entries.find(({ rule, met }) =>
      rule.route === place.route && rule.bucket === place.bucket && met < (rule.times ?? 1) &&
      (rule.containing === undefined || text.includes(rule.containing))
    );
    if (entry !== undefined) entry.met++;
    return entry?.rule.fault;
  }

  function add(rule: Rule): () => number {
    const entry = { rule, met: 0 };
    entries.push(entry);
    return () => entry.met;
  }

  return {
    url: await listen(server),
    setTarget: (url) => target = url,
    add,
    hold: ({ when, ...rule }) => {
      let reached = () => {};
      let release = () => {};
      const whenReached = new Promise<void>((resolve) => reached = resolve);
      const released = new Promise<void>((resolve) => release = resolve);
      add({ ...rule, fault: { kind: "hold", when, reached, released } });
      return { reached: whenReached, release };
    },
    clear: (bucket) => {
      for (let index = entries.length - 1; index >= 0; index--) {
        if (entries[index]?.rule.bucket === bucket) entries.splice(index, 1);
      }
    },
    close: () => {
      server.closeAllConnections();
      return new Promise((resolve) => server.close(() => resolve()));
    },
  };
}

type Performance = {
  readonly fault: Fault | undefined;
  readonly call: Call;
  readonly request: IncomingMessage;
  readonly response: ServerResponse;
  readonly forward: () => Promise<Answer>;
};

async function perform({ fault, request, response, forward }: Performance): Promise<void> {
  const isGone = () => request.socket.destroyed;
  switch (fault?.kind) {
    case "status":
      response.writeHead(fault.status, { "content-type": "application/json", ...fault.headers });
      response.end(JSON.stringify(fault.body ?? { message: `injected ${fault.status}` }));
      return;
    case "delay":
      await new Promise((resolve) => setTimeout(resolve, fault.ms));
      return send(response, await forward());
    case "cut":
      if (fault.when === "after") await forward();
      request.socket.destroy();
      return;
    case "truncate": {
      const { status, headers, body } = await forward();
      response.writeHead(status, {
        "content-type": headers.get("content-type") ?? "",
        "content-length": body.length,
      });
      response.write(body.subarray(0, Math.floor(body.length / 2)), () => request.socket.destroy());
      return;
    }
    case "garble": {
      const { status, headers } = await forward();
      return send(response, { status, headers, body: Buffer.from("\u0000{]garbled") });
    }
    case "rewrite": {
      const { status, headers, body } = await forward();
      return send(response, { status, headers, body: Buffer.from(fault.rewrite(body.toString())) });
    }
    case "hold": {
      const answer = fault.when === "after" ? await forward() : undefined;
      fault.reached();
      await fault.released;
      if (isGone()) return;
      return send(response, answer ?? await forward());
    }
    case undefined:
      return send(response, await forward());
  }
}

function send(response: ServerResponse, { status, headers, body }: Answer): void {
  const type = headers.get("content-type");
  response.writeHead(status, {
    ...(type === null ? {} : { "content-type": type }),
    "content-length": body.length,
  });
  response.end(body);
}

async function forward(target: string, { method, path, body, headers }: Call): Promise<Answer> {
  const hasBody = method !== "GET" && method !== "HEAD";
  const response = await fetch(target + path, {
    method,
    headers,
    ...(hasBody ? { body: new Uint8Array(body) } : {}),
  });
  return {
    status: response.status,
    headers: response.headers,
    body: Buffer.from(await response.arrayBuffer()),
  };
}

async function readCall(request: IncomingMessage): Promise<Call> {
  const parts: Buffer[] = [];
  for await (const part of request) parts.push(part as Buffer);
  const headers: Record<string, string> = {};
  for (const name of ["apikey", "authorization", "content-type", "prefer"]) {
    const value = request.headers[name];
    if (typeof value === "string") headers[name] = value;
  }
  return { method: request.method ?? "GET", path: request.url ?? "/", body: Buffer.concat(parts), headers };
}

function placeOf(
  call: Call,
  text: string,
  bucketOfRun: Map<string, string>,
): { route: Route; bucket: string } | undefined {
  const storage = /^\/storage\/v1\/object\/sign\/([^/?]+)(\/?)/.exec(call.path);
  if (storage !== null) {
    return { route: call.method === "GET" ? "probe" : "sign", bucket: decodeURIComponent(storage[1] ?? "") };
  }
  const rpc = /^\/rest\/v1\/rpc\/image_sync_(\w+)/.exec(call.path)?.[1];
  if (rpc === undefined) return undefined;
  const { p_run: run, p_bucket: bucket } = rpcBodySchema.parse(JSON.parse(text));
  if (run !== undefined && bucket !== undefined) bucketOfRun.set(run, bucket);
  const known = bucket ?? (run === undefined ? undefined : bucketOfRun.get(run));
  return known === undefined ? undefined : { route: rpc as Route, bucket: known };
}

async function listen(server: Server): Promise<string> {
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const address = server.address();
  if (address === null || typeof address === "string") {
    throw new Error("Cannot start the fault proxy: it has no port");
  }
  return `http://127.0.0.1:${address.port}`;
}
