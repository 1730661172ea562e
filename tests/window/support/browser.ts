/** A real browser: Debian's Chromium, driven by playwright-core. */
import { existsSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { type BrowserContext, chromium, type Page } from "playwright-core";

const executable = process.env["IMAGE_SYNC_CHROMIUM"] ?? "/usr/bin/chromium";

/** Why there is no browser to test with; undefined where there is one. */
export const withoutBrowser: string | undefined = existsSync(executable)
  ? undefined
  : `no browser at ${executable}: install Debian's chromium, or set IMAGE_SYNC_CHROMIUM`;

/** Whether a missing browser fails the tests instead of leaving them out. */
export const mustHaveBrowser: boolean = process.env["IMAGE_SYNC_REQUIRE_BROWSER"] === "1";

/** A browser with a profile of its own. */
export type TestBrowser = { readonly context: BrowserContext; close(): Promise<void> };

/** Starts a browser. */
export async function openBrowser(): Promise<TestBrowser> {
  const profile = await mkdtemp(join(tmpdir(), "image-sync-browser-"));
  const context = await chromium.launchPersistentContext(profile, {
    executablePath: executable,
    headless: true,
    chromiumSandbox: false,
    args: [
      "--disable-gpu",
      "--disable-quic",
      "--no-first-run",
      "--disable-background-networking",
      "--disable-component-update",
      "--disable-sync",
    ],
    viewport: { width: 1200, height: 900 },
    reducedMotion: "reduce",
  });
  context.setDefaultTimeout(15_000);
  return {
    context,
    async close() {
      await context.close();
      await rm(profile, { recursive: true, force: true });
    },
  };
}

const axeSource = createRequire(import.meta.url).resolve("axe-core/axe.min.js");

type Violation = { id: string; impact: string | null; nodes: { html: string }[] };

/** What axe finds that is serious, as `rule: element`. The page's policy lets no foreign script in: it is put there by the debugger. */
export async function seriousViolations(page: Page): Promise<string[]> {
  const { readFile } = await import("node:fs/promises");
  await page.evaluate(await readFile(axeSource, "utf8"));
  const violations = await page.evaluate<Violation[]>(
    "axe.run(document, { resultTypes: ['violations'] }).then(({ violations }) => violations)",
  );
  return violations
    .filter(({ impact }) => impact === "serious" || impact === "critical")
    .flatMap(({ id, nodes }) => nodes.map(({ html }) => `${id}: ${html.slice(0, 160)}`));
}
