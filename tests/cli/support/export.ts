/** Exports into a folder that goes with the test. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { onTestFinished } from "vitest";
import { z } from "zod";
import { type Result, runCommand, type Settings } from "./run_command.ts";

const fileSchema = z.object({ file_name: z.string(), reason: z.string() });
const resultSchema = z.object({
  file: z.string(),
  rows: z.number(),
  bytes: z.number(),
  workbook: z.object({
    sheets: z.number(),
    soonest_expiry: z.string().nullable(),
    rows_left_out: z.array(fileSchema),
  })
    .optional(),
  thumbnails: z.object({ placed: z.number(), left_out: z.array(fileSchema) }).optional(),
});

/** A folder of the test's own. */
export async function makeFolder(): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), "image-sync-export-"));
  onTestFinished(() => rm(folder, { recursive: true, force: true }));
  return folder;
}

/** Runs `export FILE --json` in a folder of its own. */
export async function exportTo(
  file: string,
  settings: Settings & { readonly args?: readonly string[] },
): Promise<
  Result & { readonly path: string; readonly folder: string; readonly document: z.infer<typeof resultSchema> }
> {
  const folder = settings.directory ?? await makeFolder();
  const result = await runCommand(["export", file, "--json", ...(settings.args ?? [])], {
    ...settings,
    directory: folder,
  });
  const document = resultSchema.safeParse(JSON.parse(result.stdout || "null"));
  if (!document.success) throw new Error(`The export failed: ${result.stderr}${result.stdout}`);
  return { ...result, path: join(folder, file), folder, document: document.data };
}
