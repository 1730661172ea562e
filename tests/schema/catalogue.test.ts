import type { PostgrestError } from "@supabase/supabase-js";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { createTestClient } from "../support/client.ts";
import { type Lab, openLab } from "../sync/support/lab.ts";

let lab: Lab;
beforeAll(async () => {
  lab = await openLab();
});
afterAll(() => lab?.close());

/** The functions that are ours: all of image_sync, and image_sync_* of public. */
const ourFunctions = `
  select
    p.oid, p.oid::regprocedure::text as name, n.nspname as schema, p.prosecdef as is_definer,
    p.proconfig as config, p.prokind as kind, obj_description(p.oid, 'pg_proc') as comment
  from pg_catalog.pg_proc p
  join pg_catalog.pg_namespace n on n.oid = p.pronamespace
  where n.nspname = 'image_sync'
    or (n.nspname = 'public' and p.proname like 'image\\_sync\\_%')
  order by 2`;

/** The tables and views that are ours. */
const ourRelations = `
  select c.oid, c.oid::regclass::text as name, c.relkind as kind, c.relrowsecurity as has_rls, c.reloptions as options
  from pg_catalog.pg_class c
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
  where c.relkind in ('r', 'p', 'v', 'm', 'f')
    and (n.nspname = 'image_sync' or c.oid in ('public.part_images'::regclass, 'public.part_register'::regclass))
  order by 2`;

const namesOf = (rows: readonly Record<string, unknown>[]) => rows.map(({ name }) => name);

describe("every function", () => {
  test("has an empty search path", async () => {
    const functions = await lab.sql.unsafe(ourFunctions);
    expect(functions.length).toBeGreaterThan(20);
    expect(
      functions.filter(({ config }) => !(config ?? []).includes('search_path=""')).map(({ name }) => name),
      // Inlined where they are called, which a setting would forbid; they name nothing that a search path could find elsewhere.
    ).toEqual([
      "image_sync.compare_names(text,text[],timestamp with time zone,text,text[],text[])",
      "image_sync.compare_range(text,text,text,timestamp with time zone,text,text[],text[])",
      "image_sync.count_of(jsonb,text)",
      "image_sync.followed_file(uuid)",
      "image_sync.is_url_of(text,text,text)",
    ]);
  });

  test("has a comment", async () => {
    const functions = await lab.sql.unsafe(ourFunctions);
    expect(namesOf(functions.filter(({ comment }) => !comment))).toEqual([]);
  });

  test("in public runs with its caller's rights; those that do not are narrow ones of image_sync", async () => {
    const functions = await lab.sql.unsafe(ourFunctions);
    const definers = functions.filter(({ is_definer }) => is_definer);
    expect(definers.filter(({ schema }) => schema !== "image_sync")).toEqual([]);
    expect(namesOf(definers)).toEqual([
      "image_sync.kick(uuid)",
      "image_sync.referenced_names(text,text[],boolean)",
      "image_sync.schedule_facts()",
      "image_sync.scheduled_jobs()",
    ]);
  });

  test("can be executed by neither anon nor authenticated nor everybody", async () => {
    const rights = await lab.sql.unsafe(`
      select f.name, r.role
      from (${ourFunctions}) as f
      cross join unnest('{anon,authenticated,public}'::text[]) as r (role)
      where has_function_privilege(r.role, f.oid, 'execute')`);
    expect(rights).toEqual([]);
  });

  test("of the API can be executed by service_role, and the schedule's own cannot", async () => {
    const functions = await lab.sql.unsafe(`
      select f.name, f.schema, has_function_privilege('service_role', f.oid, 'execute') as allowed from (${ourFunctions}) as f`);
    const api = functions.filter(({ schema }) => schema === "public");
    expect(api.length).toBeGreaterThanOrEqual(7);
    expect(namesOf(api.filter(({ allowed }) => !allowed))).toEqual([]);
    expect(namesOf(functions.filter(({ allowed }) => !allowed))).toEqual(
      expect.arrayContaining([
        "image_sync.run_nightly()",
        "image_sync.watchdog()",
        "image_sync.prune_history()",
      ]),
    );
  });
});

