/** What an export came to, for `--json` and for a person. */
import {
  bytes,
  duration,
  name,
  quantity,
  renderTime,
  rows,
  sampleLines,
  sections,
} from "../../supabase/functions/image-sync/text/words.ts";
import { bucketFlag } from "../../supabase/functions/image-sync/text/commands.ts";
import { safeText } from "../../supabase/functions/image-sync/text/safe_text.ts";
import type { LeftOutFile } from "./about.ts";

/** The command's document. */
export type ExportResult = {
  readonly file: string;
  readonly format: "csv" | "xlsx";
  readonly project: string;
  readonly bucket: string;
  readonly rows: number;
  /** Of the file. */
  readonly bytes: number;
  readonly duration_seconds: number;
  /** Of a workbook: sheets of rows, when the first and the last of its URLs die. */
  readonly workbook?: {
    readonly sheets: number;
    readonly soonest_expiry: string | null;
    readonly latest_expiry: string | null;
    /** Rows that no cell can hold. */
    readonly rows_left_out: readonly LeftOutFile[];
  };
  readonly thumbnails?: { readonly placed: number; readonly left_out: readonly LeftOutFile[] };
};

/** Whether somebody has to look: nothing was written, or something was left out. */
export function needsAttention({ rows, workbook, thumbnails }: ExportResult): boolean {
  return rows === 0 || (workbook?.rows_left_out.length ?? 0) > 0 || (thumbnails?.left_out.length ?? 0) > 0;
}

/** The result as a person reads it. */
export function renderExport(result: ExportResult): string {
  const { file, bucket, workbook, thumbnails } = result;
  const sheets = workbook === undefined || workbook.sheets === 1 ? "" : ` on ${workbook.sheets} sheets`;
  const pictures = thumbnails === undefined ? "" : `, ${quantity(thumbnails.placed, "picture")}`;
  const expiry = workbook?.soonest_expiry ?? undefined;
  return sections([
    [
      `Wrote ${safeText(file)}: ${quantity(result.rows, "row")}${sheets}${pictures}, ${
        bytes(result.bytes)
      }, ` +
      `in ${duration(result.duration_seconds)}`,
      ...rows([["URLs", expiry === undefined ? "" : `the first of them dies ${renderTime(expiry)}`]]),
    ],
    leftOutLines("without a picture", thumbnails?.left_out ?? []),
    leftOutLines("left out", workbook?.rows_left_out ?? []),
    result.rows > 0 ? [] : [
      `No working URL in ${name(bucket)}; why, and what mends it: npx image-sync status${bucketFlag(bucket)}`,
    ],
  ]);
}

function leftOutLines(what: string, files: readonly LeftOutFile[]): string[] {
  if (files.length === 0) return [];
  const samples = files.map(({ file_name, reason }) => `${file_name}: ${reason}`);
  return [
    `${quantity(files.length, "file")} ${what}; --json names all of them:`,
    ...sampleLines({ samples, count: files.length, indent: 2, shown: 20 }),
  ];
}
