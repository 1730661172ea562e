/** A function beside a schema that it does not know does nothing, and says what to do; it goes on once that was done. */
import { afterAll, beforeAll, expect, test } from "vitest";
import { VERSION } from "../../supabase/functions/image-sync/version.ts";
import { createBucket, numberedNames, openRun, readReport } from "../sync/support/lab.ts";
import { type LocalLab, openLocalLab } from "../sync/support/local_lab.ts";

let lab: LocalLab;
beforeAll(async () => {
  lab = await openLocalLab();
});
afterAll(() => lab?.close());

const setSchema = (version: string) =>
  lab.sql.unsafe(`
    create or replace function image_sync.schema_version() returns text language sql immutable set search_path = ''
    return '${version}'`);
const ask = async (method: string, query = "", body?: unknown) => {
  const response = await lab.call({
    method,
    query,
    headers: { apikey: lab.stack.secretKey },
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  });
  return { status: response.status, body: await response.json() };
};

test("versions that fit are told in the report", async () => {
  const bucket = await createBucket(lab);
  expect((await readReport(lab, bucket)).versions).toEqual({ schema: VERSION, function: VERSION });
});

test("a schema of another breaking version is refused, by the schedule's calls too, until it fits again", async () => {
  const bucket = await createBucket(lab, { objects: numberedNames(2) });
  const { id } = await openRun(lab, bucket);
  await setSchema("9.0.0");
  try {
    const refused = await ask("POST", "", { bucket });
    expect(refused).toMatchObject({ status: 503, body: { code: "schema_mismatch" } });
    expect(refused.body.detail).toContain("npx supabase db push --remote");
    expect(await ask("GET", `?bucket=${bucket}`)).toMatchObject({ status: 503 });
    await lab.sql`select image_sync.kick(${id})`;
    await new Promise((resolve) => setTimeout(resolve, 1500));
    expect((await lab.database.readRun(id)).chunks).toBe(0);
  } finally {
    await setSchema(VERSION);
  }
  expect((await ask("GET", `?bucket=${bucket}`)).status).toBe(200);
  await lab.database.cancel(id);
});

test("an older or newer schema that goes with it works", async () => {
  const bucket = await createBucket(lab, { objects: numberedNames(2) });
  await setSchema(VERSION.replace(/\d+$/, "99"));
  try {
    expect((await ask("POST", "", { bucket })).status).toBe(202);
  } finally {
    await setSchema(VERSION);
  }
});
