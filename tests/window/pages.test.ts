/**
 * Every page in its states, as somebody looks at it: wide and at 360 pixels, light and dark. With IMAGE_SYNC_SCREENSHOTS=DIR
 * (`npm run screenshots`) it keeps what it saw.
 */
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import process from "node:process";
import type { Page } from "playwright-core";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { OpenWindow } from "../../window/server.ts";
import { runToEnd } from "../sync/support/lab.ts";
import { type LocalLab, openLocalLab } from "../sync/support/local_lab.ts";
import {
  mustHaveBrowser,
  openBrowser,
  seriousViolations,
  type TestBrowser,
  withoutBrowser,
} from "./support/browser.ts";
import { addFaults, addHistory, cleanUp, createPictures } from "./support/scene.ts";
import { openTestWindow } from "./support/window.ts";

const FULL = "part-images";
const EMPTY = "empty";
const BUSY = "busy";
/** In a path: the run that is open in the busy bucket, and the one that archived in the full one. */
const [OPEN_RUN, CLEANUP_RUN] = ["OPEN_RUN", "CLEANUP_RUN"] as const;
const folder = process.env["IMAGE_SYNC_SCREENSHOTS"];

const PAGES: Readonly<Record<string, string>> = {
  overview: `/?bucket=${FULL}`,
  pictures: `/pictures?bucket=${FULL}`,
  missing: `/pictures?bucket=${FULL}&state=missing`,
  picture: `/picture?bucket=${FULL}&file=000001.jpg`,
  orphan: `/picture?bucket=${FULL}&file=000003.jpg`,
  cleanup: `/cleanup?bucket=${FULL}`,
  runs: `/runs?bucket=${FULL}`,
  "several": `/pictures?bucket=${FULL}&state=several`,
  "overview-busy": `/?bucket=${BUSY}`,
  "run": `/runs/${CLEANUP_RUN}?bucket=${FULL}`,
  "run-open": `/runs/${OPEN_RUN}?bucket=${BUSY}`,
  "cleanup-done": `/cleanup?bucket=${BUSY}`,
  "archive": `/archive/${CLEANUP_RUN}?bucket=${BUSY}`,
  settings: `/settings?bucket=${FULL}`,
  buckets: "/buckets",
  "overview-empty": `/?bucket=${EMPTY}`,
  "pictures-empty": `/pictures?bucket=${EMPTY}`,
  "cleanup-empty": `/cleanup?bucket=${EMPTY}`,
  "runs-empty": `/runs?bucket=${EMPTY}`,
  "problem": "/?bucket=no-such-bucket",
};
/** Without somebody to look at pictures two looks tell as much as four. */
const LOOKS = ([
  { name: "light", width: 1200, colorScheme: "light" },
  { name: "dark", width: 1200, colorScheme: "dark" },
  { name: "narrow-light", width: 360, colorScheme: "light" },
  { name: "narrow-dark", width: 360, colorScheme: "dark" },
] as const).filter(({ name }) => folder !== undefined || name === "light" || name === "narrow-dark");

if (withoutBrowser !== undefined) console.warn(`The pages are not looked at: ${withoutBrowser}`);

