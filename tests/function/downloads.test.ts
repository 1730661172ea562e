import { afterEach, describe, expect, test, vi } from "vitest";
import { beginDownload, streamOf } from "../../supabase/functions/image-sync/downloads.ts";
import { ProblemError } from "../../supabase/functions/image-sync/problem.ts";
import { readToken } from "../../supabase/functions/image-sync/request.ts";

afterEach(() => void vi.useRealTimers());

async function* textsOf(...texts: string[]): AsyncGenerator<string> {
  for (const text of texts) yield text;
}

function refusalOf(key: string): ProblemError | undefined {
  try {
    beginDownload(key)();
    return undefined;
  } catch (error) {
    if (error instanceof ProblemError) return error;
    throw error;
  }
}

describe("downloads side by side", () => {
  test("are two with one key and four in all; who is refused is told when to ask again", () => {
    const ends = ["a", "a", "b"].map(beginDownload);
    expect(refusalOf("a")).toMatchObject({
      problem: { status: 429, code: "too_many_downloads" },
      headers: { "Retry-After": "5" },
    });
    expect(refusalOf("b")).toBeUndefined();
    ends.push(beginDownload("b"));
    expect(refusalOf("c")?.problem.status).toBe(429);
    // Ended twice it makes room once.
    ends[0]?.();
    ends[0]?.();
    expect(refusalOf("c")).toBeUndefined();
    const [, ...rest] = ends;
    rest.push(beginDownload("c"));
    expect(refusalOf("d")?.problem.status).toBe(429);
    for (const end of rest) end();
    expect(refusalOf("a")).toBeUndefined();
  });
});

describe("a stream", () => {
  test("holds every text once, in slices, and then ends", async () => {
    const ends: unknown[] = [];
    const long = "ü".repeat(100_000);
    const stream = streamOf(textsOf("head\n", "", long, ""), (error) => ends.push(error));
    const sizes: number[] = [];
    let text = "";
    const decoder = new TextDecoder();
    for await (const slice of stream) {
      sizes.push(slice.byteLength);
      text += decoder.decode(slice, { stream: true });
    }
    expect(text).toBe(`head\n${long}`);
    expect(Math.max(...sizes)).toBe(65_536);
    expect(ends).toEqual([undefined]);
  });

  test("makes nothing before it is asked for", async () => {
    let made = 0;
    async function* texts() {
      for (; made < 10; made++) yield "x";
    }
    const reader = streamOf(texts(), () => {}).getReader();
    await Promise.resolve();
    expect(made).toBe(0);
    await reader.read();
    expect(made).toBe(0);
    await reader.read();
    expect(made).toBe(1);
    await reader.cancel();
  });

  test("whose reader does not take the last slice is broken off", async () => {
    vi.useFakeTimers();
    const ends: unknown[] = [];
    const reader = streamOf(textsOf("x"), (error) => ends.push(error)).getReader();
    expect((await reader.read()).done).toBe(false);
    vi.advanceTimersByTime(14_999);
    expect(ends).toEqual([]);
    vi.advanceTimersByTime(1);
    expect(ends).toEqual([new Error("not read for 15000 ms")]);
    await expect(reader.read()).rejects.toThrow("not read");
  });

  test("that is given up, or breaks, ends once", async () => {
    const ends: unknown[] = [];
    await streamOf(textsOf("x"), (error) => ends.push(error)).cancel();
    expect(ends).toEqual([undefined]);
    const broken = new Error("broken");
    // deno-lint-ignore require-yield
    async function* texts(): AsyncGenerator<string> {
      throw broken;
    }
    const reader = streamOf(texts(), (error) => ends.push(error)).getReader();
    await expect(reader.read()).rejects.toThrow("broken");
    expect(ends).toEqual([undefined, broken]);
  });
});

test("a body without a key that trickles is read no longer than three seconds", async () => {
  const trickle = new ReadableStream<Uint8Array>({
    async pull(stream) {
      await new Promise((resolve) => setTimeout(resolve, 200));
      stream.enqueue(new Uint8Array([32]));
    },
  });
  const request = new Request(
    "http://127.0.0.1/",
    { method: "POST", body: trickle, duplex: "half" } as RequestInit,
  );
  const started = Date.now();
  expect(await readToken(request)).toBeUndefined();
  expect(Date.now() - started).toBeGreaterThan(2500);
  expect(Date.now() - started).toBeLessThan(6000);
}, 20_000);
