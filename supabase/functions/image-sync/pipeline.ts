/** One chunk: its names are signed, and what that gave becomes what the chunk is closed with. */
import type { Chunk } from "./contract.ts";
import { type Closing, NOTHING_SIGNED } from "./database.ts";
import { logChunk, messageOf } from "./log.ts";
import type { OutboundCounts } from "./outbound.ts";
import { type Signer, SigningError } from "./signer.ts";

/** What a chunk needs besides itself. */
export type Pipeline = {
  readonly bucket: string;
  readonly sign: Signer;
  readonly takeCounts: () => OutboundCounts;
};

/** A chunk's closing; `isFinal` where no other chunk would fare better. */
export type Outcome = { readonly closing: Closing; readonly isFinal: boolean };

/** Signs the chunk's names. Never throws: a chunk that cannot be signed closes with its error. */
export async function workChunk(pipeline: Pipeline, lease: string, chunk: Chunk): Promise<Outcome> {
  const started = Date.now();
  const outcome = await signChunk(pipeline, lease, chunk);
  const { closing } = outcome;
  logChunk({
    number: chunk.number,
    signed: closing.names.length,
    failed: closing.failures.length,
    error: closing.error?.detail ?? null,
    ms: Date.now() - started,
  });
  return outcome;
}

async function signChunk(
  { bucket, sign, takeCounts }: Pipeline,
  lease: string,
  chunk: Chunk,
): Promise<Outcome> {
  try {
    const { names, expiresIn, publicUrl } = chunk;
    const signed = await sign({ bucket, names, expiresIn, publicUrl });
    return { closing: { lease, ...signed, error: null, ...takeCounts() }, isFinal: false };
  } catch (error) {
    const fault = error instanceof SigningError
      ? error.fault
      : { code: "signing_failed", title: "Signing failed", detail: messageOf(error) };
    return {
      closing: { lease, ...NOTHING_SIGNED, error: fault, ...takeCounts() },
      isFinal: error instanceof SigningError && error.isFinal,
    };
  }
}
