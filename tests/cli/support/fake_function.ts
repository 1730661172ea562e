import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { onTestFinished } from "vitest";
import {
  type Plan,
  planQuerySchema,
  readQuerySchema,
  type Report,
  type Run,
  type StartRequest,
  startRequestSchema,
} from "../../../supabase/functions/image-sync/contract.ts";

export const KEY = "sb_secret_correct-horse_battery";

/** An answer that is not a document. */
export type Answer = {
  readonly status: number;
  readonly body: unknown;
  readonly headers?: Record<string, string>;
};

/** What a fake function answers. Anything that throws an {@linkcode Answer} answers that. */
export type Behaviour = {
  /** The run that a POST starts or finds. */
  readonly onStart?: (request: StartRequest) => { run: Run; created: boolean };
  /** The run at the n-th look (from 1) at it. */
  readonly onRun?: (id: string, look: number) => Run;
  readonly onCancel?: (id: string) => Run;
  readonly onReport?: (bucket: string) => Report;
  readonly onFile?: (bucket: string, name: string) => unknown;
  /** A page of a list. */
  readonly onPlan?: (run: string, after: string) => Plan;
};

export type FakeFunction = {
  readonly url: string;
  /** The bodies of the POSTs, in order. */
  readonly starts: readonly StartRequest[];
  /** How often a run was looked at. */
  looks(): number;
};

/** Answers like the function, with documents of the test's choice; closed when the test is over. */
export async function serveFunction(behaviour: Behaviour): Promise<FakeFunction> {
  const starts: StartRequest[] = [];
  let looks = 0;
  const answer = async (request: IncomingMessage): Promise<Answer> => {
    const url = new URL(request.url ?? "/", "http://localhost");
    const isPlan = url.pathname === "/functions/v1/image-sync/plan";
    if (url.pathname !== "/functions/v1/image-sync" && !isPlan) {
      return { status: 404, body: { message: "no Route matched" } };
    }
    if (request.headers["apikey"] !== KEY) {
      return problem(401, "unauthorized", "Not signed in", "Cannot answer");
    }
    if (request.method === "POST") {
      const body = startRequestSchema.parse(JSON.parse(await read(request)));
      starts.push(body);
      const { run, created } = demand(behaviour.onStart)(body);
      return { status: 202, body: { ...run, created } };
    }
    if (isPlan) {
      const { run, after } = planQuerySchema.parse(Object.fromEntries(url.searchParams));
      return { status: 200, body: demand(behaviour.onPlan)(run, after) };
    }
    const query = readQuerySchema.parse(Object.fromEntries(url.searchParams));
    if (request.method === "DELETE") {
      return { status: 200, body: demand(behaviour.onCancel)(query.run ?? "") };
    }
    if (query.run !== undefined) return { status: 200, body: demand(behaviour.onRun)(query.run, ++looks) };
    if (query.file !== undefined) {
      return { status: 200, body: demand(behaviour.onFile)(query.bucket, query.file) };
    }
    return { status: 200, body: demand(behaviour.onReport)(query.bucket) };
  };
  const url = await serve((request, response) => {
    answer(request).catch((thrown: unknown) =>
      isAnswer(thrown) ? thrown : { status: 500, body: String(thrown) }
    )
      .then((result) => write(response, result));
  });
  return { url, starts, looks: () => looks };
}

/** Serves anything on loopback; returns its URL. Closed when the test is over. */
export async function serve(
  handle: (request: IncomingMessage, response: ServerResponse) => void,
): Promise<string> {
  const server = createServer(handle);
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  onTestFinished(() => {
    server.closeAllConnections();
    server.close();
  });
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
}

/** A refusal as the function words it. */
export function problem(status: number, code: string, title: string, detail: string): Answer {
  return {
    status,
    body: { status, code, title, detail },
    headers: { "content-type": "application/problem+json" },
  };
}

/** Writes an answer: text as it is, anything else as JSON. */
export function write(response: ServerResponse, { status, body, headers }: Answer): void {
  const text = typeof body === "string" ? body : JSON.stringify(body);
  response.writeHead(status, { "content-type": "application/json", ...headers }).end(text);
}

function demand<T>(handler: T | undefined): T {
  if (handler === undefined) {
    throw problem(500, "unexpected", "Unexpected", "The test expects no such request");
  }
  return handler;
}

function isAnswer(thrown: unknown): thrown is Answer {
  return typeof thrown === "object" && thrown !== null && "status" in thrown && "body" in thrown;
}

async function read(request: IncomingMessage): Promise<string> {
  let text = "";
  for await (const chunk of request) text += chunk;
  return text;
}
