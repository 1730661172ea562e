import { spawn } from "node:child_process";
import process from "node:process";
import { exitStatus } from "../command_error.ts";
import { CommandError } from "../command_error.ts";
import type { Context } from "./context.ts";

/** Options of {@linkcode open}. */
export type OpenOptions = {
  /** 0: any free one. */
  readonly port: number;
  /** Whether to open a browser, where there is somebody to look at it. */
  readonly browser: boolean;
  /** Whether Storage is to scale the gallery's pictures, which it bills for. */
  readonly smallPictures: boolean;
};

/** Serves the window until Ctrl-C, and opens it in a browser. */
export async function open(
  context: Context,
  { port, browser, smallPictures }: OpenOptions,
): Promise<number> {
  const { client, connection, output, host, bucket } = context;
  // Other commands need none of it.
  const { openWindow } = await import("../../window/server.ts");
  const window = await openWindow({
    client,
    projectUrl: connection.url,
    key: connection.key,
    bucket,
    port,
    smallPictures,
  }).catch((error: unknown) => {
    throw new CommandError(
      "port_in_use",
      `Cannot serve the window on port ${port}: something else does; choose another one with --port, or none for any free one`,
      { cause: error },
    );
  });
  try {
    output.show(
      { address: window.address },
      () => `Open this once, in one browser: ${window.address}\nCtrl-C closes it\n`,
    );
    if (browser && host.stderr.isTTY === true) launch(window.address);
    await new Promise<void>((resolve) => host.onInterrupt(resolve));
    return exitStatus.fine;
  } finally {
    await window.close();
  }
}

/** Best effort: the address was printed. It is no argument of a shell. */
function launch(address: string): void {
  const [command, ...args] = process.platform === "darwin"
    ? ["open", address]
    : process.platform === "win32"
    ? ["rundll32", "url.dll,FileProtocolHandler", address]
    : ["xdg-open", address];
  if (command === undefined) return;
  spawn(command, args, { stdio: "ignore", detached: true }).on("error", () => {}).unref();
}
