/** The window's pages and what their buttons do: route, ask the function, render. */
import { type Context, Hono } from "hono";
import { z } from "zod";
import { asCommands } from "../cli/as_commands.ts";
import type { Client } from "../cli/client.ts";
import { CommandError } from "../cli/command_error.ts";
import { redact } from "../cli/redact.ts";
import {
  bucketSchema,
  modeSchema,
  recordFilterSchema,
  type RecordList,
  type Report,
  type Run,
  runIdSchema,
  startRequestSchema,
  stateSchema,
} from "../supabase/functions/image-sync/contract.ts";
import { readAsset } from "./assets.ts";
import type { Guard, Shown } from "./guard.ts";
import { type Live, stream } from "./live.tsx";
import type { Looks } from "./looks.ts";
import { Buckets } from "./pages/buckets.tsx";
import { ArchivePage, Archives, Cleanup, type Listed, PlanCard } from "./pages/cleanup.tsx";
import { Failure } from "./pages/failure.tsx";
import { Overview } from "./pages/overview.tsx";
import { PicturePage } from "./pages/picture.tsx";
import { type Choice, Pictures } from "./pages/pictures.tsx";
import { RunCard, RunPage, Runs } from "./pages/runs.tsx";
import { changesOf, SettingsPage, typedIn } from "./pages/settings.tsx";
import { ExpiryChart, GrowthChart, NightsChart } from "./parts/charts.tsx";
import { Findings } from "./parts/findings.tsx";
import { Layout } from "./parts/layout.tsx";
import { LiveRun } from "./parts/live_run.tsx";
import { Coverage, Verdict } from "./parts/verdict.tsx";
import type { SmallPictures } from "./small_pictures.ts";
import { link, type Rendered, type View } from "./view.ts";

/** What the window is made of. */
export type AppOptions = {
  readonly client: Client;
  readonly projectUrl: string;
  readonly key: string;
  readonly bucket: string;
  readonly guard: Guard;
  readonly looks: Looks;
  /** Absent: pictures are shown as they are. */
  readonly small?: SmallPictures | undefined;
};

/** Pictures on a page of the gallery, and names on a page of a list. */
const PICTURES = 48;
const NAMES = 100;
/** A page of something rare may be short: so many looks are taken until there is something to show. */
const LOOKS_FOR_A_PAGE = 4;

/** What is said after something was done, by what the address says of it. */
const SAID: Readonly<Record<string, string>> = {
  started: "Started.",
  joined: "One was open already: this is it.",
  cancelled: "Cancelled. What it has done so far stays.",
  ended: "It had ended already.",
  saved: "Saved. The next run follows.",
  unchanged: "Nothing was different, so nothing was changed.",
  added: "Added. The next night looks at it; a sync begins at once.",
  "taken-out": "Taken out. Its files, records and history stay.",
};

const afterSchema = z.string().max(4096).catch("");
type Env = Shown;
type Query = Context<Env>;

