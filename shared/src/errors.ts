/**
 * The one error type that crosses module boundaries. `code` is stable and is what callers switch on; it becomes a
 * problem document (RFC 9457) at the HTTP edge and a counter's label in metrics. The message never holds a secret.
 */
export class KatafractError extends Error {
  /** Stable, snake_case; documented where it is thrown. */
  readonly code: string;
  /** HTTP status that the edge answers with. */
  readonly status: number;
  /** Seconds after which trying again may help; absent where it will not. */
  readonly retryAfter?: number;
  /** Public facts about the failure, shown to the caller. */
  readonly detail?: Readonly<Record<string, unknown>>;

  constructor(
    code: string,
    message: string,
    options: { status?: number; retryAfter?: number; cause?: unknown; detail?: Record<string, unknown> } = {},
  ) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.name = 'KatafractError';
    this.code = code;
    this.status = options.status ?? 500;
    if (options.retryAfter !== undefined) this.retryAfter = options.retryAfter;
    if (options.detail !== undefined) this.detail = options.detail;
  }
}
