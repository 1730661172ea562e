/** The diffs of a dry run: what is there and those of their lines that are taken give what will be there. */
import fc from "fast-check";
import { expect, test } from "vitest";
import { unifiedDiff } from "../../cli/project/diff.ts";

const linesOf = (text: string) => text.match(/[^\n]*\n|[^\n]+$/g) ?? [];

/** Applies a unified diff as `patch` does, and refuses one that does not fit. */
function patched(before: string, diff: string): string {
  const old = linesOf(before);
  const result: string[] = [];
  let place = 0;
  const lines = diff.split("\n").slice(2, -1);
  for (const [index, line] of lines.entries()) {
    const [, from, count, , size] = /^@@ -(\d+),(\d+) \+(\d+),(\d+) @@$/.exec(line) ?? [];
    if (from !== undefined) {
      const first = Number(from) - (count === "0" ? 0 : 1);
      result.push(...old.slice(place, first));
      place = first;
      const hunk = lines.slice(
        index + 1,
        lines.findIndex((other, at) => at > index && other.startsWith("@@")) >>> 0,
      );
      expect(hunk.filter((other) => /^[ -]/.test(other)).length).toBe(Number(count));
      expect(hunk.filter((other) => /^[ +]/.test(other)).length).toBe(Number(size));
      continue;
    }
    if (line.startsWith("\\")) continue;
    const text = line.slice(1) + (lines[index + 1]?.startsWith("\\") ? "" : "\n");
    if (line.startsWith("+")) result.push(text);
    else {
      expect(old[place]).toBe(text);
      if (line.startsWith(" ")) result.push(text);
      place++;
    }
  }
  return [...result, ...old.slice(place)].join("");
}

test("a diff applied to what was there gives what is there", () => {
  const text = fc.tuple(
    fc.array(fc.constantFrom("a", "b", "c", "", "@@", "-", "\r"), { maxLength: 30 }),
    fc.boolean(),
  )
    .map(([lines, ends]) => lines.join("\n") + (ends && lines.length > 0 ? "\n" : ""));
  fc.assert(
    fc.property(text, text, (before, after) => {
      const diff = unifiedDiff("x", before, after);
      expect(diff === "" ? before : patched(before, diff)).toBe(after);
    }),
    { numRuns: 2000 },
  );
});

test("it shows three lines around a change, and one hunk for changes that are close", () => {
  const lines = Array.from({ length: 30 }, (_, index) => `${index + 1}\n`);
  const after = lines.with(9, "ten\n").with(14, "fifteen\n").with(28, "");
  expect(unifiedDiff("a/b.txt", lines.join(""), after.join(""))).toBe([
    "--- a/a/b.txt",
    "+++ b/a/b.txt",
    "@@ -7,12 +7,12 @@",
    " 7",
    " 8",
    " 9",
    "-10",
    "+ten",
    " 11",
    " 12",
    " 13",
    " 14",
    "-15",
    "+fifteen",
    " 16",
    " 17",
    " 18",
    "@@ -26,5 +26,4 @@",
    " 26",
    " 27",
    " 28",
    "-29",
    " 30",
    "",
  ].join("\n"));
});

test("of a file that comes or goes it names no other", () => {
  expect(unifiedDiff("x", undefined, "one\n")).toBe("--- /dev/null\n+++ b/x\n@@ -0,0 +1,1 @@\n+one\n");
  expect(unifiedDiff("x", "one", undefined)).toBe(
    "--- a/x\n+++ /dev/null\n@@ -1,1 +0,0 @@\n-one\n\\ No newline at end of file\n",
  );
  expect(unifiedDiff("x", "same\n", "same\n")).toBe("");
});
