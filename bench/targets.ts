/** A figure that was promised, and what it came to. */
export type Target = {
  readonly id: string;
  readonly what: string;
  readonly value: number;
  readonly op: "<=" | ">=" | "==";
  readonly target: number;
  readonly met: boolean;
  /** Lowest and highest of its rounds. */
  readonly spread?: readonly [number, number];
};

/** Holds a figure against its target. */
export function hold(
  id: string,
  what: string,
  values: readonly number[],
  op: Target["op"],
  target: number,
): Target {
  const sorted = values.toSorted((a, b) => a - b);
  const value = Math.round((sorted[Math.floor(sorted.length / 2)] ?? NaN) * 1000) / 1000;
  const met = op === "<=" ? value <= target : op === ">=" ? value >= target : value === target;
  const [lowest, highest] = [sorted[0], sorted.at(-1)];
  const spread = sorted.length > 1 && lowest !== undefined && highest !== undefined
    ? { spread: [Math.round(lowest * 1000) / 1000, Math.round(highest * 1000) / 1000] as const }
    : {};
  return { id, what, value, op, target, met, ...spread };
}
