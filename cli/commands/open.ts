import { spawn } from "node:child_process";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { homedir } from "node:os";
import { join } from "node:path";
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
  const page = browser && host.stderr.isTTY === true ? await writePage(window.address) : undefined;
  try {
    output.show(
      { address: window.address },
      () => `Open this once, in one browser: ${window.address}\nCtrl-C closes it\n`,
    );
    if (page !== undefined) {
      void window.entered.then(page.remove);
      launch(page.path);
    }
    await new Promise<void>((resolve) => host.onInterrupt(resolve));
    return exitStatus.fine;
  } finally {
    await page?.remove();
    await window.close();
  }
}

/**
 * A page that leads to the address and that no other user of the machine can read, as each can read the arguments of a program. In the home
 * directory: a browser that is confined to it sees no other place. Best effort: the address is printed.
 */
async function writePage(
  address: string,
): Promise<{ path: string; remove: () => Promise<void> } | undefined> {
  try {
    const folder = await mkdtemp(join(homedir(), "image-sync-open-"));
    const path = join(folder, "window.html");
    const text =
      `<!doctype html><title>image-sync</title><meta http-equiv="refresh" content="0; url=${address}">\n`;
    await writeFile(path, text, { mode: 0o600 });
    return { path, remove: () => rm(folder, { recursive: true, force: true }) };
  } catch {
    return undefined;
  }
}

/** Best effort too. What it opens is no argument of a shell. */
function launch(path: string): void {
  const [command, ...args] = process.platform === "darwin"
    ? ["open", path]
    : process.platform === "win32"
    ? ["rundll32", "url.dll,FileProtocolHandler", path]
    : ["xdg-open", path];
  if (command === undefined) return;
  spawn(command, args, { stdio: "ignore", detached: true }).on("error", () => {}).unref();
}