/** Makes the window's app; its server is another's. */
export function createWindow(options: AppOptions): Hono<Env> {
  const { client, guard, looks, key, projectUrl, small } = options;
  const app = new Hono<Env>();
  const kept = createKeeper();

  const bucketOf = (context: Query) => bucketSchema.catch(options.bucket).parse(context.req.query("bucket"));
  const viewOf = (context: Query, bucket = bucketOf(context)): View => ({
    bucket,
    path: context.req.path === "/live"
      ? link("/", { bucket })
      : context.req.path + new URL(context.req.url).search,
    now: Date.now(),
    csrf: guard.csrf,
  });

  type PageProps = {
    title: string;
    page: string;
    content: Rendered;
    /** What of it is live; null: nothing. */
    live?: Readonly<Record<string, string>> | null;
    report?: Report | undefined;
    status?: 200 | 400 | 404 | 409 | 502;
  };
  const show = (context: Query, { title, page, content, live, report, status }: PageProps) => {
    const view = viewOf(context);
    const html = (
      <Layout
        view={view}
        title={title}
        page={page}
        projectUrl={projectUrl}
        live={live === null ? undefined : link("/live", { bucket: view.bucket, view: "plain", ...live })}
        report={report}
        said={SAID[context.req.query("said") ?? ""]}
      >
        {content}
      </Layout>
    );
    return context.html(`<!doctype html>${String(html)}`, status ?? 200);
  };

  app.use(guard.middleware);
  app.get("/assets/:name", (context) => readAsset(context.req.param("name")) ?? context.notFound());

  app.get("/", async (context) => {
    const report = await looks.report(bucketOf(context));
    const details = await looks.details(report);
    const content = <Overview view={viewOf(context)} report={report} details={details} />;
    return show(context, { title: report.bucket.id, page: "/", content, live: { view: "overview" }, report });
  });

  app.get("/pictures", async (context) => {
    const view = viewOf(context);
    const choice: Choice = {
      state: recordFilterSchema.catch("all").parse(context.req.query("state")),
      search: afterSchema.parse(context.req.query("search") ?? "").trim(),
      after: afterSchema.parse(context.req.query("after") ?? ""),
    };
    const [report, list] = await Promise.all([
      looks.report(view.bucket),
      readRecords(client, view.bucket, choice),
    ]);
    context.set("pictureOrigins", originsOf(list));
    const own = withOwnUrls(list);
    const smaller = await small?.of(view.bucket, own.records);
    const content = <Pictures view={view} choice={choice} list={own} small={smaller} report={report} />;
    return show(context, { title: "Pictures", page: "/pictures", content, report });
  });

  app.get("/picture", async (context) => {
    const view = viewOf(context);
    const name = z.string().min(1).max(4096).parse(context.req.query("file"));
    const [file, list] = await Promise.all([
      client.file(view.bucket, name),
      client.records({ bucket: view.bucket, search: name, limit: 1, urls: true }),
    ]);
    context.set("pictureOrigins", originsOf(list));
    const item = withOwnUrls(list).records.find(({ file_name }) => file_name === name);
    const content = <PicturePage view={view} file={file} item={item} />;
    return show(context, { title: name, page: "/pictures", content });
  });

  const archivesOf = (report: Report) =>
    kept(
      `archives ${report.bucket.id}`,
      `${report.last_runs.cleanup?.id} ${report.last_runs.restore?.id}`,
      () => client.archives(report.bucket.id),
    );
  const settingsOf = (bucket: string) => client.settings(bucket);

  app.get("/cleanup", async (context) => {
    const view = viewOf(context);
    const search = afterSchema.parse(context.req.query("search") ?? "");
    const after = afterSchema.parse(context.req.query("after") ?? "");
    const report = await looks.report(view.bucket);
    const [settings, listed, archives] = await Promise.all([
      settingsOf(view.bucket),
      readListed(client, report, { search, after }),
      client.archives(view.bucket),
    ]);
    const content = (
      <Cleanup view={view} report={report} settings={settings} listed={listed} archives={archives} />
    );
    const live = { view: "cleanup", plan: listed?.run.id ?? "" };
    return show(context, { title: "Cleanup", page: "/cleanup", content, live, report });
  });

  app.get("/archive/:run", async (context) => {
    const view = viewOf(context);
    const after = afterSchema.parse(context.req.query("after") ?? "");
    const archived = await client.archived({
      run: runIdSchema.parse(context.req.param("run")),
      after,
      limit: NAMES,
    });
    return show(context, {
      title: "Archive",
      page: "/cleanup",
      content: <ArchivePage view={view} archived={archived} after={after} />,
    });
  });

  app.get("/runs", async (context) => {
    const view = viewOf(context);
    const mode = modeSchema.optional().catch(undefined).parse(context.req.query("mode"));
    const state = stateSchema.optional().catch(undefined).parse(context.req.query("state"));
    const after = runIdSchema.optional().catch(undefined).parse(context.req.query("after"));
    const list = await client.runs({ bucket: view.bucket, mode, state, after, limit: 50 });
    const choice = { mode: mode ?? "", state: state ?? "", after: after ?? "" };
    return show(context, {
      title: "Runs",
      page: "/runs",
      content: <Runs view={view} choice={choice} list={list} />,
    });
  });

  app.get("/runs/:run", async (context) => {
    const run = await client.run(runIdSchema.parse(context.req.param("run")));
    const content = <RunPage view={viewOf(context)} run={run} />;
    return show(context, { title: run.mode, page: "/runs", content, live: { view: "run", run: run.id } });
  });

  app.get("/settings", async (context) => {
    const settings = await settingsOf(bucketOf(context));
    return show(context, {
      title: "Settings",
      page: "/settings",
      content: <SettingsPage view={viewOf(context)} settings={settings} />,
    });
  });

  app.get("/buckets", async (context) => {
    const content = <Buckets view={viewOf(context)} list={await client.buckets()} />;
    return show(context, { title: "Buckets", page: "/buckets", content });
  });

  // What each kind of page shows of a report, for as long as it is open.
  const lives: Readonly<Record<string, (context: Query) => Live>> = {
    plain: () => () => ({}),
    overview: (context) => async (report) => {
      const view = viewOf(context);
      const { expiry, history } = await looks.details(report);
      return {
        verdict: <Verdict view={view} report={report} />,
        "live-run": <LiveRun view={view} run={report.open_run} />,
        findings: <Findings view={view} report={report} />,
        coverage: <Coverage view={view} report={report} />,
        expiry: <ExpiryChart view={view} expiry={expiry} />,
        nights: <NightsChart view={view} history={history} />,
        growth: <GrowthChart history={history} />,
      };
    },
    cleanup: (context) => async (report) => {
      const view = { ...viewOf(context), path: link("/cleanup", { bucket: bucketOf(context) }) };
      const parts = {
        "live-run": <LiveRun view={view} run={report.open_run} />,
        archives: <Archives view={view} archives={await archivesOf(report)} />,
      };
      const plan = planOf(report)?.id ?? "";
      // The list that the page shows stays as its reader left it.
      if (plan === context.req.query("plan") || (plan === "" && report.open_run !== null)) return parts;
      const [settings, listed] = await kept(
        `plan ${view.bucket}`,
        plan,
        () => Promise.all([settingsOf(view.bucket), readListed(client, report, { search: "", after: "" })]),
      );
      return { ...parts, plan: <PlanCard view={view} report={report} settings={settings} listed={listed} /> };
    },
    run: (context) => (report) => {
      const id = context.req.query("run") ?? "";
      const view = { ...viewOf(context), path: link(`/runs/${id}`, { bucket: bucketOf(context) }) };
      const run = [report.open_run, ...Object.values(report.last_runs)].find((known) => known?.id === id);
      if (run === undefined || run === null) return {};
      return {
        "live-run": <LiveRun view={view} run={run.state === "open" ? run : null} />,
        run: <RunCard view={view} run={run} />,
      };
    },
  };

  app.get("/live", (context) => {
    const kind = context.req.query("view") ?? "plain";
    const live = (lives[kind] ?? lives["plain"])?.(context) ?? (() => ({}));
    return stream(context, { looks, bucket: bucketOf(context), live, key, isFailure: kind === "failure" });
  });

  registerChanges(app, { client, looks });

  app.post("/settings", async (context) => {
    const form = await context.req.parseBody();
    const bucket = bucketSchema.parse(form["bucket"]);
    const settings = await settingsOf(bucket);
    const changes = changesOf(settings, form);
    if (Object.keys(changes).length === 0) return back(context, form, "unchanged");
    try {
      await client.changeSettings({ bucket, changes });
    } catch (error) {
      if (!(error instanceof CommandError) || error.fields.length === 0) throw error;
      const content = (
        <SettingsPage
          view={{ ...viewOf(context, bucket), path: link("/settings", { bucket }) }}
          settings={settings}
          typed={typedIn(settings, form)}
          wrong={error.fields}
        />
      );
      return show(context, { title: "Settings", page: "/settings", content, status: 400 });
    }
    looks.forget();
    return back(context, form, "saved");
  });

  app.notFound((context) => {
    const content = (
      <Failure
        view={{ ...viewOf(context), path: "/" }}
        title="There is no such page"
        message="Nothing is at this address."
      />
    );
    return show(context, { title: "Not found", page: "", content, live: null, status: 404 });
  });

  app.onError((error, context) => {
    const known = error instanceof CommandError ? error : undefined;
    const isAddress = error instanceof z.ZodError;
    const bucket = bucketOf(context);
    const message = isAddress
      ? "The address is none of this window's."
      : redact(asCommands(error.message, bucket), key);
    const path = known?.code === "unknown_bucket"
      ? "/buckets"
      : context.req.method === "POST"
      ? link("/", { bucket })
      : viewOf(context).path;
    const content = (
      <Failure
        view={{ ...viewOf(context), path }}
        title={known?.transient === true ? "The project does not answer" : "That did not work"}
        message={message}
      />
    );
    const status = isAddress ? 400 : known === undefined || known.transient ? 502 : 409;
    const live = known?.transient === true && context.req.method === "GET" ? { view: "failure" } : null;
    return show(context, { title: "Problem", page: "", content, live, status });
  });
  return app;
}

