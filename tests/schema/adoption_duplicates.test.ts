import { describe, expect, test } from "vitest";
import {
  applyMigration,
  expectRefusal,
  openAdoptions,
  readNoun,
  rowsOf,
  statementsOf,
  tableOf,
} from "./support/adoption.ts";

const { through, migrated } = openAdoptions();

test("a row that goes is archived as it was, whatever its owner's columns are called", () => {
  const letters = [..."abcdefghijklmnopqrstuvwxyz"];
  const values = letters.map((letter) => `jsonb_build_object('${letter}', n)`).join(", ");
  return migrated(
    `${
      tableOf(`file_name text, created_at timestamptz, ${
        letters.map((letter) => `${letter} jsonb`).join(", ")
      }`)
    }
      insert into public.part_images (id, file_name, created_at, ${letters.join(", ")})
      select n, 'a.jpg', now() + n * interval '1 day', ${values} from generate_series(1, 2) as n;`,
    async (tx) => {
      const [archived] = await tx`select record from image_sync.archive`;
      expect(archived?.["record"]).toMatchObject({
        id: 2,
        file_name: "a.jpg",
        d: { d: 2 },
        x: { x: 2 },
        p: { p: 2 },
      });
      const [kept] = await tx`select * from public.part_images`;
      expect(kept).toMatchObject({ id: 1, d: { d: 1 }, x: { x: 1 }, p: { p: 1 } });
    },
  );
});

describe("of several rows of one file stays", () => {
  test("the one with a URL, then the oldest; it takes nothing from the others, which are in the archive whole", () =>
    migrated(
      `${
        tableOf(
          `file_name text, part_number text, signed_url text, created_at timestamptz, note text, weight int,
          twice int generated always as (weight * 2) stored`,
        )
      }
        insert into public.part_images (id, file_name, created_at, part_number, signed_url, note, weight) values
          (1, 'a.jpg', '2024-03-03', 'late', 's1', 'late', 1),
          (2, 'a.jpg', '2024-01-01', 'a', '', null, null),
          (3, 'a.jpg', '2024-02-02', 'b', 's3', null, 3),
          (4, 'a.jpg', null, 'c', 's4', 'undated', 4),
          (5, 'b.jpg', '2024-02-02', 'b', null, 'late', 5),
          (6, 'b.jpg', '2024-01-01', 'b', '', null, null);`,
      async (tx) => {
        expect(await rowsOf(tx, "id, part_number, signed_url, note, weight, twice"))
          .toEqual([[3, "b", "s3", null, 3, 6], [6, "b", "", null, null, null]]);
        const archived = await tx`select record from image_sync.archive order by (record ->> 'id')::int`;
        expect(archived.map(({ record }) => record)).toMatchObject([
          { id: 1, note: "late", signed_url: "s1", twice: 2, bucket_id: "part-images" },
          { id: 2, note: null, signed_url: "" },
          { id: 4, note: "undated", created_at: null },
          { id: 5, note: "late", twice: 10 },
        ]);
      },
    ));

  test("the one with the smaller number where the rows say nothing of their age", () =>
    migrated(
      `${tableOf("file_name text, note text")}
        insert into public.part_images values (5, 'a.jpg', 'five'), (4, 'a.jpg', 'four'), (6, 'A.jpg', 'six');`,
      async (tx) => {
        expect(await rowsOf(tx, "id, note")).toEqual([[4, "four"], [6, "six"]]);
      },
    ));

  test("the one stored first where there is no number; equal rows are told apart, and chars become text", () =>
    migrated(
      `create table public.part_images (id uuid, file_name char(9), note int);
        insert into public.part_images select gen_random_uuid(), 'a.jpg', n from generate_series(1, 9) as n;
        insert into public.part_images select null, 'b.jpg', null from generate_series(1, 3) as n;`,
      async (tx) => {
        expect(await tx`select file_name, note from public.part_images order by file_name`).toEqual([
          { file_name: "a.jpg", note: 1 },
          { file_name: "b.jpg", note: null },
        ]);
        expect(await tx`select from image_sync.archive`).toHaveLength(10);
      },
    ));

  test("chosen by these tests: with the URL not preferred they fail", async () => {
    const from = ", t.has_url desc";
    expect(readNoun("adoption").split(from)).toHaveLength(2);
    const before = `${tableOf("file_name text, part_number text, signed_url text, created_at timestamptz")}
      insert into public.part_images values (1, 'a.jpg', 'a', null, '2024-01-01'), (2, 'a.jpg', null, 's', '2024-01-02');`;
    await through(before, async (tx) => {
      await applyMigration(tx, (text) => text.replace(from, ""));
      expect(await rowsOf(tx, "id")).toEqual([[1]]);
    });
  });
});

