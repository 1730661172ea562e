import { describe, expect, test } from "vitest";
import { openLocalLab } from "../sync/support/local_lab.ts";
import {
  applyMigration,
  expectRefusal,
  openAdoptions,
  readCatalogue,
  readNoun,
  rowsOf,
  statementsOf,
  tableOf as keyedTableOf,
} from "./support/adoption.ts";
import { migrate } from "./support/migrate.ts";

const { through, migrated } = openAdoptions();

const tableOf = (columns: string) => `create table public.part_images (${columns});`;
const wild = "id uuid primary key default gen_random_uuid(), part_number text, url text, signed_url text";
const twins = `${tableOf(`${wild}, file_name text`)}
  insert into public.part_images (file_name) values ('a.jpg'), ('a.jpg'), ('b.jpg');`;
const trigger = (body: string, when: string) => `
  create function public.owners() returns trigger language plpgsql as $$ begin ${body} end $$;
  create trigger my_gate ${when} on public.part_images for each row execute function public.owners();`;

type Case = {
  readonly before: string;
  readonly refusal: RegExp;
  /** Where the hint leaves the choice to a person. */
  readonly remedy?: string;
};

const cases: Readonly<Record<string, Case>> = {
  "a view": { before: "create view public.part_images as select 1 as id;", refusal: /it is not a table/ },
  "a materialized view": {
    before: "create materialized view public.part_images as select 1 as id;",
    refusal: /it is not a table/,
  },
  "a sequence": { before: "create sequence public.part_images;", refusal: /it is not a table/ },
  "a type": { before: "create type public.part_images as (id int);", refusal: /it is not a table/ },
  "an enum": { before: "create type public.part_images as enum ('a');", refusal: /a type has its name/ },
  "a partitioned table": {
    before: `create table public.part_images (part_number text, file_name text) partition by hash (file_name);
      create table public.p_0 partition of public.part_images for values with (modulus 2, remainder 0);
      create table public.p_1 partition of public.part_images for values with (modulus 2, remainder 1);
      insert into public.part_images select n::text, n || '.jpg' from generate_series(1, 20) as n;`,
    refusal: /it is partitioned/,
  },
  "a partition": {
    before: `create table public.images (file_name text) partition by list (file_name);
      create table public.part_images partition of public.images default;`,
    refusal: /public\.part_images inherits from public\.images/,
  },
  "a table that others inherit from": {
    before: `${twins} create table public.old_images () inherits (public.part_images);
      create table public.older_images () inherits (public.part_images);
      insert into public.old_images (id, file_name) select gen_random_uuid(), n || '.jpg' from generate_series(1, 9) as n;`,
    refusal: /public\.old_images inherits from public\.part_images\n.*\nAlso: public\.older_images inherits/,
  },
  "a table that inherits": {
    before:
      `create table public.images (file_name text); create table public.part_images () inherits (public.images);`,
    refusal: /public\.part_images inherits from public\.images/,
  },
  "a part number that is a number": {
    before: tableOf("id uuid primary key, part_number bigint default 7, file_name text"),
    refusal: /column part_number is not of type text but bigint/,
  },
  "a file name of a domain": {
    before: `create domain public.file as text check (value <> 'x'); ${
      tableOf("id uuid primary key, file_name public.file")
    }`,
    refusal: /column file_name is not of type text but public.file/,
  },
  "a bucket_id that is a uuid": {
    before: tableOf(`${wild}, file_name text, bucket_id uuid`),
    refusal: /column bucket_id is not of type text but uuid/,
  },
  "a bucket_id that is a number": {
    before: tableOf(`${wild}, file_name text, bucket_id int not null`),
    refusal: /column bucket_id is not of type text but integer/,
  },
  "a bucket_id that is an enum": {
    before: `create type public.bucket as enum ('part-images'); ${
      tableOf(`${wild}, file_name text, bucket_id public.bucket`)
    }`,
    refusal: /column bucket_id is not of type text but public.bucket/,
  },
  "an expiry without a time zone": {
    before: `${tableOf(`${wild}, file_name text, signed_url_expires_at timestamp default now()`)}
      insert into public.part_images (file_name) values ('a.jpg');`,
    refusal: /column signed_url_expires_at is not of type timestamp with time zone/,
  },
  "an expiry in words": {
    before: `${tableOf(`${wild}, file_name text, signed_url_expires_at varchar(40)`)}
      insert into public.part_images (file_name, signed_url_expires_at) values ('a.jpg', '2024-01-01 10:00+02');`,
    refusal: /column signed_url_expires_at is not of type timestamp with time zone/,
  },
  "a generated file name": {
    before: tableOf(`${wild}, file_name text generated always as (part_number || '.jpg') stored`),
    refusal: /column file_name is generated/,
  },
  "a generated part number": {
    before: tableOf(
      "id uuid primary key, file_name text, part_number text generated always as (file_name) stored",
    ),
    refusal: /column part_number is generated/,
  },
  "a file name that compares in byte order": {
    before: tableOf(`${wild}, file_name text collate "C"`),
    refusal: /column file_name has a collation of its own/,
  },
  "a number as key without a default": {
    before: `${
      tableOf("id int primary key, file_name text")
    } insert into public.part_images values (5, 'a.jpg');`,
    refusal: /column id must have a value/,
  },
  "a text as key without a default": {
    before: tableOf("id text primary key, file_name text"),
    refusal: /column id must have a value/,
  },
  "a deprecated url that must be given": {
    before: tableOf("id uuid primary key, file_name text, url text not null"),
    refusal: /column url must have a value/,
  },
  "a signed URL that must be given": {
    before: tableOf("id uuid primary key, file_name text, signed_url text not null"),
    refusal: /column signed_url must have a value/,
  },
  "varchar(n) below views, a policy and a trigger": {
    before: `${tableOf("id uuid primary key, file_name varchar(40), signed_url varchar(9)")}
      create view public.shown as select file_name from public.part_images;
      create policy mine on public.part_images using (signed_url <> '');`,
    refusal:
      /column file_name .* depend on it: rule _RETURN on view public\.shown\n.*\nAlso: column signed_url .* depend on it: policy mine/,
    remedy: `drop view public.shown; drop policy mine on public.part_images;
      alter table public.part_images alter column file_name type text, alter column signed_url type text;
      create view public.shown as select file_name from public.part_images;
      create policy mine on public.part_images using (signed_url <> '');`,
  },
  "a constraint that has our index's name": {
    before: tableOf(`${wild}, bucket_id text default 'a', file_name text, unique (bucket_id, file_name)`),
    refusal: /the name part_images_bucket_id_file_name_key/,
  },
  "an index on other columns that has our index's name": {
    before: `${twins} create index part_images_twins_idx on public.part_images (file_name);`,
    refusal: /the name part_images_twins_idx/,
  },
  "a table that has our index's name": {
    before: `${twins} create table public.part_images_bucket_id_file_name_key ();`,
    refusal: /the name part_images_bucket_id_file_name_key/,
  },
  "a schema image_sync": {
    before: "create schema image_sync;",
    refusal: /the schema image_sync exists already/,
  },
  "functions of our name": {
    before:
      "create function public.image_sync_run(a int, b text) returns int language sql return 1; create function public.image_sync_x() returns int language sql return 1;",
    refusal: /public holds functions named image_sync_/,
  },
  "several rows with an empty name that cannot be null": {
    before: `${
      tableOf(`${wild}, file_name text not null`)
    } insert into public.part_images (file_name) values (''), ('');`,
    refusal: /it holds several rows with an empty file_name/,
    remedy: "alter table public.part_images alter column file_name drop not null;",
  },
  "a delete trigger that keeps duplicates": {
    before: twins + trigger("return null;", "before delete"),
    refusal: /a trigger or rule of its owner keeps them/,
    remedy: "drop trigger my_gate on public.part_images;",
  },
  "a delete trigger that raises": {
    before: twins + trigger("raise exception 'Never';", "before delete"),
    refusal: /tried and undone, because the database said: Never/,
    remedy: "drop trigger my_gate on public.part_images;",
  },
  "a rule that keeps duplicates": {
    before: `${twins} create rule keep as on delete to public.part_images do instead nothing;`,
    refusal: /tried and undone/,
    remedy: "drop rule keep on public.part_images;",
  },
  "an update trigger that refuses a bucket": {
    before: `${tableOf(`${wild}, file_name text, bucket_id text`)}
      insert into public.part_images (file_name) values ('a.jpg');
      ${trigger("raise exception 'Not now';", "before update")}`,
    refusal: /tried and undone, because the database said: Not now/,
    remedy: "drop trigger my_gate on public.part_images;",
  },
  "a published table whose rows nothing identifies": {
    before:
      `create table public.part_images (file_name text); insert into public.part_images values ('a.jpg'), ('a.jpg');
      create publication everything for table public.part_images;`,
    refusal: /it is published as it is: .* does not have a replica identity/,
  },
  "a table of which a part of the columns is published": {
    before: `${
      tableOf(`${wild}, file_name text`)
    } create publication partly for table public.part_images (url);`,
    refusal: /it is published as it is: cannot update table/,
    remedy: "drop publication partly;",
  },
  "a table of which a part of the rows is published": {
    before: `${tableOf(`${wild}, file_name text`)}
      create publication partly for table public.part_images where (file_name <> 'a');`,
    refusal: /it is published as it is: cannot update table/,
    remedy: "drop publication partly;",
  },
  "columns that object mappers make": {
    before:
      `${twins} alter table public.part_images add column "updatedAt" timestamp(3), add column weight integer;
      truncate public.part_images;
      alter table public.part_images alter column "updatedAt" set not null, alter column weight set not null;`,
    refusal:
      /column "updatedAt" must have a value, and a sync has none for it\n.*"updatedAt" set default now\(\);\nAlso: column weight must have a value/,
  },
  "a part of a key that has no default": {
    before: tableOf("shop int, id int generated always as identity, file_name text, primary key (shop, id)"),
    refusal: /column shop must have a value.*\nGive it a default: /,
    remedy: "alter table public.part_images alter column shop set default 1;",
  },
  "a domain that cannot be null": {
    before: `create domain public.grade as int not null; ${
      tableOf(`${wild}, file_name text, grade public.grade`)
    }`,
    refusal: /column grade must have a value/,
    remedy: "alter table public.part_images alter column grade set default 1;",
  },
  "an expiry that cannot be null, whatever its default": {
    before: tableOf(`${wild}, file_name text, signed_url_expires_at timestamptz not null default now()`),
    refusal: /column signed_url_expires_at must have a value/,
  },
  "a required column whose trigger is switched off": {
    before: `${tableOf(`${wild}, file_name text, weight int not null`)}
      ${trigger("new.weight := 1; return new;", "before insert")}
      alter table public.part_images disable trigger my_gate;`,
    refusal: /column weight must have a value/,
    remedy: "alter table public.part_images enable trigger my_gate;",
  },
  "a required column that no trigger fills": {
    before: `${tableOf(`${wild}, file_name text, owner_id uuid not null, weight int not null`)}
      ${trigger("new.weight := 1; return new;", "before insert or update")}`,
    refusal: /null value in column "owner_id".*\n.*alter column owner_id drop not null;/,
  },
  "a unique key that lets in one record alone": {
    before: tableOf(`${wild}, file_name text, created_at timestamptz default now() unique`),
    refusal:
      /duplicate key value violates unique constraint "part_images_created_at_key".*\nGive its columns a default/,
    remedy: "alter table public.part_images drop constraint part_images_created_at_key;",
  },
  "a sequence that is behind its rows": {
    before: `${
      tableOf("id serial primary key, file_name text")
    } insert into public.part_images values (1, 'a.jpg');`,
    refusal: /"part_images_pkey": Key \(id\)=\(1\) already exists/,
    remedy: "select setval('public.part_images_id_seq', 1);",
  },
  "an object_id of something else": {
    before: `${tableOf(`${wild}, file_name text, object_id uuid default gen_random_uuid()`)}
      insert into public.part_images (file_name) values ('a.jpg');`,
    refusal: /column object_id holds what are no ids of storage\.objects/,
  },
  "several things at once": {
    before:
      `${twins} alter table public.part_images add column weight int, alter column part_number type bigint using 1;
      update public.part_images set weight = 1; alter table public.part_images alter column weight set not null;
      create table public.part_images_twins_idx ();
      create table public.order_images (image_id uuid references public.part_images on delete cascade);
      insert into public.order_images select id from public.part_images;`,
    refusal:
      /column part_number is not of type .*\n.*\nAlso: column weight must .*\n.*\nAlso: the name part_images_twins_idx .*\n.*\nAlso: it holds of 1 file\(s\)/,
    remedy: `truncate public.order_images; alter table public.part_images_twins_idx rename to mine;
      alter table public.part_images drop column weight, alter column part_number type text;`,
  },
  "a typed table": {
    before:
      "create type public.image as (id int, file_name text); create table public.part_images of public.image;",
    refusal: /it is a typed table/,
  },
  "a name that no index can hold": {
    before: `${tableOf(`${wild}, file_name text`)}
      insert into public.part_images (file_name) select string_agg(md5(n::text), '') from generate_series(1, 300) as n;`,
    refusal: /tried and undone, because the database said: index row /,
    remedy: "truncate public.part_images;",
  },
  "a table of somebody else": {
    before: `create role stranger; grant stranger to postgres; grant create on schema public to stranger;
      ${twins} alter table public.part_images owner to stranger; revoke stranger from postgres;`,
    refusal: /it belongs to stranger/,
    remedy: "grant stranger to postgres;",
  },
};

