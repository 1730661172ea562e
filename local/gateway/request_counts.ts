/** How many requests arrived, by what they asked for. */
export type RequestCounts = {
  /** Requests to the function. */
  readonly function: number;
  /** RPCs by function name. */
  readonly rpc: Readonly<Record<string, number>>;
  /** The slowest call of each RPC, in ms. */
  readonly rpc_slowest_ms: Readonly<Record<string, number>>;
  /** Storage requests by operation (`sign_many`, `upload`, ...). */
  readonly storage: Readonly<Record<string, number>>;
};

/** Counts requests when they arrive, whatever becomes of them. */
export type RequestCounter = {
  countFunction(): void;
  countRpc(name: string): void;
  /** Notes how long an RPC took, in ms. */
  timeRpc(name: string, ms: number): void;
  countStorage(operation: string): void;
  read(): RequestCounts;
  reset(): void;
};

/** Makes a counter that starts at nothing. */
export function createRequestCounter(): RequestCounter {
  let functionCalls = 0;
  const rpc = new Map<string, number>();
  const slowest = new Map<string, number>();
  const storage = new Map<string, number>();
  const increment = (map: Map<string, number>, key: string) => map.set(key, (map.get(key) ?? 0) + 1);
  return {
    countFunction: () => functionCalls++,
    countRpc: (name) => increment(rpc, name),
    timeRpc: (name, ms) => slowest.set(name, Math.max(slowest.get(name) ?? 0, ms)),
    countStorage: (operation) => increment(storage, operation),
    read: () => ({
      function: functionCalls,
      rpc: Object.fromEntries(rpc),
      rpc_slowest_ms: Object.fromEntries(slowest),
      storage: Object.fromEntries(storage),
    }),
    reset: () => {
      functionCalls = 0;
      rpc.clear();
      slowest.clear();
      storage.clear();
    },
  };
}
