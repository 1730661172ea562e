/** Refusals as RFC 9457 problem details with a stable `code`. */
import type { Problem } from "./contract.ts";

const CONTENT_TYPE = "application/problem+json";

/** Thrown where a request cannot be answered as asked; the API turns it into its response. */
export class ProblemError extends Error {
  constructor(readonly problem: Problem, readonly headers: Record<string, string> = {}) {
    super(`${problem.title}: ${problem.detail}`);
  }
}

/** Builds what a handler throws to refuse a request. `extra` holds the numbers behind the refusal, `headers` go with it. */
export function refuse(
  status: number,
  code: string,
  title: string,
  detail: string,
  extra: Record<string, unknown> = {},
  headers: Record<string, string> = {},
): ProblemError {
  return new ProblemError({ ...extra, status, code, title, detail }, headers);
}

/** The response for a problem. */
export function problemResponse(problem: Problem, headers: Record<string, string> = {}): Response {
  return Response.json({ type: "about:blank", ...problem }, {
    status: problem.status,
    headers: { ...headers, "content-type": CONTENT_TYPE },
  });
}
