import { execFile } from "node:child_process";
import { access, readFile } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { z } from "zod";
import { type LocalStack, projectDirectory, startLocalStack } from "../support/stack.ts";

const notesSchema = z.object({
  results: z.array(z.object({ name: z.string(), level: z.string(), detail: z.string() })),
});
const postgresBin = "/usr/lib/postgresql/15/bin";
const plpgsqlCheck = "/usr/share/postgresql/15/extension/plpgsql_check.control";

const isInstalled = await access(plpgsqlCheck).then(() => true, () => false);
const isRequired = process.env["IMAGE_SYNC_REQUIRE_PG_CRON"] !== undefined;

// The linter is an extension that the Postgres from npm does not have.
describe.runIf(isInstalled || isRequired)("the database, as the Supabase CLI checks it", () => {
  let stack: LocalStack;

  beforeAll(async () => {
    if (!isInstalled) {
      throw new Error("Cannot lint: install Debian's postgresql-15-plpgsql-check and postgresql-15-cron");
    }
    stack = await startLocalStack(["--postgres", postgresBin, "--no-function"]);
  });
  afterAll(() => stack?.stop());

  test("supabase db lint finds nothing, warnings included", async () => {
    const output = await supabase(
      "db",
      "lint",
      "--schema",
      "image_sync,public",
      "--level",
      "warning",
      "--fail-on",
      "warning",
    );
    expect(output).toContain("No schema errors found");
  });

  test("supabase db advisors find nothing but the notes that docs/decisions.md explains", async () => {
    const output = await supabase("db", "advisors", "--level", "info", "--output-format", "json");
    const { results } = notesSchema.parse(JSON.parse(output.slice(output.indexOf("{"))));
    const warnings = results.filter(({ level }) => level !== "INFO").map(({ detail }) => detail);
    expect(warnings.sort()).toEqual(
      ["compare_names", "compare_range", "count_of", "followed_file", "is_url_of"].map((name) =>
        `Function \`image_sync.${name}\` has a role mutable search_path`
      ),
    );
    const decisions = await readFile(join(projectDirectory, "docs/decisions.md"), "utf8");
    for (const { name } of results) expect(decisions).toContain(`\`${name}\``);
  });

  async function supabase(...args: string[]): Promise<string> {
    const path = join(projectDirectory, "node_modules/.bin/supabase");
    const env = { ...process.env, SUPABASE_TELEMETRY_DISABLED: "1", PGSSLMODE: "disable" };
    const run = promisify(execFile)(path, [...args, `--remote=${stack.dbUrl}`], { env });
    const { stdout, stderr } = await run.catch((error) => {
      throw new Error(`${error.message}\n${error.stdout}`);
    });
    return stderr + stdout;
  }
});

test.runIf(!isInstalled && !isRequired)(
  "linting the database needs Debian's postgresql-15-plpgsql-check, which is not installed",
  () => {
    expect(isInstalled).toBe(false);
  },
);
