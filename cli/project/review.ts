/** What a migration begins with: a screen for its reviewer, read off its statements, with the hash of all that follows. */
import { createHash } from "node:crypto";
import { statementsOf } from "./statements.ts";

const WIDTH = 110;
const MANY = 20;

/** The comment above a migration's statements: what they make, grant, and do to the user's own table. */
export function reviewOf(
  body: string,
  { from, to }: { readonly from: string | null; readonly to: string },
): string {
  const statements = statementsOf(body).map(({ sql }) => sql);
  // What is done at once, not what a function would do.
  const done = statements.filter((sql) => !sql.startsWith("create or replace function")).join("\n");
  const rows = [
    ...rowsOf("makes", madeIn(body, done)),
    ...from === null ? [] : [...rowsOf("alters", altersIn(done)), ...rowsOf("drops", dropsIn(done))],
    ...rowsOf("definer", definersOf(statements)),
    ...rowsOf("grants", grantsOf(done)),
    ...rowsOf("yours", ofTheTable(done, from)),
  ];
  const check = rowsOf("check", [
    "sed '1,/^$/d' THIS_FILE | sha256sum prints what --dry-run shows on another machine too:",
    createHash("sha256").update(body).digest("hex"),
  ]);
  const title = `image-sync ${from === null ? to : `${from} to ${to}`}`;
  return [
    `${title}: keeps a storage bucket and the table public.part_images in step. Generated; do not edit.`,
    "",
    ...rows,
    ...check,
  ].map((line) => `-- ${line}`.trimEnd()).join("\n") + "\n";
}

function rowsOf(title: string, texts: readonly string[]): string[] {
  return texts.flatMap(wrapped).map((line, place) => `  ${(place === 0 ? title : "").padEnd(9)}${line}`);
}

function wrapped(text: string): string[] {
  const lines = [""];
  for (const word of text.split(" ")) {
    const line = lines.at(-1) ?? "";
    if (line !== "" && line.length + word.length > WIDTH - 16) lines.push(`  ${word}`);
    else lines[lines.length - 1] = line === "" ? word : `${line} ${word}`;
  }
  return lines;
}

const KINDS: readonly (readonly [string, RegExp])[] = [
  ["table", /^ *create table (image_sync|public)\.(\w+)/gm],
  ["type", /^create type (image_sync|public)\.(\w+)/gm],
  ["index", /^ *create (?:unique )?index (?:if not exists )?\w+ on (image_sync|public)\.(\w+)/gm],
  ["view", /create or replace view (image_sync|public)\.(\w+)/g],
  ["function", /^create or replace function (image_sync|public)\.(\w+)/gm],
];

function madeIn(body: string, done: string): string[] {
  const inSchema = (wanted: string) =>
    KINDS.flatMap(([kind, pattern]) => {
      const found = [...body.matchAll(pattern)].filter(([, schema]) => schema === wanted).map(([, , name]) =>
        name
      );
      if (found.length === 0) return [];
      // What is few is named; an index among what is said of its table.
      const list = kind !== "index" && found.length <= 4 ? ` (${found.join(", ")})` : "";
      return [
        `${found.length} ${found.length === 1 ? kind : kind === "index" ? "indexes" : `${kind}s`}${list}`,
      ];
    });
  const jobs = [...done.matchAll(/cron\.schedule\('([^']+)', '([^']+)'/g)].map(([, name, time]) =>
    `${name} (${time})`
  );
  const extensions = namesOf(done, /^create extension if not exists (\w+)/gm);
  return [
    ...["image_sync", "public"].map((schema) => [schema, inSchema(schema).join(", ")] as const)
      .filter(([, list]) => list !== "").map(([schema, list]) => `schema ${schema}: ${list}`),
    ...jobs.length === 0 ? [] : [`jobs of pg_cron: ${jobs.join(", ")}`],
    ...extensions.length === 0 ? [] : [`extensions, where they are missing: ${extensions.join(", ")}`],
  ];
}

function altersIn(done: string): string[] {
  const tables = namesOf(done, /^ *(?:alter table|update|delete from|insert into) image_sync\.(\w+)/gm);
  return tables.length === 0 ? [] : [`tables of image_sync: ${tables.join(", ")}`];
}

function dropsIn(done: string): string[] {
  const isAll = done.includes("drop function %s");
  const dropped = [...done.matchAll(/^ *drop (function|view|type|table|index) ([^;]*);/gm)]
    .filter(([, kind = ""]) => !isAll || !["function", "view"].includes(kind))
    .flatMap(([, kind = "", list = ""]) =>
      namesOf(
        list.replaceAll(/\([^)]*\)/g, ""),
        /\b(image_sync\.\w+|public\.image_sync_\w+|public\.part_register)/g,
      )
        .map((name) => `${kind} ${name}`)
    );
  const more = dropped.length > MANY ? [`${dropped.length - MANY} more`] : [];
  return [
    ...isAll
      ? ["all functions and views of its own, to be made anew; public.part_register stays with its grants"]
      : [],
    ...dropped.length === 0 ? [] : [[...dropped.slice(0, MANY), ...more].join(", ")],
  ];
}

