import { storageFailures } from "./errors.ts";

/** What the service scales at most, as its documentation has it. */
const LIMITS = { bytes: 25_000_000, pixels: 50_000_000, edge: { low: 1, high: 2500 } } as const;
const QUALITY = 80;

/** What the body of a signing request may ask for. */
export type Transform = {
  readonly width?: number | undefined;
  readonly height?: number | undefined;
  readonly resize?: "cover" | "contain" | "fill" | undefined;
  readonly quality?: number | undefined;
  readonly format?: "origin" | "avif" | "webp" | undefined;
};

/** A picture as it is sent. */
export type RenderedImage = { readonly content: Uint8Array<ArrayBuffer>; readonly contentType: string };

/** A transform as a token carries it, such as `height:300,width:400,resize:contain`. Empty where nothing is asked for. */
export function toClaim({ width, height, resize, quality, format }: Transform): string {
  return [
    ...(height ? [`height:${clamp(height)}`] : []),
    ...(width ? [`width:${clamp(width)}`] : []),
    ...(width || height ? [`resize:${resize ?? "cover"}`] : []),
    ...(quality === undefined ? [] : [`quality:${quality}`]),
    ...(format === undefined || format === "origin" ? [] : [`format:${format}`]),
  ].join(",");
}

// The service takes any edge and keeps it within its bounds.
function clamp(edge: number): number {
  return Math.min(Math.max(edge, LIMITS.edge.low), LIMITS.edge.high);
}

const FITS = { cover: "cover", contain: "inside", fill: "fill" } as const;
type Resize = keyof typeof FITS;

/**
 * Scales a picture as the claim of its token says; never up. Without a format of its own it is sent as WebP to who accepts that.
 *
 * @throws {StorageFailure} where it is too large, or no picture.
 */
export async function render(
  content: Uint8Array<ArrayBuffer>,
  { claim, accept }: { claim: string; accept: string },
): Promise<RenderedImage> {
  if (content.byteLength > LIMITS.bytes) throw storageFailures.unrenderable("Source image file is too big");
  const asked = new Map(claim.split(",").map((part) => part.split(":") as [string, string]));
  const [width, height] = [asked.get("width"), asked.get("height")].map((edge) => edge && Number(edge));
  // The stack without this endpoint needs no such library.
  const { default: sharp } = await import("sharp");
  try {
    const source = sharp(content, { limitInputPixels: LIMITS.pixels });
    const { format: origin } = await source.metadata();
    const format = asked.get("format") ?? (accept.includes("image/webp") ? "webp" : origin);
    const scaled = source.autoOrient().resize({
      ...(width ? { width } : {}),
      ...(height ? { height } : {}),
      fit: FITS[(asked.get("resize") ?? "cover") as Resize],
      withoutEnlargement: true,
    });
    const { data, info } = await scaled
      .toFormat(format as "webp", { quality: Number(asked.get("quality") ?? QUALITY) })
      .toBuffer({ resolveWithObject: true });
    return { content: new Uint8Array(data), contentType: `image/${info.format}` };
  } catch {
    throw storageFailures.unrenderable("Invalid source image");
  }
}
