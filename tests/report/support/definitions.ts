import { readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";

const definition = fileURLToPath(
  new URL("../../../supabase/schemas/220_findings.sql", import.meta.url),
);

/** The codes of all findings, from the one place that defines them. */
export async function readFindingCodes(): Promise<readonly string[]> {
  const text = await readFile(definition, "utf8");
  const parts = [
    ...text.matchAll(
      /^create or replace function image_sync\.([a-z]+_findings)\([\s\S]*?\(values\n([\s\S]*?)\) as [a-z]+ \(code,/gm,
    ),
  ];
  const called = [...text.matchAll(/select \* from image_sync\.([a-z]+_findings)\(p_facts\)$/gm)];
  const names = (matches: readonly RegExpMatchArray[]) => matches.map(([, name]) => name).sort().join(", ");
  if (names(parts) !== names(called)) {
    throw new Error(
      `Cannot read the findings of ${definition}: ${names(parts)} are there, ${names(called)} told`,
    );
  }
  const rows = parts.map(([, , part]) => part ?? "").join("\n");
  const codes = [...rows.matchAll(/^ {4}\(\n {6}'([a-z_]+)', /gm)].map(([, code]) => code ?? "");
  // A definition that this pattern passes over would go untested.
  const definitions = [...rows.matchAll(/^ {4}\(/gm)].length;
  if (codes.length === 0 || codes.length !== definitions) {
    throw new Error(
      `Cannot read the findings of ${definition}: ${codes.length} of ${definitions} rows were understood`,
    );
  }
  return codes;
}
