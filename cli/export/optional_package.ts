import { CommandError } from "../command_error.ts";

/**
 * Loads a package that only some commands need, and that an installation may have left out.
 *
 * @param load imports it; a literal import, so that bundlers see it
 * @throws {CommandError} `missing_package`, with what to install.
 */
export async function optionalPackage<T>(name: string, load: () => Promise<T>): Promise<T> {
  try {
    return await load();
  } catch (error) {
    throw new CommandError(
      "missing_package",
      `Cannot make thumbnails without the package ${name}, which is not installed, or not for this machine: npm install ${name}, ` +
        "or export without --thumbnails",
      { cause: error },
    );
  }
}
