/** A workbook's file: a zip archive, written part by part as the parts are made, so that memory holds a few kB of any of them. */
import { once } from "node:events";
import { Readable, type Writable } from "node:stream";
import { pipeline } from "node:stream/promises";

/** What a part is made of. */
export type Content = string | Uint8Array | Iterable<string> | AsyncIterable<string>;

/** Adds a part to the archive; it is pulled as fast as the archive can be written, and what comes next waits for that. */
export type AddPart = (name: string, content: Content) => Promise<void>;

// The tokens of URLs, most of what is in a register, can hardly be compressed, and pictures not at all: more effort gains next to nothing.
const COMPRESSION_LEVEL = 1;

/**
 * Writes a package to a stream and ends it.
 *
 * @param fill adds the parts, one after the other
 * @returns what `fill` returned
 */
export async function writePackage<T>(
  stream: Writable,
  signal: AbortSignal,
  fill: (add: AddPart) => Promise<T>,
): Promise<T> {
  const { default: yazl } = await import("yazl");
  const archive = new yazl.ZipFile();
  const written = pipeline(archive.outputStream, stream, { signal });
  // Whatever ends it early ends the wait for the part that is on its way.
  const failed = Promise.race([
    written.then(() => new Promise<never>(() => {})),
    once(archive, "error").then(([error]) => Promise.reject(error)),
  ]);
  failed.catch(() => {});
  const add: AddPart = async (name, content) => {
    const source = Readable.from(chunks(content), { objectMode: false });
    const taken = once(source, "end");
    taken.catch(() => {});
    archive.addReadStream(source, name, { compressionLevel: COMPRESSION_LEVEL });
    await Promise.race([taken, failed]);
  };
  try {
    const result = await fill(add);
    archive.end();
    await Promise.race([written, failed]);
    return result;
  } catch (error) {
    stream.destroy();
    await written.catch(() => {});
    throw error;
  }
}

async function* chunks(content: Content): AsyncGenerator<Uint8Array> {
  if (content instanceof Uint8Array) yield content;
  else if (typeof content === "string") yield Buffer.from(content);
  else for await (const part of content) yield Buffer.from(part);
}
