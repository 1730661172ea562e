/** A reader's key: 256 random bits, shown once. Only its SHA-256 leaves this file, and what has not its shape costs no look-up. */
import { readerKeyPattern } from "./contract.ts";

/** A new key; nobody else has it, and nobody keeps it. */
export function createReaderKey(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(32));
  const text = btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
  return `isr_${text.replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "")}`;
}

/** The SHA-256 of a key, as 64 hexadecimal digits. */
export async function hashReaderKey(key: string): Promise<string> {
  const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(key));
  return Array.from(new Uint8Array(digest), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/**
 * The reader's key that a request brings as the password of HTTP Basic (RFC 7617), with whatever user name: Excel asks for both.
 * Undefined where it brings nothing that looks like one.
 */
export function readReaderKey(request: Request): string | undefined {
  const [, encoded] = /^basic +([A-Za-z0-9+/]+={0,2})$/i.exec(request.headers.get("Authorization") ?? "") ??
    [];
  if (encoded === undefined || encoded.length > 512) return undefined;
  let credentials: string;
  try {
    credentials = atob(encoded);
  } catch {
    return undefined;
  }
  const password = credentials.slice(credentials.indexOf(":") + 1);
  return readerKeyPattern.test(password) ? password : undefined;
}
