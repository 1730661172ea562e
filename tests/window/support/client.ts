import type { Client } from "../../../cli/client.ts";

/** A client that answers what it is given, and fails at everything else. */
export function fakeClient(given: Partial<Client>): Client {
  return new Proxy(given as Client, {
    get: (target, name: keyof Client) =>
      target[name] ?? (() => Promise.reject(new Error(`The test expects no ${String(name)}`))),
  });
}
