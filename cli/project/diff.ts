/** What differs between two texts, as `diff -u` prints it. */

const CONTEXT = 3; // lines

type Line = { readonly sign: " " | "-" | "+"; readonly text: string };

/**
 * The unified diff of a file, empty where nothing differs.
 *
 * @param before undefined where there is no such file yet
 * @param after undefined where there will be none
 */
export function unifiedDiff(path: string, before: string | undefined, after: string | undefined): string {
  const lines = compare(linesOf(before ?? ""), linesOf(after ?? ""));
  const changed = lines.flatMap(({ sign }, place) => sign === " " ? [] : [place]);
  if (changed.length === 0) return "";
  const hunks: { first: number; end: number }[] = [];
  for (const place of changed) {
    const last = hunks.at(-1);
    const [first, end] = [Math.max(place - CONTEXT, 0), Math.min(place + CONTEXT + 1, lines.length)];
    if (last !== undefined && first <= last.end) last.end = end;
    else hunks.push({ first, end });
  }
  return [
    before === undefined ? "--- /dev/null" : `--- a/${path}`,
    after === undefined ? "+++ /dev/null" : `+++ b/${path}`,
    ...hunks.flatMap(({ first, end }) => [
      `@@ -${rangeOf(lines, first, end, "+")} +${rangeOf(lines, first, end, "-")} @@`,
      ...lines.slice(first, end).map(({ sign, text }) =>
        text.endsWith("\n") ? sign + text.slice(0, -1) : `${sign}${text}\n\\ No newline at end of file`
      ),
    ]),
    "",
  ].join("\n");
}

/** Where a hunk begins and how many lines it has, on the side that has no lines of the other's sign. */
function rangeOf(lines: readonly Line[], first: number, end: number, other: "-" | "+"): string {
  const count = (some: readonly Line[]) => some.filter(({ sign }) => sign !== other).length;
  const [above, length] = [count(lines.slice(0, first)), count(lines.slice(first, end))];
  return `${length === 0 ? above : above + 1},${length}`;
}

function linesOf(text: string): string[] {
  return text.match(/[^\n]*\n|[^\n]+$/g) ?? [];
}

/** All lines of both, by a longest common subsequence; what is equal at both ends is not looked at. */
function compare(before: readonly string[], after: readonly string[]): Line[] {
  const shorter = Math.min(before.length, after.length);
  let head = 0;
  while (head < shorter && before[head] === after[head]) head++;
  let tail = 0;
  while (tail < shorter - head && before.at(-1 - tail) === after.at(-1 - tail)) tail++;
  const [olds, news] = [before.slice(head, before.length - tail), after.slice(head, after.length - tail)];
  const width = news.length + 1;
  // The length of the longest subsequence behind each pair of places.
  const lengths = new Uint32Array((olds.length + 1) * width);
  const at = (old: number, now: number) => lengths[old * width + now] ?? 0;
  for (let old = olds.length - 1; old >= 0; old--) {
    for (let now = news.length - 1; now >= 0; now--) {
      lengths[old * width + now] = olds[old] === news[now]
        ? at(old + 1, now + 1) + 1
        : Math.max(at(old + 1, now), at(old, now + 1));
    }
  }
  const middle: Line[] = [];
  for (let [old, now] = [0, 0]; old < olds.length || now < news.length;) {
    const isBoth = old < olds.length && now < news.length && olds[old] === news[now];
    const isOld = !isBoth && old < olds.length &&
      (now === news.length || at(old + 1, now) >= at(old, now + 1));
    middle.push({
      sign: isBoth ? " " : isOld ? "-" : "+",
      text: (isBoth || isOld ? olds[old] : news[now]) ?? "",
    });
    if (isBoth || isOld) old++;
    if (!isOld) now++;
  }
  const same = (text: string): Line => ({ sign: " ", text });
  return [...before.slice(0, head).map(same), ...middle, ...before.slice(before.length - tail).map(same)];
}
