/**
 * Everything that the report tells the operator to look at: the one place that has its words. The database says which of it there is
 * (`supabase/schemas/220_findings.sql`): codes, counts, samples and the numbers that the words need.
 */
import { z } from "zod";
import {
  type Action,
  type BucketList,
  bucketListSchema,
  bucketSummarySchema,
  countSchema,
  type Finding,
  findingSchema,
  modeSchema,
  problemAnswerSchema,
  type Report,
  reportSchema,
  timestampSchema,
} from "./contract.ts";
import { renderTime } from "./text/words.ts";

const numbersSchema = z.object({
  /** Of an empty bucket: whether it has records. */
  has_records: z.boolean(),
  /** Of what readers see: whether no URL that was looked at showed an image, and what answered in Storage's place. */
  none_shown: z.boolean(),
  said: z.string(),
  /** The extensions that the settings have. */
  extensions: z.array(z.string()),
  /** Files that were moved away, and whether the bucket that the first went to has settings. */
  files: z.array(z.object({
    name: z.string(),
    bucket: z.string(),
    to: z.string().optional(),
    is_followed: z.boolean().optional(),
  })),
  has_settings: z.boolean(),
  strays: z.array(z.object({ bucket_id: z.string(), bucket_exists: z.boolean(), records: countSchema })),
  renew_before: z.string(),
  longest_absence_days: z.number(),
  /** The run that stands still. */
  run: z.looseObject({
    id: z.string(),
    mode: modeSchema,
    plan_id: z.string().optional(),
    bucket_is_gone: z.boolean().optional(),
    since: timestampSchema,
    reason: z.string(),
  }),
  /** SQL that makes the jobs that are missing. */
  lines: z.string(),
  jobs: z.array(z.object({ name: z.string(), message: z.string().optional(), at: timestampSchema })),
  moved_at: timestampSchema,
  function_url: z.string(),
  status: z.number(),
  error: z.string(),
}).partial();
type Numbers = z.infer<typeof numbersSchema>;

/** What the database found. One of a version before 2 brings its words along. */
const foundSchema = z.union([
  findingSchema,
  findingSchema.pick({ code: true, count: true, samples: true, since: true }).extend({
    // Of another shape in a newer schema: a finding without its numbers is better than no report.
    numbers: numbersSchema.catch({}),
  }),
]);
type Found = z.infer<typeof foundSchema>;

/** A report before its words; `healthy` is what its counts say. */
export const foundReportSchema = reportSchema.extend({ findings: z.array(foundSchema) });

/** What the database answers with. */
export const foundReportAnswerSchema = z.union([
  problemAnswerSchema,
  z.object({ report: foundReportSchema }),
]);

/** A page of buckets before errors and warnings are counted. */
export const foundBucketsSchema = bucketListSchema.extend({
  buckets: z.array(
    bucketSummarySchema.partial({ errors: true, warnings: true }).extend({
      findings: z.array(foundSchema).optional(),
    }),
  ),
});

type Level = Finding["level"];
const LEVELS = ["error", "warning", "info"] as const;

/** What the words of a finding may speak of. */
type Told = { readonly bucket: string; readonly numbers: Numbers; readonly report: FoundReport };
type FoundReport = z.infer<typeof foundReportSchema>;

/** A kind of finding. */
export type FindingKind = {
  /** Which part of the operations page explains it. */
  readonly about: (typeof SUBJECTS)[number];
  readonly level: Level | ((numbers: Numbers) => Level);
  readonly title: string;
  /** What a person does. Where it depends on what was found, `docs` is what the operations page says instead. */
  readonly remedy: string | ((told: Told) => string);
  readonly docs?: string;
  /** What a machine does; absent where only a person can do something. */
  readonly action?: (told: Told) => Action | null;
  /** Samples that are made of numbers. */
  readonly samples?: (told: Told) => readonly string[];
  /** The findings that merely follow from this one: they are left out beside it. */
  readonly explains?: readonly string[];
  /** The link of `doctor` that it breaks, where it is not of single files. */
  readonly link?: DoctorLink;
  /** The state by which the window's gallery shows its files. */
  readonly shownAs?: string;
};

