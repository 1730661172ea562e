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

/** Its file lies in a bucket that no run looks at. */
async function fileElsewhereKeepsItsRecord(): Promise<void> {
  const setting = await planned();
  const elsewhere = await createRows(db.admin, { names: ["2.jpg"] });
  await db.admin`delete from image_sync.settings where bucket_id = ${elsewhere}`;
  await db.admin`
    update public.part_images set object_id = (select id from storage.objects where bucket_id = ${elsewhere})
    where bucket_id = ${setting.bucket} and file_name = 'gone-2.jpg'`;
  expect(await cleanUp(setting)).toMatchObject({
    totals: { removed: 2, skipped: 1 },
    problems: [{ name: "gone-2.jpg", code: "moved_away" }],
  });
}

async function rowOfAChildKeepsItsColumns(): Promise<void> {
  const setting = await planned();
  const { run } = await start(db.worker, setting.bucket, {
    mode: "cleanup",
    options: { confirm: setting.plan },
  });
  await db.admin.unsafe("create table public.photos (exposure integer) inherits (public.part_images)");
  try {
    await db
      .admin`delete from public.part_images where bucket_id = ${setting.bucket} and file_name = 'gone-2.jpg'`;
    await db.admin`insert into public.photos (bucket_id, file_name) values (${setting.bucket}, 'gone-2.jpg')`;
    await db.admin`grant all on public.photos to service_role`;
    await workToEnd(db.worker, run);
    expect(await db.admin`select from public.photos`).toHaveLength(1);
  } finally {
    await db.admin.unsafe("drop table public.photos");
  }
}

/** Cleans up, and restores what that removed. */
async function restored(setting: { bucket: string; plan: string }) {
  const cleanup = await cleanUp(setting);
  const { run } = await start(db.worker, setting.bucket, {
    mode: "restore",
    options: { restore: cleanup.id },
  });
  await workToEnd(db.worker, run);
  const [row] = await db.admin`select image_sync.run_document(${run}) as document`;
  return row?.["document"];
}

async function whatIsLeftOutIsNotRestored(): Promise<void> {
  const setting = await planned();
  await db.admin.unsafe(`
    create or replace function public.leave_out() returns trigger language plpgsql as $$ begin return null; end $$;
    create trigger leave_out before insert on public.part_images
      for each row when (new.bucket_id = '${setting.bucket}' and new.file_name = 'gone-1.jpg') execute function public.leave_out();`);
  try {
    expect(await restored(setting)).toMatchObject({ totals: { restored: 2, skipped: 1 } });
    const [row] = await db.admin`
      select count(*)::integer as kept from image_sync.archive where bucket_id = ${setting.bucket} and restored_at is null`;
    expect(row).toEqual({ kept: 1 });
  } finally {
    await db.admin.unsafe("drop trigger leave_out on public.part_images");
  }
}

async function arrayComesBackWhole(): Promise<void> {
  await db.admin.unsafe("alter table public.part_images add column sizes integer[] default '[0:1]={1,2}'");
  try {
    const setting = await planned();
    await restored(setting);
    const rows = await db.admin`
      select distinct sizes::text from public.part_images where bucket_id = ${setting.bucket}`;
    expect(rows).toEqual([{ sizes: "[0:1]={1,2}" }]);
  } finally {
    await db.admin.unsafe("alter table public.part_images drop column sizes");
  }
}

async function aKeptRowIsReadByItsColumnsNames(): Promise<void> {
  await db.admin.unsafe(
    "alter table public.part_images add column a text default 'a', add column b text default 'b'",
  );
  try {
    const setting = await planned();
    const cleanup = await cleanUp(setting);
    await db.admin.unsafe("alter table public.part_images drop column a, add column a text");
    const { run } = await start(db.worker, setting.bucket, {
      mode: "restore",
      options: { restore: cleanup.id },
    });
    await workToEnd(db.worker, run);
    const rows = await db.admin`
      select distinct a, b from public.part_images where bucket_id = ${setting.bucket} and file_name like 'gone%'`;
    expect(rows).toEqual([{ a: "a", b: "b" }]);
  } finally {
    await db.admin.unsafe("alter table public.part_images drop column if exists a, drop column if exists b");
  }
}

const writeRestore = "image_sync.write_restore(image_sync.runs, image_sync.item[])";
const removeRecords = "image_sync.remove_records(image_sync.runs, text[])";
const writeArchive = "image_sync.write_archive(image_sync.runs, image_sync.item[])";

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
      signature: "image_sync.referenced_names(text, text[], boolean)",
      from: "'%I operator(%s) r.%I%s', ours.attname, f.operator::regoper, theirs.attname,",
      to: "'%I = r.%3$I%4$s', ours.attname, f.operator::regoper, theirs.attname,",
    },
  },
  {
    mechanism: "the second look for the file",
    holds: uploadMeanwhileKeepsItsRecord,
    mutation: {
      signature: writeArchive,
      from: "if exists (",
      to: "if false and exists (",
    },
  },
  {
    mechanism: "trying records by halves",
    holds: oneRefusalCostsItself,
    mutation: {
      signature: "image_sync.write_rows(text, image_sync.runs, image_sync.item[], timestamptz)",
      from: "elsif v_size = 1 then",
      to: "else raise;",
    },
  },
  {
    mechanism: "the look for its file in every bucket",
    holds: fileElsewhereKeepsItsRecord,
    mutation: {
      signature: writeArchive,
      from: "and not exists (select from image_sync.place_of(r.bucket_id, r.file_name, r.object_id))",
      to: "",
    },
  },
  {
    mechanism: "leaving rows of other tables alone",
    holds: rowOfAChildKeepsItsColumns,
    mutation: {
      apply: `do $$ begin
        execute replace(pg_get_functiondef('${writeArchive}'::regprocedure), 'from only', 'from');
        execute replace(pg_get_functiondef('${removeRecords}'::regprocedure), 'from only', 'from');
      end $$`,
      undo: `do $$ begin
        execute replace(pg_get_functiondef('${writeArchive}'::regprocedure), 'from public.part_images', 'from only public.part_images');
        execute replace(pg_get_functiondef('${removeRecords}'::regprocedure), 'from public.part_images', 'from only public.part_images');
      end $$`,
    },
  },
  {
    mechanism: "counting the records that are back",
    holds: whatIsLeftOutIsNotRestored,
    mutation: { signature: writeRestore, from: "else v_back end", to: "else v_part.names end" },
  },
  {
    mechanism: "the text form of a row",
    holds: arrayComesBackWhole,
    mutation: { signature: writeRestore, from: "when a.row_text is null then", to: "when true then" },
  },
  {
    mechanism: "the names of the columns of a text form",
    holds: aKeptRowIsReadByItsColumnsNames,
    mutation: {
      signature: "image_sync.row_of(text, text[], anyelement)",
      from: "on c.name = now.name",
      to: "on c.place = now.place",
    },
  },
  {
    mechanism: "keeping the run of a cleanup that can be undone",
    holds: prunedRunCanBeRestored,
    mutation: {
      signature: "image_sync.prune_history()",
      from: "and a.restored_at is null",
      to: "and false",
    },
  },
];

describe.each(cases)("$mechanism", ({ holds, mutation }) => {
  test("does what its scenario asks for", () => holds());
  test("is missed by its scenario when it is gone", async () => {
    expect(await withMutation(db.admin, mutation, holds)).not.toBeNull();
  });
});
