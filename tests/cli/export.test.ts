/** `image-sync export`: what it writes, what it refuses, and what it leaves behind when it does not get to the end. */
import { chmod, mkdir, readdir, readFile, stat, symlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { spawn } from "node:child_process";
import process from "node:process";
import { describe, expect, test } from "vitest";
import { addressAt } from "../../cli/export/thumbnails.ts";
import { optionalPackage } from "../../cli/export/optional_package.ts";
import { projectDirectory } from "../support/stack.ts";
import { KEY } from "./support/fake_function.ts";
import { countRows } from "../../cli/export/register.ts";
import { exportTo, makeFolder } from "./support/export.ts";
import { plainRow, rowOf, serveRegister } from "./support/fake_register.ts";
import { runCommand } from "./support/run_command.ts";
import { readCsv } from "./support/python.ts";

const header = ["part_number", "file_name", "signed_url", "signed_url_expires_at"];

describe("a CSV file", () => {
  test("is what the function answers, its pages put together", async () => {
    const { url, pages } = await serveRegister({ count: 25, row: plainRow, pageRows: 10 });
    const { path, status, document } = await exportTo("parts.csv", { url });
    expect(status).toBe(0);
    expect(document).toMatchObject({ file: "parts.csv", rows: 25, bytes: (await stat(path)).size });
    const rows = Array.from({ length: 25 }, (_, index) => Object.values(plainRow(index, url)));
    expect(await readCsv(path)).toEqual([header, ...rows]);
    expect((await readFile(path)).subarray(0, 3)).toEqual(Buffer.from([0xef, 0xbb, 0xbf]));
    expect(pages.map(({ after, raw }) => [after, raw])).toEqual([[null, false], ["10", false], [
      "20",
      false,
    ]]);
  });

  test("has names with quotes, commas and line ends whole, and what a spreadsheet would run as the function marks it", async () => {
    const names = [
      '4" pipe, long.jpg',
      "two\nlines.jpg",
      "Größe ½.jpg",
      "😀.jpg",
      "=1+1.jpg",
      "x".repeat(4096),
    ];
    const { url } = await serveRegister({
      count: names.length,
      row: (index, origin) => rowOf(`p${index}`, names[index] ?? "", origin),
    });
    const { path, document } = await exportTo("names.CSV", { url });
    expect(document.rows).toBe(names.length);
    expect((await readCsv(path)).slice(1).map(([, name]) => name)).toEqual(
      names.map((name) => name === "=1+1.jpg" ? "'=1+1.jpg" : name),
    );
  });

  test("of an empty register has its header, and asks for attention", async () => {
    const { url } = await serveRegister({ count: 0, row: plainRow });
    const folder = await makeFolder();
    const result = await runCommand(["export", "none.csv"], { url, directory: folder });
    expect(result.status).toBe(1);
    expect(result.stdout).toContain("No working URL in part-images");
    expect(result.stdout).toContain("npx image-sync status");
    expect(await readCsv(join(folder, "none.csv"))).toEqual([header]);
  });

  test("shows how far it is and how long it still takes", async () => {
    const { url } = await serveRegister({ count: 30, row: plainRow, pageRows: 10 });
    const result = await runCommand(["export", "a.csv"], {
      url,
      directory: await makeFolder(),
      terminal: true,
    });
    expect(result.stderr).toMatch(/\[=+-*\] \d0 of 30 \(\d+ %\)/);
    expect(result.stderr).toMatch(/\[={30}\] 30 of 30 \(100 %\)/);
    expect(result.stdout).toMatch(/^Wrote a\.csv: 30 rows, [\d.]+ kB, in [\d.]+ s\n$/);
  });
});

describe("before anything is fetched, it refuses", () => {
  const refuse = async (args: readonly string[], directory?: string) => {
    const { url, pages } = await serveRegister({ count: 3, row: plainRow });
    const folder = directory ?? await makeFolder();
    const before = await readdir(folder);
    const result = await runCommand(["export", ...args, "--json"], { url, directory: folder });
    expect(result.status).toBe(2);
    expect(pages).toEqual([]);
    expect(await readdir(folder)).toEqual(before);
    return { ...result, error: JSON.parse(result.stdout).error };
  };

  test.each(["parts.xls", "parts", "parts.xlsx.zip", ".csv"])("a file like %s", async (file) => {
    const { error } = await refuse([file]);
    expect(error).toMatchObject({ code: "usage", detail: expect.stringContaining(".csv or .xlsx") });
  });

  test("pictures in a CSV, a size without pictures, and a size that is none", async () => {
    expect((await refuse(["a.csv", "--thumbnails"])).error.detail).toContain("--thumbnails needs a workbook");
    expect((await refuse(["a.xlsx", "--size", "64"])).error.detail).toContain("--thumbnails");
    for (const size of ["15", "513", "1e2", "big"]) {
      expect((await refuse(["a.xlsx", "--thumbnails", "--size", size])).stderr).toContain("from 16 to 512");
    }
  });

  test("a file that exists, and a folder", async () => {
    const folder = await makeFolder();
    await writeFile(join(folder, "mine.xlsx"), "work of mine");
    await mkdir(join(folder, "sub.csv"));
    const { error } = await refuse(["mine.xlsx"], folder);
    expect(error).toMatchObject({ code: "file_exists", detail: expect.stringContaining("--force") });
    expect(await readFile(join(folder, "mine.xlsx"), "utf8")).toBe("work of mine");
    expect((await refuse(["sub.csv", "--force"], folder)).error.detail).toContain("it is a folder");
  });
});

describe("a file that is there", () => {
  test("is replaced with --force, as a whole, and a link stays a link", async () => {
    const { url } = await serveRegister({ count: 3, row: plainRow });
    const folder = await makeFolder();
    await writeFile(join(folder, "old.csv"), "old");
    await symlink("old.csv", join(folder, "link.csv"));
    await exportTo("link.csv", { url, directory: folder, args: ["--force"] });
    expect(await readCsv(join(folder, "old.csv"))).toHaveLength(4);
    expect((await readdir(folder)).sort()).toEqual(["link.csv", "old.csv"]);
  });

  test.each(["parts.csv", "parts.xlsx"])("stays as it was when %s cannot be finished", async (file) => {
    const { url } = await serveRegister({
      count: 30,
      pageRows: 10,
      row: plainRow,
      onPage: ({ after }) => after === "20" ? { status: 400, body: "no" } : undefined,
    });
    const folder = await makeFolder();
    await writeFile(join(folder, file), "old");
    const result = await runCommand(["export", file, "--force"], { url, directory: folder });
    expect(result.status).toBe(2);
    expect(result.stderr).toContain("Cannot understand the answer");
    expect(await readdir(folder)).toEqual([file]);
    expect(await readFile(join(folder, file), "utf8")).toBe("old");
  });
});

test("a folder that is not there, or not to be written to, is said to be that", async () => {
  const { url } = await serveRegister({ count: 3, row: plainRow });
  const folder = await makeFolder();
  for (const file of ["sub/a.csv", "sub/a.xlsx"]) {
    const result = await runCommand(["export", file], { url, directory: folder });
    expect([result.status, result.stderr]).toEqual([
      2,
      expect.stringContaining(`/${file}: its folder does not exist`),
    ]);
  }
  if (process.getuid?.() === 0) return; // whom no folder refuses
  await chmod(folder, 0o500);
  const refused = await runCommand(["export", "a.csv"], { url, directory: folder });
  expect(refused.stderr).toContain("may not be written to");
});

describe("pages", () => {
  test("are asked for again when they were cut, and none counts twice", async () => {
    const { url, pages } = await serveRegister({
      count: 30,
      pageRows: 10,
      row: plainRow,
      onPage: ({ attempt }) => attempt === 1 ? { status: 503, body: "" } : undefined,
    });
    const { path } = await exportTo("a.csv", { url });
    expect((await readCsv(path)).slice(1)).toEqual(
      Array.from({ length: 30 }, (_, index) => Object.values(plainRow(index, url))),
    );
    expect(pages).toHaveLength(6);
  });

  test.each([
    ["another header", "name,url\r\n"],
    ["no header", ""],
    ["a page of HTML", "<html>"],
  ])("with %s are not taken for the register", async (_what, body) => {
    const { url } = await serveRegister({ count: 1, row: plainRow, onPage: () => ({ status: 200, body }) });
    const result = await runCommand(["export", "a.csv", "--json"], { url, directory: await makeFolder() });
    expect(JSON.parse(result.stdout).error.code).toBe("not_understood");
  });

  test.each([
    ["too few values", "1,2,3"],
    ["a time that is none", "1,1.jpg,https://a/b,soon"],
  ])("with %s make no workbook", async (_what, line) => {
    const body = `${header.join(",")}\r\n${line}\r\n`;
    const { url } = await serveRegister({ count: 1, row: plainRow, onPage: () => ({ status: 200, body }) });
    const folder = await makeFolder();
    const result = await runCommand(["export", "a.xlsx", "--json"], { url, directory: folder });
    expect(JSON.parse(result.stdout).error.code).toBe("not_understood");
    expect(await readdir(folder)).toEqual([]);
  });

  test("are counted by their rows, not by their lines", () => {
    expect(countRows("")).toBe(0);
    expect(countRows('a,"b\nc"\r\nd,e\r\n')).toBe(2);
    expect(countRows('"a ""quoted""\n"\r\nb')).toBe(2);
  });
});

describe("Ctrl-C", () => {
  test.each(["parts.csv", "parts.xlsx"])("leaves nothing of %s", async (file) => {
    let interrupt = () => {};
    const { url } = await serveRegister({
      count: 100,
      pageRows: 10,
      row: plainRow,
      onPage: ({ after }) => {
        if (after === "50") interrupt();
        return undefined;
      },
    });
    const folder = await makeFolder();
    const result = await runCommand(["export", file], {
      url,
      directory: folder,
      onReady: (press) => interrupt = press,
    });
    expect(result.status).toBe(130);
    expect(result.stderr).toContain(`Stopped; ${file} was not written`);
    expect(await readdir(folder)).toEqual([]);
  });

  test("reaches the command through its launcher", async () => {
    const folder = await makeFolder();
    let stop = () => {};
    const { url } = await serveRegister({
      count: 100,
      pageRows: 10,
      row: plainRow,
      onPage: ({ after }) => {
        if (after === "50") stop();
        return undefined;
      },
    });
    const launcher = join(projectDirectory, "cli/image-sync.mjs");
    const child = spawn(process.execPath, [launcher, "export", "parts.xlsx"], {
      cwd: folder,
      env: { ...process.env, SUPABASE_URL: url, SUPABASE_SECRET_KEY: KEY },
    });
    stop = () => child.kill("SIGINT");
    const code = await new Promise((resolve) => child.on("close", resolve));
    expect([code, await readdir(folder)]).toEqual([130, []]);
  });
});

test("a package that an installation has left out is named, with how to get it", async () => {
  const load = optionalPackage("no-such-package", () => import("no-such-package" as string));
  await expect(load).rejects.toMatchObject({
    code: "missing_package",
    message: expect.stringContaining("npm install no-such-package"),
  });
});

test("a picture is asked for at the project itself, whatever address stands in its row", () => {
  const project = "https://abcdefgh.supabase.co";
  expect(addressAt(project, "https://photos.example.com/storage/v1/object/sign/b/a%20b.jpg?token=t")).toBe(
    `${project}/storage/v1/object/sign/b/a%20b.jpg?token=t`,
  );
  for (
    const url of [
      "http://169.254.169.254/latest/meta-data",
      "file:///etc/passwd",
      `${project}/storage/v1/object/sign/../../../functions/v1/image-sync`,
      `${project}/storage/v1/object/sign/%2e%2e/%2e%2e/x`,
      "",
    ]
  ) expect(() => addressAt(project, url), url).toThrow("not one that Storage signed");
});
