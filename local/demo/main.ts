/**
 * `npm start`: the whole of it on this machine. Starts the embedded stack, fills a bucket, lets the schedule sync it, shows
 * what came of it, and stays up.
 */
import process from "node:process";
import { Command, InvalidArgumentError } from "commander";
import { type Client, createClient } from "../../cli/client.ts";
import { createProgress } from "../../cli/progress.ts";
import type { Report, Run } from "../../supabase/functions/image-sync/contract.ts";
import { renderReport, renderRun } from "../../supabase/functions/image-sync/text.ts";
import { watch } from "../../cli/watch.ts";
import { openWindow } from "../../window/server.ts";
import { runNight } from "./night.ts";
import { seed } from "./seed.ts";
import { openSignedUrl } from "./signed_url.ts";
import { type Stack, type StackOptions, startStack } from "../stack.ts";

type Flags = {
  readonly images: number;
  readonly records: number;
  readonly port: number;
  readonly dbPort: number;
  readonly postgres?: string;
  readonly once: boolean;
  readonly json: boolean;
};

type Outcome = { readonly before: Report; readonly run: Run; readonly after: Report };

const program = new Command("npm start --")
  .description("Starts a whole Supabase project in miniature and syncs a bucket of sample images")
  .option("--images <number>", "JPEG images to upload", wholeNumber(1_000_000), 400)
  .option("--records <number>", "old rows of part_images", wholeNumber(1_000_000), 20)
  .option("--port <number>", "port of the gateway; 0: any free one", wholeNumber(65_535), 54321)
  .option("--db-port <number>", "port of Postgres; 0: any free one", wholeNumber(65_535), 54322)
  .option("--postgres <directory>", "use the Postgres of this directory, with its pg_cron")
  .option(
    "--once",
    "stop when the run is over; exit status 0 if it succeeded and the report is healthy",
    false,
  )
  .option(
    "--json",
    "print one JSON document {before, run, after} on standard output, all else on standard error",
    false,
  );

function wholeNumber(highest: number): (text: string) => number {
  return (text) => {
    const number = Number(text);
    if (/^\d+$/.test(text) && number <= highest) return number;
    throw new InvalidArgumentError(`It takes a whole number from 0 to ${highest}.`);
  };
}

async function main(): Promise<number> {
  const flags = program.parse(process.argv).opts<Flags>();
  const say = (text: string) => void (flags.json ? process.stderr : process.stdout).write(`${text}\n`);
  const stopping = new AbortController();
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) {
    Deno.addSignalListener(signal, () => stopping.abort());
  }
  // Whoever started this may be killed without a word.
  const parent = Deno.ppid;
  Deno.unrefTimer(setInterval(() => void (Deno.ppid === parent || stopping.abort()), 500));

  say("Starting Postgres, the gateway and the function ...");
  const stack = await startUnless(stopping.signal, stackOptions(flags));
  try {
    const outcome = await demonstrate(stack, flags, say, stopping.signal);
    if (flags.json) process.stdout.write(`${JSON.stringify(outcome, null, 2)}\n`);
    if (!flags.once) await stayUp(stack, say, stopping.signal);
    return outcome.run.state === "succeeded" && outcome.after.healthy ? 0 : 1;
  } catch (error) {
    if (!stopping.signal.aborted) throw error;
    return 130;
  } finally {
    say("Stopping ...");
    await stack.stop();
  }
}

/** Starts the stack. Who is told to stop meanwhile goes at once: what was started ends with this process, and the next removes its files. */
async function startUnless(signal: AbortSignal, options: StackOptions): Promise<Stack> {
  const leave = () => Deno.exit(130);
  signal.addEventListener("abort", leave, { once: true });
  try {
    signal.throwIfAborted();
    return await startStack(options);
  } finally {
    signal.removeEventListener("abort", leave);
  }
}

function stackOptions({ port, dbPort, postgres }: Flags): StackOptions {
  // What the parts log matters when one of them fails to start, and the error has it then.
  return {
    port,
    dbPort,
    fast: true,
    imageTransformation: true,
    ...(postgres === undefined ? {} : { postgresBin: postgres }),
  };
}

async function demonstrate(
  stack: Stack,
  flags: Flags,
  say: (text: string) => void,
  signal: AbortSignal,
): Promise<Outcome> {
  const client = createClient({ url: stack.url, key: stack.secretKey, source: "the embedded stack" }, {
    timeout: 30_000,
    signal,
  });
  const progress = createProgress(process);

  say(`Uploading ${flags.images} sample images ...`);
  const step = Math.max(Math.ceil(flags.images / 4), 100);
  const onUpload = (done: number) => {
    signal.throwIfAborted();
    if (done % step === 0) say(`  ${done} uploaded`);
  };
  await seed(stack, { images: flags.images, records: flags.records, onUpload });

  const before = await analyze(client, signal);
  say(`\nBefore\n${renderReport(before)}`);
  say("The schedule triggers the nightly run ...");
  const run = await runNight(stack, client, progress, signal);
  const after = await client.report("part-images");
  say(`${renderRun(run)}\nAfter\n${renderReport(after)}`);
  say(await proof(stack));
  return { before, run, after };
}

async function analyze(client: Client, signal: AbortSignal): Promise<Report> {
  const { run } = await client.start({ mode: "analyze" });
  await watch(run, { client, progress: createProgress(process), signal });
  return await client.report("part-images");
}

async function proof(stack: Stack): Promise<string> {
  const opened = await openSignedUrl(stack.dbUrl);
  if (opened === undefined) return "No row has a signed URL that works.";
  return `One signed URL, opened without a key: HTTP ${opened.status}, ${opened.contentType}, ${opened.bytes} bytes\n  ${opened.url}\n`;
}

async function stayUp(stack: Stack, say: (text: string) => void, signal: AbortSignal): Promise<void> {
  const window = await openWindow({
    client: createClient({ url: stack.url, key: stack.secretKey, source: "the embedded stack" }, {
      timeout: 30_000,
    }),
    projectUrl: stack.url,
    key: stack.secretKey,
    bucket: "part-images",
    // Nobody bills for them here.
    smallPictures: true,
  });
  const api = `${stack.url}/functions/v1/image-sync`;
  const key = `-H 'apikey: ${stack.secretKey}'`;
  say(`Ready. Ctrl-C stops everything.

  Look at it (once, in one browser; another one: npm run open)
  ${window.address}

  URL              ${stack.url}
  Secret key       ${stack.secretKey}
  Publishable key  ${stack.publishableKey}
  Database         ${stack.dbUrl}

Try, or use npm run status | sync | analyze | cleanup in another terminal:
  curl ${key} -H 'Accept: text/plain' '${api}'
  curl ${key} -X POST -H 'Prefer: wait=60' -d '{"mode": "sync"}' '${api}'
  curl ${key} '${api}?file=000001.jpg'
`);
  await new Promise((resolve) => signal.addEventListener("abort", resolve, { once: true }));
  await window.close();
}

await main().then((status) => Deno.exit(status), (error: unknown) => {
  console.error(error instanceof Error ? error.message : String(error));
  Deno.exit(1);
});
