import type { ReservedSql } from "postgres";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type BareStack, openBareStack } from "../reliability/support/bare_stack.ts";
import { type Mutation, withMutation } from "../reliability/support/mutation.ts";
import { createRows, start, workToEnd } from "../reliability/support/protocol.ts";

// What keeps a cleanup from taking what is not its to take, each scenario with the mechanism and without it.
let db: BareStack;
beforeAll(async () => {
  db = await openBareStack();
  await db.admin.unsafe(
    "create table public.orders (id serial primary key, image_id uuid references public.part_images (id) on delete cascade)",
  );
});
afterAll(() => db?.close());

const gone = ["gone-1.jpg", "gone-2.jpg", "gone-3.jpg"];

async function planned(): Promise<{ readonly bucket: string; readonly plan: string }> {
  const names = Array.from({ length: 40 }, (_, index) => `${index}.jpg`);
  const bucket = await createRows(db.admin, { names });
  await db.admin`
    insert into public.part_images (bucket_id, file_name)
    select ${bucket}, n from unnest(${db.admin.array([...names, ...gone])}::text[]) as n`;
  const { run } = await start(db.worker, bucket, { mode: "cleanup" });
  await workToEnd(db.worker, run);
  return { bucket, plan: run };
}

async function cleanUp({ bucket, plan }: { bucket: string; plan: string }) {
  const { run } = await start(db.worker, bucket, { mode: "cleanup", options: { confirm: plan } });
  await workToEnd(db.worker, run);
  const [row] = await db.admin`select image_sync.run_document(${run}) as document`;
  return row?.["document"];
}

async function beside(
  hold: (session: ReservedSql) => Promise<unknown>,
  act: (session: ReservedSql) => Promise<unknown>,
): Promise<void> {
  const session = await db.admin.reserve();
  try {
    await session`begin`;
    await hold(session);
    const acting = act(session);
    acting.catch(() => {}); // where it is given up, what becomes of it afterwards is of no interest
    await Promise.race([
      acting,
      new Promise((_, reject) => setTimeout(reject, 4_000, new Error("still waiting after 4 s"))),
    ]);
    await session`commit`;
  } finally {
    await session`rollback`;
    session.release();
  }
}

async function referenceKeepsItsRecord(): Promise<void> {
  const setting = await planned();
  await beside(
    (session) =>
      session`
      insert into public.orders (image_id)
      select id from public.part_images where bucket_id = ${setting.bucket} and file_name = 'gone-2.jpg'`,
    async () => {
      expect(await cleanUp(setting)).toMatchObject({
        totals: { removed: 2, skipped: 1 },
        problems: [{ code: "locked" }],
      });
    },
  );
}

async function referenceThatIsCommittedMeanwhileStays(): Promise<void> {
  const setting = await planned();
  await beside(
    (session) =>
      session`
      insert into public.orders (image_id)
      select id from public.part_images where bucket_id = ${setting.bucket} and file_name = 'gone-2.jpg'`,
    async (session) => {
      const committed = new Promise((resolve) => setTimeout(resolve, 150)).then(() => session`commit`);
      await Promise.all([cleanUp(setting), committed]);
    },
  );
  const [row] = await db.admin`
    select count(*)::integer as orders from public.orders o join public.part_images p on p.id = o.image_id
    where p.bucket_id = ${setting.bucket}`;
  expect(row).toEqual({ orders: 1 });
}

async function committedReferenceKeepsItsRecord(): Promise<void> {
  const setting = await planned();
  await db.admin`
    insert into public.orders (image_id)
    select id from public.part_images where bucket_id = ${setting.bucket} and file_name = 'gone-2.jpg'`;
  expect(await cleanUp(setting)).toMatchObject({
    totals: { removed: 2, skipped: 1 },
    problems: [{ code: "referenced" }],
  });
}

async function uploadMeanwhileKeepsItsRecord(): Promise<void> {
  const setting = await planned();
  await db.admin.unsafe(`
    create or replace function public.upload_meanwhile() returns trigger language plpgsql security definer as $$
    begin insert into storage.objects (bucket_id, name) values (old.bucket_id, 'gone-2.jpg') on conflict do nothing; return old; end $$;
    create trigger upload_meanwhile before delete on public.part_images
      for each row when (old.bucket_id = '${setting.bucket}' and old.file_name = 'gone-1.jpg') execute function public.upload_meanwhile();`);
  try {
    expect(await cleanUp(setting)).toMatchObject({
      totals: { removed: 2, skipped: 1 },
      problems: [{ name: "gone-2.jpg", code: "file_is_back" }],
    });
  } finally {
    await db.admin.unsafe("drop trigger upload_meanwhile on public.part_images");
  }
}

