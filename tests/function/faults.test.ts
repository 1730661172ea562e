import { describe, expect, test } from "vitest";
import { createDatabase, DatabaseError } from "../../supabase/functions/image-sync/database.ts";
import { faultOf, isPassing } from "../../supabase/functions/image-sync/faults.ts";
import { createTestClient } from "../support/client.ts";

const fault = (code: string, status: number, message = "no") =>
  faultOf(new DatabaseError("image_sync_advance", code, status, message));

describe("an error of the database", () => {
  test.each([
    ["57014", 500, "database_timeout", true],
    ["55P03", 500, "row_locked", true],
    ["40P01", 500, "deadlock", true],
    ["40001", 500, "deadlock", true],
    ["57P01", 500, "database_unavailable", false],
    ["53300", 503, "database_unavailable", false],
    ["08006", 503, "database_unavailable", false],
    ["PGRST001", 503, "database_unavailable", false],
    ["", 0, "database_unavailable", false],
    ["PGRST202", 404, "schema_missing", false],
    ["23514", 400, "database_refused", false],
    ["P0001", 400, "database_refused", false],
  ])("%s is told by its code, whatever the HTTP status", (sqlstate, status, code, passing) => {
    const told = fault(sqlstate, status);
    expect(told.code).toBe(code);
    expect(isPassing(told)).toBe(passing);
    expect(told.title).toMatch(/^[A-Z].*[^.]$/);
    expect(`${told.title} ${told.detail}`).not.toMatch(/Storage|sign/);
  });

  test("names the command that works on a linked project", () => {
    expect(fault("PGRST202", 404).detail).toContain("npx supabase db push --remote");
  });
});

describe("an answer that the database did not give", () => {
  test.each([[402, "exceeded its quota"], [403, "firewall"], [540, "paused"], [546, "compute limit"]])(
    "is told in its words and what it means: %i",
    async (status, meaning) => {
      const answer = new Response("<h1>Words of a page</h1>", {
        status,
        headers: { "content-type": "text/html" },
      });
      const client = createTestClient("http://127.0.0.1:9", "sb_secret_x", () => Promise.resolve(answer));
      const error: unknown = await createDatabase(client).readRun(crypto.randomUUID()).catch((
        error: unknown,
      ) => error);
      expect(error).toBeInstanceOf(DatabaseError);
      const told = faultOf(error as DatabaseError);
      expect(told).toMatchObject({ code: "database_unavailable", title: "The database did not answer" });
      expect(told.detail).toContain(`HTTP ${status}: "Words of a page"`);
      expect(told.detail).toContain(meaning);
      // The run waits: nothing of it has failed.
      expect((error as DatabaseError).isRefusal).toBe(false);
    },
  );
});

describe("a right that is missing", () => {
  test.each([
    [
      "table part_images",
      "permission_denied",
      "grant select, insert, update, delete on public.part_images to service_role;",
    ],
    ["table journal", "permission_denied", "grant select, insert, update on journal to service_role;"],
    [
      "sequence journal_id_seq",
      "permission_denied",
      "grant usage on sequence journal_id_seq to service_role;",
    ],
    ["function audit", "permission_denied", "grant execute on function audit to service_role;"],
    ["schema audit", "permission_denied", "grant usage on schema audit to service_role;"],
    ['table "My Journal"', "permission_denied", "My Journal"],
    ["table objects", "listing_failed", "grant select on storage.objects"],
    ["schema storage", "listing_failed", "grant usage on schema storage"],
  ])("is named with its own remedy: %s", (object, code, remedy) => {
    const told = fault("42501", 403, `permission denied for ${object}`);
    expect(told.code).toBe(code);
    expect(told.detail).toContain(remedy);
    if (!object.includes("part_images")) expect(told.detail).not.toContain("on public.part_images");
  });
});
