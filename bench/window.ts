/** The window at the size of the largest bucket: each look that a page takes at the database, and the first view of each page. */
import { createClient } from "../cli/client.ts";
import { openWindow } from "../window/server.ts";
import { fillBucket, resetTable } from "./bucket.ts";
import { say, summarize, timed } from "./measure.ts";
import { runOurs } from "./ours.ts";
import type { BenchStack } from "./stack.ts";

const BUCKET = "part-images";
/** Each look once for the plans and pages that it needs, then so many times. */
const LOOKS = 9;

/** What the looks and views took, each with all of its rounds. */
export type WindowTimes = {
  readonly objects: number;
  readonly rpcs: readonly Timed[];
  readonly views: readonly Timed[];
};

/** One look, or one view. */
export type Timed = { readonly name: string; readonly ms: readonly number[] };

/** Makes a bucket with some of everything that a page narrows to, and looks at it. */
export async function measureWindow(stack: BenchStack, objects: number): Promise<WindowTimes> {
  await fillBucket(stack, objects);
  await resetTable(stack, 0);
  await runOurs(stack);
  await addFaults(stack, objects);
  await stack.sql`vacuum analyze public.part_images, storage.objects`;
  await runOurs(stack, { mode: "analyze" });
  const { id: plan } = await runOurs(stack, { mode: "cleanup" });
  const rpcs: Timed[] = [];
  for (const [name, rpc, body] of looksAt(objects, plan)) {
    rpcs.push({ name, ms: await timesOf(() => callRpc(stack, rpc, body)) });
  }
  const views: Timed[] = [];
  for (
    const path of [
      "/",
      "/pictures",
      "/pictures?state=several",
      "/pictures?state=missing",
      "/cleanup",
      "/runs",
      "/settings",
    ]
  ) {
    views.push({ name: path, ms: await timesOf(() => firstView(stack, path), (ms) => ms) });
  }
  for (const [what, all] of [["look", rpcs], ["first view", views]] as const) {
    const { name, ms } = slowest(all);
    say(`${objects} objects: the slowest ${what} is ${name}, ${summarize(ms).median.toFixed(1)} ms`);
  }
  return { objects, rpcs, views };
}

/** The one with the highest median. */
export function slowest(all: readonly Timed[]): Timed {
  const [first] = all.toSorted((one, other) => summarize(other.ms).median - summarize(one.ms).median);
  if (first === undefined) throw new Error("Cannot tell the slowest: nothing was measured");
  return first;
}

/** 5,000 each, from end to end, are orphaned, missing, unsigned, expired, have a twin, or a picture beside them that is left out. */
async function addFaults({ sql }: BenchStack, objects: number): Promise<void> {
  const step = Math.max(Math.floor(objects / 5000), 10);
  const names = (first: number) =>
    sql`select lpad(i::text, 7, '0') || '.jpg' from generate_series(${first}::integer, ${objects}::integer, ${step}::integer) as i`;
  const records = (first: number) => sql`bucket_id = ${BUCKET} and file_name in (${names(first)})`;
  await sql.begin(async (transaction) => {
    await transaction`set local storage.allow_delete_query = 'true'`;
    await transaction`delete from storage.objects where bucket_id = ${BUCKET} and name in (${names(1)})`;
  });
  await sql`delete from public.part_images where ${records(2)}`;
  await sql`update public.part_images set signed_url = null, signed_url_expires_at = null where ${
    records(3)
  }`;
  await sql`update public.part_images set signed_url_expires_at = now() - interval '1 hour' where ${
    records(4)
  }`;
  await sql`
    update public.part_images
    set part_number = lpad((part_number::integer + 1)::text, 7, '0') || ' (1)'
    where ${records(5)}`;
  await sql`
    insert into storage.objects (bucket_id, name, metadata, version)
    select o.bucket_id, replace(o.name, '.jpg', '.png'), o.metadata, o.version
    from storage.objects o
    where o.bucket_id = ${BUCKET} and o.name in (${names(7)})`;
}

