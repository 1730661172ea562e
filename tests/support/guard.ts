/** Runs once before all where a Supabase is given: one that holds records which no test made is refused. */
import { openTarget } from "./target.ts";

export async function setup(): Promise<void> {
  await (await openTarget()).stop();
}
