/** No report, run, file, problem, log line, or command output holds a signed URL's token or a key. */
import postgres from "postgres";
import { expect, onTestFinished, test } from "vitest";
import { addObjects, jpeg, openRun, removeObjects, runToEnd, upload } from "../sync/support/lab.ts";
import { control, type LocalLab, runJob } from "../sync/support/local_lab.ts";
import { npmRun } from "./support/command.ts";
import { openScene } from "./support/faults.ts";

/** What is wrong with a text: the secrets in it, shortened. */
function secretsIn(text: string, keys: readonly string[]): string[] {
  const patterns = [/token=[^\s"&]{4}/, /eyJ[\w-]{8,}\.[\w-]+/, /sb_secret_[A-Za-z0-9_-]{8,}/];
  const found = patterns.map((pattern) => pattern.exec(text)?.[0]).filter((match) => match !== undefined);
  return [
    ...found.map((match) => match.slice(0, 20)),
    ...keys.filter((key) => text.includes(key)).map(() => "a key"),
  ];
}

/** All that the API says of a bucket, right and wrong, in both forms. */
async function askEverything(lab: LocalLab, bucket: string, runs: readonly string[]): Promise<string[]> {
  const queries = [
    `?bucket=${bucket}`,
    ...runs.map((run) => `?run=${run}`),
    ...["a.jpg", "gone.jpg", "nowhere.jpg", "folder%2F..%2Fup.jpg"].map((file) =>
      `?bucket=${bucket}&file=${file}`
    ),
    "?run=nonsense",
    "?bucket=nowhere",
    `?file=${lab.stack.secretKey}&run=${lab.stack.secretKey}`,
  ];
  const requests = queries.flatMap((query) =>
    ["application/json", "text/plain"].map((accept) =>
      lab.call({ query, headers: { apikey: lab.stack.secretKey, accept } })
    )
  );
  const refused = [
    lab.call({ headers: { apikey: "sb_secret_of_another_project" } }),
    lab.call({ headers: { apikey: lab.stack.publishableKey } }),
    lab.call({ method: "POST", body: "{" }),
    lab.call({
      method: "POST",
      body: JSON.stringify({ mode: "cleanup", bucket, confirm: crypto.randomUUID() }),
    }),
    lab.call({ method: "PATCH" }),
    lab.call({ method: "DELETE", query: `?run=${runs[0]}` }),
  ];
  return await Promise.all([...requests, ...refused].map(async (request) => {
    const response = await request;
    return JSON.stringify([...response.headers]) + await response.text();
  }));
}

test(
  "none in any report, run, problem, log line, command output or status table, after all that can go wrong",
  async () => {
    const scene = await openScene();
    onTestFinished(() => scene.close());
    const { lab, admin, proxy } = scene;
    const { stack } = lab;
    const keys = [stack.secretKey, stack.scheduleKey];
    const bucket = "part-images";
    const said: Record<string, string> = {};
    const runs: string[] = [];
    const run = async (body: Record<string, unknown> = {}) => {
      const ended = await runToEnd(lab, bucket, body);
      runs.push(ended.id);
      said[`run ${ended.mode} ${runs.length}`] = JSON.stringify(ended);
      return ended;
    };

    await lab.supabase.storage.createBucket(bucket, { public: false });
    for (const name of ["a.jpg", "b.jpg", "gone.jpg", "c.png"]) await upload(lab, bucket, name, jpeg);
    await addObjects(lab, bucket, ["folder/../up.jpg", "damaged.jpg"]);
    await run();
    await run({ mode: "analyze" });
    // URLs that no longer open, and others that cannot be made.
    await control(lab, "POST", "/storage/rotate-signing-key");
    await run();
    proxy.add({ route: "probe", bucket, times: Infinity, fault: { kind: "cut", when: "before" } });
    await run({ renew: "all" });
    proxy.clear(bucket);
    proxy.add({
      route: "sign",
      bucket,
      times: Infinity,
      fault: {
        kind: "status",
        status: 400,
        body: { statusCode: "403", error: "Unauthorized", message: "Invalid Compact JWS" },
      },
    });
    await run({ renew: "all" });
    proxy.clear(bucket);
    // A table that refuses the URLs: the database's own words would quote the row.
    await lab
      .sql`alter table public.part_images add constraint test_no_url check (signed_url is null) not valid`;
    await lab
      .sql`update image_sync.settings set max_attempts = 1, retry_delay = '0' where bucket_id = ${bucket}`;
    await run({ renew: "all" });
    await lab.sql`alter table public.part_images drop constraint test_no_url`;
    await run({ renew: "all" });
    await removeObjects(lab, bucket, ["gone.jpg"]);
    const plan = await run({ mode: "cleanup" });
    const cleanup = await run({ mode: "cleanup", confirm: plan.id, max_delete_fraction: 1 });
    await lab
      .sql`insert into public.part_images (bucket_id, file_name, signed_url) values (${bucket}, 'gone.jpg', 'x')`;
    await run({ mode: "restore", restore: cleanup.id });
    // The schedule's call, answered and refused.
    await lab.sql`update image_sync.settings set nightly = true`;
    await runJob(lab, "image-sync-nightly");
    await expect.poll(async () => (await lab.database.readReport(bucket)).open_run, { timeout: 30_000 })
      .toBeNull();
    const open = await openRun(lab, bucket);
    await lab.sql.begin(async (sql) => {
      await sql`select image_sync.kick(${open.id})`;
      await sql`update image_sync.runs set wake_hashes = '{}' where id = ${open.id}`;
    });
    await expect.poll(() => admin`select from net._http_response where status_code = 401`, {
      timeout: 30_000,
    }).toHaveLength(1);

    (await askEverything(lab, bucket, [...runs, open.id])).forEach((text, index) =>
      said[`answer ${index}`] = text
    );
    for (
      const args of [["status"], ["status", "--json"], ["status", "--file", "a.jpg"], ["analyze"], [
        "cleanup",
      ], ["restore"]]
    ) {
      const [command = "", ...flags] = args;
      const { stdout, stderr } = await npmRun(stack, command, [...flags, "--debug"]);
      said[`command ${args.join(" ")}`] = stdout + stderr;
    }
    const wrongKey = await npmRun({ ...stack, secretKey: `${stack.secretKey}x` }, "status", ["--debug"]);
    expect(wrongKey.code).toBe(2);
    said["command with a wrong key"] = wrongKey.stdout + wrongKey.stderr;
    said["the stack's log"] = stack.log.join("\n");
    said["the function's log"] = await (await control(lab, "GET", "/logs")).text();
    const tables = [
      "image_sync.runs",
      "image_sync.chunks",
      "image_sync.settings",
      "cron.job",
      "cron.job_run_details",
      "net._http_response",
    ];
    for (const table of tables) {
      const [{ content = "" } = {}] = await postgresText(admin, table);
      said[table] = content;
    }

    expect(Object.keys(said).length).toBeGreaterThan(40);
    expect(Object.values(said).filter((text) => text.length === 0)).toEqual([]);
    const leaks = Object.entries(said).map(([where, text]) => [where, secretsIn(text, keys)] as const)
      .filter(([, secrets]) => secrets.length > 0);
    expect(leaks).toEqual([]);
    // The search finds what is there to be found.
    const [{ content: records = "" } = {}] = await postgresText(admin, "public.part_images");
    expect(secretsIn(records, keys)).toHaveLength(2);
    expect(secretsIn(stack.secretKey, keys).length).toBeGreaterThan(0);
  },
  180_000,
);

function postgresText(admin: postgres.Sql, table: string) {
  return admin<{ content: string }[]>`
    select coalesce(string_agg(to_jsonb(t)::text, e'\n'), '') as content from ${admin(table)} as t`;
}
