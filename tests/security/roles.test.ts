import postgres, { type Sql } from "postgres";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type LocalStack, startLocalStack } from "../support/stack.ts";

let stack: LocalStack;
let admin: Sql;
beforeAll(async () => {
  stack = await startLocalStack(["--no-function"]);
  admin = postgres(stack.adminDbUrl, { max: 2, onnotice: () => {} });
  await admin`create role stranger login`;
});
afterAll(async () => {
  await admin?.end();
  await stack?.stop();
});

const roles = ["anon", "authenticated", "service_role", "stranger"] as const;

type Access = { readonly object: string; readonly role: string; readonly privileges: string[] };

// Everything of ours, as the catalogue has it: what is added later is in it without anybody remembering.
async function readAccess(): Promise<Access[]> {
  return await admin<Access[]>`
    with roles as (
      select unnest(${admin.array([...roles])}::text[]) as role
    ), relations as (
      select c.oid, c.oid::regclass::text as object, c.relkind
      from pg_class c
      where c.relkind in ('r', 'p', 'v', 'm', 'S')
        and (c.relnamespace = 'image_sync'::regnamespace or c.oid in ('public.part_images'::regclass, 'public.part_register'::regclass))
    ), routines as (
      select p.oid, p.oid::regprocedure::text as object
      from pg_proc p
      where p.pronamespace = 'image_sync'::regnamespace
        or (p.pronamespace = 'public'::regnamespace and p.proname like 'image\\_sync\\_%')
    )
    select r.object, roles.role, array(
      select privilege
      from unnest(case r.relkind when 'S' then '{select,update,usage}' else '{select,insert,update,delete,truncate,references,trigger}' end::text[]) as privilege
      where case r.relkind when 'S' then has_sequence_privilege(roles.role, r.oid, privilege) else has_table_privilege(roles.role, r.oid, privilege) end
    ) as privileges
    from relations r cross join roles
    union all
    select f.object, roles.role, case when has_function_privilege(roles.role, f.oid, 'execute') then '{execute}'::text[] else '{}' end
    from routines f cross join roles
    union all
    select 'schema image_sync', roles.role, case when has_schema_privilege(roles.role, 'image_sync', 'usage') then '{usage}'::text[] else '{}' end
    from roles
    order by 1, 2`;
}

/** What no API role is to call: the jobs run as their owner. */
const jobsOnly = [
  "image_sync.run_nightly()",
  "image_sync.start_night(text)",
  "image_sync.watchdog()",
  "image_sync.prune_history()",
  "image_sync.refresh_objects_view()",
];

describe("of every table, view and function of ours", () => {
  test.each(roles.filter((role) => role !== "service_role"))("%s can use nothing", async (role) => {
    const access = (await readAccess()).filter((row) => row.role === role);
    expect(access.length).toBeGreaterThan(40);
    expect(access.filter(({ privileges }) => privileges.length > 0)).toEqual([]);
  });

  test("service_role can use all but the jobs, and no table beyond reading and writing rows", async () => {
    const access = (await readAccess()).filter(({ role }) => role === "service_role");
    const shut = access.filter(({ privileges, object }) =>
      privileges.length === 0 && !object.includes("_seq")
    ).map(({ object }) => object);
    expect(shut.toSorted()).toEqual(jobsOnly.toSorted());
    const beyond = access.flatMap(({ privileges, object }) =>
      privileges.filter((privilege) => ["truncate", "references", "trigger"].includes(privilege)).map((
        privilege,
      ) => `${object}: ${privilege}`)
    );
    expect(beyond).toEqual([]);
  });

  test("one that grants too much would be noticed", async () => {
    await admin`grant execute on function public.image_sync_report(text) to anon`;
    try {
      const open = (await readAccess()).filter(({ role, privileges }) =>
        role === "anon" && privileges.length > 0
      );
      expect(open).toEqual([{ object: "image_sync_report(text)", role: "anon", privileges: ["execute"] }]);
    } finally {
      await admin`revoke execute on function public.image_sync_report(text) from anon`;
    }
  });

  test("each table has row level security, and none has a policy that lets anybody in", async () => {
    const open = await admin`
      select c.oid::regclass::text as object
      from pg_class c
      where c.relkind in ('r', 'p')
        and (c.relnamespace = 'image_sync'::regnamespace or c.oid = 'public.part_images'::regclass)
        and (not c.relrowsecurity or exists (select from pg_policy where polrelid = c.oid))`;
    expect([...open]).toEqual([]);
  });

  test("each function has a fixed search path, and security definer is for the few that need it", async () => {
    const rows = await admin<{ object: string; definer: boolean; config: string[] | null }[]>`
      select p.oid::regprocedure::text as object, p.prosecdef as definer, p.proconfig as config
      from pg_proc p
      where p.pronamespace = 'image_sync'::regnamespace
        or (p.pronamespace = 'public'::regnamespace and p.proname like 'image\\_sync\\_%')`;
    // But for those that are inlined where they are called: they name nothing that a search path could find elsewhere.
    expect(
      rows.filter(({ config }) => !config?.includes('search_path=""')).map(({ object }) => object).sort(),
    )
      .toEqual([
        "image_sync.compare_names(text,text[],timestamp with time zone,text,text[],text[])",
        "image_sync.compare_range(text,text,text,timestamp with time zone,text,text[],text[])",
        "image_sync.count_of(jsonb,text)",
        "image_sync.followed_file(uuid)",
        "image_sync.is_url_of(text,text,text)",
      ]);
    const definers = rows.filter(({ definer }) => definer).map(({ object }) => object);
    expect(definers.filter((object) => !object.startsWith("image_sync."))).toEqual([]);
  });

  test("a stranger who tries is refused", async () => {
    const stranger = postgres(stack.adminDbUrl.replace("supabase_admin", "stranger"), { max: 1 });
    try {
      for (
        const statement of [
          "select * from public.part_images",
          "select * from image_sync.runs",
          "select public.image_sync_report('part-images')",
          "select image_sync.kick(gen_random_uuid())",
        ]
      ) {
        await expect(stranger.unsafe(statement)).rejects.toMatchObject({ code: "42501" });
      }
    } finally {
      await stranger.end();
    }
  });
});
