import { spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { z } from "zod";
import { denoPath, projectDirectory } from "./stack.ts";

const readySchema = z.object({ url: z.string(), ref: z.string(), token: z.string(), profile: z.string() });

/** The stand-in of the Management API in a process of its own. */
export type LocalManagementApi = z.infer<typeof readySchema> & {
  /** What was asked of it so far, and how it was answered. */
  asked(): Promise<readonly string[]>;
  stop(): Promise<void>;
};

/**
 * Starts it on a free port.
 *
 * @param directory where what is deployed is put
 */
export async function startManagementApi(directory: string): Promise<LocalManagementApi> {
  const child = spawn(denoPath, ["run", "-A", "local/management_api/serve.ts", directory], {
    cwd: projectDirectory,
    stdio: ["pipe", "pipe", "inherit"],
  });
  const ended = new Promise<void>((resolve) => child.once("close", () => resolve()));
  const line = await new Promise<string>((resolve, reject) => {
    createInterface({ input: child.stdout }).once("line", resolve);
    child.once(
      "close",
      (code) => reject(new Error(`Cannot start the Management API: it ended with ${code}`)),
    );
  });
  const ready = readySchema.parse(JSON.parse(line));
  return {
    ...ready,
    asked: async () => z.array(z.string()).parse(await (await fetch(`${ready.url}/_local/asked`)).json()),
    stop: async () => {
      child.stdin.end();
      await ended;
    },
  };
}