async function oneRefusalCostsItself(): Promise<void> {
  const setting = await planned();
  await db.admin.unsafe(`
    create or replace function public.refuse_removal() returns trigger language plpgsql as $$ begin raise exception 'no'; end $$;
    create trigger refuse_removal before delete on public.part_images
      for each row when (old.bucket_id = '${setting.bucket}' and old.file_name = 'gone-1.jpg') execute function public.refuse_removal();`);
  try {
    expect(await cleanUp(setting)).toMatchObject({ totals: { removed: 2, skipped: 1 } });
  } finally {
    await db.admin.unsafe("drop trigger refuse_removal on public.part_images");
  }
}

async function prunedRunCanBeRestored(): Promise<void> {
  const setting = await planned();
  await cleanUp(setting);
  const [cleanup] = await db.admin<{ id: string }[]>`
    select distinct run_id as id from image_sync.archive where bucket_id = ${setting.bucket}`;
  await cleanUp(await planned()); // some other bucket's, to be left alone
  await db
    .admin`update image_sync.runs set finished_at = now() - interval '1 year', started_at = now() - interval '1 year' where id = ${
    cleanup?.id ?? ""
  }`;
  await db
    .admin`insert into image_sync.runs (bucket_id, mode, trigger, finished_at, outcome) values (${setting.bucket}, 'cleanup', 'request', now(), 'succeeded')`;
  await db.admin`select image_sync.prune_history()`;
  expect(await db.admin`select from image_sync.runs where id = ${cleanup?.id ?? ""}`).toHaveLength(1);
}

const removeRecords = "image_sync.remove_records(image_sync.runs, text[])";

/** To citext the orders' AB is the records' ab. */
async function referenceInOtherCaseKeepsItsRecord(): Promise<void> {
  await db.admin.unsafe(`
    create extension if not exists citext with schema extensions;
    alter table public.part_images add column sku extensions.citext unique;
    create table public.sales (sku extensions.citext references public.part_images (sku) on delete cascade)`);
  try {
    const setting = await planned();
    await db
      .admin`update public.part_images set sku = 'ab' where bucket_id = ${setting.bucket} and file_name = 'gone-2.jpg'`;
    await db.admin`insert into public.sales values ('AB')`;
    expect(await cleanUp(setting)).toMatchObject({ totals: { removed: 2, skipped: 1 } });
  } finally {
    await db.admin.unsafe("drop table public.sales; alter table public.part_images drop column sku");
  }
}

const cases: readonly {
  readonly mechanism: string;
  readonly holds: () => Promise<void>;
  readonly mutation: Mutation;
}[] = [
  {
    mechanism: "the lock before the look",
    holds: referenceThatIsCommittedMeanwhileStays,
    mutation: { signature: removeRecords, from: "for update skip locked", to: "" },
  },
  {
    mechanism: "passing over what others hold",
    holds: referenceKeepsItsRecord,
    mutation: { signature: removeRecords, from: "for update skip locked", to: "for update" },
  },
  {
    mechanism: "the look for references",
    holds: committedReferenceKeepsItsRecord,
    mutation: {
      signature: removeRecords,
      from: "v_referenced := image_sync.referenced_names(p_run.bucket_id, v_locked);",
      to: "v_referenced := '{}';",
    },
  },
  {
    mechanism: "comparing as the foreign key compares",
    holds: referenceInOtherCaseKeepsItsRecord,
    mutation: {
      signature: "image_sync.referenced_names(text, text[])",
      from: "'%I operator(%I.%s) r.%I%s', ours.attname, n.nspname, o.oprname, theirs.attname,",
      to: "'%I = r.%4$I%5$s', ours.attname, n.nspname, o.oprname, theirs.attname,",
    },
  },
  {
    mechanism: "the second look for the file",
    holds: uploadMeanwhileKeepsItsRecord,
    mutation: {
      signature: "image_sync.archive_checked(image_sync.runs, text[])",
      from: "if exists (",
      to: "if false and exists (",
    },
  },
  {
    mechanism: "trying records one by one",
    holds: oneRefusalCostsItself,
    mutation: {
      signature: removeRecords,
      from: "v_rest := image_sync.archive_one_by_one(p_run, v_free);",
      to: "raise;",
    },
  },
  {
    mechanism: "keeping the run of a cleanup that can be undone",
    holds: prunedRunCanBeRestored,
    mutation: { signature: "image_sync.prune_history()", from: "and a.restored_at is null", to: "and false" },
  },
];

describe.each(cases)("$mechanism", ({ holds, mutation }) => {
  test("does what its scenario asks for", () => holds());
  test("is missed by its scenario when it is gone", async () => {
    expect(await withMutation(db.admin, mutation, holds)).not.toBeNull();
  });
});