describe("a part number that is null", () => {
  const names = [
    "a.jpg",
    "a.b/12.x.jpg",
    "folder/no extension",
    "folder/sub.d/.jpg",
    "ü/ß 7.JPEG",
    "two\nlines.jpg",
    "end/",
  ];

  test("is that of a sync: the file name without folders and extension; what is there stays", () =>
    through(`${tableOf("file_name text, part_number text")}`, async (tx) => {
      await tx`insert into public.part_images (id, file_name) select n, name from unnest(${names}::text[]) with ordinality as f (name, n)`;
      await tx`insert into public.part_images values (97, 'own.jpg', ''), (98, 'mine.jpg', 'by hand'), (99, null, null)`;
      await applyMigration(tx);
      const [synced] = await tx`select image_sync.part_numbers_of(${names}) as numbers`;
      const filled = await rowsOf(tx, "part_number");
      expect(filled).toEqual([...synced?.["numbers"].map((number: string) => [number]), [""], ["by hand"], [
        null,
      ]]);
      expect(filled.slice(0, 3)).toEqual([["a"], ["12.x"], ["no extension"]]);
    }));

  test("stays null where the table does not take it: taken, forbidden, or refused by a trigger; the others get theirs", () =>
    migrated(
      `${
        tableOf(
          "file_name text, part_number text unique, note text, check (part_number is null or note is null)",
        )
      }
        insert into public.part_images values
          (1, 'a.jpg', 'a', null), (2, 'old/a.jpg', null, null), (3, 'b.jpg', null, null), (4, 'old/b.jpg', null, null),
          (5, 'c.jpg', null, 'note'), (6, 'd.jpg', null, null), (7, 'e.jpg', null, null);
        create function public.owners() returns trigger language plpgsql as $$
        begin if new.part_number = 'd' then raise exception 'Hands off'; end if; return new; end $$;
        create trigger my_gate before update on public.part_images for each row execute function public.owners();`,
      async (tx) => {
        expect(await rowsOf(tx, "part_number")).toEqual([["a"], [null], ["b"], [null], [null], [null], [
          "e",
        ]]);
      },
    ));
});

test("its owner's triggers fire for what the adoption changes, once, and for nothing that it tries", () =>
  migrated(
    `${tableOf("file_name text, part_number text, bucket_id text")}
      insert into public.part_images values (1, 'a.jpg', null, 'x'), (2, 'a.jpg', 'a', 'x'), (3, 'b.jpg', 'b', 'x');
      create table public.journal (id int, operation text);
      create function public.write_journal() returns trigger language plpgsql as $$
      begin insert into public.journal values (coalesce(old.id, new.id), tg_op); return null; end $$;
      create trigger journal after insert or update or delete on public.part_images for each row execute function public.write_journal();`,
    async (tx) => {
      expect(await tx`select id, operation from public.journal order by id`).toEqual([
        { id: 1, operation: "UPDATE" },
        { id: 2, operation: "DELETE" },
      ]);
    },
  ));

test("names that a collation takes for equal are two files", () =>
  through(
    `create collation public.any_case (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
      ${tableOf("file_name text collate public.any_case")}
      insert into public.part_images values (1, 'a.jpg'), (2, 'A.jpg'), (3, 'a.jpg');`,
    async (tx) => {
      const { message } = await expectRefusal(tx);
      expect(message).toContain("column file_name has a collation of its own");
      await tx.unsafe(statementsOf(message));
      await applyMigration(tx);
      expect(await rowsOf(tx, "id, file_name")).toEqual([[1, "a.jpg"], [2, "A.jpg"]]);
    },
  ));
