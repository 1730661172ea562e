/** What an operator does with the window, in a real browser on a real stack. */
import { createServer, type Server } from "node:http";
import { Readable } from "node:stream";
import type { AddressInfo } from "node:net";
import type { Page } from "playwright-core";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import type { OpenWindow } from "../../window/server.ts";
import {
  addObjects,
  createBucket,
  eventually,
  numberedNames,
  removeObjects,
  runToEnd,
} from "../sync/support/lab.ts";
import { control, type LocalLab, openLocalLab } from "../sync/support/local_lab.ts";
import { mustHaveBrowser, openBrowser, type TestBrowser, withoutBrowser } from "./support/browser.ts";
import { openTestWindow } from "./support/window.ts";

if (withoutBrowser !== undefined) console.warn(`Nothing is operated: ${withoutBrowser}`);

describe.skipIf(withoutBrowser !== undefined && !mustHaveBrowser)("an operator", () => {
  let lab: LocalLab;
  let window: OpenWindow;
  let browser: TestBrowser;
  let page: Page;
  let errors: string[] = [];
  const open = (path: string) => page.goto(window.origin + path);
  /** What a person does who looks at a page that is about to come: waits until it shows that many. */
  const expectCount = (selector: string, count: number) =>
    expect.poll(() => page.locator(selector).count(), { timeout: 10_000 }).toBe(count);
  const records = async (bucket: string) =>
    Number(
      (await lab.sql`select count(*) from public.part_images where bucket_id = ${bucket}`)[0]?.["count"],
    );

  beforeAll(async () => {
    if (withoutBrowser !== undefined) throw new Error(withoutBrowser);
    lab = await openLocalLab();
    window = await openTestWindow(lab.stack);
    browser = await openBrowser();
    page = await browser.context.newPage();
    page.on("pageerror", (error) => errors.push(error.message));
    page.on("console", (message) => message.type() === "error" && errors.push(message.text()));
    await page.goto(window.address);
  });
  afterEach(() => {
    // What does not answer is told by the browser too.
    expect(errors.filter((text) => !/Failed to load resource|ERR_/.test(text))).toEqual([]);
    errors = [];
  });
  afterAll(async () => {
    await browser?.close();
    await window?.close();
    await lab?.close();
  });

  test(
    "watches a first sync of 20,000 to its end, in place, and keeps focus and scroll position",
    async () => {
      const bucket = await createBucket(lab, { objects: numberedNames(20_000) });
      await open(`/?bucket=${bucket}`);
      await page.evaluate("window.isThisPage = true");
      await page.click("#start-sync");
      await page.waitForURL(/said=started/);
      await page.evaluate("window.isThisPage = true");
      const bar = page.locator("#live-run progress");
      await bar.waitFor();
      await page.focus("#cancel-run");
      await page.evaluate("scrollTo(0, 60)");
      const seen = new Set<number>();
      await eventually(async () => {
        if (await page.locator("#live-run").isHidden()) return true;
        seen.add(Number(await bar.getAttribute("value").catch(() => 0)));
        if (seen.size === 2) {
          expect(await page.evaluate("document.activeElement.id")).toBe("cancel-run");
          expect(await page.evaluate("scrollY")).toBe(60);
        }
        return undefined;
      }, "the run to end on the page");
      expect(seen.size).toBeGreaterThan(1);
      await page.locator("#verdict", { hasText: "Healthy" }).waitFor();
      expect(await page.locator("#coverage").textContent()).toContain("20,000");
      expect(await page.evaluate("window.isThisPage")).toBe(true);
    },
    90_000,
  );

  test("sees that a worker is gone, and that the next one goes on", async () => {
    const bucket = await createBucket(lab, { objects: numberedNames(3) });
    await lab.database.start({ run: crypto.randomUUID(), bucket, mode: "sync", options: {} });
    await lab
      .sql`update image_sync.runs set moved_at = now() - interval '40 seconds' where bucket_id = ${bucket}`;
    await open(`/?bucket=${bucket}`);
    await page.getByText(/waiting for the next worker/).waitFor();
    await runToEnd(lab, bucket);
    await page.locator("#live-run").waitFor({ state: "hidden" });
  });

  test("cancels a run", async () => {
    const bucket = await createBucket(lab, { objects: numberedNames(3) });
    const { run } = await lab.database.start({
      run: crypto.randomUUID(),
      bucket,
      mode: "analyze",
      options: {},
    });
    await open(`/?bucket=${bucket}`);
    await page.click("#cancel-run");
    await page.getByText("Cancelled.").waitFor();
    expect((await lab.database.readRun(run.id)).state).toBe("cancelled");
  });

  test(
    "mends each finding by its button, after it was said what that does, and the finding goes away by itself",
    async () => {
      const bucket = await createBucket(lab, { objects: numberedNames(40) });
      await runToEnd(lab, bucket);
      await addObjects(lab, bucket, ["new.jpg"]);
      await removeObjects(lab, bucket, ["000001.jpg"]);
      await lab
        .sql`update public.part_images set signed_url = null, signed_url_expires_at = null where bucket_id = ${bucket} and file_name = '000002.jpg'`;
      await lab
        .sql`update public.part_images set signed_url_expires_at = now() - interval '1 hour' where bucket_id = ${bucket} and file_name = '000003.jpg'`;
      await lab
        .sql`update storage.objects set name = 'moved.jpg' where bucket_id = ${bucket} and name = '000004.jpg'`;
      await lab.sql`update storage.buckets set public = true where id = ${bucket}`;
      await runToEnd(lab, bucket, { mode: "analyze" });
      await open(`/?bucket=${bucket}`);
      const finding = (code: string) => page.locator(`#finding-${code}`);
      for (const code of ["missing", "unsigned", "expired", "moved", "orphaned", "bucket_public"]) {
        await finding(code).waitFor();
      }

      // SQL is for its owner to run: it is copied.
      await browser.context.grantPermissions(["clipboard-read", "clipboard-write"], {
        origin: window.origin,
      });
      await page.click("#mend-bucket_public summary");
      await page.click("#mend-bucket_public [data-copy]");
      const sql = await page.evaluate<string>("navigator.clipboard.readText()");
      expect(sql).toBe(`update storage.buckets set public = false where id = '${bucket}';`);
      await lab.sql.unsafe(sql);
      await finding("bucket_public").waitFor({ state: "detached" });

      await page.click("#mend-missing summary");
      expect(await page.locator("#mend-missing").textContent()).toContain("Deletes nothing");
      await page.click("#do-missing");
      for (const code of ["missing", "unsigned", "expired", "moved"]) {
        await finding(code).waitFor({ state: "detached" });
      }

      await page.click("#mend-orphaned summary");
      expect(await page.locator("#mend-orphaned").textContent()).toContain(
        "Nothing is removed until you confirm",
      );
      await page.click("#do-orphaned");
      await eventually(
        async () => (await lab.database.readReport(bucket)).last_runs.cleanup ?? undefined,
        "the list",
      );
      await open(`/cleanup?bucket=${bucket}`);
      await page.fill("#typed", "1");
      await page.click("#confirm-cleanup");
      await eventually(async () => await records(bucket) === 40 ? true : undefined, "the cleanup");
      await open(`/?bucket=${bucket}`);
      await finding("orphaned").waitFor({ state: "detached" });
    },
    60_000,
  );

  test("cleans up by the whole list and its number, and puts it back", async () => {
    const names = numberedNames(200);
    const bucket = await createBucket(lab, { objects: names, settings: { max_delete_fraction: 0.1 } });
    await runToEnd(lab, bucket);
    await removeObjects(lab, bucket, names.slice(0, 120));
    await runToEnd(lab, bucket, { mode: "analyze" });
    await open(`/cleanup?bucket=${bucket}`);
    await page.click("#make-list");
    // The list appears by itself.
    await page.getByText("120 records").waitFor();
    await expectCount("#plan-names li", 100);
    await page.getByRole("link", { name: "Next page" }).click();
    await expectCount("#plan-names li", 20);
    await page.fill("#search", "00011");
    await page.getByRole("button", { name: "Search" }).click();
    await expectCount("#plan-names li", 10);
    expect(await page.locator("#plan-names li").allTextContents()).toEqual(names.slice(109, 119));

    // Another number is no confirmation.
    await page.fill("#typed", "119");
    await page.click("#confirm-cleanup");
    await expectCount("#typed:invalid", 1);
    // The guard stands until it is raised by name.
    await page.fill("#typed", "120");
    await page.click("#confirm-cleanup");
    await page.getByRole("alert").waitFor();
    expect(await records(bucket)).toBe(200);
    await open(`/cleanup?bucket=${bucket}`);
    await page.getByLabel(/of them/).check();
    await page.fill("#typed", "120");
    await page.click("#confirm-cleanup");
    await page.getByRole("button", { name: "Restore" }).waitFor();
    expect(await records(bucket)).toBe(80);

    await page.locator("#archives a").first().click();
    await page.getByText("000001.jpg").waitFor();
    await open(`/cleanup?bucket=${bucket}`);
    await page.getByRole("button", { name: "Restore" }).click();
    await page.getByText("all are back").waitFor();
    expect(await records(bucket)).toBe(200);
  }, 60_000);

  test("finds names of a list by a beginning that ends with a space", async () => {
    const gone = [...numberedNames(110), "IMG 1.jpg", "IMG 2.jpg", "IMG.jpg"];
    const bucket = await createBucket(lab, { objects: ["stays.jpg", ...gone], settings: { probe_size: 0 } });
    await runToEnd(lab, bucket);
    await removeObjects(lab, bucket, gone);
    await runToEnd(lab, bucket, { mode: "analyze" });
    await open(`/cleanup?bucket=${bucket}`);
    await page.click("#make-list");
    await page.getByText("113 records").waitFor();
    await page.fill("#search", "IMG ");
    await page.getByRole("button", { name: "Search" }).click();
    await expectCount("#plan-names li", 2);
    expect(await page.locator("#plan-names li").allTextContents()).toEqual(["IMG 1.jpg", "IMG 2.jpg"]);
  }, 60_000);

  test("searches, narrows and pages through 100,000 records", async () => {
    const bucket = await createBucket(lab);
    await lab
      .sql`insert into storage.objects (bucket_id, name, metadata) select ${bucket}, lpad(n::text, 6, '0') || '.jpg', '{"size": 1000}' from generate_series(1, 100000) as n`;
    await lab.sql`
      insert into public.part_images (bucket_id, file_name, part_number, signed_url, signed_url_expires_at)
      select ${bucket}, lpad(n::text, 6, '0') || '.jpg', lpad(n::text, 6, '0'),
        case when n <> 77777 then image_sync.url_base(s) || lpad(n::text, 6, '0') || '.jpg?token=x' end, now() + interval '6 days'
      from image_sync.settings s cross join generate_series(1, 100000) as n where s.bucket_id = ${bucket}`;
    await lab.sql`analyze storage.objects, public.part_images`;
    await runToEnd(lab, bucket, { mode: "analyze" });
    await open(`/pictures?bucket=${bucket}`);
    const tiles = page.locator(".gallery li .name");
    expect(await tiles.first().textContent()).toBe("000001.jpg");
    await page.getByRole("link", { name: "Next page" }).click();
    await page.waitForURL(/after=/);
    expect(await tiles.first().textContent()).toBe("000049.jpg");
    await page.fill("#search", "09999");
    await page.press("#search", "Enter");
    await page.waitForURL(/search=/);
    expect(await tiles.allTextContents()).toEqual(numberedNames(10, 99_990));
    await open(`/pictures?bucket=${bucket}&state=unsigned`);
    expect(await tiles.allTextContents()).toEqual(["077777.jpg"]);
    await tiles.first().click();
    await page.getByText("The record has no URL yet").waitFor();
  }, 60_000);

  test("changes settings, and is told in the database's words what is not allowed", async () => {
    const bucket = await createBucket(lab);
    await open(`/settings?bucket=${bucket}`);
    await page.fill("#setting-chunk_size", "5000");
    await page.fill("#setting-signed_url_ttl", "10 days");
    await page.click("#save-settings");
    await page.locator(".field.wrong", { hasText: "From 1 to 1,000." }).waitFor();
    expect(await page.inputValue("#setting-signed_url_ttl")).toBe("10 days");
    await page.fill("#setting-chunk_size", "500");
    await page.fill("#setting-public_url", "https://files.example.com/pictures");
    await page.click("#save-settings");
    await page.locator(".field.wrong", { hasText: "Scheme and host without a path" }).waitFor();
    await page.fill("#setting-public_url", "");
    await page.click("#save-settings");
    await page.getByText("Saved.").waitFor();
    const [row] = await lab
      .sql`select chunk_size, signed_url_ttl::text as ttl from image_sync.settings where bucket_id = ${bucket}`;
    expect(row).toEqual({ chunk_size: 500, ttl: "10 days" });
  });

  test("does all of it by keyboard alone", async () => {
    const bucket = await createBucket(lab, { objects: numberedNames(3) });
    await open(`/?bucket=${bucket}`);
    const tabTo = async (id: string) => {
      for (let step = 0; step < 40; step++) {
        await page.keyboard.press("Tab");
        if (await page.evaluate("document.activeElement.id") === id) return;
      }
      throw new Error(`No way to ${id} by keyboard`);
    };
    await page.keyboard.press("Tab");
    expect(await page.evaluate("document.activeElement.textContent")).toBe("To the content");
    await tabTo("start-sync");
    await page.keyboard.press("Enter");
    await page.locator("#verdict", { hasText: "100 %" }).waitFor();
    await removeObjects(lab, bucket, ["000001.jpg"]);
    await runToEnd(lab, bucket, { mode: "analyze" });
    await page.locator("#finding-orphaned").waitFor();
    await page.focus("#mend-orphaned summary");
    await page.keyboard.press("Enter");
    await tabTo("do-orphaned");
    // The address may say already what the step before did: what counts is that a page comes.
    const comes = page.waitForEvent("load");
    await page.keyboard.press("Enter");
    await comes;
    await open(`/pictures?bucket=${bucket}`);
    await tabTo("search");
    await page.keyboard.type("000002");
    await page.keyboard.press("Enter");
    await page.waitForURL(/search=000002/);
    await expectCount(".gallery li", 1);
  });

  test("without script does all of it but watch", async () => {
    const bucket = await createBucket(lab, { objects: numberedNames(3) });
    const plain = await browser.context.newPage();
    const session = await browser.context.newCDPSession(plain);
    await session.send("Emulation.setScriptExecutionDisabled", { value: true });
    await plain.goto(`${window.origin}/?bucket=${bucket}`);
    await plain.click("#start-sync");
    await plain.getByText("Started.").waitFor();
    await eventually(async () => await records(bucket) === 3 ? true : undefined, "the sync");
    await plain.close();
  });

  test("loses the project and the window's server, is told so, and gets them back", async () => {
    const bucket = await createBucket(lab, { objects: numberedNames(3) });
    const { gate, url, setOpen } = await openGate(lab.stack.url);
    let other = await openTestWindow({ url, secretKey: lab.stack.secretKey }, { bucket });
    const port = Number(new URL(other.origin).port);
    const tab = await browser.context.newPage();
    await tab.goto(other.address);
    await tab.locator("#verdict").waitFor();
    setOpen(false);
    await tab.locator("#connection", { hasText: "What you see is from before" }).waitFor();
    expect(await tab.locator("#verdict").isVisible()).toBe(true);
    setOpen(true);
    await tab.locator("#connection .banner").waitFor({ state: "detached" });

    await other.close();
    await tab.locator("#lost", { hasText: "does not answer" }).waitFor();
    other = await openTestWindow({ url, secretKey: lab.stack.secretKey }, { bucket, port });
    // A window of another life has another cookie.
    await tab.locator("#lost", { hasText: "Open a new one" }).waitFor();
    await tab.goto(other.address);
    await tab.locator("#verdict").waitFor();
    expect(await tab.locator("#lost").isHidden()).toBe(true);
    await tab.close();
    await other.close();
    gate.close();
  });

  test("with 50 pages open costs the function one look a second, and a page is small", async () => {
    const bucket = await createBucket(lab, { objects: numberedNames(3) });
    await runToEnd(lab, bucket);
    // Nobody else looks.
    await page.goto("about:blank");
    const many = await openTestWindow(lab.stack, { bucket, rhythm: { open: 1000, idle: 1000 } });
    const entered = await fetch(many.address, { redirect: "manual" });
    const cookie = entered.headers.get("set-cookie")?.split(";")[0] ?? "";
    const html = await (await fetch(many.origin, { headers: { cookie } })).text();
    const files = [...html.matchAll(/(?:src|href)="(\/assets\/[^"]+)"/g)].map(([, path]) => path);
    const sizes = await Promise.all(
      files.map(async (path) =>
        (await (await fetch(many.origin + path, { headers: { cookie } })).arrayBuffer()).byteLength
      ),
    );
    expect(html.length + sizes.reduce((sum, size) => sum + size, 0)).toBeLessThan(60_000);
    const stop = new AbortController();
    const pages = await Promise.all(
      Array.from({ length: 50 }, () =>
        fetch(`${many.origin}/live?view=overview&bucket=${bucket}`, {
          headers: { cookie },
          signal: stop.signal,
        })),
    );
    await control(lab, "DELETE", "/requests");
    await new Promise((resolve) => setTimeout(resolve, 3000));
    const counts = await (await control(lab, "GET", "/requests")).json() as { rpc: Record<string, number> };
    stop.abort();
    await Promise.allSettled(pages.map((each) => each.text()));
    expect(counts.rpc["image_sync_report"]).toBeGreaterThan(0);
    expect(counts.rpc["image_sync_report"]).toBeLessThanOrEqual(4);
    expect(counts.rpc["image_sync_history"] ?? 0).toBeLessThanOrEqual(1);
    await many.close();
  });
});

/** A way to the project that can be closed. */
async function openGate(
  target: string,
): Promise<{ gate: Server; url: string; setOpen: (isOpen: boolean) => void }> {
  let isOpen = true;
  const gate = createServer((request, response) => {
    if (!isOpen) return void response.destroy();
    fetch(target + request.url, { headers: { apikey: String(request.headers["apikey"]) } }).then((answer) => {
      response.writeHead(answer.status, { "content-type": answer.headers.get("content-type") ?? "" });
      if (answer.body === null) response.end();
      else Readable.fromWeb(answer.body as never).pipe(response);
    }, () => response.destroy());
  });
  await new Promise<void>((resolve) => gate.listen(0, "127.0.0.1", resolve));
  return {
    gate,
    url: `http://127.0.0.1:${(gate.address() as AddressInfo).port}`,
    setOpen: (now) => {
      isOpen = now;
    },
  };
}
