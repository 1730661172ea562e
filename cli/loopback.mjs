// Requests to this machine itself never go through a proxy, whatever the environment says: neither those of this process, on Deno or on Node,
// nor those of what it starts. Imported for its effect, before the first request; plain Node, no dependencies.
import process from "node:process";

// Each form that somebody understands.
const LOOPBACK = ["localhost", "127.0.0.1", "127.0.0.0/8", "::1", "[::1]"];
const NAMES = ["NO_PROXY", "no_proxy"];

const excepted = NAMES.flatMap((name) => (process.env[name] ?? "").split(/[\s,]+/)).filter(Boolean);
for (const name of NAMES) process.env[name] = [...new Set([...excepted, ...LOOPBACK])].join(",");