describe("every table and view", () => {
  test("has a comment, and so has each of its columns", async () => {
    const silent = await lab.sql.unsafe(`
      select r.name || coalesce('.' || a.attname, '') as name
      from (${ourRelations}) as r
      left join pg_catalog.pg_attribute a on a.attrelid = r.oid and a.attnum > 0 and not a.attisdropped
      where col_description(r.oid, a.attnum) is null or obj_description(r.oid, 'pg_class') is null`);
    expect(namesOf(silent)).toEqual([]);
  });

  test("is there", async () => {
    const relations = namesOf(await lab.sql.unsafe(ourRelations));
    expect(relations).toEqual(expect.arrayContaining([
      "part_images",
      "image_sync.settings",
      "image_sync.runs",
      "image_sync.chunks",
      "image_sync.archive",
    ]));
  });

  test("has row level security, or the rights of who asks where it is a view", async () => {
    const relations = await lab.sql.unsafe(ourRelations);
    const open = relations.filter(({ kind, has_rls, options }) =>
      kind === "v" ? !(options ?? []).includes("security_invoker=on") : !has_rls
    );
    // A reader has a right to the register and to nothing behind it: docs/decisions.md.
    expect(open.map(({ name, options }) => [name, options])).toEqual([["part_register", [
      "security_barrier=on",
    ]]]);
  });

  test("grants nothing to anon, authenticated or everybody", async () => {
    const rights = await lab.sql.unsafe(`
      select r.name, g.role, p.privilege
      from (${ourRelations}) as r
      cross join unnest('{anon,authenticated,public}'::text[]) as g (role)
      cross join unnest('{select,insert,update,delete,truncate,references,trigger}'::text[]) as p (privilege)
      where has_table_privilege(g.role, r.oid, p.privilege)`);
    expect(rights).toEqual([]);
  });

  test("grants service_role what it works with and no more", async () => {
    const rights = await lab.sql.unsafe(`
      select r.name, string_agg(p.privilege, ' ' order by p.privilege) filter (where has_table_privilege('service_role', r.oid, p.privilege)) as privileges
      from (${ourRelations}) as r
      cross join unnest('{select,insert,update,delete,truncate,references,trigger}'::text[]) as p (privilege)
      group by r.name`);
    const granted = Object.fromEntries(rights.map(({ name, privileges }) => [name, privileges]));
    for (
      const table of [
        "part_images",
        "image_sync.settings",
        "image_sync.runs",
        "image_sync.chunks",
        "image_sync.archive",
      ]
    ) {
      expect([table, granted[table]]).toEqual([table, "delete insert select update"]);
    }
    for (const view of ["image_sync.objects", "image_sync.records", "part_register"]) {
      expect([view, granted[view]]).toEqual([view, "select"]);
    }
  });

  test("compiles no statement where it is called from outside", async () => {
    const compiling = await lab.sql`
      select p.oid::regprocedure::text as name
      from pg_catalog.pg_proc p
      where (
          p.pronamespace = 'public'::regnamespace and p.proname like 'image\\_sync\\_%'
          or p.pronamespace = 'image_sync'::regnamespace and p.proname in ('run_nightly', 'watchdog', 'prune_history')
        )
        and 'jit=off' <> all (coalesce(p.proconfig, '{}'))`;
    expect(namesOf(compiling)).toEqual([]);
  });

  test("has an index for each of its foreign keys", async () => {
    const bare = await lab.sql`
      select k.conname as name
      from pg_catalog.pg_constraint k
      where k.contype = 'f'
        and k.connamespace = 'image_sync'::regnamespace
        and not exists (
          select from pg_catalog.pg_index i where i.indrelid = k.conrelid and i.indkey[0] = k.conkey[1]
        )`;
    expect(namesOf(bare)).toEqual([]);
  });
});

