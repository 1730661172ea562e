/** What is released, and the way from one version to the next. */
import { createHash } from "node:crypto";
import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import type { TransactionSql } from "postgres";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { z } from "zod";
import { objectsOf } from "../../cli/project/difference.ts";
import {
  compareVersions,
  migrationOf,
  readSchema,
  type SchemaPart,
  setOf,
} from "../../cli/project/schema.ts";
import { VERSION } from "../../supabase/functions/image-sync/version.ts";
import { projectDirectory } from "../support/stack.ts";
import { type EmptyDatabase, inTransaction, openEmptyDatabase } from "./support/adoption.ts";
import { readOurCatalogue } from "./support/catalogue.ts";

const migrations = join(projectDirectory, "supabase/migrations");
const released = join(projectDirectory, "tests/schema/fixtures/releases");
const read = (path: string) => readFile(join(projectDirectory, path), "utf8");
const releases = z.array(z.object({ version: z.string(), files: z.record(z.string(), z.string()) }))
  .parse(JSON.parse(await readFile(join(released, "releases.json"), "utf8")));
const schema = await readSchema();
const whole = migrationOf(schema, { from: null, to: VERSION });

let db: EmptyDatabase;
beforeAll(async () => {
  db = await openEmptyDatabase();
}, 90_000);
afterAll(() => db?.close());

async function apply(tx: TransactionSql, ...texts: readonly string[]): Promise<void> {
  for (const text of texts) await tx.unsafe(text).simple();
}

/** The catalogue after these migrations, in a database that has never had us. */
async function catalogueAfter(...texts: readonly string[]): Promise<readonly string[]> {
  let found: readonly string[] = [];
  await inTransaction(db.sql, "select", async (tx) => {
    await apply(tx, ...texts);
    found = await readOurCatalogue(tx);
  });
  return found;
}

test("the migration of the version at hand is what the schema says", async () => {
  const files = (await readdir(migrations)).filter((name) => name.endsWith(".sql"));
  expect(files).toEqual([
    expect.stringMatching(`^\\d{14}_image_sync_${VERSION.replaceAll(".", "_")}\\.sql$`),
  ]);
  expect(await read(`supabase/migrations/${files[0]}`) === whole, "run npm run migration").toBe(true);
});

test("what is released never changes", async () => {
  for (const { files } of releases) {
    for (const [name, sha256] of Object.entries(files)) {
      const bytes = await readFile(join(released, name));
      expect([name, createHash("sha256").update(bytes).digest("hex")]).toEqual([name, sha256]);
    }
  }
});

/** The migrations that a project has which installed the first release and went on to this one. */
async function installedUpTo(version: string): Promise<readonly string[]> {
  const until = releases.filter((release) => compareVersions(release.version, version) <= 0);
  return await Promise.all(
    until.map((release) => readFile(join(released, `${release.version}.sql`), "utf8")),
  );
}

describe.each(releases)("an installation of $version", ({ version }) => {
  test("comes to the catalogue that installing this version gives", async () => {
    const upgraded = await catalogueAfter(
      ...await installedUpTo(version),
      migrationOf(schema, { from: version, to: VERSION }),
    );
    expect(upgraded.length).toBeGreaterThan(300);
    expect(upgraded).toEqual(await catalogueAfter(whole));
  }, 60_000);

  test("is left as it is where a view of the project's own needs one of our functions", async () => {
    await inTransaction(db.sql, "select", async (tx) => {
      await apply(
        tx,
        ...await installedUpTo(version),
        "create view public.of_the_shop as select image_sync.schema_version() as version",
      );
      const before = await readOurCatalogue(tx);
      await expect(tx.savepoint((inner) => apply(inner, migrationOf(schema, { from: version, to: VERSION }))))
        .rejects.toThrow("Cannot upgrade image-sync: view of_the_shop uses a function or view of the schema");
      expect(await readOurCatalogue(tx)).toEqual(before);
    });
  }, 60_000);
});

