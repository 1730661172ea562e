/** A port asked for by its number is taken. */
export type PortRequest = {
  /** Port to use; 0 picks any free one. */
  readonly port: number;
  /** What will listen there, for the error ("the gateway"). */
  readonly purpose: string;
  /** How a person chooses another one ("--port N"). */
  readonly flag: string;
};

/**
 * Returns a port of 127.0.0.1 that is free now.
 *
 * @throws {Error} when the port asked for is in use; the message names it and how to choose another one.
 */
export function findFreePort({ port, purpose, flag }: PortRequest): number {
  if (port === 0) return findAnyFreePort();
  try {
    const listener = Deno.listen({ hostname: "127.0.0.1", port });
    const free = listener.addr.port;
    listener.close();
    return free;
  } catch (error) {
    if (!(error instanceof Deno.errors.AddrInUse)) throw error;
    throw new Error(
      `Cannot start ${purpose} on 127.0.0.1:${port}: the port is in use. ` +
        `Stop what listens there, or choose another port with ${flag}`,
      { cause: error },
    );
  }
}

// Below those that systems give to outgoing connections (32768 and up on Linux, 49152 elsewhere): one of those could take the port
// between this look and its use. And above 10080, the last of the ports that fetch refuses (https://fetch.spec.whatwg.org/#port-blocking).
const LOWEST = 11_000;
const HIGHEST = 32_000;

function findAnyFreePort(): number {
  for (;;) {
    const port = LOWEST + Math.floor(Math.random() * (HIGHEST - LOWEST));
    try {
      Deno.listen({ hostname: "127.0.0.1", port }).close();
      return port;
    } catch (error) {
      if (!(error instanceof Deno.errors.AddrInUse)) throw error;
    }
  }
}
