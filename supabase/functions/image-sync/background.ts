/** Work that goes on after the response. */

/** The part of Supabase's runtime that plain Deno lacks. */
type EdgeRuntimeLike = { waitUntil(promise: Promise<unknown>): void };

const kept = new Set<Promise<unknown>>();

/** Keeps the worker alive until the promise settles: by `EdgeRuntime.waitUntil`, or under plain Deno by holding on to it. */
export function runInBackground(promise: Promise<unknown>): void {
  const runtime = (globalThis as { EdgeRuntime?: EdgeRuntimeLike }).EdgeRuntime;
  if (runtime !== undefined) return runtime.waitUntil(promise);
  kept.add(promise);
  const forget = () => void kept.delete(promise);
  promise.then(forget, forget);
}