/** The parts of the list in `docs/operations.md`. */
export const SUBJECTS = [
  "The bucket",
  "Who may do what",
  "Files",
  "Files and records",
  "URLs",
  "What readers see",
  "Runs",
  "The schedule",
] as const;

/** The links of the chain that a report tells of, outside in, with what `doctor` says of one that holds. */
export const DOCTOR_LINKS = {
  "bucket": "it exists and holds files",
  "rights on storage.objects": "the function may list the bucket",
  "rights on part_images": "the function may use the table",
  "jobs of pg_cron": "all three are there and ran well",
  "calls of the schedule": "the function is reached",
  "runs": "the last sync went through, and none stands still",
  "signed URLs": "those that were looked at show an image",
  "who else can see them": "nobody without a key",
} as const;
export type DoctorLink = keyof typeof DOCTOR_LINKS;

const request = (mode: "sync" | "verify" | "cleanup", more = {}) => ({ bucket }: Told): Action => ({
  request: { mode, bucket, ...more },
});
const SYNC = request("sync");
const VERIFY = request("verify");
const sql = (words: (told: Told) => string) => (told: Told): Action => ({ sql: words(told) });
const literal = (text: string) => `'${text.replaceAll("'", "''")}'`;
const settingsFor = (bucket: string): Action => ({
  sql: `insert into image_sync.settings (bucket_id) values (${literal(bucket)});`,
});
const byWhatIsShown = ({ none_shown: isNone }: Numbers): Level => isNone === true ? "error" : "warning";
const withoutDot = (text: string) => text.replace(/\.+$/, "");

/** Of pictures, whatever the settings say. */
const PICTURES = /^(jpe?g|png|gif|webp|bmp|svg|ico|hei[cf]|tiff?|avif)$/;
const SELDOM_SHOWN = /^(hei[cf]|tiff?|avif)$/;
const picturesLeftOut = ({ numbers: { extensions = [] }, report }: Told) =>
  Object.keys(report.bucket.by_extension).filter((each) => PICTURES.test(each) && !extensions.includes(each))
    .toSorted();

/** The column that must have a value and gets none, where that is why the last sync could not insert. */
const columnWithoutValue = ({ report }: Told): string | undefined =>
  report.last_runs.sync?.problems.flatMap(({ detail }) =>
    /^null value in column "(.+)" of relation "part_images"/.exec(detail ?? "")?.[1] ?? []
  )[0];

const unnamed = (bucket: string, condition: string, reason: string) =>
  `with taken as (delete from public.part_images p where p.bucket_id = ${literal(bucket)}${condition} ` +
  "returning coalesce(p.file_name, '') as file_name, to_jsonb(p.*) as record) " +
  "insert into image_sync.archive (bucket_id, file_name, record, reason) " +
  `select ${literal(bucket)}, taken.file_name, taken.record, '${reason}' from taken;`;

/** No bucket can be called so, and none can have settings by that name. */
// deno-lint-ignore no-control-regex
const NO_BUCKET = /^$|[\u0001-\u001f\u007f-\u009f\u2028\u2029]/;

