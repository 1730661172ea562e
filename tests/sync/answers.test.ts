/** Whatever answers in place of a service: no row, URL, expiry or line of the register goes, and the report names the cause. */
import { createServer, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from "vitest";
import { makeFolder } from "../cli/support/export.ts";
import { runCommand } from "../cli/support/run_command.ts";
import {
  codesOf,
  createBucket,
  jpeg,
  numberedNames,
  readRecords,
  readReport,
  runToEnd,
  upload,
} from "./support/lab.ts";
import { control, counting, type LocalLab, openLocalLab } from "./support/local_lab.ts";

let lab: LocalLab;
/** The address that readers use: it hands on to Storage, or answers itself. */
let front: Server & { answer: ((response: ServerResponse) => void) | undefined };
let frontUrl: string;
beforeAll(async () => {
  lab = await openLocalLab();
  front = Object.assign(
    createServer((request, response) => {
      if (front.answer !== undefined) return front.answer(response);
      void fetch(lab.stack.url + request.url).then(async (answer) => {
        response.writeHead(answer.status, { "content-type": answer.headers.get("content-type") ?? "" });
        response.end(new Uint8Array(await answer.arrayBuffer()));
      });
    }),
    { answer: undefined },
  );
  await new Promise<void>((resolve) => front.listen(0, "127.0.0.1", resolve));
  frontUrl = `http://127.0.0.1:${(front.address() as AddressInfo).port}`;
});
afterAll(async () => {
  front?.close();
  await lab?.close();
});

/** A bucket in order. */
async function orderly(settings: Record<string, string | number> = {}): Promise<string> {
  const bucket = await createBucket(lab, { settings: { chunk_size: 5, probe_size: 10, ...settings } });
  for (const name of numberedNames(12)) await upload(lab, bucket, name, jpeg);
  expect((await runToEnd(lab, bucket)).state).toBe("succeeded");
  return bucket;
}

/** All that must not change, down to the version of each row. */
async function stateOf(bucket: string) {
  const register = await lab.call({ query: `/register.csv?bucket=${bucket}` });
  const lines = (await register.text()).trim().split("\r\n");
  expect([register.status, lines.length]).toEqual([200, 13]);
  return { records: await readRecords(lab, bucket), lines };
}

async function injecting<T>(status: number, path: string, act: () => Promise<T>): Promise<T> {
  await control(lab, "PUT", "/answer", { status, path });
  return await act().finally(() => control(lab, "DELETE", "/answer"));
}

const typed = (args: readonly string[], directory: string) =>
  runCommand(args, {
    env: { SUPABASE_URL: lab.stack.url, SUPABASE_SECRET_KEY: lab.stack.secretKey },
    directory,
  });

/** The one finding of a report, by its code, with all that it says. */
async function onlyFinding(bucket: string, code: string): Promise<string> {
  const report = await readReport(lab, bucket);
  expect(codesOf(report)).toEqual([code]);
  expect(report).toMatchObject({ healthy: false, findings: [{ level: "error" }] });
  return report.findings[0]?.remediation ?? "";
}

describe.each([
  [401, "Missing authorization header", "verify_jwt is on"],
  [402, "exceed_egress_quota", "exceeded its quota"],
  [403, "Attention Required! | Cloudflare", "firewall or proxy"],
  [540, "Project paused", "the project is paused"],
  [546, "not having enough compute resources", "compute limit"],
])("while a %i answers", (status, words, meaning) => {
  const says = (text: string) => {
    expect(text).toContain(`HTTP ${status}: "`);
    expect(text).toContain(words);
    expect(text).toContain(`${status} usually means that`);
    expect(text).toContain(meaning);
  };

  test("for Storage, a verify ends early, changes nothing and says why, until one has seen the pictures", async () => {
    const bucket = await orderly();
    const before = await stateOf(bucket);
    const run = await injecting(status, "/storage/v1/", () => runToEnd(lab, bucket, { mode: "verify" }));
    expect(run).toMatchObject({ state: "failed", stop_reason: "unreachable", totals: { rows_written: 0 } });
    says(run.error?.detail ?? "");
    expect(await stateOf(bucket)).toEqual(before);
    says(await onlyFinding(bucket, "unreachable"));
    expect((await runToEnd(lab, bucket, { mode: "verify" })).totals).toMatchObject({ opened: 12, shown: 12 });
    expect(codesOf(await readReport(lab, bucket))).toEqual([]);
  });

  test("for the URLs, the probe of a sync changes nothing and says why, until one has seen pictures", async () => {
    const bucket = await orderly();
    const before = await stateOf(bucket);
    const run = await injecting(status, `/storage/v1/object/sign/${bucket}/`, () => runToEnd(lab, bucket));
    expect(run).toMatchObject({ state: "succeeded", totals: { rows_written: 0 } });
    expect(await stateOf(bucket)).toEqual(before);
    says(await onlyFinding(bucket, "unreachable"));
    await runToEnd(lab, bucket);
    expect(codesOf(await readReport(lab, bucket))).toEqual([]);
    expect(await stateOf(bucket)).toEqual(before);
  });

  test("for Storage, a sync that should renew all signs nothing, keeps everything and says why", async () => {
    const bucket = await orderly();
    const before = await stateOf(bucket);
    const run = await injecting(
      status,
      "/storage/v1/",
      () => runToEnd(lab, bucket, { mode: "sync", renew: "all" }),
    );
    expect(run).toMatchObject({ state: "failed", stop_reason: "signing_failed", totals: { signed: 0 } });
    says(run.error?.detail ?? "");
    expect(await stateOf(bucket)).toEqual(before);
    const report = await readReport(lab, bucket);
    says(report.findings.find(({ code }) => code === "signing_failed")?.remediation ?? "");
    await runToEnd(lab, bucket);
    expect(codesOf(await readReport(lab, bucket))).toEqual([]);
  });

  test("for the Data API, a request is refused with the cause", async () => {
    const bucket = await orderly();
    const before = await stateOf(bucket);
    for (const mode of ["sync", "verify"]) {
      const response = await injecting(
        status,
        "/rest/v1/",
        () => lab.call({ method: "POST", body: JSON.stringify({ mode, bucket }) }),
      );
      const problem = await response.json() as { detail: string };
      expect([response.status, problem]).toMatchObject([503, { code: "database_unavailable" }]);
      says(problem.detail);
    }
    expect(await stateOf(bucket)).toEqual(before);
  });

  test("for all of the project, export and status say why and write no file", async () => {
    const bucket = await orderly();
    const before = await stateOf(bucket);
    const folder = await makeFolder();
    for (const command of [["export", "parts.csv"], ["status"]]) {
      const { status: exit, stderr } = await injecting(
        status,
        "/",
        () => typed([...command, "--bucket", bucket], folder),
      );
      expect(exit).toBe(2);
      says(stderr);
    }
    expect(await stateOf(bucket)).toEqual(before);
  });

  test("for Storage, an export with thumbnails has every row and says why none has a picture", async () => {
    const bucket = await orderly();
    const before = await stateOf(bucket);
    const { stdout } = await injecting(
      status,
      "/storage/v1/",
      async () =>
        await typed(
          ["export", "parts.xlsx", "--thumbnails", "--json", "--bucket", bucket],
          await makeFolder(),
        ),
    );
    const document = JSON.parse(stdout) as { rows: number; thumbnails: { left_out: { reason: string }[] } };
    expect([document.rows, document.thumbnails.left_out.length]).toEqual([12, 12]);
    for (const { reason } of document.thumbnails.left_out) says(reason);
    expect(await stateOf(bucket)).toEqual(before);
  });
});

const answering =
  (status: number, body: string, headers: Record<string, string> = {}) => (response: ServerResponse) =>
    void response.writeHead(status, { "content-type": "application/json", ...headers }).end(body);
const storages = (statusCode: string, error: string) =>
  JSON.stringify({ statusCode, error, message: "words" });

describe.each([
  [
    "a redirect",
    answering(302, "", { location: "http://127.0.0.1:9/" }),
    "HTTP 302, a redirect to http://127.0.0.1:9",
  ],
  [
    "a page that signs in",
    answering(200, "<h1>Sign in</h1>", { "content-type": "text/html" }),
    'HTTP 200: "Sign in"',
  ],
  [
    "a page that is not found",
    answering(404, "<h1>Not here</h1>", { "content-type": "text/html" }),
    "HTTP 404",
  ],
  ["a code of Storage with the status of a gateway", answering(401, `{"error":"InvalidJWT"}`), "HTTP 401"],
  [
    "an error of Storage that is about the project",
    answering(400, storages("400", "TenantNotFound")),
    "HTTP 400",
  ],
  ["a database that fails Storage", answering(544, storages("544", "DatabaseTimeout")), "HTTP 544"],
  ["a connection that is cut", (response: ServerResponse) => void response.destroy(), "No answer"],
])("where readers meet %s", (_what, answer, words) => {
  test("neither a verify nor a probe changes anything, and the report names it", async () => {
    const bucket = await orderly({ public_url: frontUrl });
    const before = await stateOf(bucket);
    front.answer = answer;
    onTestFinished(() => void (front.answer = undefined));
    const run = await runToEnd(lab, bucket, { mode: "verify" });
    expect(run).toMatchObject({ state: "failed", stop_reason: "unreachable" });
    expect(await stateOf(bucket)).toEqual(before);
    expect(await onlyFinding(bucket, "unreachable")).toContain(words);
    expect((await runToEnd(lab, bucket)).state).toBe("succeeded");
    expect(await stateOf(bucket)).toEqual(before);
    expect(await onlyFinding(bucket, "unreachable")).toContain(words);
  });
});

describe("where Storage rejects every URL that is opened", () => {
  test("a verify takes none out, and the next sync renews all of them, once", async () => {
    const bucket = await orderly({ probe_size: 0 });
    await control(lab, "POST", "/storage/rotate-signing-key");
    const before = await stateOf(bucket);
    expect((await runToEnd(lab, bucket, { mode: "verify" })).totals).toMatchObject({
      shown: 0,
      rows_written: 0,
    });
    expect(await stateOf(bucket)).toEqual(before);
    await onlyFinding(bucket, "url_rejected");
    const renewing = await runToEnd(lab, bucket);
    expect(renewing).toMatchObject({ options: { renew: "all" }, totals: { signed: 12 } });
    const { result: after, counts } = await counting(lab, () => runToEnd(lab, bucket));
    expect(after.options).not.toHaveProperty("renew");
    expect(counts.storage).toEqual({});
    expect(codesOf(await readReport(lab, bucket))).toEqual([]);
  });

  test("the probe of a sync takes none out, and the next sync renews all of them, once", async () => {
    const bucket = await orderly();
    await control(lab, "POST", "/storage/rotate-signing-key");
    const before = await stateOf(bucket);
    await runToEnd(lab, bucket);
    expect(await stateOf(bucket)).toEqual(before);
    expect((await runToEnd(lab, bucket)).totals).toMatchObject({ signed: 12 });
    expect((await runToEnd(lab, bucket)).totals).toMatchObject({ signed: 0 });
    expect(codesOf(await readReport(lab, bucket))).toEqual([]);
  });

  test("a sync that could not renew them leaves that to the next one", async () => {
    const bucket = await orderly({ probe_size: 0 });
    await control(lab, "POST", "/storage/rotate-signing-key");
    await runToEnd(lab, bucket, { mode: "verify" });
    const failed = await injecting(402, "/storage/v1/", () => runToEnd(lab, bucket));
    expect(failed).toMatchObject({ state: "failed", options: { renew: "all" } });
    expect((await runToEnd(lab, bucket)).totals).toMatchObject({ signed: 12 });
  });

  test("the first chunk's are not taken for all: they are renewed by the next sync too", async () => {
    const bucket = await orderly({ probe_size: 0 });
    await lab.sql`
      update public.part_images set signed_url = left(signed_url, -5) || 'aaaaa'
      where bucket_id = ${bucket} and file_name < '000006.jpg'`;
    const before = await stateOf(bucket);
    expect((await runToEnd(lab, bucket, { mode: "verify" })).totals).toMatchObject({ shown: 7 });
    expect(await stateOf(bucket)).toEqual(before);
    expect((await runToEnd(lab, bucket)).totals).toMatchObject({ signed: 12 });
    expect((await runToEnd(lab, bucket, { mode: "verify" })).totals).toMatchObject({ shown: 12 });
  });

  test("a token that Storage calls dead, or one of another file: only the first is taken out", async () => {
    const bucket = await orderly({ probe_size: 0 });
    await lab.sql`
      update public.part_images p set signed_url = case p.file_name
        when '000001.jpg' then left(p.signed_url, -5) || 'aaaaa'
        else regexp_replace(p.signed_url, 'token=.*', (
          select substring(o.signed_url from 'token=.*') from public.part_images o
          where o.bucket_id = ${bucket} and o.file_name = '000012.jpg'))
      end
      where p.bucket_id = ${bucket} and p.file_name in ('000001.jpg', '000002.jpg')`;
    const run = await runToEnd(lab, bucket, { mode: "verify" });
    expect(run.totals).toMatchObject({ opened: 12, shown: 10, rows_written: 1 });
    const expired = await lab.sql<{ file_name: string }[]>`
      select file_name from public.part_images where bucket_id = ${bucket} and signed_url_expires_at is null`;
    expect(expired.map(({ file_name }) => file_name)).toEqual(["000001.jpg"]);
    await runToEnd(lab, bucket);
    expect((await runToEnd(lab, bucket, { mode: "verify" })).totals).toMatchObject({ shown: 12 });
  });
});

test("the command verify says what ended it, and that nothing was changed", async () => {
  const bucket = await orderly();
  const { status, stdout } = await injecting(
    402,
    "/storage/v1/",
    async () => await typed(["verify", "--bucket", bucket], await makeFolder()),
  );
  expect(status).toBe(1);
  expect(stdout).toMatch(/The URLs cannot be opened\. HTTP 402: ".*exceeded its quota.*Nothing was changed/);
});

test("a verify that cannot reach Storage leaves what the one before it saw", async () => {
  const bucket = await orderly();
  await lab.supabase.storage.from(bucket).update("000003.jpg", new TextEncoder().encode("no image"), {
    contentType: "image/jpeg",
  });
  await runToEnd(lab, bucket, { mode: "verify" });
  await injecting(540, "/storage/v1/", () => runToEnd(lab, bucket, { mode: "verify" }));
  expect(codesOf(await readReport(lab, bucket)).sort()).toEqual(["not_an_image", "unreachable"]);
});

test("a single 401 of the Data API fails no run", async () => {
  const bucket = await orderly();
  for (const rpc of ["image_sync_advance", "image_sync_start", "image_sync_finish"]) {
    await control(lab, "PUT", "/answer", { status: 401, path: `/rest/v1/rpc/${rpc}`, times: 1 });
    onTestFinished(() => control(lab, "DELETE", "/answer").then(() => {}));
    const run = await runToEnd(lab, bucket, { mode: "sync", renew: "all" });
    expect(run).toMatchObject({ state: "succeeded", totals: { signed: 12 } });
  }
});

test("a bucket whose name Storage does not sign costs one call and says so", async () => {
  const bucket = `büro-${crypto.randomUUID()}`;
  await lab.sql`insert into storage.buckets (id, name) values (${bucket}, ${bucket})`;
  await lab.sql`insert into image_sync.settings (bucket_id, nightly) values (${bucket}, false)`;
  await lab
    .sql`insert into storage.objects (bucket_id, name) select ${bucket}, n || '.jpg' from generate_series(1, 9) n`;
  const { result: run, counts } = await counting(lab, () => runToEnd(lab, bucket));
  expect(run).toMatchObject({
    state: "failed",
    error: { detail: expect.stringContaining("letters a to z") },
  });
  expect(counts.storage).toEqual({ sign_many: 1 });
});
