/** A lab for a test file: up before it, gone after it, with the ends of all logs shown when one of its tests fails. */
import { afterAll, afterEach, beforeAll } from 'vitest';
import { type Lab, type LabOptions, startLab } from './lab.ts';

/** @param options read in the beforeAll, so that they may lean on what earlier hooks made */
export function useLab(options: () => LabOptions | Promise<LabOptions>): { readonly lab: Lab } {
  let lab: Lab | undefined;
  beforeAll(async () => {
    lab = await startLab(await options());
  });
  afterEach(({ task }) => {
    if (task.result?.state === 'fail') console.error(lab?.logTails());
  });
  afterAll(() => lab?.close());
  return {
    get lab() {
      if (!lab) throw new Error('the lab is there from the first beforeAll on');
      return lab;
    },
  };
}