export const FINDINGS: Readonly<Record<string, FindingKind>> = {
  bucket_missing: {
    about: "The bucket",
    level: "error",
    title: "The bucket does not exist",
    remedy: ({ bucket }) =>
      `Create the private bucket ${bucket} under Storage and upload its files. If it is gone for good, archive its records with a cleanup that says so (bucket_is_gone) and take it out of the settings.`,
    docs:
      "create it (private); if it is gone for good, `npm run cleanup -- --bucket-is-gone` archives its records and `npm run buckets -- remove NAME` takes it out of the settings",
    action: sql(({ bucket }) =>
      `insert into storage.buckets (id, name, public) values (${literal(bucket)}, ${literal(bucket)}, false);`
    ),
    explains: ["last_run_failed"],
    link: "bucket",
  },
  bucket_empty: {
    about: "The bucket",
    level: ({ has_records: hasRecords }) => hasRecords === true ? "error" : "warning",
    title: "No files found in bucket",
    remedy: ({ bucket }) =>
      `Check that ${bucket} is the right bucket, upload its files there, then start a sync. Nothing is removed from the table for an empty bucket.`,
    docs:
      "is it the right bucket, was the upload finished? Nothing is removed from the table for an empty bucket; without records it is a warning",
    action: SYNC,
    link: "bucket",
  },
  listing_incomplete: {
    about: "The bucket",
    level: "error",
    title: "The last run stopped before the end of the bucket",
    remedy:
      "Files beyond that point were not looked at. A run lists page by page to the very end and has no limit of 100 files: see the run's error, mend its cause and start a sync.",
    action: SYNC,
    link: "runs",
  },
  bucket_public: {
    about: "Who may do what",
    level: "warning",
    title: "The bucket is public",
    remedy: ({ bucket }) =>
      `Anyone can fetch every file without a signed URL. Make bucket ${bucket} private under Storage, Edit bucket.`,
    docs: "anyone can fetch every file without a signed URL: make it private under Storage, Edit bucket",
    action: sql(({ bucket }) => `update storage.buckets set public = false where id = ${literal(bucket)};`),
    link: "who else can see them",
  },
  listing_failed: {
    about: "Who may do what",
    level: "error",
    title: "Error listing files",
    remedy:
      "storage.objects could not be read: service_role lacks the rights, or the function uses another key. Grant them, then start a sync.",
    action: sql(() =>
      "grant usage on schema storage to service_role; grant select on storage.objects, storage.buckets to service_role;"
    ),
    explains: ["last_run_failed", "listing_incomplete"],
    link: "rights on storage.objects",
  },
  table_refused: {
    about: "Who may do what",
    level: "error",
    title: "The function may not use the table",
    remedy:
      "The table was adopted as it was, and its grants do not let service_role work. Grant them, then start a sync.",
    action: sql(() => "grant select, insert, update, delete on public.part_images to service_role;"),
    explains: ["last_run_failed"],
    link: "rights on part_images",
  },
  table_public: {
    about: "Who may do what",
    level: "warning",
    title: "Anyone with the publishable key can read the signed URLs",
    remedy:
      "The role anon may select from public.part_images. Unless that is wanted, revoke it, or enable row level security on the table.",
    action: sql(() => "revoke select on public.part_images from anon, public;"),
    link: "who else can see them",
  },
  excluded_extensions: {
    about: "Files",
    level: "info",
    title: "Files left out because of their extension",
    remedy: (told) => {
      const pictures = picturesLeftOut(told);
      const hasNone = Object.hasOwn(told.report.bucket.by_extension, "(none)") &&
        told.numbers.extensions?.includes("") !== true;
      return [
        pictures.length === 0
          ? "None of them is a picture by its extension: nothing to do."
          : "To include the pictures among them, add their extensions; then start a sync.",
        pictures.some((each) => SELDOM_SHOWN.test(each))
          ? "Neither every spreadsheet nor every browser shows heic, heif, tif, tiff or avif."
          : "",
        hasNone ? "Files without an extension are included by an empty one in that list." : "",
      ].filter(Boolean).join(" ");
    },
    docs: "to include the pictures among them, run the SQL that the finding shows; then sync",
    action: (told) => {
      const pictures = picturesLeftOut(told);
      return pictures.length === 0 ? null : {
        sql: `update image_sync.settings set extensions = extensions || '{${
          pictures.join(",")
        }}'::text[] where bucket_id = ${literal(told.bucket)};`,
      };
    },
    shownAs: "other",
  },
  excluded_names: {
    about: "Files",
    level: "info",
    title: "Hidden and system files left out by name",
    remedy: "Their names match a pattern of the setting exclude, so they have no record.",
    shownAs: "excluded",
  },
  empty_files: {
    about: "Files",
    level: "warning",
    title: "Files that are empty",
    remedy:
      "They have a size of 0 and show nothing, so they count as no images. Upload them again, then start a sync.",
    action: SYNC,
    shownAs: "empty",
  },
  several_files: {
    about: "Files",
    level: "warning",
    title: "Several files for one part number",
    remedy:
      "Each file has its own record; a look-up by part number finds one of them. Keep one file for each part number and delete or rename the others, then start a sync; nothing is overwritten.",
    action: SYNC,
    shownAs: "several",
  },
  unsignable_names: {
    about: "Files",
    level: "warning",
    title: "Files whose name Storage opens no URL of",
    remedy:
      "A name that Storage does not open (non-ASCII characters, # % ~ ^ | [ ] { } < > quotes, tabs, a path segment . or ..) has to be changed: rename the file, then start a sync.",
    docs:
      "rename files with non-ASCII characters, `# % ~ ^ [ ] { } < >`, a vertical bar, quotes, tabs, or a path segment `.` or `..`; then sync",
    action: SYNC,
    explains: ["last_run_partial"],
  },
  missing: {
    about: "Files and records",
    level: "warning",
    title: "Images without a record",
    remedy: "Start a sync; the nightly run does it too.",
    action: SYNC,
    shownAs: "missing",
  },
  orphaned: {
    about: "Files and records",
    level: "warning",
    title: "Records without a file",
    remedy: ({ report }) =>
      "If the files are gone for good, start a cleanup: it lists the records first and removes them only when that list is confirmed. If they should be there, restore the files." +
      (report.last_runs.sync?.totals["inserted"] === report.difference.orphaned.count
        ? " Just as many files came as went: if they were copied and deleted instead of moved, their records could not follow. Move files with Storage's own move, which keeps their records."
        : ""),
    docs:
      "files gone for good: [clean up](#cleaning-up-and-undoing-it). Files lost: upload them again, the records fit",
    action: request("cleanup"),
    shownAs: "orphaned",
  },
  collided: {
    about: "Files and records",
    level: "warning",
    title: "Images whose record the table refuses",
    remedy: (told) => {
      const column = columnWithoutValue(told)?.replaceAll('"', '""');
      return column === undefined
        ? "Another record has the same part number, or a constraint or trigger of the table says no. Rename the file, or change the other record, then start a sync."
        : `Column "${column}" must have a value, and a sync has none for it. Give it a default, or run: alter table public.part_images alter column "${column}" drop not null; then start a sync.`;
    },
    docs:
      "part number taken, a required column, a constraint, a trigger: rename the file, or change the record that has its place; then sync",
    action: SYNC,
    explains: ["last_run_partial"],
  },
  moved: {
    about: "Files and records",
    level: "warning",
    title: "Files that were renamed or moved",
    remedy:
      "Their URLs open nothing any more. Start a sync: it takes each record along to the new name and signs it; the nightly run does it too.",
    action: SYNC,
  },
  moved_away: {
    about: "Files and records",
    level: "warning",
    title: "Files that were moved away",
    remedy: ({ numbers: { files = [], has_settings: hasSettings } }) =>
      "Their records are here still, with URLs that open nothing" + (
        hasSettings !== true
          ? ", and no sync looks at the bucket that they went to. Give it settings and start a sync of it, or move them back."
          : files[0]?.is_followed === false
          ? ", and no sync takes them along: what they are called now is left out, or they are empty. Rename them, or change what is left out; then start a sync."
          : ": a sync of the bucket that they went to takes them along. Start a sync of that bucket."
      ),
    docs:
      "the printed command syncs the bucket that they went to, which takes them along; where no sync does, move the file back or change the record. No cleanup removes such a record",
    action: ({ bucket, numbers: { files = [], has_settings: hasSettings } }) => {
      const to = files[0]?.bucket ?? bucket;
      return hasSettings === true ? { request: { mode: "sync", bucket: to } } : settingsFor(to);
    },
    samples: ({ bucket, numbers: { files = [] } }) =>
      files.map(({ name, bucket: other, to = name }) =>
        `${name} → ${other === bucket ? to : `${to} (bucket ${other})`}`
      ),
    link: "signed URLs",
  },
  not_moved: {
    about: "Files and records",
    level: "warning",
    title: "Records that could not follow their files",
    remedy:
      "The problems of the last sync say why of each: somebody held the record (the next sync settles it), or a constraint or trigger of the table refused its new name or part number. Mend that, then start a sync.",
    action: SYNC,
    explains: ["last_run_partial"],
  },
  unnamed_records: {
    about: "Files and records",
    level: "warning",
    title: "Records without a file name",
    remedy:
      "They cannot be matched with any file. Give them their file names, or move them to the archive; then start an analyze.",
    action: sql(({ bucket }) => unnamed(bucket, " and coalesce(p.file_name, '') = ''", "unnamed")),
  },
  stray_records: {
    about: "Files and records",
    level: "warning",
    title: "Records of buckets that no run looks at",
    remedy:
      "Nothing renews their URLs. A bucket that exists is kept in step once it has settings; the records of one that is gone are archived by a cleanup that says so: bucket by bucket, beginning with the first.",
    action: ({ bucket, numbers: { strays: [first] = [] } }) => {
      const stray = first?.bucket_id ?? bucket;
      if (first?.bucket_exists === true) return settingsFor(stray);
      if (NO_BUCKET.test(stray)) return { sql: unnamed(stray, "", "orphaned") };
      return { request: { mode: "cleanup", bucket: stray, bucket_is_gone: true } };
    },
    samples: ({ numbers: { strays = [] } }) =>
      strays.map(({ bucket_id: name, records, bucket_exists: exists }) =>
        `${name}: ${records}${records >= 10_000 ? " or more" : ""} ${records === 1 ? "record" : "records"}, ${
          exists ? "a bucket without settings" : "the bucket does not exist"
        }`
      ),
  },
  signing_failed: {
    about: "URLs",
    level: "error",
    title: "Error signing URLs",
    remedy: ({ report }) =>
      (report.last_runs.sync?.error ? `${report.last_runs.sync.error.detail}. ` : "") +
      "The Storage API did not sign. See the run's error and problems; check that the bucket is the one in the settings, that the function has a secret key, and the status of Storage. Then start a sync.",
    docs: "the run's error says why: a key without rights, the wrong bucket, Storage down. Then sync",
    action: SYNC,
    explains: ["last_run_failed", "last_run_partial", "unsignable_names", "unsigned", "listing_incomplete"],
    link: "runs",
  },
  unsigned: {
    about: "URLs",
    level: "warning",
    title: "Records without a URL",
    remedy: "Start a sync. If they stay, see the problems of that run.",
    action: SYNC,
    shownAs: "unsigned",
    link: "signed URLs",
  },
  row_locked: {
    about: "URLs",
    level: "warning",
    title: "Records that somebody else held",
    remedy:
      "Other sessions had them locked, so they were left as they were; the next sync settles them. If it does not, look for who stays: select pid, usename, application_name, xact_start from pg_stat_activity where state like 'idle in transaction%' order by xact_start;",
    action: SYNC,
    explains: ["last_run_partial", "missing"],
    link: "runs",
  },
  database_timeout: {
    about: "URLs",
    level: "warning",
    title: "Records that the database could not write in time",
    remedy:
      "Each of them alone took longer than the statement timeout of the Data API. Look at the triggers of the table: select tgname, tgfoid::regproc from pg_trigger where tgrelid = 'public.part_images'::regclass and not tgisinternal; Then start a sync.",
    action: SYNC,
    explains: ["last_run_partial", "missing"],
    link: "runs",
  },
  url_refused: {
    about: "URLs",
    level: "warning",
    title: "Records that the table does not let be changed",
    remedy:
      "A constraint or trigger of the table refused their new URL. See the problems of the last sync for its words, mend that, then start a sync.",
    action: SYNC,
    explains: ["last_run_partial"],
  },
  expired: {
    about: "URLs",
    level: "error",
    title: "Records whose URL has expired",
    remedy: "Start a sync: it signs them again. Then see why the nights before did not.",
    action: SYNC,
    shownAs: "expired",
    link: "signed URLs",
  },
  renewed_too_late: {
    about: "URLs",
    level: "warning",
    title: "URLs will die before the schedule renews them",
    remedy: ({ report, numbers: { renew_before: margin = "time" } }) =>
      `The first URL dies at ${
        renderTime(report.records.soonest_expiry ?? "an unknown time")
      }, and no scheduled sync lies in the ${margin} before it. Let URLs live longer and be renewed earlier than the time between two nights, then start a sync.`,
    docs:
      "make `renew_before` longer than the time between two nights, and `signed_url_ttl` longer than that",
    action: sql(({ bucket }) =>
      `update image_sync.settings set signed_url_ttl = greatest(signed_url_ttl, '7 days'), renew_before = greatest(renew_before, '2 days') where bucket_id = ${
        literal(bucket)
      };`
    ),
    link: "signed URLs",
  },
  register_opened_rarely: {
    about: "URLs",
    level: "info",
    title: "Registers that are opened less often than their URLs live",
    remedy:
      "What their sheets show has died meanwhile: they see no picture until they refresh. Let every URL have more life left than it takes them to look again, then start a sync: for a register that is opened once a month signed_url_ttl is 45 days and renew_before a month. A reader who has left should be revoked.",
    action: sql(({ bucket, numbers: { longest_absence_days: days = 30 } }) =>
      `update image_sync.settings set signed_url_ttl = greatest(signed_url_ttl, '${
        Math.max(45, Math.min(365, Math.ceil(1.4 * days)))
      } days'), renew_before = greatest(renew_before, '${days} days') where bucket_id = ${literal(bucket)};`
    ),
    link: "signed URLs",
  },
  file_lost: {
    about: "What readers see",
    level: byWhatIsShown,
    title: "Files that are lost or empty in Storage",
    remedy:
      "Storage has their row and no content: no URL shows them. Upload them again, then start a verify. Where no file shows, look at Storage first: a database that was restored brings no files along.",
    action: VERIFY,
    shownAs: "broken",
    link: "signed URLs",
  },
  file_gone: {
    about: "What readers see",
    level: byWhatIsShown,
    title: "Files that were deleted while they were looked at",
    remedy: "Their records are orphaned from now on: start a sync, and then see what it says of them.",
    action: SYNC,
    shownAs: "broken",
    link: "signed URLs",
  },
  not_an_image: {
    about: "What readers see",
    level: byWhatIsShown,
    title: "Files that are no images",
    remedy:
      "What they begin with is of no kind of image, whatever their names say. Upload the right files, or leave them out by the setting exclude; then start a verify.",
    action: VERIFY,
    shownAs: "broken",
    link: "signed URLs",
  },
  wrong_content_type: {
    about: "What readers see",
    level: byWhatIsShown,
    title: "Images stored under a wrong content type",
    remedy:
      "Browsers and spreadsheets may not show them. Upload them again with their content type (image/jpeg), then start a verify.",
    action: VERIFY,
    shownAs: "broken",
    link: "signed URLs",
  },
  url_rejected: {
    about: "What readers see",
    level: byWhatIsShown,
    title: "URLs that Storage rejects",
    remedy:
      "The key that signs URLs was rotated, or the URL was changed by hand. They have to be signed anew: start a sync that renews all.",
    docs:
      "[the URL-signing key was rotated](#after-a-key-was-rotated), or the URL was changed by hand: `npm run sync -- --renew all`; where it was every URL that was opened, the next sync does so by itself",
    action: request("sync", { renew: "all" }),
    shownAs: "broken",
    link: "signed URLs",
  },
  unreachable: {
    about: "What readers see",
    level: byWhatIsShown,
    title: "URLs that could not be opened",
    remedy: ({ numbers: { said } }) =>
      `${
        withoutDot(
          said ??
            "Storage, or the address that readers use (the setting public_url), gave no answer that says anything of the file",
        )
      }. Nothing was changed. Mend that, then start a verify.`,
    docs:
      "something else answered in Storage's place, or nothing, which [says nothing of the file](#answers-that-say-nothing-of-a-file). The finding quotes the answer: mend that, then `npm run verify`",
    action: VERIFY,
    shownAs: "broken",
    link: "signed URLs",
  },
  run_stands_still: {
    about: "Runs",
    level: "error",
    title: "An open run stands still",
    remedy: ({ numbers: { run } }) =>
      (run === undefined
        ? ""
        : `The ${run.mode} ${run.id} has not moved since ${renderTime(run.since)}. ${run.reason} `) +
      "The watchdog calls the function again every minute; after 6 hours the nightly job closes the run. Starting it again wakes it at once; to end it, cancel it.",
    docs:
      "nothing moved for two minutes; the finding says why, as far as it is known. The watchdog calls again every minute; after 6 hours the nightly job closes the run",
    action: ({ bucket, numbers: { run } }) =>
      run === undefined ? null : {
        request: {
          mode: run.mode,
          bucket,
          ...(run.mode === "cleanup" && run.plan_id !== undefined ? { confirm: run.plan_id } : {}),
          ...(run.mode === "restore" ? { restore: run.plan_id } : {}),
          ...(run.bucket_is_gone === undefined ? {} : { bucket_is_gone: run.bucket_is_gone }),
        },
      },
    link: "runs",
  },
  last_run_failed: {
    about: "Runs",
    level: "error",
    title: "The last sync failed",
    remedy: ({ report: { last_runs: { sync } } }) =>
      `${
        sync?.error ? `${sync.error.title}: ${sync.error.detail}` : "See the run's problems."
      } Then start a sync.`,
    docs: "the finding says why; mend that, then sync",
    action: SYNC,
    explains: ["listing_incomplete"],
    link: "runs",
  },
  last_run_partial: {
    about: "Runs",
    level: "warning",
    title: "The last sync could not do all of its work",
    remedy: "See the run's problems for what was said of each. The next sync tries again.",
    action: SYNC,
    link: "runs",
  },
  no_recent_sync: {
    about: "Runs",
    level: "error",
    title: "No successful sync since one was due",
    remedy:
      "Start a sync by hand. If the nightly one does not come, look at the findings about its job and its calls.",
    action: SYNC,
    link: "runs",
  },
  job_missing: {
    about: "The schedule",
    level: "error",
    title: "A scheduled job is absent, switched off, or does something else",
    remedy: "The lines of SQL below make it; the owner of the schema image_sync (postgres) has to run them.",
    docs: "run its line [below](#schedule-and-settings) as the owner of the schema image_sync (postgres)",
    action: sql(({ numbers: { lines = "create extension pg_cron with schema pg_catalog;" } }) => lines),
    link: "jobs of pg_cron",
  },
  job_failed: {
    about: "The schedule",
    level: "error",
    title: "A scheduled job failed the last time",
    remedy:
      "Mend what its message says. The finding goes when the job has run well, or a sync has succeeded since.",
    action: SYNC,
    samples: ({ numbers: { jobs = [] } }) =>
      jobs.map(({ name, at, message = "" }) => `${name} at ${renderTime(at)}: ${message}`),
    link: "jobs of pg_cron",
  },
  calls_unanswered: {
    about: "The schedule",
    level: "error",
    title: "Calls of the function are not answered",
    remedy: ({ numbers: { moved_at: movedAt = "then" } }) =>
      `Nothing has moved since ${
        renderTime(movedAt)
      }, and the last call is queued or lost: is pg_net at work? select count(*) from net.http_request_queue; select net.worker_restart(); A sync started by hand does the work meanwhile, as long as its command waits or the window is open.`,
    docs:
      "is pg_net at work? `select count(*) from net.http_request_queue;` `select net.worker_restart();` `npm run sync` does the work meanwhile: as long as it waits it wakes the run itself",
    action: SYNC,
    explains: ["last_call_failed", "run_stands_still"],
    link: "calls of the schedule",
  },
  function_unknown: {
    about: "The schedule",
    level: "error",
    title: "The function has not said where it lives",
    remedy:
      "The schedule cannot call it. It announces its address whenever it starts a run: deploy it, and start a sync by hand.",
    action: SYNC,
    link: "calls of the schedule",
  },
  function_outdated: {
    about: "The schedule",
    level: "error",
    title: "The deployed function does not know this schema",
    remedy:
      "Runs wait for it. Deploy it, and start a sync by hand: npx supabase functions deploy image-sync --use-api",
    action: SYNC,
    link: "calls of the schedule",
  },
  address_stale: {
    about: "The schedule",
    level: "error",
    title: "The schedule calls a function that does not know this database",
    remedy:
      "As after a restore or a branch into another project: the address is the old one's until this project's own function has been called. Start a sync by hand.",
    action: SYNC,
    link: "calls of the schedule",
  },
  last_call_failed: {
    about: "The schedule",
    level: "warning",
    title: "The last call that the schedule queued got an error",
    remedy: ({ numbers: { function_url: url = "its address" } }) =>
      `404: the function is not deployed. 503: it did not start, or could not reach the database; its log says more. No answer: ${url} cannot be reached. A sync started by hand does the work meanwhile, as long as its command waits or the window is open.`,
    docs:
      "404: the function is not deployed. 503: it did not start; its log says more. No answer: the address cannot be reached. `npm run sync` does the work meanwhile",
    action: SYNC,
    samples: ({ numbers: { status, error } }) =>
      status !== undefined ? [`HTTP ${status}`] : error !== undefined ? [error] : [],
    link: "calls of the schedule",
  },
};

