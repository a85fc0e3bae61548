/**
 * Configuration of those who have machines to give, and of how the fleet grows. A provider is off until it is named
 * here, except `manual`: a person can always be asked.
 */
import { z } from 'zod';
import { list, path, variable, webUrl, whole } from './platform/variables.ts';

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
    whole(1, 50),
    'A machine that has not become an exit by then is given back; its join token is good for an hour',
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

/** What every new machine is told besides its token. */
const NEW_MACHINES = {
  KATAFRACT_AGENT_DEB_URL: variable(webUrl, "Where a new machine downloads the agent's package"),
  KATAFRACT_AGENT_DEB_SHA256: variable(
    z.string().regex(/^[0-9a-f]{64}$/, 'SHA-256 in hex'),
    'SHA-256 of that package; nothing else is installed',
  ),
  KATAFRACT_AGENT_APT_URL: variable(
    webUrl,
    "An apt repository with the agent's package, instead of one file",
  ),
  KATAFRACT_AGENT_APT_SUITE: variable(z.string().min(1), 'Suite of that repository', 'stable'),
  KATAFRACT_AGENT_APT_COMPONENTS: variable(z.string().min(1), 'Its components, by blank', 'main'),
  KATAFRACT_AGENT_APT_KEY_FILE: variable(
    path,
    'ASCII-armoured OpenPGP key that the repository is signed with',
  ),
  KATAFRACT_MACHINE_BOOTSTRAP_FILE: variable(
    path,
    'Script that a new machine runs as root before anything else, such as to join the mesh. Treated as a secret',
  ),
} as const;

const labelValue = z
  .string()
  .regex(/^[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$/, 'at most 63 letters, digits and ._-');
const ids = z
  .string()
  .regex(/^\d{1,15}(?:, *\d{1,15})*$/, 'numbers by comma')
  .transform((text) => text.split(',').map(Number));

const HETZNER = {
  KATAFRACT_HETZNER_TOKEN_FILE: variable(
    path,
    'File with a read and write token of a Hetzner Cloud project. Turns the provider `hetzner` on',
  ),
  KATAFRACT_HETZNER_FLEET: variable(
    labelValue,
    'Name of this fleet, by which it labels its machines: whatever in the project carries it and is not wanted is deleted, so two fleets never share one',
  ),
  KATAFRACT_HETZNER_IMAGE: variable(
    z.string().regex(/^\S{1,64}$/, 'one word'),
    'Image of its machines',
    'debian-12',
  ),
  KATAFRACT_HETZNER_SSH_KEYS: variable(
    list,
    'Names of SSH keys in the project, by comma. Without any, Hetzner mails a root password, which the machine locks when it is set up',
  ),
  KATAFRACT_HETZNER_FIREWALLS: variable(ids, 'Ids of firewalls in the project, by comma'),
  KATAFRACT_HETZNER_NETWORKS: variable(ids, 'Ids of private networks in the project, by comma'),
  KATAFRACT_HETZNER_URL: variable(
    webUrl,
    "Where Hetzner's Cloud API answers",
    'https://api.hetzner.cloud/v1',
  ),
} as const;

const LAB = {
  KATAFRACT_LAB_URL: variable(
    webUrl,
    'Where a lab hands out machines, for tests and demonstrations. Turns the provider `lab` on',
  ),
} as const;

export const PROVIDER_VARIABLES = { ...GROWTH, ...NEW_MACHINES, ...HETZNER, ...LAB } as const;

type Name = keyof typeof PROVIDER_VARIABLES;
export type ProviderValues = { [N in Name]?: z.output<(typeof PROVIDER_VARIABLES)[N]['schema']> };

const MINUTE = 60_000;

/** What each variable cannot know by itself. */
export function providerContradictions(at: ProviderValues): string[] {
  const pairs = [
    ['KATAFRACT_AGENT_DEB_URL', 'KATAFRACT_AGENT_DEB_SHA256'],
    ['KATAFRACT_AGENT_APT_URL', 'KATAFRACT_AGENT_APT_KEY_FILE'],
    ['KATAFRACT_HETZNER_TOKEN_FILE', 'KATAFRACT_HETZNER_FLEET'],
  ] as const;
  const errors = pairs
    .filter(([one, other]) => (at[one] === undefined) !== (at[other] === undefined))
    .map(([one, other]) => `${one}, ${other}: set both or neither`);
  if (at.KATAFRACT_AGENT_DEB_URL !== undefined && at.KATAFRACT_AGENT_APT_URL !== undefined)
    errors.push('KATAFRACT_AGENT_DEB_URL, KATAFRACT_AGENT_APT_URL: set one of them');
  return errors;
}

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
    /** Null where new machines cannot be told where the agent comes from. */
    agent: agentOf(at, maybe),
    bootstrapFile: maybe.KATAFRACT_MACHINE_BOOTSTRAP_FILE ?? null,
    hetzner:
      maybe.KATAFRACT_HETZNER_TOKEN_FILE === undefined
        ? null
        : {
            tokenFile: maybe.KATAFRACT_HETZNER_TOKEN_FILE,
            fleet: at.KATAFRACT_HETZNER_FLEET,
            image: at.KATAFRACT_HETZNER_IMAGE,
            sshKeys: maybe.KATAFRACT_HETZNER_SSH_KEYS ?? [],
            firewalls: maybe.KATAFRACT_HETZNER_FIREWALLS ?? [],
            networks: maybe.KATAFRACT_HETZNER_NETWORKS ?? [],
            apiBase: at.KATAFRACT_HETZNER_URL,
          },
    lab: maybe.KATAFRACT_LAB_URL === undefined ? null : { url: maybe.KATAFRACT_LAB_URL },
  };
}

function agentOf(at: Required<ProviderValues>, maybe: ProviderValues) {
  if (maybe.KATAFRACT_AGENT_DEB_URL !== undefined) {
    return {
      kind: 'deb' as const,
      url: maybe.KATAFRACT_AGENT_DEB_URL,
      sha256: at.KATAFRACT_AGENT_DEB_SHA256,
    };
  }
  if (maybe.KATAFRACT_AGENT_APT_URL === undefined) return null;
  return {
    kind: 'apt' as const,
    url: maybe.KATAFRACT_AGENT_APT_URL,
    suite: at.KATAFRACT_AGENT_APT_SUITE,
    components: at.KATAFRACT_AGENT_APT_COMPONENTS,
    keyFile: at.KATAFRACT_AGENT_APT_KEY_FILE,
  };
}

export type ProvidersConfig = ReturnType<typeof providersConfig>;
