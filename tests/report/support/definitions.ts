import { readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";

const definition = fileURLToPath(
  new URL("../../../supabase/schemas/220_findings.sql", import.meta.url),
);

/** The codes of all findings, from the one place that defines them. */
export async function readFindingCodes(): Promise<readonly string[]> {
  const [, rows = ""] =
    /create or replace function image_sync\.findings\([\s\S]*?lateral \(values\n([\s\S]*?)\) as v \(code,/
      .exec(
        await readFile(definition, "utf8"),
      ) ?? [];
  const codes = [...rows.matchAll(/^ *\(\n *'([a-z_]+)', (?:'error'|'warning'|'info'|case )/gm)].map((
    [, code],
  ) => code ?? "");
  // A definition that this pattern passes over would go untested.
  const definitions = [...rows.matchAll(/^ {6}\($/gm)].length;
  if (codes.length === 0 || codes.length !== definitions) {
    throw new Error(
      `Cannot read the findings of ${definition}: ${codes.length} of ${definitions} rows were understood`,
    );
  }
  return codes;
}
