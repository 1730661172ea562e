import { quoted } from "../../supabase/functions/image-sync/text/commands.ts";
import { safeText } from "../../supabase/functions/image-sync/text/safe_text.ts";
import { renderBuckets } from "../../supabase/functions/image-sync/text/lists.ts";
import { CommandError, exitStatus } from "../command_error.ts";
import type { Context } from "./context.ts";

/** Options of {@linkcode buckets}. */
export type BucketsOptions = { readonly action: string | undefined; readonly name: string | undefined };

/** Lists the buckets that are kept in step, or changes which they are: settings only, never files. */
export async function buckets(context: Context, { action, name }: BucketsOptions): Promise<number> {
  if (action === undefined || action === "list") return await list(context);
  if ((action !== "add" && action !== "remove") || name === undefined) {
    throw new CommandError(
      "usage",
      `Cannot ${safeText(action)} ${
        name === undefined ? "without the name of a bucket" : "a bucket"
      }: use npx image-sync buckets, ` +
        "npx image-sync buckets add NAME or npx image-sync buckets remove NAME",
    );
  }
  return action === "add" ? await add(context, name) : await remove(context, name);
}

async function list({ client, output }: Context): Promise<number> {
  const all = await client.buckets();
  output.show(all, () => renderBuckets(all));
  return all.buckets.every(({ healthy }) => healthy) ? exitStatus.fine : exitStatus.attention;
}

async function add({ client, output }: Context, name: string): Promise<number> {
  const change = await client.addBucket(name);
  output.show(
    change,
    () =>
      change.changed
        ? `${
          safeText(name)
        } is kept in step from the next night on. To begin now: npx image-sync sync --bucket ${
          quoted(name)
        }\n`
        : `${safeText(name)} is kept in step already\n`,
  );
  return exitStatus.fine;
}

async function remove({ client, output }: Context, name: string): Promise<number> {
  const change = await client.removeBucket(name);
  output.show(
    change,
    () =>
      `${safeText(name)} is not looked at any more; its files and its records stay, and their URLs expire\n`,
  );
  return exitStatus.fine;
}
