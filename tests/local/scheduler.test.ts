import postgres, { type Sql } from "postgres";
import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";
import { type LocalStack, startLocalStack } from "../support/stack.ts";

let stack: LocalStack;
let sql: Sql;

beforeAll(async () => {
  stack = await startLocalStack(["--no-function", "--no-migrate"]);
  sql = postgres(stack.dbUrl, { max: 1, onnotice: () => {} });
  await sql`create table public.job_runs (ran_as text, at timestamptz default clock_timestamp())`;
});
afterAll(async () => {
  await sql?.end();
  await stack?.stop();
});

async function runJob(name: string): Promise<Response> {
  return await fetch(`${stack.url}/_local/cron/run?job=${name}`, {
    method: "POST",
    headers: { apikey: stack.secretKey },
  });
}

describe("the stand-in for pg_cron", () => {
  test("runs a job's command as its owner, and records the run", async () => {
    await sql`select cron.schedule('owner', '0 2 * * *', 'insert into public.job_runs values (current_user)')`;
    const response = await runJob("owner");
    expect(await response.json()).toMatchObject({ status: "succeeded", return_message: "1 row" });
    expect([...await sql`select ran_as from public.job_runs`]).toEqual([{ ran_as: "postgres" }]);
    const [details] = await sql`
      select d.status, d.command, d.username, d.end_time >= d.start_time as ended
      from cron.job_run_details d join cron.job j using (jobid) where j.jobname = 'owner'`;
    expect(details).toMatchObject({ status: "succeeded", username: "postgres", ended: true });
  });

  test("records what a failing command said", async () => {
    await sql`select cron.schedule('failing', '0 2 * * *', 'select 1 / 0')`;
    expect(await (await runJob("failing")).json()).toMatchObject({
      status: "failed",
      return_message: "ERROR:  division by zero\n",
    });
  });

  test("replaces a job of the same name, and forgets one that is unscheduled", async () => {
    const [first] = await sql`select cron.schedule('twice', '0 2 * * *', 'select 1') as id`;
    const [second] = await sql`select cron.schedule('twice', '0 3 * * *', 'select 2') as id`;
    expect(second).toEqual(first);
    const jobs = await sql`select schedule, command, active, username from cron.job where jobname = 'twice'`;
    expect([...jobs]).toEqual([{
      schedule: "0 3 * * *",
      command: "select 2",
      active: true,
      username: "postgres",
    }]);
    await sql`select cron.unschedule('twice')`;
    expect([...await sql`select from cron.job where jobname = 'twice'`]).toEqual([]);
    await expect(sql`select cron.unschedule('twice')`).rejects.toThrow("could not find valid entry for job");
  });

  test.each(["5 seconds", "* * * *", "61 * * * *", "0 25 * * *", "*/0 * * * *", "every day"])(
    "refuses the schedule %j, as pg_cron 1.4 does",
    async (schedule) => {
      const call = sql`select cron.schedule('odd', ${schedule}, 'select 1')`;
      await expect(call).rejects.toThrow(`invalid schedule: ${schedule}`);
    },
  );

  test("is not for service_role, which sees no job", async () => {
    const call = sql.begin(async (transaction) => {
      await transaction`set local role service_role`;
      await transaction`select from cron.job`;
    });
    await expect(call).rejects.toMatchObject({ code: "42501" });
  });

  test("runs what is due at the full minute", { timeout: 90_000 }, async () => {
    await sql`create table public.minutes (at timestamptz default clock_timestamp())`;
    await sql`select cron.schedule('minutely', '* * * * *', 'insert into public.minutes default values')`;
    const at = await vi.waitFor(async () => {
      const [row] = await sql<{ at: Date }[]>`select at from public.minutes`;
      if (row === undefined) throw new Error("The job has not run yet");
      return row.at;
    }, { timeout: 65_000, interval: 200 });
    expect(at.getUTCSeconds()).toBeLessThan(5);
  });

  test("says so when there is no such job", async () => {
    const response = await runJob("nobody");
    expect([response.status, await response.json()]).toEqual([500, {
      message: "Cannot run the job nobody: cron.job has no active job of that name",
    }]);
  });
});