describe("before anything is changed it refuses, with the way out that works", () => {
  test.each(Object.entries(cases))("%s", async (_, { before, refusal, remedy }) => {
    await through(before, async (tx) => {
      const { message } = await expectRefusal(tx);
      expect(message).toMatch(refusal);
      await tx.unsafe(remedy ?? statementsOf(message)).simple();
      await applyMigration(tx);
    });
  });
});

test("a required column that has a default, counts, is computed or is filled by a trigger is none that is refused", () =>
  migrated(
    `${
      keyedTableOf(
        `part_number text, file_name text, weight int not null default 7, number int not null generated always as identity,
        label text not null generated always as ('part ' || weight) stored, "updatedAt" timestamp not null`,
      )
    }
      ${trigger("new.\"updatedAt\" := '2024-01-01'; return new;", "before insert")}`,
    async (tx) => {
      await tx`insert into public.part_images (bucket_id, file_name, part_number) values ('part-images', 'a.jpg', 'a')`;
      expect(await rowsOf(tx, `file_name, weight, label, "updatedAt"::text`)).toEqual([
        ["a.jpg", 7, "part 7", "2024-01-01 00:00:00"],
      ]);
    },
  ));

test("what refuses the names that are tried, and a publication of inserts alone, is in nobody's way", () =>
  migrated(
    `${tableOf("file_name text check (file_name ~ '^[0-9]')")}
      create publication inserts for table public.part_images with (publish = 'insert');
      ${
      trigger(
        "if new.file_name like 'image-sync%' then raise exception 'Odd'; end if; return new;",
        "before insert",
      )
    }`,
    async (tx) => {
      expect(await tx`select from public.part_images`).toEqual([]);
      await tx`insert into public.part_images (file_name) values ('1.jpg')`;
    },
  ));

