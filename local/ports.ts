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