describe.each(releases)("settings of $version that are refused since", ({ version }) => {
  const upgrade = (before: string, look: (tx: TransactionSql) => Promise<void>) =>
    inTransaction(db.sql, "select", async (tx) => {
      await apply(
        tx,
        ...await installedUpTo(version),
        before,
        migrationOf(schema, { from: version, to: VERSION }),
      );
      await look(tx);
    });

  test("become the next best that is allowed, and all others stay as they are", async () => {
    await upgrade(
      `update image_sync.settings set
        keep_chunks = '20 days', keep_runs = '1 year -1 day', public_url = 'https://files.example.com:8443', signed_url_ttl = '3 mons';
      insert into image_sync.settings (bucket_id, public_url, extensions, exclude, keep_chunks, keep_runs, signed_url_ttl, renew_before) values
        ('spaced', E'https://files.exam\\nple.com\\r\\n', E'{"jpg\\n",png}', E'{"a/\\t%",%b}', '10000 years', '12000 years', '10 days', '2 days'),
        ('no-address', 'https://user:secret@example.com', E'{"\\n"}', '{}', '14 days', '10000 years -3599910 days', '10000 years -3599970 days', '0'),
        ('nothing', E'https://\\n', '{jpg}', '{}', '14 days', '90 days', '7 days', '2 days'),
        (E'part-images\\n', null, '{jpg}', '{}', '14 days', '90 days', '7 days', '2 days');
      insert into image_sync.project (url, function_version) values (E'https://ref.supabase.co\\n', '1.0.0');`,
      async (tx) => {
        await tx`set local intervalstyle = 'postgres'`;
        expect(
          await tx`
            select bucket_id, public_url, extensions, keep_chunks::text, keep_runs::text, signed_url_ttl::text
            from image_sync.settings order by 1`,
        ).toEqual([
          {
            bucket_id: "no-address",
            public_url: null,
            extensions: ["jpg", "jpeg"],
            keep_chunks: "14 days",
            keep_runs: "3 mons",
            signed_url_ttl: "1 mon",
          },
          {
            bucket_id: "nothing",
            public_url: null,
            extensions: ["jpg"],
            keep_chunks: "14 days",
            keep_runs: "90 days",
            signed_url_ttl: "7 days",
          },
          {
            bucket_id: "part-images",
            public_url: "https://files.example.com:8443",
            extensions: ["jpg", "jpeg"],
            keep_chunks: "20 days",
            keep_runs: "1 year -1 days",
            signed_url_ttl: "3 mons",
          },
          {
            bucket_id: "spaced",
            public_url: "https://files.example.com",
            extensions: ["jpg", "png"],
            keep_chunks: "100 years",
            keep_runs: "100 years",
            signed_url_ttl: "10 days",
          },
        ]);
        expect(await tx`select exclude from image_sync.settings where bucket_id = 'spaced'`)
          .toEqual([{ exclude: ["a/_%", "%b"] }]);
        // It announces itself anew.
        expect(await tx`select from image_sync.project`).toHaveLength(0);
        await tx`select image_sync.prune_history()`;
      },
    );
  }, 60_000);

  test("an endless time to keep history becomes a hundred years", async () => {
    const [server] = await db
      .sql`select current_setting('server_version_num')::integer >= 170000 as is_endless`;
    await upgrade(
      `update image_sync.settings set keep_chunks = '${
        server?.["is_endless"] === true ? "infinity" : "178000000 years"
      }', keep_runs = '${server?.["is_endless"] === true ? "infinity" : "178000000 years"}';`,
      async (tx) => {
        expect(await tx`select keep_chunks::text, keep_runs::text from image_sync.settings`)
          .toEqual([{ keep_chunks: "100 years", keep_runs: "100 years" }]);
      },
    );
  }, 60_000);

  test("an address of the project's own that is one stays", async () => {
    await upgrade(
      "insert into image_sync.project (url, function_version) values ('http://kong:8000', '1.0.0');",
      async (tx) => {
        expect(await tx`select url from image_sync.project`).toEqual([{ url: "http://kong:8000" }]);
      },
    );
  }, 60_000);
});

test("readers read on after an upgrade from 1.1.0", async () => {
  await inTransaction(db.sql, "select", async (tx) => {
    await apply(
      tx,
      ...await installedUpTo("1.1.0"),
      "create role office; grant select on public.part_register to office",
      migrationOf(schema, { from: "1.1.0", to: VERSION }),
    );
    expect(await tx`select has_table_privilege('office', 'public.part_register', 'select') as reads`)
      .toEqual([{ reads: true }]);
  });
}, 60_000);

