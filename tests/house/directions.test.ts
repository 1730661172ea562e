/** Which way imports run. */
import { expect, test } from "vitest";
import { wrongWays } from "../../local/directions.mjs";
import { projectFiles } from "../../local/files.mjs";

const FUNCTION = "supabase/functions/image-sync";

test.each([
  ["what is below", `${FUNCTION}/api.ts`, "./database.ts", true],
  ["its own folder", `${FUNCTION}/text/report.ts`, "./run.ts", true],
  ["the shapes, from the commands", "cli/client.ts", `../${FUNCTION}/contract.ts`, true],
  ["anything, from tests", "tests/a.test.ts", "../local/stack.ts", true],
  ["what is above", `${FUNCTION}/database.ts`, "./api.ts", false],
  ["words, from the shapes", `${FUNCTION}/contract/runs.ts`, "../text.ts", false],
  ["a module that nobody has given a floor", `${FUNCTION}/worker.ts`, "./new.ts", false],
  ["the stack, from the function", `${FUNCTION}/index.ts`, "../../../local/stack.ts", false],
  ["the stack, from the commands", "cli/main.ts", "../local/stack.ts", false],
  ["the worker, from the commands", "cli/main.ts", `../${FUNCTION}/worker.ts`, false],
  ["tests, from the stack", "local/stack.ts", "../tests/support/stack.ts", false],
])("%s: %s importing %s is right: %s", (_what, file, specifier, isRight) => {
  const wrong = wrongWays([file], () => `import { a } from "${specifier}";`);
  expect(wrong.length === 0).toBe(isRight);
});

test("the project's own run the right way", () => {
  expect(wrongWays(projectFiles(/\.tsx?$/))).toEqual([]);
});
