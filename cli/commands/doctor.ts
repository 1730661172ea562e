import { actionText } from "../../supabase/functions/image-sync/text.ts";
import type { Finding, Report } from "../../supabase/functions/image-sync/contract.ts";
import { safeText } from "../../supabase/functions/image-sync/text/safe_text.ts";
import { VERSION } from "../../supabase/functions/image-sync/version.ts";
import { CommandError, exitStatus } from "../command_error.ts";
import type { Context } from "./context.ts";

/** One link of the chain: what was looked at, what was found, and what mends it. */
type Link = {
  readonly looked_at: string;
  readonly state: "fine" | "warning" | "broken" | "unknown";
  readonly found: string;
  readonly remedy: string | null;
};

// Outside in: what comes later cannot work before what comes first does.
const LINKS: readonly (readonly [lookedAt: string, fine: string, codes: readonly string[]])[] = [
  ["bucket", "it exists and holds files", ["bucket_missing", "bucket_empty"]],
  ["rights on storage.objects", "the function may list the bucket", ["listing_failed"]],
  ["rights on part_images", "the function may use the table", ["table_refused"]],
  ["jobs of pg_cron", "all three are there and ran well", ["job_missing", "job_failed"]],
  ["calls of the schedule", "the function is reached", [
    "function_unknown",
    "address_stale",
    "last_call_failed",
    "calls_unanswered",
  ]],
  ["runs", "the last sync went through, and none stands still", [
    "last_run_failed",
    "last_run_partial",
    "no_recent_sync",
    "listing_incomplete",
    "run_stands_still",
    "signing_failed",
    "row_locked",
    "database_timeout",
  ]],
  ["signed URLs", "those that were looked at show an image", [
    "expired",
    "unsigned",
    "url_rejected",
    "file_lost",
    "file_gone",
    "not_an_image",
    "wrong_content_type",
    "unreachable",
    "renewed_too_late",
    "register_opened_rarely",
  ]],
  ["who else can see them", "nobody without a key", ["bucket_public", "table_public"]],
];

/** Looks at every link of the chain, outside in, and says of each what mends it. Works with the secret key alone. */
export async function doctor({ client, output, bucket }: Context): Promise<number> {
  const links = await examine(() => client.report(bucket));
  output.show({ links }, () => links.map(render).join("") + verdict(links));
  return links.some(({ state }) => state === "broken" || state === "unknown")
    ? exitStatus.attention
    : exitStatus.fine;
}

async function examine(readReport: () => Promise<Report>): Promise<Link[]> {
  let report: Report;
  try {
    report = await readReport();
  } catch (error) {
    if (!(error instanceof CommandError)) throw error;
    return [
      { looked_at: "function", state: "broken", found: error.message, remedy: null },
      ...["versions", ...LINKS.map(([lookedAt]) => lookedAt)].map((lookedAt): Link => ({
        looked_at: lookedAt,
        state: "unknown",
        found: "not looked at: the function does not answer",
        remedy: null,
      })),
    ];
  }
  return [
    { looked_at: "function", state: "fine", found: "it answers, and takes the key", remedy: null },
    versionsOf(report),
    ...LINKS.map(([lookedAt, fine, codes]) =>
      linkOf(lookedAt, fine, report.findings.filter(({ code }) => codes.includes(code)))
    ),
  ];
}

function versionsOf({ versions }: Report): Link {
  const found = versions === undefined
    ? "the function is of a version that does not tell"
    : `schema ${versions.schema}, function ${versions.function ?? "unknown"}, this command ${VERSION}`;
  const isOne = versions?.schema === VERSION && versions.function === VERSION;
  return {
    looked_at: "versions",
    state: isOne ? "fine" : "warning",
    found,
    remedy: isOne
      ? null
      : "Bring all to one version: npx image-sync init in the project's repository, then push and deploy",
  };
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

function verdict(links: readonly Link[]): string {
  const broken = links.find(({ state }) => state === "broken");
  if (broken !== undefined) return `\nBegin with: ${broken.looked_at}\n`;
  return links.some(({ state }) => state === "warning")
    ? "\nEvery link holds; some could be better\n"
    : "\nEvery link holds\n";
}
