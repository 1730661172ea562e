import type { Drift } from "../catalogue/catalogue.ts";

/** One link of the chain: what was looked at, what was found, and what mends it. */
export type Link = {
  readonly looked_at: string;
  readonly state: "fine" | "warning" | "broken" | "unknown";
  readonly found: string;
  readonly remedy: string | null;
  /** Of the catalogue: every object that is not as it should be. */
  readonly drift?: readonly Drift[];
};

/** A link that could not be looked at. */
export function unknownLink(lookedAt: string, reason: string): Link {
  return { looked_at: lookedAt, state: "unknown", found: `not looked at: ${reason}`, remedy: null };
}
