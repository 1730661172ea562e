/** `npm run docs`: writes the list of findings in `docs/operations.md` from the function's table. */
import { fileURLToPath } from "node:url";
import { findingsPage, SUBJECTS } from "../supabase/functions/image-sync/findings.ts";

const path = fileURLToPath(new URL("../docs/operations.md", import.meta.url));
const text = await Deno.readTextFile(path);
const start = text.indexOf(`#### ${SUBJECTS[0]}\n`);
const end = start + text.slice(start).search(/^#{1,3} /m);
await Deno.writeTextFile(path, `${text.slice(0, start)}${findingsPage()}\n${text.slice(end)}`);
await new Deno.Command(Deno.execPath(), { args: ["fmt", "--quiet", path] }).output();