test("these tests can fail: where no record is tried, a column that no trigger fills is adopted", async () => {
  const from = "sqlstate in ('23502', ";
  expect(readNoun("part_images").split(from)).toHaveLength(2);
  await through(cases["a required column that no trigger fills"]?.before ?? "", async (tx) => {
    await applyMigration(tx, (text) => text.replace(from, "sqlstate in ("));
  });
});

test(
  "the CLI prints the refusal with its way out, has applied no file, and goes on after the remedy",
  async () => {
    const lab = await openLocalLab(["--no-migrate", "--no-function"]);
    try {
      await lab.sql.unsafe(
        `create table public.part_images (id int primary key generated by default as identity (start 9), file_name text);
      insert into public.part_images values (1, 'a.jpg'), (2, 'a.jpg');
      create table public.order_images (image_id int references public.part_images on delete cascade);
      insert into public.order_images values (1), (2), (2);`,
      );
      const before = await readCatalogue(lab.sql);
      const refusal: unknown = await migrate(lab.stack.dbUrl).then(() => null, (error: unknown) => error);
      const printed = refusal instanceof Error ? refusal.message : "";
      expect(printed).toContain('2 rows in all: a.jpg {"id": 1}, a.jpg {"id": 2}');
      expect(printed).toContain("order by (d.record).file_name;");
      expect(await readCatalogue(lab.sql)).toEqual(before);
      await lab.sql`update public.order_images set image_id = 2`;
      await migrate(lab.stack.dbUrl);
      expect(await lab.sql`select id from public.part_images`).toEqual([{ id: 2 }]);
      expect(await lab.sql`select image_id from public.order_images`).toEqual(Array(3).fill({ image_id: 2 }));
    } finally {
      await lab.close();
    }
  },
  120_000,
);
