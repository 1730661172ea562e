import { resolve } from "node:path";
import { actionText } from "../../supabase/functions/image-sync/text.ts";
import type { Finding, Report } from "../../supabase/functions/image-sync/contract.ts";
import { DOCTOR_LINKS, FINDINGS } from "../../supabase/functions/image-sync/findings.ts";
import { safeText } from "../../supabase/functions/image-sync/text/safe_text.ts";
import { VERSION } from "../../supabase/functions/image-sync/version.ts";
import { CommandError, exitStatus } from "../command_error.ts";
import { databaseLinks } from "../doctor/database_links.ts";
import { type Link, unknownLink } from "../doctor/link.ts";
import { repositoryLinks } from "../doctor/repository_links.ts";
import { compareVersions } from "../project/schema.ts";
import type { Context } from "./context.ts";

/** Options of {@linkcode doctor}. */
export type DoctorOptions = {
  /** The database, which tells more than the function does. */
  readonly dbUrl: string | undefined;
  /** Where to write what mends its catalogue. */
  readonly sql: string | undefined;
};

const DEPLOY = "Run: npx image-sync deploy";

/** Looks at every link of the chain, outside in, and says of each what mends it. Works with the secret key alone, tells more with a database URL. */
export async function doctor(context: Context, { dbUrl, sql }: DoctorOptions): Promise<number> {
  const { client, output, bucket, connection, host } = context;
  const databaseUrl = dbUrl ?? connection.databaseUrl;
  if (sql !== undefined && databaseUrl === undefined) {
    throw new CommandError(
      "usage",
      "Cannot write SQL without looking at the database: pass --db-url, or set SUPABASE_DB_URL",
    );
  }
  const links = [
    ...await repositoryLinks(host, connection.url),
    ...await functionLinks(() => client.report(bucket)),
    ...(databaseUrl === undefined ? [] : await databaseLinks({
      databaseUrl,
      projectUrl: connection.url,
      ...(sql === undefined ? {} : { sqlFile: { path: resolve(host.directory, sql), name: sql } }),
    })),
  ];
  output.show({ links }, () => links.map(render).join("") + verdict(links, databaseUrl !== undefined));
  return links.some(({ state }) => state === "broken" || state === "unknown")
    ? exitStatus.attention
    : exitStatus.fine;
}

/** What the function tells. */
async function functionLinks(readReport: () => Promise<Report>): Promise<Link[]> {
  let report: Report;
  try {
    report = await readReport();
  } catch (error) {
    if (!(error instanceof CommandError)) throw error;
    return [
      { looked_at: "function", state: "broken", found: error.message, remedy: null },
      ...["versions", ...Object.keys(DOCTOR_LINKS)].map((lookedAt) =>
        unknownLink(lookedAt, "the function does not answer")
      ),
    ];
  }
  return [
    { looked_at: "function", state: "fine", found: "it answers, and takes the key", remedy: null },
    versionsOf(report),
    ...Object.entries(DOCTOR_LINKS).map(([lookedAt, fine]) =>
      linkOf(lookedAt, fine, report.findings.filter(({ code }) => FINDINGS[code]?.link === lookedAt))
    ),
  ];
}

function versionsOf({ versions }: Report): Link {
  const link = { looked_at: "versions" };
  if (versions === undefined || versions.function === null) {
    return {
      ...link,
      state: "warning",
      found: "the function is of a version that does not tell",
      remedy: DEPLOY,
    };
  }
  const found = `schema ${versions.schema}, function ${versions.function}, this command ${VERSION}`;
  if (versions.schema === VERSION && versions.function === VERSION) {
    return { ...link, state: "fine", found, remedy: null };
  }
  const newest = [versions.schema, versions.function, VERSION].toSorted(compareVersions).at(-1);
  const remedy = newest !== VERSION
    ? `This command is older than what it looks at: take version ${newest} of it`
    : versions.schema === VERSION
    ? DEPLOY
    : `Run: npx image-sync upgrade\n${DEPLOY}`;
  return { ...link, state: "warning", found, remedy };
}

function linkOf(lookedAt: string, fine: string, findings: readonly Finding[]): Link {
  const [first] = findings;
  if (first === undefined) return { looked_at: lookedAt, state: "fine", found: fine, remedy: null };
  const isBroken = findings.some(({ level }) => level === "error");
  const worst = findings.find(({ level }) => level === (isBroken ? "error" : first.level)) ?? first;
  return {
    looked_at: lookedAt,
    state: isBroken ? "broken" : "warning",
    found: findings.map(({ title, count, samples }) => `${title}${samples.length > 0 ? ` (${count})` : ""}`)
      .join("; "),
    remedy: [worst.remediation, ...actionText(worst.action ?? null)].join("\n"),
  };
}

const SIGNS = { fine: "✔", warning: "▲", broken: "✖", unknown: "?" } as const;

function render({ looked_at: lookedAt, state, found, remedy }: Link): string {
  const more = remedy === null ? "" : remedy.split("\n").map((line) => `    ${safeText(line)}\n`).join("");
  return `${SIGNS[state]} ${lookedAt}: ${safeText(found)}\n${more}`;
}

function verdict(links: readonly Link[], isDatabaseSeen: boolean): string {
  const more = isDatabaseSeen ? "" : "More is looked at with a database URL: --db-url, or SUPABASE_DB_URL\n";
  const broken = links.find(({ state }) => state === "broken");
  if (broken !== undefined) return `\nBegin with: ${broken.looked_at}\n${more}`;
  const isBest = links.every(({ state }) => state === "fine");
  return `\nEvery link ${links.some(({ state }) => state === "unknown") ? "that was looked at " : ""}holds${
    isBest ? "" : "; some could be better"
  }\n${more}`;
}
