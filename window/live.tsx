/** Keeps open pages true: parts of them are rendered anew when something has changed, and sent as server-sent events. */
import type { Context } from "hono";
import { streamSSE } from "hono/streaming";
import { redact } from "../cli/redact.ts";
import type { Report } from "../supabase/functions/image-sync/contract.ts";
import type { Looks, Snapshot } from "./looks.ts";
import { Connection, Standing } from "./parts/layout.tsx";

/** Parts of a page by the id of their element. */
export type Parts = Readonly<Record<string, unknown>>;
/** What a kind of page shows of a report. */
export type Live = (report: Report) => Parts | Promise<Parts>;

/** In ms: shorter than what a proxy or a browser takes for the end of a silent connection. */
const HEARTBEAT = 15_000;
/** After so long a page tries again, in ms. */
const RETRY = 1_000;

type StreamOptions = {
  readonly looks: Looks;
  readonly bucket: string;
  readonly live: Live;
  /** Kept out of what is shown. */
  readonly key: string;
  /** A page that could not be made is asked for again as soon as it can be. */
  readonly isFailure: boolean;
};

/** Answers with the stream of a page. */
export function stream(context: Context, { looks, bucket, live, key, isFailure }: StreamOptions): Response {
  return streamSSE(context, async (events) => {
    const sent = new Map<string, string>();
    const send = async (parts: Parts) => {
      for (const [id, part] of Object.entries(parts)) {
        const html = String(await part);
        if (sent.get(id) === withoutAges(html)) continue;
        sent.set(id, withoutAges(html));
        await events.writeSSE({ event: "part", data: JSON.stringify({ id, html }) });
      }
    };
    const show = async ({ report, error }: Snapshot) => {
      const words = error === undefined ? undefined : redact(error, key);
      await send({ connection: <Connection error={words} /> });
      if (report === undefined) return;
      if (isFailure) await events.writeSSE({ event: "again", data: "" });
      else await send({ standing: <Standing report={report} />, ...await live(report) });
    };
    await events.writeSSE({ event: "hello", data: "", retry: RETRY });
    // One after the other, so that what was seen last is shown last.
    let queue = Promise.resolve();
    const unwatch = looks.watch(bucket, (snapshot) => {
      queue = queue.then(() => show(snapshot)).catch(() => {/* the next look tries again */});
    });
    const heartbeat = setInterval(() => void events.write(": still here\n\n"), HEARTBEAT);
    await new Promise<void>((resolve) => events.onAbort(resolve));
    clearInterval(heartbeat);
    unwatch();
  });
}

// That time goes by is no change: the page's script sees to its ages.
function withoutAges(html: string): string {
  return html.replaceAll(/(<time[^>]*>)[^<]*/g, "$1");
}
