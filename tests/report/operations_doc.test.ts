/** docs/operations.md and docs/deploying.md against what they describe. */
import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import postgres from "postgres";
import { expect, onTestFinished, test } from "vitest";
import { projectDirectory, startLocalStack } from "../support/stack.ts";
import { FINDINGS, findingsPage } from "../../supabase/functions/image-sync/findings.ts";

const read = (path: string) => readFile(join(projectDirectory, path), "utf8");
const readSection = async (title: string) =>
  new RegExp(`^#+ ${title}\\n([\\s\\S]*?)(?=^##? |$(?![\\s\\S]))`, "m").exec(await read("docs/operations.md"))
    ?.[1] ?? "";
const codesInTable = (section: string) =>
  [...section.matchAll(/^\| (`[^|]*`) +\|/gm)].flatMap(([, cell]) =>
    [...(cell ?? "").matchAll(/`([a-z_]+)`/g)].map(([, code]) => code ?? "")
  );

/** Each finding of the page: `code` (level): what it means → what mends it. */
const explained = (section: string) =>
  [
    ...section.replaceAll(/\n {2}(?=\S)/g, " ").matchAll(
      /^- `([a-z_]+)` \((?:error|warning|info|error or warning)\): \S.* → \S/gm,
    ),
  ].map(([, code]) => code ?? "");

test("it explains every finding, once, and none that there is not", async () => {
  const section = await readSection("Findings");
  expect(explained(section).sort()).toEqual(Object.keys(FINDINGS).sort());
  // Nothing stands in the list that is not understood.
  expect(explained(section)).toHaveLength([...section.matchAll(/^- /gm)].length);
  // As npm run docs writes it, however lines are broken.
  const plain = (text: string) => text.replaceAll(/\s+/g, " ").trim();
  expect(plain(section)).toContain(plain(findingsPage()));
});

test("it names every guard of cleanup and restore, once, and none that there is not", async () => {
  const guards = /as a problem,[^']*Codes: ([a-z_, ]+)\./.exec(
    await read("supabase/schemas/250_cleanup.sql"),
  )?.[1]?.split(", ") ?? [];
  expect(guards.length).toBeGreaterThan(10);
  expect(codesInTable(await readSection("Cleaning up, and undoing it")).sort()).toEqual(guards.sort());
});

test("its lines for the schedule are those of the migration", async () => {
  const lines = (text: string) => text.match(/^select cron\.schedule\(.*$/gm);
  const migrated = lines(await read("supabase/schemas/190_schedule.sql"));
  expect(migrated).toHaveLength(3);
  expect(lines(await readSection("Schedule and settings"))).toEqual(migrated);
});

test(
  "its SQL runs, to the end of uninstalling, which leaves the table and its rows for the next installation",
  async () => {
    const stack = await startLocalStack(["--no-function"]);
    const sql = postgres(stack.dbUrl, { max: 1, onnotice: () => {} });
    onTestFinished(async () => {
      await sql.end({ timeout: 5 });
      await stack.stop();
    });
    await sql`insert into public.part_images (file_name, signed_url) values ('a.jpg', 'http://127.0.0.1/a')`;
    const text = await read("docs/operations.md") + await read("docs/deploying.md");
    const blocks = [...text.matchAll(/```sql\n([\s\S]*?)```/g)].map(([, block = ""]) => block);
    expect(blocks).toHaveLength(5);
    for (const block of blocks) {
      await sql.unsafe(block.replaceAll("RUN_ID", "00000000-0000-0000-0000-000000000000"));
    }
    expect(await sql`select file_name, signed_url from public.part_images`).toMatchObject([
      { file_name: "a.jpg", signed_url: "http://127.0.0.1/a" },
    ]);
    const left = await sql<{ thing: string }[]>`
    select nspname as thing from pg_catalog.pg_namespace where nspname = 'image_sync'
    union all
    select proname from pg_catalog.pg_proc where proname like 'image\\_sync%'
    union all
    select jobname from cron.job`;
    expect([...left]).toEqual([]);

    // Installed again, it adopts the table as it is.
    const migrations = join(projectDirectory, "supabase/migrations");
    for (const file of (await readdir(migrations)).sort()) {
      await sql.unsafe(await read(`supabase/migrations/${file}`));
    }
    expect(await sql`select file_name, signed_url from public.part_images`).toHaveLength(1);
  },
  90_000,
);
