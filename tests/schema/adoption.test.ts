import { afterAll, beforeAll, describe, expect, test } from "vitest";
import {
  addObjects,
  codesOf,
  imbalances,
  numberedNames,
  readLedgers,
  readRecords,
  readReport,
  runToEnd,
} from "../sync/support/lab.ts";
import { type LocalLab, openLocalLab } from "../sync/support/local_lab.ts";
import { migrate } from "./support/migrate.ts";

/** The table as it exists in the wild. */
const plainTable = `
  create table public.part_images (
    id uuid primary key default gen_random_uuid(),
    part_number text,
    file_name text,
    url text,
    signed_url text,
    created_at timestamp default now()
  );`;

const deadUrl =
  "https://project.example.com/storage/v1/object/sign/part-images/000001.jpg?token=dead.dead.dead";

type Row = Readonly<Record<string, unknown>>;

/** A stack whose database has been through `before` (as role postgres) when the migrations come. */
async function adopt(before: string): Promise<{ lab: LocalLab; rows: readonly Row[] }> {
  const lab = await openLocalLab(["--no-migrate"]);
  await lab.sql.unsafe(before);
  const [table] = await lab.sql`select to_regclass('public.part_images') is not null as is_there`;
  const rows = table?.["is_there"] === true ? await readRows(lab) : [];
  await migrate(lab.stack.dbUrl);
  await lab.sql`insert into storage.buckets (id, name, public) values ('part-images', 'part-images', false)`;
  await lab.sql`update image_sync.settings set probe_size = 0`;
  return { lab, rows };
}

async function readRows(lab: LocalLab): Promise<readonly Row[]> {
  const rows = await lab.sql<
    { row: Row }[]
  >`select to_jsonb(p) as row from public.part_images p order by p.id`;
  return rows.map(({ row }) => row);
}

/** Columns with what a reader or a writer can notice of them, by name. */
async function readColumns(lab: LocalLab): Promise<Readonly<Record<string, Row>>> {
  const columns = await lab.sql`
    select a.attname, format_type(a.atttypid, a.atttypmod) as type, a.attnotnull as not_null, pg_get_expr(d.adbin, d.adrelid) as default
    from pg_catalog.pg_attribute a
    left join pg_catalog.pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
    where a.attrelid = 'public.part_images'::regclass and a.attnum > 0 and not a.attisdropped`;
  return Object.fromEntries(columns.map(({ attname, ...column }) => [attname, column]));
}

async function readIndexes(lab: LocalLab): Promise<Readonly<Record<string, string>>> {
  const indexes = await lab
    .sql`select indexname, indexdef from pg_catalog.pg_indexes where schemaname = 'public' and tablename = 'part_images'`;
  return Object.fromEntries(indexes.map(({ indexname, indexdef }) => [indexname, indexdef]));
}

/** Everything of the schema image_sync, as text. */
async function readPrivateSchema(lab: LocalLab): Promise<unknown> {
  return {
    columns: await lab.sql`
      select table_name, column_name, data_type, is_nullable, column_default
      from information_schema.columns where table_schema = 'image_sync' order by 1, 2`,
    constraints: await lab.sql`
      select conname, pg_get_constraintdef(oid) as definition
      from pg_catalog.pg_constraint where connamespace = 'image_sync'::regnamespace order by 1`,
    indexes: await lab
      .sql`select indexdef from pg_catalog.pg_indexes where schemaname = 'image_sync' order by 1`,
    functions: await lab.sql`
      select pg_get_functiondef(p.oid) as definition
      from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid = p.pronamespace
      where n.nspname = 'image_sync' or p.proname like 'image\\_sync\\_%' order by 1`,
    settings: await lab.sql`select bucket_id, chunk_size, extensions from image_sync.settings`,
    jobs: await lab.sql`select jobname, schedule, command from cron.job order by 1`,
  };
}

const readerQuery =
  "select part_number, file_name, signed_url from part_images where signed_url is not null order by part_number";

