import { setMaxListeners } from "node:events";
import { stat } from "node:fs/promises";
import { extname, resolve } from "node:path";
import { safeText } from "../../supabase/functions/image-sync/text/safe_text.ts";
import { CommandError, exitStatus } from "../command_error.ts";
import { exportCsv } from "../export/csv.ts";
import { refuseExisting, writeWhole } from "../export/file.ts";
import type { ExportOptions, Job } from "../export/job.ts";
import { type ExportResult, needsAttention, renderExport } from "../export/result.ts";
import { exportWorkbook } from "../export/workbook.ts";
import { createTally } from "../progress.ts";
import type { Context } from "./context.ts";

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
    interrupt.abort(); // what is still on its way is of no use any more
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
