// A signed URL's token is a JSON Web Token, as legacy keys are: three parts in base64url, the first of them an object.
const jsonWebToken = /\beyJ[\w-]+\.[\w-]+\.[\w-]*/g;
const secretKey = /\b(sb_secret|isr)_[\w-]{8,}/g;

/**
 * Text without keys and tokens. Nothing that the commands print should hold any; this is for the day when something does.
 *
 * @param text any text
 * @param key the key in use, whatever its format
 */
export function redact(text: string, key?: string): string {
  const withoutKey = key === undefined || key === "" ? text : text.replaceAll(key, "[key]");
  return withoutKey.replace(secretKey, "[key]").replace(jsonWebToken, "[token]");
}
