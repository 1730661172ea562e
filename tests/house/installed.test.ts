/** What somebody has to look through who brings image-sync into a repository. */
import { mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, onTestFinished, test } from "vitest";
import { runCommand } from "../cli/support/run_command.ts";

const MOST_LINES = 13_800;

test(`init writes ${MOST_LINES} lines at most`, async () => {
  const directory = await mkdtemp(join(tmpdir(), "image-sync-"));
  onTestFinished(() => rm(directory, { recursive: true }));
  await runCommand(["init", "--yes"], { directory });
  const entries = await readdir(directory, { recursive: true, withFileTypes: true });
  const texts = await Promise.all(
    entries.filter((entry) => entry.isFile()).map((entry) =>
      readFile(join(entry.parentPath, entry.name), "utf8")
    ),
  );
  expect(texts.length).toBeGreaterThan(30);
  expect(texts.join("").split("\n").length).toBeLessThanOrEqual(MOST_LINES);
});
