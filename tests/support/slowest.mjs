#!/usr/bin/env node
// `npm run test:slowest`: every test, and then the ten slowest files and tests of it.
import { readFileSync } from "node:fs";

const { testResults } = JSON.parse(readFileSync(".local/tests.json", "utf8"));
const seconds = (ms) => (ms / 1000).toFixed(1).padStart(7);
const slowest = (list) => list.toSorted((a, b) => b.ms - a.ms).slice(0, 10);
const fileOf = (path) => path.replace(/^.*\/tests\//, "");

const files = testResults.map(({ name, startTime, endTime }) => ({
  name: fileOf(name),
  ms: endTime - startTime,
}));
const tests = testResults.flatMap(({ name, assertionResults }) =>
  assertionResults.map(({ fullName, duration }) => ({
    name: `${fileOf(name)}: ${fullName}`,
    ms: duration ?? 0,
  }))
);
for (const [title, list] of [["files", files], ["tests", tests]]) {
  console.log(`The ten slowest ${title}, in seconds`);
  for (const { name, ms } of slowest(list)) console.log(`${seconds(ms)}  ${name}`);
}
