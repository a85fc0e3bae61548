/**
 * Structured log lines on stdout. Redacted twice by construction: fields before they are serialized, and the finished
 * line before it is written, so that no caller has to be careful.
 */
import { redact, redactText } from '@katafract/shared/redact';
import pino from 'pino';
import type { Log } from '../ports.ts';

export function logger(write: (line: string) => void, level: string): Log {
  const log = pino(
    {
      level,
      base: null,
      timestamp: pino.stdTimeFunctions.isoTime,
      formatters: {
        level: (label) => ({ level: label }),
        log: (fields) => redact(fields) as Record<string, unknown>,
      },
      serializers: { err: (error: unknown) => error },
    },
    { write: (line: string) => write(redactText(line)) },
  );
  return {
    info: (fields, message) => log.info(fields, message),
    warn: (fields, message) => log.warn(fields, message),
    error: (fields, message) => log.error(fields, message),
  };
}
