/** Requests to the API as commands that can be typed as they stand. */
import { DEFAULT_BUCKET, type StartRequest } from "../contract.ts";
import { safeText } from "./safe_text.ts";

/** The command that sends this request. */
export function commandOf(request: Partial<StartRequest> & Pick<StartRequest, "mode">): string {
  const flags = [
    request.renew === undefined ? "" : ` --renew ${request.renew}`,
    request.restore === undefined ? "" : ` ${request.restore}`,
    request.confirm === undefined ? "" : ` --confirm ${request.confirm}`,
    request.max_delete_count === undefined ? "" : ` --max-delete-count ${request.max_delete_count}`,
    request.max_delete_fraction === undefined ? "" : ` --max-delete-fraction ${request.max_delete_fraction}`,
    request.allow_empty_bucket === true ? " --allow-empty-bucket" : "",
    request.bucket_is_gone === true ? " --bucket-is-gone" : "",
  ];
  return `npx image-sync ${request.mode}${flags.join("")}${bucketFlag(request.bucket ?? DEFAULT_BUCKET)}`;
}

/** ` --bucket NAME` for a command line where the bucket is not the default one, else nothing. */
export function bucketFlag(bucket: string): string {
  return bucket === DEFAULT_BUCKET ? "" : ` --bucket ${quoted(bucket)}`;
}

/** A word as a shell takes it. */
export function quoted(word: string): string {
  return /^[\w.-]+$/.test(word) ? word : `'${safeText(word).replaceAll("'", `'\\''`)}'`;
}

/**
 * A text with its commands as they are typed by somebody who called this one through an npm script: `npm run sync -- --renew all`.
 */
export function asNpmScripts(text: string): string {
  return text.replace(
    /npx image-sync ([a-z]+)( (?=-|'|[0-9a-f]{8}-|add |remove |revoke ))?/g,
    (_, command: string, more?: string) => `npm run ${command}${more === undefined ? "" : " -- "}`,
  );
}
