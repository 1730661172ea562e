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
};

/** Why a command cannot go on, as a sentence for its operator, with a stable code for machines. */
export class CommandError extends Error {
  readonly transient: boolean;
  readonly status: number;

  constructor(readonly code: string, message: string, options: CommandErrorOptions = {}) {
    super(message, options);
    this.name = "CommandError";
    this.transient = options.transient ?? false;
    this.status = options.status ?? exitStatus.unknown;
  }

  /** The same error in other words. */
  reworded(message: string): CommandError {
    const { code, transient, status } = this;
    return new CommandError(code, message, { transient, status, cause: this });
  }
}
