/** How a command ends; what it means stands in each command's help. */
export const exitStatus = {
  /** It did what it was for; for `status`: healthy. */
  fine: 0,
  /** It was done and somebody has to look: a run that did not succeed, a bucket that is not healthy. */
  attention: 1,
  /** It could not be told: wrong usage, no connection, a refusal. */
  unknown: 2,
  /** Ctrl-C: 128 + SIGINT, as a shell has it. */
  interrupted: 130,
} as const;

type CommandErrorOptions = ErrorOptions & {
  /** Worth another attempt in a moment. Default false. */
  readonly transient?: boolean;
  /** Default {@linkcode exitStatus}`.unknown`. */
  readonly status?: number;
  /** What is wrong with which field of what was sent, where the function said so. */
  readonly fields?: readonly FieldError[];
};

/** What is wrong with a field. */
export type FieldError = { readonly field: string; readonly message: string };

/** Why a command cannot go on, as a sentence for its operator, with a stable code for machines. */
export class CommandError extends Error {
  readonly transient: boolean;
  readonly status: number;
  readonly fields: readonly FieldError[];

  constructor(readonly code: string, message: string, options: CommandErrorOptions = {}) {
    super(message, options);
    this.name = "CommandError";
    this.transient = options.transient ?? false;
    this.status = options.status ?? exitStatus.unknown;
    this.fields = options.fields ?? [];
  }

  /** The same error in other words. */
  reworded(message: string): CommandError {
    const { code, transient, status, fields } = this;
    return new CommandError(code, message, { transient, status, fields, cause: this });
  }
}