type Look = readonly [name: string, rpc: string, body: Record<string, unknown>];

/** What pages ask, at the beginning, in the middle and near the end. */
function looksAt(objects: number, plan: string): readonly Look[] {
  const at = (part: number) => `${String(Math.floor(objects * part)).padStart(7, "0")}.jpg`;
  const states = "all missing unsigned expired expiring orphaned several broken excluded other empty working";
  const bucket = { p_bucket: BUCKET };
  const page = { ...bucket, p_limit: 48, p_urls: true };
  return [
    ["report", "image_sync_report", bucket],
    ["expiry", "image_sync_expiry", bucket],
    ["history", "image_sync_history", { ...bucket, p_days: 90 }],
    ["runs", "image_sync_runs", { ...bucket, p_limit: 50 }],
    ["buckets", "image_sync_buckets", {}],
    ["settings", "image_sync_settings", bucket],
    ["archives", "image_sync_archives", bucket],
    ["plan", "image_sync_plan", { p_run: plan, p_limit: 100 }],
    ["file", "image_sync_file", { ...bucket, p_file: at(0.5) }],
    ...states.split(" ").map((state): Look => [
      `records ${state}`,
      "image_sync_records",
      { ...page, p_state: state },
    ]),
    ...[0.5, 0.99].flatMap((part): Look[] =>
      ["all", "missing", "working"].map((state) => [
        `records ${state} from ${at(part)}`,
        "image_sync_records",
        { ...page, p_state: state, p_after: at(part) },
      ])
    ),
    ["records found by name", "image_sync_records", { ...page, p_search: at(0.7).slice(0, 5) }],
    ["records found by nothing", "image_sync_records", { ...page, p_search: "zz" }],
    ["missing ones found by name", "image_sync_records", { ...page, p_state: "missing", p_search: "0" }],
  ];
}

async function callRpc({ url, key }: BenchStack, rpc: string, body: Record<string, unknown>): Promise<void> {
  const response = await fetch(`${url}/rest/v1/rpc/${rpc}`, {
    method: "POST",
    headers: { apikey: key, "content-type": "application/json" },
    body: JSON.stringify(body),
  });
  const text = await response.text();
  if (!response.ok || text.includes('"problem"')) {
    throw new Error(`Cannot call ${rpc}: ${text.slice(0, 300)}`);
  }
}

async function timesOf<T>(act: () => Promise<T>, msOf?: (result: T) => number): Promise<number[]> {
  const times: number[] = [];
  for (let round = 0; round <= LOOKS; round++) {
    let result: T | undefined;
    const seconds = await timed(async () => result = await act());
    times.push(msOf === undefined ? seconds * 1000 : msOf(result as T));
  }
  return times.slice(1).map((ms) => Math.round(ms * 10) / 10);
}

/** The page, its stylesheet and its script through a window that has seen nothing yet, in ms. */
async function firstView(stack: BenchStack, path: string): Promise<number> {
  const client = createClient({ url: stack.url, key: stack.key, source: "the measurement" }, {
    timeout: 30_000,
  });
  const window = await openWindow({ client, projectUrl: stack.url, key: stack.key, bucket: BUCKET });
  try {
    const entered = await fetch(window.address, { redirect: "manual" });
    await entered.body?.cancel();
    const cookie = entered.headers.get("set-cookie")?.split(";")[0] ?? "";
    const load = async (at: string) => {
      const response = await fetch(window.origin + at, { headers: { cookie } });
      const text = await response.text();
      if (!response.ok) throw new Error(`Cannot view ${at}: HTTP ${response.status}`);
      return text;
    };
    return 1000 * await timed(async () => {
      const html = await load(path);
      await Promise.all(
        [...html.matchAll(/(?:href|src)="(\/assets\/[^"]+)"/g)].map(([, at = ""]) => load(at)),
      );
    });
  } finally {
    await window.close();
  }
}
