/**
 * The way to a hosted project through a company's proxy. Deno's `fetch` goes by the environment of itself, and that of newer Nodes once it is
 * told to; those of Node 20 and 22 are given the connections to send on.
 */
import "./loopback.mjs";
import * as http from "node:http";
import * as https from "node:https";
import { isIP, type Socket } from "node:net";
import process from "node:process";
import { connect } from "node:tls";

type Environment = Readonly<Record<string, string | undefined>>;
type Target = { readonly hostname: string; readonly port: string };
type Done = (error: Error | null, socket?: Socket) => void;
type Dispatcher = { dispatch(request: { readonly origin: string | URL }, handler: unknown): boolean };
type Agent = Dispatcher & {
  readonly constructor: new (options: { connect: (target: Target, done: Done) => void }) => Dispatcher;
};

/** Where Node 20 and 22 keep what their `fetch` sends with; undici's own way to put another one there. */
const DISPATCHER = Symbol.for("undici.globalDispatcher.1");
/** For a connection, in ms; undici's own measure. */
const CONNECT_TIMEOUT = 10_000;

/** Has every request from now on go the way that the environment names. */
export function goThroughProxy(env: Environment = process.env): void {
  const proxy = proxyOf(env);
  if (proxy === undefined || "Deno" in globalThis) return;
  const { setGlobalProxyFromEnv } = http as { setGlobalProxyFromEnv?: (env: Environment) => void };
  if (setGlobalProxyFromEnv !== undefined) return setGlobalProxyFromEnv({ ...env, https_proxy: proxy.href });
  new Headers(); // with the first of its classes comes all of fetch
  const fetching = globalThis as { [DISPATCHER]?: Dispatcher };
  const own = fetching[DISPATCHER] as Agent;
  const tunnelled = new own.constructor({ connect: (target, done) => connectThrough(proxy, target, done) });
  fetching[DISPATCHER] = {
    dispatch: (request, handler) =>
      (isDirect(new URL(request.origin), env) ? own : tunnelled).dispatch(request, handler),
  };
}

/** The proxy for https addresses. One that is none of HTTP's, such as `socks5://`, is not known to Node. */
function proxyOf(env: Environment): URL | undefined {
  const named =
    ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"].map((name) => env[name]).find(Boolean) ?? "";
  const address = named === "" || named.includes("://") ? named : `http://${named}`;
  return /^https?:/.test(address) && URL.canParse(address) ? new URL(address) : undefined;
}

// What is asked without TLS is on this machine.
function isDirect({ protocol, hostname, port }: URL, env: Environment): boolean {
  const entries = `${env["no_proxy"] ?? ""},${env["NO_PROXY"] ?? ""}`.toLowerCase().split(/[\s,]+/);
  return protocol === "http:" || entries.filter(Boolean).some((entry) => {
    const [, domain = "", only] = /^(?:\*?\.)?(.*?)(?::(\d+))?$/.exec(entry) ?? [];
    const isPort = only === undefined || only === (port || "443");
    return entry === "*" || (isPort && (hostname === domain || hostname.endsWith(`.${domain}`)));
  });
}

function connectThrough(proxy: URL, { hostname, port }: Target, done: Done): void {
  const place = `${hostname}:${port || 443}`;
  const account = decodeURIComponent(`${proxy.username}:${proxy.password}`);
  const headers = {
    host: place,
    ...(account === ":" ? {} : { "proxy-authorization": `Basic ${btoa(account)}` }),
  };
  const fail = (words: string, cause?: Error) =>
    done(new Error(`the proxy ${proxy.host} ${words}`, { cause }));
  const asked = (proxy.protocol === "https:" ? https : http)
    .request(proxy, { method: "CONNECT", path: place, headers, timeout: CONNECT_TIMEOUT });
  asked.once("error", (error) => fail("cannot be reached", error));
  asked.once("timeout", () => {
    fail("does not answer");
    asked.destroy();
  });
  asked.once("connect", ({ statusCode }, socket: Socket) => {
    if (statusCode === 200) return secure(hostname, socket, done);
    fail(`answers HTTP ${statusCode}`);
    socket.destroy();
  });
  asked.end();
}

function secure(hostname: string, socket: Socket, done: Done): void {
  const servername = isIP(hostname) ? "" : hostname;
  const safe = connect({ socket, servername, ALPNProtocols: ["http/1.1"], timeout: CONNECT_TIMEOUT });
  safe.once("timeout", () => safe.destroy(new Error(`${hostname} does not answer`))).once("error", done);
  safe.once("secureConnect", () => {
    safe.setTimeout(0).removeAllListeners("timeout");
    done(null, safe);
  });
}
