import { setMaxListeners } from "node:events";
import { stat } from "node:fs/promises";
import { extname, resolve } from "node:path";
import type { Writable } from "node:stream";
import { DEFAULT_BUCKET } from "../../supabase/functions/image-sync/contract.ts";
import { safeText } from "../../supabase/functions/image-sync/text/safe_text.ts";
import { CommandError, exitStatus } from "../command_error.ts";
import { aboutLines, commandOfExport, type LeftOutFile } from "../export/about.ts";
import { writeCsv } from "../export/csv.ts";
import { refuseExisting, writeWhole } from "../export/file.ts";
import { createLifetime } from "../export/lifetime.ts";
import { countRows, readPages, readRows, type Row } from "../export/register.ts";
import { type ExportResult, needsAttention, renderExport } from "../export/result.ts";
import { makeThumbnails, THUMBNAIL_LIMITS } from "../export/thumbnails.ts";
import { writeWorkbook } from "../export/xlsx/workbook.ts";
import { LONGEST_TEXT } from "../export/xlsx/xml.ts";
import { createTally, type Tally } from "../progress.ts";
import type { Context } from "./context.ts";

/** Pixels, unless `--size` says something else. */
const DEFAULT_SIZE = 96;

/** Options of {@linkcode exportRegister}. */
export type ExportOptions = {
  /** What to write; its extension says in which format. */
  readonly file: string;
  /** Pictures in the cells. */
  readonly thumbnails: boolean;
  /** Edge of the square that each fits into, in pixels. */
  readonly size?: number;
  /** Take the place of a file that is there. */
  readonly force: boolean;
};

/** What the work needs. */
type Job = {
  readonly context: Context;
  readonly options: ExportOptions;
  readonly signal: AbortSignal;
  readonly tally: Tally;
  /** How many rows there should be, once the function has said so. */
  readonly total: Promise<number | undefined>;
};

/** Writes the register as CSV or as a workbook, for somebody without a connection to the project. */
export async function exportRegister(context: Context, options: ExportOptions): Promise<number> {
  const { client, host, output, bucket } = context;
  const format = formatOf(options);
  const path = resolve(host.directory, options.file);
  await refuseExisting({ path, force: options.force });
  const interrupt = new AbortController();
  setMaxListeners(0, interrupt.signal); // as many as there are requests on their way
  const ignoreInterrupts = host.onInterrupt(() => interrupt.abort());
  const tally = createTally(host, "export");
  const startedAt = performance.now();
  // It tells how long there is still to wait, and nothing that the file depends on.
  const total = client.report(bucket, interrupt.signal).then(
    ({ records }) => records.signed ?? undefined,
    () => undefined,
  );
  const job: Job = { context, options, signal: interrupt.signal, tally, total };
  try {
    const written = await writeWhole(
      { path, force: options.force },
      (stream) => format === "csv" ? exportCsv(stream, job) : exportWorkbook(stream, job),
    );
    tally.stop();
    const result: ExportResult = {
      file: options.file,
      format,
      project: context.url,
      bucket,
      ...written,
      bytes: (await stat(path)).size,
      duration_seconds: Math.round(performance.now() - startedAt) / 1000,
    };
    output.show(result, () => renderExport(result));
    return needsAttention(result) ? exitStatus.attention : exitStatus.fine;
  } catch (error) {
    throw interrupt.signal.aborted ? interrupted(options.file, error) : error;
  } finally {
    tally.stop();
    ignoreInterrupts();
  }
}

function formatOf({ file, thumbnails, size }: ExportOptions): "csv" | "xlsx" {
  const extension = extname(file).toLowerCase();
  if (extension !== ".csv" && extension !== ".xlsx") {
    throw usage(`Cannot export to ${safeText(file)}: name a file that ends in .csv or .xlsx`);
  }
  if (thumbnails && extension === ".csv") {
    throw usage(
      `Cannot put pictures into ${safeText(file)}: --thumbnails needs a workbook, a file that ends in .xlsx`,
    );
  }
  if (size !== undefined && !thumbnails) {
    throw usage("Cannot use --size alone: it is the size of the pictures of --thumbnails");
  }
  return extension === ".csv" ? "csv" : "xlsx";
}

function usage(message: string): CommandError {
  return new CommandError("usage", message);
}

