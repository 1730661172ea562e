/** Small pictures of the files behind the URLs, fetched and scaled several at a time, handed over in the order of their rows. */
import pLimit from "p-limit";
import pRetry from "p-retry";
import { explain, isStorages } from "../../supabase/functions/image-sync/text/unexplained.ts";
import { CommandError } from "../command_error.ts";
import { optionalPackage } from "./optional_package.ts";
import type { Row } from "./register.ts";
import type { Picture } from "./xlsx/workbook.ts";

/** Bounds of what is fetched and made. */
export const THUMBNAIL_LIMITS = {
  /** Pictures in a workbook: with more of them Excel scrolls slowly, and the workbook is too large to send. */
  pictures: 20_000,
  /** Of a file, in bytes. */
  fileBytes: 25_000_000,
  /**
   * Of all pictures that are being decoded, and so of one: a small file can be a huge picture, and what is interlaced, or AVIF, is held
   * whole, with 3 to 18 bytes a pixel.
   */
  pixels: 100_000_000,
  /** For one file, in ms. */
  fileTimeout: 30_000,
} as const;

// Waiting for the network, not for the processor; few enough for a Storage that others use too.
const FETCHED_AT_ONCE = 16;
// Rows that may be done before the one that is waited for.
const AHEAD = 64;
const ATTEMPTS = 3;
// Storage that answers none of so many in a row is down: nobody wants a workbook of gaps.
const UNANSWERED_BORNE = 50;
const JPEG_QUALITY = 82;

/** A row with its picture, or why it has none. */
export type Thumbnail = {
  readonly row: Row;
  readonly picture: Picture | undefined;
  /** Why there is no picture, as the end of a sentence about the file. */
  readonly reason: string | undefined;
};

/** Options of {@linkcode makeThumbnails}. */
export type ThumbnailOptions = {
  /** The project's URL: files are asked for there, whatever address stands in a row. */
  readonly project: string;
  /** Edge of the square that each fits into, in pixels. */
  readonly size: number;
  /** Aborted by Ctrl-C. */
  readonly signal: AbortSignal;
};

/** Why a file has no picture. `unanswered`: that is not the file's fault. */
class LeftOut extends Error {
  constructor(message: string, readonly kind: "broken" | "unanswered" = "broken") {
    super(message);
    this.name = "LeftOut";
  }
}

/**
 * Makes a thumbnail of each row's file.
 *
 * @throws {CommandError} `storage_unavailable` when Storage answers no more, `missing_package` without the image library.
 */
export async function* makeThumbnails(
  rows: Iterable<Row>,
  options: ThumbnailOptions,
): AsyncGenerator<Thumbnail> {
  const scale = await createScaler(options.size);
  const limit = pLimit(FETCHED_AT_ONCE);
  const waiting: Promise<Thumbnail & { readonly kind?: LeftOut["kind"] }>[] = [];
  let unanswered = 0;
  const next = async () => {
    const { kind, ...thumbnail } = await (waiting.shift() as (typeof waiting)[number]);
    unanswered = kind === "unanswered" ? unanswered + 1 : 0;
    if (unanswered >= UNANSWERED_BORNE) throw storageIsDown(options.project, thumbnail.reason);
    return thumbnail;
  };
  try {
    for (const row of rows) {
      const thumbnail = limit(() => makeThumbnail(row, options, scale));
      thumbnail.catch(() => {}); // heard of when its turn comes, if that comes
      waiting.push(thumbnail);
      if (waiting.length >= AHEAD) yield await next();
    }
    while (waiting.length > 0) yield await next();
  } finally {
    limit.clearQueue();
  }
}

type Scale = (file: Uint8Array) => Promise<Picture>;

async function makeThumbnail(row: Row, options: ThumbnailOptions, scale: Scale) {
  try {
    const file = await fetchFile(row.signedUrl, options);
    return { row, picture: await scale(file), reason: undefined };
  } catch (error) {
    if (!(error instanceof LeftOut)) throw error;
    return { row, picture: undefined, reason: error.message, kind: error.kind };
  }
}

