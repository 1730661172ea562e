/** The lines of `supabase/.gitattributes` that mark our migrations as generated: a review shows them folded. */

const LINES = [
  "migrations/*_image_sync.sql linguist-generated",
  "migrations/*_image_sync_[0-9]*.sql linguist-generated",
];

/** The file with them at its end, where it lacks them. */
export function withAttributes(text: string): string {
  const newline = text.includes("\r\n") ? "\r\n" : "\n";
  const missing = LINES.filter((line) => !linesOf(text).includes(line));
  const gap = text === "" || text.endsWith("\n") || missing.length === 0 ? "" : newline;
  return text + gap + missing.map((line) => line + newline).join("");
}

/** The file without them. */
export function withoutAttributes(text: string): string {
  return (text.match(/[^\n]*\n|[^\n]+$/g) ?? []).filter((line) => !LINES.includes(line.trimEnd())).join("");
}

function linesOf(text: string): string[] {
  return text.split("\n").map((line) => line.trimEnd());
}
