/** `image-sync open` starts a browser, and no other user of the machine learns the address from that. */
import { chmod, mkdtemp, readdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { beforeEach, describe, expect, onTestFinished, test, vi } from "vitest";
import { runCommand } from "../cli/support/run_command.ts";
import { mustHaveBrowser, openBrowser, withoutBrowser } from "./support/browser.ts";

let home: string;
let started: string;
beforeEach(async () => {
  home = await mkdtemp(join(tmpdir(), "image-sync-home-"));
  started = join(home, "started");
  onTestFinished(() => rm(home, { recursive: true }));
  // What starts a browser writes down what it was told.
  for (const name of ["xdg-open", "open"]) {
    await writeFile(
      join(home, name),
      `#!/bin/sh\necho "$@" > "${started}.part"\nmv "${started}.part" "${started}"\n`,
    );
    await chmod(join(home, name), 0o755);
  }
  vi.stubEnv("PATH", `${home}:${process.env["PATH"]}`);
  vi.stubEnv("HOME", home);
  onTestFinished(() => void vi.unstubAllEnvs());
});

/** Opens the window at a terminal; what the browser's starter was told, and how to end the window. */
async function open() {
  let interrupt = () => {};
  const ended = runCommand(["open", "--url", "http://127.0.0.1:9", "--key", "sb_secret_x"], {
    terminal: true,
    onReady: (press) => interrupt = press,
  });
  onTestFinished(() => void interrupt());
  const told = async () => (await readFile(started, "utf8")).trim();
  await expect.poll(told, { timeout: 20_000 }).toMatch(/\.html$/);
  const page = await told();
  const address = /url=(http:[^"]*)/.exec(await readFile(page, "utf8"))?.[1] ?? "";
  return { page, address, end: () => (interrupt(), ended) };
}

const left = async () => (await readdir(home)).filter((name) => name.startsWith("image-sync-open-"));

test("the address stands in a file that its owner alone can read, and in no argument", async () => {
  const { page, address, end } = await open();
  expect(await readFile(started, "utf8")).not.toMatch(/token|http/);
  expect([(await stat(page)).mode & 0o777, (await stat(dirname(page))).mode & 0o777]).toEqual([0o600, 0o700]);
  expect(address).toMatch(/^http:\/\/127\.0\.0\.1:\d+\/\?token=[\w-]{43}$/);
  const { stdout } = await end();
  expect(stdout).toContain(address);
});

test("the file is gone once a browser came with the address", async () => {
  const { address, end } = await open();
  expect((await fetch(`${address}x`)).status).toBe(401);
  expect(await left()).toHaveLength(1);
  expect((await fetch(address, { redirect: "manual" })).status).toBe(303);
  await expect.poll(left).toEqual([]);
  await end();
});

test("the file is gone once the window is closed, whoever never came", async () => {
  const { end } = await open();
  expect((await end()).status).toBe(0);
  expect(await left()).toEqual([]);
});

test("without a home directory to write to the address is printed, and nothing is started", async () => {
  vi.stubEnv("HOME", join(home, "not there"));
  const ended = runCommand(["open", "--url", "http://127.0.0.1:9", "--key", "sb_secret_x"], {
    terminal: true,
    onReady: (press) => press(),
  });
  expect(await ended).toMatchObject({ status: 0, stdout: expect.stringContaining("?token=") });
  expect(await readdir(home)).not.toContain("started");
});

describe.runIf(withoutBrowser === undefined || mustHaveBrowser)("a browser", () => {
  test("that opens the file is in, and neither its address bar nor its history has the token", async () => {
    if (withoutBrowser !== undefined) throw new Error(`Cannot test the window: ${withoutBrowser}`);
    const { page: file, end } = await open();
    const browser = await openBrowser();
    onTestFinished(() => browser.close());
    const page = await browser.context.newPage();
    await page.goto(`file://${file}`);
    await page.waitForURL(/^http:\/\/127\.0\.0\.1:\d+\/$/, { timeout: 20_000 });
    expect(await page.content()).toContain("part-images");
    await expect.poll(left).toEqual([]);
    await page.goBack();
    expect(page.url()).not.toContain("token");
    await end();
  }, 60_000);
});
