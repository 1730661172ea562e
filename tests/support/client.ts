import { createClient, type SupabaseClient } from "@supabase/supabase-js";

/** Stands in for the WebSocket that Node 20 does not have; the tests use no realtime channel. */
class NoWebSocket extends EventTarget {
  constructor() {
    super();
    throw new Error("Cannot open a WebSocket: the tests keep to HTTP");
  }
}

/** The real supabase-js for a server's side: it keeps no session and refreshes none. `send` sends its requests. */
export function createTestClient(url: string, key: string, send: typeof fetch = fetch): SupabaseClient {
  return createClient(url, key, {
    global: { fetch: send },
    auth: { persistSession: false, autoRefreshToken: false, detectSessionInUrl: false },
    realtime: { transport: NoWebSocket as unknown as typeof WebSocket },
  });
}