describe("a table with two rows of one file, a null file name and dead URLs", () => {
  let empty: LocalLab;
  let lab: LocalLab;
  let rows: readonly Row[];
  beforeAll(async () => {
    empty = (await adopt("")).lab;
    ({ lab, rows } = await adopt(`${plainTable}
      insert into public.part_images (part_number, file_name, url, signed_url, created_at) values
        ('000001', '000001.jpg', 'https://old.example.com/1', '${deadUrl}', '2024-01-01'),
        ('000002', '000002.jpg', null, null, '2024-01-01 00:00:01'),
        ('000002', '000002.jpg', null, '${deadUrl}', '2024-01-02'),
        ('000003', '000003.jpg', null, '', '2024-01-03'),
        ('000003', '000003.jpg', null, null, '2024-01-02'),
        ('000003b', '000003.jpg', null, null, null),
        ('odd', null, 'https://old.example.com/odd', null, '2024-01-04'),
        ('odd', null, null, null, '2024-01-05'),
        ('gone', 'gone.jpg', null, '${deadUrl}', '2024-01-06'),
        (null, '000004.jpg', null, null, '2024-01-07');`));
    await addObjects(lab, "part-images", numberedNames(6));
  }, 180_000);
  afterAll(async () => {
    await lab?.close();
    await empty?.close();
  });

  test("loses no row: the second rows of one file are in the archive, whole; the one with a URL stayed, else the oldest", async () => {
    const kept = await readRows(lab);
    const archive = await lab.sql`
      select bucket_id, file_name, reason, run_id, restored_at, record from image_sync.archive order by record ->> 'id'`;
    const archived = archive.map(({ record }) => record as Row);
    const asBefore = (row: Row) => {
      const { bucket_id, signed_url_expires_at, object_id, object_name, ...columns } = row;
      expect([bucket_id, signed_url_expires_at, object_id, object_name ?? null]).toEqual([
        "part-images",
        null,
        null,
        null,
      ]);
      return columns;
    };
    const byId = (one: Row, other: Row) => String(one["id"]) < String(other["id"]) ? -1 : 1;
    const unfilled = kept.map((row) =>
      row["file_name"] === "000004.jpg" ? { ...row, part_number: null } : row
    );
    expect([...unfilled, ...archived].map(asBefore).sort(byId)).toEqual([...rows].sort(byId));
    expect(
      archive.map(({ bucket_id, file_name, reason, run_id, restored_at }) => ({
        bucket_id,
        file_name,
        reason,
        run_id,
        restored_at,
      })),
    )
      .toEqual(expect.arrayContaining([
        {
          bucket_id: "part-images",
          file_name: "000002.jpg",
          reason: "duplicate",
          run_id: null,
          restored_at: null,
        },
        {
          bucket_id: "part-images",
          file_name: "000003.jpg",
          reason: "duplicate",
          run_id: null,
          restored_at: null,
        },
      ]));
    const keptOf = (name: string) => kept.filter(({ file_name }) => file_name === name);
    expect(keptOf("000002.jpg")).toMatchObject([{
      signed_url: deadUrl,
      created_at: expect.stringContaining("2024-01-02"),
    }]);
    expect(keptOf("000004.jpg")).toMatchObject([{ part_number: "000004" }]);
    expect(keptOf("000003.jpg")).toMatchObject([{
      part_number: "000003",
      created_at: expect.stringContaining("2024-01-02"),
    }]);
    expect(kept.filter(({ file_name }) => file_name === null)).toHaveLength(2);
    expect(archived).toHaveLength(3);
  });

  test("has then the columns of a table that the migration made, and keeps the types of its own", async () => {
    const [made, adopted] = [await readColumns(empty), await readColumns(lab)];
    expect(Object.keys(adopted).sort()).toEqual(Object.keys(made).sort());
    expect(adopted["created_at"]).toMatchObject({ type: "timestamp without time zone", default: "now()" });
    const { created_at: _made, ...columnsMade } = made;
    const { created_at: _adopted, ...columnsAdopted } = adopted;
    expect(columnsAdopted).toEqual(columnsMade);
    expect(made).toMatchObject({
      id: { type: "uuid", not_null: true, default: "gen_random_uuid()" },
      part_number: { type: "text", not_null: false, default: null },
      file_name: { type: "text", not_null: false, default: null },
      url: { type: "text", not_null: false, default: null },
      signed_url: { type: "text", not_null: false, default: null },
      created_at: { type: "timestamp with time zone", default: "now()" },
      bucket_id: { type: "text", not_null: true, default: "'part-images'::text" },
      signed_url_expires_at: { type: "timestamp with time zone", not_null: false, default: null },
    });
  });

  test("has then the same indexes, and the same schema image_sync beside it", async () => {
    expect(await readIndexes(lab)).toEqual(await readIndexes(empty));
    expect(Object.keys(await readIndexes(lab)).sort()).toEqual([
      "part_images_bucket_id_file_name_key",
      "part_images_object_idx",
      "part_images_pkey",
      "part_images_twins_idx",
    ]);
    expect(await readPrivateSchema(lab)).toEqual(await readPrivateSchema(empty));
  });

  test("keeps its owner's choice to have no row level security and no grants of ours", async () => {
    const access = (of: LocalLab) =>
      of.sql`select relrowsecurity from pg_catalog.pg_class where oid = 'public.part_images'::regclass`;
    expect(await access(lab)).toMatchObject([{ relrowsecurity: false }]);
    expect(await access(empty)).toMatchObject([{ relrowsecurity: true }]);
  });

  test("is in sync after the first run once service_role may work on it", async () => {
    const refused = await runToEnd(lab, "part-images");
    expect(refused).toMatchObject({
      state: "failed",
      error: { code: "permission_denied", detail: expect.stringContaining("grant select") },
    });
    await lab.sql`grant select, insert, update, delete on public.part_images to service_role`;
    const run = await runToEnd(lab, "part-images");
    expect(run).toMatchObject({
      state: "succeeded",
      balanced: true,
      totals: { listed: 6, recorded: 4, inserted: 2, signed: 6, orphaned: 1, collided: 0 },
    });
    expect(imbalances(await readLedgers(lab, run.id))).toEqual([]);
    const records = await readRecords(lab, "part-images");
    const signed = records.filter(({ signed_url }) => signed_url !== null && signed_url !== deadUrl);
    expect(signed.map(({ file_name }) => file_name)).toEqual(numberedNames(6));
    expect(records.filter(({ file_name }) => file_name === "gone.jpg")).toMatchObject([{
      signed_url: deadUrl,
    }]);
    const read = await lab.sql.unsafe(readerQuery);
    expect(read.columns.map(({ name }) => name)).toEqual(["part_number", "file_name", "signed_url"]);
    expect(read).toHaveLength(7);
    const report = await readReport(lab, "part-images");
    expect(report.difference.orphaned).toEqual({ count: 1, samples: ["gone.jpg"] });
    const rest = (await readRows(lab)).filter(({ file_name }) => file_name === null);
    expect(rest).toHaveLength(2);
  });

  test("can be migrated again: nothing happens", async () => {
    const before = [await readRows(lab), await readColumns(lab), await readIndexes(lab)];
    await migrate(lab.stack.dbUrl);
    expect([await readRows(lab), await readColumns(lab), await readIndexes(lab)]).toEqual(before);
  });
});

