import { styleText } from "node:util";
import type { Host } from "./host.ts";

/** The terminal that a text is laid out for. */
export type Screen = {
  /** Its width in characters; words are not wrapped without one. */
  readonly columns: number | undefined;
  readonly isColoured: boolean;
};

/** What a stream shows: its width where it is a terminal, colours where the user has not forbidden them (https://no-color.org). */
export function screenOf(stream: Host["stdout"] & { readonly columns?: number }, env: Host["env"]): Screen {
  const isTerminal = stream.isTTY === true;
  const isColoured = isTerminal && !env["NO_COLOR"] && env["TERM"] !== "dumb";
  return { columns: isTerminal ? stream.columns : undefined, isColoured };
}

/** Wraps a text at words, each line as far to the right as what it goes on from, and colours what a colour helps to find. */
export function layOut(text: string, { columns, isColoured }: Screen): string {
  return text.split("\n").flatMap((line) => wrap(line, columns))
    .map((line) => isColoured ? colour(line) : line).join("\n");
}

// What is typed or pasted as it stands is one line, however long: the terminal breaks it and copies it whole.
const isCommand = (line: string) => /^ *(Run|SQL|Next|To [a-z ]+): /.test(line);
const NARROWEST = 20;

function wrap(line: string, columns: number | undefined): string[] {
  if (columns === undefined || columns < NARROWEST || line.length <= columns || isCommand(line)) {
    return [line];
  }
  // A label stands alone in its column.
  const indent = /^ {2}\S.{0,12} {2,}(?=\S)|^ */.exec(line)?.[0].length ?? 0;
  const lines: string[] = [];
  let start = line.slice(0, indent);
  let current = "";
  for (const word of line.slice(indent).split(" ")) {
    if (current !== "" && start.length + current.length + 1 + word.length > columns) {
      lines.push(start + current);
      start = " ".repeat(indent);
      current = word;
    } else current = current === "" ? word : `${current} ${word}`;
  }
  return [...lines, start + current];
}

const COLOURS = [
  [/^ *✖.*|(?<=: )(needs attention|failed)\b/, "red"],
  [/^ *▲.*|(?<=: )(partial|cancelled)\b/, "yellow"],
  [/^ *✔.*|(?<=: )(healthy|succeeded|in sync)\b/, "green"],
  [/(?<=^ *(Run|SQL|Next|To [a-z ]+): ).*/, "cyan"],
] as const;

function colour(line: string): string {
  for (const [pattern, hue] of COLOURS) {
    if (pattern.test(line)) {
      return line.replace(pattern, (part) => styleText(hue, part, { validateStream: false }));
    }
  }
  return line;
}
