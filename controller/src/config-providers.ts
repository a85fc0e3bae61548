/**
 * Configuration of those who have machines to give, and of how the fleet grows. A provider is off until it is named
 * here, except `manual`: a person can always be asked.
 */
import type { z } from 'zod';
import { variable, webUrl, whole } from './platform/variables.ts';

const GROWTH = {
  KATAFRACT_MACHINES_AT_ONCE: variable(
    whole(0, 1000),
    'Machines on their way at the same time, in the whole fleet, that the fleet asks for by itself; 0 for none at all',
    '3',
  ),
  KATAFRACT_MACHINES_PER_DAY: variable(
    whole(0, 100_000),
    'Machines that the fleet asks for by itself within 24 hours at most',
    '10',
  ),
  KATAFRACT_MACHINE_LEAD_MINUTES: variable(
    whole(1, 1440),
    'How long a machine takes to become an exit: regions grow for what is expected by then',
    '10',
  ),
  KATAFRACT_MACHINE_BOOT_MINUTES: variable(
    whole(1, 1440),
    'A machine that has not become an exit by then is given back',
    '15',
  ),
  KATAFRACT_GROWTH_COOLDOWN_MINUTES: variable(
    whole(0, 10_080),
    'Pause between two decisions of one region to grow for its load; doubled for each machine that failed in a row',
    '10',
  ),
  KATAFRACT_REPLACE_AFTER_MINUTES: variable(
    whole(0, 10_080),
    'An exit that has been down for this long is replaced, in a region that grows by itself',
    '10',
  ),
} as const;

const LAB = {
  KATAFRACT_LAB_URL: variable(
    webUrl,
    'Where a lab hands out machines, for tests and demonstrations. Turns the provider `lab` on',
  ),
} as const;

export const PROVIDER_VARIABLES = { ...GROWTH, ...LAB } as const;

type Name = keyof typeof PROVIDER_VARIABLES;
export type ProviderValues = { [N in Name]?: z.output<(typeof PROVIDER_VARIABLES)[N]['schema']> };

const MINUTE = 60_000;

/** How the fleet grows, times in ms, and the providers, each null where it is off. */
export function providersConfig(at: Required<ProviderValues>, maybe: ProviderValues) {
  return {
    growth: {
      mostAtOnce: at.KATAFRACT_MACHINES_AT_ONCE,
      mostADay: at.KATAFRACT_MACHINES_PER_DAY,
      leadMs: at.KATAFRACT_MACHINE_LEAD_MINUTES * MINUTE,
      bootMs: at.KATAFRACT_MACHINE_BOOT_MINUTES * MINUTE,
      cooldownMs: at.KATAFRACT_GROWTH_COOLDOWN_MINUTES * MINUTE,
      replaceAfterMs: at.KATAFRACT_REPLACE_AFTER_MINUTES * MINUTE,
    },
    lab: maybe.KATAFRACT_LAB_URL === undefined ? null : { url: maybe.KATAFRACT_LAB_URL },
  };
}

export type ProvidersConfig = ReturnType<typeof providersConfig>;
