import { randomBytes } from "node:crypto";

/** The API keys of one stack. Secret keys act as `service_role`, publishable ones as `anon`. */
export type StackKeys = {
  /** Name to key, as in the function's `SUPABASE_SECRET_KEYS`. */
  readonly secret: { readonly default: string; readonly schedule: string };
  /** Name to key, as in the function's `SUPABASE_PUBLISHABLE_KEYS`. */
  readonly publishable: { readonly default: string };
};

/** The database role that a request with a valid key runs as. */
export type ApiRole = "anon" | "service_role";

/** Makes fresh keys in the platform's format. */
export function createKeys(): StackKeys {
  return {
    secret: { default: randomKey("sb_secret_"), schedule: randomKey("sb_secret_") },
    publishable: { default: randomKey("sb_publishable_") },
  };
}

/** The role that `key` stands for; `undefined` for a key that is not one of this stack's. */
export function roleOfKey(keys: StackKeys, key: string): ApiRole | undefined {
  if (Object.values(keys.secret).includes(key)) return "service_role";
  if (Object.values(keys.publishable).includes(key)) return "anon";
  return undefined;
}

function randomKey(prefix: string): string {
  return prefix + randomBytes(16).toString("base64url") + "_" + randomBytes(6).toString("base64url");
}
