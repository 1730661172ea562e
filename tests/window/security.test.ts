/** Who gets through the window's guard, and what leaves it. */
import { request as send } from "node:http";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { CommandError } from "../../cli/command_error.ts";
import type { Client } from "../../cli/client.ts";
import { type OpenWindow, openWindow } from "../../window/server.ts";
import { makeDryRun, makeReport, makeRun } from "../cli/support/documents.ts";
import { fakeClient } from "./support/client.ts";
import { enter } from "./support/window.ts";

const KEY = "sb_secret_correct-horse_battery";
const HOSTILE = `<img src=x onerror="alert(1)">'"&\u202e.jpg`;
const URL_BASE = "https://ref.supabase.co/storage/v1/object/sign/part-images/";
const TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJ1cmwiOiJ4In0.c2lnbmF0dXJl";

type Answer = { status: number; headers: Record<string, string | string[] | undefined>; body: string };
type Asked = { method?: string; path?: string; headers?: Record<string, string>; body?: string };

let window: OpenWindow;
let cookie: string;
let started: unknown[];
let written: string;

/** A request as it is: with any Host, and no header that a library adds. */
function ask({ method = "GET", path = "/", headers = {}, body }: Asked, to = window): Promise<Answer> {
  const { hostname, port } = new URL(to.origin);
  return new Promise((resolve, reject) => {
    const sent = send({ hostname, port, method, path, headers: { cookie, ...headers } }, (response) => {
      let text = "";
      response.on("data", (part) => text += part);
      response.on(
        "end",
        () => resolve({ status: response.statusCode ?? 0, headers: response.headers, body: text }),
      );
    });
    sent.on("error", reject);
    sent.end(body);
  });
}

const form = (fields: Record<string, string>) => ({
  method: "POST",
  headers: { "content-type": "application/x-www-form-urlencoded", origin: window.origin },
  body: new URLSearchParams(fields).toString(),
});
const withLength = <T extends { body: string; headers: Record<string, string> }>(asked: T) => ({
  ...asked,
  headers: { ...asked.headers, "content-length": String(asked.body.length) } as Record<string, string>,
});
const csrfOf = async (action: string) => {
  const { body } = await ask({});
  return new RegExp(`action="${action}"[^]*?name="csrf" value="([^"]+)"`).exec(body)?.[1] ?? "";
};

