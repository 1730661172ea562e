/**
 * A table of Markdown, which the formatter aligns. At most 110 columns of text, or nobody reads it outside of a browser: of more
 * columns make two tables.
 */
export function table(
  titles: readonly string[],
  rows: readonly (readonly (string | number | null | undefined)[])[],
): string {
  const line = (cells: readonly (string | number | null | undefined)[]) =>
    `| ${cells.map((cell) => cell ?? "").join(" | ")} |`;
  return [line(titles), line(titles.map(() => "---")), ...rows.map(line)].join("\n");
}
