import type { TransactionSql } from "postgres";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import {
  applyMigration,
  type EmptyDatabase,
  expectRefusal,
  inTransaction,
  openEmptyDatabase,
  readNoun,
} from "./support/adoption.ts";

let db: EmptyDatabase;
beforeAll(async () => {
  db = await openEmptyDatabase();
}, 60_000);
afterAll(() => db?.close());

const tableOf = (columns: string) =>
  `create table public.part_images (id int primary key default 99, ${columns});`;

const rowsOf = (tx: TransactionSql, columns: string) =>
  tx.unsafe(`select ${columns} from public.part_images order by id`).values();

const migrated = (before: string, act: (tx: TransactionSql) => Promise<void>) =>
  inTransaction(db.sql, before, async (tx) => {
    await applyMigration(tx);
    await act(tx);
  });

describe("a row that goes", () => {
  const letters = [..."abcdefghijklmnopqrstuvwxyz"].filter((letter) => letter !== "k");

  test("is archived as it was, whatever its owner's columns are called", () =>
    migrated(
      `${
        tableOf(
          `file_name text, created_at timestamptz, k text, ${
            letters.map((letter) => `${letter} jsonb`).join(", ")
          }`,
        )
      }
        insert into public.part_images (id, file_name, created_at, k, ${letters.join(", ")})
        select n, 'a.jpg', now() + n * interval '1 day', 'k' || n, ${
        letters.map((letter) => `jsonb_build_object('${letter}', n)`).join(", ")
      }
        from generate_series(1, 2) as n;`,
      async (tx) => {
        const [archived] = await tx`select record from image_sync.archive`;
        expect(archived?.["record"]).toMatchObject({
          id: 2,
          file_name: "a.jpg",
          k: "k2",
          d: { d: 2 },
          x: { x: 2 },
          p: { p: 2 },
        });
        const [kept] = await tx`select * from public.part_images`;
        expect(kept).toMatchObject({ id: 1, k: "k1", d: { d: 1 }, x: { x: 1 }, p: { p: 1 } });
      },
    ));
});

describe("the row that stays", () => {
  test("is the oldest; it takes what it lacks from the next that has it, and nothing is overwritten", () =>
    migrated(
      `${
        tableOf(
          `file_name text, part_number text, url text, signed_url text, signed_url_expires_at timestamptz, created_at timestamptz,
          note text, weight int, tags text[], twice int generated always as (weight * 2) stored`,
        )
      }
        insert into public.part_images (id, file_name, created_at, part_number, url, signed_url, signed_url_expires_at, note, weight, tags) values
          (1, 'a.jpg', '2024-03-03', 'late', 'u1', 's1', '2030-01-01', 'late', 1, '{late}'),
          (2, 'a.jpg', '2024-01-01', 'a', null, '', '2029-01-01', null, null, null),
          (3, 'a.jpg', '2024-02-02', 'b', null, 's3', null, null, 3, '{}'),
          (4, 'a.jpg', null, 'c', 'u4', null, null, 'undated', 4, '{undated}');`,
      async (tx) => {
        expect(
          await rowsOf(
            tx,
            "id, part_number, url, signed_url, signed_url_expires_at, note, weight, tags, twice",
          ),
        )
          .toEqual([[2, "a", "u1", "s3", null, "late", 3, [], 6]]);
        const archived = await tx`select record from image_sync.archive order by (record ->> 'id')::int`;
        expect(archived.map(({ record }) => record)).toEqual([
          expect.objectContaining({
            id: 1,
            note: "late",
            signed_url: "s1",
            twice: 2,
            bucket_id: "part-images",
          }),
          expect.objectContaining({ id: 3, note: null, signed_url: "s3" }),
          expect.objectContaining({ id: 4, note: "undated", created_at: null }),
        ]);
      },
    ));

  test("takes a value that has to be unique, and the columns of one foreign key together", () =>
    migrated(
      `create table public.shelves (aisle int, place int, primary key (aisle, place));
        insert into public.shelves values (1, 1), (2, 2);
        ${
        tableOf(
          "file_name text, part_number text unique, aisle int, place int, foreign key (aisle, place) references public.shelves",
        )
      }
        insert into public.part_images values
          (1, 'a.jpg', null, null, null), (2, 'a.jpg', 'a', 2, 2), (3, 'b.jpg', null, 1, null), (4, 'b.jpg', 'b', 2, 2);`,
      async (tx) => {
        expect(await rowsOf(tx, "id, part_number, aisle, place")).toEqual([
          [1, "a", 2, 2],
          [3, "b", 1, null],
        ]);
      },
    ));

  test("does without what a constraint or a trigger of its owner's keeps from it; the others take theirs", () =>
    migrated(
      `${tableOf("file_name text, part_number text, note text, check (part_number is null or note is null)")}
        insert into public.part_images values
          (1, 'a.jpg', 'a', null), (2, 'a.jpg', null, 'note'), (3, 'b.jpg', null, null), (4, 'b.jpg', null, 'note');`,
      async (tx) => {
        expect(await rowsOf(tx, "id, part_number, note")).toEqual([[1, "a", null], [3, null, "note"]]);
        expect(await tx`select record ->> 'note' as note from image_sync.archive`).toEqual([
          { note: "note" },
          { note: "note" },
        ]);
      },
    ));

  test("is the one with the smaller number where the rows say nothing of their age", () =>
    migrated(
      `${tableOf("file_name text, note text")}
        insert into public.part_images values (5, 'a.jpg', 'five'), (4, 'a.jpg', 'four'), (6, 'A.jpg', 'six');`,
      async (tx) => {
        expect(await rowsOf(tx, "id, note")).toEqual([[4, "four"], [6, "six"]]);
      },
    ));

  test("may have no key at all; and equal rows are told apart", () =>
    migrated(
      `create table public.part_images (file_name text);
        insert into public.part_images select 'a.jpg' from generate_series(1, 3);`,
      async (tx) => {
        expect(await tx`select file_name from public.part_images`).toHaveLength(1);
        expect(await tx`select from image_sync.archive`).toHaveLength(2);
      },
    ));

  test("is chosen by these tests: with the URL preferred they fail", async () => {
    const from = "(%2$s) desc, %3$s";
    expect(readNoun("adoption").split(from)).toHaveLength(2);
    const before = `${tableOf("file_name text, part_number text, signed_url text, created_at timestamptz")}
      insert into public.part_images values (1, 'a.jpg', 'a', null, '2024-01-01'), (2, 'a.jpg', null, 's', '2024-01-02');`;
    await inTransaction(db.sql, before, async (tx) => {
      await applyMigration(
        tx,
        (text) => text.replace(from, () => `(%2$s) desc, p.signed_url is null, %3$s`),
      );
      expect(await rowsOf(tx, "id")).toEqual([[2]]);
    });
  });
});

