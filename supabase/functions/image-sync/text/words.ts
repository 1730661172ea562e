/** The words of a page: numbers, times, names and the lines that hold them. No colours, and no character that a terminal would obey. */
import { safeText } from "./safe_text.ts";

/** A labelled line. */
export type Row = readonly [label: string, text: string];

/** A difference or a finding shows its first few names; all of the samples are in the JSON. */
export const SAMPLES_SHOWN = 5;
/** How wide the labels of a block of rows are. */
export const LABEL_WIDTH = 12;

/** A moment in GMT, as the schedule has it: `2026-11-24 02:00 GMT`. */
export function renderTime(timestamp: string): string {
  const time = new Date(timestamp);
  if (Number.isNaN(time.getTime())) return safeText(timestamp);
  return `${time.toISOString().slice(0, 16).replace("T", " ")} GMT`;
}

/** The first names of a list, and how many more there are. */
export function sampleLines(
  { samples, count: number, indent, shown = SAMPLES_SHOWN }: {
    samples: readonly string[];
    count: number;
    indent: number;
    shown?: number;
  },
): string[] {
  const lines = samples.slice(0, shown).map(name);
  const more = number - lines.length;
  if (lines.length > 0 && more > 0) lines.push(`and ${count(more)} more`);
  return lines.map((line) => " ".repeat(indent) + line);
}

/** A file's name; quoted where its ends cannot be seen. */
export function name(text: string): string {
  return text === "" || text.trim() !== text ? `"${safeText(text)}"` : safeText(text);
}

/** Blocks of lines with an empty line between them. */
export function sections(all: readonly (readonly string[])[]): string {
  return all.filter((lines) => lines.length > 0).map((lines) => lines.join("\n")).join("\n\n") + "\n";
}

/** Rows as lines; those without a text have nothing to say. */
export function rows(all: readonly Row[]): string[] {
  return all.filter(([, text]) => text !== "").map(([label, text]) =>
    `  ${label.padEnd(LABEL_WIDTH)}  ${text}`
  );
}

const numbers = new Intl.NumberFormat("en-US", { maximumFractionDigits: 1 });

/** A number with its thousands apart; `unknown` for none. */
export function count(number: number | null | undefined): string {
  return number === null || number === undefined ? "unknown" : numbers.format(number);
}

/** A number of things: `1 file`, `2 files`. */
export function quantity(number: number, one: string, many = `${one}s`): string {
  return `${count(number)} ${number === 1 ? one : many}`;
}

/** A part in percent, rounded down: 100 % means all of them. */
export function percent(fraction: number | null): string {
  return fraction === null ? "an unknown part" : `${count(Math.floor(fraction * 1000) / 10)} %`;
}

/** A size: `2.3 GB`. */
export function bytes(number: number): string {
  const units = ["bytes", "kB", "MB", "GB", "TB", "PB"];
  const power = number < 1000 ? 0 : Math.min(Math.floor(Math.log10(number) / 3), units.length - 1);
  return `${count(number / 1000 ** power)} ${units[power]}`;
}

/** A time in seconds as a person says it. */
export function duration(seconds: number): string {
  if (seconds < 10) return `${count(seconds)} s`;
  if (seconds < 60) return `${Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours >= 48) return `${Math.round(hours / 24)} days`;
  return minutes % 60 === 0 ? `${hours} h` : `${hours} h ${minutes % 60} min`;
}

/** How long ago a moment was, or how far ahead it lies. */
export function age(timestamp: string, now: number): string {
  const seconds = (now - Date.parse(timestamp)) / 1000;
  if (Number.isNaN(seconds)) return "at an unknown time";
  if (Math.abs(seconds) < 1) return "just now";
  return seconds < 0 ? `in ${duration(Math.ceil(-seconds))}` : `${duration(Math.floor(seconds))} ago`;
}

/** A word at the beginning of a line. */
export function capital(word: string): string {
  return word.charAt(0).toUpperCase() + word.slice(1);
}
