/**
 * `npm run bench`: what a person deciding for this project would ask, measured on the embedded stack, part by part. `-- --only NAME`
 * measures that part alone (may be repeated) and leaves the figures of the others as they stand; `-- --ten-million` adds that
 * part; `-- --quick` tries all of it on small buckets and writes nothing; `-- --pages` measures nothing, and makes the tables of the
 * pages anew from what was measured.
 */
import { parseArgs } from "node:util";
import { say } from "./measure.ts";
import { type Before, type Figures, type Part, PARTS, type Sizes, TEN_MILLION } from "./parts.ts";
import { readResults, targetTable, writePages, writeResults } from "./report.ts";
import { startBenchStack } from "./stack.ts";

const { values: flags } = parseArgs({
  args: Deno.args,
  options: {
    "quick": { type: "boolean", default: false },
    "pages": { type: "boolean", default: false },
    "only": { type: "string", multiple: true, default: [] },
    "ten-million": { type: "boolean", default: false },
    "rounds": { type: "string", default: "5" },
    "large-rounds": { type: "string", default: "3" },
  },
});

const sizes: Sizes = flags.quick
  ? { small: 2_000, middle: 5_000, large: 20_000, huge: 40_000, rounds: 1, largeRounds: 1 }
  : {
    small: 10_000,
    middle: 100_000,
    large: 1_000_000,
    huge: 10_000_000,
    rounds: Number(flags.rounds),
    largeRounds: Number(flags["large-rounds"]),
  };

function chosenParts(): readonly Part[] {
  const unknown = flags.only.find((name) => !PARTS.some((part) => part.name === name));
  if (unknown !== undefined) {
    throw new Error(`Cannot measure ${unknown}: the parts are ${PARTS.map(({ name }) => name).join(", ")}`);
  }
  return PARTS.filter(({ name }) =>
    flags.only.length > 0 ? flags.only.includes(name) : name !== TEN_MILLION || flags["ten-million"]
  );
}

async function main(): Promise<void> {
  const parts = chosenParts();
  say(
    `about ${parts.reduce((sum, { minutes }) => sum + minutes, 0)} minutes: ${
      parts.map(({ name }) => name).join(", ")
    }`,
  );
  const stack = await startBenchStack();
  try {
    const [version] = await stack.sql<{ v: string }[]>`select split_part(version(), ' on ', 1) as v`;
    const figures: Record<string, Figures> = {};
    for (const [place, part] of parts.entries()) {
      say(`${place + 1} of ${parts.length}: ${part.name}: ${part.what}`);
      const before: Before = flags.quick ? figures : { ...(await readResults()).parts, ...figures };
      const measured = figures[part.name] = await part.measure(stack, sizes, before);
      console.log(targetTable(measured.targets));
      // Part by part: what was measured is kept, whatever becomes of the rest.
      if (!flags.quick) await writeResults({ [part.name]: measured }, version?.v ?? "");
    }
  } finally {
    await stack.stop();
  }
}

await (flags.pages ? writePages() : main()).then(() => Deno.exit(0), (error: unknown) => {
  console.error(error instanceof Error ? error.stack : String(error));
  Deno.exit(1);
});
