import { randomUUID } from "node:crypto";
import { stripVTControlCharacters } from "node:util";
import { describe, expect, test } from "vitest";
import { makeDryRun, makeReport, makeRun } from "./support/documents.ts";
import { type Behaviour, problem, serveFunction } from "./support/fake_function.ts";
import { runCommand } from "./support/run_command.ts";

// A run that is open when it starts, still open at the first look, and then ends as given.
function follows(finished: ReturnType<typeof makeRun>): Behaviour {
  const open = makeRun({
    ...finished,
    ...makeRun({ state: "open" }),
    id: finished.id,
    mode: finished.mode,
    plan_id: finished.plan_id,
    options: finished.options,
  });
  return {
    onStart: () => ({ run: open, created: true }),
    onRun: (_id, look) => look < 2 ? open : finished,
  };
}

describe("sync", () => {
  test("starts a run, shows how far it is, and ends with what it did", async () => {
    const run = makeRun();
    const server = await serveFunction(follows(run));
    const result = await runCommand(["sync"], server);
    expect(result.status).toBe(0);
    expect(server.starts).toEqual([{ mode: "sync", bucket: "part-images" }]);
    expect(result.stderr).toContain(`Started run ${run.id}`);
    expect(result.stderr).toContain("sync: 1,200 of 4,000 (30 %), 410.5 a second, about 7 s left");
    expect(result.stdout).toContain("Sync of part-images: succeeded");
    expect(result.stdout).toContain("3,804 inserted, 4,000 signed, 0 failed");
  });

  test.each(["partial", "failed", "cancelled"] as const)(
    "exits with 1 after a run that was %s",
    async (state) => {
      const server = await serveFunction(follows(makeRun({
        state,
        problems: [{ name: "a.jpg", code: "signing_failed", detail: "gone" }],
        error: state === "failed" ? { code: "x", title: "Storage is down", detail: "Cannot sign" } : null,
      })));
      const result = await runCommand(["sync"], server);
      expect(result.status).toBe(1);
      expect(result.stdout).toContain("a.jpg: signing_failed, gone");
      if (state === "failed") expect(result.stdout).toContain("Storage is down. Cannot sign");
    },
  );

  test("--json prints the run as one document and nothing else on standard output", async () => {
    const run = makeRun();
    const server = await serveFunction(follows(run));
    const result = await runCommand(["sync", "--json"], server);
    expect(JSON.parse(result.stdout)).toEqual(run);
    expect(result.status).toBe(0);
  });

  test("--no-wait comes back at once and says how to watch and cancel the run", async () => {
    const run = makeRun({ state: "open" });
    const server = await serveFunction({ onStart: () => ({ run, created: true }) });
    const result = await runCommand(["sync", "--no-wait"], server);
    expect(result.status).toBe(0);
    expect(server.looks()).toBe(0);
    expect(result.stderr).toContain(`npx image-sync status --run ${run.id}`);
    expect(result.stderr).toContain(`npx image-sync cancel ${run.id}`);
  });

  test("joins the run that is open already", async () => {
    const run = makeRun();
    const server = await serveFunction({ onStart: () => ({ run, created: false }) });
    const result = await runCommand(["sync"], server);
    expect(result.status).toBe(0);
    expect(result.stderr).toContain(`Run ${run.id} was open already`);
  });

  test("--renew all does not take an open run that renews nothing for its own", async () => {
    const server = await serveFunction({
      onStart: () => ({ run: makeRun({ state: "open" }), created: false }),
    });
    const result = await runCommand(["sync", "--renew", "all"], server);
    expect(server.starts).toEqual([{ mode: "sync", bucket: "part-images", renew: "all" }]);
    expect(result.status).toBe(2);
    expect(result.stderr).toContain("does something else");
  });

  test("Ctrl-C leaves the run going and says how to watch or cancel it", async () => {
    const run = makeRun({ state: "open" });
    let interrupt = () => {};
    const server = await serveFunction({
      onStart: () => ({ run, created: true }),
      onRun: (_id, look) => {
        if (look === 3) interrupt();
        return run;
      },
    });
    const result = await runCommand(["sync"], { url: server.url, onReady: (press) => interrupt = press });
    expect(result.status).toBe(130);
    expect(result.stderr).toContain(`run ${run.id} goes on`);
    expect(result.stderr).toContain(`npx image-sync status --run ${run.id}`);
    expect(result.stderr).toContain(`npx image-sync cancel ${run.id}`);
  });

  test("bears a function that is away for a moment", async () => {
    const run = makeRun();
    const server = await serveFunction({
      onStart: () => ({ run: makeRun({ state: "open", id: run.id }), created: true }),
      onRun: (_id, look) => {
        if (look < 5) throw { status: 503, body: { code: "BOOT_ERROR" } };
        return run;
      },
    });
    expect((await runCommand(["sync"], server)).status).toBe(0);
  });

  test("gives up on a function that stays away, and says that the run may go on", async () => {
    const run = makeRun({ state: "open" });
    const server = await serveFunction({
      onStart: () => ({ run, created: true }),
      onRun: () => {
        throw { status: 503, body: "" };
      },
    });
    const result = await runCommand(["sync", "--json"], server);
    expect(result.status).toBe(2);
    expect(JSON.parse(result.stdout)).toMatchObject({ error: { code: "unavailable" } });
    expect(result.stderr).toContain(`Run ${run.id} may go on`);
  });

  test("draws a bar on a terminal", async () => {
    const server = await serveFunction(follows(makeRun()));
    const result = await runCommand(["sync"], { url: server.url, terminal: true });
    expect(result.stderr).toMatch(/\[=+-+\] 1,200 of 4,000 \(30 %\)/);
    expect(result.stderr).toMatch(/\[={30}\] 4,012 of 4,012 \(100 %\)/);
  });
});