function definersOf(statements: readonly string[]): string[] {
  const names = statements.filter((sql) => /\bsecurity definer\b/.test(sql.split(/\sas \$/)[0] ?? ""))
    .flatMap((sql) => namesOf(sql, /^create or replace function ([\w.]+)/g));
  return names.length === 0 ? [] : [`run with their owner's rights: ${names.join(", ")}`];
}

function grantsOf(done: string): string[] {
  const given = new Map<string, string[]>();
  for (const [, privileges, target, role] of done.matchAll(/^grant ([^;]*?) on ([^;]*?) to (\w+);/gm)) {
    const key = `${privileges} to ${role}`;
    given.set(key, [...given.get(key) ?? [], `${target}`]);
  }
  return [
    ...[...given].map(([key, targets]) => {
      const [privileges, role] = key.split(" to ");
      return `${privileges} on ${targets.join(", ")} to ${role}`;
    }),
    ...done.includes("grant execute on function %s to service_role")
      ? [
        "execute on its functions, but for the jobs', to service_role; nothing to anon, authenticated and public",
      ]
      : [],
  ];
}

/** What is done to public.part_images: by an upgrade word for word. */
function ofTheTable(done: string, from: string | null): string[] {
  if (from !== null) {
    const touching =
      /^ *(?:alter|create(?! or replace view)|drop|update|insert|delete|truncate|grant|revoke)\b[^;]*\bpublic\.part_images[^;]*;/gm;
    const said = (done.match(touching) ?? []).map((sql) => sql.trim().replaceAll(/\s+/g, " "))
      .map((sql) => sql.length > WIDTH ? `${sql.slice(0, WIDTH)}...` : sql);
    return said.length === 0 ? ["public.part_images is not touched"] : said;
  }
  const altered = done.match(/^ *alter table public\.part_images\b[^;]*;/gm)?.join("\n") ?? "";
  const columns = namesOf(altered, /add column (?:if not exists )?(\w+)/g);
  const indexes = namesOf(done, /create (?:unique )?index (?:if not exists )?(\w+) on public\.part_images/g);
  return [
    "public.part_images is made where there is none. One that is there keeps rows, columns, grants and policies; it gets, " +
    `where it lacks them, the columns ${columns.join(", ")} and the indexes ${
      indexes.join(", ")
    }; varchar becomes text; ` +
    "id, bucket_id and created_at get a default where they have none. Of several rows for one file one stays, the others " +
    "go whole to image_sync.archive. An empty bucket_id and part_number are filled",
  ];
}

function namesOf(text: string, pattern: RegExp): string[] {
  return [...new Set([...text.matchAll(pattern)].map(([, name = ""]) => name))];
}
