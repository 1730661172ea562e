/** The whole list of a dry run can be read before it is confirmed. */
import { afterAll, beforeAll, expect, test } from "vitest";
import { planSchema } from "../../supabase/functions/image-sync/contract.ts";
import { type Lab, openLab, readProblem, runToEnd } from "../sync/support/lab.ts";
import { createTidyBucket, dryRun, goneNames } from "./support/records.ts";

let lab: Lab;
beforeAll(async () => {
  lab = await openLab();
});
afterAll(() => lab?.close());

const page = async (query: string) => {
  const { url, secretKey } = lab.target;
  return await fetch(`${url}/functions/v1/image-sync/plan${query}`, { headers: { apikey: secretKey } });
};

async function readAll(run: string, limit: number): Promise<readonly string[]> {
  const names: string[] = [];
  for (let after: string | null = ""; after !== null;) {
    const response = await page(`?run=${run}&limit=${limit}&after=${encodeURIComponent(after)}`);
    expect(response.status).toBe(200);
    const plan: ReturnType<typeof planSchema.parse> = planSchema.parse(await response.json());
    expect(plan.names.length).toBeLessThanOrEqual(limit);
    names.push(...plan.names);
    after = plan.next;
  }
  return names;
}

test.each([1, 2, 7, 1000])("page by page, %i names at once, in byte order and each once", async (limit) => {
  const gone = [...goneNames(9), "ä %&?#.jpg", "a b.jpg", "folder/gone.jpg"];
  const bucket = await createTidyBucket(lab, { settings: { chunk_size: 3 }, orphans: gone });
  const plan = await dryRun(lab, bucket);
  const inOrder = gone.toSorted((one, other) => Buffer.compare(Buffer.from(one), Buffer.from(other)));
  expect(await readAll(plan.id, limit)).toEqual(inOrder);
});

test("what is no list is refused by name", async () => {
  const bucket = await createTidyBucket(lab, { images: 3 });
  const sync = await runToEnd(lab, bucket);
  expect(await readProblem(await page(`?run=${sync.id}`))).toMatchObject({
    status: 404,
    code: "unknown_plan",
  });
  expect(await readProblem(await page(`?run=${crypto.randomUUID()}`))).toMatchObject({
    status: 404,
    code: "unknown_run",
  });
  for (
    const query of [
      "",
      "?run=x",
      `?run=${sync.id}&limit=0`,
      `?run=${sync.id}&limit=1001`,
      `?run=${sync.id}&more=1`,
    ]
  ) {
    expect(await readProblem(await page(query))).toMatchObject({ status: 400, code: "invalid_query" });
  }
});

test("nobody reads it without a secret key", async () => {
  const response = await fetch(`${lab.target.url}/functions/v1/image-sync/plan?run=${crypto.randomUUID()}`);
  expect(response.status).toBe(401);
});
