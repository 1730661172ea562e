/**
 * The documents of the API as a person reads them: `Accept: text/plain` and the commands print the same. Below `text/` a file for each
 * kind of document; what they have in common is `words.ts`.
 */
export * from "./text/report.ts";
export * from "./text/run.ts";
export * from "./text/lists.ts";
export * from "./text/commands.ts";
export * from "./text/safe_text.ts";
export { count, percent, renderTime } from "./text/words.ts";
