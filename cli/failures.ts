/** What can go wrong between a command and the function, as sentences with the way out. */
import { z } from "zod";
import { type Problem, problemSchema } from "../supabase/functions/image-sync/contract.ts";
import { safeText } from "../supabase/functions/image-sync/text/safe_text.ts";
import { explain } from "../supabase/functions/image-sync/text/unexplained.ts";
import { CommandError } from "./command_error.ts";
import { isClone } from "./package_root.ts";

/** No answer came, or not all of it. `timeout` is what was waited, in ms, where that was the reason. */
export function noAnswer(
  { url, error, timeout }: { url: string; error: unknown; timeout: number | undefined },
): CommandError {
  if (timeout !== undefined) {
    return new CommandError(
      "timeout",
      `Cannot get an answer from ${url} within ${
        timeout / 1000
      } s: try again, or allow more with --timeout SECONDS`,
      { cause: error, transient: true },
    );
  }
  return new CommandError(
    "unreachable",
    `Cannot reach ${url}: ${connectionReason(error)}; check the URL and the network${loopbackHint(url)}`,
    { cause: error, transient: true },
  );
}

/** An answer came that is not what image-sync answers. */
export function noSense(url: string, error: unknown): CommandError {
  return new CommandError(
    "not_understood",
    `Cannot understand the answer of ${url}: it is not a document of image-sync; check the URL, and deploy the function of ` +
      "the same version as this command with: npx supabase functions deploy image-sync",
    { cause: error },
  );
}

/** The function, or what stands before it, answered with an error status. */
export function refusal(url: string, status: number, body: string): CommandError {
  const problem = parseProblem(body);
  if (problem === undefined && IN_ITS_PLACE.has(status)) return answeredInItsPlace(url, status, body);
  if (status === 401 || status === 403) return wrongKey(url, status);
  if (problem !== undefined) return refusedBy(problem, status);
  if (status === 404) return notDeployed(url);
  if (status >= 300 && status < 400) {
    return new CommandError(
      "redirected",
      `Cannot use ${url}: it answers with a redirect (HTTP ${status}), and a key is not sent on; set the URL of the project itself`,
    );
  }
  if (status === 429 || status >= 500) return overloaded(url, status);
  return noSense(url, new Error(`HTTP ${status}`));
}

/** What the platform or somebody in front of it answers for a function; its own answers are problems. */
const IN_ITS_PLACE = new Set([401, 402, 403, 540, 546]);

function answeredInItsPlace(url: string, status: number, body: string): CommandError {
  const said = safeText(explain({ status, text: body }));
  return new CommandError(
    status === 401 || status === 403 ? "unauthorized" : "unavailable",
    `Cannot use the function at ${url}: ${said}`,
    { transient: status === 546 },
  );
}

function wrongKey(url: string, status: number): CommandError {
  return new CommandError(
    "unauthorized",
    `Cannot sign in at ${url}: the key is not one of its secret keys (HTTP ${status}); take one from the dashboard, ` +
      "Project Settings, API Keys (sb_secret_...), and set SUPABASE_SECRET_KEY or pass --key",
  );
}

function notDeployed(url: string): CommandError {
  return new CommandError(
    "not_deployed",
    `Cannot find the function image-sync at ${url} (HTTP 404): check the URL, or deploy the function with: ` +
      "npx supabase functions deploy image-sync",
  );
}

function overloaded(url: string, status: number): CommandError {
  return new CommandError(
    "unavailable",
    `Cannot get an answer from the function at ${url} (HTTP ${status}): it did not start, or is overloaded; try again in ` +
      "a minute, then look at its log in the dashboard, Edge Functions, image-sync, Logs",
    { transient: true },
  );
}

const fieldsSchema = z.array(z.object({ field: z.string(), message: z.string() }));

function refusedBy(problem: Problem, status: number): CommandError {
  const text = `${safeText(problem.title)}. ${safeText(problem.detail)}`.replace(/\.$/, "");
  const fields = fieldsSchema.safeParse(problem["errors"]).data ?? [];
  return new CommandError(problem.code, text, { transient: status === 429 || status >= 500, fields });
}

function parseProblem(body: string) {
  try {
    return problemSchema.safeParse(JSON.parse(body)).data;
  } catch {
    return undefined;
  }
}

// The runtimes word these differently, and say the URL again.
function connectionReason(error: unknown): string {
  const text = causes(error).join(" ");
  const ofProxy = /the proxy \S+ (?:cannot be reached|does not answer|answers HTTP \d+)/.exec(text);
  if (ofProxy !== null) return ofProxy[0];
  if (/refused/i.test(text)) return "the connection was refused";
  if (/dns|ENOTFOUND|EAI_AGAIN|lookup/i.test(text)) return "there is no host of that name";
  if (/certificate|tls|ssl/i.test(text)) return "its certificate is not accepted";
  if (/reset|closed|EPIPE|socket|terminated|incomplete/i.test(text)) return "the connection was cut";
  return "there is no connection";
}

function causes(error: unknown): string[] {
  if (!(error instanceof Error)) return [String(error)];
  const code = "code" in error ? String(error.code) : "";
  return [error.message, code, ...error.cause === undefined ? [] : causes(error.cause)];
}

function loopbackHint(url: string): string {
  return isClone && /^http:\/\/(127\.|localhost|\[::1\])/.test(url)
    ? ", or start the embedded stack with npm start"
    : "";
}
