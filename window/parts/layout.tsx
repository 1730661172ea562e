/** The frame of every page: where one is, how things stand, and the pages beside this one. */
import type { FC, PropsWithChildren } from "hono/jsx";
import type { Report } from "../../supabase/functions/image-sync/contract.ts";
import { VERSION } from "../../supabase/functions/image-sync/version.ts";
import { safeText } from "../../supabase/functions/image-sync/text/safe_text.ts";
import { renderShortProgress } from "../../supabase/functions/image-sync/text/run.ts";
import { assetPath } from "../assets.ts";
import { link, type Rendered, type View } from "../view.ts";
import { Name } from "./basics.tsx";

/** The pages of a bucket, in the order of the navigation. */
const PAGES = [["/", "Overview"], ["/pictures", "Pictures"], ["/cleanup", "Cleanup"], ["/runs", "Runs"], [
  "/settings",
  "Settings",
]] as const;

type LayoutProps = PropsWithChildren<{
  view: View;
  title: string;
  projectUrl: string;
  /** The part of the navigation that this page belongs to. */
  page: string;
  /** What keeps it live: a path that sends its parts. */
  live?: string | undefined;
  report?: Report | undefined;
  said?: string | undefined;
}>;

/** A whole page. */
export const Layout: FC<LayoutProps> = ({ view, title, projectUrl, page, live, report, said, children }) => (
  <html lang="en">
    <head>
      <meta charset="utf-8" />
      <meta name="viewport" content="width=device-width, initial-scale=1" />
      <meta name="color-scheme" content="light dark" />
      <title>{`${safeText(title)} · image-sync`}</title>
      <link rel="icon" href={assetPath("icon.svg")} type="image/svg+xml" />
      <link rel="stylesheet" href={assetPath("window.css")} />
      <script src={assetPath("window.js")} defer></script>
    </head>
    <body data-live={live}>
      <a class="skip" href="#content">To the content</a>
      <header class="top">
        <a class="brand" href={link("/", { bucket: view.bucket })}>image-sync</a>
        <a class="bucket" href={link("/buckets", { bucket: view.bucket })} title="All buckets">
          <span class="hidden">Bucket</span>
          <Name of={view.bucket} />
        </a>
        <Standing report={report} />
        <nav aria-label="Pages of the bucket">
          {PAGES.map(([path, name]) => (
            <a href={link(path, { bucket: view.bucket })} aria-current={path === page ? "page" : undefined}>
              {name}
            </a>
          ))}
        </nav>
      </header>
      <Connection error={undefined} />
      <div id="lost" class="banner error" role="status" hidden></div>
      <main id="content" tabindex={-1}>
        {said === undefined ? null : <p class="banner good" role="status">{said}</p>}
        {children}
      </main>
      <footer>
        <p>
          {projectUrl} · version {VERSION}
        </p>
      </footer>
    </body>
  </html>
);

/** How the bucket stands, in a word, on every page. */
export const Standing: FC<{ report: Report | undefined }> = ({ report }) => (
  <p class="standing" id="standing">{report === undefined ? null : standingOf(report)}</p>
);

function standingOf(report: Report): Rendered {
  const run = report.open_run;
  return (
    <>
      {run === null ? null : <span class="badge info">{run.mode} {renderShortProgress(run)}</span>}
      <span class={`badge ${report.healthy ? "good" : "error"}`}>
        {report.healthy ? "healthy" : "needs attention"}
      </span>
    </>
  );
}

/** Says that the project does not answer, as long as it does not. */
export const Connection: FC<{ error: string | undefined }> = ({ error }) => (
  <div id="connection" role="status">
    {error === undefined ? null : (
      <p class="banner error">
        What you see is from before: {safeText(error)}. The window goes on asking.
      </p>
    )}
  </div>
);