async function createScaler(size: number): Promise<Scale> {
  const { default: sharp } = await optionalPackage("sharp", () => import("sharp"));
  sharp.cache(false); // no file comes twice
  const whenTheyFit = createPixelBound();
  return async (file) => {
    try {
      const picture = sharp(file, {
        limitInputPixels: THUMBNAIL_LIMITS.pixels,
        sequentialRead: true,
        failOn: "error",
      });
      const { width, height } = await picture.metadata(); // of the header; above the limit it throws
      const { data, info } = await whenTheyFit(width * height, () =>
        picture
          .autoOrient()
          .resize({ width: size, height: size, fit: "inside", withoutEnlargement: true })
          .flatten({ background: "#ffffff" })
          .toColorspace("srgb")
          .jpeg({ quality: JPEG_QUALITY })
          .toBuffer({ resolveWithObject: true }));
      return { jpeg: data, width: info.width, height: info.height };
    } catch (error) {
      throw unreadable(file, error);
    }
  };
}

/** Has work of so many pixels wait, one after the other, until there is room for it. */
function createPixelBound(): <T>(pixels: number, work: () => Promise<T>) => Promise<T> {
  const turn = pLimit(1);
  let decoding = 0;
  let oneEnded = () => {};
  return async (pixels, work) => {
    await turn(async () => {
      while (decoding + pixels > THUMBNAIL_LIMITS.pixels) {
        await new Promise<void>((resolve) => oneEnded = resolve);
      }
      decoding += pixels;
    });
    try {
      return await work();
    } finally {
      decoding -= pixels;
      oneEnded();
    }
  };
}

function unreadable(file: Uint8Array, error: unknown): LeftOut {
  if (file.byteLength === 0) return new LeftOut("the file is empty");
  const words = error instanceof Error ? error.message : String(error);
  if (/pixel limit/i.test(words)) {
    return new LeftOut(`the picture has more than ${THUMBNAIL_LIMITS.pixels / 1e6} million pixels`);
  }
  if (/unsupported image format/i.test(words)) return new LeftOut("the file is no picture");
  return new LeftOut("the picture is damaged");
}

async function fetchFile(signedUrl: string, { project, signal }: ThumbnailOptions): Promise<Uint8Array> {
  const address = addressAt(project, signedUrl);
  return await pRetry(() => fetchOnce(address, signal), {
    retries: ATTEMPTS - 1,
    minTimeout: 300,
    signal,
    shouldRetry: ({ error }) => error instanceof LeftOut && error.kind === "unanswered",
  });
}

/**
 * A row's address at the project itself: what stands in a table is not what decides where this machine sends requests, and a reader's
 * address may differ from the one that is in use here.
 */
export function addressAt(project: string, signedUrl: string): string {
  const { pathname, search } = URL.canParse(signedUrl) ? new URL(signedUrl) : { pathname: "", search: "" };
  const signed = /\/storage\/v1\/object\/sign\/[^/].*$/.exec(pathname)?.[0];
  if (signed === undefined) throw new LeftOut("its URL is not one that Storage signed");
  return project + signed + search;
}

const TRANSIENT = new Set([408, 429, 500, 502, 503, 504, 520, 522, 524, 544]);

async function fetchOnce(address: string, interrupt: AbortSignal): Promise<Uint8Array> {
  const timeout = AbortSignal.timeout(THUMBNAIL_LIMITS.fileTimeout);
  try {
    const response = await fetch(address, {
      redirect: "manual",
      signal: AbortSignal.any([interrupt, timeout]),
    });
    if (response.status === 200) return await readBounded(response);
    const text = await response.text();
    const { status } = response;
    if (!isStorages(text)) throw new LeftOut(explain({ status, text }), "unanswered");
    throw new LeftOut(
      `Storage answers HTTP ${status} instead of the file`,
      TRANSIENT.has(status) ? "unanswered" : "broken",
    );
  } catch (error) {
    if (error instanceof LeftOut || interrupt.aborted) throw error;
    const reason = timeout.aborted
      ? `it did not arrive within ${THUMBNAIL_LIMITS.fileTimeout / 1000} s`
      : "the connection was cut";
    throw new LeftOut(reason, "unanswered");
  }
}

async function readBounded(response: Response): Promise<Uint8Array> {
  const parts: Uint8Array[] = [];
  let size = 0;
  for await (const part of response.body ?? []) {
    size += part.byteLength;
    if (size > THUMBNAIL_LIMITS.fileBytes) {
      throw new LeftOut(`the file has more than ${THUMBNAIL_LIMITS.fileBytes / 1e6} MB`);
    }
    parts.push(part);
  }
  return Buffer.concat(parts);
}

function storageIsDown(project: string, reason: string | undefined): CommandError {
  return new CommandError(
    "storage_unavailable",
    `Cannot fetch the pictures from ${project}: ${UNANSWERED_BORNE} files in a row did not come (of the last one: ${reason}); ` +
      "try again in a minute, or export without --thumbnails",
    { transient: true },
  );
}