describe("a table with a unique part number and a column, a trigger and a policy of its owner", () => {
  let lab: LocalLab;
  let rows: readonly Row[];
  beforeAll(async () => {
    ({ lab, rows } = await adopt(`${plainTable}
      alter table public.part_images add constraint part_images_part_number_key unique (part_number);
      alter table public.part_images add column weight numeric not null default 1.5;
      alter table public.part_images add column note varchar(40);
      comment on table public.part_images is 'The parts and their pictures';
      comment on column public.part_images.url is 'Never mind';
      create index my_created_at on public.part_images (created_at);
      create table public.journal (file_name text, operation text);
      create function public.refuse_some() returns trigger language plpgsql as $$
      begin
        if new.file_name = 'refused.jpg' then
          raise exception 'No refused.jpg here';
        end if;
        return new;
      end $$;
      create trigger my_gate before insert or update on public.part_images for each row execute function public.refuse_some();
      create function public.write_journal() returns trigger language plpgsql security definer as $$
      begin
        insert into public.journal values (new.file_name, tg_op);
        return null;
      end $$;
      create trigger my_journal after insert or update on public.part_images for each row execute function public.write_journal();
      alter table public.part_images enable row level security;
      create policy "readers read" on public.part_images for select to authenticated using (weight > 0);
      grant select on public.part_images to anon, authenticated;
      grant select, insert, update, delete on public.part_images to service_role;
      insert into public.part_images (part_number, file_name, weight, note, signed_url) values
        ('000001', '000001.jpg', 7, 'fine', '${deadUrl}'),
        ('000002', 'old-name-of-2.jpg', 8, null, null),
        ('000003', null, 9, null, null);`));
    await lab.sql`truncate public.journal`;
    await addObjects(lab, "part-images", [
      ...numberedNames(5),
      "000001.JPG",
      "folder/000004.jpg",
      "refused.jpg",
    ]);
  }, 120_000);
  afterAll(() => lab?.close());

  test("keeps every row and column as it was", async () => {
    expect(await readRows(lab)).toEqual(
      rows.map((row) => ({
        ...row,
        bucket_id: "part-images",
        signed_url_expires_at: null,
        object_id: null,
        object_name: null,
      })),
    );
    expect(await readColumns(lab)).toMatchObject({
      weight: { type: "numeric", not_null: true, default: "1.5" },
      note: { type: "character varying(40)" },
    });
  });

  test("keeps its constraint, index, trigger, policy, grants and comments", async () => {
    const [kept] = await lab.sql`
      select
        (select jsonb_agg(conname order by conname) from pg_catalog.pg_constraint where conrelid = 'public.part_images'::regclass and contype in ('p', 'u')) as constraints,
        (select jsonb_agg(tgname order by tgname) from pg_catalog.pg_trigger where tgrelid = 'public.part_images'::regclass and not tgisinternal) as triggers,
        (select jsonb_agg(polname) from pg_catalog.pg_policy where polrelid = 'public.part_images'::regclass) as policies,
        obj_description('public.part_images'::regclass, 'pg_class') as comment,
        has_table_privilege('anon', 'public.part_images', 'select') as anon_reads,
        has_table_privilege('anon', 'public.part_images', 'insert, update, delete') as anon_writes`;
    expect(kept).toEqual({
      constraints: ["part_images_part_number_key", "part_images_pkey"],
      triggers: ["my_gate", "my_journal"],
      policies: ["readers read"],
      comment: "The parts and their pictures",
      anon_reads: true,
      anon_writes: false,
    });
    expect(Object.keys(await readIndexes(lab)).sort()).toEqual([
      "my_created_at",
      "part_images_bucket_id_file_name_key",
      "part_images_object_idx",
      "part_images_part_number_key",
      "part_images_pkey",
      "part_images_twins_idx",
    ]);
  });

  test("gets every record that it lets in; what it refuses is named and forced nowhere", async () => {
    const run = await runToEnd(lab, "part-images");
    expect(run).toMatchObject({
      balanced: true,
      // Taken part numbers: 000001 (its other case), 000002 (another file's record), 000003 (a row without a file name),
      // 000004 (its twin in a folder). And one that the trigger refuses.
      totals: {
        listed: 8,
        images: 8,
        recorded: 1,
        inserted: 2,
        collided: 5,
        signed: 3,
        orphaned: 1,
        failed: 0,
      },
    });
    expect(["succeeded", "partial"]).toContain(run.state);
    expect(imbalances(await readLedgers(lab, run.id))).toEqual([]);
    expect(run.problems).toMatchObject([{
      name: "refused.jpg",
      code: "record_refused",
      detail: expect.stringContaining("No refused.jpg here"),
    }]);
    const records = await readRecords(lab, "part-images");
    expect(records.map(({ file_name, part_number }) => [file_name, part_number])).toEqual([
      ["000001.jpg", "000001"],
      ["000004.jpg", "000004"],
      ["000005.jpg", "000005"],
      ["old-name-of-2.jpg", "000002"],
      [null, "000003"],
    ]);
    const [first] = await lab
      .sql`select weight, note, signed_url from public.part_images where file_name = '000001.jpg'`;
    expect(first).toMatchObject({
      weight: "7",
      note: "fine",
      signed_url: expect.not.stringContaining("dead"),
    });
    const [made] = await lab
      .sql`select weight, note, created_at is not null as is_dated from public.part_images where file_name = '000005.jpg'`;
    expect(made).toEqual({ weight: "1.5", note: null, is_dated: true });
    // Each is written once: with its URL, and with the object that it is of.
    expect(await lab.sql`select file_name, operation from public.journal order by 1, 2`).toEqual([
      { file_name: "000001.jpg", operation: "UPDATE" },
      { file_name: "000004.jpg", operation: "INSERT" },
      { file_name: "000005.jpg", operation: "INSERT" },
    ]);
    const report = await readReport(lab, "part-images");
    expect(report.difference.collided).toEqual({
      count: 5,
      samples: ["000001.JPG", "000002.jpg", "000003.jpg", "folder/000004.jpg", "refused.jpg"],
    });
    expect(codesOf(report)).toEqual(expect.arrayContaining(["collided", "orphaned"]));
  });

  test("is left alone by the next run; what the trigger refuses is signed for nothing", async () => {
    const before = await readRecords(lab, "part-images");
    expect(await runToEnd(lab, "part-images")).toMatchObject({
      totals: { inserted: 0, collided: 5, rows_written: 0, to_sign: 1, storage_calls: 1 },
    });
    expect(await readRecords(lab, "part-images")).toEqual(before);
  });

  test("a required column that comes later is named, by the run and by the finding, with what mends it", async () => {
    await lab.sql`alter table public.part_images add column "shelf No" int not null default 1`;
    await lab.sql`alter table public.part_images alter column "shelf No" drop default`;
    await addObjects(lab, "part-images", ["000009.jpg"]);
    expect((await runToEnd(lab, "part-images")).problems).toEqual(expect.arrayContaining([
      expect.objectContaining({
        name: "000009.jpg",
        detail: expect.stringContaining('in column "shelf No"'),
      }),
    ]));
    const { findings } = await readReport(lab, "part-images");
    const collided = findings.find(({ code }) => code === "collided");
    expect(collided?.remediation).toMatch(/^Column "shelf No" must have a value/);
    await lab.sql.unsafe(/alter table .*?;/.exec(collided?.remediation ?? "")?.[0] ?? "");
    expect(await runToEnd(lab, "part-images")).toMatchObject({ totals: { inserted: 1, collided: 5 } });
  });
});

describe("a table of other types is adopted", () => {
  test.each([
    [
      "with varchar columns and no defaults",
      "id uuid primary key, part_number varchar, file_name varchar not null, url varchar, signed_url varchar, created_at timestamptz not null",
    ],
    ["with no columns but its key", "id bigint generated always as identity primary key"],
  ])("%s", async (_, columns) => {
    const { lab } = await adopt(
      `create table public.part_images (${columns}); grant all on public.part_images to service_role;`,
    );
    try {
      await addObjects(lab, "part-images", numberedNames(3));
      expect(await runToEnd(lab, "part-images")).toMatchObject({
        state: "succeeded",
        totals: { inserted: 3, signed: 3 },
      });
      expect((await readRecords(lab, "part-images")).map(({ part_number }) => part_number)).toEqual([
        "000001",
        "000002",
        "000003",
      ]);
    } finally {
      await lab.close();
    }
  }, 120_000);
});
