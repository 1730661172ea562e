/** What the platform or somebody before it answers in place of a service, by HTTP status. */
export const injectable = {
  401: json({ code: "UNAUTHORIZED_NO_AUTH_HEADER", message: "Missing authorization header" }),
  402: json({
    code: "exceed_egress_quota",
    message: "Service for this project is restricted due to the following violations: exceed_egress_quota.",
  }),
  403: {
    type: "text/html; charset=UTF-8",
    body: "<!DOCTYPE html><html><head><title>Attention Required! | Cloudflare</title></head>" +
      "<body><h1>Sorry, you have been blocked</h1></body></html>",
  },
  540: json({ message: "Project paused" }),
  546: json({
    code: "WORKER_LIMIT",
    message: "Function failed due to not having enough compute resources (please check logs)",
  }),
} as const;

/** An answer in place of the service's. */
export type Injection = {
  readonly status: keyof typeof injectable;
  /** Which requests get it: those whose path and query begin with this. */
  readonly path: string;
  /** How many of them. */
  times: number;
};

/** What the control endpoints set, for the parts of the stack that look at it. */
export type Switches = {
  /** Added to every request of a client, in ms. */
  latency: number;
  injection: Injection | undefined;
  /** How Storage answers where the content of a row is missing: as on S3, which hosted projects have, or on a file system. */
  backend: "s3" | "file";
};

/** Makes switches that change nothing. */
export function createSwitches(): Switches {
  return { latency: 0, injection: undefined, backend: "s3" };
}

/** The answer that is injected for a request; `undefined` where the service answers. */
export function injectedAnswer({ injection }: Switches, requestUrl: string): Response | undefined {
  const { pathname, search } = new URL(requestUrl);
  if (injection === undefined || injection.times <= 0) return undefined;
  if (!(pathname + search).startsWith(injection.path)) return undefined;
  injection.times--;
  const { type, body } = injectable[injection.status];
  return new Response(body, { status: injection.status, headers: { "content-type": type } });
}

function json(body: unknown): { readonly type: string; readonly body: string } {
  return { type: "application/json", body: JSON.stringify(body) };
}
