/** Cleanup: the whole list first, the guards' numbers, the confirmation by that very number, and the way back. */
import type { FC } from "hono/jsx";
import type {
  Archived,
  ArchiveList,
  Plan,
  Report,
  Run,
  Settings,
} from "../../supabase/functions/image-sync/contract.ts";
import { percent, quantity } from "../../supabase/functions/image-sync/text/words.ts";
import { LiveRun } from "../parts/live_run.tsx";
import { link, type View } from "../view.ts";
import { Badge, Card, Change, Empty, Name, number, Pages, Table, Time, toneOf } from "../parts/basics.tsx";

/** The newest list with a page of its names. */
export type Listed = {
  readonly run: Run;
  readonly page: Plan;
  readonly search: string;
  readonly after: string;
};

/** What a plan is good for, in ms. */
const PLAN_AGE = 86_400_000;

type CleanupProps = {
  view: View;
  report: Report;
  settings: Settings;
  listed: Listed | undefined;
  archives: ArchiveList;
};

/** The page of cleanups. */
export const Cleanup: FC<CleanupProps> = ({ view, report, settings, listed, archives }) => (
  <>
    <h1>Cleanup</h1>
    <p>
      A cleanup moves records whose file is gone to the archive, from where they can be put back. It begins
      with a list, and removes nothing that is not on it.
    </p>
    <LiveRun view={view} run={report.open_run} />
    <PlanCard view={view} report={report} settings={settings} listed={listed} />
    <Archives view={view} archives={archives} />
  </>
);

/** The list, and what can be done with it. Kept live: it appears when the run that makes it ends. */
export const PlanCard: FC<Omit<CleanupProps, "archives">> = ({ view, report, settings, listed }) => (
  <Card
    id="plan"
    title="The list"
    note={listed === undefined ? undefined : (
      <>
        made <Time at={listed.run.finished_at} now={view.now} />
      </>
    )}
  >
    {listed === undefined
      ? (
        <Empty>
          There is no list. {report.difference.orphaned.count === null
            ? "Nothing was counted yet."
            : `${quantity(report.difference.orphaned.count, "record")} had no file when it was last counted.`}
        </Empty>
      )
      : listed.page.count === 0
      ? <Empty>Nothing to clean up: every record has its file.</Empty>
      : <Listing view={view} listed={listed} />}
    {listed === undefined || listed.page.count === 0
      ? null
      : <Confirmation view={view} report={report} settings={settings} listed={listed} />}
    <Change
      view={view}
      action="/start"
      fields={{ request: JSON.stringify({ mode: "cleanup", bucket: view.bucket }) }}
    >
      <button type="submit" id="make-list" class={listed === undefined ? "primary" : ""}>
        {listed === undefined ? "Make the list" : "Make the list anew"}
      </button>
    </Change>
  </Card>
);

const Listing: FC<{ view: View; listed: Listed }> = ({ view, listed: { page, search, after } }) => {
  const to = (query: { search?: string; after?: string }) =>
    link("/cleanup", { bucket: view.bucket, search, ...query });
  return (
    <>
      <form method="get" action="/cleanup" class="search" role="search">
        <input type="hidden" name="bucket" value={view.bucket} />
        <label for="search">Names that begin with</label>
        <input
          type="search"
          id="search"
          name="search"
          value={search}
          maxlength={200}
          autocomplete="off"
          spellcheck={false}
        />
        <button type="submit">Search</button>
      </form>
      {page.names.length === 0
        ? <Empty>No name of the list begins so.</Empty>
        : (
          <ul class="names" id="plan-names">
            {page.names.map((name) => (
              <li>
                <a href={link("/picture", { bucket: view.bucket, file: name })}>
                  <Name of={name} />
                </a>
              </li>
            ))}
          </ul>
        )}
      <Pages
        first={after === "" ? undefined : to({ after: "" })}
        next={page.next === null ? undefined : to({ after: page.next })}
      />
    </>
  );
};