describe("the schema image_sync", () => {
  test("has a comment and may be entered by service_role alone", async () => {
    const [schema] = await lab.sql`
      select
        obj_description('image_sync'::regnamespace, 'pg_namespace') as comment,
        has_schema_privilege('service_role', 'image_sync', 'usage') as service_role,
        has_schema_privilege('anon', 'image_sync', 'usage') as anon,
        has_schema_privilege('authenticated', 'image_sync', 'usage') as authenticated,
        has_schema_privilege('service_role', 'image_sync', 'create') as may_create`;
    expect(schema).toMatchObject({
      service_role: true,
      anon: false,
      authenticated: false,
      may_create: false,
    });
    expect(schema?.["comment"]).toMatch(/image/);
  });

  test("has the three jobs at their times, once each, also after they were scheduled again", async () => {
    const jobs = () =>
      lab
        .sql`select jobname, schedule, command from cron.job where jobname like 'image-sync-%' order by jobname`;
    const expected = [
      {
        jobname: "image-sync-housekeeping",
        schedule: "30 3 * * *",
        command: "select image_sync.prune_history()",
      },
      { jobname: "image-sync-nightly", schedule: "0 2 * * *", command: "select image_sync.run_nightly()" },
      { jobname: "image-sync-watchdog", schedule: "* * * * *", command: "select image_sync.watchdog()" },
    ];
    expect(await jobs()).toEqual(expected);
    await lab.sql`select cron.schedule('image-sync-nightly', '0 2 * * *', 'select image_sync.run_nightly()')`;
    expect(await jobs()).toEqual(expected);
  });
});

describe("with the publishable key", () => {
  test("no RPC can be called", async () => {
    const countRuns = () => lab.sql`select count(*) from image_sync.runs`;
    const before = await countRuns();
    const anon = createTestClient(lab.target.url, lab.target.publishableKey ?? "sb_publishable_unknown");
    const calls: readonly [string, Record<string, unknown>][] = [
      ["image_sync_start", { p_run: crypto.randomUUID(), p_bucket: "part-images", p_mode: "sync" }],
      ["image_sync_report", { p_bucket: "part-images" }],
      ["image_sync_run", { p_run: crypto.randomUUID() }],
      ["image_sync_cancel", { p_run: crypto.randomUUID() }],
      ["image_sync_file", { p_bucket: "part-images", p_file: "a.jpg" }],
      ["image_sync_hand_off", { p_run: crypto.randomUUID(), p_worker: crypto.randomUUID(), p_leases: [] }],
      ["image_sync_finish", { p_run: crypto.randomUUID() }],
      ["image_sync_advance", {
        p_run: crypto.randomUUID(),
        p_worker: crypto.randomUUID(),
        p_lease: crypto.randomUUID(),
      }],
    ];
    for (const [name, args] of calls) {
      const { data, error }: { data: unknown; error: PostgrestError | null } = await anon.rpc(name, args);
      expect([name, data, error?.code]).toEqual([name, null, "42501"]);
    }
    expect(await countRuns()).toEqual(before);
  });
});

