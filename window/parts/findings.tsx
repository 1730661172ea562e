/** What is wrong, and the button that mends it: nothing is done before it has been said what that is. */
import type { FC } from "hono/jsx";
import type { Finding, Report } from "../../supabase/functions/image-sync/contract.ts";
import { FINDINGS } from "../../supabase/functions/image-sync/findings.ts";
import { safeText } from "../../supabase/functions/image-sync/text/safe_text.ts";
import { capital } from "../../supabase/functions/image-sync/text/words.ts";
import { commandOf } from "../../supabase/functions/image-sync/text/commands.ts";
import { type StartRequest, startRequestSchema } from "../../supabase/functions/image-sync/contract.ts";
import { link, type View } from "../view.ts";
import { Badge, Card, Change, Empty, Name, number, Time } from "./basics.tsx";

/** All findings, errors first as the report has them. */
export const Findings: FC<{ view: View; report: Report }> = ({ view, report }) => (
  <Card id="findings" title="Findings">
    {report.findings.length === 0
      ? <Empty>Nothing to look at.</Empty>
      : <ul class="findings">{report.findings.map((finding) => <Item view={view} finding={finding} />)}</ul>}
  </Card>
);

const Item: FC<{ view: View; finding: Finding }> = ({ view, finding }) => {
  const { level, title, count, samples, remediation, since } = finding;
  const code = safeText(finding.code);
  const isFact = count === 1 && samples.length === 0;
  const state = FINDINGS[code]?.shownAs;
  return (
    <li id={`finding-${code}`} class={level}>
      <h3>
        <Badge tone={level}>{level}</Badge> {safeText(title)}
        {isFact ? null : <span class="count">{number(count)}</span>} {since === undefined ? null : (
          <small>
            first seen <Time at={since} now={view.now} />
          </small>
        )}
      </h3>
      <p>{safeText(remediation)}</p>
      {samples.length === 0 ? null : (
        <p class="samples">
          {samples.slice(0, 5).map((sample) => (
            <>
              <Name of={sample} />
              {" "}
            </>
          ))}
          {state === undefined
            ? count > 5 && <span class="dim">and {number(count - Math.min(5, samples.length))} more</span>
            : <a href={link("/pictures", { bucket: view.bucket, state })}>see all</a>}
        </p>
      )}
      <Mend view={view} finding={finding} />
    </li>
  );
};

const Mend: FC<{ view: View; finding: Finding }> = ({ view, finding: { code: given, action } }) => {
  const code = safeText(given);
  if (action === null || action === undefined) return null;
  if ("sql" in action) {
    return (
      <details class="mend" id={`mend-${code}`}>
        <summary>Show the SQL that mends it</summary>
        <p>To run by the owner of the schema, in the SQL editor of the dashboard. This page runs no SQL.</p>
        <pre tabindex={0}><code id={`sql-${code}`}>{safeText(action.sql)}</code></pre>
        <button type="button" data-copy={`sql-${code}`} hidden>Copy</button>
      </details>
    );
  }
  const request = startRequestSchema.safeParse(action.request).data;
  if (request === undefined) return null;
  return (
    <details class="mend" id={`mend-${code}`}>
      <summary>{`Mend it: ${verbOf(request)}`}</summary>
      <p>
        {whatItDoes(request)} The same as <code>{commandOf(request)}</code>.
      </p>
      <Change view={view} action="/start" fields={{ request: JSON.stringify(action.request) }}>
        <button type="submit" class="primary" id={`do-${code}`}>{capital(verbOf(request))}</button>
      </Change>
    </details>
  );
};

function verbOf({ mode, renew }: StartRequest): string {
  if (mode === "sync") return renew === "all" ? "sign all anew" : "start a sync";
  return mode === "cleanup" ? "list the records" : `start ${mode === "analyze" ? "an" : "a"} ${mode}`;
}

function whatItDoes({ mode, renew, bucket: name }: StartRequest): string {
  const bucket = safeText(name);
  switch (mode) {
    case "sync":
      return renew === "all"
        ? `Signs every URL of ${bucket} anew; the old ones go on to work until they expire. Deletes nothing.`
        : `Inserts records for images of ${bucket} that have none and signs the URLs that are due. Deletes nothing.`;
    case "cleanup":
      return `Lists the records of ${bucket} without a file. Nothing is removed until you confirm that very list.`;
    case "verify":
      return `Opens every URL of ${bucket} as a reader does. Changes nothing but the report.`;
    case "analyze":
      return `Counts and compares ${bucket}. Changes nothing.`;
    case "restore":
      return `Puts archived records of ${bucket} back.`;
  }
}
