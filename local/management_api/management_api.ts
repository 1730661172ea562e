/**
 * Supabase's Management API, as far as the CLI asks it for `link`, `projects list` and `functions deploy --use-api`. As strict as the
 * real one with whom it lets in and what it takes: what stands here nowhere is a 404.
 */
import { dirname, isAbsolute, join, normalize } from "node:path";
import { type Context, Hono } from "hono";
import { z } from "zod";

/** What there is to ask about. */
export type ManagementOptions = {
  /** The one project of the account. */
  readonly project: { readonly ref: string; readonly name: string; readonly region: string };
  /** The account's access token. */
  readonly token: string;
  /** Where the files of a deployed function are put, a folder a version: `SLUG/1/`. */
  readonly directory: string;
};

const metadataSchema = z.strictObject({
  name: z.string(),
  entrypoint_path: z.string(),
  import_map_path: z.string().optional(),
  static_patterns: z.array(z.string()).optional(),
  verify_jwt: z.boolean(),
});

type Deployed = z.infer<typeof metadataSchema> & { readonly slug: string; readonly version: number };

/** Makes the API. `GET /_local/asked` tells what was asked of it so far, and how it was answered. */
export function createManagementApi({ project, token, directory }: ManagementOptions): Hono {
  const asked: string[] = [];
  const functions = new Map<string, Deployed>();
  const app = new Hono();
  app.get("/_local/asked", (context) => context.json(asked));
  app.use(async (context, next) => {
    await next();
    asked.push(`${context.req.method} ${context.req.path}: ${context.res.status}`);
  });
  app.use(async (context, next) => {
    if (context.req.header("authorization") === `Bearer ${token}`) return await next();
    return context.json({ message: "Unauthorized" }, 401);
  });
  app.get("/v1/projects", (context) => context.json([describe(project)]));
  app.use("/v1/projects/:ref/*", async (context, next) => {
    if (context.req.param("ref") === project.ref) return await next();
    return context.json({ message: "Project not found" }, 404);
  });
  app.get(
    "/v1/projects/:ref",
    (context) =>
      context.req.param("ref") === project.ref
        ? context.json(describe(project))
        : context.json({ message: "Project not found" }, 404),
  );
  app.get(
    "/v1/projects/:ref/api-keys",
    (context) => context.json(keys(context.req.query("reveal") === "true")),
  );
  app.get(
    "/v1/projects/:ref/functions",
    (context) => context.json([...functions.values()].map(describeFunction)),
  );
  app.post("/v1/projects/:ref/functions/deploy", async (context) => {
    const slug = context.req.query("slug") ?? "";
    const version = (functions.get(slug)?.version ?? 0) + 1;
    const form = await context.req.formData();
    const metadata = metadataSchema.safeParse(parseJson(form.get("metadata")));
    if (!/^[A-Za-z][A-Za-z0-9_-]*$/.test(slug) || !metadata.success || metadata.data.name !== slug) {
      return refuse(context, "Invalid metadata");
    }
    const files = form.getAll("file").filter((part) => part instanceof File);
    const folder = join(directory, slug, String(version));
    const names = files.map(({ name }) => normalize(name));
    if (names.some((name) => name.startsWith("..") || isAbsolute(name))) {
      return refuse(context, "A file lies outside of the project");
    }
    if (!names.includes(normalize(metadata.data.entrypoint_path))) {
      return refuse(context, "Entrypoint not found");
    }
    for (const file of files) await put(join(folder, file.name), new Uint8Array(await file.arrayBuffer()));
    const fault = await bundle(join(folder, metadata.data.entrypoint_path));
    if (fault !== undefined) return refuse(context, `Failed to bundle the function (reason: ${fault})`);
    const deployed = { ...metadata.data, slug, version };
    functions.set(slug, deployed);
    return context.json(describeFunction(deployed), 201);
  });
  app.notFound((context) =>
    context.json({ message: `Cannot ${context.req.method} ${context.req.path}` }, 404)
  );
  return app;
}

function describe({ ref, name, region }: ManagementOptions["project"]) {
  return {
    id: ref,
    ref,
    organization_id: "shop-organization",
    organization_slug: "shop-organization",
    name,
    region,
    created_at: "2026-01-01T00:00:00Z",
    status: "ACTIVE_HEALTHY",
    database: {
      host: `db.${ref}.supabase.co`,
      version: "17.4.1.054",
      postgres_engine: "17",
      release_channel: "ga",
    },
  };
}

// What is no key anywhere.
function keys(isRevealed: boolean) {
  const key = (type: "publishable" | "secret") => ({
    id: crypto.randomUUID(),
    name: "default",
    type,
    api_key: isRevealed ? `sb_${type}_of-the-stand-in` : null,
    prefix: `sb_${type}_of`,
    description: null,
  });
  return [key("publishable"), key("secret")];
}

function describeFunction({ slug, name, version, verify_jwt, entrypoint_path, import_map_path }: Deployed) {
  return {
    id: slug,
    slug,
    name,
    status: "ACTIVE",
    version,
    verify_jwt,
    import_map: import_map_path !== undefined,
    entrypoint_path,
    import_map_path,
    created_at: 0,
    updated_at: 0,
  };
}

function refuse(context: Context, message: string): Response {
  return context.json({ message }, 400);
}

/**
 * Fetches what a deployed function imports, once, as the platform's bundler does: what starts it later asks no registry. Where a lock
 * lies beside it, nothing but what that names.
 *
 * @returns what is wrong with it, if something is
 */
async function bundle(entrypoint: string): Promise<string | undefined> {
  const folder = dirname(entrypoint);
  const isLocked = await Deno.stat(join(folder, "deno.lock")).then(({ isFile }) => isFile, () => false);
  const { success, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["cache", "--quiet", isLocked ? "--frozen" : "--no-lock", entrypoint],
    cwd: folder,
    env: { NO_COLOR: "1" },
  }).output();
  return success ? undefined : new TextDecoder().decode(stderr).trim();
}

async function put(path: string, bytes: Uint8Array): Promise<void> {
  await Deno.mkdir(dirname(path), { recursive: true });
  await Deno.writeFile(path, bytes);
}

function parseJson(part: FormDataEntryValue | null): unknown {
  if (typeof part !== "string") return undefined;
  try {
    return JSON.parse(part);
  } catch {
    return undefined;
  }
}
