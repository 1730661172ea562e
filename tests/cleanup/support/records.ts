/** Records and cleanups as the tests of cleanup make and look at them. */
import { type Run, runSchema } from "../../../supabase/functions/image-sync/contract.ts";
import { createBucket, type Lab, numberedNames, runToEnd } from "../../sync/support/lab.ts";

/** What {@linkcode createTidyBucket} makes. */
export type TidyOptions = {
  /** Columns of image_sync.settings that differ from their defaults. */
  readonly settings?: Readonly<Record<string, string | number | boolean | null>>;
  /** How many images with a record. */
  readonly images?: number;
  /** Records without a file. */
  readonly orphans?: readonly string[];
};

/** A bucket whose images all have a record, with orphans beside them. */
export async function createTidyBucket(
  lab: Lab,
  { settings = {}, images = 100, orphans = [] }: TidyOptions = {},
): Promise<string> {
  const bucket = await createBucket(lab, { settings, objects: numberedNames(images) });
  await addRecords(lab, bucket, [...numberedNames(images), ...orphans]);
  return bucket;
}

/** Signed records, each of an age of its own. */
export async function addRecords(lab: Lab, bucket: string, names: readonly string[]): Promise<void> {
  await lab.sql`
    insert into public.part_images (bucket_id, file_name, part_number, signed_url, signed_url_expires_at, created_at)
    select ${bucket}, n.name, regexp_replace(n.name, '\\.[^.]*$', ''), 'http://127.0.0.1/' || n.name,
      now() + interval '6 days', timestamptz '2024-02-29 12:34:56.789012+00' + n.place * interval '1 hour'
    from unnest(${[...names]}::text[]) with ordinality as n (name, place)`;
}

/** `gone-01.jpg` and so on. */
export function goneNames(count: number): string[] {
  return Array.from({ length: count }, (_, index) => `gone-${String(index + 1).padStart(2, "0")}.jpg`);
}

/** Whole rows as text by file name: every column, the owner's too, to the microsecond. */
export async function readWhole(lab: Lab, bucket: string): Promise<Readonly<Record<string, string>>> {
  const rows = await lab.sql<{ file_name: string; whole: string }[]>`
    select file_name, to_jsonb(p)::text as whole from public.part_images p where bucket_id = ${bucket}`;
  return Object.fromEntries(rows.map(({ file_name, whole }) => [file_name, whole]));
}

/** The rows that a cleanup moved to the archive, as {@linkcode readWhole} has them. */
export async function readArchive(lab: Lab, run: string): Promise<Readonly<Record<string, string>>> {
  const rows = await lab.sql<{ file_name: string; whole: string }[]>`
    select file_name, record::text as whole from image_sync.archive where run_id = ${run}`;
  return Object.fromEntries(rows.map(({ file_name, whole }) => [file_name, whole]));
}

/** A dry run, to its end. */
export function dryRun(lab: Lab, bucket: string): Promise<Run> {
  return runToEnd(lab, bucket, { mode: "cleanup" });
}

/** Applies a list, to the end. */
export function apply(
  lab: Lab,
  bucket: string,
  plan: string,
  more: Record<string, unknown> = {},
): Promise<Run> {
  return runToEnd(lab, bucket, { mode: "cleanup", confirm: plan, ...more });
}

/** Undoes a cleanup, to the end. */
export function restore(lab: Lab, bucket: string, cleanup: string): Promise<Run> {
  return runToEnd(lab, bucket, { mode: "restore", restore: cleanup });
}

/** Opens a run that applies something, without a worker. */
export async function openWithoutWorker(
  lab: Lab,
  bucket: string,
  mode: "cleanup" | "restore",
  plan: string,
): Promise<Run> {
  const options = mode === "cleanup" ? { confirm: plan } : { restore: plan };
  return (await lab.database.start({ run: crypto.randomUUID(), bucket, mode, options })).run;
}

/** Does one step of a run, as a worker that is gone after it. */
export async function stepOnce(lab: Lab, run: string): Promise<void> {
  await lab.database.advance({ run, worker: crypto.randomUUID(), lease: crypto.randomUUID(), closing: null });
}

/** Cancels a run. */
export async function cancel(lab: Lab, run: string): Promise<Run> {
  return runSchema.parse(await (await lab.call({ method: "DELETE", query: `?run=${run}` })).json());
}

/** Names of a run's problems by code. */
export function namesByCode(run: Run): Readonly<Record<string, readonly string[]>> {
  const named: Record<string, string[]> = {};
  for (const { code, name } of run.problems) (named[code] ??= []).push(name ?? "");
  return named;
}

/**
 * Makes every removal or return of a record of a bucket slow enough for one step of a run to end with its first chunk (a step
 * walks on for 250 ms). Returns how to undo it: what is left on a Supabase that is there for others would slow them too.
 */
export async function slowDown(lab: Lab, bucket: string): Promise<() => Promise<void>> {
  const name = `test_slow_${bucket.replaceAll("-", "_")}`;
  await lab.sql.unsafe(`
    create function public.${name}() returns trigger language plpgsql set search_path = '' as $$
    begin
      perform pg_sleep(0.15);
      return null;
    end $$;
    create trigger ${name}_gone after delete on public.part_images
      for each row when (old.bucket_id = '${bucket}') execute function public.${name}();
    create trigger ${name}_back after insert on public.part_images
      for each row when (new.bucket_id = '${bucket}') execute function public.${name}();`);
  return async () => {
    await lab.sql.unsafe(`drop function if exists public.${name}() cascade`);
  };
}
