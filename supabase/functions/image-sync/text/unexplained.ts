/** Answers that the service asked did not give: a gateway, a proxy, a firewall or the platform spoke in its place. In words for a person. */
import { messageOf } from "../log.ts";

/** An answer as far as it was read. */
export type UnexplainedAnswer = {
  readonly status: number;
  /** The body, or how it begins. */
  readonly text: string;
  /** The header `Location`, where there is one. */
  readonly location?: string | null;
};

/** How much of such an answer is quoted, in characters. */
const QUOTED = 160;

/** What such an answer usually means, and what to do. */
const MEANINGS: Readonly<Record<number, string>> = {
  401:
    "a gateway in front of the project wants another key; where it is the function's own address, verify_jwt is on: deploy it with the block of config.toml",
  402: "the organisation has exceeded its quota, or a bill is unpaid: see Usage and Billing in the dashboard",
  403: "a firewall or proxy in front of the project blocks the request: allow it there",
  540: "the project is paused: restore it in the dashboard",
  546: "the function used up its compute limit: try again, then look at its log",
};

/** Status, words and meaning of an answer: `HTTP 540: "Project paused". 540 usually means that ...`; tokens and keys are blotted out. */
export function explain({ status, text, location }: UnexplainedAnswer): string {
  const words = wordsOf(text);
  const said = words === "" ? `HTTP ${status}` : `HTTP ${status}: "${words}"`;
  if (status >= 300 && status < 400) {
    return `HTTP ${status}, a redirect to ${
      originOf(location)
    }. The address is not the project's own: check it, and the setting public_url`;
  }
  return `${said}. ${status} usually means that ${MEANINGS[status] ?? generalMeaning(status)}`;
}

/** Whether Storage itself wrote this refusal: its own say in JSON which status they mean. */
export function isStorages(text: string): boolean {
  try {
    return "statusCode" in (JSON.parse(text) as object);
  } catch {
    return false;
  }
}

function generalMeaning(status: number): string {
  return status >= 500
    ? "the service, or what stands in front of it, is overloaded or away: see the status of the project"
    : "something in front of the project answered in its place: check the address, and the setting public_url";
}

function wordsOf(text: string): string {
  const words = messageIn(text) ??
    text.replace(/<(script|style)\b[\s\S]*?(<\/\1>|$)/gi, " ").replace(/<[^>]*(>|$)/g, " ");
  const whole = messageOf(words.replace(/\s+/g, " ").trim());
  return whole.length > QUOTED ? `${whole.slice(0, QUOTED).toWellFormed()}…` : whole;
}

/** What a JSON document says; undefined where the text is none. */
function messageIn(text: string): string | undefined {
  try {
    const { message, msg, error } = JSON.parse(text) as Record<string, unknown>;
    const said = [message, msg, error].find((part) => typeof part === "string");
    return typeof said === "string" ? said : undefined;
  } catch {
    return undefined;
  }
}

function originOf(location: string | null | undefined): string {
  return location && URL.canParse(location) ? new URL(location).origin : "another address";
}
