/** The lists for the operator, over HTTP and as commands: buckets with their verdicts, the history of runs. */
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { bucketListSchema, runListSchema } from "../../supabase/functions/image-sync/contract.ts";
import { npmRun } from "../report/support/command.ts";
import { createBucket, numberedNames, readRecords, runToEnd } from "../sync/support/lab.ts";
import { type LocalLab, openLocalLab } from "../sync/support/local_lab.ts";

let lab: LocalLab;
beforeAll(async () => {
  lab = await openLocalLab();
});
afterAll(() => lab?.close());

const ask = async (method: string, path: string, query = "", body?: unknown) => {
  const response = await fetch(`${lab.stack.url}/functions/v1/image-sync${path}${query}`, {
    method,
    headers: { apikey: lab.stack.secretKey },
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  });
  return { status: response.status, body: await response.json() };
};

describe("buckets", () => {
  test("are listed with their verdicts, page by page", async () => {
    const good = await createBucket(lab, { objects: numberedNames(2), settings: { probe_size: 0 } });
    await runToEnd(lab, good);
    const gone = `gone-${crypto.randomUUID()}`;
    await lab.sql`insert into image_sync.settings (bucket_id) values (${gone})`;
    const all = bucketListSchema.parse((await ask("GET", "/buckets")).body);
    expect(all.buckets.find(({ bucket_id }) => bucket_id === good)).toMatchObject({
      exists: true,
      healthy: true,
      images: 2,
      coverage: 1,
      last_sync_state: "succeeded",
    });
    expect(all.buckets.find(({ bucket_id }) => bucket_id === gone)).toMatchObject({
      exists: false,
      healthy: false,
      images: null,
    });
    const paged: string[] = [];
    for (let after: string | null = ""; after !== null;) {
      const query: string = `?${new URLSearchParams({ after, limit: "1" })}`;
      const page = bucketListSchema.parse((await ask("GET", "/buckets", query)).body);
      paged.push(...page.buckets.map(({ bucket_id }) => bucket_id));
      after = page.next;
    }
    expect(paged).toEqual(all.buckets.map(({ bucket_id }) => bucket_id));
    await lab.sql`delete from image_sync.settings where bucket_id = ${gone}`;
  });

  test("are added and removed by command: settings only, never files or records", async () => {
    const bucket = await createBucket(lab, { objects: numberedNames(2) });
    await runToEnd(lab, bucket);
    const typed = (...args: string[]) => npmRun(lab.stack, "buckets", args);
    expect(await typed("remove", bucket)).toMatchObject({ code: 0 });
    expect(await readRecords(lab, bucket)).toHaveLength(2);
    expect(await lab.sql`select from storage.objects where bucket_id = ${bucket}`).toHaveLength(2);
    expect((await typed("remove", bucket)).stderr).toContain("has no settings");
    const added = await typed("add", bucket);
    expect(added).toMatchObject({ code: 0 });
    expect(added.stdout).toContain(`npm run sync -- --bucket ${bucket}`);
    expect((await typed("add", bucket)).stdout).toContain("already");
    expect(await typed("add", "no-such-bucket")).toMatchObject({ code: 2, stdout: "" });
    expect(await typed("add")).toMatchObject({ code: 2 });
    expect(await typed("delete", bucket)).toMatchObject({ code: 2 });
    expect((await typed()).stdout).toContain(`${bucket}: `);
  });

  test("with an open run cannot be removed", async () => {
    const bucket = await createBucket(lab, { objects: numberedNames(2) });
    const { run } = await lab.database.start({
      run: crypto.randomUUID(),
      bucket,
      mode: "analyze",
      options: {},
    });
    expect((await ask("DELETE", "/buckets", `?bucket=${bucket}`)).body).toMatchObject({
      code: "conflicting_run",
    });
    await lab.database.cancel(run.id);
    expect((await ask("DELETE", "/buckets", `?bucket=${bucket}`)).status).toBe(200);
  });
});

describe("runs", () => {
  test("are listed newest first, filtered and page by page", async () => {
    const bucket = await createBucket(lab, { objects: numberedNames(2), settings: { probe_size: 0 } });
    const other = await createBucket(lab, { objects: numberedNames(1) });
    const made: string[] = [];
    for (const mode of ["sync", "analyze", "verify", "cleanup", "sync"] as const) {
      made.unshift((await runToEnd(lab, bucket, { mode })).id);
    }
    const last = await runToEnd(lab, other);
    const list = async (query: Record<string, string>) =>
      runListSchema.parse((await ask("GET", "/runs", `?${new URLSearchParams(query)}`)).body);
    const ids = async (query: Record<string, string>) => (await list(query)).runs.map(({ id }) => id);
    expect(await ids({ bucket })).toEqual(made);
    expect(await ids({ bucket, mode: "sync" })).toEqual([made[0], made[4]]);
    expect(await ids({ bucket, state: "failed" })).toEqual([]);
    expect((await ids({ limit: "1" }))[0]).toBe(last.id);
    const first = await list({ bucket, limit: "2" });
    expect(first.next).toBe(made[1]);
    expect(await ids({ bucket, limit: "2", after: first.next ?? "" })).toEqual(made.slice(2, 4));
    expect((await ask("GET", "/runs", "?limit=101")).status).toBe(400);
    expect((await ask("GET", "/runs", `?after=${crypto.randomUUID()}`)).body).toMatchObject({
      code: "unknown_run",
    });
    const shown = await npmRun(lab.stack, "runs", ["--bucket", bucket, "--mode", "verify"]);
    expect(shown.stdout).toContain("verify of");
    expect(shown.stdout).toContain(made[2]);
    expect(shown.code).toBe(0);
  });
});

test("none of them is for a caller without a secret key", async () => {
  const calls = [["GET", "/buckets"], ["POST", "/buckets"], ["DELETE", "/buckets"], [
    "GET",
    "/runs",
  ]] as const;
  for (const [method, path] of calls) {
    const response = await fetch(`${lab.stack.url}/functions/v1/image-sync${path}`, { method });
    expect(response.status).toBe(401);
    await response.body?.cancel();
  }
});
