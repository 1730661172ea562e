/** The register in files, from a bucket to what a spreadsheet shows, with the commands as they are typed. */
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import sharp from "sharp";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { npmRun } from "../report/support/command.ts";
import { makeFolder } from "../cli/support/export.ts";
import { missingReaders, readBook, readCsv } from "../cli/support/python.ts";
import { addObjects, numberedNames, runToEnd, upload } from "../sync/support/lab.ts";
import { addCopies, type LocalLab, openLocalLab } from "../sync/support/local_lab.ts";

const missing = await missingReaders();
const unless = missing === undefined ? "" : ` (left out: ${missing})`;
const bucket = "part-images";
/** Names that Storage takes and spreadsheets stumble over. */
const awkward = [
  "=1+1.jpg",
  "+44.jpg",
  "-5.jpg",
  "@SUM.jpg",
  "A&B's, part.jpg",
  "folder/009900.jpg",
  "  spaced.jpg",
  "1e5.jpg",
  "TRUE.JPG",
];

/** The register as SQL has it. */
type Expected = { part_number: string; file_name: string; signed_url: string; expires: string };

async function readRegister(lab: LocalLab): Promise<readonly Expected[]> {
  const [query] = await lab.sql<{ text: string }[]>`select image_sync.register_query() as text`;
  return await lab.sql.unsafe<Expected[]>(
    `select part_number, file_name, signed_url,
      to_char(signed_url_expires_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') as expires
    from (${query?.text}) as register
    where bucket_id = $1
    order by look_up_key collate "C"`,
    [bucket],
  );
}

describe.skipIf(missing !== undefined)(`a bucket, read out of files${unless}`, { timeout: 90_000 }, () => {
  let lab: LocalLab;
  let expected: readonly Expected[];
  beforeAll(async () => {
    lab = await openLocalLab();
    await lab.supabase.storage.createBucket(bucket, { public: false });
    const picture = await sharp({ create: { width: 64, height: 48, channels: 3, background: "#c00" } }).jpeg()
      .toBuffer();
    for (const name of awkward) await upload(lab, bucket, name, new Uint8Array(picture));
    await addObjects(lab, bucket, numberedNames(1_500));
    expect((await runToEnd(lab, bucket)).state).toBe("succeeded");
    // The night may fall while the test runs, and would sign anew what has died here.
    await lab.sql`update image_sync.settings set nightly = false`;
    // A row whose URL is dead is nothing to show.
    await lab
      .sql`update public.part_images set signed_url_expires_at = now() - interval '1 hour' where file_name = '000007.jpg'`;
    expected = await readRegister(lab);
    expect(expected).toHaveLength(awkward.length + 1_499);
  }, 120_000);
  afterAll(() => lab?.close());

  const exportFile = async (file: string, ...args: string[]) => {
    const path = join(await makeFolder(), file);
    const ended = await npmRun(lab.stack, "export", [path, "--json", ...args]);
    return { path, code: ended.code, result: JSON.parse(ended.stdout), stderr: ended.stderr };
  };
  const opens = async (url: string) => {
    const response = await fetch(url);
    const { format } = await sharp(Buffer.from(await response.arrayBuffer())).metadata();
    return [response.status, format];
  };

  test("a workbook has every row of the register, cell by cell, and its URLs open the images", async () => {
    const { path, code, result, stderr } = await exportFile("parts.xlsx");
    expect([code, result.rows]).toEqual([0, expected.length]);
    expect(stderr).toMatch(/^Project http:\S+ \(the environment\), bucket part-images \(the default\)\n/);
    const [sheet] = (await readBook(path)).sheets;
    const rows = sheet?.rows.slice(1).map((row) => row.map(({ value }) => value)) ?? [];
    expect(rows).toEqual(expected.map(({ part_number, file_name, signed_url, expires }, index) => [
      part_number,
      file_name,
      signed_url,
      expires,
      `=_xlfn.IMAGE(C${index + 2})`,
    ]));
    const uploaded = rows.filter(([, name]) => awkward.includes(String(name)));
    expect(uploaded).toHaveLength(awkward.length);
    for (const [, name, url] of uploaded) {
      expect([name, ...await opens(String(url))]).toEqual([name, 200, "jpeg"]);
    }
  });

  test("look-ups of 1,000 part numbers in the workbook give the same as SQL", async () => {
    const { path } = await exportFile("parts.xlsx");
    const [sheet] = (await readBook(path)).sheets;
    // As XLOOKUP compares: the first that is equal but for the case of its letters.
    const found = new Map<string, unknown>();
    for (const [part, , url] of sheet?.rows.slice(1) ?? []) {
      const key = String(part?.value).toLowerCase();
      if (!found.has(key)) found.set(key, url?.value);
    }
    const asked = Array.from({ length: 1_000 }, (_, index) => String(1 + index * 2).padStart(6, "0"));
    asked.push("true", "=1+1", "nothing");
    const rows = await lab.sql<{ asked: string; signed_url: string | null }[]>`
      select a.part as asked, r.signed_url
      from unnest(${asked}::text[]) as a (part)
      left join public.part_register r on lower(r.part_number) = lower(a.part)`;
    expect(rows).toHaveLength(asked.length);
    for (const row of rows) {
      expect([row.asked, found.get(row.asked) ?? null]).toEqual([row.asked, row.signed_url]);
    }
  });

  test("a CSV file is the register as it is downloaded", async () => {
    const { path, code, result } = await exportFile("parts.csv");
    expect([code, result.rows]).toEqual([0, expected.length]);
    const rows = await readCsv(path);
    const downloaded = await lab.call({ query: `/register.csv?bucket=${bucket}` });
    expect(Buffer.from(await downloaded.arrayBuffer())).toEqual(await readFile(path));
    expect(rows.slice(1).map(([part, name, url]) => [part?.replace(/^'/, ""), name?.replace(/^'/, ""), url]))
      .toEqual(
        expected.map(({ part_number, file_name, signed_url }) => [part_number, file_name, signed_url]),
      );
    expect(rows.filter(([, name]) => name?.startsWith("'")).map(([, name]) => name)).toEqual(
      expected.map(({ file_name }) => file_name).filter((name) => /^[=+@-]/.test(name)).map((name) =>
        `'${name}`
      ),
    );
  });

  test("of a bucket that nobody keeps in step there is no file", async () => {
    const { code, result } = await exportFile("parts.xlsx", "--bucket", "no-such-bucket");
    expect(code).toBe(2);
    expect(result.error.code).toBe("unknown_bucket");
  });
});

