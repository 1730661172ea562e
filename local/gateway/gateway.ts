import { Hono, type MiddlewareHandler } from "hono";
import type { FunctionProcess } from "../functions/function.ts";
import type { RequestCounter } from "./request_counts.ts";
import { injectedAnswer, type Switches } from "./switches.ts";

/** What the gateway routes to. */
export type GatewayParts = {
  /** The Edge Functions by name. */
  readonly functions: Readonly<Record<string, FunctionProcess>>;
  /** The RPC endpoint. */
  readonly rest: Hono;
  /** The Storage endpoints. */
  readonly storage: Hono;
  /** The stack's own endpoints, which the platform does not have. */
  readonly control: Hono;
  readonly counter: RequestCounter;
  readonly switches: Switches;
};

// The platform answers for a function that has not answered by then.
const functionTimeout = 150_000;

/** Makes the one HTTP front of the stack, as the platform's API gateway is. */
export function createGateway(parts: GatewayParts): Hono {
  const app = new Hono();
  app.route("/_local", parts.control);
  app.use(applySwitches(parts.switches));
  app.route("/rest/v1", parts.rest);
  app.route("/storage/v1", parts.storage);
  app.all(
    "/functions/v1/:name{[^/]+}/*",
    (context) => forward(parts, context.req.param("name"), context.req.raw),
  );
  app.all("/functions/v1/:name", (context) => forward(parts, context.req.param("name"), context.req.raw));
  app.notFound((context) => context.json({ message: "no Route matched with those values" }, 404));
  return app;
}

/** How late a timer fires at least, in ms: set to 10 after 11.4 at the median, set to 9 after 10.4 (Deno 2.9 on Linux). */
const TIMER_DELAY_MS = 1;

function applySwitches(switches: Switches): MiddlewareHandler {
  return async (context, next) => {
    const { latency } = switches;
    if (latency > 0) await new Promise((resolve) => setTimeout(resolve, latency - TIMER_DELAY_MS));
    const injected = injectedAnswer(switches, context.req.url);
    if (injected !== undefined) return injected;
    await next();
  };
}

async function forward(parts: GatewayParts, name: string, request: Request): Promise<Response> {
  parts.counter.countFunction();
  const target = parts.functions[name];
  if (target === undefined) return refuse(404, "NOT_FOUND", "Requested function was not found");
  let origin: string;
  try {
    origin = await target.origin();
  } catch {
    return refuse(503, "BOOT_ERROR", "Function failed to start (please check logs)");
  }
  const timeout = AbortSignal.timeout(functionTimeout);
  try {
    const response = await fetch(functionUrl(origin, request.url), {
      method: request.method,
      headers: functionHeaders(request),
      body: request.body,
      redirect: "manual",
      // Not the caller's signal: the platform lets a function go on whose caller has left.
      signal: timeout,
    });
    return clientResponse(request.method, response);
  } catch {
    return timeout.aborted ? refuse(504, "IDLE_TIMEOUT", "The request has timed out") : refuse(
      546,
      "WORKER_LIMIT",
      "Function failed due to not having enough compute resources (please check logs)",
    );
  }
}

// The function sees its name as the first part of the path, and nothing of the gateway's.
function functionUrl(origin: string, requestUrl: string): string {
  const { pathname, search } = new URL(requestUrl);
  return origin + pathname.replace(/^\/functions\/v1/, "") + search;
}

function functionHeaders(request: Request): Headers {
  const headers = new Headers(request.headers);
  const { host, port, pathname } = new URL(request.url);
  headers.delete("accept-encoding"); // compressing for this hop would cost more than it saves
  headers.delete("host");
  headers.set("x-forwarded-host", host);
  headers.set("x-forwarded-port", port);
  headers.set("x-forwarded-proto", "http");
  headers.set("x-forwarded-path", pathname);
  return headers;
}

// On its default domain the platform serves no pages.
function clientResponse(method: string, response: Response): Response {
  const headers = new Headers(response.headers);
  const type = headers.get("content-type") ?? "";
  if (method === "GET" && type.startsWith("text/html")) {
    headers.set("content-type", type.replace("html", "plain"));
  }
  return new Response(response.body && outliving(response.body), { status: response.status, headers });
}

/** The same bytes; whoever stops reading them does not stop the function from writing them. */
function outliving(body: ReadableStream<Uint8Array>): ReadableStream<Uint8Array> {
  const { readable, writable } = new TransformStream<Uint8Array, Uint8Array>();
  const writer = writable.getWriter();
  const pump = async () => {
    for await (const part of body) await writer.write(part).catch(() => {});
    await writer.close();
  };
  pump().catch((error: unknown) => writer.abort(error).catch(() => {}));
  return readable;
}

function refuse(status: number, code: string, message: string): Response {
  return Response.json({ code, message }, { status });
}
