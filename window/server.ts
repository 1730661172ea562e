/** Serves the window on loopback. Runs on Node as on Deno. */
import { createAdaptorServer } from "@hono/node-server";
import type { AddressInfo } from "node:net";
import type { Client } from "../cli/client.ts";
import { createGuard } from "./guard.ts";
import { createLooks, type Rhythm } from "./looks.ts";
import { createWindow } from "./app.tsx";
import { createSmallPictures } from "./small_pictures.ts";

/** Options of {@linkcode openWindow}. */
export type WindowOptions = {
  readonly client: Client;
  /** The project's URL, without a slash at its end. */
  readonly projectUrl: string;
  /** The secret key, so that it can be kept out of whatever is shown. */
  readonly key: string;
  /** The bucket that is shown first. */
  readonly bucket: string;
  /** Default: any free one. */
  readonly port?: number;
  /** Lets Storage scale the gallery's pictures down, which it bills for. Default false. */
  readonly smallPictures?: boolean;
  /** How often to look at the project. */
  readonly rhythm?: Rhythm;
};

/** A window that is being served. */
export type OpenWindow = {
  /** What to open, once: with the token. */
  readonly address: string;
  readonly origin: string;
  /** Settles when a browser was opened with the address. */
  readonly entered: Promise<void>;
  close(): Promise<void>;
};

/**
 * Begins to serve the window on a port of 127.0.0.1.
 *
 * @throws {Error} where the port is taken.
 */
export async function openWindow(options: WindowOptions): Promise<OpenWindow> {
  let answer: (request: Request) => Response | Promise<Response> = () => new Response(null, { status: 503 });
  const server = createAdaptorServer({ fetch: (request) => answer(request), overrideGlobalObjects: false });
  await new Promise<void>((resolve, reject) => {
    server.once("error", reject);
    server.listen(options.port ?? 0, "127.0.0.1", resolve);
  });
  const { port } = server.address() as AddressInfo;
  const origin = `http://127.0.0.1:${port}`;
  const guard = createGuard(origin);
  const looks = createLooks(options.client, options.rhythm);
  const small = options.smallPictures === true ? createSmallPictures(options) : undefined;
  const app = createWindow({ ...options, guard, looks, small });
  answer = (request) => app.fetch(request);
  return {
    origin,
    entered: guard.entered,
    address: `${origin}/?token=${guard.token}`,
    close: () =>
      new Promise((resolve) => {
        looks.stop();
        server.close(() => resolve());
        // Pages that are open hold their connections.
        if ("closeAllConnections" in server) server.closeAllConnections();
      }),
  };
}