const Confirmation: FC<{ view: View; report: Report; settings: Settings; listed: Listed }> = (
  { view, report, settings, listed },
) => {
  const { run, page: { count } } = listed;
  if (view.now - Date.parse(run.finished_at ?? "") > PLAN_AGE) {
    return <p class="banner warning">The list is older than a day: make it anew.</p>;
  }
  const records = report.records.total ?? 0;
  const guards = {
    number: Number(settingOf(settings, "max_delete_count")),
    fraction: Number(settingOf(settings, "max_delete_fraction")),
  };
  const isOver = count > guards.number || (records > 0 && count / records > guards.fraction);
  return (
    <Change view={view} action="/confirm" fields={{ plan: run.id, count: String(count) }} class="confirm">
      <p>
        <strong>{quantity(count, "record")}</strong> of {number(records)}{" "}
        ({percent(records === 0 ? 0 : count / records)}) would go to the archive. The guards allow{" "}
        {number(guards.number)} and {percent(guards.fraction)}.
      </p>
      {isOver ? <Raised count={count} records={records} guards={guards} /> : null}
      <p class="search">
        <label for="typed">Type the number of records to confirm</label>
        <input
          id="typed"
          name="typed"
          inputmode="numeric"
          pattern={`\\s*${count}\\s*`}
          required
          autocomplete="off"
          title={`The number is ${count}`}
        />
        <button type="submit" class="danger" id="confirm-cleanup">Move them to the archive</button>
      </p>
    </Change>
  );
};

const Raised: FC<{ count: number; records: number; guards: { number: number; fraction: number } }> = (
  { count, records, guards },
) => (
  <p class="banner warning">
    That is more than the guards allow. If so many files are gone on purpose, raise them for this time:{" "}
    {count > guards.number
      ? (
        <label>
          <input type="checkbox" name="raise_count" value={count} /> up to {number(count)} records
        </label>
      )
      : null} {records > 0 && count / records > guards.fraction
      ? (
        <label>
          <input
            type="checkbox"
            name="raise_fraction"
            value={Math.min(1, Math.ceil((count / records) * 1000) / 1000)}
          />{" "}
          up to {percent(Math.min(1, Math.ceil((count / records) * 1000) / 1000))} of them
        </label>
      )
      : null}
  </p>
);

/** What was archived, run by run, and the way back. */
export const Archives: FC<{ view: View; archives: ArchiveList }> = ({ view, archives: { archives } }) => (
  <Card id="archives" title="What can be undone">
    {archives.length === 0 ? <Empty>No cleanup has archived anything.</Empty> : (
      <Table
        caption="Cleanups that archived records"
        head={["Cleanup", "Archived", "Put back", ""]}
        rows={archives.map(({ run, archived_at, removed, restored }) => [
          <a href={link(`/archive/${run}`, { bucket: view.bucket })}>
            <Time at={archived_at} now={view.now} />
          </a>,
          number(removed),
          number(restored),
          restored >= removed
            ? <span class="dim">all are back</span>
            : (
              <Change view={view} action="/start-restore" fields={{ run }}>
                <button
                  type="submit"
                  id={`restore-${run}`}
                  title="Puts every record back that can be put back"
                >
                  Restore
                </button>
              </Change>
            ),
        ])}
      />
    )}
  </Card>
);

/** The records that one cleanup archived. */
export const ArchivePage: FC<{ view: View; archived: Archived; after: string }> = (
  { view, archived, after },
) => (
  <>
    <p>
      <a href={link("/cleanup", { bucket: view.bucket })}>Cleanup</a>
    </p>
    <h1>What a cleanup archived</h1>
    {archived.records.length === 0 ? <Empty>Nothing more.</Empty> : (
      <Table
        caption="Archived records"
        head={["Name", "Part number", "State"]}
        rows={archived.records.map(({ file_name, part_number, restored_at }) => [
          <Name of={file_name} />,
          <Name of={part_number ?? ""} />,
          restored_at === null ? <Badge tone={toneOf("open")}>archived</Badge> : (
            <>
              put back <Time at={restored_at} now={view.now} />
            </>
          ),
        ])}
      />
    )}
    <Pages
      first={after === "" ? undefined : link(`/archive/${archived.run}`, { bucket: view.bucket })}
      next={archived.next === null
        ? undefined
        : link(`/archive/${archived.run}`, { bucket: view.bucket, after: archived.next })}
    />
  </>
);

function settingOf({ fields }: Settings, name: string): unknown {
  return fields.find((field) => field.name === name)?.value;
}