const hostileRun = makeRun({
  state: "open",
  bucket_id: HOSTILE,
  error: { code: "x", title: HOSTILE, detail: HOSTILE },
  problems: [{ name: HOSTILE, code: HOSTILE, detail: HOSTILE }],
});
const hostileReport = makeReport({
  bucket: { id: HOSTILE, objects: 1, images: 1, bytes: 1, by_extension: { [HOSTILE]: 1 } },
  open_run: hostileRun,
  findings: [
    {
      code: HOSTILE,
      level: "error",
      title: HOSTILE,
      count: 9,
      samples: [HOSTILE],
      remediation: HOSTILE,
      action: { sql: HOSTILE },
    },
    {
      code: "missing",
      level: "warning",
      title: HOSTILE,
      count: 9,
      samples: [HOSTILE],
      remediation: HOSTILE,
      action: { request: { mode: "sync", bucket: HOSTILE } },
    },
  ],
  last_runs: { sync: null, analyze: null, cleanup: makeDryRun([HOSTILE]), restore: null },
});
const client = (): Client =>
  fakeClient({
    report: () => Promise.resolve(hostileReport),
    expiry: () =>
      Promise.resolve({
        measured_at: null,
        renew_before_seconds: 1,
        next_run_at: null,
        unsigned: 0,
        expired: 0,
        days: [{ day: "2026-11-26", urls: 1 }],
      }),
    history: () =>
      Promise.resolve({
        from: "2026-11-25",
        to: "2026-11-26",
        days: [{ day: "2026-11-26", runs: { failed: 1 } }],
      }),
    records: () =>
      Promise.resolve({
        records: [
          {
            file_name: HOSTILE,
            part_number: HOSTILE,
            state: "working",
            url: `${URL_BASE}x.jpg?token=${TOKEN}`,
            detail: HOSTILE,
          },
          { file_name: "foreign.jpg", state: "working", url: "https://evil.example/x.jpg" },
        ],
        next: HOSTILE,
        as_of: null,
        url_base: URL_BASE,
      }),
    file: () =>
      Promise.resolve({
        bucket_id: HOSTILE,
        file_name: HOSTILE,
        in_sync: false,
        reasons: [{ code: HOSTILE, detail: HOSTILE }],
        twins: [HOSTILE],
      }),
    planPage: () => Promise.resolve({ run: hostileRun.id, count: 1, names: [HOSTILE], next: HOSTILE }),
    archives: () => Promise.resolve({ archives: [] }),
    archived: ({ run }) =>
      Promise.resolve({
        run,
        records: [{ file_name: HOSTILE, part_number: HOSTILE, restored_at: null }],
        next: HOSTILE,
      }),
    settings: () =>
      Promise.resolve({
        bucket_id: HOSTILE,
        fields: [{
          name: "exclude",
          type: "text[]",
          value: [HOSTILE],
          default: HOSTILE,
          meaning: HOSTILE,
          bounds: HOSTILE,
        }],
      }),
    runs: () => Promise.resolve({ runs: [hostileRun], next: null }),
    run: () => Promise.resolve(hostileRun),
    buckets: () =>
      Promise.resolve({
        buckets: [{
          bucket_id: HOSTILE,
          exists: true,
          nightly: true,
          healthy: false,
          errors: 1,
          warnings: 1,
          images: 1,
          coverage: 1,
          last_sync_at: null,
          last_sync_state: null,
          open_run: null,
        }],
        next: null,
      }),
    start: (body) => {
      started.push(body);
      return Promise.resolve({ run: hostileRun, created: true });
    },
    cancel: () =>
      Promise.reject(
        new CommandError("unreachable", `Cannot reach it with ${KEY} and ${URL_BASE}x?token=${TOKEN}`, {
          transient: true,
        }),
      ),
  });

const PATHS = [
  "/",
  "/pictures",
  "/picture?file=x",
  "/cleanup",
  `/archive/${hostileRun.id}`,
  "/runs",
  `/runs/${hostileRun.id}`,
  "/settings",
  "/buckets",
  "/nothing",
];

beforeEach(async () => {
  started = [];
  written = "";
  for (const stream of [process.stdout, process.stderr]) {
    vi.spyOn(stream, "write").mockImplementation((text) => {
      written += String(text);
      return true;
    });
  }
  window = await openWindow({
    client: client(),
    projectUrl: "https://ref.supabase.co",
    key: KEY,
    bucket: "part-images",
  });
  cookie = await enter(window);
});
afterEach(async () => {
  vi.restoreAllMocks();
  await window.close();
  expect(written).not.toMatch(/sb_secret_|eyJ|token=/);
});

describe("getting in", () => {
  test("takes the address, which is good for one browser, once", async () => {
    const token = new URL(window.address).search;
    // The browser that has it may go there again, and the token leaves its address bar.
    expect(await ask({ path: `/${token}` })).toMatchObject({ status: 303, headers: { location: "/" } });
    const other = await ask({ path: `/${token}`, headers: { cookie: "" } });
    expect(other.status).toBe(401);
    expect(other.headers["set-cookie"]).toBeUndefined();
  });

  test("gives a cookie that no script reads and no other site sends", async () => {
    const another = await openWindow({ client: client(), projectUrl: "", key: KEY, bucket: "b" });
    const { headers } = await ask({
      path: new URL(another.address).search && `/${new URL(another.address).search}`,
      headers: { cookie: "", host: new URL(another.origin).host },
    }, another);
    expect(String(headers["set-cookie"])).toMatch(/HttpOnly.*SameSite=Strict/);
    await another.close();
  });

  test("another user of the machine, without the cookie or with a guess, sees nothing", async () => {
    for (const path of [...PATHS, "/live", "/assets/window.css"]) {
      for (const guess of ["", `image_sync_window_${new URL(window.origin).port}=guess`]) {
        const { status, body } = await ask({ path, headers: { cookie: guess } });
        expect([path, status]).toEqual([path, 401]);
        expect(body).not.toContain("part-images");
      }
    }
    expect((await ask({ path: "/?token=guess", headers: { cookie: "" } })).status).toBe(401);
  });
});