const NEXT = "99.0.0";
const withParts = (parts: readonly SchemaPart[], ...others: readonly SchemaPart[]) =>
  [...parts, ...others].toSorted((one, other) => one.file < other.file ? -1 : one.file > other.file ? 1 : 0);
const functionOf = (head: string, body: string, words = "Made up.") =>
  `create or replace function ${head}
language sql
stable
set search_path = ''
as $$
  select ${body}
$$;

comment on function ${head.replace(/\nreturns .*/, "").replaceAll(/p_\w+ | default ''/g, "")} is '${words}';`;

/** What differs between two versions of the made-up part of a set. */
type MadeUp = {
  readonly arguments: string;
  readonly columns: string;
  readonly words: string;
  readonly value: number;
};
const step = (version: string, file: string, text: string): SchemaPart => ({
  file,
  kind: "step",
  version,
  text,
});
const rowsOf = (columns: string) =>
  `create table image_sync.made_up_rows (${columns}, constraint made_up_pkey primary key (id));
alter table image_sync.made_up_rows enable row level security;`;
const typeOf = (attributes: string) => `create type image_sync.made_up_kind as (${attributes});`;
const madeUp = (now: MadeUp, ...others: readonly string[]): SchemaPart => ({
  file: "300_made_up.sql",
  kind: "set",
  text: [
    functionOf(`image_sync.made_up_part(${now.arguments})\nreturns text`, "p_name"),
    `create or replace view image_sync.made_up with (security_invoker = on) as
select ${now.columns}, image_sync.made_up_part(r.part_number) as part
from image_sync.records r;`,
    "comment on view image_sync.made_up is 'Made; up.';",
    "comment on column image_sync.made_up.file_name is 'A file.';",
    "grant select on image_sync.made_up to service_role;",
    "comment on column image_sync.made_up_rows.id is 'The row.';",
    "comment on column image_sync.made_up_rows.size is 'Its size.';",
    functionOf("image_sync.made_up_size(p_row image_sync.made_up)\nreturns integer", "length(p_row.part)"),
    functionOf("image_sync.made_up_kind_of(p_kind image_sync.made_up_kind)\nreturns text", "p_kind.name"),
    functionOf("image_sync.made_up_same()\nreturns integer", "1"),
    functionOf("image_sync.made_up_words()\nreturns integer", "1", now.words),
    functionOf("public.image_sync_made_up()\nreturns integer", `${now.value}`),
    ...others,
  ].join("\n\n"),
});

// A version, and one behind it that does each kind of thing: a column, a table, a constraint, a type, a function that goes, one that takes
// something else, with what is bound to it, one that changes, a view with a column more in its midst, and words.
const present = withParts(
  schema,
  step(VERSION, "300_made_up.sql", typeOf("name text")),
  step(VERSION, "310_made_up.sql", rowsOf("id integer, size integer")),
  madeUp(
    { arguments: "p_name text", columns: "r.file_name", words: "Words.", value: 1 },
    functionOf("image_sync.made_up_gone()\nreturns integer", "1"),
  ),
);
const next = withParts(
  schema.map((part) => ({ ...part, text: part.text.replace(`select '${VERSION}'`, `select '${NEXT}'`) })),
  madeUp({
    arguments: "p_name text, p_also text default ''",
    columns: "r.file_name, r.bucket_id",
    words: "Others.",
    value: 2,
  }),
  step(VERSION, "300_made_up.sql", typeOf("name text")),
  step(VERSION, "310_made_up.sql", rowsOf("id integer, size integer")),
  step(
    NEXT,
    "030_settings.sql",
    `alter table image_sync.settings
  add column made_up integer not null default 7,
  drop constraint settings_max_delete_count_check,
  add constraint settings_max_delete_count_check check (max_delete_count >= -1);
comment on column image_sync.settings.made_up is 'Made up.';`,
  ),
  step(
    NEXT,
    "300_made_up.sql",
    `drop type if exists image_sync.made_up_kind;
${typeOf("name text, number integer")}
alter table image_sync.made_up_rows drop column size, add column size bigint;`,
  ),
);
const before = objectsOf(setOf(present));
const installed = migrationOf(present, { from: null, to: VERSION });
const onwards = migrationOf(next, { from: VERSION, to: NEXT, before });

