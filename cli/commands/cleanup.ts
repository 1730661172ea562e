import type { Run } from "../../supabase/functions/image-sync/contract.ts";
import { renderRun } from "../../supabase/functions/image-sync/text.ts";
import { exitStatus } from "../command_error.ts";
import { ask, canAsk } from "../ask.ts";
import type { Context } from "./context.ts";
import { showFinished, showStarted, startRun } from "./start.ts";

/** Options of {@linkcode cleanup}. */
export type CleanupOptions = {
  /** The dry run whose list to apply without asking. */
  readonly confirm?: string;
  /** Raise the guards of these names. */
  readonly maxDeleteCount?: number;
  readonly maxDeleteFraction?: number;
  readonly allowEmptyBucket: boolean;
  /** The bucket does not exist any more: list all of its records. */
  readonly bucketIsGone: boolean;
  /** Stop after the list. */
  readonly dryRun: boolean;
  /** Print every name of the list, however many. */
  readonly all: boolean;
  readonly wait: boolean;
};

/** Lists the records whose file is gone and, once that very list is confirmed, moves them to the archive. */
export async function cleanup(context: Context, options: CleanupOptions): Promise<number> {
  if (options.confirm !== undefined) return await apply(context, options.confirm, options);
  const started = await startRun(context, {
    body: {
      mode: "cleanup",
      bucket: context.bucket,
      ...(options.bucketIsGone ? { bucket_is_gone: true } : {}),
    },
    isSame: (open) =>
      open.plan_id === null && (open.options["bucket_is_gone"] === true) === options.bucketIsGone,
  });
  if (!options.wait) return showStarted(context, started);
  const run = await context.finished(started);
  const number = run.plan?.count ?? 0;
  const isAsked = number > 0 && run.state === "succeeded" && !options.dryRun && !context.json &&
    canAsk(context.host);
  if (!isAsked) {
    const shown = options.all || context.json ? await withWholeList(context, run) : run;
    return showFinished(context, shown);
  }
  // Nobody confirms what they have not seen: all of it is listed before the question.
  return await applyIfConfirmed(context, { run: await withWholeList(context, run), number, options });
}

/** The dry run with every name of its list instead of the first few. */
async function withWholeList(context: Context, run: Run): Promise<Run> {
  if (run.plan === undefined || run.plan.count <= run.plan.samples.length) return run;
  return { ...run, plan: { ...run.plan, samples: await context.client.plan(run.id) } };
}

async function applyIfConfirmed(
  context: Context,
  { run, number, options }: { run: Run; number: number; options: CleanupOptions },
): Promise<number> {
  context.output.show(run, () => `${renderRun(run)}\n`);
  const answer = await ask(
    context.host,
    `To move ${number === 1 ? "this record" : "these records"} to the archive, type their number: `,
  );
  if (answer?.replaceAll(/[\s,]/g, "") === String(number)) return await apply(context, run.id, options);
  context.output.note(`Nothing was removed: ${number} was not typed`);
  return exitStatus.attention;
}

async function apply(context: Context, plan: string, options: CleanupOptions): Promise<number> {
  const { maxDeleteCount, maxDeleteFraction, allowEmptyBucket } = options;
  const run = await startRun(context, {
    body: {
      mode: "cleanup",
      bucket: context.bucket,
      confirm: plan,
      ...(maxDeleteCount === undefined ? {} : { max_delete_count: maxDeleteCount }),
      ...(maxDeleteFraction === undefined ? {} : { max_delete_fraction: maxDeleteFraction }),
      ...(allowEmptyBucket ? { allow_empty_bucket: true } : {}),
    },
    isSame: (open) => open.plan_id === plan,
  });
  if (!options.wait) return showStarted(context, run);
  return showFinished(context, await context.finished(run));
}
