import { createClient } from "../../../cli/client.ts";
import { type OpenWindow, openWindow, type WindowOptions } from "../../../window/server.ts";

/** A project to look at through a window. */
export type Looked = { readonly url: string; readonly secretKey: string };

/** Opens a window on a project, as `image-sync open` does. */
export async function openTestWindow(
  { url, secretKey }: Looked,
  options: Partial<Pick<WindowOptions, "bucket" | "port" | "rhythm" | "smallPictures">> = {},
): Promise<OpenWindow> {
  const client = createClient({ url, key: secretKey, source: "the test" }, { timeout: 30_000 });
  return await openWindow({
    client,
    projectUrl: url,
    key: secretKey,
    bucket: "part-images",
    rhythm: { open: 250, idle: 250 },
    ...options,
  });
}

/** The cookie that a browser gets for the window's address. */
export async function enter({ address }: OpenWindow): Promise<string> {
  const response = await fetch(address, { redirect: "manual" });
  await response.body?.cancel();
  const cookie = response.headers.get("set-cookie")?.split(";")[0];
  if (response.status !== 303 || cookie === undefined) throw new Error(`No way in: ${response.status}`);
  return cookie;
}
