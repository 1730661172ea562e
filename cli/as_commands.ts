import { commandOf } from "../supabase/functions/image-sync/text/commands.ts";
import { startRequestSchema } from "../supabase/functions/image-sync/contract.ts";

/** A refusal's way out, which the API gives as requests, in the words of the commands. */
export function asCommands(text: string, bucket: string): string {
  return text
    .replace(/\{"mode": [^{}]*\}/g, (json) => asCommand(json, bucket) ?? json)
    .replace(/DELETE \?run=([0-9a-f-]{36})/g, "npx image-sync cancel $1");
}

function asCommand(json: string, bucket: string): string | undefined {
  const request = startRequestSchema.safeParse(parseJson(json)).data;
  return request === undefined ? undefined : commandOf({ ...request, bucket });
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
