/** What a migration begins with is what it does. */
import { createHash } from "node:crypto";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { expect, test } from "vitest";
import { objectsOf } from "../../cli/project/difference.ts";
import { migrationOf, readSchema, type SchemaPart, setOf } from "../../cli/project/schema.ts";
import { VERSION } from "../../supabase/functions/image-sync/version.ts";
import { projectDirectory } from "../support/stack.ts";
import { openAdoptions } from "./support/adoption.ts";

const SCREEN = 40; // lines
const schema = await readSchema();
const adoptions = openAdoptions();
const migrations = [null, "1.0.0", "1.1.0"].map((from) => ({
  from,
  text: migrationOf(schema, { from, to: VERSION }),
}));
const [first] = migrations;

const reviewOf = (text = "") => text.split("\n\n")[0] ?? "";
/** A row of it as one line. */
const rowOf = (text: string, title: string) =>
  reviewOf(text).replaceAll(/\n-- {4,}/g, " ").split("\n").find((line) =>
    line.startsWith(`--   ${title} `)
  ) ?? "";

test.each(migrations)(
  "of the migration from $from it takes a screen, and its hash is that of what follows",
  ({ text }) => {
    const review = reviewOf(text);
    const lines = review.split("\n");
    expect(lines.length).toBeLessThanOrEqual(SCREEN);
    expect(lines.every((line) => line.startsWith("--") && line.length <= 120)).toBe(true);
    const body = text.slice(review.length + 2);
    expect(rowOf(text, "check")).toContain(createHash("sha256").update(body).digest("hex"));
  },
);

test("it counts what is there afterwards", async () => {
  await adoptions.migrated("select", async (tx) => {
    const [row] = await tx`
      select
        (select string_agg(format('%s: %s', k.kind, k.number), ', ' order by k.kind) from (
          select case c.relkind when 'r' then 'table' when 'v' then 'view' when 'c' then 'type' end as kind, count(*) as number
          from pg_class c where c.relnamespace = 'image_sync'::regnamespace and c.relkind in ('r', 'v', 'c') group by 1
          union all
          select 'index', count(*) from pg_index i join pg_class c on c.oid = i.indrelid
          where c.relnamespace = 'image_sync'::regnamespace and not exists (select from pg_constraint o where o.conindid = i.indexrelid)
          union all
          select 'function', count(*) from pg_proc p where p.pronamespace = 'image_sync'::regnamespace
        ) as k) as ours,
        (select count(*) from pg_proc p where p.pronamespace = 'public'::regnamespace and p.proname like 'image\\_sync\\_%') as public,
        (select string_agg(p.oid::regproc::text, ', ' order by p.proname) from pg_proc p
          where p.pronamespace = 'image_sync'::regnamespace and p.prosecdef) as definers`;
    const made = rowOf(first?.text ?? "", "makes");
    const [, ours = "", inPublic = ""] = /schema image_sync: (.*) schema public: (.*?) jobs of/.exec(made) ??
      [];
    const counts = [...ours.matchAll(/(\d+) (table|type|index|view|function)/g)].map(([, number, kind]) =>
      `${kind}: ${number}`
    );
    expect(counts.sort().join(", ")).toBe(row?.["ours"]);
    expect(inPublic).toContain(`${row?.["public"]} functions`);
    const definers = rowOf(first?.text ?? "", "definer").match(/image_sync\.\w+/g) ?? [];
    expect(definers.sort().join(", ")).toBe(row?.["definers"]);
  });
});

test.each([
  { from: null, past: [] },
  { from: "1.0.0", past: ["1.0.0"] },
  { from: "1.1.0", past: ["1.0.0", "1.1.0"] },
])(
  "from $from on it names each column and index that the user's table gains or loses",
  async ({ from, past }) => {
    const text = migrations.find((each) => each.from === from)?.text ?? "";
    const said = rowOf(text, "yours");
    await adoptions.through(
      "create table public.part_images (id uuid primary key, file_name text)",
      async (tx) => {
        for (const version of past) {
          await tx.unsafe(
            await readFile(join(projectDirectory, `tests/schema/fixtures/releases/${version}.sql`), "utf8"),
          ).simple();
        }
        const look = async () =>
          new Set((await tx`
        select a.attname::text as name from pg_attribute a where a.attrelid = 'public.part_images'::regclass and a.attnum > 0 and not a.attisdropped
        union all
        select c.relname::text from pg_index i join pg_class c on c.oid = i.indexrelid where i.indrelid = 'public.part_images'::regclass`)
            .map(({ name }) => String(name)));
        const before = await look();
        await tx.unsafe(text).simple();
        const after = await look();
        const other = [...before, ...after].filter((name) => before.has(name) !== after.has(name));
        expect(other.length).toBeGreaterThan(0);
        expect(other.filter((name) => !new RegExp(`\\b${name}\\b`).test(said))).toEqual([]);
      },
    );
  },
);

test.each([
  ["alter table public.part_images drop constraint own"],
  ["create policy ours on public.part_images using (true)"],
  ["grant select on public.part_images to office"],
  ["update public.part_images set note = ''"],
  ["do $$\nbegin\n  delete from public.part_images;\nend;\n$$"],
  ["create trigger ours before insert on public.part_images execute function image_sync.ours()"],
])("what a later version does to that table is quoted: %s", (statement) => {
  const to = "99.0.0";
  const before = objectsOf(setOf(schema));
  const step: SchemaPart = { file: "080_part_images.sql", kind: "step", version: to, text: `${statement};` };
  const said = rowOf(migrationOf([...schema, step], { from: VERSION, to, before }), "yours");
  expect(said).toContain(/(alter|create|grant|update|delete)[^;]*;/.exec(`${statement};`)?.[0]);
  expect(rowOf(migrationOf(schema, { from: VERSION, to, before }), "yours")).toContain("is not touched");
});

test("what an upgrade drops is named", () => {
  const before = {
    "function image_sync.gone(image_sync.runs)": "1 2",
    "view image_sync.former": "3",
    ...objectsOf(setOf(schema)),
  };
  const text = "drop type if exists image_sync.kind, image_sync.other cascade;\ndrop table image_sync.rows;";
  const step: SchemaPart = { file: "080_part_images.sql", kind: "step", version: "99.0.0", text };
  expect(rowOf(migrationOf([...schema, step], { from: VERSION, to: "99.0.0", before }), "drops")).toBe(
    "--   drops    view image_sync.former, function image_sync.gone, type image_sync.kind, type image_sync.other, table image_sync.rows",
  );
});
