/**
 * One pair of eyes for all open pages: however many of them show a bucket, the function is asked for its report once a second at
 * most, and nobody asks while no page is open. While one is, an open run that stands still is woken.
 */
import type { Expiry, History, Report } from "../supabase/functions/image-sync/contract.ts";
import type { Client } from "../cli/client.ts";
import { createWaker } from "../cli/waker.ts";

/** What was seen of a bucket last. */
export type Snapshot = {
  readonly report: Report | undefined;
  /** Why the last look failed, in words; what was seen before stays. */
  readonly error: string | undefined;
};

/** What changes when a run ends. */
export type Details = { readonly expiry: Expiry; readonly history: History };

/** The window's view of the project. */
export type Looks = {
  /** What there is to see of a bucket now; throws what the client throws where nothing was seen yet. */
  report(bucket: string): Promise<Report>;
  /** What the days before say of it. */
  details(report: Report): Promise<Details>;
  /** Tells of every look at a bucket, until the returned function is called. */
  watch(bucket: string, onLook: (snapshot: Snapshot) => void): () => void;
  /** Something was changed by this window: what was seen before counts no more. */
  forget(): void;
  stop(): void;
};

/** How often to look, in ms: while a run is open, and otherwise. */
export type Rhythm = { readonly open: number; readonly idle: number };

const RHYTHM: Rhythm = { open: 1_000, idle: 2_000 };
/** As far back as the overview shows. */
export const HISTORY_DAYS = 90;

type Seen = { at: number; report: Promise<Report>; details?: { key: string; value: Promise<Details> } };

/** Makes the eyes of a window. */
export function createLooks(client: Client, rhythm: Rhythm = RHYTHM): Looks {
  const wake = createWaker(client);
  const seen = new Map<string, Seen>();
  const watchers = new Map<string, Set<(snapshot: Snapshot) => void>>();
  let timer: ReturnType<typeof setTimeout> | undefined;
  let turn = 0;

  const report = (bucket: string): Promise<Report> => {
    const known = seen.get(bucket);
    if (known !== undefined && Date.now() - known.at < rhythm.open) return known.report;
    const asked = client.report(bucket);
    const details = known?.details;
    seen.set(bucket, { at: Date.now(), report: asked, ...(details === undefined ? {} : { details }) });
    // What failed is asked again by the next page.
    asked.catch(() => seen.get(bucket)?.report === asked && seen.delete(bucket));
    return asked;
  };

  const details = (of: Report): Promise<Details> => {
    const bucket = of.bucket.id;
    const last = Object.values(of.last_runs).map((run) => run?.id ?? "").join();
    const key = `${of.measured_at} ${last}`;
    const known = seen.get(bucket);
    if (known?.details?.key === key) return known.details.value;
    const value = Promise.all([client.expiry(bucket), client.history(bucket, HISTORY_DAYS)])
      .then(([expiry, history]) => ({ expiry, history }));
    if (known !== undefined) known.details = { key, value };
    value.catch(() => known !== undefined && delete known.details);
    return value;
  };

  // Buckets take turns, so that many of them cost no more than one.
  const look = async () => {
    const buckets = [...watchers.keys()];
    const bucket = buckets[turn++ % buckets.length];
    if (bucket === undefined) return timer = undefined;
    let pause = rhythm.idle;
    try {
      const now = await report(bucket);
      if (now.open_run !== null || buckets.length > 1) pause = rhythm.open;
      if (now.open_run !== null) void wake(now.open_run);
      tell(bucket, { report: now, error: undefined });
    } catch (error) {
      tell(bucket, { report: undefined, error: error instanceof Error ? error.message : String(error) });
    }
    timer = watchers.size === 0 ? undefined : setTimeout(look, pause);
  };
  const tell = (bucket: string, snapshot: Snapshot) => {
    for (const onLook of watchers.get(bucket) ?? []) onLook(snapshot);
  };

  return {
    report,
    details,
    watch(bucket, onLook) {
      const all = watchers.get(bucket) ?? new Set();
      watchers.set(bucket, all.add(onLook));
      timer ??= setTimeout(look, 0);
      return () => {
        all.delete(onLook);
        if (all.size === 0) watchers.delete(bucket);
      };
    },
    forget: () => seen.clear(),
    stop() {
      clearTimeout(timer);
      watchers.clear();
    },
  };
}
