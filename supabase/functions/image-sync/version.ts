/** The version of the function, as package.json has it; announced to the database. */
export const VERSION = "0.1.0";
