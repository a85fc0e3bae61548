/**
 * Seeds: each is one script. `KATAFRACT_MODEL_SEEDS=100000` runs more of them, `KATAFRACT_MODEL_SEED=1234` that one
 * alone. A seed that fails is made as small as it can be and printed with what is left of its script.
 */
import fc from 'fast-check';
import { inlineCrypto } from './crypto.ts';
import { makeKeys } from './keys.ts';
import { run } from './run.ts';
import type { Script } from './script.ts';
import type { Keys, Tampering } from './world.ts';

/** How long a failing script may be made smaller, in ms of real time. */
const SHRINKING_MS = 60_000;

export function seedCount(usual: number): number {
  const wanted = Number(process.env.KATAFRACT_MODEL_SEEDS ?? 10_000);
  return Math.ceil((usual * wanted) / 10_000);
}

/** The one seed that is asked for, or null. */
export function oneSeed(): number | null {
  const text = process.env.KATAFRACT_MODEL_SEED;
  return text === undefined ? null : Number(text);
}

let keys: Promise<Keys> | null = null;

/** In how many runs each thing came up. */
export const met = new Map<string, number>();

async function property(scripts: fc.Arbitrary<Script>, tampering: Tampering) {
  if (!keys) inlineCrypto();
  keys ??= makeKeys();
  const known = await keys;
  return fc.asyncProperty(scripts, async (script) => {
    const world = await run(script, known, tampering);
    for (const what of world.met) met.set(what, (met.get(what) ?? 0) + 1);
  });
}

function textOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** What was violated by a seed's script as it is; null where all held. */
export async function violationOf(
  scripts: fc.Arbitrary<Script>,
  seed: number,
  tampering: Tampering = {},
): Promise<string | null> {
  const all = await property(scripts, tampering);
  const { failed, errorInstance } = await fc.check(all, { seed, numRuns: 1, endOnFailure: true });
  return failed ? textOf(errorInstance) : null;
}

/** null where all held, otherwise a report with the seed and its smallest script. */
export async function failureOf(scripts: fc.Arbitrary<Script>, seed: number): Promise<string | null> {
  const first = await violationOf(scripts, seed);
  if (first === null) return null;
  const all = await property(scripts, {});
  const small = await fc.check(all, { seed, numRuns: 1, interruptAfterTimeLimit: SHRINKING_MS });
  const left = small.counterexample?.[0];
  return [
    `seed ${seed}: ${first}; replay it by KATAFRACT_MODEL_SEED=${seed}`,
    `after ${small.numShrinks} steps smaller (${textOf(small.errorInstance)}); seed ${left?.seed}, ${left?.topology}:`,
    ...(left?.operations ?? []).map((operation) => `  ${JSON.stringify(operation)}`),
  ].join('\n');
}
