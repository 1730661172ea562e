/** The register as a workbook, from the function's pages to the sheet that says what they are. */
import type { Writable } from "node:stream";
import { DEFAULT_BUCKET } from "../../supabase/functions/image-sync/contract.ts";
import { CommandError } from "../command_error.ts";
import { aboutLines, commandOfExport, type LeftOutFile } from "./about.ts";
import { type Job, tallied, type Written } from "./job.ts";
import { createLifetime } from "./lifetime.ts";
import { readPages, readRows, type Row } from "./register.ts";
import { makeThumbnails, THUMBNAIL_LIMITS } from "./thumbnails.ts";
import { type PicturesOption, writeWorkbook } from "./xlsx/workbook.ts";
import { LONGEST_TEXT } from "./xlsx/xml.ts";

/** Pixels, unless `--size` says something else. */
const DEFAULT_SIZE = 96;

/** What is found out while rows and pictures go through. */
type Seen = {
  readonly lifetime: ReturnType<typeof createLifetime>;
  readonly rowsLeftOut: LeftOutFile[];
  readonly picturesLeftOut: LeftOutFile[];
  placed: number;
};

/** Writes the register as a workbook, with formulas or with pictures. */
export async function exportWorkbook(stream: Writable, job: Job): Promise<Written> {
  const { context: { bucket }, options, signal } = job;
  const seen: Seen = { lifetime: createLifetime(), rowsLeftOut: [], picturesLeftOut: [], placed: 0 };
  const size = options.thumbnails ? options.size ?? DEFAULT_SIZE : undefined;
  const lots = fittingRows(job, seen);
  const madeAt = new Date();
  const { rows, sheets } = await writeWorkbook(stream, {
    title: `Register of ${bucket}`,
    madeAt,
    signal,
    content: size === undefined
      ? { lots: tallied(lots, ({ length }) => length, job) }
      : { size, rows: withPictures(lots, job, { size, seen }) },
    about: (rows) => aboutThis(job, { rows, madeAt, size, seen }),
  });
  const { earliest, latest } = seen.lifetime.current();
  return {
    rows,
    workbook: {
      sheets,
      soonest_expiry: earliest?.toISOString() ?? null,
      latest_expiry: latest?.toISOString() ?? null,
      rows_left_out: seen.rowsLeftOut,
    },
    ...(size === undefined ? {} : { thumbnails: { placed: seen.placed, left_out: seen.picturesLeftOut } }),
  };
}

async function* fittingRows(
  { context: { client, bucket }, signal }: Job,
  seen: Seen,
): AsyncGenerator<readonly Row[]> {
  for await (const lot of readRows(readPages({ client, bucket, raw: true, signal }))) {
    const rows = lot.filter((row) => fitsCells(row, seen.rowsLeftOut));
    seen.lifetime.see(rows);
    yield rows;
  }
}

// Excel would cut the value, or repair the workbook by leaving the sheet out.
function fitsCells({ partNumber, fileName, signedUrl }: Row, leftOut: LeftOutFile[]): boolean {
  if ([partNumber, fileName, signedUrl].every(({ length }) => length <= LONGEST_TEXT)) return true;
  leftOut.push({
    file_name: fileName,
    reason: `a value has more than the ${LONGEST_TEXT} characters of a cell`,
  });
  return false;
}

async function* withPictures(
  lots: AsyncIterable<readonly Row[]>,
  { context, signal, tally }: Job,
  { size, seen }: { readonly size: number; readonly seen: Seen },
): PicturesOption["rows"] {
  const rows = await collect(lots);
  let done = 0;
  for await (const { row, picture, reason } of makeThumbnails(rows, { project: context.url, size, signal })) {
    if (reason === undefined) seen.placed++;
    else seen.picturesLeftOut.push({ file_name: row.fileName, reason });
    tally.update(++done, rows.length);
    yield { row, picture };
  }
  if (done > 0) tally.finish();
}

// All of them before the first picture is fetched, so that nobody waits for a workbook that there will not be.
async function collect(lots: AsyncIterable<readonly Row[]>): Promise<Row[]> {
  const rows: Row[] = [];
  for await (const lot of lots) {
    rows.push(...lot);
    if (rows.length > THUMBNAIL_LIMITS.pictures) {
      throw new CommandError(
        "too_many_pictures",
        `Cannot put more than ${THUMBNAIL_LIMITS.pictures} pictures into a workbook: export without --thumbnails, or a bucket with ` +
          "fewer images",
      );
    }
  }
  return rows;
}

function aboutThis(
  { context: { bucket, url }, options }: Job,
  { rows, madeAt, size, seen }: {
    readonly rows: number;
    readonly madeAt: Date;
    readonly size: number | undefined;
    readonly seen: Seen;
  },
) {
  return aboutLines({
    project: url,
    bucket,
    madeAt,
    rows,
    lifetime: seen.lifetime.current(),
    command: commandOfExport({
      file: options.file,
      bucket,
      isDefault: bucket === DEFAULT_BUCKET,
      thumbnails: size,
    }),
    leftOut: size === undefined ? undefined : seen.picturesLeftOut,
  });
}
