// What the environment of `npm start` and `npm test` may hold and must not matter: a proxy on the way to this machine itself, and a folder
// for temporary files that is not there. Imported for its effect, which what is started from here inherits; plain Node, no dependencies.
import { accessSync, constants } from "node:fs";
import process from "node:process";
import "../cli/loopback.mjs";

for (const name of ["TMPDIR", "TMP", "TEMP"]) {
  const folder = process.env[name];
  if (folder === undefined || isUsable(folder)) continue;
  delete process.env[name];
  console.error(
    `${name} is "${folder}", where no file can be written: the system's own folder is used instead`,
  );
}

function isUsable(folder) {
  try {
    accessSync(`${folder}/.`, constants.W_OK | constants.X_OK);
    return folder !== "";
  } catch {
    return false;
  }
}
