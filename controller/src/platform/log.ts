/**
 * Structured logs. Nothing personal and no secret can get in, by two fences: the fields a caller may pass are a fixed
 * list (there is none for an address, a key or a token), and everything that is written, messages and errors
 * included, goes through `redact`, which masks whatever looks like one all the same.
 */
import { redact, redactText } from '@katafract/shared/redact';
import { type DestinationStream, pino } from 'pino';

/** Everything that may be logged. Add a name here only if its values say nothing about a person or a secret. */
export interface LogFields {
  err?: unknown;
  requestId?: string;
  method?: string;
  route?: string;
  status?: number;
  code?: string;
  reason?: string;
  ms?: number;
  count?: number;
  attempt?: number;
  signal?: string;
  job?: string;
  node?: string;
  region?: string;
  peer?: string;
  sigil?: string;
  subscription?: string;
  operator?: string;
  topic?: string;
  kid?: string;
  version?: string;
  lineage?: number;
  generation?: number;
  from?: number;
  to?: number;
  /** Of our own files and sockets. */
  path?: string;
  /** Of ours, where it listens; never a client's. */
  listen?: string;
}

type Write = (fields: LogFields, message: string) => void;

export interface Logger {
  readonly debug: Write;
  readonly info: Write;
  readonly warn: Write;
  readonly error: Write;
  child(fields: LogFields): Logger;
}

export const LOG_LEVELS = ['debug', 'info', 'warn', 'error', 'silent'] as const;
export type LogLevel = (typeof LOG_LEVELS)[number];

/** An error as plain data: name, code, message, stack and causes. Never its other properties: drivers hang query
 * parameters and whole responses there. */
function plainError(error: unknown, depth = 0): unknown {
  if (!(error instanceof Error)) return error;
  const { code } = error as { code?: unknown };
  return {
    type: error.name,
    ...(typeof code === 'string' ? { code } : {}),
    // drizzle puts the parameters of a failed query into its message
    message: error.message.replace(/\nparams: [\s\S]*$/, ''),
    stack: error.stack?.split('\n    at ').slice(1).join('\n    at '),
    ...(error.cause === undefined || depth > 4 ? {} : { cause: plainError(error.cause, depth + 1) }),
  };
}

/** @param destination where lines go; standard output when absent */
export function createLogger(level: LogLevel, destination?: DestinationStream): Logger {
  const options = {
    level,
    base: null,
    timestamp: pino.stdTimeFunctions.isoTime,
    // errors are plain data already; pino's own serializer would fold their causes away
    serializers: { err: (error: unknown) => error },
  };
  const sink = destination === undefined ? pino(options) : pino(options, destination);
  return logger(sink, {});
}

function logger(sink: pino.Logger, bound: LogFields): Logger {
  const write =
    (level: 'debug' | 'info' | 'warn' | 'error'): Write =>
    (fields, message) => {
      if (!sink.isLevelEnabled(level)) return;
      const all = { ...bound, ...fields };
      const clean = redact({ ...all, ...('err' in all ? { err: plainError(all.err) } : {}) });
      sink[level](clean, redactText(message));
    };
  return {
    debug: write('debug'),
    info: write('info'),
    warn: write('warn'),
    error: write('error'),
    child: (fields) => logger(sink, { ...bound, ...fields }),
  };
}
