/** What a new machine of this service is told: cloud-init.ts, filled in from the configuration. */
import { readFile } from 'node:fs/promises';
import type { JoinToken } from '@katafract/shared/enroll';
import { KatafractError } from '@katafract/shared/errors';
import type { ProvidersConfig } from '../../config-providers.ts';
import { readSecretFile } from '../../platform/secrets.ts';
import { type AgentSource, renderCloudInit } from './cloud-init.ts';
import type { MachineRow } from './store.ts';
import { ENDPOINT_PORT } from './tokens.ts';

export type UserData = (machine: MachineRow, joinToken: JoinToken) => string;

/**
 * Reads the files that the configuration names.
 * @returns what renders it; throws KatafractError `agent_source_missing` (409) where the agent's package is not named
 */
export async function userDataFor(config: ProvidersConfig, controllerUrl: string): Promise<UserData> {
  const agent = await sourceOf(config.agent);
  const bootstrap = config.bootstrapFile === null ? null : await readSecretFile(config.bootstrapFile);
  return ({ node, address }, joinToken) => {
    if (agent === null) {
      const message = 'new machines cannot be told where the agent comes from: see KATAFRACT_AGENT_DEB_URL';
      throw new KatafractError('agent_source_missing', message, { status: 409 });
    }
    return renderCloudInit({
      node,
      controllerUrl,
      joinToken,
      endpointPort: ENDPOINT_PORT,
      ...(address === null ? {} : { endpointHost: address }),
      agent,
      ...(bootstrap === null ? {} : { bootstrap }),
    });
  };
}

async function sourceOf(configured: ProvidersConfig['agent']): Promise<AgentSource | null> {
  if (configured?.kind !== 'apt') return configured;
  const { keyFile, ...source } = configured;
  return { ...source, key: await readFile(keyFile, 'utf8') };
}
