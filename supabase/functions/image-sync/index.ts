/**
 * image-sync: keeps a storage bucket and the table `public.part_images` in step. This file wires: who may call (`@supabase/server`),
 * what is asked (`api`), what works (`worker`). Every caller needs one of the project's
 * secret keys in `apikey`; the schedule brings a token instead, which wakes one run.
 */
import { withSupabase } from "@supabase/server";
import { createAdminClient } from "@supabase/server/core";
import { answer, answering, answerReader, readsRegister, type Services } from "./api.ts";
import { runInBackground } from "./background.ts";
import { createBudget, readLimits } from "./budget.ts";
import type { Run, TokenRequest } from "./contract.ts";
import { createDatabase, type Database } from "./database.ts";
import { log, messageOf } from "./log.ts";
import { createOutbound } from "./outbound.ts";
import { problemResponse, refuse } from "./problem.ts";
import { limitOpen, openUrls, probe } from "./reader.ts";
import { hashReaderKey, readReaderKey } from "./reader_key.ts";
import { readToken } from "./request.ts";
import { createSigner, signedUrlBase, unopened } from "./signer.ts";
import { fitOf, VERSION } from "./version.ts";
import { startWorker, type Worker } from "./worker.ts";

const projectUrl = (Deno.env.get("SUPABASE_URL") ?? "").replace(/\/+$/, "");
const limits = readLimits((name) => Deno.env.get(name));
const workers = new Set<Worker>();

function createServices(
  keyName?: string,
): Services & { readonly announce: (isNew: boolean) => Promise<void> } {
  const outbound = createOutbound();
  const client = createAdminClient({
    ...(keyName === undefined ? {} : { auth: { keyName } }),
    supabaseOptions: { global: { fetch: unopened(outbound.fetch) } },
  });
  const database = createDatabase(client);
  let ready = announced;

  function work(run: Run): void {
    const baseOf = (publicUrl: string | null) => signedUrlBase(publicUrl ?? projectUrl, run.bucket_id);
    const limit = limitOpen();
    const worker = startWorker({
      run: run.id,
      database,
      pipeline: {
        bucket: run.bucket_id,
        sign: createSigner(client, projectUrl),
        open: (request, publicUrl) => openUrls({ ...request, base: baseOf(publicUrl), limit }),
        takeCounts: outbound.takeCounts,
      },
      probe: (targets, publicUrl) => probe({ targets, base: baseOf(publicUrl) }),
      ...(ready === undefined ? {} : { ready: ready.then(() => mismatch() === undefined) }),
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

  return { database, key: keyName ?? "", work, announce: (isNew) => ready = announce(database, isNew) };
}

let announced: Promise<void> | undefined;
/** The schema's version, once that is known. */
let schemaVersion: string | undefined;

/**
 * Tells the database where the function lives: once in an isolate's life, and again whenever a run is asked for, so that it mends what
 * a restore has brought back, or an upgrade. Only for callers who have shown what they may. Never rejects: the next request tries again.
 */
function announce(database: Database, isNew: boolean): Promise<void> {
  if (isNew || mismatch() !== undefined) announced = undefined;
  announced ??= database.announce(projectUrl, VERSION).then((version) => {
    schemaVersion = version;
    const fit = fitOf(version);
    if (fit !== "fits") log("versions_differ", { function: VERSION, schema: version, fit });
  }).catch((error: unknown) => {
    announced = undefined;
    log("announcement_failed", { error: messageOf(error) });
  });
  return announced;
}

const authenticated = withSupabase(
  { auth: "secret:*" },
  async (request, context) => {
    const services = createServices(context.authKeyName);
    const starts = request.method === "POST";
    const isKnown = schemaVersion !== undefined && mismatch() === undefined;
    const announcing = services.announce(starts);
    // Nothing is begun beside a schema that does not fit. Where it fitted a moment ago, a run may be opened while that is asked again:
    // its worker waits for the answer. What only reads need not wait to learn it.
    if (starts && !isKnown) {
      await announcing;
      return mismatch() ?? await answer(request, services);
    }
    const [response] = await Promise.all([answer(request, services), announcing]);
    return mismatch() ?? response;
  },
);

/** The refusal of everything beside a schema that the function does not know. */
function mismatch(): Response | undefined {
  if (schemaVersion === undefined || fitOf(schemaVersion) !== "mismatch") return undefined;
  return problemResponse({
    status: 503,
    code: "schema_mismatch",
    title: "Function and schema do not go together",
    detail:
      `The function is version ${VERSION}, the schema ${schemaVersion}. Apply the migrations of the function's version with ` +
      "npx supabase db push --remote, or deploy the function of the schema's version with npx supabase functions deploy " +
      "image-sync --use-api",
  });
}

async function serve(request: Request): Promise<Response> {
  if (readsRegister(request)) return await serveRegister(request);
  const token = await readToken(request);
  return token === undefined ? await serveKey(request) : await serveToken(token);
}

/** The schedule's call: it brings a token that is good for going on with one open run, and for nothing else. */
async function serveToken(token: TokenRequest): Promise<Response> {
  const services = createServices();
  return await answering(async () => {
    const run = await services.database.wake(token);
    await services.announce(false);
    const refusal = mismatch();
    if (refusal !== undefined) return refusal;
    services.work(run);
    return Response.json({ id: run.id, state: run.state }, { status: 202 });
  });
}

/** The register: for a secret key, or for a reader's as the password of HTTP Basic. A browser and Excel ask for it when they are told so. */
async function serveRegister(request: Request): Promise<Response> {
  const response = request.headers.has("apikey") ? await serveKey(request) : await serveReader(request);
  if (response.status === 401) {
    response.headers.set("WWW-Authenticate", 'Basic realm="image-sync register", charset="UTF-8"');
  }
  return response;
}

async function serveReader(request: Request): Promise<Response> {
  return await answering(async () => {
    const key = readReaderKey(request);
    if (key === undefined) {
      throw refuse(
        401,
        "unauthorized",
        "No valid key of a reader",
        "Send a reader's key (isr_...) as the password of HTTP Basic, with any user name, or a secret key in the header apikey",
      );
    }
    const services = createServices();
    const reader = await services.database.openRegister(await hashReaderKey(key));
    await services.announce(false);
    return mismatch() ?? await answerReader(request, reader, services.database);
  });
}

/** The library answers 401 in a form of its own; callers get a problem like all others, with the library's code and hint. */
async function serveKey(request: Request): Promise<Response> {
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
