/**
 * Every shape that crosses a boundary, defined once: what callers send, what the database and Storage answer, what the
 * function answers. Documents that only pass through (a run, a report) keep the names of the wire; what the worker works
 * with is turned into camelCase here and nowhere else. Imported by all, imports none.
 */
export * from "./contract/basics.ts";
export * from "./contract/requests.ts";
export * from "./contract/runs.ts";
export * from "./contract/report.ts";
export * from "./contract/lists.ts";
export * from "./contract/register.ts";
export * from "./contract/answers.ts";
export * from "./contract/work.ts";
export * from "./contract/window.ts";
