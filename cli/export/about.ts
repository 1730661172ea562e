/** What the second sheet of a workbook says. */
import { quoted } from "../../supabase/functions/image-sync/text/commands.ts";
import { count, duration } from "../../supabase/functions/image-sync/text/words.ts";
import type { Lifetime } from "./lifetime.ts";
import type { Line } from "./xlsx/sheets.ts";

/** A file that has no picture in the workbook, and why. */
export type LeftOutFile = { readonly file_name: string; readonly reason: string };

/** Names that the sheet lists; the result of the command has them all. */
const LISTED = 1_000;

/** What there is to say about a workbook. */
export type About = {
  readonly project: string;
  readonly bucket: string;
  readonly madeAt: Date;
  readonly rows: number;
  readonly lifetime: Lifetime;
  /** The command that makes the workbook again. */
  readonly command: string;
  /** With thumbnails: the files that have none. */
  readonly leftOut: readonly LeftOutFile[] | undefined;
};

/** The lines of the sheet, each a label and what it says. */
export function aboutLines(about: About): Line[] {
  const { project, bucket, madeAt, rows, lifetime, command, leftOut } = about;
  return [
    ["Register of bucket", bucket],
    ["Project", project],
    ["Written at (UTC)", madeAt],
    ["Rows", rows],
    ["URLs live until (UTC)", lifetime.earliest],
    ["", livesWords(lifetime, madeAt)],
    [
      "How to refresh",
      `The workbook does not change by itself. A new one, in place of this: ${command} ` +
      "(it asks nobody, so that a schedule can run it). Sheets of yours that look values up here belong into a workbook of their own.",
    ],
    ["Times", "signed_url_expires_at and the times on this sheet are UTC"],
    ...pictureLines(leftOut, lifetime),
  ];
}

function pictureLines(leftOut: About["leftOut"], { isHttps }: Lifetime): Line[] {
  if (leftOut === undefined) {
    const needs =
      "Column image shows the picture of signed_url with =IMAGE(): Microsoft 365 or Excel 2024, and a network. " +
      "It shows nothing once the URL has died, and in protected view before editing is enabled.";
    return [["Pictures", isHttps ? needs : `${needs} IMAGE opens https addresses only, and these are not.`]];
  }
  const more = leftOut.length - LISTED;
  return [
    [
      "Pictures",
      "Column image holds small copies of the pictures; they need no network and do not die with the URL",
    ],
    ["Files without a picture", leftOut.length],
    ...leftOut.slice(0, LISTED).map(({ file_name, reason }): Line => [file_name, reason]),
    ...(more > 0 ? [["", `and ${count(more)} more`] satisfies Line] : []),
  ];
}

function livesWords({ earliest, latest }: Lifetime, madeAt: Date): string {
  if (earliest === undefined || latest === undefined) return "No URL, or none that says when it dies";
  const days = (moment: Date) => duration(Math.max(0, (moment.getTime() - madeAt.getTime()) / 1000));
  const last = latest.toISOString().slice(0, 16).replace("T", " ");
  return `The first of them dies then, ${days(earliest)} after this was written; the last one ${last}, ${
    days(latest)
  } after`;
}

/** The command that makes an export again. */
export function commandOfExport(
  { file, bucket, isDefault, thumbnails }: {
    readonly file: string;
    readonly bucket: string;
    readonly isDefault: boolean;
    /** Edge of the pictures in pixels, where there are some. */
    readonly thumbnails: number | undefined;
  },
): string {
  return `npx image-sync export ${quoted(file)}${isDefault ? "" : ` --bucket ${quoted(bucket)}`}` +
    `${thumbnails === undefined ? "" : ` --thumbnails --size ${thumbnails}`} --force`;
}
