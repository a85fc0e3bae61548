import { describe, expect, it } from 'vitest';
import { admit, type Circuit, CLOSED, circuitState, settled } from './circuit.ts';

const SETTINGS = { threshold: 3, openMs: 1000, maxOpenMs: 3000 };

/** A circuit in virtual time. */
function circuit() {
  let state: Circuit = CLOSED;
  let now = 1_000_000;
  return {
    state: () => circuitState(state, now),
    pass: (ms: number) => {
      now += ms;
    },
    enter: () => {
      const admission = admit(state, now);
      if (admission.admitted) state = admission.circuit;
      return admission;
    },
    leave: (outcome: 'success' | 'failure') => {
      state = settled(state, outcome, now, SETTINGS);
    },
  };
}

function broken() {
  const it = circuit();
  for (let failures = 0; failures < 3; failures++) {
    expect(it.enter().admitted).toBe(true);
    it.leave('failure');
  }
  return it;
}

describe('the circuit breaker', () => {
  it('opens after failures in a row, not after as many with a success between', () => {
    const it = circuit();
    for (const outcome of ['failure', 'failure', 'success', 'failure', 'failure'] as const) {
      it.enter();
      it.leave(outcome);
    }
    expect(it.state()).toBe('closed');
    it.enter();
    it.leave('failure');
    expect(it.state()).toBe('open');
    expect(it.enter()).toEqual({ admitted: false, retryAfterMs: 1000 });
  });

  it('lets one probe through once its time is over, and closes when that succeeds', () => {
    const it = broken();
    it.pass(999);
    expect(it.enter()).toEqual({ admitted: false, retryAfterMs: 1 });
    it.pass(1);
    expect(it.state()).toBe('half_open');
    expect(it.enter().admitted).toBe(true);
    expect(it.enter().admitted).toBe(false);
    it.leave('success');
    expect(it.state()).toBe('closed');
    expect(it.enter().admitted).toBe(true);
  });

  it('stays open twice as long with every probe that fails, up to a limit', () => {
    const it = broken();
    for (const openMs of [1000, 2000, 3000, 3000]) {
      expect(it.enter()).toEqual({ admitted: false, retryAfterMs: openMs });
      it.pass(openMs);
      expect(it.enter().admitted).toBe(true);
      it.leave('failure');
    }
  });

  it('is neither prolonged nor opened anew by calls that were under way when it opened', () => {
    const it = broken();
    it.leave('failure');
    it.pass(1000);
    it.leave('failure');
    expect(it.state()).toBe('half_open');
    expect(it.enter().admitted).toBe(true);
  });

  it('is closed by any success: a store that answers is there', () => {
    const it = broken();
    it.leave('success');
    expect(it.state()).toBe('closed');
  });
});