describe("thumbnails", () => {
  let lab: LocalLab;
  beforeAll(async () => {
    lab = await openLocalLab();
    await lab.supabase.storage.createBucket(bucket, { public: false });
    await uploadPhotos(lab, 4_000);
    await upload(lab, bucket, "broken.jpg", new Uint8Array(Buffer.from("no picture")));
    expect((await runToEnd(lab, bucket)).state).toBe("succeeded");
  }, 240_000);
  afterAll(() => lab?.close());

  test("of 4,000 images are in a workbook within two minutes, and the broken file is named", async () => {
    const path = join(await makeFolder(), "parts.xlsx");
    const startedAt = performance.now();
    const ended = await npmRun(lab.stack, "export", [path, "--thumbnails", "--json"]);
    const seconds = (performance.now() - startedAt) / 1000;
    expect(ended.code, ended.stderr).toBe(1);
    const { rows, thumbnails } = JSON.parse(ended.stdout);
    expect({ rows, thumbnails }).toEqual({
      rows: 4_001,
      thumbnails: {
        placed: 4_000,
        left_out: [{ file_name: "broken.jpg", reason: "the file is no picture" }],
      },
    });
    expect(ended.stderr).toMatch(/export: [\d,]+ of 4,001 \(\d+ %\), [\d.,]+ a second, about .+ left/);
    expect(seconds).toBeLessThan(120);
    if (missing !== undefined) return;
    const [sheet] = (await readBook(path)).sheets;
    const names = sheet?.rows.map((row) => row[1]?.value) ?? [];
    // Each beside its own name, none beside the broken one.
    expect(sheet?.pictures).toHaveLength(4_000);
    for (const { row, name } of sheet?.pictures ?? []) expect([row, names[row - 1]]).toEqual([row, name]);
    expect(sheet?.pictures.some(({ name }) => name === "broken.jpg")).toBe(false);
  }, 240_000);
});

/** Photos as a camera makes them, at a size that an upload of thousands bears. */
async function uploadPhotos(lab: LocalLab, count: number): Promise<void> {
  const photo = new Uint8Array(
    await sharp({
      create: {
        width: 800,
        height: 600,
        channels: 3,
        background: "#888",
        noise: { type: "gaussian", mean: 128, sigma: 6 },
      },
    }).jpeg({ quality: 60 }).toBuffer(),
  );
  const [first = "", ...names] = numberedNames(count);
  await upload(lab, bucket, first, photo);
  await addCopies(lab, { bucket, of: first, names });
}
