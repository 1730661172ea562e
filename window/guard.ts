/**
 * Who may look through the window: the browser that was opened with its address, and nobody else who reaches the port. Other users of
 * the machine, other pages in the same browser and names that were made to point at loopback all get here, and no further.
 */
import { createHmac, randomBytes, timingSafeEqual } from "node:crypto";
import type { MiddlewareHandler } from "hono";
import { getCookie, setCookie } from "hono/cookie";

/** What the window's pages may load beside its own files: pictures of these origins. */
export type Shown = { Variables: { pictureOrigins: readonly string[] } };

/** The guard of one window. */
export type Guard = {
  /** Good for one browser, once. */
  readonly token: string;
  /** Settles when a browser came with it. */
  readonly entered: Promise<void>;
  /** What a form that posts to this path has to bring along. */
  readonly csrf: (path: string) => string;
  /** Stands before every route; answers what may not pass. */
  readonly middleware: MiddlewareHandler<Shown>;
};

const TOKEN_BYTES = 32;
/** A redirect would go on in the name of the page that led here, and the cookie would not be sent: a page of ours goes on in its own. */
const GO_ON = '<!doctype html><title>image-sync</title><a href="/">Open the window</a>\n';
/** The largest form, in bytes. */
const MAX_FORM_BYTES = 65_536;

/**
 * Makes the guard of the window at this origin, such as `http://127.0.0.1:49152`.
 *
 * @param token made up where none is given
 */
export function createGuard(origin: string, token: string = secret()): Guard {
  const key = secret();
  const host = new URL(origin).host;
  const session = secret();
  // Cookies are shared by all ports of a host.
  const cookie = `image_sync_window_${new URL(origin).port}`;
  let isTokenUsed = false;
  let enter = () => {};
  const entered = new Promise<void>((resolve) => enter = resolve);
  const csrf = (path: string) => createHmac("sha256", key).update(path).digest("base64url");

  const middleware: MiddlewareHandler<Shown> = async (context, next) => {
    const { req } = context;
    const refuse = (status: 401 | 403 | 413 | 421, words: string) =>
      withHeaders(
        new Response(`${words}\n`, { status, headers: { "content-type": "text/plain; charset=utf-8" } }),
        [],
      );
    if (req.header("host") !== host) {
      return refuse(
        421,
        `This is not the window's address: open it with the address that image-sync printed`,
      );
    }
    const isIn = isSame(getCookie(context, cookie) ?? "", session);
    const given = req.method === "GET" ? req.query("token") : undefined;
    if (given !== undefined) {
      if (!isIn) {
        if (isTokenUsed || !isSame(given, token)) {
          return refuse(
            401,
            "This address is good for one browser, once. Open another window with: npx image-sync open",
          );
        }
        isTokenUsed = true;
        enter();
        setCookie(context, cookie, session, { httpOnly: true, sameSite: "Strict", path: "/" });
      }
      // The token leaves the address bar and the history.
      return withHeaders(
        isLedHere(req.raw.headers)
          ? await context.html(GO_ON, 200, { refresh: "0; url=/" })
          : context.redirect("/", 303),
        [],
      );
    }
    if (!isOwnRequest(origin, req.raw.headers)) {
      return refuse(403, "Only the window's own pages may ask for this");
    }
    if (!isIn) {
      return refuse(
        401,
        "Open the window with the address that image-sync printed, or a new one with: npx image-sync open",
      );
    }
    if (req.method === "POST") {
      if (!(Number(req.header("content-length") ?? NaN) <= MAX_FORM_BYTES)) {
        return refuse(413, "The form is too large");
      }
      const form = await req.parseBody();
      if (!isSame(String(form["csrf"] ?? ""), csrf(req.path))) {
        return refuse(403, "This form is not of this window: reload the page");
      }
    }
    context.set("pictureOrigins", []);
    await next();
    context.res = withHeaders(context.res, context.get("pictureOrigins"));
  };
  return { token, entered, csrf, middleware };
}

/** Whether a page of somewhere else leads here, as the one does that the browser was opened with. */
function isLedHere(headers: Headers): boolean {
  return headers.get("sec-fetch-site") === "cross-site";
}

/**
 * Whether a request comes from a page of ours or from the address bar. A page without a referrer sends its forms with the origin
 * `null`; what no page can make up is what the browser itself says of where a request came from.
 */
function isOwnRequest(origin: string, headers: Headers): boolean {
  const from = headers.get("origin");
  const site = headers.get("sec-fetch-site");
  if (from !== null && from !== "null" && from !== origin) return false;
  if (from === "null") return site === "same-origin";
  return site === null || site === "same-origin" || site === "none";
}

function withHeaders(response: Response, pictureOrigins: readonly string[]): Response {
  const headers = new Headers(response.headers);
  headers.set(
    "content-security-policy",
    [
      "default-src 'none'",
      "script-src 'self'",
      "style-src 'self'",
      `img-src ${["'self'", ...pictureOrigins].join(" ")}`,
      "connect-src 'self'",
      "form-action 'self'",
      "base-uri 'none'",
      "frame-ancestors 'none'",
    ].join("; "),
  );
  headers.set("referrer-policy", "no-referrer");
  headers.set("x-content-type-options", "nosniff");
  headers.set("x-frame-options", "DENY");
  headers.set("cross-origin-opener-policy", "same-origin");
  headers.set("cross-origin-resource-policy", "same-origin");
  if (!headers.has("cache-control")) headers.set("cache-control", "no-store");
  return new Response(response.body, { status: response.status, headers });
}

function secret(): string {
  return randomBytes(TOKEN_BYTES).toString("base64url");
}

function isSame(one: string, other: string): boolean {
  const [ones, others] = [one, other].map((text) => createHmac("sha256", "").update(text).digest());
  return ones !== undefined && others !== undefined && timingSafeEqual(ones, others);
}
