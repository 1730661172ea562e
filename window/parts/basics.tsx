/** What the pages are made of: times, figures, forms, tables. */
import type { FC, PropsWithChildren } from "hono/jsx";
import { count, renderTime } from "../../supabase/functions/image-sync/text/words.ts";
import { safeText } from "../../supabase/functions/image-sync/text/safe_text.ts";
import type { Rendered, View } from "../view.ts";

/** A moment as its age, the exact one on hover. The page's script keeps the age true. */
export const Time: FC<{ at: string | null | undefined; now: number }> = ({ at, now }) => {
  if (at === null || at === undefined || Number.isNaN(Date.parse(at))) return <span class="dim">never</span>;
  return <time datetime={new Date(at).toISOString()} title={renderTime(at)}>{coarseAge(at, now)}</time>;
};

/** How long ago, or how far ahead: no finer than it matters, so that it does not change with every look. */
function coarseAge(at: string, now: number): string {
  const seconds = (now - Date.parse(at)) / 1000;
  const minutes = Math.floor(Math.abs(seconds) / 60);
  if (minutes === 0) return seconds < 0 ? "in a moment" : "just now";
  const hours = Math.round(minutes / 60);
  const long = minutes < 60 ? `${minutes} min` : hours < 48 ? `${hours} h` : `${Math.round(hours / 24)} days`;
  return seconds < 0 ? `in ${long}` : `${long} ago`;
}

/** A name of foreign origin. */
export const Name: FC<{ of: string }> = ({ of }) => <span class="name">{safeText(of) || "(no name)"}</span>;

/** A card with a heading. `id` makes it a part that is kept live. */
export const Card: FC<PropsWithChildren<{ title: string; id?: string; note?: Rendered; tone?: string }>> = (
  { title, id, note, tone, children },
) => (
  <section class={`card ${tone ?? ""}`} id={id} aria-labelledby={`${id ?? slug(title)}-title`}>
    <header>
      <h2 id={`${id ?? slug(title)}-title`}>{title}</h2>
      {note === undefined ? null : <p class="dim">{note}</p>}
    </header>
    {children}
  </section>
);

function slug(title: string): string {
  return title.toLowerCase().replaceAll(/[^a-z0-9]+/g, "-");
}

/** A figure with what it counts. */
export const Figure: FC<{ label: string; value: Rendered; note?: Rendered; tone?: string }> = (
  { label, value, note, tone },
) => (
  <div class={`figure ${tone ?? ""}`}>
    <dt>{label}</dt>
    <dd>
      {value}
      {note === undefined ? null : <small>{note}</small>}
    </dd>
  </div>
);

/** A form that changes something: a POST with the token of its own. */
export const Change: FC<
  PropsWithChildren<{ view: View; action: string; fields?: Readonly<Record<string, string>>; class?: string }>
> = (
  { view, action, fields = {}, class: style, children },
) => (
  <form method="post" action={action} class={style ?? "inline"}>
    <input type="hidden" name="csrf" value={view.csrf(action)} />
    <input type="hidden" name="bucket" value={view.bucket} />
    <input type="hidden" name="back" value={view.path} />
    {Object.entries(fields).map(([name, value]) => <input type="hidden" name={name} value={value} />)}
    {children}
  </form>
);

/** A table that a small screen may scroll; `rows`: one that it reads downwards, three cells a line. */
export const Table: FC<
  { caption: string; head: readonly string[]; rows: readonly (readonly Rendered[])[]; class?: "rows" }
> = (
  { caption, head, rows, class: style },
) => (
  <div class={`scroll ${style ?? ""}`} tabindex={0} role="region" aria-label={caption}>
    <table>
      <caption class="hidden">{caption}</caption>
      <thead>
        <tr>{head.map((title) => <th scope="col">{title}</th>)}</tr>
      </thead>
      <tbody>
        {rows.map((cells) => <tr>{cells.map((cell) => <td>{cell}</td>)}</tr>)}
      </tbody>
    </table>
  </div>
);

/** The same figures for whoever cannot see the picture. */
export const AsTable: FC<
  { caption: string; head: readonly string[]; rows: readonly (readonly Rendered[])[] }
> = (props) => (
  <details class="as-table">
    <summary>As a table</summary>
    <Table {...props} />
  </details>
);

/** What is there to be read where there is nothing yet. */
export const Empty: FC<PropsWithChildren> = ({ children }) => <p class="empty">{children}</p>;

/** How something stands, in a word and a colour. */
export const Badge: FC<{ tone: string; children: Rendered }> = ({ tone, children }) => (
  <span class={`badge ${tone}`}>{children}</span>
);

/** The colour of how a run ended. */
export function toneOf(state: string): string {
  const tones: Readonly<Record<string, string>> = {
    succeeded: "good",
    partial: "warning",
    failed: "error",
    open: "info",
  };
  return tones[state] ?? "plain";
}

/** A number, or what stands where none is known. */
export function number(value: number | null | undefined): string {
  return value === null || value === undefined ? "–" : count(value);
}

/** Pages of a list by key: to the first, and to the next. */
export const Pages: FC<{ first?: string | undefined; next?: string | undefined }> = ({ first, next }) =>
  first === undefined && next === undefined ? null : (
    <nav class="pages" aria-label="Pages">
      {first === undefined ? <span></span> : <a class="button" href={first}>First page</a>}
      {next === undefined
        ? <span class="dim">End of the list</span>
        : <a class="button" href={next} rel="next">Next page</a>}
    </nav>
  );