describe("a next release", () => {
  test("comes to the catalogue that installing it gives", async () => {
    const upgraded = await catalogueAfter(
      installed,
      onwards,
    );
    const fresh = await catalogueAfter(migrationOf(next, { from: null, to: NEXT }));
    expect(fresh.filter((thing) => thing.includes("made_up")).length).toBeGreaterThan(12);
    expect(upgraded).toEqual(fresh);
  }, 60_000);

  test("says what differs and nothing else", () => {
    const said = (pattern: RegExp) => [...onwards.matchAll(pattern)].map(([, name]) => name);
    expect(said(/^create or replace function (\S+)\(/gm)).toEqual([
      "image_sync.schema_version",
      "image_sync.made_up_part",
      "image_sync.made_up_size",
      "image_sync.made_up_kind_of",
      "image_sync.made_up_words",
      "public.image_sync_made_up",
    ]);
    expect(said(/^create or replace view (\S+)/gm)).toEqual(["image_sync.made_up"]);
    expect(said(/^ *drop (?:view|function) if exists (.*);/gm)).toEqual([
      "image_sync.made_up_gone()",
      "image_sync.made_up_kind_of(image_sync.made_up_kind)",
      "image_sync.made_up_size(image_sync.made_up)",
      "image_sync.made_up",
      "image_sync.made_up_part(text)",
    ]);
    expect(onwards).toContain("comment on constraint settings_max_delete_count_check");
  });

  test.each([["image_sync.redact"], ["public.image_sync_runs"], ["image_sync.run_nightly"]])(
    "that changes %s alone says it in less than 100 lines beside it, and comes to the same catalogue",
    async (name) => {
      const head = new RegExp(`(create or replace function ${name.replace(".", "\\.")}\\([^$]*\\$\\$\\n)`);
      const changed = schema.map(({ text, ...part }) => ({
        ...part,
        text: text.replace(head, "$1  -- Of the next release.\n").replace(
          `select '${VERSION}'`,
          `select '${NEXT}'`,
        ),
      }));
      const way = { from: VERSION, to: NEXT, before: objectsOf(setOf(schema)) };
      const text = migrationOf(changed, way);
      const own = text.split(head)[2]?.split("$$;")[0] ?? text;
      expect(text.split("\n").length - own.split("\n").length).toBeLessThan(100);
      expect(await catalogueAfter(whole, text)).toEqual(
        await catalogueAfter(migrationOf(changed, { from: null, to: NEXT })),
      );
    },
    60_000,
  );

  test("passed over by the one behind it leaves nothing out", async () => {
    const last = "99.1.0";
    const behind = withParts(
      next.map((part) => ({ ...part, text: part.text.replace(`select '${NEXT}'`, `select '${last}'`) })),
      step(last, "300_made_up.sql", "alter table image_sync.made_up_rows add column name text;"),
    );
    const fresh = await catalogueAfter(migrationOf(behind, { from: null, to: last }));
    const further = migrationOf(behind, { from: NEXT, to: last, before: objectsOf(setOf(next)) });
    expect(await catalogueAfter(installed, migrationOf(behind, { from: VERSION, to: last, before }))).toEqual(
      fresh,
    );
    expect(await catalogueAfter(installed, onwards, further)).toEqual(fresh);
    expect(further).not.toContain("made_up_part");
  }, 60_000);

  test("of two functions of one name takes away the one that goes", async () => {
    const two = functionOf("image_sync.made_up_same(p_name text)\nreturns integer", "1");
    const both = withParts(present, { file: "310_made_up.sql", kind: "set", text: two });
    expect(
      await catalogueAfter(
        migrationOf(both, { from: null, to: VERSION }),
        migrationOf(next, { from: VERSION, to: NEXT, before: objectsOf(setOf(both)) }),
      ),
    ).toEqual(await catalogueAfter(migrationOf(next, { from: null, to: NEXT })));
  }, 60_000);

  test("makes anew the views that a function makes, and keeps what readers were granted", async () => {
    const other = next.map((part) => ({
      ...part,
      text: part.text.replaceAll(
        /(create or replace view (?:image_sync\.objects|public\.part_register) with \([^)]*\) as\s+)select/g,
        "$1with of_another_release as (select 1) select",
      ),
    }));
    expect(other.filter((part, place) => part.text !== next[place]?.text)).toHaveLength(2);
    const granted = "do $$ begin create role office; grant select on public.part_register to office; end $$;";
    expect(
      await catalogueAfter(installed, granted, migrationOf(other, { from: VERSION, to: NEXT, before })),
    ).toEqual(await catalogueAfter(migrationOf(other, { from: null, to: NEXT }), granted));
  }, 60_000);

  test("makes anew what a step had to drop, with what is bound to it", async () => {
    const text = `drop view if exists image_sync.records;
drop view if exists public.part_register;
alter table public.part_images alter column signed_url type varchar;
alter table public.part_images alter column signed_url type text;`;
    const dropped = withParts(next, step(NEXT, "080_part_images.sql", text));
    expect(await catalogueAfter(installed, migrationOf(dropped, { from: VERSION, to: NEXT, before })))
      .toEqual(await catalogueAfter(migrationOf(next, { from: null, to: NEXT })));
  }, 60_000);

  test(
    "leaves all as it is where something of the project's own is bound to what goes, and names that",
    async () => {
      await inTransaction(db.sql, "select", async (tx) => {
        await apply(
          tx,
          installed,
          "create view public.of_the_shop as select image_sync.made_up_part('') as part",
        );
        const there = await readOurCatalogue(tx);
        await expect(tx.savepoint((inner) => apply(inner, onwards)))
          .rejects.toThrow(
            /^Cannot upgrade image-sync: view of_the_shop depends on function .*\nDrop it first/,
          );
        expect(await readOurCatalogue(tx)).toEqual(there);
      });
    },
    60_000,
  );

  test("keeps every row, and a run that is open goes on", async () => {
    await inTransaction(db.sql, "select", async (tx) => {
      await apply(tx, installed);
      await tx`select image_sync_announce('https://shop.supabase.co', ${VERSION})`;
      await tx`insert into storage.buckets (id, name) values ('part-images', 'part-images') on conflict do nothing`;
      await tx`
        insert into storage.objects (bucket_id, name, metadata)
        select 'part-images', lpad(n::text, 6, '0') || '.jpg', '{"size": 1}' from generate_series(1, 25) as n`;
      await tx`update image_sync.settings set chunk_size = 10, signed_url_ttl = '9 days'`;
      const run = crypto.randomUUID();
      await tx`select image_sync_start(${run}, 'part-images', 'analyze')`;
      const advance = async () => {
        const lease = crypto.randomUUID();
        const [row] = await tx<{ answer: { next: string } }[]>`
          select image_sync_advance(p_run => ${run}, p_worker => ${run}, p_lease => ${lease}) as answer`;
        return row?.answer.next;
      };
      const tables = ["settings", "project", "runs", "chunks", "archive"];
      const count = () =>
        Promise.all(
          tables.map(async (table) =>
            Number((await tx.unsafe(`select count(*) from image_sync.${table}`))[0]?.["count"])
          ),
        );
      await advance();
      const counted = await count();
      await apply(tx, onwards);
      expect(await count()).toEqual(counted);
      expect(await tx`select signed_url_ttl, made_up from image_sync.settings`).toEqual([{
        signed_url_ttl: "9 days",
        made_up: 7,
      }]);
      for (let turn = 0; turn < 10 && await advance() !== "stop"; turn++);
      await tx`select image_sync_finish(${run})`;
      const [ended] = await tx<
        { run: { run: { state: string; totals: Record<string, number> } } }[]
      >`select image_sync_run(${run}) as run`;
      expect(ended?.run.run).toMatchObject({ state: "succeeded", totals: { listed: 25, missing: 25 } });
    });
  }, 60_000);

  test(
    "is refused beside another version than the one that it goes on from, and nothing is changed",
    async () => {
      await inTransaction(db.sql, "select", async (tx) => {
        const refused = (text: string) => tx.savepoint((inner) => inner.unsafe(text).simple());
        await expect(refused(onwards)).rejects.toThrow(
          /version none is installed/,
        );
        await apply(tx, installed);
        const there = await readOurCatalogue(tx);
        await expect(refused(migrationOf(next, { from: "98.0.0", to: NEXT })))
          .rejects.toThrow(
            `Cannot upgrade image-sync from 98.0.0 to ${NEXT}: version ${VERSION} is installed`,
          );
        await expect(refused(migrationOf(schema, { from: null, to: VERSION }))).rejects.toThrow(
          /npx image-sync upgrade/,
        );
        expect(await readOurCatalogue(tx)).toEqual(there);
      });
    },
    60_000,
  );
});
