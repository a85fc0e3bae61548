/**
 * Takes the planned steps one by one. It decides nothing: every step that can be taken is taken, and what failed is
 * reported. The one thing it refuses is to enable forwarding while the rules are not in place.
 */
import type { NodeConfig } from '@katafract/shared/desired';
import type { PartState } from '@katafract/shared/uplink';
import { observeHost } from '../observe/host.ts';
import { planFirewall } from '../plan/firewall.ts';
import { type HostIdentity, type HostObservation, type HostStep, planHost } from '../plan/host.ts';
import { ruleContext } from '../plan/rules.ts';
import type {
  FirewallPort,
  HostPort,
  HostReport,
  Log,
  NetworkPort,
  Tunnel,
  TunnelPort,
  Uplinks,
} from '../ports.ts';

export interface HostParts {
  readonly tunnel: TunnelPort;
  readonly network: NetworkPort;
  readonly firewall: FirewallPort;
  readonly log: Log;
}

export interface HostSettings extends HostIdentity {
  /** Interface towards the internet; null: wherever the default route leads. */
  readonly uplink: string | null;
}

/** Steps whose failure leaves the exit without a tunnel, or without the rules that hold it. */
const VITAL: ReadonlySet<HostStep['kind']> = new Set([
  'rules',
  'create',
  'private-key',
  'listen-port',
  'add-address',
  'up',
]);

/** The host as the agent's core sees it. */
export function hostPort(parts: HostParts, settings: HostSettings): HostPort {
  // What was last settled without failure: the same wish with other facts is drift, another wish is not.
  let settled = '';
  return {
    async inspect() {
      const { network, firewall } = parts;
      const seen = await observeHost(network, firewall, settings.interfaceName, settings.uplink);
      return {
        async settle(config, tunnel) {
          const wish = JSON.stringify([config, seen.uplink4, seen.uplink6]);
          const report = await settle(parts, settings, config, seen, tunnel, wish === settled);
          if (report.failures === 0) settled = wish;
          return report;
        },
      };
    },
  };
}

async function settle(
  parts: HostParts,
  settings: HostSettings,
  config: NodeConfig,
  seen: HostObservation,
  tunnel: Tunnel | null,
  known: boolean,
): Promise<HostReport> {
  const steps = planHost(settings, config, seen, tunnel);
  const failed = await applySteps(parts, settings.interfaceName, config, seen, steps);
  const kinds = (list: readonly HostStep[]) => list.map((step) => step.kind);
  if (steps.length > 0) {
    const what = { steps: kinds(steps), failed: kinds(failed) };
    if (known) parts.log.warn(what, 'the host had drifted');
    else parts.log.info(what, 'the host is set up');
  }
  const touched = steps.some((step) => step.kind === 'rules');
  const broken = failed.some((step) => step.kind === 'rules');
  const rules: PartState = broken ? 'failed' : touched && known ? 'repaired' : 'ok';
  return {
    ready: !failed.some((step) => VITAL.has(step.kind)),
    rules,
    repairs: known ? steps.length - failed.length : 0,
    failures: failed.length,
  };
}

/** @returns the steps that were not taken */
async function applySteps(
  parts: HostParts,
  interfaceName: string,
  config: NodeConfig,
  uplinks: Uplinks,
  steps: readonly HostStep[],
): Promise<HostStep[]> {
  const failed: HostStep[] = [];
  for (const step of steps) {
    if (step.kind === 'forwarding' && failed.some((other) => other.kind === 'rules')) {
      failed.push(step);
      continue;
    }
    try {
      await applyStep(parts, interfaceName, config, uplinks, step);
    } catch (error) {
      parts.log.error({ step: step.kind, err: error }, 'a step failed');
      failed.push(step);
    }
  }
  return failed;
}

async function applyStep(
  { tunnel, network, firewall }: HostParts,
  name: string,
  config: NodeConfig,
  uplinks: Uplinks,
  step: HostStep,
): Promise<void> {
  switch (step.kind) {
    case 'rules': {
      await firewall.restore(step.family, step.text);
      const left = planFirewall(await firewall.save(step.family), ruleContext(step.family, config, uplinks));
      if (left !== null) throw new Error(`the rules still differ after they were put right: ${left}`);
      return;
    }
    case 'create':
      return tunnel.create();
    case 'private-key':
      return tunnel.setPrivateKey();
    case 'listen-port':
      return tunnel.setListenPort(step.port);
    case 'add-address':
      return network.ip(['address', 'add', step.address, 'dev', name]);
    case 'remove-address':
      return network.ip(['address', 'delete', step.address, 'dev', name]);
    case 'mtu':
      return network.ip(['link', 'set', 'dev', name, 'mtu', String(step.bytes)]);
    case 'up':
      return network.ip(['link', 'set', 'dev', name, 'up']);
    case 'route':
      return network.ip(['route', 'replace', step.pool, 'dev', name]);
    case 'sysctl':
    case 'forwarding':
      return network.setSysctl(step.path, step.value);
  }
}
