import { execFile } from "node:child_process";
import { promisify } from "node:util";
import { expect, test } from "vitest";
import { denoPath, projectDirectory } from "../support/stack.ts";

test("the generated types are what the migrations say", async () => {
  const check = promisify(execFile)(denoPath, ["run", "-A", "local/types.ts", "--check"], {
    cwd: projectDirectory,
  });
  await expect(check).resolves.toMatchObject({ stderr: "" });
}, 60_000);
