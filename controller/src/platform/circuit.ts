/**
 * A circuit breaker (Nygard, Release It!) as a pure state machine: after some failures in a row a service is left alone
 * for a while, then one call at a time is let through until one succeeds. Time is passed in.
 */

export interface CircuitSettings {
  /** Failures in a row that open the circuit. */
  readonly threshold: number;
  /** How long it stays open the first time, ms; doubles with every probe that fails. */
  readonly openMs: number;
  readonly maxOpenMs: number;
}

export interface Circuit {
  /** Failures since the last success. */
  readonly failures: number;
  /** Until when nothing is let through, ms since the epoch; null: closed. */
  readonly openUntil: number | null;
  /** How long it was opened for the last time, ms. */
  readonly lastOpenMs: number;
  /** A probe is under way. */
  readonly probing: boolean;
}

export type CircuitState = 'closed' | 'open' | 'half_open';

export const CLOSED: Circuit = { failures: 0, openUntil: null, lastOpenMs: 0, probing: false };

export function circuitState(circuit: Circuit, now: number): CircuitState {
  if (circuit.openUntil === null) return 'closed';
  return now < circuit.openUntil ? 'open' : 'half_open';
}

/** Whether a call may go out at `now`; whoever is let through must report its outcome with `settled`. */
export function admit(
  circuit: Circuit,
  now: number,
): { admitted: true; circuit: Circuit } | { admitted: false; retryAfterMs: number } {
  if (circuit.openUntil === null) return { admitted: true, circuit };
  if (now < circuit.openUntil) return { admitted: false, retryAfterMs: circuit.openUntil - now };
  if (circuit.probing) return { admitted: false, retryAfterMs: circuit.lastOpenMs };
  return { admitted: true, circuit: { ...circuit, probing: true } };
}

export function settled(
  circuit: Circuit,
  outcome: 'success' | 'failure',
  now: number,
  settings: CircuitSettings,
): Circuit {
  if (outcome === 'success') return CLOSED;
  const failures = circuit.failures + 1;
  if (circuit.openUntil === null) {
    return failures < settings.threshold ? { ...circuit, failures } : opened(failures, settings.openMs, now);
  }
  // calls that were under way when it opened add nothing: only the probe of a half-open circuit opens it anew
  if (now < circuit.openUntil || !circuit.probing) return { ...circuit, failures };
  return opened(failures, Math.min(circuit.lastOpenMs * 2, settings.maxOpenMs), now);
}

function opened(failures: number, ms: number, now: number): Circuit {
  return { failures, openUntil: now + ms, lastOpenMs: ms, probing: false };
}