describe("analyze", () => {
  test("shows the report after the run", async () => {
    const server = await serveFunction({
      ...follows(makeRun({ mode: "analyze" })),
      onReport: () => makeReport(),
    });
    const result = await runCommand(["analyze"], server);
    expect(result.status).toBe(0);
    expect(server.starts).toEqual([{ mode: "analyze", bucket: "part-images" }]);
    expect(result.stdout).toMatch(/^part-images: healthy\n/);
  });

  test("shows the run instead where it failed, and exits with 1", async () => {
    const server = await serveFunction({
      ...follows(makeRun({ mode: "analyze", state: "failed" })),
      onReport: () => makeReport(),
    });
    const result = await runCommand(["analyze"], server);
    expect(result.status).toBe(1);
    expect(result.stdout).toContain("Analyze of part-images: failed");
  });

  test("--json prints run and report", async () => {
    const run = makeRun({ mode: "analyze" });
    const report = makeReport();
    const server = await serveFunction({ ...follows(run), onReport: () => report });
    expect(JSON.parse((await runCommand(["analyze", "--json"], server)).stdout)).toEqual({ run, report });
  });
});

describe("cleanup", () => {
  const dryRun = makeDryRun(["000007.jpg", "000009.jpg"]);
  const applied = makeRun({
    mode: "cleanup",
    plan_id: dryRun.id,
    totals: { removed: 1, skipped: 1 },
    problems: [{ name: "000009.jpg", code: "not_orphaned", detail: "Kept: its file is back" }],
  });
  const both: Behaviour = {
    onStart: ({ confirm }) => ({ run: confirm === undefined ? dryRun : applied, created: true }),
  };

  test("shows the list, asks for its number, and then removes exactly that list", async () => {
    const server = await serveFunction(both);
    const result = await runCommand(["cleanup"], { url: server.url, terminal: true, typed: "2" });
    expect(result.status).toBe(0);
    expect(server.starts).toEqual([
      { mode: "cleanup", bucket: "part-images" },
      { mode: "cleanup", bucket: "part-images", confirm: dryRun.id },
    ]);
    expect(result.stdout).toContain("2 records without a file:\n    000007.jpg\n    000009.jpg\n");
    expect(result.stdout).toContain("1 removed, 1 kept");
    expect(result.stdout).toContain("000009.jpg: not_orphaned, Kept: its file is back");
    expect(result.stdout).toContain(`npx image-sync restore ${applied.id}`);
  });

  const long = Array.from({ length: 45 }, (_, place) => `${String(place).padStart(6, "0")}.jpg`);
  const longRun = makeDryRun(long.slice(0, 20), { plan: { count: 45, samples: long.slice(0, 20) } });
  const paged: Behaviour = {
    onStart: () => ({ run: longRun, created: true }),
    onPlan: (run, after) => {
      const rest = long.filter((name) => name > after);
      return { run, count: 45, names: rest.slice(0, 30), next: rest.length > 30 ? rest[29] ?? null : null };
    },
  };

  test("shows every name of a long list before it asks", async () => {
    const server = await serveFunction(paged);
    const result = await runCommand(["cleanup"], { url: server.url, terminal: true, typed: "no" });
    for (const name of long) expect(result.stdout).toContain(`\n    ${name}\n`);
    expect(result.stdout).not.toContain("more");
  });

  test("without a question it shows the first of a long list and how to see all; --all and --json show all", async () => {
    const server = await serveFunction(paged);
    const short = await runCommand(["cleanup", "--dry-run"], server);
    expect(short.stdout).toContain("and 25 more");
    expect(short.stdout).toContain("To see all of them: npx image-sync cleanup --dry-run --all");
    const all = await runCommand(["cleanup", "--dry-run", "--all"], server);
    for (const name of long) expect(all.stdout).toContain(name);
    const json = await runCommand(["cleanup", "--json"], server);
    expect(JSON.parse(json.stdout)).toMatchObject({ plan: { count: 45, samples: long } });
  });

  test.each(["3", "yes", "", "-2", null])("removes nothing when %j is typed", async (typed) => {
    const server = await serveFunction(both);
    const result = await runCommand(["cleanup"], { url: server.url, terminal: true, typed });
    expect(result.status).toBe(1);
    expect(server.starts).toHaveLength(1);
    expect(result.stderr).toContain("Nothing was removed");
  });

  test.each([
    { title: "without a terminal", args: ["cleanup"], terminal: false },
    { title: "with --json", args: ["cleanup", "--json"], terminal: true },
    { title: "with --dry-run", args: ["cleanup", "--dry-run"], terminal: true },
    { title: "with --no-wait", args: ["cleanup", "--no-wait"], terminal: true },
  ])("$title it lists and never removes", async ({ args, terminal }) => {
    const server = await serveFunction(both);
    const result = await runCommand(args, { url: server.url, terminal, typed: "2" });
    expect(result.status).toBe(0);
    expect(server.starts).toHaveLength(1);
    if (args.includes("--json")) expect(JSON.parse(result.stdout)).toEqual(dryRun);
    else {expect(stripVTControlCharacters(result.stdout)).toContain(
        `To remove them: npx image-sync cleanup --confirm ${dryRun.id}`,
      );}
  });

  test("--confirm applies the list of that dry run, with the guards raised by name", async () => {
    const server = await serveFunction(both);
    const args = [
      "cleanup",
      "--confirm",
      dryRun.id,
      "--max-delete-count",
      "5000",
      "--max-delete-fraction",
      "0.5",
      "--json",
    ];
    const result = await runCommand([...args, "--allow-empty-bucket"], server);
    expect(result.status).toBe(0);
    expect(JSON.parse(result.stdout)).toEqual(applied);
    expect(server.starts).toEqual([{
      mode: "cleanup",
      bucket: "part-images",
      confirm: dryRun.id,
      max_delete_count: 5000,
      max_delete_fraction: 0.5,
      allow_empty_bucket: true,
    }]);
  });

  test("a guard's refusal is shown with the command that would override it", async () => {
    const server = await serveFunction({
      onStart: () => {
        throw problem(
          409,
          "too_large_fraction",
          "The list is too large a part of the table",
          `Cannot remove 11 of 100 records (11.0 %): at most 10.0 % are allowed (max_delete_fraction). If all of them should go: {"mode": "cleanup", "confirm": "${dryRun.id}", "max_delete_fraction": 0.1100}.`,
        );
      },
    });
    const result = await runCommand(["cleanup", "--confirm", dryRun.id], server);
    expect(result.status).toBe(2);
    expect(result.stderr).toContain("Cannot remove 11 of 100 records");
    expect(result.stderr).toContain(
      `npx image-sync cleanup --confirm ${dryRun.id} --max-delete-fraction 0.11\n`,
    );
  });

  test("an open cleanup that removes records is not taken for a dry run, nor the other way round", async () => {
    const removing = makeRun({ mode: "cleanup", plan_id: randomUUID(), state: "open" });
    const first = await serveFunction({ onStart: () => ({ run: removing, created: false }) });
    expect(await runCommand(["cleanup"], first)).toMatchObject({ status: 2, stdout: "" });
    const second = await serveFunction({ onStart: () => ({ run: dryRun, created: false }) });
    expect(await runCommand(["cleanup", "--confirm", dryRun.id], second)).toMatchObject({
      status: 2,
      stdout: "",
    });
  });

  test("says that there is nothing to clean up", async () => {
    const server = await serveFunction({ onStart: () => ({ run: makeDryRun([]), created: true }) });
    const result = await runCommand(["cleanup"], { url: server.url, terminal: true });
    expect(result.status).toBe(0);
    expect(result.stdout).toContain("Nothing to clean up");
  });
});

