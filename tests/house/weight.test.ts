/** What of the schema somebody has to read: bounds that only go down. Asked of 2.0: 6,500 lines, 150 functions, 15 of them over 50 lines. */
import { readdirSync, readFileSync } from "node:fs";
import { expect, test } from "vitest";

const folder = new URL("../../supabase/schemas/", import.meta.url);
const texts = readdirSync(folder).filter((file) => file.endsWith(".sql"))
  .map((file) => readFileSync(new URL(file, folder), "utf8"));

/** Each function with its lines, from its head to the end of its body. */
const functions = texts.flatMap((text) =>
  [...text.matchAll(/^create (?:or replace )?function ([\w.]+)[\s\S]*?^\$\$;$/gm)]
    .map(([whole, name]) => ({ name, lines: whole.split("\n").length }))
);

test("the schema has 8,150 lines at most", () => {
  expect(texts.join("").split("\n").length).toBeLessThanOrEqual(8_150);
});

test("it has 204 functions at most, 32 of them of more than 50 lines, none of more than 130", () => {
  expect(functions.length).toBeGreaterThan(100);
  expect(functions.length).toBeLessThanOrEqual(204);
  expect(functions.filter(({ lines }) => lines > 50).length).toBeLessThanOrEqual(32);
  expect(functions.filter(({ lines }) => lines > 130)).toEqual([]);
});

test("a chunk has 20 columns at most", () => {
  const [table = ""] = /^create table image_sync\.chunks \([\s\S]*?^\);/m.exec(texts.join("\n")) ?? [];
  const columns = table.split("\n").filter((line) => /^ {2}(?!constraint)\w+ /.test(line));
  expect(columns.length).toBeGreaterThan(10);
  expect(columns.length).toBeLessThanOrEqual(20);
});
