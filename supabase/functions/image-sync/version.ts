/** The version of the function, as package.json has it; announced to the database. */
export const VERSION = "2.0.0";

/** How a function goes with a schema: not at all, or better after the schema's or the function's own upgrade, or well. */
export type Fit = "mismatch" | "older_schema" | "older_function" | "fits";

/**
 * By semantic versioning (https://semver.org): versions of another major one, before 1.0.0 of another minor one, do not go together.
 * A version that is none goes with nothing.
 */
export function fitOf(schema: string, own: string = VERSION): Fit {
  const [theirs, ours] = [partsOf(schema), partsOf(own)];
  if (theirs === undefined || ours === undefined) return "mismatch";
  const breaking = ours[0] === 0 ? 2 : 1;
  if (theirs.slice(0, breaking).join() !== ours.slice(0, breaking).join()) return "mismatch";
  const difference = theirs.map((part, place) => part - (ours[place] ?? 0)).find((part) => part !== 0) ?? 0;
  if (difference === 0) return "fits";
  return difference < 0 ? "older_schema" : "older_function";
}

function partsOf(version: string): number[] | undefined {
  const [, ...parts] = /^(\d+)\.(\d+)\.(\d+)$/.exec(version) ?? [];
  return parts.length === 3 ? parts.map(Number) : undefined;
}