describe("another page in the same browser", () => {
  test("that made a name of its own point at loopback is not answered", async () => {
    const { port } = new URL(window.origin);
    for (
      const host of [
        "evil.example",
        `evil.example:${port}`,
        `localhost:${port}`,
        "127.0.0.1",
        `127.0.0.1:${port}.evil.example`,
      ]
    ) {
      expect([421, 400], host).toContain((await ask({ headers: { host } })).status);
    }
  });

  test("of another origin, of another port, or in a sandbox may neither read nor post", async () => {
    const { port } = new URL(window.origin);
    const csrf = await csrfOf("/start");
    const request = JSON.stringify({ mode: "sync" });
    const from: Record<string, string>[] = [
      { origin: "https://evil.example" },
      { origin: `http://127.0.0.1:${Number(port) + 1}` },
      { origin: "null" },
      { origin: "null", "sec-fetch-site": "cross-site" },
      { origin: "", "sec-fetch-site": "cross-site" },
      { "sec-fetch-site": "same-site", origin: "" },
    ];
    for (const headers of from) {
      const posted = withLength({ ...form({ csrf, request }) });
      const { origin: _, ...rest } = posted.headers;
      const sent = Object.fromEntries(
        Object.entries({ ...rest, ...headers }).filter(([, value]) => value !== ""),
      );
      expect([headers, (await ask({ ...posted, path: "/start", headers: sent })).status]).toEqual([
        headers,
        403,
      ]);
      const { "content-type": _type, "content-length": _length, ...plain } = sent;
      expect([headers, (await ask({ path: "/live", headers: plain })).status]).toEqual([headers, 403]);
    }
    expect(started).toEqual([]);
  });

  test("may not frame it, and gets neither its referrer nor its script's rights", async () => {
    for (const path of PATHS) {
      const { headers } = await ask({ path });
      const policy = String(headers["content-security-policy"]);
      expect(policy).toContain("frame-ancestors 'none'");
      expect(policy).toContain("default-src 'none'");
      expect(policy).not.toMatch(/unsafe|\*|https?:(?!\/\/ref\.supabase\.co)/);
      expect(headers).toMatchObject({
        "x-frame-options": "DENY",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
        "cache-control": "no-store",
      });
    }
  });
});

