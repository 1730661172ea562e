import { randomBytes } from "node:crypto";
import { readerNameSchema } from "../../supabase/functions/image-sync/contract.ts";
import { renderReaders } from "../../supabase/functions/image-sync/text/lists.ts";
import { safeText } from "../../supabase/functions/image-sync/text/safe_text.ts";
import { CommandError, exitStatus } from "../command_error.ts";
import { addRoleSql, dropRoleSql, verifierOf } from "../reader_sql.ts";
import type { Context } from "./context.ts";

/** Options of {@linkcode reader}. */
export type ReaderOptions = {
  readonly action: string | undefined;
  readonly name: string | undefined;
  /** Prints the SQL of a database role. */
  readonly odbc: boolean;
  /** Makes a key for register.csv. */
  readonly https: boolean;
};

/** Gives somebody the right to read the register and nothing else, lists who has it, or takes it away. */
export async function reader(context: Context, options: ReaderOptions): Promise<number> {
  const { action, odbc, https } = options;
  if (action === undefined || action === "list") return await list(context);
  const name = checkedName(action, options.name);
  if (action === "revoke") return await revoke(context, name);
  if (odbc === https) {
    throw new CommandError(
      "usage",
      "Cannot add a reader without knowing how they read: say --https for Power Query, or --odbc for a database role",
    );
  }
  return odbc ? addRole(context, name) : await addKey(context, name);
}

function checkedName(action: string, name: string | undefined): string {
  if ((action !== "add" && action !== "revoke") || name === undefined) {
    throw new CommandError(
      "usage",
      `Cannot ${safeText(action)} ${name === undefined ? "without the name of a reader" : "a reader"}: use ` +
        "npx image-sync reader, npx image-sync reader add NAME --https, npx image-sync reader add NAME --odbc or " +
        "npx image-sync reader revoke NAME",
    );
  }
  const parsed = readerNameSchema.safeParse(name);
  if (parsed.success) return parsed.data;
  throw new CommandError(
    "usage",
    `Cannot ${action} reader ${
      safeText(name)
    }: a name has 1 to 48 of a-z, 0-9, _ and -, and begins with a letter`,
  );
}

async function list({ client, output }: Context): Promise<number> {
  const all = await client.readers();
  output.show(all, () => renderReaders(all));
  return exitStatus.fine;
}

async function addKey({ client, output, bucket, url }: Context, name: string): Promise<number> {
  const reader = await client.addReader(name, bucket);
  output.reveal(reader, reader.key, () =>
    [
      `Reader ${name} may read the register of ${
        safeText(bucket)
      } and nothing else. In Excel: Data, From Web, Basic.`,
      `  Address:  ${url}/functions/v1/image-sync/register.csv`,
      `  User:     ${name}`,
      `  Password: ${reader.key}`,
      "The password is shown this once and kept nowhere. Steps: docs/spreadsheet.md",
      "",
    ].join("\n"));
  return exitStatus.fine;
}

/** The SQL alone on standard output, so that it can be piped; the password, of which the SQL holds a verifier, beside it. */
function addRole({ output, bucket }: Context, name: string): number {
  const password = randomBytes(24).toString("base64url");
  const sql = addRoleSql({ name, bucket, verifier: verifierOf(password) });
  output.reveal({ name, kind: "odbc", bucket_id: bucket, password, sql }, password, () => sql);
  output.revealNote(
    password,
    `Run this SQL as postgres: in the SQL editor of the dashboard, or with psql. It makes a login role.\n` +
      `  User:     ${name} (through the pooler: ${name}.YOUR_REF)\n` +
      `  Password: ${password}\n` +
      "The password is shown this once; the SQL holds a verifier of it alone. Steps: docs/spreadsheet.md",
  );
  return exitStatus.fine;
}

async function revoke({ client, output }: Context, name: string): Promise<number> {
  const removal = await client.removeReader(name);
  if (removal.revoked) {
    output.show(removal, () => `Reader ${name} is revoked: from now on the key opens nothing\n`);
    return exitStatus.fine;
  }
  const sql = dropRoleSql(name);
  output.reveal({ ...removal, sql }, "", () => sql);
  output.note(
    `Reader ${name} is a database role, which its owner has to drop: run this SQL as postgres. Until then it goes on to read`,
  );
  return exitStatus.attention;
}
