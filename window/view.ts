/** What every component is given: whose page it is part of, and what its words and links need. */
import type { Child } from "hono/jsx";

/** A page, or a part of one that is made anew when something changes. */
export type View = {
  readonly bucket: string;
  /** Where a form leads back to. */
  readonly path: string;
  /** The moment that ages are told from. */
  readonly now: number;
  /** The token of a form that posts there. */
  readonly csrf: (action: string) => string;
};

/** Something to render. */
export type Rendered = Child;

/** A path of the window with a query; what is undefined or empty is left out. */
export function link(path: string, query: Readonly<Record<string, string | undefined>>): string {
  const given = Object.entries(query).filter(([, value]) => value !== undefined && value !== "");
  const text = new URLSearchParams(given as [string, string][]).toString();
  return text === "" ? path : `${path}?${text}`;
}
