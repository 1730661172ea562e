import { readFile } from "node:fs/promises";
import { expect, test } from "vitest";
import { z } from "zod";
import { fitOf, VERSION } from "../supabase/functions/image-sync/version.ts";

async function readJson<T>(path: string, schema: z.ZodType<T>): Promise<T> {
  return schema.parse(JSON.parse(await readFile(new URL(`../${path}`, import.meta.url), "utf8")));
}

const versions = z.record(z.string(), z.string());

test("the function is deployed with the versions that it is tested with", async () => {
  const { imports } = await readJson(
    "supabase/functions/image-sync/deno.json",
    z.object({ imports: versions }),
  );
  const { devDependencies } = await readJson("package.json", z.object({ devDependencies: versions }));
  for (const [name, specifier] of Object.entries(imports)) {
    expect(specifier).toBe(`npm:${name}@${devDependencies[name]}`);
  }
});

test("every dependency has an exact version", async () => {
  const manifest = await readJson(
    "package.json",
    z.object({ devDependencies: versions }),
  );
  const ranges = Object.entries(manifest.devDependencies)
    .filter(([, version]) => !/^\d+\.\d+\.\d+(-[\w.]+)?$/.test(version));
  expect(ranges).toEqual([]);
});

test("the function announces the version that package.json has", async () => {
  const { version } = await readJson("package.json", z.object({ version: z.string() }));
  expect(VERSION).toBe(version);
});

test("so does the schema", async () => {
  const project = await readFile(
    new URL("../supabase/schemas/040_project.sql", import.meta.url),
    "utf8",
  );
  expect(/function image_sync\.schema_version\(\)[\s\S]*?select '([\d.]+)'/.exec(project)?.[1]).toBe(VERSION);
});

test.each([
  ["1.2.3", "1.2.3", "fits"],
  ["1.1.0", "1.2.3", "older_schema"],
  ["1.10.0", "1.9.9", "older_function"],
  ["2.0.0", "1.9.9", "mismatch"],
  ["0.2.0", "0.1.9", "mismatch"],
  ["0.1.0", "0.1.9", "older_schema"],
  ["1", "1.0.0", "mismatch"],
  ["", "1.0.0", "mismatch"],
])("a schema %s beside a function %s: %s", (schema, own, fit) => {
  expect(fitOf(schema, own)).toBe(fit);
});
