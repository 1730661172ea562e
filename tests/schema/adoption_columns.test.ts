import type { TransactionSql } from "postgres";
import { describe, expect, test } from "vitest";
import { addObjects, numberedNames, readRecords, runToEnd } from "../sync/support/lab.ts";
import { openLocalLab } from "../sync/support/local_lab.ts";
import { applyMigration, openAdoptions, rowsOf, tableOf } from "./support/adoption.ts";
import { migrate } from "./support/migrate.ts";

const { through, migrated } = openAdoptions();

async function typesOf(tx: TransactionSql): Promise<Readonly<Record<string, string>>> {
  const columns = await tx`
    select attname, format_type(atttypid, atttypmod) || case when attnotnull then ' not null' else '' end as type
    from pg_catalog.pg_attribute
    where attrelid = 'public.part_images'::regclass and attnum > 0 and not attisdropped`;
  return Object.fromEntries(columns.map(({ attname, type }) => [attname, type]));
}

describe("types", () => {
  test("varchar(n), char(n) and varchar become text, with what stands in them", () =>
    migrated(
      `${
        tableOf(
          "part_number char(9), file_name varchar(40) not null unique, url varchar, signed_url varchar(50), note varchar(5)",
        )
      }
        insert into public.part_images values (1, 'a', 'a.jpg', 'u', 's', 'n');`,
      async (tx) => {
        expect(await typesOf(tx)).toMatchObject({
          part_number: "text",
          file_name: "text not null",
          url: "text",
          signed_url: "text",
          note: "character varying(5)",
        });
        expect(await rowsOf(tx, "part_number, file_name, url, signed_url, note")).toEqual([
          ["a", "a.jpg", "u", "s", "n"],
        ]);
      },
    ));

  test("varchar without a length stays what it is where a view shows it, and any URL fits into it", () =>
    migrated(
      `${tableOf("file_name varchar, signed_url varchar")}
        create view public.shown as select signed_url from public.part_images;`,
      async (tx) => {
        expect(await typesOf(tx)).toMatchObject({ file_name: "text", signed_url: "character varying" });
      },
    ));
});

describe("bucket_id", () => {
  const nulls = (column: string) =>
    `${tableOf(`file_name text, bucket_id ${column}`)}
      insert into public.part_images (id, file_name, bucket_id) values (1, 'a.jpg', null), (2, 'b.jpg', ''), (3, 'c.jpg', 'photos');`;
  const buckets = (tx: TransactionSql) => rowsOf(tx, "bucket_id");
  const defaultOf = async (tx: TransactionSql) => {
    const [row] =
      await tx`insert into public.part_images (id, file_name) values (7, 'new.jpg') returning bucket_id`;
    return row?.["bucket_id"];
  };
  const bucket = "insert into storage.buckets (id, name) values ('part-images', 'part-images');";

  test("null and empty become part-images, then it cannot be null and has a default", () =>
    migrated(bucket + nulls("varchar(20)"), async (tx) => {
      expect(await buckets(tx)).toEqual([["part-images"], ["part-images"], ["photos"]]);
      expect((await typesOf(tx))["bucket_id"]).toBe("text not null");
      expect(await defaultOf(tx)).toBe("part-images");
    }));

  test("they become what its owner's default says, and that stays", () =>
    migrated(bucket + nulls("text default 'photos'"), async (tx) => {
      expect(await buckets(tx)).toEqual([["photos"], ["photos"], ["photos"]]);
      expect(await defaultOf(tx)).toBe("photos");
    }));

  test("they become the one bucket of all other rows where there is no part-images", () =>
    migrated(nulls("text"), async (tx) => {
      expect(await buckets(tx)).toEqual([["photos"], ["photos"], ["photos"]]);
    }));

  test.each(["text default ''", "text default null", "text default null::text"])(
    "a default that names no bucket is none: %s",
    (column) =>
      migrated(bucket + nulls(column), async (tx) => {
        expect(await buckets(tx)).toEqual([["part-images"], ["part-images"], ["photos"]]);
        expect(await defaultOf(tx)).toBe("part-images");
      }),
  );

  test("a row without a bucket is a duplicate of the one that names it, whatever its owner's key says", () =>
    migrated(
      `${bucket}${
        tableOf(
          "file_name text, part_number text, bucket_id text, constraint one_each unique (bucket_id, file_name)",
        )
      }
        insert into public.part_images (id, file_name, part_number, bucket_id) values
          (1, 'a.jpg', null, null), (2, 'a.jpg', 'a', 'part-images'), (3, 'a.jpg', 'other', 'photos'), (4, 'a.jpg', 'late', '');`,
      async (tx) => {
        expect(await rowsOf(tx, "id, part_number, bucket_id")).toEqual([
          [1, "a", "part-images"],
          [3, "other", "photos"],
        ]);
        expect(await tx`select bucket_id, record -> 'bucket_id' as was from image_sync.archive order by id`)
          .toEqual([
            { bucket_id: "part-images", was: "part-images" },
            { bucket_id: "part-images", was: "" },
          ]);
      },
    ));

  test(
    "ten records without a bucket are the records of ten files: none is inserted, all are signed",
    async () => {
      const lab = await openLocalLab(["--no-migrate"]);
      try {
        await lab.sql.unsafe(`create table public.part_images (
          id uuid primary key default gen_random_uuid(), part_number text, file_name text, signed_url text, bucket_id text
        );
        grant all on public.part_images to service_role;
        insert into public.part_images (part_number, file_name)
        select lpad(n::text, 6, '0'), lpad(n::text, 6, '0') || '.jpg' from generate_series(1, 10) as n;`);
        await migrate(lab.stack.dbUrl);
        await lab
          .sql`insert into storage.buckets (id, name, public) values ('part-images', 'part-images', false)`;
        await addObjects(lab, "part-images", numberedNames(10));
        expect(await runToEnd(lab, "part-images")).toMatchObject({
          state: "succeeded",
          totals: { inserted: 0, recorded: 10, signed: 10 },
        });
        const records = await readRecords(lab, "part-images");
        expect(records.filter(({ signed_url }) => signed_url !== null)).toHaveLength(10);
        expect(await lab.sql`select count(*)::int as rows from public.part_images`).toEqual([{ rows: 10 }]);
      } finally {
        await lab.close();
      }
    },
    120_000,
  );
});

