import type { Host } from "./host.ts";
import { redact } from "./redact.ts";
import { layOut, screenOf } from "./screen.ts";

/** Where a command writes: its result on standard output, everything else on standard error. */
export type Output = {
  /** The command's one result: the document with `--json`, otherwise the text. */
  show(document: unknown, text: () => string): void;
  /** A result that holds a secret which is shown this once, and is laid out for no screen: text to copy. */
  reveal(document: unknown, secret: string, text: () => string): void;
  /** A line for the person who waits. */
  note(text: string): void;
  /** Lines for them with a secret which is shown this once. */
  revealNote(secret: string, text: string): void;
};

// JSON.stringify leaves what lies beyond ASCII's control characters as it is; a terminal may obey or hide some of it.
const unsafeInJson = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu;

/** Makes the output of a command. Neither a key nor a token of a signed URL passes through it. */
export function createOutput(
  host: Pick<Host, "stdout" | "stderr" | "env">,
  options: { json: boolean; key?: string; words?: (text: string) => string },
): Output {
  const { words = (text) => text } = options;
  const redactBut = (text: string, secret: string) =>
    secret === ""
      ? redact(text, options.key)
      : text.split(secret).map((part) => redact(part, options.key)).join(secret);
  return {
    show: (document, text) => {
      const result = options.json ? toJson(document) : layOut(words(text()), screenOf(host.stdout, host.env));
      host.stdout.write(redact(result, options.key));
    },
    reveal: (document, secret, text) => {
      host.stdout.write(redactBut(options.json ? toJson(document) : text(), secret));
    },
    revealNote: (secret, text) => {
      host.stderr.write(`${redactBut(text, secret)}\n`);
    },
    note: (text) => {
      const line = layOut(words(text), screenOf(host.stderr, host.env));
      host.stderr.write(`${redact(line, options.key)}\n`);
    },
  };
}

/** One JSON document and a newline, with nothing in it that a terminal would obey; reads back as what went in. */
export function toJson(document: unknown): string {
  const lines = JSON.stringify(document, undefined, 2).split("\n");
  return lines.map((line) => line.replace(unsafeInJson, escapeUnits)).join("\n") + "\n";
}

function escapeUnits(character: string): string {
  return character.split("").map((unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`).join("");
}
