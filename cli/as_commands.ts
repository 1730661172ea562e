import { startRequestSchema } from "../supabase/functions/image-sync/contract.ts";
import { bucketFlag } from "../supabase/functions/image-sync/text.ts";

/** A refusal's way out, which the API gives as requests, in the words of the commands. */
export function asCommands(text: string, bucket: string): string {
  return text
    .replace(/\{"mode": [^{}]*\}/g, (json) => asCommand(json, bucket) ?? json)
    .replace(/DELETE \?run=([0-9a-f-]{36})/g, "npx image-sync cancel $1");
}

function asCommand(json: string, bucket: string): string | undefined {
  const request = startRequestSchema.safeParse(parseJson(json)).data;
  if (request === undefined) return undefined;
  const flags = [
    request.renew === undefined ? "" : ` --renew ${request.renew}`,
    request.restore === undefined ? "" : ` ${request.restore}`,
    request.confirm === undefined ? "" : ` --confirm ${request.confirm}`,
    request.max_delete_count === undefined ? "" : ` --max-delete-count ${request.max_delete_count}`,
    request.max_delete_fraction === undefined ? "" : ` --max-delete-fraction ${request.max_delete_fraction}`,
    request.allow_empty_bucket === true ? " --allow-empty-bucket" : "",
  ];
  return `npx image-sync ${request.mode}${flags.join("")}${bucketFlag(bucket)}`;
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
