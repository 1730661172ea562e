import { afterAll, beforeAll, describe, expect, test } from "vitest";
import postgres, { type Sql } from "postgres";
import { type LocalLab, openLocalLab } from "../sync/support/local_lab.ts";
import { withMutation } from "../reliability/support/mutation.ts";
import { migrate } from "./support/migrate.ts";

let lab: LocalLab;
let admin: Sql;
let owner: Sql;
beforeAll(async () => {
  lab = await openLocalLab(["--no-migrate", "--no-function"]);
  admin = postgres(lab.stack.adminDbUrl, { max: 2, onnotice: () => {} });
  owner = postgres(lab.stack.dbUrl, { max: 3, onnotice: () => {} });
  await admin`alter table storage.objects drop column archived_at, drop column is_delete_marker, drop column is_versioned`;
  await migrate(lab.stack.dbUrl);
  await admin`insert into storage.buckets (id, name) values ('part-images', 'part-images')`;
  await admin`insert into storage.objects (bucket_id, name) values ('part-images', 'a.jpg')`;
}, 120_000);
afterAll(async () => {
  await Promise.all([admin?.end({ timeout: 1 }), owner?.end({ timeout: 1 })]);
  await lab?.close();
});

const files = async () => {
  const rows = await owner<{ name: string }[]>`select name from image_sync.objects order by name`;
  return rows.map(({ name }) => name);
};
const refresh = async () => {
  const [row] = await owner`select image_sync.refresh_objects_view() as made`;
  return row?.["made"];
};
const describeView = () =>
  owner`select c.relacl::text, c.reloptions, obj_description(c.oid) as comment,
    (select jsonb_agg(col_description(c.oid, a.attnum) order by a.attnum) from pg_catalog.pg_attribute a where a.attrelid = c.oid and a.attnum > 0) as comments
    from pg_catalog.pg_class c where c.oid = 'image_sync.objects'::regclass`;

describe("a view that was made before Storage had versions", () => {
  test("is left alone while there is nothing to do, without a lock on it", async () => {
    await owner.begin(async (tx) => {
      const [row] = await tx`select image_sync.refresh_objects_view() as made`;
      const locks =
        await tx`select mode from pg_catalog.pg_locks where pid = pg_backend_pid() and relation = 'image_sync.objects'::regclass`;
      expect([row, locks]).toEqual([{ made: false }, []]);
    });
  });

  test("counts neither delete markers nor archived versions once housekeeping ran after the upgrade", async () => {
    const before = await describeView();
    await admin.unsafe(
      `alter table storage.objects add column archived_at timestamptz, add column is_delete_marker boolean not null default false;
      insert into storage.objects (bucket_id, name, is_delete_marker) values ('part-images', 'marker.jpg', true);
      insert into storage.objects (bucket_id, name, archived_at) values ('part-images', 'version.jpg', now());`,
    );
    expect(await files()).toEqual(["a.jpg", "marker.jpg", "version.jpg"]);
    const blind = {
      signature: "image_sync.refresh_objects_view()",
      from: "d.refobjsubid = a.attnum",
      to: "true",
    };
    expect(await withMutation(admin, blind, async () => expect(await refresh()).toBe(true))).toContain(
      "false",
    );
    await owner.begin(async (tx) => {
      await tx`select from image_sync.objects`;
      expect(await refresh()).toBe(false); // who reads it is not waited for
    });
    expect(await files()).toHaveLength(3);
    await owner`select image_sync.prune_history()`;
    expect(await files()).toEqual(["a.jpg"]);
    expect(await describeView()).toEqual(before);
    expect(await refresh()).toBe(false);
  });

  test("is made anew by nobody but the jobs' owner", async () => {
    const [row] = await owner`
      select array_agg(r.role) filter (where has_function_privilege(r.role, 'image_sync.refresh_objects_view()', 'execute')) as roles
      from unnest('{anon,authenticated,service_role,public}'::text[]) as r (role)`;
    expect(row).toEqual({ roles: null });
  });
});
