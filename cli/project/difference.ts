/**
 * What an upgrade has to say of the repeatable set: the objects that differ from those of the version before. `supabase/schemas/releases.json`
 * has these, by name and hash, of each version since 2.0.0; `npm run migration` writes those of the version at hand.
 */
import { createHash } from "node:crypto";
import { type Statement, statementsOf } from "./statements.ts";

/** The objects of a version in the order in which they are made, each with the hash of its head, if it has one, and of all of it. */
export type Objects = Readonly<Record<string, string>>;

/** A statement of the set together with the comments of what it makes. */
type Piece = {
  /** What it makes or does: `function NAME(types)`, `view NAME`, or its own words. */
  readonly key: string;
  readonly text: string;
  readonly hash: string;
  /** What Postgres binds others to: the head of a function, all of a view. */
  readonly bound: string;
};

/** What of the set an upgrade says, and what goes before its steps. */
export type Difference = { readonly drops: string; readonly texts: readonly string[] };

/** The objects that a set makes. */
export function objectsOf(texts: readonly string[]): Objects {
  return Object.fromEntries(texts.flatMap(piecesOf).map(({ key, hash }) => [key, hash]));
}

/**
 * The difference between a set and the objects of the version before.
 *
 * @param texts the set, a text a file; what differs keeps that order
 * @param steps the steps between the two versions: what they drop is made anew
 */
export function differenceOf(texts: readonly string[], before: Objects, steps: string): Difference {
  const files = texts.map(piecesOf);
  const pieces = files.flat();
  const now = new Map(pieces.map((piece) => [piece.key, piece]));
  const isOther = ({ key, hash }: Piece) => before[key] !== hash;
  const dropped = [...steps.matchAll(/^drop (?:function|view|type|table) ([^;]*);/gm)]
    .flatMap(([, list = ""]) => list.match(/\b(?:image_sync|public)\.\w+/g) ?? []);
  const gone = new Set(
    Object.keys(before).filter((key) => isGone(key, before, now) || dropped.includes(nameOf(key))),
  );
  // Whatever is bound to something that goes, goes with it and comes anew.
  for (let size = -1; size !== gone.size;) {
    size = gone.size;
    for (const { key, bound } of pieces) {
      if (key in before && [...[...gone].map(nameOf), ...dropped].some((name) => names(bound, name))) {
        gone.add(key);
      }
    }
  }
  const made = new Set(pieces.filter((piece) => isOther(piece) || gone.has(piece.key)).map(({ key }) => key));
  // A call makes anew what the functions behind it would make otherwise.
  const reached = (text: string, seen = new Set<string>()): boolean =>
    pieces.some(({ key, text: other }) => {
      if (!key.startsWith("function ") || seen.has(key) || !names(text, nameOf(key))) return false;
      return made.has(key) || reached(other, seen.add(key));
    });
  // What is said of all objects (who may call them, how they are planned) is said again where one is new or loses it as it is replaced.
  const reachesAll = (text: string) =>
    steps !== "" ||
    [...made].some((key) =>
      !(key in before) || gone.has(key) || key.startsWith("function public.") ||
      names(text, nameOf(key).replace("image_sync.", ""))
    );
  const isSaid = ({ key, text }: Piece) => {
    if (made.has(key)) return true;
    if (key.startsWith("function ")) return false;
    // What a step makes anew has lost its comment.
    const commented = /^comment on (?:table|column|constraint|index|type) (?:\S+\.)?(\w+)/.exec(key)?.[1];
    if (commented !== undefined) return new RegExp(`\\b${commented}\\b`).test(steps);
    if (isOfAll(key)) return reachesAll(text);
    return [...made].some((other) => names(text, nameOf(other))) ||
      /^(select|view) /.test(key) && reached(text);
  };
  return {
    drops: Object.keys(before).filter((key) => gone.has(key)).reverse()
      .map((key) => `drop ${key.replace(" ", " if exists ")};`).join("\n"),
    texts: files.map((some) => some.filter(isSaid).map(({ text }) => text).join("\n\n")),
  };
}

function isGone(key: string, before: Objects, now: ReadonlyMap<string, Piece>): boolean {
  if (!/^(function|view) /.test(key)) return false;
  // A view that others read is replaced, with what its readers were granted: it may gain columns at its end.
  return !now.has(key) ||
    !key.startsWith("view public.") && headOf(before[key]) !== headOf(now.get(key)?.hash);
}

const isOfAll = (key: string) => !/\b(image_sync|public)\.\w/.test(key);

const headOf = (hashes: string | undefined) => hashes?.split(" ")[0];

function piecesOf(text: string): Piece[] {
  const groups: Statement[][] = [];
  for (const statement of statementsOf(text)) {
    const group = groups.at(-1);
    const target = /^comment on (?:function|view|column) ([^\s(]+)/.exec(statement.sql)?.[1];
    const isOwn = target !== undefined && group !== undefined && makes(group, target, text);
    if (isOwn) group.push(statement);
    else groups.push([statement]);
  }
  return groups.map((group) => pieceOf(group, text));
}

function makes([first]: Statement[], target: string, text: string): boolean {
  const made = MADE.exec(first?.sql ?? "")?.[2] ?? viewOfCall(first?.sql ?? "", text);
  return made !== undefined && (target === made || target.startsWith(`${made}.`));
}

const MADE = /^create or replace (function|view) ([^\s(]+)/;

/** The view that a function makes which this statement calls. */
function viewOfCall(sql: string, text: string): string | undefined {
  const name = /^select ([\w.]+)\(\);$/.exec(sql)?.[1];
  return name === undefined ? undefined : /create or replace view (\S+)/.exec(definitionOf(name, text))?.[1];
}

function definitionOf(name: string, text: string): string {
  return statementsOf(text).find(({ sql }) => sql.startsWith(`create or replace function ${name}(`))?.sql ??
    "";
}

function pieceOf(group: readonly Statement[], file: string): Piece {
  const text = group.map(({ text }) => text).join("\n\n");
  const sql = group.map(({ sql }) => sql).join("\n\n");
  const first = group[0]?.sql ?? "";
  const kind = MADE.exec(first)?.[1];
  if (kind === "function") {
    const signature = /^comment on (function \S+\([^)]*\))/m.exec(sql)?.[1];
    if (signature === undefined) {
      throw new Error(`Cannot tell the types of ${first.split("\n")[0]}: it has no comment`);
    }
    const head = first.split(/\slanguage (?:sql|plpgsql)\b/)[0] ?? "";
    return { key: signature, text, hash: `${hashOf(head)} ${hashOf(sql)}`, bound: head };
  }
  const view = kind === "view" ? MADE.exec(first)?.[2] : viewOfCall(first, file);
  if (view !== undefined) {
    const whole = sql + (kind === "view" ? "" : definitionOf(first.slice("select ".length, -3), file));
    return { key: `view ${view}`, text, hash: hashOf(whole), bound: kind === "view" ? first : "" };
  }
  const key = (/^comment on .*? is\b/s.exec(first)?.[0] ?? first).replaceAll(/\s+/g, " ").slice(0, 100);
  return { key, text, hash: hashOf(sql), bound: "" };
}

function hashOf(text: string): string {
  return createHash("sha256").update(text).digest("hex").slice(0, 12);
}

function nameOf(key: string): string {
  return key.replace(/^\w+ /, "").replace(/\(.*/s, "");
}

function names(text: string, name: string): boolean {
  return new RegExp(`(?<![\\w.])${escaped(name)}(?!\\w)`).test(text);
}

function escaped(text: string): string {
  return text.replaceAll(/[.*+?^${}()|[\]\\]/g, "\\$&");
}
