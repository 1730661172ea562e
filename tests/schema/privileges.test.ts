import { describe, expect, test } from "vitest";
import { applyMigration, openAdoptions, readNoun } from "./support/adoption.ts";

const { through, migrated } = openAdoptions();

const grants = (scope: string) =>
  ["tables", "functions", "sequences"].map((objects) =>
    `alter default privileges ${scope} grant all on ${objects} to anon, authenticated, service_role;`
  ).join("\n");

const ours = `
  select c.oid, c.oid::regclass::text as name, c.relacl as acl from pg_catalog.pg_class c
  where c.relnamespace = 'image_sync'::regnamespace and c.relkind in ('r', 'v', 'S') or c.oid = 'public.part_images'::regclass
  union all
  select p.oid, p.oid::regprocedure::text, coalesce(p.proacl, acldefault('f', p.proowner)) from pg_catalog.pg_proc p
  where p.pronamespace = 'image_sync'::regnamespace or p.pronamespace = 'public'::regnamespace and p.proname like 'image\\_sync\\_%'`;

const open = `
  select o.name, g.privilege_type, g.grantee::regrole::text as grantee
  from (${ours}) as o cross join aclexplode(o.acl) as g
  where g.grantee = 0 or g.grantee in ('anon'::regrole, 'authenticated'::regrole)`;

describe.each([
  ["of older projects", grants("in schema public")],
  ["for whatever is created", grants("")],
])("under default privileges %s", (_, before) => {
  test("nothing of ours is granted to anon, authenticated or everybody", () =>
    migrated(before, async (tx) => {
      expect((await tx.unsafe(ours)).length).toBeGreaterThan(50);
      expect(await tx.unsafe(open)).toEqual([]);
      const [rights] = await tx`
        select string_agg(g.privilege_type, ' ' order by g.privilege_type) as privileges
        from pg_catalog.pg_class c cross join aclexplode(c.relacl) as g
        where c.oid = 'public.part_images'::regclass and g.grantee = 'service_role'::regrole`;
      expect(rights).toEqual({ privileges: "DELETE INSERT SELECT UPDATE" });
    }));

  test("a table that is adopted keeps what its owner granted", () =>
    migrated(`${before} create table public.part_images (id uuid primary key);`, async (tx) => {
      const kept = await tx.unsafe(`${open} and o.name = 'part_images' and g.privilege_type = 'SELECT'`);
      expect(kept.map(({ grantee }) => grantee).sort()).toEqual(["anon", "authenticated"]);
    }));
});

test("the last migration is what holds that: without it functions stand open", () =>
  through(grants(""), async (tx) => {
    await applyMigration(tx, (text) => text.replace(readNoun("privileges"), "select"));
    expect((await tx.unsafe(open)).length).toBeGreaterThan(0);
  }));
