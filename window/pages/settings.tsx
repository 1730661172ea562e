/** The settings of a bucket as a form: what each means and what is allowed, in the words of the database. */
import type { FC } from "hono/jsx";
import type { FieldError } from "../../cli/command_error.ts";
import type { Setting, Settings } from "../../supabase/functions/image-sync/contract.ts";
import { safeText } from "../../supabase/functions/image-sync/text/safe_text.ts";
import type { View } from "../view.ts";
import { Change } from "../parts/basics.tsx";

/** The form, with what was typed and what is wrong with it after a refusal. */
export const SettingsPage: FC<{
  view: View;
  settings: Settings;
  typed?: Readonly<Record<string, string>>;
  wrong?: readonly FieldError[];
}> = ({ view, settings, typed = {}, wrong = [] }) => (
  <>
    <h1>Settings</h1>
    <p>The next run follows them.</p>
    {wrong.length === 0
      ? null
      : <p class="banner error" role="alert">Nothing was changed: see what is marked below.</p>}
    <Change view={view} action="/settings" class="settings">
      {settings.fields.map((field) => (
        <Field
          field={field}
          typed={typed[field.name]}
          wrong={wrong.find(({ field: name }) => name === field.name)?.message}
        />
      ))}
      <p class="save">
        <button type="submit" class="primary" id="save-settings">Save</button>
      </p>
    </Change>
  </>
);

const Field: FC<{ field: Setting; typed: string | undefined; wrong: string | undefined }> = (
  { field, typed, wrong },
) => {
  const id = `setting-${field.name}`;
  const described = {
    "aria-describedby": `${id}-meaning`,
    ...(wrong === undefined ? {} : { "aria-invalid": "true" as const }),
  };
  const value = typed ?? textOf(field);
  return (
    <div class={`field ${wrong === undefined ? "" : "wrong"}`}>
      <label for={id}>{labelOf(field.name)}</label>
      {field.type === "boolean"
        ? (
          <input
            id={id}
            type="checkbox"
            name={field.name}
            value="true"
            checked={value === "true"}
            {...described}
          />
        )
        : field.type.endsWith("[]")
        ? (
          <textarea
            id={id}
            name={field.name}
            rows={Math.min(Math.max(value.split("\n").length, 2), 16)}
            spellcheck={false}
            {...described}
          >
            {value}
          </textarea>
        )
        : (
          <input
            id={id}
            name={field.name}
            value={value}
            autocomplete="off"
            spellcheck={false}
            inputmode={isNumber(field) ? "decimal" : undefined}
            {...described}
          />
        )}
      <p id={`${id}-meaning`} class="dim">
        {wrong === undefined ? null : <strong class="refusal">{wrong}</strong>}
        {safeText(field.meaning ?? "")} {safeText(field.bounds ?? "")}
        {field.type.endsWith("[]") ? " One a line." : ""}
        {defaultOf(field)}
      </p>
    </div>
  );
};

/** What holds where nothing else was said; of a list only whether it is that one. */
function defaultOf(field: Setting): string {
  if (field.default === null) return "";
  if (!field.type.endsWith("[]")) return ` Default: ${safeText(field.default)}.`;
  const items = itemsOf(field.default);
  return items.join("\n") === textOf(field) ? " As by default." : ` Default: ${safeText(items.join(", "))}.`;
}

/** The items of a list as the database writes it, such as `{jpg,"a b"}`. */
function itemsOf(literal: string): string[] {
  return [...literal.slice(1, -1).matchAll(/"((?:\\.|[^"\\])*)"|([^,]+)/g)]
    .map(([, quoted, plain = ""]) => quoted === undefined ? plain : quoted.replaceAll(/\\(.)/g, "$1"));
}

/** What of a form differs from what is set, as the database takes it. */
export function changesOf(
  { fields }: Settings,
  form: Readonly<Record<string, unknown>>,
): Record<string, Setting["value"]> {
  const changed = fields.filter((field) => typedOf(field, form) !== textOf(field));
  return Object.fromEntries(changed.map((field) => [field.name, valueOf(field, typedOf(field, form))]));
}

/** What was typed, field by field. */
export function typedIn(
  { fields }: Settings,
  form: Readonly<Record<string, unknown>>,
): Record<string, string> {
  return Object.fromEntries(fields.map((field) => [field.name, typedOf(field, form)]));
}

function typedOf(field: Setting, form: Readonly<Record<string, unknown>>): string {
  const typed = form[field.name];
  // A box that is not ticked is not sent.
  if (field.type === "boolean") return typed === "true" ? "true" : "false";
  const text = typeof typed === "string" ? typed.replaceAll("\r\n", "\n").trim() : textOf(field);
  return field.type.endsWith("[]")
    ? text.split("\n").map((line) => line.trim()).filter((line) => line !== "").join("\n")
    : text;
}

function valueOf(field: Setting, typed: string): Setting["value"] {
  if (field.type === "boolean") return typed === "true";
  if (field.type.endsWith("[]")) return typed === "" ? [] : typed.split("\n");
  return typed === "" ? null : typed;
}

function textOf({ value }: Setting): string {
  if (value === null) return "";
  return Array.isArray(value) ? value.join("\n") : String(value);
}

function isNumber({ type }: Setting): boolean {
  return type === "integer" || type === "numeric";
}

function labelOf(name: string): string {
  const words = name.replaceAll("_", " ").replace(/\burl\b/, "URL").replace(/\bttl\b/, "lifetime");
  return words.charAt(0).toUpperCase() + words.slice(1);
}
