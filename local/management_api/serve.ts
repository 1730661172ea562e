/**
 * Serves the stand-in of the Management API for another process: `deno run -A local/management_api/serve.ts DIRECTORY`.
 *
 * Writes a profile for the Supabase CLI into the directory (`profile.yaml`, for `SUPABASE_PROFILE`), puts what is deployed below it,
 * prints one line of JSON on standard output when it is ready, and runs until its standard input ends.
 */
import { join } from "node:path";
import { createManagementApi } from "./management_api.ts";

const [directory] = Deno.args;
if (directory === undefined) {
  throw new Error("Cannot serve the Management API: give the directory for what is deployed");
}
const ref = "abcdefghijklmnopqrst";
const token = `sbp_${"0123456789abcdef".repeat(3).slice(0, 40)}`;
const app = createManagementApi({
  project: { ref, name: "Shop", region: "eu-central-1" },
  token,
  directory,
});
const server = Deno.serve({ hostname: "127.0.0.1", port: 0, onListen: () => {} }, app.fetch);
const url = `http://127.0.0.1:${server.addr.port}`;
const profile = join(directory, "profile.yaml");
await Deno.writeTextFile(
  profile,
  `name: stand-in\napi_url: ${url}\ndashboard_url: ${url}/dashboard\nproject_host: supabase.co\npooler_host: supabase.com\n`,
);
console.log(JSON.stringify({ url, ref, token, profile }));
await Deno.stdin.readable.pipeTo(new WritableStream());
await server.shutdown();
