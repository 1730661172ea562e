/**
 * The gallery's pictures as small as they are shown, scaled by Storage. Its users pay for that by the picture, so it is the operator's
 * choice; where the project does not scale, or does not answer, the whole pictures are shown, and the page says why.
 */
import pLimit from "p-limit";
import { z } from "zod";
import type { RecordItem } from "../supabase/functions/image-sync/contract.ts";

/** What a tile shows at most, in pixels: twice its size on the page, for screens of high density. */
export const TILE = { width: 400, height: 300 } as const;

/** How the pictures of a page come smaller. */
export type Smaller = {
  /** URLs by the name of the file; the others are shown whole. */
  readonly urls: ReadonlyMap<string, string>;
  /** Why all of them are shown whole, in a sentence. */
  readonly problem: string | undefined;
};

/** Signs the small pictures of a page. */
export type SmallPictures = { of(bucket: string, records: readonly RecordItem[]): Promise<Smaller> };

type Scalable = RecordItem & { readonly url: string };
/** Which project to ask, and as whom. */
type Project = { readonly projectUrl: string; readonly key: string };

/** As long as a page may stay open before all of its pictures were scrolled to, in s. */
const LIFETIME = 3600;
/** Storage signs such URLs one by one. So many at a time, and for so long, in ms: the page waits for them. */
const AT_ONCE = 12;
const PATIENCE = 3_000;
/** Pictures that are asked for before it is taken that Storage does not answer. */
const ASKED = 3;
/** Storage scales no larger file, in bytes. */
const LARGEST = 25_000_000;

const NOT_SCALED =
  "Storage of this project does not scale pictures (a paid plan, switched on in the dashboard under Storage, Settings): they are shown whole.";
const NO_ANSWER = "Storage did not sign the small pictures: they are shown whole.";
const NONE: Smaller = { urls: new Map(), problem: undefined };

const signedSchema = z.object({ signedURL: z.string() });

/** Makes what signs small pictures. */
export function createSmallPictures({ projectUrl, key }: Project): SmallPictures {
  // That a project does not scale is said once.
  let isTold = false;
  /** The URL of a small picture; undefined where Storage scales none. */
  const sign = async (bucket: string, name: string, whole: string, signal: AbortSignal) => {
    const response = await fetch(`${projectUrl}/storage/v1/object/sign/${encodeURI(`${bucket}/${name}`)}`, {
      method: "POST",
      headers: { apikey: key, authorization: `Bearer ${key}`, "content-type": "application/json" },
      body: JSON.stringify({ expiresIn: LIFETIME, transform: { ...TILE, resize: "contain" } }),
      redirect: "manual", // the key is for this host alone
      signal,
    });
    const { signedURL } = signedSchema.parse(await response.json());
    const token = /^\/render\/image\/sign\/.*[?&]token=([\w.-]+)$/.exec(signedURL)?.[1];
    return token === undefined ? undefined : smallUrl(whole, token);
  };

  return {
    async of(bucket, records) {
      const wanted = records.filter(isScalable);
      if (wanted.length === 0) return NONE;
      const signal = AbortSignal.timeout(PATIENCE);
      const urls = new Map<string, string>();
      const add = async ({ file_name, url }: Scalable) => {
        const small = await sign(bucket, file_name, url, signal);
        if (small !== undefined) urls.set(file_name, small);
      };
      // One tells whether Storage scales: who does not is not asked for all of them.
      const asked = await firstToAnswer(wanted.slice(0, ASKED), add);
      if (asked === undefined) return { urls, problem: NO_ANSWER };
      if (urls.size === 0) {
        const problem = isTold ? undefined : NOT_SCALED;
        isTold = true;
        return { urls, problem };
      }
      const limit = pLimit(AT_ONCE);
      const rest = wanted.filter((item) => item !== asked);
      await Promise.allSettled(rest.map((item) => limit(() => add(item))));
      return { urls, problem: undefined };
    },
  };
}

/** The first item that it does not fail for; undefined where it fails for all of them. */
async function firstToAnswer<T>(
  items: readonly T[],
  ask: (item: T) => Promise<void>,
): Promise<T | undefined> {
  for (const item of items) {
    try {
      await ask(item);
      return item;
    } catch { /* a file that has just gone says nothing of the others */ }
  }
  return undefined;
}

// Storage signs the path of the request as it stands there: a question mark in a name cannot be said in it.
function isScalable(item: RecordItem): item is Scalable {
  return item.url !== undefined && item.state !== "orphaned" && !/[?#]/.test(item.file_name) &&
    (item.bytes ?? 0) <= LARGEST;
}

/** Beside the whole picture, at the address that readers use: another path and another token. */
function smallUrl(whole: string, token: string): string {
  const url = new URL(whole);
  url.pathname = url.pathname.replace("/storage/v1/object/sign/", "/storage/v1/render/image/sign/");
  url.search = `?token=${token}`;
  return url.href;
}
