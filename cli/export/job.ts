/** What the parts of an export work with. */
import type { Context } from "../commands/context.ts";
import type { Tally } from "../progress.ts";
import type { ExportResult } from "./result.ts";

/** What was asked for. */
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

/** An export that is under way. */
export type Job = {
  readonly context: Pick<Context, "client" | "bucket" | "url">;
  readonly options: ExportOptions;
  /** Aborted by Ctrl-C, and when all is over. */
  readonly signal: AbortSignal;
  readonly tally: Tally;
  /** How many rows there should be, once the function has said so. */
  readonly total: Promise<number | undefined>;
};

/** What was written, as far as the format decides it. */
export type Written = Pick<ExportResult, "rows" | "workbook" | "thumbnails">;

/** Counts what goes through: so many rows at each step. */
export async function* tallied<T>(
  steps: AsyncIterable<T>,
  rowsOf: (step: T) => number,
  { tally, total }: Pick<Job, "tally" | "total">,
): AsyncGenerator<T> {
  let expected: number | undefined;
  total.then((number) => expected = number, () => {});
  let rows = 0;
  for await (const step of steps) {
    yield step;
    tally.update(rows += rowsOf(step), expected);
  }
  tally.finish();
}