/** What the buttons do. Each has its token, which the guard has seen. */
function registerChanges(app: Hono<Env>, { client, looks }: Pick<AppOptions, "client" | "looks">): void {
  const start = async (context: Query, form: Form, body: Parameters<Client["start"]>[0]) => {
    const { created } = await client.start(body);
    looks.forget();
    return back(context, form, created ? "started" : "joined");
  };

  app.post("/start", async (context) => {
    const form = await context.req.parseBody();
    const request = startRequestSchema.parse(JSON.parse(String(form["request"])));
    // What removes or puts back is confirmed in forms of their own; here it may only wake what is open already.
    if (request.confirm !== undefined || request.restore !== undefined) {
      const { open_run } = await looks.report(request.bucket);
      if (open_run === null || open_run.plan_id !== (request.confirm ?? request.restore)) {
        throw new CommandError(
          "not_confirmed",
          "Cannot start this from here: confirm it on the page of cleanups",
        );
      }
    }
    return await start(context, form, request);
  });

  app.post("/cancel", async (context) => {
    const form = await context.req.parseBody();
    const run = await client.cancel(runIdSchema.parse(form["run"]));
    looks.forget();
    return back(context, form, run.state === "cancelled" ? "cancelled" : "ended");
  });

  app.post("/confirm", async (context) => {
    const form = await context.req.parseBody();
    const plan = runIdSchema.parse(form["plan"]);
    const { count } = await client.planPage({ run: plan, after: "", limit: 1 });
    if (String(form["typed"]).trim() !== String(count) || String(form["count"]) !== String(count)) {
      throw new CommandError(
        "not_confirmed",
        `Cannot archive: the number that was typed is not that of the list, ${count}`,
      );
    }
    return await start(context, form, {
      mode: "cleanup",
      bucket: bucketSchema.parse(form["bucket"]),
      confirm: plan,
      ...(form["raise_count"] === undefined
        ? {}
        : { max_delete_count: z.coerce.number().parse(form["raise_count"]) }),
      ...(form["raise_fraction"] === undefined
        ? {}
        : { max_delete_fraction: z.coerce.number().parse(form["raise_fraction"]) }),
    });
  });

  app.post("/start-restore", async (context) => {
    const form = await context.req.parseBody();
    const bucket = bucketSchema.parse(form["bucket"]);
    return await start(context, form, { mode: "restore", bucket, restore: runIdSchema.parse(form["run"]) });
  });

  app.post("/add-bucket", async (context) => {
    const form = await context.req.parseBody();
    const bucket = bucketSchema.parse(form["name"]);
    await client.addBucket(bucket);
    return context.redirect(link("/", { bucket, said: "added" }), 303);
  });

  app.post("/remove-bucket", async (context) => {
    const form = await context.req.parseBody();
    await client.removeBucket(bucketSchema.parse(form["name"]));
    looks.forget();
    return context.redirect(link("/buckets", { said: "taken-out" }), 303);
  });
}

