/** Runs before each file where a Supabase is given: nothing of a file that is not made for it begins. */
import { expect } from "vitest";
import { SAFE_FILES } from "./given.ts";

const file = expect.getState().testPath?.replaceAll("\\", "/") ?? "";
if (!SAFE_FILES.some((safe) => file.endsWith(`/${safe}`))) {
  throw new Error(
    `Cannot run ${file} against the Supabase of IMAGE_SYNC_TEST_URL: it changes more than its own rows; unset the variables, or ` +
      `run those that may: npx vitest run ${SAFE_FILES.join(" ")}`,
  );
}
