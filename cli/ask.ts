import { createInterface } from "node:readline";
import type { Host } from "./host.ts";

/** Whether somebody is there to answer. */
export function canAsk({ stdin, stderr }: Host): boolean {
  return stderr.isTTY === true && stdin().isTTY === true;
}

/** Asks on the terminal. Returns the line typed, or `undefined` after Ctrl-C or the end of input. */
export function ask({ stdin, stderr }: Host, question: string): Promise<string | undefined> {
  return new Promise((resolve) => {
    let isAnswered = false;
    const lines = createInterface({ input: stdin(), output: stderr, terminal: true });
    const settle = (answer: string | undefined) => {
      resolve(answer);
      lines.close();
    };
    lines.once("SIGINT", () => settle(undefined));
    lines.once("close", () => {
      if (!isAnswered) stderr.write("\n");
      settle(undefined);
    });
    lines.question(question, (answer) => {
      isAnswered = true;
      settle(answer);
    });
  });
}

/** Asks for a yes or no. `undefined` where nobody is there to answer, or they left. */
export async function confirm(host: Host, question: string): Promise<boolean | undefined> {
  if (!canAsk(host)) return undefined;
  const answer = await ask(host, question);
  return answer === undefined ? undefined : /^y(es)?$/i.test(answer.trim());
}