type Form = Readonly<Record<string, unknown>>;

/** To the page that the form stood on, with a word of what became of it. */
function back(context: Query, form: Form, said: string): Response {
  const here = new URL(context.req.url).origin;
  const path = String(form["back"] ?? "/");
  const target = URL.canParse(path, here) && path.startsWith("/") ? new URL(path, here) : new URL("/", here);
  if (target.origin !== here) return context.redirect("/", 303);
  target.searchParams.set("said", said);
  return context.redirect(target.pathname + target.search, 303);
}

/** A page of records with something on it, where a few looks find something. */
async function readRecords(
  client: Client,
  bucket: string,
  { state, search, after }: Choice,
): Promise<RecordList> {
  let list = await client.records({ bucket, state, search, after, limit: PICTURES, urls: true });
  for (
    let look = 1;
    look < LOOKS_FOR_A_PAGE && list.next !== null && list.records.length < PICTURES / 4;
    look++
  ) {
    const more = await client.records({
      bucket,
      state,
      search,
      after: list.next,
      limit: PICTURES,
      urls: true,
    });
    list = { ...more, records: [...list.records, ...more.records] };
  }
  return list;
}

/** The dry run whose list can be confirmed: the newest cleanup, unless that one has applied its list. */
function planOf({ last_runs: { cleanup } }: Report): Run | undefined {
  return cleanup !== null && cleanup.plan_id === null && cleanup.state === "succeeded" ? cleanup : undefined;
}

