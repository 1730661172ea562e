/** The user's own Supabase CLI: which project it is linked to, and its commands. */
import { spawn } from "node:child_process";
import { access, readFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import process from "node:process";
import { z } from "zod";
import { CommandError } from "../command_error.ts";
import type { Host } from "../host.ts";

/** What a command of it printed, and how it ended. */
export type Ran = { readonly code: number; readonly stdout: string };

/** The CLI in a project's root. */
export type SupabaseCli = {
  /** The words that a person types for it. */
  readonly name: string;
  /** Whether it is the repository's own, not one that npx fetches. */
  readonly isOwn: boolean;
  /** Runs a command. `isShown`: what it says goes to the person, its questions too; else it is returned. */
  run(args: readonly string[], isShown: boolean, env?: Readonly<Record<string, string>>): Promise<Ran>;
};

/** Finds it: the project's own, one of a folder above, or what npx fetches. */
export async function findSupabaseCli(root: string, host: Host): Promise<SupabaseCli> {
  const own = await findAbove(
    root,
    join("node_modules", ".bin", process.platform === "win32" ? "supabase.cmd" : "supabase"),
  );
  const [program, before] = own === undefined ? ["npx", ["--yes", "supabase"]] as const : [own, []] as const;
  return {
    name: "npx supabase",
    isOwn: own !== undefined,
    run: (args, isShown, env) =>
      new Promise((resolve, reject) => {
        const child = spawn(program, [...before, ...args], {
          cwd: root,
          env: { ...process.env, ...host.env, ...env },
          stdio: ["inherit", "pipe", isShown ? "pipe" : "ignore"],
          shell: process.platform === "win32",
        });
        let stdout = "";
        child.stdout?.on("data", (part: Buffer) => {
          stdout += part;
          if (isShown) host.stderr.write(part);
        });
        child.stderr?.on("data", (part: Buffer) => host.stderr.write(part));
        child.on("error", (error) =>
          reject(
            new CommandError(
              "no_cli",
              `Cannot start the Supabase CLI (${program}): install it in the project with npm install --save-dev supabase`,
              { cause: error },
            ),
          ));
        child.on("close", (code) => resolve({ code: code ?? 1, stdout }));
      }),
  };
}

/** A project as the CLI knows it. */
export type LinkedProject = { readonly ref: string; readonly name: string | undefined };

const linkedSchema = z.looseObject({ ref: z.string(), name: z.string().optional() });

/**
 * The project that the repository is linked to, where the CLI leaves word of it.
 *
 * @throws {CommandError} `not_linked`
 */
export async function readLink(supabase: string): Promise<LinkedProject> {
  // The CLI goes by this file; it writes the other one before a link is through.
  const ref = (await readFile(join(supabase, ".temp", "project-ref"), "utf8").catch(() => "")).trim();
  const json = await readFile(join(supabase, ".temp", "linked-project.json"), "utf8").catch(() => "");
  const linked = linkedSchema.safeParse(parsed(json)).data;
  if (/^[a-z]{20}$/.test(ref)) return { ref, name: linked?.ref === ref ? linked.name : undefined };
  throw new CommandError(
    "not_linked",
    `Cannot tell which project ${
      dirname(supabase)
    } is of: link it first, with npx supabase link --project-ref YOUR_REF`,
  );
}

/**
 * Whether the CLI is signed in, and the project's name and region as it tells them.
 *
 * @throws {CommandError} `not_logged_in`, or `foreign_project` where the account does not see the project
 */
export async function describeProject(cli: SupabaseCli, { ref, name }: LinkedProject): Promise<string> {
  const { code, stdout } = await cli.run(["projects", "list", "--output-format", "json"], false);
  if (code !== 0 || /AccessTokenRequired|Unauthorized/.test(stdout)) {
    throw new CommandError(
      "not_logged_in",
      "Cannot reach the project: the Supabase CLI is not signed in; use npx supabase login, or set SUPABASE_ACCESS_TOKEN",
    );
  }
  const project = findProject(parsed(stdout), ref);
  if (project === undefined) {
    throw new CommandError(
      "foreign_project",
      `Cannot reach project ${ref}: the account that the Supabase CLI is signed in with does not see it; sign in with ` +
        "another one, or link another project",
    );
  }
  const told = [project["name"] ?? name, project["region"]].filter((part) => typeof part === "string").join(
    ", ",
  );
  return told === "" ? ref : `${ref} (${told})`;
}

function findProject(value: unknown, ref: string): Record<string, unknown> | undefined {
  if (Array.isArray(value)) {
    return value.map((part) => findProject(part, ref)).find((found) => found !== undefined);
  }
  if (value === null || typeof value !== "object") return undefined;
  const record = value as Record<string, unknown>;
  if (record["id"] === ref || record["ref"] === ref) return record;
  return findProject(Object.values(record), ref);
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

async function findAbove(directory: string, path: string): Promise<string | undefined> {
  const candidate = join(directory, path);
  if (await access(candidate).then(() => true, () => false)) return candidate;
  const parent = dirname(directory);
  return parent === directory ? undefined : await findAbove(parent, path);
}
