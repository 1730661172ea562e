import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { log, logChunk, messageOf, redact } from "../../supabase/functions/image-sync/log.ts";

let lines: string[];
beforeEach(() => {
  lines = [];
  vi.spyOn(console, "log").mockImplementation((line: string) => void lines.push(line));
});
afterEach(() => {
  vi.restoreAllMocks();
});

test("an event is one line of JSON", () => {
  log("run_ended", { run: "an id", text: "two\nlines", missing: undefined });
  expect(lines.map((line) => JSON.parse(line))).toEqual([{
    event: "run_ended",
    run: "an id",
    text: "two\nlines",
  }]);
});

test("tokens, JWTs and keys are blotted out wherever they stand, and the line stays JSON", () => {
  const secrets =
    "http://x/y.jpg?token=eyJhbGciOi.eyJ1cmwi.sig-_x&a=1 eyJhbGciOi.eyJ1cmwi.sig sb_secret_aB3-_x sb_publishable_y";
  log("failed", { error: secrets });
  expect(JSON.parse(lines[0] ?? "")).toEqual({
    event: "failed",
    error: "http://x/y.jpg?token=[redacted]&a=1 [redacted] sb_secret_[redacted] sb_publishable_[redacted]",
  });
  expect(redact("nothing to hide: a_token is here")).toBe("nothing to hide: a_token is here");
});

test("no more than 50 chunk lines are written in 10 s; what was left out is counted in the next line", () => {
  const start = 1_000_000_000_000;
  for (let number = 1; number <= 80; number++) logChunk({ number }, start + number);
  expect(lines).toHaveLength(50);
  logChunk({ number: 81 }, start + 10_001);
  logChunk({ number: 82 }, start + 10_002);
  expect(lines.slice(50).map((line) => JSON.parse(line))).toEqual([
    { event: "chunk", number: 81, lines_left_out: 30 },
    { event: "chunk", number: 82 },
  ]);
});

test("the words of whatever was thrown are short, redacted and storable", () => {
  expect(messageOf(new Error("Failed with sb_secret_abc"))).toBe("Failed with sb_secret_[redacted]");
  expect(messageOf({ message: "an object" })).toBe("an object");
  expect(messageOf("a string")).toBe("a string");
  expect(messageOf(undefined)).toBe("undefined");
  expect(messageOf(new Error("x".repeat(5000)))).toHaveLength(500);
  expect(messageOf(new Error(`${"x".repeat(499)}😀\0`)).isWellFormed()).toBe(true);
  expect(messageOf(new Error("a\0b"))).not.toContain("\0");
});