/** A code of a schema that is newer than this function. */
const UNKNOWN: FindingKind = {
  about: "The schedule",
  level: "warning",
  title: "Something that this version of the function does not know",
  remedy: "Deploy the function of the schema's version: npx supabase functions deploy image-sync --use-api",
};

const kindOf = (code: string) => Object.hasOwn(FINDINGS, code) ? FINDINGS[code] ?? UNKNOWN : UNKNOWN;

/** Those that do not merely follow from another one: one fault, one finding. */
function withoutExplained(found: readonly Found[]): readonly Found[] {
  const explained = new Set(found.flatMap(({ code }) => kindOf(code).explains ?? []));
  return found.filter(({ code }) => !explained.has(code));
}

function levelOf(found: Found): Level {
  if ("level" in found) return found.level;
  const { level } = kindOf(found.code);
  return typeof level === "string" ? level : level(found.numbers);
}

/** A finding in words. */
function worded(found: Found, report: FoundReport): Finding {
  if ("level" in found) return found;
  const { numbers, ...rest } = found;
  const { title, remedy, action, samples } = kindOf(found.code);
  const told: Told = { bucket: report.bucket.id, numbers, report };
  return {
    ...rest,
    level: levelOf(found),
    title,
    samples: [...samples?.(told) ?? found.samples],
    remediation: typeof remedy === "string" ? remedy : remedy(told),
    action: action?.(told) ?? null,
  };
}