test("its owner's triggers fire for what the adoption changes, once", () =>
  migrated(
    `${tableOf("file_name text, note text, bucket_id text")}
      insert into public.part_images values (1, 'a.jpg', null, 'x'), (2, 'a.jpg', 'note', 'x'), (3, 'b.jpg', null, 'x');
      create table public.journal (id int, operation text);
      create function public.write_journal() returns trigger language plpgsql as $$
      begin insert into public.journal values (old.id, tg_op); return null; end $$;
      create trigger journal after update or delete on public.part_images for each row execute function public.write_journal();`,
    async (tx) => {
      expect(await tx`select id, operation from public.journal order by id`).toEqual([
        { id: 1, operation: "UPDATE" },
        { id: 2, operation: "DELETE" },
      ]);
    },
  ));

test("names that a collation takes for equal are two files", () =>
  inTransaction(
    db.sql,
    `create collation public.any_case (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
      ${tableOf("file_name text collate public.any_case")}
      insert into public.part_images values (1, 'a.jpg'), (2, 'A.jpg'), (3, 'a.jpg');`,
    async (tx) => {
      expect((await expectRefusal(tx)).message).toContain("column file_name has a collation of its own");
      await tx`alter table public.part_images alter column file_name type text collate pg_catalog."default"`;
      await applyMigration(tx);
      expect(await rowsOf(tx, "id, file_name")).toEqual([[1, "a.jpg"], [2, "A.jpg"]]);
    },
  ));

test("a trigger that keeps the row from taking something is heeded, and the migration goes on", () =>
  migrated(
    `${tableOf("file_name text, part_number text, note text")}
      insert into public.part_images values (1, 'a.jpg', null, null), (2, 'a.jpg', 'a', 'secret');
      create function public.owners() returns trigger language plpgsql as $$
      begin if new.note is distinct from old.note then raise exception 'Hands off'; end if; return new; end $$;
      create trigger my_gate before update on public.part_images for each row execute function public.owners();`,
    async (tx) => {
      expect(await rowsOf(tx, "part_number, note")).toEqual([["a", null]]);
      expect(await tx`select record ->> 'note' as note from image_sync.archive`).toEqual([{
        note: "secret",
      }]);
    },
  ));
