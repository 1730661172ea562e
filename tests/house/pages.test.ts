/** The pages that people read: as plain text, by an index, and with links that lead somewhere. */
import { access, readdir, readFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { expect, test } from "vitest";
import { performanceTables, type Results } from "../../bench/report.ts";
import { projectFiles } from "../../local/files.mjs";
import { projectDirectory } from "../support/stack.ts";

const WIDTH = 110;
const SCREEN = 40;

const read = (path: string) => readFile(join(projectDirectory, path), "utf8");
const pages = projectFiles(/\.md$/);

/** What of a page is wider than people read, each with its place and what to do. */
function wideLines(page: string, text: string): string[] {
  return text.split("\n").flatMap((line, index) => {
    const width = [...line].length;
    // A word that cannot be broken: an address, a connection string.
    if (width <= WIDTH || /\S{80}/.test(line)) return [];
    const advice = line.trimStart().startsWith("|")
      ? "a table is read as plain text too. Use narrower words, two tables, or a list where cells are sentences"
      : "break it";
    return [`${page}:${index + 1} is ${width} columns wide, ${WIDTH} at most: ${advice}`];
  });
}

/** What a heading is called in an address. */
const anchorOf = (title: string) => title.toLowerCase().replaceAll(/[^\p{L}\w -]/gu, "").replaceAll(" ", "-");

test("a table, a line of code or of prose that is too wide is named with its place", () => {
  const row = `| ${"word ".repeat(30)}|`;
  expect(wideLines("a.md", `# A\n\n${row}\n`)).toEqual([
    expect.stringMatching(
      /^a\.md:3 is 153 columns wide, 110 at most: a table .* list where cells are sentences$/,
    ),
  ]);
  expect(wideLines("a.md", "a ".repeat(60))).toHaveLength(1);
  expect(wideLines("a.md", `https://${"a".repeat(120)}`)).toEqual([]);
});

test("every page can be read as plain text at 110 columns", async () => {
  const wide = await Promise.all(pages.map(async (page) => wideLines(page, await read(page))));
  expect(wide.flat()).toEqual([]);
});

test("the index has every page of docs/, and fits on a screen", async () => {
  const index = await read("docs/README.md");
  expect(index.trimEnd().split("\n").length).toBeLessThanOrEqual(SCREEN);
  for (const page of (await readdir(join(projectDirectory, "docs"))).filter((name) => name.endsWith(".md"))) {
    if (page !== "README.md") expect(index).toContain(`](${page}`);
  }
});

test("links lead to pages and sections that are there", async () => {
  const lost: string[] = [];
  for (const page of pages) {
    for (const [, link = ""] of (await read(page)).matchAll(/\]\(([^)\s]+)\)/g)) {
      if (/^[a-z]+:/.test(link)) continue;
      const [path = "", anchor] = link.split("#");
      const target = path === "" ? page : join(dirname(page), path);
      const isThere = await access(join(projectDirectory, target)).then(() => true, () => false);
      const titles = isThere && anchor !== undefined ? (await read(target)).matchAll(/^#+ (.*)$/gm) : [];
      const isNamed = anchor === undefined ||
        [...titles].some(([, title = ""]) => anchorOf(title) === anchor);
      if (!isThere || !isNamed) lost.push(`${page}: ${link}`);
    }
  }
  expect(lost).toEqual([]);
});

test("decisions stand in the order of their dates, newest first", async () => {
  const titles = [...(await read("docs/decisions.md")).matchAll(/^## (.*)$/gm)].map(([, title = ""]) =>
    title
  );
  expect(titles.filter((title) => !/^\d{4}-\d{2}-\d{2} · \S/.test(title))).toEqual([]);
  const dates = titles.map((title) => title.slice(0, 10));
  expect(dates).toEqual(dates.toSorted().reverse());
});

test("the tables of docs/performance.md are what was measured", async () => {
  const plain = (text: string) => text.replaceAll(/-{3,}/g, "---").replaceAll(/\s+/g, " ").trim();
  const measured = (await read("docs/performance.md")).split("<!-- measured -->")[1]?.split(
    "<!-- end -->",
  )[0];
  const results = JSON.parse(await read("bench/results.json")) as Results;
  // The way to mend it: npm run bench -- --pages
  expect(plain(measured ?? "")).toBe(plain(performanceTables(results)));
});
