/** What the repository tells that the command is called in: its CLI, and which project it is linked to. */
import { dirname } from "node:path";
import { CommandError } from "../command_error.ts";
import type { Host } from "../host.ts";
import { findInstallation, findRepository } from "../project/install.ts";
import { findSupabaseCli, readLink } from "../project/supabase_cli.ts";
import type { Link } from "./link.ts";

const OLDEST_CLI = 3;

/** Nothing where the command is called outside of a repository that image-sync is in. */
export async function repositoryLinks(host: Host, projectUrl: string): Promise<Link[]> {
  const supabase = await findRepository(host.directory).then(findInstallation).catch(() => undefined);
  if (supabase === undefined) return [];
  return [await cliLink(dirname(supabase), host), await projectLink(supabase, projectUrl)];
}

async function cliLink(root: string, host: Host): Promise<Link> {
  const cli = await findSupabaseCli(root, host);
  const link = { looked_at: "Supabase CLI" };
  const remedy = "Run: npm install --save-dev supabase";
  if (!cli.isOwn) return { ...link, state: "warning", found: "the repository has none of its own", remedy };
  const ended = await cli.run(["--version"], false).catch(() => undefined);
  const version = /\d+\.\d+\.\d+/.exec(ended?.stdout ?? "")?.[0];
  if (version === undefined) return { ...link, state: "broken", found: "it does not start", remedy };
  if (Number(version.split(".")[0]) >= OLDEST_CLI) {
    return { ...link, state: "fine", found: version, remedy: null };
  }
  return { ...link, state: "warning", found: `${version}, which knows no --remote`, remedy };
}

async function projectLink(supabase: string, projectUrl: string): Promise<Link> {
  const link = { looked_at: "link" };
  try {
    const { ref } = await readLink(supabase);
    const { hostname } = new URL(projectUrl);
    const found = `the repository is linked to ${ref}`;
    // A project may have an address of its own.
    if (!hostname.endsWith(".supabase.co") || hostname === `${ref}.supabase.co`) {
      return { ...link, state: "fine", found, remedy: null };
    }
    return {
      ...link,
      state: "broken",
      found: `${found}, and SUPABASE_URL is ${projectUrl}`,
      remedy: `Run: npx supabase link --project-ref ${
        hostname.split(".")[0]
      }\nOr take URL and key of the project that it is linked to`,
    };
  } catch (error) {
    if (!(error instanceof CommandError)) throw error;
    return { ...link, state: "warning", found: error.message, remedy: null };
  }
}
