import { setTimeout as delay } from "node:timers/promises";
import type { Client } from "../../cli/client.ts";
import type { Progress } from "../../cli/progress.ts";
import { watch } from "../../cli/watch.ts";
import type { Run } from "../../supabase/functions/image-sync/contract.ts";
import { withDatabase } from "../postgres/database.ts";
import type { Stack } from "../stack.ts";

const JOB = "image-sync-nightly";
/** The next minute of the real pg_cron, and some. */
const PATIENCE_MS = 90_000;

/** Lets the schedule trigger the nightly run and watches it to its end. Nothing here calls the function. */
export async function runNight(
  stack: Stack,
  client: Client,
  progress: Progress,
  signal: AbortSignal,
): Promise<Run> {
  await makeDue(stack);
  return await watch(await scheduledRun(client), { client, progress, signal });
}

/** The stand-in runs a due job at once on request; the real pg_cron is told the next minute. */
async function makeDue({ scheduler, dbUrl }: Stack): Promise<void> {
  if (scheduler !== undefined) {
    const { status, return_message } = await scheduler.run(JOB);
    if (status !== "succeeded") throw new Error(`The job ${JOB} failed: ${return_message}`);
    return;
  }
  await withDatabase(dbUrl, (sql) =>
    sql.query(
      `select cron.schedule($1, extract(minute from now() at time zone 'UTC' + interval '1 minute')::text || ' * * * *', command)
      from cron.job
      where jobname = $1`,
      [JOB],
    ));
}

async function scheduledRun(client: Client): Promise<Run> {
  const deadline = Date.now() + PATIENCE_MS;
  while (Date.now() < deadline) {
    const { open_run, last_runs } = await client.report("part-images");
    const run = [open_run, last_runs.sync].find((candidate) => candidate?.trigger === "schedule");
    if (run) return run;
    await delay(100);
  }
  throw new Error(`The job ${JOB} opened no run within ${PATIENCE_MS / 1000} s`);
}