describe.skipIf(withoutBrowser !== undefined && !mustHaveBrowser)("every page", () => {
  let lab: LocalLab;
  let window: OpenWindow;
  let browser: TestBrowser;
  let page: Page;
  const ids = { OPEN_RUN: "", CLEANUP_RUN: "" };
  const pathOf = (name: string) =>
    (PAGES[name] ?? "/").replace(OPEN_RUN, ids.OPEN_RUN).replace(CLEANUP_RUN, ids.CLEANUP_RUN);
  beforeAll(async () => {
    if (withoutBrowser !== undefined) throw new Error(withoutBrowser);
    lab = await openLocalLab();
    await createPictures(lab, FULL, 60);
    await addHistory(lab, FULL);
    await addFaults(lab, FULL);
    await runToEnd(lab, FULL, { mode: "cleanup" });
    await lab.supabase.storage.createBucket(EMPTY, { public: false });
    await lab.sql`insert into image_sync.settings (bucket_id) values (${EMPTY})`;
    ids.CLEANUP_RUN = await cleanUp(lab, BUSY);
    const { run } = await lab.database.start({
      run: crypto.randomUUID(),
      bucket: BUSY,
      mode: "sync",
      options: {},
    });
    ids.OPEN_RUN = run.id;
    window = await openTestWindow(lab.stack);
    browser = await openBrowser();
    page = await browser.context.newPage();
    await page.goto(window.address);
    if (folder !== undefined) await mkdir(folder, { recursive: true });
  });
  afterAll(async () => {
    await browser?.close();
    await window?.close();
    await lab?.close();
  });

  for (const name of Object.keys(PAGES)) {
    test(
      `${name}: nothing serious for axe, nothing cut off, nothing broken, in light and dark, wide and narrow`,
      async () => {
        const errors: string[] = [];
        const note = (text: string) => errors.push(text);
        const onConsole = (message: { type(): string; text(): string }) =>
          message.type() === "error" && !/status of (404|409)/.test(message.text()) && note(message.text());
        page.on("pageerror", (error) => note(error.message));
        page.on("console", onConsole);
        for (const { name: look, width, colorScheme } of LOOKS) {
          await page.emulateMedia({ colorScheme });
          await page.setViewportSize({ width, height: 800 });
          await page.goto(window.origin + pathOf(name));
          // What would mend it is read before it is done.
          if (name === "overview") await page.locator(".mend summary").first().click();
          await page.locator("h1").first().waitFor();
          if (folder !== undefined) {
            // Lazy pictures come when they are scrolled to.
            await page.evaluate("scrollTo(0, document.body.scrollHeight)");
            await page.waitForTimeout(300);
            await page.evaluate("scrollTo(0, 0)");
            await page.screenshot({ path: join(folder, `${name}-${look}.png`), fullPage: true });
          }
          const overflow = await page.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth",
          );
          expect(overflow, `${look} is wider than the screen`).toBe(0);
          expect(await seriousViolations(page), look).toEqual([]);
        }
        page.off("console", onConsole);
        expect(errors).toEqual([]);
      },
      120_000,
    );
  }

  test.runIf(folder !== undefined)("the two of README and docs/", async () => {
    await page.emulateMedia({ colorScheme: "light" });
    await page.setViewportSize({ width: 1000, height: 640 });
    await page.goto(`${window.origin}${PAGES["overview"]}`);
    await page.screenshot({ path: join(folder ?? "", "window-overview.png") });
    await page.emulateMedia({ colorScheme: "dark" });
    await page.goto(`${window.origin}${PAGES["pictures"]}`);
    const areLoaded = () =>
      page.evaluate<boolean>(
        "[...document.images].filter((image) => image.getBoundingClientRect().top < 640).every((image) => image.complete)",
      );
    await expect.poll(areLoaded, { timeout: 10_000 }).toBe(true);
    await page.screenshot({ path: join(folder ?? "", "window-pictures.jpg"), type: "jpeg", quality: 75 });
  });

  test("a page that has lost its server says so, and keeps what was seen", async () => {
    await page.goto(window.origin + pathOf("overview"));
    await page.locator("#connection").waitFor({ state: "attached" });
    await window.close();
    await page.locator("#lost", { hasText: "does not answer" }).waitFor();
    for (const { name: look, width, colorScheme } of LOOKS) {
      await page.emulateMedia({ colorScheme });
      await page.setViewportSize({ width, height: 800 });
      if (folder !== undefined) await page.screenshot({ path: join(folder, `overview-lost-${look}.png`) });
      expect(await seriousViolations(page), look).toEqual([]);
    }
  });
});
