/**
 * image-sync: keeps a storage bucket and the table `public.part_images` in step. This file wires: who may call (`@supabase/server`),
 * what is asked (`api`), what works (`worker`). Every caller needs one of the project's secret keys in `apikey`.
 */
import { withSupabase } from "@supabase/server";
import { createAdminClient } from "@supabase/server/core";
import { answer, type Services } from "./api.ts";
import { runInBackground } from "./background.ts";
import { createBudget, readLimits } from "./budget.ts";
import type { Run } from "./contract.ts";
import { createDatabase, type Database } from "./database.ts";
import { log, messageOf } from "./log.ts";
import { createOutbound } from "./outbound.ts";
import { probe } from "./probe.ts";
import { problemResponse } from "./problem.ts";
import { createSigner, signedUrlBase } from "./signer.ts";
import { VERSION } from "./version.ts";
import { startWorker, type Worker } from "./worker.ts";

const projectUrl = (Deno.env.get("SUPABASE_URL") ?? "").replace(/\/+$/, "");
const limits = readLimits((name) => Deno.env.get(name));
const workers = new Set<Worker>();

function createServices(keyName: string | undefined): Services {
  const outbound = createOutbound();
  const client = createAdminClient({
    ...(keyName === undefined ? {} : { auth: { keyName } }),
    supabaseOptions: { global: { fetch: outbound.fetch } },
  });
  const database = createDatabase(client);
  const ready = announce(database);

  function work(run: Run): void {
    const worker = startWorker({
      run: run.id,
      database,
      pipeline: {
        bucket: run.bucket_id,
        sign: createSigner(client, projectUrl),
        takeCounts: outbound.takeCounts,
      },
      probe: (targets, publicUrl) =>
        probe({ targets, base: signedUrlBase(publicUrl ?? projectUrl, run.bucket_id) }),
      ready,
      budget: createBudget(limits),
      limits,
    });
    workers.add(worker);
    runInBackground(
      worker.done.then(async (result) => {
        workers.delete(worker);
        // Records were moved: measure anew, so that the next report shows it.
        if (result === "finished" && run.plan_id !== null) {
          const options = { after: run.id };
          const follower = await database.start({
            run: crypto.randomUUID(),
            bucket: run.bucket_id,
            mode: "analyze",
            options,
          });
          work(follower.run);
        }
      }).catch((error: unknown) => log("follow_up_failed", { run: run.id, error: messageOf(error) })),
    );
  }

  return { database, work };
}

let announced: Promise<void> | undefined;

/** Tells the database once in an isolate's life where the function lives. Never rejects: the next request tries again. */
function announce(database: Database): Promise<void> {
  announced ??= database.announce(projectUrl, VERSION).catch((error: unknown) => {
    announced = undefined;
    log("announcement_failed", { error: messageOf(error) });
  });
  return announced;
}

const authenticated = withSupabase(
  { auth: "secret:*" },
  (request, context) => answer(request, createServices(context.authKeyName)),
);

/** The library answers 401 in a form of its own; callers get a problem like all others, with the library's code and hint. */
async function serve(request: Request): Promise<Response> {
  const response = await authenticated(request);
  const code = response.headers.get("x-supabase-server-error");
  if (code === null) return response;
  const headers = Object.fromEntries(response.headers);
  delete headers["content-length"];
  return problemResponse({
    status: response.status,
    code: response.status === 401 ? "unauthorized" : "misconfigured",
    title: response.status === 401 ? "No valid secret key" : "The function is not configured",
    detail: response.status === 401
      ? `Send one of the project's secret keys (sb_secret_...) in the header apikey (${code})`
      : `The environment of the function lacks something (${code}); its log says more`,
  }, headers);
}

// Best effort: the platform says when it is about to end this worker.
globalThis.addEventListener("beforeunload", () => {
  for (const worker of workers) runInBackground(worker.end());
});

export default { fetch: serve };
