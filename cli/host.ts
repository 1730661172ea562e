import type { Readable, Writable } from "node:stream";

/** What a command sees of the machine that it runs on; tests bring their own. */
export type Host = {
  readonly env: Readonly<Record<string, string | undefined>>;
  /** The working directory, where `.env` is looked for. */
  readonly directory: string;
  /** How the commands are typed here where no npm script is meant; default `npx image-sync`. */
  readonly program?: string;
  /** Where an embedded stack leaves word of itself. */
  readonly stackFile: string;
  /** Standard input, opened when it is asked for. */
  readonly stdin: () => Readable & { readonly isTTY?: boolean };
  readonly stdout: Writable & { readonly isTTY?: boolean };
  readonly stderr: Writable & { readonly isTTY?: boolean };
  /** Calls `act` on Ctrl-C or a request to terminate, until the returned function is called. */
  readonly onInterrupt: (act: () => void) => () => void;
};
