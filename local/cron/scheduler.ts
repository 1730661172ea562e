import { Cron } from "croner";
import pg from "pg";
import { databaseErrorOf, type Pool } from "../postgres/database.ts";

/** The stand-in for pg_cron's background worker. */
export type Scheduler = {
  /**
   * Runs a job now, as if it were due: its command, as its user.
   *
   * @throws {Error} when there is no active job of that name.
   */
  run(jobName: string): Promise<JobRun>;
  /** Stops scheduling and waits for the jobs that run. */
  stop(): Promise<void>;
};

/** A finished run of a job, as `cron.job_run_details` has it. */
export type JobRun = { readonly runid: string; readonly status: string; readonly return_message: string };

type Job = {
  readonly jobid: string;
  readonly schedule: string;
  readonly command: string;
  readonly username: string;
  readonly database: string;
};

/** What the scheduler needs. */
export type SchedulerOptions = {
  /** A pool as the superuser. */
  readonly sql: Pool;
  /** A connection URL for a role. */
  readonly urlOf: (role: string) => string;
  readonly log: (line: string) => void;
};

const minute = 60_000;

const selectJobs = "select jobid, schedule, command, username, database from cron.job";

/** Starts the scheduler: at every full minute of GMT it runs the jobs of `cron.job` that are due. */
export function startScheduler({ sql, urlOf, log }: SchedulerOptions): Scheduler {
  const running = new Map<string, Promise<unknown>>();
  // A job never runs twice at a time: what becomes due meanwhile runs afterwards.
  const enqueue = (job: Job): Promise<JobRun> => {
    const before = running.get(job.jobid) ?? Promise.resolve();
    const run = before.then(() => runJob(sql, job, urlOf(job.username)));
    const settled = run.catch((error: unknown) => log(`cron: Cannot run job ${job.jobid}: ${String(error)}`));
    running.set(job.jobid, settled);
    return run;
  };

  const runDueJobs = async (now: Date) => {
    const { rows: jobs } = await sql.query<Job>(`${selectJobs} where active`);
    for (const job of jobs) if (isDue(job.schedule, now)) enqueue(job).catch(() => {});
  };
  let timer: ReturnType<typeof setTimeout>;
  const waitForMinute = () => {
    const due = new Date((Math.floor(Date.now() / minute) + 1) * minute);
    timer = setTimeout(() => {
      runDueJobs(due).catch((error: unknown) => log(`cron: Cannot read the jobs: ${String(error)}`));
      waitForMinute();
    }, due.getTime() - Date.now());
  };
  waitForMinute();

  return {
    run: async (jobName) => {
      const { rows: [job] } = await sql.query<Job>(`${selectJobs} where jobname = $1 and active`, [jobName]);
      if (job === undefined) {
        throw new Error(`Cannot run the job ${jobName}: cron.job has no active job of that name`);
      }
      return await enqueue(job);
    },
    stop: async () => {
      clearTimeout(timer);
      await Promise.all(running.values());
    },
  };
}

/** Whether a cron schedule names this full minute. */
export function isDue(schedule: string, time: Date): boolean {
  const next = new Cron(schedule, { timezone: "UTC", paused: true }).nextRun(new Date(time.getTime() - 1000));
  return next?.getTime() === time.getTime();
}

async function runJob(sql: Pool, job: Job, url: string): Promise<JobRun> {
  const { rows: [entry] } = await sql.query<{ runid: string }>(
    `insert into cron.job_run_details (jobid, database, username, command, status, start_time)
    values ($1, $2, $3, $4, 'running', clock_timestamp())
    returning runid`,
    [job.jobid, job.database, job.username, job.command],
  );
  if (entry === undefined) throw new Error(`Cannot record a run of job ${job.jobid}`);
  const outcome = await execute(job.command, url);
  await sql.query(
    `update cron.job_run_details
    set status = $2, return_message = $3, end_time = clock_timestamp()
    where runid = $1`,
    [entry.runid, outcome.status, outcome.return_message],
  );
  return { runid: entry.runid, ...outcome };
}

// In a session of its own, as the job's user.
async function execute(command: string, url: string): Promise<Omit<JobRun, "runid">> {
  const session = new pg.Client({ connectionString: url, application_name: "pg_cron" });
  session.on("error", () => {});
  try {
    await session.connect();
    const { rowCount } = [await session.query(command)].flat().at(-1) ?? {};
    return { status: "succeeded", return_message: rowCount === 1 ? "1 row" : `${rowCount ?? 0} rows` };
  } catch (error) {
    const message = databaseErrorOf(error)?.message ?? String(error);
    return { status: "failed", return_message: `ERROR:  ${message}\n` };
  } finally {
    await session.end();
  }
}
