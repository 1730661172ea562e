/** One chunk: its names are signed, or its URLs opened, and what that gave becomes what the chunk is closed with. */
import type { Chunk, OpenChunk } from "./contract.ts";
import { type Closing, NOTHING_SIGNED } from "./database.ts";
import { logChunk, messageOf } from "./log.ts";
import type { OutboundCounts } from "./outbound.ts";
import { DEAD_TOKEN, type Failure, type OpenRequest, type Sight } from "./reader.ts";
import { type Signer, SigningError } from "./signer.ts";

/** The part of a lease that opening URLs may take; what is left is for closing the chunk. */
const PART_OF_LEASE = 0.8;

/** What a chunk needs besides itself. */
export type Pipeline = {
  readonly bucket: string;
  readonly sign: Signer;
  /** Opens URLs as a reader does, below the address that readers use (null: the project's own). Never throws. */
  readonly open: (request: Omit<OpenRequest, "base">, publicUrl: string | null) => Promise<Sight>;
  readonly takeCounts: () => OutboundCounts;
};

type SigningPipeline = Omit<Pipeline, "open">;

/**
 * Opens the chunk's URLs; `onEndNear` is called when it is nearly done. Never throws. What it is closed with has an error where the
 * URLs cannot be reached: then nothing is known of them.
 */
export async function openChunk(
  { open, takeCounts }: Pick<Pipeline, "open" | "takeCounts">,
  lease: string,
  chunk: OpenChunk,
  onEndNear: () => void,
): Promise<Closing> {
  const started = Date.now();
  const { number, targets, rate, publicUrl, leaseMs } = chunk;
  const { shown, failures, end } = await open(
    { targets, rate, deadlineMs: leaseMs * PART_OF_LEASE, onEndNear },
    publicUrl,
  );
  const urls = new Map(targets.map(({ name, url }) => [name, url]));
  logChunk({
    number,
    signed: 0,
    failed: failures.length,
    error: end?.error ?? null,
    ms: Date.now() - started,
  });
  return {
    lease,
    number,
    ...NOTHING_SIGNED,
    names: shown,
    failures: failures.map((failure) => ({
      name: failure.name,
      code: failure.code,
      error: describe(failure),
      ...(failure.error === DEAD_TOKEN ? { url: urls.get(failure.name) ?? "" } : {}),
    })),
    error: end === null ? null : {
      code: "unreachable",
      title: "The URLs cannot be opened",
      detail: `${describe(end)}. Nothing was changed`,
    },
    storageCalls: shown.length + failures.length,
    retries: takeCounts().retries,
  };
}

function describe({ code, status, content_type, error }: Failure): string {
  if (code === "unreachable" && error !== null) return error;
  return [status === null ? null : `HTTP ${status}`, content_type, error].filter((part) => part !== null)
    .join(", ");
}

/** Signs the chunk's names. Never throws: a chunk that cannot be signed closes with its error. */
export async function workChunk(pipeline: SigningPipeline, lease: string, chunk: Chunk): Promise<Closing> {
  const started = Date.now();
  const closing = await signChunk(pipeline, lease, chunk);
  logChunk({
    number: chunk.number,
    signed: closing.names.length,
    failed: closing.failures.length,
    error: closing.error?.detail ?? null,
    ms: Date.now() - started,
  });
  return closing;
}

async function signChunk(
  { bucket, sign, takeCounts }: SigningPipeline,
  lease: string,
  chunk: Chunk,
): Promise<Closing> {
  const { number, names, expiresIn, publicUrl } = chunk;
  try {
    const signed = await sign({ bucket, names, expiresIn, publicUrl });
    return { lease, number, ...signed, error: null, ...takeCounts() };
  } catch (error) {
    const fault = error instanceof SigningError
      ? error.fault
      : { code: "signing_failed", title: "Signing failed", detail: messageOf(error) };
    const isFinal = error instanceof SigningError && error.isFinal;
    return { lease, number, ...NOTHING_SIGNED, error: fault, isFinal, ...takeCounts() };
  }
}