describe("rows without a file name", () => {
  test("are no duplicates: several empty names become null, each row stays", () =>
    migrated(
      `${tableOf("file_name text, part_number text")}
        insert into public.part_images values (1, '', 'a'), (2, '', 'b'), (3, null, 'c');`,
      async (tx) => {
        expect(await rowsOf(tx, "id, file_name")).toEqual([[1, null], [2, null], [3, null]]);
      },
    ));

  test("may be one with an empty name, which is counted with them", () =>
    migrated(
      `${
        tableOf("file_name text not null, part_number text")
      } insert into public.part_images values (1, '', 'a');`,
      async (tx) => {
        await tx`insert into image_sync.settings (bucket_id) values ('part-images') on conflict do nothing`;
        await tx`select image_sync.open_run(gen_random_uuid(), 'part-images', 'analyze', 'request', '{}', null, 0)`;
        const [row] =
          await tx`select image_sync.measure(r, null) -> 'unnamed' as unnamed from image_sync.runs r`;
        expect([await rowsOf(tx, "file_name"), row]).toEqual([[[""]], { unnamed: 1 }]);
      },
    ));
});

test("a table that was ours before is adopted as it is", () =>
  through("", async (tx) => {
    await applyMigration(tx);
    await tx`insert into public.part_images (part_number, file_name, signed_url_expires_at) values ('a', 'a.jpg', now()), (null, null, null)`;
    const state = async () => [
      await tx`select p::text from public.part_images p order by 1`,
      await tx`select indexdef from pg_catalog.pg_indexes where tablename = 'part_images' order by 1`,
      await typesOf(tx),
    ];
    const before = await state();
    const functions = await tx`
      select p.oid::regprocedure::text as name from pg_catalog.pg_proc p
      where p.pronamespace = 'public'::regnamespace and p.proname like 'image\\_sync\\_%'`;
    await tx`drop schema image_sync cascade`;
    for (const { name } of functions) await tx.unsafe(`drop function if exists ${name}`);
    await applyMigration(tx);
    expect(await state()).toEqual(before);
    expect(await tx`select from image_sync.archive`).toEqual([]);
  }));

test("names need not be plain, and a trigger of statements does not fire for nothing", () =>
  migrated(
    `${tableOf('file_name text unique, part_number text, "100%" int, "Big ""One""" json')}
      insert into public.part_images values (1, 'a.jpg', 'a', null, null);
      create schema "Other's";
      create table "Other's"."my %s" ("the 1%" varchar references public.part_images (file_name));
      insert into "Other's"."my %s" values ('a.jpg');
      create function public.never() returns trigger language plpgsql as $$ begin raise exception 'Never'; end $$;
      create trigger never before update or delete on public.part_images for each statement execute function public.never();`,
    async (tx) => {
      expect(await rowsOf(tx, "id, bucket_id")).toEqual([[1, "part-images"]]);
    },
  ));