describe("restore", () => {
  test("undoes a cleanup and names what it skipped", async () => {
    const id = randomUUID();
    const server = await serveFunction(follows(makeRun({
      mode: "restore",
      plan_id: id,
      state: "partial",
      totals: { restored: 1, skipped: 1 },
      problems: [{ name: "a.jpg", code: "not_restored", detail: "Skipped: its place was taken meanwhile" }],
    })));
    const result = await runCommand(["restore", id], server);
    expect(result.status).toBe(1);
    expect(server.starts).toEqual([{ mode: "restore", bucket: "part-images", restore: id }]);
    expect(result.stdout).toContain("1 restored, 1 skipped");
    expect(result.stdout).toContain("a.jpg: not_restored, Skipped: its place was taken meanwhile");
  });

  test("without a run it says which cleanup was the last", async () => {
    const cleanup = makeRun({ mode: "cleanup", plan_id: randomUUID(), totals: { removed: 7 } });
    const { last_runs } = makeReport();
    const server = await serveFunction({
      onReport: () => makeReport({ last_runs: { ...last_runs, cleanup } }),
    });
    const result = await runCommand(["restore"], server);
    expect(result.status).toBe(2);
    expect(result.stderr).toContain(
      `the last cleanup removed 7 at 2026-11-24 02:00 GMT: npx image-sync restore ${cleanup.id}`,
    );
  });

  test("without a run and without a cleanup it says where to look", async () => {
    const server = await serveFunction({ onReport: () => makeReport() });
    expect((await runCommand(["restore"], server)).stderr).toContain("from image_sync.runs");
  });
});