/** The report in words: its findings, the gravest first, and a verdict that knows of them. */
export function tell(report: FoundReport): Report {
  const findings = withoutExplained(report.findings).map((found) => worded(found, report))
    .toSorted((one, other) => LEVELS.indexOf(one.level) - LEVELS.indexOf(other.level));
  return { ...report, healthy: report.healthy && findings.every(({ level }) => level !== "error"), findings };
}

/** A page of buckets with their verdicts. */
export function tellBuckets({ buckets, ...page }: z.infer<typeof foundBucketsSchema>): BucketList {
  return {
    ...page,
    buckets: buckets.map(({ findings = [], ...bucket }) => {
      const levels = withoutExplained(findings).map(levelOf);
      const countOf = (wanted: Level) => levels.filter((level) => level === wanted).length;
      const errors = bucket.errors ?? countOf("error");
      return {
        ...bucket,
        healthy: bucket.healthy && errors === 0,
        errors,
        warnings: bucket.warnings ?? countOf("warning"),
      };
    }),
  };
}

/** The list of findings in `docs/operations.md`. */
export function findingsPage(): string {
  return SUBJECTS.map((subject) => {
    const items = Object.entries(FINDINGS).filter(([, { about }]) => about === subject)
      .map(([code, { level, title, remedy, docs }]) => {
        const levels = typeof level === "string" ? level : "error or warning";
        return `- \`${code}\` (${levels}): ${title} → ${docs ?? remedy}`;
      });
    return [`#### ${subject}`, "", ...items, ""].join("\n");
  }).join("\n");
}