describe("settings refuse", () => {
  test.each([
    ["a chunk of more paths than Storage signs at once", { chunk_size: 1001 }],
    ["a chunk of nothing", { chunk_size: 0 }],
    ["extensions in upper case", { extensions: ["JPG"] }],
    ["extensions with their dot", { extensions: [".jpg"] }],
    ["no extension at all", { extensions: [] }],
    ["URLs that are due as soon as they are made", { signed_url_ttl: "1 day", renew_before: "1 day" }],
    ["URLs that live for a second", { signed_url_ttl: "1 second", renew_before: "0" }],
    ["a fraction above 1", { max_delete_fraction: 1.5 }],
    ["a negative count", { max_delete_count: -1 }],
    ["history that is pruned under an open run", { keep_chunks: "1 hour" }],
    ["chunks that are kept for ever", { keep_chunks: "10000 years", keep_runs: "10000 years" }],
    ["runs that are kept for ever", { keep_runs: "101 years" }],
    ["a fraction that is no number", { max_delete_fraction: "NaN" }],
    ["extensions with a line break", { extensions: ["jpg\n"] }],
    ["a pattern of two lines", { exclude: ["thumbs/%\ncache/%"] }],
    ["a pattern with a tab", { exclude: ["thumbs/\t%"] }],
    ["a bucket with a line break", { bucket_id: `bucket-${crypto.randomUUID()}\n` }],
    // Long by its years, short by its sum: what is added to a time goes through the years.
    ...["signed_url_ttl", "keep_chunks", "keep_runs"].map((name): [string, Record<string, string>] => [
      `parts of ${name} that take each other back`,
      { renew_before: "0", [name]: "10000 years -3599900 days" },
    ]),
    ["parts of renew_before that take each other back", { renew_before: "10000 years -3600000 days" }],
    ["parts of lease_duration that take each other back", {
      lease_duration: "90000 days -2160000 hours 1 minute",
    }],
    ["parts of retry_delay that take each other back", { retry_delay: "-90000 days 2160000 hours" }],
  ])("%s", async (_, settings) => {
    const row = { bucket_id: `bucket-${crypto.randomUUID()}`, ...settings };
    await expect(lab.sql`insert into image_sync.settings ${lab.sql(row)}`).rejects.toMatchObject({
      code: "23514",
    });
  });

  test.each(["signed_url_ttl", "renew_before", "lease_duration", "retry_delay", "keep_chunks", "keep_runs"])(
    "an endless %s",
    async (name) => {
      for (const value of ["infinity", "-infinity"]) {
        const row = { bucket_id: `bucket-${crypto.randomUUID()}`, [name]: value };
        // Before Postgres 17 no interval is endless.
        await expect(lab.sql`insert into image_sync.settings ${lab.sql(row)}`).rejects.toMatchObject({
          code: expect.stringMatching(/^(23514|22007)$/),
        });
      }
    },
  );
});

describe("an address", () => {
  const addresses: readonly [string, boolean][] = [
    ["https://files.example.com", true],
    ["https://ref.supabase.co", true],
    ["http://127.0.0.1:54321", true],
    ["http://localhost:54321", true],
    ["http://kong:8000", true],
    ["http://supabase_kong_part-images:8000", true],
    ["https://xn--bilder-mller-nlb.example", true],
    ["http://[::1]:54321", true],
    ["https://3d.example.com", true],
    ["https://example.com:65535", true],
    ["https://example.com\n", false],
    ["https://exam\nple.com", false],
    ["\nhttps://example.com", false],
    ["https://example.com\r", false],
    ["https://exa\tmple.com", false],
    ["https://example.com ", false],
    ["https://exam ple.com", false],
    ["https://example.com\u00a0", false],
    ["https://exam\u200bple.com", false],
    ["https://example.com/path", false],
    ["https://example.com/", false],
    ["https://example.com?a", false],
    ["https://example.com#a", false],
    ["https://user:secret@example.com", false],
    ["https://example.com\\path", false],
    ['https://exa"mple.com', false],
    ["https://exa<b>mple.com", false],
    ["https://example.com:", false],
    ["https://example.com:0", false],
    ["https://example.com:65536", false],
    ["https://example.com:80:80", false],
    ["https://:80", false],
    ["https://.", false],
    ["https://example..com", false],
    ["https://-example.com", false],
    ["https://example.com.", false],
    ["https://256.1.1.1", false],
    ["https://1.2.3", false],
    ["https://[]", false],
    ["https://", false],
    ["example.com", false],
    ["ftp://example.com", false],
    ["javascript:alert(1)", false],
    ["", false],
  ];
  const problem = { code: "23514" };

  test.each(addresses)("%j is one for readers: %s", async (public_url, isOne) => {
    const bucket_id = `bucket-${crypto.randomUUID()}`;
    const adding = lab.sql.begin(async (sql) => {
      await sql`insert into image_sync.settings ${sql({ bucket_id, public_url })}`;
      throw new Error("taken back");
    });
    await expect(adding).rejects.toMatchObject(isOne ? { message: "taken back" } : problem);
  });

  test.each(addresses)("%j is one that the function may announce: %s", async (url, isOne) => {
    const announcing = lab.sql.begin(async (sql) => {
      await sql`select public.image_sync_announce(${url}, '2.0.0')`;
      throw new Error("taken back");
    });
    await expect(announcing).rejects.toMatchObject(
      isOne
        ? { message: "taken back" }
        : { code: "22023", message: expect.stringContaining("Cannot announce") },
    );
  });
});
