/**
 * Takes the planned steps one by one. It decides nothing: every step that can be taken is taken, and what failed is
 * reported. The one thing it refuses is to forward while the rules are not in place: where they cannot be put there,
 * forwarding of their family ends, and tunnels stay up without it.
 */
import type { PartState } from '@katafract/shared/uplink';
import { observeHost } from '../observe/host.ts';
import { type HostChoices, ruleContext } from '../plan/context.ts';
import { planFirewall } from '../plan/firewall.ts';
import {
  type HostIdentity,
  type HostObservation,
  type HostStep,
  type HostWish,
  planHost,
} from '../plan/host.ts';
import type { Table } from '../plan/table.ts';
import type { FirewallPort, HostPort, HostReport, Log, NetworkPort, TunnelPort, Tunnels } from '../ports.ts';

export interface HostParts {
  /** By the interface's name. */
  readonly tunnel: (name: string) => TunnelPort;
  readonly network: NetworkPort;
  readonly firewall: FirewallPort;
  readonly log: Log;
}

export interface HostSettings extends HostIdentity {
  readonly choices: HostChoices;
  readonly table: Table;
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
  const { interfaceName, choices, table } = settings;
  // What was last settled without failure: the same wish with other facts is drift, another wish is not.
  let settled = '';
  return {
    async inspect(config) {
      const looked = { config, choices, table };
      const seen = await observeHost(parts.network, parts.firewall, interfaceName, looked);
      return {
        async settle(tunnels, gates) {
          const wish = { ...looked, gates };
          const { links, routes, sysctls, firewall, ...uplinks } = seen;
          const wanted = JSON.stringify([config, uplinks, gates]);
          const report = await settle(parts, settings, wish, seen, tunnels, wanted === settled);
          if (report.failures === 0) settled = wanted;
          return report;
        },
      };
    },
  };
}

async function settle(
  parts: HostParts,
  identity: HostIdentity,
  wish: HostWish,
  seen: HostObservation,
  tunnels: Tunnels,
  known: boolean,
): Promise<HostReport> {
  const steps = planHost(identity, wish, seen, tunnels);
  const failed = await applySteps(parts, wish, seen, steps);
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
  wish: HostWish,
  seen: HostObservation,
  steps: readonly HostStep[],
): Promise<HostStep[]> {
  const failed: HostStep[] = [];
  for (const step of steps) {
    if (step.kind === 'forwarding' && failed.some((other) => other.kind === 'rules')) {
      failed.push(step);
      continue;
    }
    try {
      if (step.kind === 'rules') await applyRules(parts, wish, seen, step);
      else await applyStep(parts, step);
    } catch (error) {
      parts.log.error({ step: step.kind, err: error }, 'a step failed');
      failed.push(step);
    }
  }
  return failed;
}

type RulesStep = Extract<HostStep, { kind: 'rules' }>;

async function applyRules(
  { network, firewall, log }: HostParts,
  { config, choices, gates, table }: HostWish,
  seen: HostObservation,
  { family, text, close }: RulesStep,
): Promise<void> {
  try {
    await firewall.restore(family, text);
    const context = ruleContext(family, config, seen, choices, gates);
    const left = planFirewall(await firewall.save(family), context, table);
    if (left !== null) throw new Error(`the rules still differ after they were put right: ${left}`);
  } catch (error) {
    for (const { path, value } of close) await network.setSysctl(path, value);
    log.error({ family }, 'the rules are not in place: nothing of this family is forwarded until they are');
    throw error;
  }
}

async function applyStep({ tunnel, network }: HostParts, step: Exclude<HostStep, RulesStep>): Promise<void> {
  switch (step.kind) {
    case 'create':
      return tunnel(step.device).create();
    case 'private-key':
      return tunnel(step.device).setPrivateKey();
    case 'listen-port':
      return tunnel(step.device).setListenPort(step.port);
    case 'add-address':
      return network.ip(['address', 'add', step.address, 'dev', step.device]);
    case 'remove-address':
      return network.ip(['address', 'delete', step.address, 'dev', step.device]);
    case 'mtu':
      return network.ip(['link', 'set', 'dev', step.device, 'mtu', String(step.bytes)]);
    case 'up':
      return network.ip(['link', 'set', 'dev', step.device, 'up']);
    case 'route':
      return network.ip(['route', 'replace', step.prefix, 'dev', step.device, 'src', step.source]);
    case 'sysctl':
    case 'forwarding':
      return network.setSysctl(step.path, step.value);
  }
}
