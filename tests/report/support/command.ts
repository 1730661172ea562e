import { spawn } from "node:child_process";
import process from "node:process";
import { projectDirectory } from "../../support/stack.ts";

/** What a command printed and how it ended. */
export type Ended = { readonly code: number | null; readonly stdout: string; readonly stderr: string };

/** A project to talk to. */
export type Project = { readonly url: string; readonly secretKey: string };

/** Runs `npm run COMMAND -- ARGS` against a project, as its operator types it. */
export function npmRun(project: Project, command: string, args: readonly string[] = []): Promise<Ended> {
  return runProgram(project, "npm", ["run", "--silent", command, "--", ...args]);
}

/**
 * Runs any program with the project in its environment.
 *
 * @param typed what is typed once the program asks for a number
 */
export function runProgram(
  { url, secretKey }: Project,
  program: string,
  args: readonly string[],
  { typed }: { readonly typed?: string } = {},
): Promise<Ended> {
  const child = spawn(program, args, {
    cwd: projectDirectory,
    env: { ...process.env, SUPABASE_URL: url, SUPABASE_SECRET_KEY: secretKey, NO_UPDATE_NOTIFIER: "1" },
    stdio: ["pipe", "pipe", "pipe"],
  });
  const text = { stdout: "", stderr: "" };
  let isTyped = false;
  const onPart = (stream: keyof typeof text) => (part: Buffer) => {
    text[stream] += part;
    if (typed === undefined || isTyped || !text[stream].includes("type their number")) return;
    isTyped = true;
    child.stdin.write(`${typed}\r`);
  };
  child.stdout.on("data", onPart("stdout"));
  child.stderr.on("data", onPart("stderr"));
  if (typed === undefined) child.stdin.end();
  return new Promise((resolve, reject) => {
    child.on("error", reject);
    child.on("close", (code) => resolve({ code, ...text }));
  });
}
