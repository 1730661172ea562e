/** Each folder says what it is, what may enter it and what must not, before anything else. */
import { existsSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { describe, expect, test } from "vitest";
import { projectFiles } from "../../local/files.mjs";
import { projectDirectory } from "../support/stack.ts";

const files = projectFiles(/\.(tsx?|sql|mjs|css)$/);
const folders = [...new Set(files.map(dirname))].filter((folder) => folder !== ".").sort();

// The CLI calls every file there a migration; what they are made of says it for them.
const WITHOUT = "supabase/migrations";

describe("the folder", () => {
  const ofTheProject = folders.filter((folder) => !folder.startsWith("tests/") && folder !== WITHOUT);
  test.each(ofTheProject)("%s says in five lines what it is, what may enter and what must not", (folder) => {
    const page = join(projectDirectory, folder, "README.md");
    expect(existsSync(page), `${folder}/README.md is missing`).toBe(true);
    const [title = "", ...lines] = readFileSync(page, "utf8").trim().split("\n").filter(Boolean);
    const saying = lines.slice(0, 5).join(" ");
    expect(title).toMatch(/^# \S/);
    expect(saying).toContain("May enter: ");
    expect(saying).toContain("Must not: ");
  });
});

test("the tests' page names each of their folders", () => {
  const page = readFileSync(join(projectDirectory, "tests/README.md"), "utf8").split("\n## ")[0] ?? "";
  const named = folders.filter((folder) => /^tests\/[^/]+$/.test(folder));
  expect(named.filter((folder) => !page.includes(`\`${folder.replace("tests/", "")}/\``))).toEqual([]);
});
