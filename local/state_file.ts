import { dirname } from "node:path";
import { fileURLToPath } from "node:url";
import { z } from "zod";
import { isAlive } from "./alive.ts";

const stateSchema = z.object({
  url: z.string(),
  database_url: z.string(),
  secret_key: z.string(),
  publishable_key: z.string(),
  pid: z.number(),
});

/** How to reach the stack that runs in this checkout. */
export type StackState = z.infer<typeof stateSchema>;

/** Where the stack of this checkout leaves word of itself. */
export const defaultStateFile: string = fileURLToPath(new URL("../.local/stack.json", import.meta.url));

/** The stack that left word in `stateFile`, if it runs; the file of a process that is gone counts for nothing. */
export async function readRunningStack(stateFile: string): Promise<StackState | undefined> {
  const text = await Deno.readTextFile(stateFile).catch(() => "null");
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch {
    return undefined;
  }
  const state = stateSchema.safeParse(json);
  return state.success && isAlive(state.data.pid) ? state.data : undefined;
}

/** Leaves word of the running stack. The file holds its secret key, so only its owner may read it. */
export async function writeRunningStack(stateFile: string, state: StackState): Promise<void> {
  await Deno.mkdir(dirname(stateFile), { recursive: true });
  await Deno.writeTextFile(stateFile, JSON.stringify(state, undefined, 2) + "\n", { mode: 0o600 });
}

/** Takes the word back. */
export async function removeRunningStack(stateFile: string): Promise<void> {
  await Deno.remove(stateFile).catch((error: unknown) => {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  });
}