function interrupted(file: string, cause: unknown): CommandError {
  return new CommandError("interrupted", `Stopped; ${safeText(file)} was not written`, {
    cause,
    status: exitStatus.interrupted,
  });
}

type Written = Pick<ExportResult, "rows" | "workbook" | "thumbnails">;

async function exportCsv(stream: Writable, { context, signal, tally, total }: Job): Promise<Written> {
  const { client, bucket } = context;
  const expected = settled(total);
  let rows = 0;
  async function* counted() {
    for await (const page of readPages({ client, bucket, raw: false, signal })) {
      yield page;
      tally.update(rows += countRows(page), expected());
    }
    tally.finish();
  }
  await writeCsv(stream, { pages: counted(), signal });
  return { rows };
}

async function exportWorkbook(stream: Writable, job: Job): Promise<Written> {
  const { context, options, signal } = job;
  const { client, bucket, url: project } = context;
  const tooLong: LeftOutFile[] = [];
  const lifetime = createLifetime();
  const madeAt = new Date();
  const pictures = options.thumbnails
    ? { size: options.size ?? DEFAULT_SIZE, leftOut: [] as LeftOutFile[] }
    : undefined;
  async function* lots() {
    for await (const lot of readRows(readPages({ client, bucket, raw: true, signal }))) {
      const rows = lot.filter((row) => fitsCells(row, tooLong));
      lifetime.see(rows);
      yield rows;
    }
  }
  let placed = 0;
  const { rows, sheets } = await writeWorkbook(stream, {
    title: `Register of ${bucket}`,
    madeAt,
    signal,
    content: pictures === undefined ? { lots: tallied(lots(), job) } : {
      size: pictures.size,
      rows: withPictures(lots(), job, {
        size: pictures.size,
        onPicture: () => placed++,
        onLeftOut: (file) => pictures.leftOut.push(file),
      }),
    },
    about: (rows) =>
      aboutLines({
        project,
        bucket,
        madeAt,
        rows,
        lifetime: lifetime.current(),
        command: commandOfExport({
          file: options.file,
          bucket,
          isDefault: bucket === DEFAULT_BUCKET,
          thumbnails: pictures?.size,
        }),
        leftOut: pictures?.leftOut,
      }),
  });
  const { earliest, latest } = lifetime.current();
  return {
    rows,
    workbook: {
      sheets,
      soonest_expiry: earliest?.toISOString() ?? null,
      latest_expiry: latest?.toISOString() ?? null,
      rows_left_out: tooLong,
    },
    ...(pictures === undefined ? {} : { thumbnails: { placed, left_out: pictures.leftOut } }),
  };
}

// Excel would cut the value, or repair the workbook by leaving the sheet out.
function fitsCells({ partNumber, fileName, signedUrl }: Row, tooLong: LeftOutFile[]): boolean {
  if ([partNumber, fileName, signedUrl].every(({ length }) => length <= LONGEST_TEXT)) return true;
  tooLong.push({
    file_name: fileName,
    reason: `a value has more than the ${LONGEST_TEXT} characters of a cell`,
  });
  return false;
}

async function* tallied(
  lots: AsyncIterable<readonly Row[]>,
  { tally, total }: Job,
): AsyncGenerator<readonly Row[]> {
  const expected = settled(total);
  let rows = 0;
  for await (const lot of lots) {
    yield lot;
    tally.update(rows += lot.length, expected());
  }
  tally.finish();
}

async function* withPictures(
  lots: AsyncIterable<readonly Row[]>,
  { context, signal, tally }: Job,
  { size, onPicture, onLeftOut }: {
    readonly size: number;
    readonly onPicture: () => void;
    readonly onLeftOut: (file: LeftOutFile) => void;
  },
) {
  const rows = await collect(lots);
  let done = 0;
  for await (const thumbnail of makeThumbnails(rows, { project: context.url, size, signal })) {
    const { row, picture, reason } = thumbnail;
    if (reason === undefined) onPicture();
    else onLeftOut({ file_name: row.fileName, reason });
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

// What a promise has come to by now.
function settled<T>(promise: Promise<T>): () => T | undefined {
  let value: T | undefined;
  promise.then((result) => value = result, () => {});
  return () => value;
}
