/** SQL as its statements: bodies of functions are strings. */

/** One statement. */
export type Statement = {
  /** With the comments above it. */
  readonly text: string;
  /** Without them. */
  readonly sql: string;
};

const TOKEN = /--[^\n]*|'(?:[^']|'')*'|\$(\w*)\$[\s\S]*?\$\1\$|;/g;

/** The statements of a text, in order; what follows the last one, a comment, belongs to none. */
export function statementsOf(text: string): Statement[] {
  const statements: Statement[] = [];
  let start = 0;
  for (const { 0: token, index } of text.matchAll(TOKEN)) {
    if (token !== ";") continue;
    const statement = text.slice(start, index + 1).trim();
    statements.push({ text: statement, sql: statement.replace(/^(?:\s*--[^\n]*\n)*\s*/, "") });
    start = index + 1;
  }
  return statements;
}