describe("a change", () => {
  const post = (path: string, fields: Record<string, string>) => ask({ ...withLength(form(fields)), path });

  test("needs the token of that very form", async () => {
    const request = JSON.stringify({ mode: "sync" });
    for (const csrf of ["", "guess", await csrfOf("/cancel")]) {
      expect((await post("/start", { csrf, request })).status).toBe(403);
    }
    expect(started).toEqual([]);
    expect((await post("/start", { csrf: await csrfOf("/start"), request })).status).toBe(303);
    expect(started).toHaveLength(1);
  });

  test("of a page without a referrer comes with the origin null, and the browser's word for it", async () => {
    const asked = withLength(
      form({ csrf: await csrfOf("/start"), request: JSON.stringify({ mode: "sync" }) }),
    );
    const headers = { ...asked.headers, origin: "null", "sec-fetch-site": "same-origin" };
    expect((await ask({ ...asked, headers, path: "/start" })).status).toBe(303);
  });

  test("is never made by a GET", async () => {
    for (const path of ["/start", "/cancel", "/confirm", "/start-restore", "/add-bucket", "/remove-bucket"]) {
      expect((await ask({ path })).status).toBe(404);
    }
  });

  test("leads back to the window, whatever the form says", async () => {
    const csrf = await csrfOf("/start");
    for (
      const back of ["https://evil.example/", "//evil.example/", "/\\evil.example", "javascript:alert(1)"]
    ) {
      const { headers } = await post("/start", { csrf, request: JSON.stringify({ mode: "sync" }), back });
      expect(String(headers.location)).toMatch(/^\/(?![/\\])/);
    }
  });

  test("that removes something needs the number of its list, typed", async () => {
    const csrf = (await ask({ path: "/cleanup" })).body.match(
      /action="\/confirm"[^]*?name="csrf" value="([^"]+)"/,
    )?.[1];
    const plan = hostileReport.last_runs.cleanup?.id ?? "";
    // The list is of 2026-11-24 and too old for the page to offer it.
    expect(csrf).toBeUndefined();
    const refused = await post("/start", {
      csrf: await csrfOf("/start"),
      request: JSON.stringify({ mode: "cleanup", confirm: plan }),
    });
    expect(refused.status).toBe(409);
    expect(started).toEqual([]);
  });

  test("of more than 64 kB is not read", async () => {
    expect((await post("/start", { csrf: "x".repeat(70_000) })).status).toBe(413);
  });
});

describe("what leaves it", () => {
  test("names are text, wherever they stand", async () => {
    for (const path of PATHS) {
      const { body } = await ask({ path });
      expect(body, path).not.toMatch(/<img[^>]*onerror/i);
      // What is sent back has to be what it was; it is not shown.
      expect(body.replaceAll(/<input type="hidden"[^>]*>|<textarea[^]*?<\/textarea>/g, ""), path).not
        .toContain("\u202e");
      expect(body, path).not.toMatch(/<script(?![^>]*src="\/assets)/);
      // No element has a script or a style of its own.
      expect(body.replaceAll(/"[^"]*"/g, '""'), path).not.toMatch(/<[^<>]* (?:style|on[a-z]+)=""/);
    }
  });

  test("the key never, URLs only to the pages that show their pictures, and only the project's own", async () => {
    for (const path of PATHS) {
      const { body, headers } = await ask({ path });
      expect(body, path).not.toContain(KEY);
      const shows = path === "/pictures" || path === "/picture?file=x";
      if (!shows) expect(body, path).not.toMatch(/token=|eyJ/);
      expect(body, path).not.toContain("evil.example");
      expect(String(headers["content-security-policy"]).includes("https://ref.supabase.co")).toBe(shows);
    }
    expect((await ask({ path: "/pictures" })).body).toContain(TOKEN);
  });

  test("what went wrong is told without key and token", async () => {
    const asked = withLength(form({ csrf: await csrfOf("/cancel"), run: hostileRun.id }));
    const { status, body } = await ask({ ...asked, path: "/cancel" });
    expect(status).toBe(502);
    expect(body).toContain("Cannot reach it");
    expect(body).not.toMatch(/sb_secret_|eyJ/);
  });

  test("live parts hold nothing that a page does not", async () => {
    const { hostname, port } = new URL(window.origin);
    const text = await new Promise<string>((resolve, reject) => {
      let seen = "";
      const sent = send({ hostname, port, path: "/live?view=overview", headers: { cookie } }, (response) => {
        response.on("data", (part) => {
          seen += part;
          if (!seen.includes('"growth"')) return;
          resolve(seen);
          sent.destroy();
        });
        response.on("error", () => {});
      });
      sent.on("error", reject);
      sent.end();
    });
    expect(text).not.toMatch(/<img|sb_secret_|token=/);
  });
});
