import postgres from "postgres";

/** An error that Postgres reported, with the parts that an API passes on. */
export type DatabaseError = {
  readonly code: string;
  readonly message: string;
  readonly details: string | null;
  readonly hint: string | null;
};

/** Reads what Postgres reported from a thrown value; `undefined` when the database could not be talked to. */
export function databaseErrorOf(error: unknown): DatabaseError | undefined {
  if (!(error instanceof postgres.PostgresError)) return undefined;
  return {
    code: error.code,
    message: error.message,
    details: error.detail ?? null,
    hint: error.hint ?? null,
  };
}