async function readListed(
  client: Client,
  report: Report,
  { search, after }: { search: string; after: string },
): Promise<Listed | undefined> {
  const run = planOf(report);
  if (run === undefined) return undefined;
  const page = await client.planPage({
    run: run.id,
    after: after === "" ? before(search) : after,
    limit: NAMES,
  });
  const names = page.names.filter((name) => name.startsWith(search));
  const isAtEnd = names.length < page.names.length;
  return { run, search, after, page: { ...page, names, next: isAtEnd ? null : page.next } };
}

/** A key that lies before all names that begin so, and behind those that do not. */
function before(prefix: string): string {
  const last = prefix.codePointAt(prefix.length - 1);
  // No name has a character below the first one.
  if (last === undefined || last <= 1) return "";
  return `${prefix.slice(0, -1)}${String.fromCodePoint(last - 1)}\u{10FFFF}`;
}

// Whose pictures a page may load: the project's, at the address that its readers use.
function originsOf({ url_base }: RecordList): string[] {
  return url_base !== null && URL.canParse(url_base) ? [new URL(url_base).origin] : [];
}

// A URL of another address is not this project's: nobody is sent there.
function withOwnUrls(list: RecordList): RecordList {
  const { url_base } = list;
  const records = list.records.map(({ url, ...item }) =>
    url !== undefined && url_base !== null && url_base !== "" && url.startsWith(url_base)
      ? { ...item, url }
      : item
  );
  return { ...list, records };
}

/** Keeps the newest of something for as long as its key stays the same. */
function createKeeper() {
  const all = new Map<string, { key: string; value: Promise<unknown> }>();
  return <T,>(what: string, key: string, make: () => Promise<T>): Promise<T> => {
    const known = all.get(what);
    if (known?.key === key) return known.value as Promise<T>;
    const value = make();
    all.set(what, { key, value });
    value.catch(() => all.delete(what));
    return value;
  };
}
