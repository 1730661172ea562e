/** The gallery: files and records by name, with their pictures, a page at a time. */
import type { FC } from "hono/jsx";
import type {
  RecordFilter,
  RecordItem,
  RecordList,
  Report,
} from "../../supabase/functions/image-sync/contract.ts";
import { bytes } from "../../supabase/functions/image-sync/text/words.ts";
import { safeText } from "../../supabase/functions/image-sync/text/safe_text.ts";
import { type Smaller, TILE } from "../small_pictures.ts";
import { link, type View } from "../view.ts";
import { Badge, Empty, Name, number, Pages, Time } from "../parts/basics.tsx";

/** What the gallery can be narrowed to, in the words of the page. */
export const FILTERS: Readonly<Record<RecordFilter, string>> = {
  all: "All",
  missing: "Missing",
  unsigned: "Unsigned",
  expired: "Expired",
  expiring: "Expiring soon",
  orphaned: "Orphaned",
  several: "Several files",
  broken: "Verified bad",
  excluded: "Excluded",
  other: "Other extensions",
  empty: "Empty files",
  working: "Working",
};

const MEANINGS: Readonly<Record<RecordFilter, string>> = {
  all: "Every file and every record, by name.",
  missing: "Images without a record: the next sync inserts them.",
  unsigned: "Records whose file is there and that have no URL.",
  expired: "Records whose URL has died.",
  expiring: "Records whose URL works and is due for renewal.",
  orphaned: "Records whose file is gone: a cleanup archives them.",
  several: "Files whose part number other files have as well, as a spreadsheet compares it.",
  broken: "Files whose URL showed no image when the newest verify opened it.",
  excluded: "Files that a pattern of the settings leaves out.",
  other: "Files whose extension makes no image.",
  empty: "Files of 0 bytes: they show nothing.",
  working: "Records whose URL shows the file.",
};

const TONES: Readonly<Record<RecordItem["state"], string>> = {
  working: "good",
  expiring: "warning",
  expired: "error",
  unsigned: "error",
  missing: "warning",
  orphaned: "warning",
  moved: "warning",
  empty: "warning",
  excluded: "plain",
  other: "plain",
};

/** What the gallery shows. */
export type Choice = { readonly state: RecordFilter; readonly search: string; readonly after: string };

/** A page of the gallery. */
export const Pictures: FC<
  { view: View; choice: Choice; list: RecordList; small: Smaller | undefined; report: Report | undefined }
> = (
  { view, choice, list, small, report },
) => {
  const { state, search, after } = choice;
  const to = (query: Partial<Choice>) => link("/pictures", { bucket: view.bucket, state, search, ...query });
  return (
    <>
      <h1>Pictures</h1>
      <form method="get" action="/pictures" class="search" role="search">
        <input type="hidden" name="bucket" value={view.bucket} />
        {state === "all" ? null : <input type="hidden" name="state" value={state} />}
        <label for="search">Name or part number begins with</label>
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
      <nav class="filters" aria-label="States">
        {Object.entries(FILTERS).map(([key, name]) => (
          <a
            href={link("/pictures", { bucket: view.bucket, state: key === "all" ? "" : key, search })}
            aria-current={key === state ? "true" : undefined}
          >
            {name}
            {countOf(report, key as RecordFilter)}
          </a>
        ))}
      </nav>
      <p class="dim">
        {MEANINGS[state]}
        {list.as_of === null ? null : (
          <>
            Looked for where the run that ended <Time at={list.as_of} now={view.now} /> found some.
          </>
        )}
      </p>
      {small === undefined
        ? null
        : (
          <p class="banner warning" role="status" id="whole" hidden={small.problem === undefined}>
            {small.problem ?? "Storage did not scale some of these pictures: they are shown whole."}
          </p>
        )}
      {list.records.length === 0 ? <Empty>{emptyWords(choice, list)}</Empty> : (
        <ul class="gallery">
          {list.records.map((item) => (
            <Tile
              view={view}
              item={item}
              small={small?.urls.get(item.file_name)}
            />
          ))}
        </ul>
      )}
      <Pages
        first={after === "" ? undefined : to({ after: "" })}
        next={list.next === null ? undefined : to({ after: list.next })}
      />
    </>
  );
};

const Tile: FC<{ view: View; item: RecordItem; small: string | undefined }> = ({ view, item, small }) => (
  <li>
    <a
      href={link("/picture", { bucket: view.bucket, file: item.file_name })}
      title={safeText(item.file_name)}
    >
      <Picture item={item} small={small} />
      <Name of={item.file_name} />
    </a>
    <p>
      <Badge tone={TONES[item.state]}>{item.state}</Badge>{" "}
      <span class="dim">
        {item.code !== undefined
          ? safeText(item.code.replaceAll("_", " "))
          : item.bytes === undefined
          ? ""
          : bytes(item.bytes)}
      </span>
    </p>
  </li>
);

/** The picture itself, where a URL shows it; small where Storage scales it, and whole where that does not load. */
export const Picture: FC<{ item: RecordItem; small?: string | undefined; large?: boolean }> = (
  { item, small, large },
) =>
  item.url === undefined || item.state === "orphaned"
    ? <span class="no-picture" aria-hidden="true">no picture</span>
    : large === true
    ? (
      <img
        src={item.url}
        alt={`Picture ${safeText(item.file_name)}`}
        decoding="async"
        referrerpolicy="no-referrer"
      />
    )
    : (
      <img
        src={small ?? item.url}
        data-whole={small === undefined ? undefined : item.url}
        alt=""
        loading="lazy"
        decoding="async"
        width={TILE.width / 2}
        height={TILE.height / 2}
        referrerpolicy="no-referrer"
      />
    );

function countOf(report: Report | undefined, filter: RecordFilter) {
  const counts: Partial<Record<RecordFilter, number | null>> = {
    missing: report?.difference.missing.count ?? null,
    orphaned: report?.difference.orphaned.count ?? null,
    unsigned: report?.records.unsigned ?? null,
    expired: report?.records.expired ?? null,
  };
  const known = counts[filter];
  return known === undefined || known === null ? null : <span class="count">{number(known)}</span>;
}

function emptyWords({ search, state, after }: Choice, { next }: RecordList): string {
  if (next !== null) return "None so far; there is more to look through on the next page.";
  if (search !== "") {
    return `No name or part number begins with ${safeText(search)}${
      state === "all" ? "" : " in this state"
    }.`;
  }
  if (after !== "") return "Nothing more.";
  if (state === "broken") return "No verify saw a URL without its image, or none was run yet.";
  return state === "all" ? "The bucket holds no file, and the table no record of it." : "None.";
}
