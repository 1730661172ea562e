/**
 * Part of `npm run db:types`: writes what a database holds of image-sync that has just been migrated, for `doctor` to compare others with.
 * With `--check` it writes nothing and fails where the file is not what it would write.
 */
import { EXPECTATION, readCatalogue } from "../cli/catalogue/catalogue.ts";
import { readDatabase } from "../cli/catalogue/database.ts";
import { startStack } from "./stack.ts";

async function generate(): Promise<string> {
  const stack = await startStack({ port: 0, dbPort: 0, withFunction: false, stateFile: false, fast: true });
  try {
    const catalogue = await readDatabase(stack.dbUrl, readCatalogue);
    // A line an object, so that a change is read as one; what is the rule is left out.
    const objects = catalogue.objects
      .map((object) => Object.entries(object).filter(([, value]) => value !== null))
      .map((facts) => `    ${JSON.stringify(Object.fromEntries(facts))}`).join(",\n");
    return `{\n  "version": ${JSON.stringify(catalogue.version)},\n  "objects": [\n${objects}\n  ]\n}\n`;
  } finally {
    await stack.stop();
  }
}

const text = await generate();
if (Deno.args.includes("--check")) {
  if (text === await Deno.readTextFile(EXPECTATION)) Deno.exit(0);
  console.error("cli/catalogue/catalogue.json is not what the migrations make. Run: npm run db:types");
  Deno.exit(1);
}
await Deno.writeTextFile(EXPECTATION, text);
Deno.exit(0);