describe("status", () => {
  test("exits with 0 when healthy and with 1 when somebody has to look", async () => {
    const well = await serveFunction({ onReport: () => makeReport() });
    expect((await runCommand(["status"], well)).status).toBe(0);
    const ill = await serveFunction({ onReport: () => makeReport({ healthy: false }) });
    expect((await runCommand(["status"], ill)).status).toBe(1);
  });

  test("--json prints the report as it came", async () => {
    const report = makeReport();
    const server = await serveFunction({ onReport: () => report });
    expect(JSON.parse((await runCommand(["status", "--json"], server)).stdout)).toEqual(report);
  });

  test("--bucket asks for that bucket", async () => {
    const asked: string[] = [];
    const server = await serveFunction({ onReport: (bucket) => (asked.push(bucket), makeReport()) });
    await runCommand(["status", "--bucket", "a b&c"], server);
    expect(asked).toEqual(["a b&c"]);
  });

  test("--run shows one run, with --wait until it has finished", async () => {
    const run = makeRun();
    const open = makeRun({ id: run.id, state: "open" });
    const server = await serveFunction({ onRun: (_id, look) => look < 4 ? open : run });
    const now = await runCommand(["status", "--run", run.id], server);
    expect(now).toMatchObject({ status: 0 });
    expect(now.stdout).toContain("Progress      1,200 of 4,000 (30 %)");
    const later = await runCommand(["status", "--run", run.id, "--wait"], server);
    expect(later.stdout).toContain("Sync of part-images: succeeded");
  });

  test("--file says why a file is not in sync", async () => {
    const server = await serveFunction({
      onFile: (bucket_id, file_name) => ({
        bucket_id,
        file_name,
        in_sync: false,
        reasons: [{ code: "missing", detail: "The file has no record yet" }],
      }),
    });
    const result = await runCommand(["status", "--file", "a&b.jpg"], server);
    expect(result).toMatchObject({ status: 1 });
    expect(result.stdout).toBe(
      "a&b.jpg in part-images: not in sync\n\n  The file has no record yet [missing]\n",
    );
  });
});

test("cancel cancels", async () => {
  const run = makeRun({ state: "cancelled" });
  const server = await serveFunction({ onCancel: () => run });
  const result = await runCommand(["cancel", run.id], server);
  expect(result.status).toBe(0);
  expect(result.stdout).toContain("Sync of part-images: cancelled");
});
