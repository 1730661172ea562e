/** What the environment holds of a proxy and of a folder for temporary files does not matter to what runs on this machine. */
import { execFile } from "node:child_process";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { once } from "node:events";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { networkInterfaces, tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { promisify } from "node:util";
import { expect, onTestFinished, test } from "vitest";
import { denoPath, projectDirectory } from "../support/stack.ts";

const surroundings = join(projectDirectory, "local/surroundings.mjs");
const DEAD = "http://127.0.0.1:9";

/** Runs a program under Deno or Node once the surroundings were looked at. */
async function run(
  runtime: "deno" | "node",
  program: string,
  env: Readonly<Record<string, string>>,
): Promise<{ stdout: string; stderr: string }> {
  const text = `await import(${JSON.stringify(surroundings)});\n${program}`;
  const [command, args] = runtime === "deno"
    ? [denoPath, ["eval", "--quiet", text]]
    : [process.execPath, ["--input-type=module", "--eval", text]];
  const { HOME = "", PATH = "" } = process.env;
  return await promisify(execFile)(command, args, { env: { HOME, PATH, NO_COLOR: "1", ...env } });
}

/** Answers everybody with this word, on a port that it returns. */
async function serve(word: string, host: string): Promise<number> {
  const server = createServer((_request, response) => response.end(word)).listen(0, host);
  onTestFinished(() => void server.close());
  await once(server, "listening");
  return (server.address() as AddressInfo).port;
}

test.each(
  [
    ["HTTP_PROXY", "deno"],
    ["http_proxy", "deno"],
    ["ALL_PROXY", "deno"],
    ["all_proxy", "deno"],
    ["HTTP_PROXY", "node"], // read by newer Nodes that NODE_USE_ENV_PROXY is set for
  ] as const,
)(
  "this machine is asked itself, by any of its names, where %s names a proxy, on %s",
  async (name, runtime) => {
    const hasIPv6 = Object.values(networkInterfaces()).flat().some((found) => found?.address === "::1");
    const hosts = ["127.0.0.1", "127.9.9.9", "localhost", ...(hasIPv6 ? ["[::1]"] : [])];
    const port = await serve("itself", hasIPv6 ? "::" : "0.0.0.0");
    const addresses = hosts.map((host) => `http://${host}:${port}/`);
    const program = `for (const address of ${
      JSON.stringify(addresses)
    }) console.log(await (await fetch(address)).text());`;
    const { stdout } = await run(runtime, program, {
      [name]: DEAD,
      NO_PROXY: "shop.test",
      NODE_USE_ENV_PROXY: "1",
    });
    expect(stdout).toBe("itself\n".repeat(hosts.length));
  },
);

test("whom the environment excepts from the proxy stays excepted, and everybody else goes through it", async () => {
  const proxy = await serve("the proxy", "127.0.0.1");
  const env = {
    HTTP_PROXY: `http://127.0.0.1:${proxy}`,
    NO_PROXY: "one.test, .two.test",
    no_proxy: "three.test",
  };
  const { stdout } = await run("node", "console.log(process.env.NO_PROXY, process.env.no_proxy)", env);
  const [upper, lower] = stdout.trim().split(" ");
  expect(upper).toBe(lower);
  expect(upper?.split(",")).toEqual(
    expect.arrayContaining(["one.test", ".two.test", "three.test", "localhost"]),
  );
  const ask = (host: string) =>
    `console.log(await fetch("http://${host}/").then((r) => r.text(), () => "nobody"));`;
  const asked = await run(
    "deno",
    ["four.test", "one.test", "a.two.test", "three.test"].map(ask).join("\n"),
    env,
  );
  expect(asked.stdout).toBe("the proxy\nnobody\nnobody\nnobody\n");
});

test.each(["TMPDIR", "TMP", "TEMP"])(
  "a %s that nothing can be written to is named and not used",
  async (name) => {
    const place = await mkdtemp(join(tmpdir(), "image-sync-surroundings-"));
    onTestFinished(() => rm(place, { recursive: true }));
    const file = join(place, "file");
    await writeFile(file, "");
    for (const folder of [join(place, "not there"), file, ""]) {
      const { stdout, stderr } = await run("node", `console.log(process.env.${name})`, { [name]: folder });
      expect(stdout).toBe("undefined\n");
      expect(stderr).toBe(
        `${name} is "${folder}", where no file can be written: the system's own folder is used instead\n`,
      );
    }
    expect(await run("node", `console.log(process.env.${name})`, { [name]: place })).toEqual({
      stdout: `${place}\n`,
      stderr: "",
    });
  },
);
