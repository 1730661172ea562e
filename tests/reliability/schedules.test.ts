/** Whatever befalls the workers, in random order: the run ends, nothing is lost, nothing is counted twice. */
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, test } from "vitest";
import { type BareStack, openBareStack } from "./support/bare_stack.ts";
import { explore, readKept } from "./support/exploring.ts";
import { play } from "./support/play.ts";
import { scheduleArbitrary, scheduleSchema } from "./support/schedules.ts";

// IMAGE_SYNC_SCHEDULES and IMAGE_SYNC_SEED choose others; npm run test:soak draws 10,000.
const schedules = Number(process.env["IMAGE_SYNC_SCHEDULES"] ?? 500);
const seed = Number(process.env["IMAGE_SYNC_SEED"] ?? 20_261_124);
const lanes = 4;
const directory = fileURLToPath(new URL("./fixtures/schedules", import.meta.url));
const kept = await readKept(directory, scheduleSchema);

describe.each([false, true])(
  "whatever befalls the workers, with unique part numbers: %s",
  (hasUniqueNumbers) => {
    let db: BareStack;
    beforeAll(async () => {
      db = await openBareStack();
      if (hasUniqueNumbers) await db.admin`alter table public.part_images add unique (part_number)`;
    });
    afterAll(() => db?.close());

    test.each(kept)("the run ends as it did not once: %s", async (_name, schedule) => {
      await play(schedule, db, { hasUniqueNumbers });
    });

    test.concurrent.each(Array.from({ length: lanes }, (_, lane) => lane))(
      "the run ends, nothing is lost, nothing counted twice (part %i)",
      { timeout: 3_600_000 },
      async (lane) => {
        await explore({
          arbitrary: scheduleArbitrary,
          play: (schedule) => play(schedule, db, { hasUniqueNumbers }),
          runs: Math.ceil(schedules / lanes / 2),
          seed: seed + lane,
          directory,
        });
      },
    );
  },
);
