import { Buffer } from "node:buffer";
import { createHmac, randomBytes, randomUUID, timingSafeEqual } from "node:crypto";
import { z } from "zod";

/** Makes and checks the tokens of signed URLs. */
export type UrlSigner = {
  /** A token for `BUCKET/PATH` that dies `expiresIn` seconds from now; `transformations` scale what it opens. */
  sign(url: string, expiresIn: number, transformations?: string): string;
  /** What the token says is wrong with it, or the path that it opens and how that is scaled. */
  verify(token: string): Opened | { readonly problem: string };
  /** Replaces the key: every token made before is dead. */
  rotate(): void;
};

type Opened = { readonly url: string; readonly transformations: string };
const claimsSchema = z.object({
  url: z.string(),
  exp: z.number(),
  transformations: z.string().default(""),
});

/** Makes a signer with a fresh key of its own, independent of the API keys as on the platform. */
export function createUrlSigner(now: () => number = Date.now): UrlSigner {
  let key = createKey();
  const digest = (content: string) => createHmac("sha256", key.secret).update(content).digest("base64url");
  return {
    sign: (url, expiresIn, transformations = "") => {
      const iat = Math.floor(now() / 1000);
      const claims = JSON.stringify({
        url,
        ...(transformations === "" ? {} : { transformations }),
        scope: "download",
        iat,
        exp: iat + expiresIn,
      });
      const content = `${key.header}.${Buffer.from(claims).toString("base64url")}`;
      return `${content}.${digest(content)}`;
    },
    verify: (token) => {
      const [header, claims, signature] = token.split(".");
      if (header === undefined || claims === undefined || signature === undefined) {
        return { problem: "Invalid Compact JWS" };
      }
      if (!equal(signature, digest(`${header}.${claims}`))) {
        return { problem: "signature verification failed" };
      }
      const { url, exp, transformations } = claimsSchema.parse(
        JSON.parse(Buffer.from(claims, "base64url").toString()),
      );
      if (exp <= now() / 1000) return { problem: '"exp" claim timestamp check failed' };
      return { url, transformations };
    },
    rotate: () => {
      key = createKey();
    },
  };
}

function createKey(): { secret: Uint8Array; header: string } {
  const header = JSON.stringify({ kid: `storage-url-signing-key_${randomUUID()}`, alg: "HS256" });
  return { secret: randomBytes(64), header: Buffer.from(header).toString("base64url") };
}

function equal(one: string, other: string): boolean {
  const [a, b] = [Buffer.from(one), Buffer.from(other)];
  return a.length === b.length && timingSafeEqual(a, b);
}
